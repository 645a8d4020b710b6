"""Jitter is what comes and goes while a head is still, and a blink that was smoothed away is missed."""

from __future__ import annotations

import numpy as np
import pytest

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32
from lineament.stream.steadiness import depths, jitter
from tests.labelled import mean_face

T = 90
TIMES_S = np.arange(T) / 30


def still(noise: float) -> F32:
    """(T, 98, 2) a face of about 200 px."""
    face = mean_face(200, 200, 60)
    return np.asarray(face + np.random.default_rng(0).normal(0, noise, (T, 98, 2)), np.float32)


def test_jitter_is_the_rms_second_difference_in_per_mille_of_the_face() -> None:
    points = still(0.5)
    size = np.ptp(points, axis=1).max(-1).mean()
    # variances of x[t + 1] - 2 x[t] + x[t - 1] add up to 6, and there are two axes
    assert jitter(points, points, TIMES_S) == pytest.approx(1e3 * np.sqrt(12) * 0.5 / size, rel=0.03)
    assert jitter(points * 3, points * 3, TIMES_S) == pytest.approx(jitter(points, points, TIMES_S), rel=1e-4)


def test_a_moving_head_does_not_count() -> None:
    rushing = still(0.5) + np.arange(T, dtype=np.float32)[:, None, None] * 6
    assert np.isnan(jitter(rushing, rushing, TIMES_S))


def test_depth_is_the_share_of_a_blink_that_is_left() -> None:
    raw = still(0.05)
    lids = [i for eye in ("left_eye", "right_eye") for i in WFLW98.parts[eye][1:4]]
    below = [i for eye in ("left_eye", "right_eye") for i in WFLW98.parts[eye][:4:-1]]
    shut = np.array([0, 0.5, 0.95, 0.5, 0])[:, None]
    open_eyes = raw.copy()
    raw[40:45, lids, 1] += shut * (raw[0, below, 1] - raw[0, lids, 1])
    assert depths(raw, raw) == pytest.approx([1.0], abs=0.02)
    half = (raw + open_eyes) / 2
    assert depths(half, raw) == pytest.approx([0.5], abs=0.05)
