"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 120.0
"""a generous bound, for a crowded machine is late: whatever takes longer hangs"""


def until(true: Callable[[], bool]) -> None:
    """Returns once it is true; fails when that takes too long."""
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)
