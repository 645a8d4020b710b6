"""Opens a sink from an output: a path by its suffix, an address by its scheme. The only module that knows all kinds.

with open_sink("out.mp4", fps=30) as sink:
    sink.write(result, drawn_bgr)
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import LineamentError
from lineament.stream.read.image import IMAGE_SUFFIXES, WRITTEN_SUFFIXES
from lineament.stream.read.spec import redacted_spec, without_file_scheme
from lineament.stream.write.base import Sink
from lineament.stream.write.files import VIDEO_CODECS, HlsSink, ImageSink, JsonlSink, VideoSink, check_not_source
from lineament.stream.write.json_line import JsonLine
from lineament.stream.write.network import MESSAGES, Background, parsed
from lineament.stream.write.table import CsvSink, ParquetSink

log = logging.getLogger(__name__)

_EXPRESSIVE = ("ws:", "mqtt", "osc:", "openseeface:")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|virtual:")
"""how an address begins"""


def open_sink(
    path: str,
    fps: float | None = None,
    schema: str = WFLW98.name,
    source: str = "",
    live: bool = False,
    *,
    still: bool = False,
    audio: bool = True,
) -> Sink:
    """The sink of a path, by its suffix, or of an address, by its scheme. It opens on entry.

    A folder ends in "/"; "-" is JSON lines on standard output. source: the spec being read, never overwritten. live: as
    VideoSink takes it. still: as ImageSink takes it. audio: also write the audio of the source to a video, if it is a
    file.
    """
    if is_address(path):
        return _open_address(path, fps, JsonLine(schema))
    try:
        target = Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or an invalid name
        raise LineamentError(f"cannot write {path!r}: no such home directory; give the full path") from None
    suffix = target.suffix.lower()
    check_not_source(target, source)
    if path == "-" or suffix == ".jsonl":
        return JsonlSink(path, schema)
    if suffix == ".csv":
        return CsvSink(path, schema)
    if suffix == ".parquet":
        return ParquetSink(path, schema)
    if path.endswith(("/", os.sep)) or os.path.isdir(target):  # unlike Path.is_dir, accepts any name
        return ImageSink(target, folder=True, still=still)
    if suffix == ".m3u8":
        return HlsSink(target, fps, live, _audio_of(source, live) if audio else None)
    if suffix in VIDEO_CODECS:
        return VideoSink(target, fps, live, _audio_of(source, live) if audio else None)
    if suffix in WRITTEN_SUFFIXES:
        return ImageSink(target, folder=False)
    known = ", ".join([*VIDEO_CODECS, ".m3u8", ".jsonl", ".csv", ".parquet", *sorted(WRITTEN_SUFFIXES)])
    raise LineamentError(f"unknown output format of {path!r}; use {known}, or end a folder in '/'")


def _audio_of(source: str, live: bool) -> Path | None:
    """The file to read audio from. Live sources and URLs have none, because it is read a second time."""
    if live:
        return None
    spec = without_file_scheme(source)
    if "://" in spec:
        log.info("the audio of %s, if any, is not written; download it first", redacted_spec(spec))
        return None
    path = Path(os.path.expanduser(spec))
    return path if os.path.isfile(path) and path.suffix.lower() not in IMAGE_SUFFIXES else None


def _open_address(output: str, fps: float | None, line: JsonLine) -> Sink:
    """The sink of a URL, or of "virtual:" with an optional device. Raises LineamentError for any other."""
    # lazy: a run that only writes files needs none of them
    from lineament.stream.write.media import PICTURES, MediaServer, VirtualCamera
    from lineament.stream.write.mqtt import MqttBroker
    from lineament.stream.write.openseeface import packet
    from lineament.stream.write.udp import POSES, Udp
    from lineament.stream.write.vmc import Vmc
    from lineament.stream.write.websocket import WebSocketSink

    if output.startswith("virtual:"):
        return Background(VirtualCamera(output.removeprefix("virtual:"), fps), output, PICTURES)
    address = parsed(output)
    if address.scheme == "ws":
        return WebSocketSink(address, line)
    if address.scheme.startswith("mqtt"):
        return Background(MqttBroker(address, line), address.shown, MESSAGES)
    if address.scheme == "osc":
        return Background(Udp(address, Vmc(address)), address.shown, POSES)
    if address.scheme == "openseeface":
        return Background(Udp(address, packet), address.shown, POSES)
    return Background(MediaServer(address, fps), address.shown, PICTURES)


def is_expressive(output: str) -> bool:
    """Whether an output has each face's gaze and expression: JSON lines, messages and avatars."""
    name = output.lower()
    return name == "-" or name.endswith(".jsonl") or name.startswith(_EXPRESSIVE)


def is_address(output: str) -> bool:
    """Whether an output is a destination like rtsp://host/name or a virtual camera, rather than a path."""
    return _ADDRESS.match(output) is not None
