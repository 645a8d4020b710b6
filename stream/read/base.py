"""Source: what delivers frames, and what all kinds share."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Protocol, Self

from lineament.landmarks.types import U8, Frame, LineamentError
from lineament.stream.read.image import MAX_SIDE_PX

OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
"""the longest that a URL may take to open, and to deliver its next packet"""


class Health(NamedTuple):
    """How a source that may be lost is doing."""

    reconnects: int = 0
    """how often it was lost and came back"""
    trouble: str | None = None
    """why there is no picture now, as an error says it; None while all is well"""
    down_s: float = 0.0
    """seconds without a picture since it was lost; 0 while all is well"""
    lost_s: float = 0.0
    """seconds without a picture, all outages together, this one too"""


class Source(Protocol):
    """Delivers frames; a context manager that opens on entry. One thread reads, any may close."""

    name: str
    """what a log may show: never a password"""
    live: bool
    """True: the newest frame wins. False: every frame counts. For http it is sure only once opened"""
    still: bool
    """each frame stands alone: nothing is tracked or smoothed from one to the next"""
    fps: float | None
    """known once opened, if at all"""
    frame_count: int | None
    """known once opened, if at all, sometimes an estimate: for progress bars"""

    @property
    def health(self) -> Health:
        """Any thread may ask."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def read(self) -> Frame | None:
        """The next frame; None at the end and after close. Raises LineamentError after READ_TIMEOUT_S of silence."""
        ...

    def close(self) -> None:
        """May be called from any thread, and twice. A read under way ends: of a URL at once, else in its time-out."""
        ...


class BaseSource:
    """What all sources share: one reader at a time, and a close that never pulls the device from under it."""

    live = False
    still = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.fps: float | None = None
        self.frame_count: int | None = None
        self._index = 0
        self._opened = False
        self._closed = threading.Event()
        self._busy = threading.Lock()

    @property
    def health(self) -> Health:
        return Health()

    def __enter__(self) -> Self:
        """Opens; on an open source it does nothing."""
        with self._busy:
            if not self._opened and not self._closed.is_set():
                try:
                    self._open()
                except BaseException as error:
                    self._release()
                    if not (self._closed.is_set() and isinstance(error, LineamentError)):
                        raise
                self._opened = True
        if self._closed.is_set():
            self.close()  # a close() meanwhile left the release to us
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        with self._busy:
            if not self._opened and not self._closed.is_set():
                raise RuntimeError(f"{self.name} is not open; use it in a with block")
            try:
                frame = None if self._closed.is_set() else self._next()
            except LineamentError:
                if not self._closed.is_set():
                    raise
        if self._closed.is_set():
            self.close()
            return None
        return frame

    def close(self) -> None:
        self._closed.set()
        if self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    def _frame(self, bgr: U8, time_s: float, source: str | None = None) -> Frame:
        """Numbers the frame and stamps it with the clock."""
        if max(bgr.shape) > MAX_SIDE_PX:
            wide = f"{bgr.shape[1]}x{bgr.shape[0]}"
            raise LineamentError(f"{source or self.name} is {wide}, wanted sides up to {MAX_SIDE_PX}; make it smaller")
        self._index += 1
        return Frame(bgr, source or self.name, self._index - 1, time_s, time.monotonic())

    def _open(self) -> None:
        raise NotImplementedError

    def _next(self) -> Frame | None:
        raise NotImplementedError

    def _release(self) -> None:
        """Lets go of what _open took; called once or more, also when _open failed or never ran."""
