"""Interrupt: ends a blocking call of FFmpeg from another thread, at once.

    wait = Wait(closed)
    with wait.at_most(20.0):
        container = av.open(url, timeout=(10.0, 5.0))

While it waits, FFmpeg asks PyAV ten times a second whether to continue, and PyAV compares time.monotonic() with its
timeout. Importing this module replaces that clock by one that is the same until the thread's Wait is over; then it runs
days ahead, so that any timeout has passed. Only a call with a timeout can be ended.
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
"""further ahead with every reading, so that a timeout that starts later passes too"""


class Wait:
    """Limits one thread's calls of FFmpeg; they end when `cancelled` is set, by any thread."""

    def __init__(self, cancelled: threading.Event) -> None:
        self._cancelled = cancelled
        self._until_s = math.inf
        self._ahead_s = 0.0

    @contextmanager
    def at_most(self, limit_s: float) -> Iterator[None]:
        """Limits the calls in the block; cannot be nested. In the main thread, Ctrl-C ends them, too."""
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
        """Whether the block's time is or was up."""
        return self._ahead_s > 0 or time.monotonic() > self._until_s

    def _clock_s(self) -> float:
        now_s = time.monotonic()
        if now_s > self._until_s or self._cancelled.is_set():
            self._ahead_s += _FORWARD_S
        return now_s + self._ahead_s

    @contextmanager
    def _ended_by_control_c(self) -> Iterator[None]:
        """Defers the signal to the end of the block: raised in the clock, its exception would be lost in PyAV."""
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
    """Replaces the module `time` in PyAV; one per thread."""

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic


_clock = _Clock()
av.container.core.time = _clock  # type: ignore[attr-defined]
