"""Opens a source from its spec. The only module that knows all kinds of sources.

with open_source("clip.mp4") as source:
    while (frame := source.read()) is not None:
        ...
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from lineament.landmarks.types import LineamentError
from lineament.stream.read.base import Source
from lineament.stream.read.camera import CameraSource
from lineament.stream.read.image import IMAGE_SUFFIXES, kind_of
from lineament.stream.read.pictures import AnimationSource, ImageSource, SampleSource
from lineament.stream.read.snapshot import SnapshotSource
from lineament.stream.read.spec import ReadConfig, redacted_spec, without_file_scheme
from lineament.stream.read.video import VideoSource

log = logging.getLogger(__name__)


def open_source(spec: str, cfg: ReadConfig | None = None) -> Source:
    """spec: a camera number, a URL, a path, "sample", or "auto" (also "") for the first camera, else the sample.

    Only "auto" opens a device here; all others open on entry. Raises LineamentError if cfg polls what is no http:// or
    https:// URL.
    """
    cfg = cfg or ReadConfig()
    if cfg.poll_s is not None:
        if not re.match("https?://", spec, re.IGNORECASE):
            raise LineamentError(
                f"{redacted_spec(spec)} cannot be polled, only a picture at an http:// or https:// address; "
                "leave out --poll-s, or give each source its own poll_s in a file for --cameras"
            )
        return SnapshotSource(spec, cfg.poll_s)
    if spec in ("", "auto"):
        camera = CameraSource(0)
        try:
            return camera.__enter__()
        except LineamentError as error:
            log.warning("no camera to read (%s); showing the sample instead", str(error).split(";")[0])
            return SampleSource()
    if spec == "sample":
        return SampleSource()
    if match := re.fullmatch(r"(?:/dev/video)?(\d+)", spec):
        return CameraSource(int(match[1]))
    spec = without_file_scheme(spec)
    if "://" in spec:
        return VideoSource(spec, stream=cfg.stream)
    path = Path(os.path.expanduser(spec))  # unlike Path.expanduser, accepts an unknown user
    if os.path.isdir(path):
        return ImageSource(path)
    kind = kind_of(path)
    if kind == "animation":
        return AnimationSource(path)
    if kind == "picture" or (kind == "other" and path.suffix.lower() in IMAGE_SUFFIXES):
        return ImageSource(path)
    return VideoSource(path, stream=cfg.stream)
