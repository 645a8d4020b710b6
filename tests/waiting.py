"""Waiting for what happens in another thread or process, which ends with its block."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """The process of a command, as Popen starts it; killed when the block is left.

    Popen's own block waits for the process, so an assertion that fails in it would hang.
    """
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()
