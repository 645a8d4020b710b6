"""Smoother: removes jitter from a face's points without adding lag."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, pi

import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.schema import WFLW98, Schema
from lineament.landmarks.types import F32, F64

C128 = NDArray[np.complex128]
"""points as x + iy: a similarity is then one multiplication and one addition"""


@dataclass(frozen=True, slots=True)
class SmoothConfig:
    """What counts as noise and what as motion. Lengths are in face sizes, or in the face's own measured noise."""

    min_cutoff_hz: float = 0.3
    """One Euro's cutoff for the whole face at rest: lower is steadier"""
    beta: float = 140.0
    """Hz of cutoff gained per face size per second: high, because the motion of all points together has little noise"""
    speed_cutoff_hz: float = 2.5
    """cutoff of the velocity that beta multiplies"""
    dead_band: float = 2.5
    """a speed below this multiple of the noise per frame counts as zero"""
    own_rest_s: float = 0.5
    """time constant of each point within the face at rest"""
    quick_noise: float = 0.7
    """a deviation of eyelids, pupils or lips of this multiple of the noise is followed by half; a blink is far more"""
    own_noise: float = 2.5
    """the same for all other points, which rarely move on their own"""
    steepness: float = 4.0
    """exponent of that ratio: higher makes the step from still to followed sharper"""
    noise_s: float = 3.0
    """time constant of the noise estimate"""


_FARTHEST = 1e30
"""px: points further away are invalid, and would overflow"""
_NOISE = (5e-4, 8e-3)
"""face sizes, least and most: even a perfect model has some noise, and a face that comes into sight changes at first"""


class Smoother:
    """One Euro (Casiez, Roussel, Vogel: "1 Euro Filter", CHI 2012) for the face's motion, and a gate for each point.

    A separate filter for each point sees a moving face as 98 moving points and has to choose between lag and jitter for
    each of them. Here the motion that all points share, a least-squares similarity, is removed first. What remains is
    expression and noise; its median over the points is the noise, because an expression moves few of them. The face is
    at rest while its velocity is within that noise; a point is, while its deviation is.
    """

    def __init__(self, schema: Schema = WFLW98, cfg: SmoothConfig | None = None) -> None:
        self._cfg = cfg or SmoothConfig()
        self._believable = np.where(schema.quick, self._cfg.quick_noise, self._cfg.own_noise)
        self._points: C128 | None = None
        self._raw = np.zeros(0, np.complex128)
        self._time_s = 0.0
        self._turning = self._moving = 0j
        self._noise = 0.0

    def __call__(self, points: F32, time_s: float) -> F32:
        """points: (K, 2) frame px at time_s, later than the call before -> (K, 2) smoothed.

        Points that are not finite, or absurdly far away, are returned unchanged and reset the filter.
        """
        if not np.abs(points).max() < _FARTHEST:
            self.forget()
            return points
        new = _complex(points)
        if self._points is None or not time_s > self._time_s:
            self._points, self._raw, self._time_s, self._noise = new, new, time_s, 0.0
            self._turning = self._moving = 0j
            return points
        cfg, old, dt_s = self._cfg, self._points, time_s - self._time_s
        size = 2 * float(np.sqrt(_energy(new - new.mean()) / len(new))) or 1.0

        # the whole face; its velocity is a vector, so noise cancels out in it
        turned, moved = similarity(self._raw, new)
        follow = _low_pass(cfg.speed_cutoff_hz, dt_s)
        self._turning += follow * (turned / dt_s - self._turning)
        self._moving += follow * (moved / dt_s - self._moving)
        self._raw, self._time_s = new, time_s
        turned, moved = similarity(old, new)
        motion = turned * (old - old.mean()) + moved
        own = new - old - motion
        noise = self._measured(float(np.median(np.abs(own))), dt_s, size)
        speed = float(np.hypot(abs(self._moving), abs(self._turning) * size / 2))
        speed = max(0.0, speed - cfg.dead_band * noise / dt_s) / size
        follow = _low_pass(cfg.min_cutoff_hz + cfg.beta * speed, dt_s)

        # each point's own motion within the face; neighbours blink together, but their noise is less correlated
        beside = (np.roll(own, 1) + 2 * own + np.roll(own, -1)) / 4
        off = np.sqrt(np.abs(own * beside)) / (self._believable * noise)
        self._points = old + follow * motion + _believed(off, _gain(dt_s, cfg.own_rest_s), cfg.steepness) * own
        return self._points.view(np.float64).reshape(-1, 2).astype(np.float32)

    def forget(self) -> None:
        """Resets the filter: the next points are returned unchanged."""
        self._points = None

    def _measured(self, noise: float, dt_s: float, size: float) -> float:
        """The face's noise in px, averaged over time."""
        last = self._noise or noise
        noise = last + _gain(dt_s, self._cfg.noise_s) * (noise - last)
        self._noise = float(np.clip(noise, _NOISE[0] * size, _NOISE[1] * size))
        return self._noise


def similarity(old: C128, new: C128) -> tuple[complex, complex]:
    """(turned, moved) of the least-squares similarity: old - mean times turned, plus moved, is its displacement."""
    start, center = old - old.mean(), new.mean()
    turned = complex(np.vdot(start, new - center)) / max(_energy(start), 1e-12) - 1
    return turned, complex(center - old.mean())


def _believed(ratio: F64, at_rest: float, steepness: float) -> F64:
    """Share of a deviation that is followed, from at_rest to 1. ratio: its size over that followed by half."""
    over = 1 / (1 + np.maximum(ratio, 1e-9) ** -steepness)
    return np.asarray(at_rest + (1 - at_rest) * over)


def _complex(points: F32) -> C128:
    """(K, 2) -> (K,)."""
    return points.astype(np.float64).view(np.complex128)[:, 0]


def _energy(values: C128) -> float:
    return float(np.vdot(values, values).real)


def _low_pass(cutoff_hz: float, dt_s: float) -> float:
    """The weight of a new sample in One Euro's first-order low-pass filter."""
    rate = 2 * pi * cutoff_hz * dt_s
    return rate / (1 + rate)


def _gain(dt_s: float, constant_s: float) -> float:
    """The same from a time constant."""
    return 1 - exp(-dt_s / constant_s)
