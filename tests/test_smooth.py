from __future__ import annotations

import numpy as np
import pytest

from lineament.landmarks.types import F32
from lineament.stream.analyse.smooth import Smoother

FACE = np.random.default_rng(0).uniform(0, 200, (98, 2)).astype(np.float32)


def noisy(points: F32, seed: int) -> F32:
    return points + np.random.default_rng(seed).normal(0, 0.4, points.shape).astype(np.float32)


def test_a_face_at_rest_shimmers_less_than_half_as_much() -> None:
    smooth = Smoother()
    raw = [noisy(FACE, i) for i in range(90)]
    out = [smooth(points, i / 30) for i, points in enumerate(raw)]
    assert np.diff(out[30:], axis=0).std() < 0.5 * np.diff(raw[30:], axis=0).std()


def test_a_face_that_moves_as_one_is_not_held_back() -> None:
    smooth = Smoother()
    step = np.array([6.0, 2.0], np.float32)
    for i in range(60):
        out = smooth(noisy(FACE + step * i, i), i / 30)
    lag_frames = ((FACE + step * 59 - out).mean(0) / step).mean()
    assert lag_frames < 0.25


def test_an_expression_is_followed_within_a_few_frames() -> None:
    smooth = Smoother()
    opened = FACE.copy()
    opened[76:96, 1] += 30
    for i in range(30):
        smooth(FACE, i / 30)
    for i in range(30, 36):
        out = smooth(opened, i / 30)
    assert np.abs(out - opened).mean() < 1.5


def test_what_seldom_moves_on_its_own_shimmers_less_and_yet_follows_a_raised_brow() -> None:
    smooth = Smoother()
    out = np.array([smooth(noisy(FACE, i), i / 30) for i in range(90)])
    shimmer = np.diff(out[30:], axis=0).std((0, 2))
    assert np.median(shimmer[:60]) < 0.9 * np.median(shimmer[60:])
    raised = FACE.copy()
    raised[33:51, 1] -= 9
    for i in range(90, 94):
        now = smooth(noisy(raised, i), i / 30)
    assert np.abs(now - raised)[33:51, 1].mean() < 0.25 * 9


def test_a_blink_is_not_smoothed_away() -> None:
    smooth, lids = Smoother(), [61, 62, 63, 65, 66, 67]
    shut = {30: 0.33, 31: 0.8, 32: 1.0, 33: 1.0, 34: 0.8, 35: 0.45, 36: 0.15}
    seen = []
    for i in range(45):
        points = FACE.copy()
        points[lids, 1] += 9 * shut.get(i, 0.0)
        seen.append((smooth(points, i / 30) - FACE)[lids, 1].mean() / 9)
    assert max(seen) > 0.9
    assert abs(seen[40]) < 0.1


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_a_near_and_a_far_face_are_smoothed_alike(scale: float) -> None:
    one, other = Smoother(), Smoother()
    for i in range(20):
        points = noisy(FACE, i)
        a, b = one(points, i / 30), other(points * np.float32(scale), i / 30)
    np.testing.assert_allclose(a * scale, b, rtol=1e-3, atol=1e-2)


def test_the_first_points_pass_unchanged_and_a_time_that_steps_back_starts_anew() -> None:
    smooth = Smoother()
    assert (smooth(FACE, 5.0) == FACE).all()
    assert (smooth(FACE + 9, 4.0) == FACE + 9).all()


def test_points_that_all_coincide_are_survived() -> None:
    smooth = Smoother()
    for i in range(5):
        out = smooth(np.zeros((98, 2), np.float32), i / 30)
    assert np.isfinite(out).all()
