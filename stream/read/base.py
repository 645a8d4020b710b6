"""Source: the protocol of everything that delivers frames, and a base class."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, Protocol, Self

from lineament.landmarks.types import U8, Frame, LineamentError
from lineament.stream.read.image import MAX_SIDE_PX

OPEN_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 5.0
"""timeouts of a URL: to open, and to deliver its next packet"""


class Health(NamedTuple):
    """The state of a source's connection."""

    reconnects: int = 0
    """how often it was lost and came back"""
    trouble: str | None = None
    """the error that explains why there is no picture; None while there is one"""
    down_s: float = 0.0
    """seconds since it was lost; 0 while it is up"""
    lost_s: float = 0.0
    """seconds of all outages, including this one"""


class Source(Protocol):
    """Delivers frames; a context manager that opens on entry. One thread reads, any thread may close."""

    name: str
    """for logs, without passwords"""
    live: bool
    """True: the newest frame wins. False: every frame counts. Final only once open, for http"""
    still: bool
    """each frame stands alone: nothing is tracked or smoothed from one to the next"""
    fps: float | None
    """known once opened, if at all"""
    frame_count: int | None
    """known once opened, if at all, sometimes an estimate: for progress bars"""

    @property
    def health(self) -> Health:
        """May be read by any thread."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def read(self) -> Frame | None:
        """The next frame; None at the end and after close. Raises LineamentError after READ_TIMEOUT_S of silence."""
        ...

    def close(self) -> None:
        """May be called from any thread, and twice. Ends a read of a URL at once, any other after its timeout."""
        ...


class BaseSource:
    """Base of all sources: one reader at a time, and a close that never releases a device during a read."""

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
        """Opens; does nothing if already open."""
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
            self.close()  # a concurrent close() left the release to this thread
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

    def _frame(self, bgr: U8, time_s: float, source: str | None = None, stamp_s: float | None = None) -> Frame:
        """A frame with the next number, stamped with the clock."""
        if max(bgr.shape) > MAX_SIDE_PX:
            wide = f"{bgr.shape[1]}x{bgr.shape[0]}"
            raise LineamentError(
                f"{source or self.name} is {wide}, expected sides up to {MAX_SIDE_PX} px; downscale it"
            )
        self._index += 1
        return Frame(bgr, source or self.name, self._index - 1, time_s, time.monotonic(), stamp_s)

    def _open(self) -> None:
        raise NotImplementedError

    def _next(self) -> Frame | None:
        raise NotImplementedError

    def _release(self) -> None:
        """Releases what _open acquired; may be called several times, also if _open failed or never ran."""
