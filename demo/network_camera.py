"""NetworkCamera: the camera address of a visitor as a live Source."""

from __future__ import annotations

import threading
from typing import Self

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.read.base import Health, Source
from lineament.stream.read.pictures import PacedSource
from lineament.stream.read.spec import redacted_spec
from lineament.stream.read.video import VideoSource

SCHEMES = ("rtsp", "rtsps", "http", "https")


class NetworkCamera:
    """rtsp, rtsps, http or https; opens on entry. A recording plays in real time, like a live camera."""

    live = True
    still = False

    def __init__(self, url: str, max_pixels: int = MAX_PIXELS) -> None:
        """max_pixels: of a frame; larger frames are skipped undecoded. Raises LineamentError for any other scheme."""
        url = url.strip()
        scheme, colon, _ = url.partition("://")
        if not colon or scheme.lower() not in SCHEMES:
            kinds = ", ".join(f"{name}://" for name in SCHEMES)
            raise LineamentError(f"cannot open {redacted_spec(url)[:80]!r}: expected one of {kinds}")
        self.name = redacted_spec(url)
        self.fps: float | None = None
        self.frame_count: int | None = None
        self._video = VideoSource(url, max_pixels=max_pixels)
        self._source: Source = self._video
        self._closed = threading.Event()

    @property
    def health(self) -> Health:
        return self._source.health

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def __enter__(self) -> Self:
        self._video.__enter__()
        if not self._video.live:  # known only once it is open
            self._source = PacedSource(self._video)
            self._source.__enter__()
        if self.closed:  # closed by another thread while it opened
            self._source.close()
        self.fps = self._source.fps
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        frame = self._source.read()
        return None if self.closed else frame

    def close(self) -> None:
        """May be called from any thread, and twice."""
        self._closed.set()
        self._source.close()
