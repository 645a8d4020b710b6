"""NetworkCamera: the camera at an address that a visitor typed, as a live Source."""

from __future__ import annotations

import re

from lineament.landmarks.types import LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.read.pictures import PacedSource
from lineament.stream.read.spec import redacted_spec
from lineament.stream.read.video import VideoSource

_ADDRESS = re.compile(r"(rtsps?|https?)://[^\s/?#]\S*", re.IGNORECASE)


class NetworkCamera(PacedSource):
    """A camera by RTSP or HTTP, opened on entry. A recording plays in real time, as if it were live."""

    def __init__(self, url: str, max_pixels: int = MAX_PIXELS) -> None:
        """max_pixels: of a frame; larger ones are skipped undecoded. Raises LineamentError for a file or a device."""
        url = url.strip()
        if not _ADDRESS.fullmatch(url) or not url.isprintable():
            raise LineamentError(
                f"{redacted_spec(url)!r} is not the address of a network camera; "
                "use rtsp://, rtsps://, http:// or https://, as in rtsp://user:password@host/path"
            )
        super().__init__(VideoSource(url, max_pixels=max_pixels))

    @property
    def closed(self) -> bool:
        return self._closed.is_set()
