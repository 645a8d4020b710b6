"""Smoother: takes the shimmer out of a face's points without making them trail behind it."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.typing import NDArray

from landmarks.types import F32

C128 = NDArray[np.complex128]
"""points as x + iy: a similarity is then one multiplication and one addition"""


@dataclass(frozen=True, slots=True)
class OneEuroConfig:
    """One Euro's three numbers. Lengths are in face sizes, so that one setting fits a near and a far face."""

    min_cutoff_hz: float
    """cut-off at rest: lower is steadier"""
    beta: float
    """Hz of cut-off gained per face size per second: higher follows a movement sooner"""
    speed_cutoff_hz: float = 2.0
    """cut-off of the speed that `beta` multiplies"""


SHARED = OneEuroConfig(min_cutoff_hz=1.0, beta=200.0)
"""for the motion of the whole face: an average over all points, so it may follow at the first sign of one"""
OWN = OneEuroConfig(min_cutoff_hz=0.5, beta=20.0, speed_cutoff_hz=5.0)
"""for each point's motion within the face: quick enough for a blink, which lasts five frames"""
_FARTHEST = 1e30
"""px: what lies further away is nowhere, and would end as infinite"""


class Smoother:
    """One Euro filter (Casiez, Roussel, Vogel: "1 Euro Filter", CHI 2012), one per point, in the face's own motion.

    A plain One Euro sees a face that moves as 98 points that all move, and must choose between lag and shimmer for
    each of them. Here the motion that all points share (the least-squares similarity from the last smoothed points
    to the new ones) is taken out first and filtered by One Euro as a whole: averaged over 98 points it is nearly
    free of noise, so its filter may open early. What remains is expression and noise, filtered per point.
    """

    def __init__(self, shared: OneEuroConfig = SHARED, own: OneEuroConfig = OWN) -> None:
        self._shared, self._own = shared, own
        self._points: C128 | None = None
        self._time_s = 0.0
        self._shared_speed = 0.0
        self._own_velocity: C128 | complex = 0j

    def __call__(self, points: F32, time_s: float) -> F32:
        """points: (K, 2) frame px at time_s, later than the call before -> (K, 2) smoothed.

        Points that are not finite, or absurdly far away, pass unchanged; the next ones are then the first.
        """
        if not np.abs(points).max() < _FARTHEST:
            self._points = None
            return points
        new = _complex(points)
        if self._points is None or not time_s > self._time_s:
            self._points, self._time_s, self._shared_speed, self._own_velocity = new, time_s, 0.0, 0j
            return points
        dt_s, self._time_s = time_s - self._time_s, time_s
        old, center = self._points, new.mean()
        flat = new - center
        size = 2 * float(np.sqrt(_energy(flat) / len(flat))) or 1.0

        # the whole face: how far it moved, and how much of that to believe
        start = old - old.mean()
        moved = start * (np.vdot(start, flat) / max(_energy(start), 1e-12)) + center
        motion = moved - old
        speed = float(np.sqrt(_energy(motion) / len(motion))) / size / dt_s
        self._shared_speed += _gain(self._shared.speed_cutoff_hz, dt_s) * (speed - self._shared_speed)
        follow = _gain(self._shared.min_cutoff_hz + self._shared.beta * self._shared_speed, dt_s)

        # each point's own movement within the face, seen from where the face was carried to
        own = new - moved
        self._own_velocity += _gain(self._own.speed_cutoff_hz, dt_s) * (own / (size * dt_s) - self._own_velocity)
        rate = 2 * pi * dt_s * (self._own.min_cutoff_hz + self._own.beta * np.abs(self._own_velocity))
        self._points = old + follow * motion + rate / (1 + rate) * own
        return self._points.view(np.float64).reshape(-1, 2).astype(np.float32)


def _complex(points: F32) -> C128:
    """(K, 2) -> (K,)."""
    return points.astype(np.float64).view(np.complex128)[:, 0]


def _energy(values: C128) -> float:
    return float(np.vdot(values, values).real)


def _gain(cutoff_hz: float, dt_s: float) -> float:
    """The weight of a new sample in a first-order low-pass filter."""
    rate = 2 * pi * cutoff_hz * dt_s
    return rate / (1 + rate)
