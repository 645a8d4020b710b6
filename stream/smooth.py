"""Smoother: takes the shimmer out of a face's points without making them trail behind it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from landmarks.types import F32, F64, Floats


@dataclass(frozen=True, slots=True)
class OneEuroConfig:
    """One Euro's three numbers. Lengths are in face sizes, so that one setting fits a near and a far face."""

    min_cutoff_hz: float = 1.0
    """cut-off at rest: lower is steadier"""
    beta: float = 5.0
    """Hz of cut-off gained per face size per second: higher follows a movement sooner"""
    speed_cutoff_hz: float = 2.0
    """cut-off of the speed that `beta` multiplies"""


class Smoother:
    """One Euro filter (Casiez, Roussel, Vogel: "1 Euro Filter", CHI 2012), one per point, in the face's own motion.

    A plain One Euro sees a face that moves as 98 points that all move, and must choose between lag and shimmer for
    each of them. Here the motion that all points share (the least-squares similarity from the last smoothed points
    to the new ones) is taken out first and filtered by One Euro as a whole: averaged over 98 points it is nearly
    free of noise, so its filter may open early. What remains is expression and noise, filtered per point.
    """

    def __init__(self, shared: OneEuroConfig | None = None, own: OneEuroConfig | None = None) -> None:
        self._shared = shared or OneEuroConfig(min_cutoff_hz=2.0, beta=30.0)
        self._own = own or OneEuroConfig(min_cutoff_hz=1.0, beta=5.0)
        self._points: F64 | None = None
        self._time_s = 0.0
        self._shared_speed: F64 = np.zeros(1)
        self._own_velocity: F64 = np.zeros(1)

    def __call__(self, points: F32, time_s: float) -> F32:
        """points: (K, 2) frame px at time_s, later than the call before -> (K, 2) smoothed."""
        new = points.astype(np.float64)
        if self._points is None or time_s <= self._time_s:
            self._points, self._time_s = new, time_s
            self._shared_speed, self._own_velocity = np.zeros((1, 1)), np.zeros_like(new)
            return points
        dt, self._time_s = time_s - self._time_s, time_s
        old = self._points
        size = float(np.sqrt(np.prod(np.ptp(new, axis=0)))) or 1.0

        # the whole face: how far it moved, and how much of that to believe
        moved = _nearest_similarity(old, new)
        speed = np.sqrt(((moved - old) ** 2).sum(-1).mean()).reshape(1, 1) / size / dt
        self._shared_speed += _gain(self._shared.speed_cutoff_hz, dt) * (speed - self._shared_speed)
        cutoff = self._shared.min_cutoff_hz + self._shared.beta * self._shared_speed
        carried = old + _gain(cutoff, dt) * (moved - old)

        # each point's own movement within the face, seen from where the face was carried to
        velocity = (new - moved) / size / dt
        self._own_velocity += _gain(self._own.speed_cutoff_hz, dt) * (velocity - self._own_velocity)
        own_speed = np.linalg.norm(self._own_velocity, axis=-1, keepdims=True)
        cutoff = self._own.min_cutoff_hz + self._own.beta * own_speed
        self._points = carried + _gain(cutoff, dt) * (new - moved)
        return self._points.astype(np.float32)


def _gain(cutoff_hz: float | F64, dt_s: float) -> F64:
    """The weight of a new sample in a first-order low-pass filter."""
    return np.asarray(1.0 / (1.0 + 1.0 / (2 * np.pi * cutoff_hz * dt_s)))


def _nearest_similarity(source: Floats, target: F64) -> F64:
    """source moved, turned and scaled to lie nearest to target in least squares. (K, 2), (K, 2) -> (K, 2)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    a = (source - source_mean) @ (1, 1j)
    b = (target - target_mean) @ (1, 1j)
    turned = a * (np.vdot(a, b) / max(np.vdot(a, a).real, 1e-12))
    return np.asarray(np.column_stack([turned.real, turned.imag]) + target_mean)
