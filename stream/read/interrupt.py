"""Interrupt: ends a wait inside FFmpeg from outside, at once and however its packets trickle.

    wait = Wait(closed)
    with wait.at_most(20.0):
        container = av.open(url, timeout=(10.0, 5.0))

While it waits, FFmpeg asks PyAV ten times a second whether to go on, and PyAV compares time.monotonic() with its
time-out. Importing this module puts a clock of its own there: the same, until the thread's Wait is over; then it runs
days ahead, and whatever time-out PyAV had set has passed. So only a call that has a time-out can be ended.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import av.container.core

_FORWARD_S = 1e6
"""further ahead with every look, so that a time-out that starts after the end passes too"""


class Wait:
    """Says how long one thread's calls of FFmpeg may take; they end when `cancelled` is set, by any thread."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._until_s = math.inf
        self._ahead_s = 0.0

    @contextmanager
    def at_most(self, limit_s: float) -> Iterator[None]:
        """For the calling thread; not to be nested. In the main thread Ctrl-C ends the block, too."""
        self._until_s, self._ahead_s = time.monotonic() + limit_s, 0.0
        _clock.monotonic = self._clock_s
        try:
            if threading.current_thread() is threading.main_thread():
                with self._ended_by_control_c():
                    yield
            else:
                yield
        finally:
            _clock.monotonic = time.monotonic

    @property
    def over(self) -> bool:
        """Whether the block's time was up, or is."""
        return self._ahead_s > 0 or time.monotonic() > self._until_s

    def _clock_s(self) -> float:
        now_s = time.monotonic()
        if now_s > self._until_s or self._cancelled.is_set():
            self._ahead_s += _FORWARD_S
        return now_s + self._ahead_s

    @contextmanager
    def _ended_by_control_c(self) -> Iterator[None]:
        """Keeps the signal until the block is left: handled in the clock, its exception would be lost in PyAV."""
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            yield
            return
        came: list[FrameType | None] = []

        def keep(number: int, frame: FrameType | None) -> None:
            came.append(frame)
            self._until_s = -math.inf

        signal.signal(signal.SIGINT, keep)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, handler)
            if came:
                handler(signal.SIGINT, came[0])


class _Clock(threading.local):
    """Stands where PyAV looks for Python's module `time`; every thread has its own."""

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic


_clock = _Clock()
av.container.core.time = _clock  # type: ignore[attr-defined]
