"""Snapshots: a camera's still picture at a web address, fetched again and again as a live source."""

from __future__ import annotations

import time

import numpy as np

from lineament.landmarks.types import U8, Frame, LineamentError
from lineament.stream.read.base import OPEN_TIMEOUT_S, READ_TIMEOUT_S, BaseSource
from lineament.stream.read.spec import redacted_spec
from lineament.stream.read.video import VideoSource

_MAX_BYTES = 64 << 20
"""to read of one picture"""


class SnapshotSource(BaseSource):
    """An http:// or https:// picture, fetched every poll_s seconds; each is delivered once, when it has changed.

    While the server answers with the same picture, a read waits and nothing is lost.
    """

    live = True

    def __init__(
        self,
        url: str,
        poll_s: float,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        super().__init__(redacted_spec(url))
        self._url, self._poll_s, self._timeout_s = url, poll_s, (open_timeout_s, read_timeout_s)
        self._fetching: VideoSource | None = None
        self._new_bgr: U8 | None = None
        """fetched, but not yet delivered"""
        self._shown_bgr: U8 | None = None
        self._due_s = 0.0
        self._first_s = 0.0

    def close(self) -> None:
        self._closed.set()  # wakes the wait
        if self._fetching is not None:
            self._fetching.close()
        super().close()

    def _open(self) -> None:
        self.fps = 1 / self._poll_s
        self._new_bgr = self._fetch()
        self._first_s = time.monotonic()

    def _next(self) -> Frame | None:
        while self._new_bgr is None:
            if self._closed.wait(max(0.0, self._due_s - time.monotonic())):
                return None
            bgr = self._fetch()
            if bgr is not None and not (self._shown_bgr is not None and np.array_equal(bgr, self._shown_bgr)):
                self._new_bgr = bgr
        self._shown_bgr, self._new_bgr = self._new_bgr, None
        return self._frame(self._shown_bgr, time.monotonic() - self._first_s)

    def _fetch(self) -> U8 | None:
        """(H, W, 3) uint8 BGR; None after close()."""
        self._due_s = time.monotonic() + self._poll_s
        source = self._fetching = VideoSource(self._url, *self._timeout_s, max_bytes=_MAX_BYTES)
        if self._closed.is_set():  # close() may have closed the previous one
            return None
        with source:
            if self._closed.is_set():
                return None
            if not source.still:
                raise LineamentError(f"{self.name} is a video, not a picture; leave out --poll-s")
            frame = source.read()
        return frame.bgr if frame is not None else None
