"""NetworkCamera: a visitor's camera address as a Source of the stream, behind a relay and its rules."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Self

from lineament.demo.reach import resolve
from lineament.demo.relay import HttpRelay, RtspRelay
from lineament.landmarks.types import Frame, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.read.base import Health, Source
from lineament.stream.read.pictures import PacedSource
from lineament.stream.read.spec import redacted_spec
from lineament.stream.read.video import VideoSource


class NetworkCamera:
    """rtsp, rtsps, http or https. A recording comes at its own pace, as if it were live. It opens on entry."""

    live = True
    still = False

    def __init__(self, url: str, allow_private: bool, max_pixels: int = MAX_PIXELS) -> None:
        """max_pixels: of a frame; larger ones are passed over undecoded."""
        self.name = redacted_spec(url)
        self.fps: float | None = None
        self.frame_count: int | None = None
        self._url, self._allow_private, self._max_pixels = url.strip(), allow_private, max_pixels
        self._source: Source | None = None
        self._relay: RtspRelay | HttpRelay | None = None
        self._stack = ExitStack()
        self._closed = threading.Event()

    @property
    def health(self) -> Health:
        return Health()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    def __enter__(self) -> Self:
        target = resolve(self._url, self._allow_private)
        self._relay = RtspRelay(target) if target.scheme.startswith("rtsp") else HttpRelay(target, self._allow_private)
        try:
            self._stack.enter_context(self._relay)
            video = VideoSource(self._relay.url, max_pixels=self._max_pixels)
            video.name = self.name  # not the relay's
            self._source = video
            video.__enter__()
            self._source = video if video.live else PacedSource(video)
            self._stack.callback(self._source.close)
            self._source.__enter__()
        except LineamentError as error:
            self.close()
            self._stack.close()
            raise self._told(error) from None
        if self.closed:  # meanwhile
            self._stack.close()
        self.fps = self._source.fps
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        if self._source is None:
            raise RuntimeError(f"{self.name} is not open; use it in a with block")
        try:
            frame = self._source.read()
        except LineamentError as error:
            if self.closed:
                return None
            raise self._told(error) from None
        return None if self.closed else frame

    def close(self) -> None:
        """May be called from any thread, and twice."""
        self._closed.set()
        if self._source is not None:
            self._source.close()
        if self._relay is not None:
            self._relay.close()

    def _told(self, error: LineamentError) -> LineamentError:
        """The relay knows better why."""
        refused = self._relay.refused if self._relay else None
        return LineamentError(refused) if refused else error
