"""Times several ways to do the same thing against one another, in one run, so that none is wronged.

    fast, slow = in_turns([lambda: a(crops), lambda: b(crops)], rounds=30)

They take turns, so that a slow minute of the machine is slow for all. Each turn is two calls, of which the second
counts: threads of the one before may still spin in wait for more work when the first begins, and its caches are cold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from landmarks.types import F64

WARM_UP = 2
"""rounds before the clock starts"""


def in_turns(calls: Sequence[Callable[[], object]], rounds: int, on_round: Callable[[], object] | None = None) -> F64:
    """(len(calls), rounds) ms. on_round: called after each round, the warm-up's too."""
    times_ms = np.empty((len(calls), rounds))
    for i in range(-WARM_UP, rounds):
        for call, ms in zip(calls, times_ms):
            call()
            began_s = time.perf_counter()
            call()
            if i >= 0:
                ms[i] = (time.perf_counter() - began_s) * 1e3
        if on_round:
            on_round()
    return times_ms
