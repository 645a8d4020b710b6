"""Distance of two models' points, in px of a 256-px crop, and which engine is recommended by it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lineament.landmarks.types import F32, F64

NEAR_PX = 0.5
"""95 of 100 points of a recommended engine are this close to the reference's: 0.55 % of a face's inter-ocular distance,
where WFLW's labels are off by eight times as much. 99 of 100 would refuse the B5 in bf16, which costs it no NME: it has
0.26 px in 95, 0.71 in 99"""
NOISE = 0.03
"""share by which the times of one engine differ between two runs"""


def distances_px(a_NK2: F32, b_NK2: F32) -> F64:
    """(N, K) px of a 256-px crop, from unit coordinates; nan where either is."""
    return np.asarray(np.linalg.norm(np.asarray(a_NK2 - b_NK2, np.float64), axis=-1) * 256)


def within_px(found_NK2: F32, wanted_NK2: F32, percent: float = 95) -> float:
    """The distance within which this share of the points are, px of a 256-px crop; nan if any is."""
    return float(np.percentile(distances_px(found_NK2, wanted_NK2), percent))


def recommended(times_ms: Sequence[float], errors_px: Sequence[float]) -> int | None:
    """The index of the fastest engine whose error, by within_px, is at most NEAR_PX; None if there is none.

    Of engines that are equally fast within NOISE, it is the most accurate.
    """
    near = [i for i, px in enumerate(errors_px) if px <= NEAR_PX]
    fastest_ms = min((times_ms[i] for i in near), default=0.0)
    fast = [i for i in near if times_ms[i] <= fastest_ms * (1 + NOISE)]
    # by 0.01 px, or chance would decide between two runtimes of the same graph in f32
    return min(fast, key=lambda i: (round(errors_px[i], 2), times_ms[i]), default=None)
