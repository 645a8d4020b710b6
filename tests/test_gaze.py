"""Gaze finds the direction in which eyes of a known face are turned; a closed eye has none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lineament.landmarks.gaze import Gaze, gaze, gaze_of_head
from lineament.landmarks.measures import TYPICAL
from lineament.landmarks.pose import fit
from lineament.landmarks.types import F32, F64
from tests.drawn_faces import HW, looking, mirrored, seen, turn, with_eyes


def look(points: F32, neutral: F64 | None = None) -> Gaze:
    return gaze(points, fit(points, HW), points[[96, 97]], neutral)


@pytest.mark.parametrize("head", [(0, 0, 0), (30, 0, 0), (-30, 10, 0), (15, -20, 0), (20, 10, 40)])
@pytest.mark.parametrize("eyes", [(0, 0), (20, 0), (-20, 0), (0, 15), (10, -15)])
def test_the_direction_of_known_eyes_is_found_within_two_degrees(
    head: tuple[float, float, float], eyes: tuple[float, float]
) -> None:
    points = seen(looking(*eyes), *head)
    right, down, away = turn(*head) @ turn(*eyes) @ (0, 0, -1)
    expected = math.degrees(math.atan2(right, -away)), math.degrees(math.atan2(-down, math.hypot(right, away)))
    np.testing.assert_allclose(look(points), expected, atol=2)
    np.testing.assert_allclose(gaze_of_head(points, fit(points, HW), points[[96, 97]]), eyes, atol=1)


def test_eyes_that_stay_on_the_camera_while_the_head_turns_have_no_angle() -> None:
    for yaw in (-25, 25):
        np.testing.assert_allclose(look(seen(looking(-yaw, 0), yaw)), (0, 0), atol=2)


def test_pupils_to_the_right_of_the_image_are_positive_yaw_and_upwards_positive_pitch() -> None:
    points = seen()
    for by, sign in (((2, 0), (1, 0)), ((-2, 0), (-1, 0)), ((0, -2), (0, 1)), ((0, 2), (0, -1))):
        at = points.copy()
        at[[96, 97]] += np.float32(by)
        change = np.subtract(look(at), look(points))
        assert np.sign(np.round(change)).tolist() == list(sign)


def test_the_gaze_of_the_mirror_image_is_mirrored() -> None:
    points = seen(looking(15, 5), 10, 5, 8)
    yaw, pitch = look(points)
    np.testing.assert_allclose(look(mirrored(points)), (-yaw, pitch), atol=0.1)


def test_half_a_pixel_of_noise_on_eyes_of_30_px_is_some_two_degrees() -> None:
    points = seen()
    points = (points - points.mean(0)) * np.float32(30 / np.linalg.norm(points[64] - points[60])) + points.mean(0)
    noise = np.random.default_rng(0).normal(0, 0.5, (200, *points.shape))
    spread = np.std([look(np.asarray(points + one, np.float32)) for one in noise], axis=0)
    assert (spread > 1).all() and (spread < 3).all()


def test_closed_eyes_have_no_gaze_and_one_open_eye_is_enough() -> None:
    assert np.isnan(look(seen(with_eyes(0.3)))).all()
    np.testing.assert_allclose(look(seen(with_eyes(0.1, ("left_eye",)))), (0, 0), atol=2)


def test_an_eye_half_closed_has_no_gaze_once_the_person_is_known() -> None:
    points = seen(with_eyes(0.55))
    assert np.isfinite(look(points)).all()
    assert np.isnan(look(points, TYPICAL)).all()
    narrow = TYPICAL.copy()
    narrow[:2] = 0.16
    assert np.isfinite(look(points, narrow)).all()


@pytest.mark.parametrize("points", [np.full((98, 2), np.nan), np.full((98, 2), 7.0), np.full((98, 2), 1e30)])
def test_points_that_are_no_face_have_no_gaze(points: F32) -> None:
    assert np.isnan(look(points.astype(np.float32))).all()
