"""Compares the time of several calls fairly, in one run.

    fast_ms, slow_ms = in_turns([lambda: a(crops), lambda: b(crops)], n=30)

They take turns, so that a slow minute of the machine affects all. The first call of a turn is not timed: the threads of
the previous runtime may still be spinning, and the caches are cold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from lineament.landmarks.types import F64

TURN = 5
"""timed calls in a turn"""


def in_turns(calls: Sequence[Callable[[], object]], n: int, on_call: Callable[[], object] | None = None) -> F64:
    """(len(calls), n) ms. on_call: called after each timed call, for a progress bar."""
    times_ms = np.empty((len(calls), n))
    # an empty turn first, because the first calls of a runtime are slow
    for turn in [range(0), *(range(start, min(start + TURN, n)) for start in range(0, n, TURN))]:
        for call, ms in zip(calls, times_ms):
            call()
            for i in turn:
                began_s = time.perf_counter()
                call()
                ms[i] = (time.perf_counter() - began_s) * 1e3
                if on_call:
                    on_call()
    return times_ms
