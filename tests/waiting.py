"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WAIT_S = 120.0
"""a generous bound, for a crowded machine is late: whatever takes longer hangs"""


def until(true: Callable[[], bool], told: Callable[[], object] = lambda: "") -> None:
    """Returns once it is true; where that takes too long, fails with what is told."""
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, f"waited in vain: {told()}"
        time.sleep(0.01)


@contextmanager
def beside(work: Callable[[threading.Event], object], name: str) -> Iterator[threading.Event]:
    """Works in a thread of that name until the block is left, which sets the event that it is given."""
    stopped = threading.Event()
    thread = threading.Thread(target=work, args=(stopped,), name=name)
    thread.start()
    try:
        yield stopped
    finally:
        stopped.set()
        thread.join(WAIT_S)
