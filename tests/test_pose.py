"""Head pose finds the rotation that a known face was drawn with; aspect ratios follow lids and lips."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.pose import HeadPose, aspect_ratios, head_pose
from lineament.landmarks.schema import IBUG68, WFLW98, ibug68_from_wflw98
from lineament.landmarks.types import F32

HW = (720, 1280)


def _seen(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0, away: float = 20.0) -> F32:
    """(98, 2) px: the mean face, turned in pitch, then yaw, then roll, seen by a camera of focal length 1280 px."""
    turn = np.eye(3)
    for axis, angle in ((0, -pitch_deg), (1, -yaw_deg), (2, roll_deg)):
        turn = cv2.Rodrigues(np.eye(3)[axis] * math.radians(angle))[0] @ turn
    points = mean_shape() @ turn.T + (0, 0, away)
    return np.asarray(points[:, :2] / points[:, 2:] * 1280 + (640, 360), np.float32)


def _assert_pose(found: HeadPose, yaw: float, pitch: float, roll: float, within: float = 1.0) -> None:
    np.testing.assert_allclose(found, (yaw, pitch, roll), atol=within)


@pytest.mark.parametrize("yaw", [-50, -20, 0, 35])
@pytest.mark.parametrize("pitch", [-25, 0, 20])
@pytest.mark.parametrize("roll", [-60, 0, 30, 170])
def test_a_known_rotation_is_found(yaw: float, pitch: float, roll: float) -> None:
    _assert_pose(head_pose(_seen(yaw, pitch, roll), HW), yaw, pitch, roll, within=2.0)


def test_a_nose_to_the_right_is_positive_yaw_and_one_upwards_positive_pitch() -> None:
    tip = WFLW98.parts["nose_ridge"][-1]
    frontal = _seen()
    right, up, clockwise = _seen(yaw_deg=20), _seen(pitch_deg=20), _seen(roll_deg=20)
    assert right[tip, 0] > frontal[tip, 0] and head_pose(right, HW).yaw_deg > 15
    assert up[tip, 1] < frontal[tip, 1] and head_pose(up, HW).pitch_deg > 15
    # clockwise on the screen: the eye on the right goes down
    assert WFLW98.roll_rad(clockwise) > 0 and head_pose(clockwise, HW).roll_deg > 15


def test_the_mirrored_face_has_opposite_yaw_and_roll() -> None:
    points = _seen(25, 10, -15)
    mirrored = np.asarray(WFLW98.flipped(points, HW[1]), np.float32)
    yaw, pitch, roll = head_pose(points, HW)
    _assert_pose(head_pose(mirrored, HW), -yaw, pitch, -roll)


def test_turning_the_picture_changes_roll_alone() -> None:
    points = _seen(30, -15, 0)
    turn = cv2.getRotationMatrix2D((640.0, 360.0), -25, 1.0)
    turned = np.asarray(points @ turn[:, :2].T + turn[:, 2], np.float32)
    yaw, pitch, roll = head_pose(points, HW)
    _assert_pose(head_pose(turned, HW), yaw, pitch, roll + 25)


def test_a_face_that_looks_into_the_camera_from_the_edge_is_frontal() -> None:
    _assert_pose(head_pose(_seen() + np.float32((-550, 200)), HW), 0, 0, 0)


def test_the_size_of_the_face_does_not_matter() -> None:
    points = _seen(20, 5, 10)
    large = head_pose(points * 4, (4 * HW[0], 4 * HW[1]))
    _assert_pose(large, *head_pose(points, HW), within=0.1)


def test_points_of_no_face_are_refused() -> None:
    with pytest.raises(ValueError, match=r"98 points.*got shape \(68, 2\)"):
        head_pose(np.zeros((68, 2)), HW)


def test_points_that_no_pose_fits_have_none_and_end_nothing() -> None:
    face, rng = _seen(), np.random.default_rng(0)
    heaps = [np.zeros((98, 2)), np.full((98, 2), 7.0), face * 1e-6 + 50, rng.normal(50, 1e-4, (98, 2))]
    lines = [np.stack([np.linspace(0, 90, 98), np.full(98, 3.0)], 1), np.repeat(face[:, :1], 2, axis=1)]
    wild = [np.full((98, 2), np.nan), np.full((98, 2), np.inf), np.where(rng.random((98, 2)) < 0.1, np.nan, face)]
    for points in (*heaps, *wild):
        for dtype in (np.float32, np.float64):
            assert np.isnan(head_pose(points.astype(dtype), HW)).all() or np.isfinite(head_pose(points, HW)).all()
    assert all(np.isnan(head_pose(points, HW)).all() for points in (*heaps[:2], *wild))
    for points in (*lines, face * 1e6, face + 1e8, rng.normal(0, 1e30, (98, 2))):
        pose = head_pose(points, HW)
        assert np.isnan(pose).all() or np.isfinite(pose).all()


def test_shut_lids_and_lips_have_ratio_zero() -> None:
    points = _seen()
    for part in ("left_eye", "right_eye", "inner_lips"):
        first, *_ = ring = WFLW98.parts[part]
        for top, bottom in zip(ring[1:4], ring[:4:-1], strict=True):
            points[bottom] = points[top]
        assert first not in ring[:4:-1]
    assert aspect_ratios(points) == (0, 0, 0)


def test_ratios_are_height_over_width_whatever_the_turn_and_size() -> None:
    points = np.zeros((98, 2), np.float32)
    ring = np.array([[0, 0], [1, -1], [2, -1], [3, -1], [4, 0], [3, 1], [2, 1], [1, 1]], np.float32)
    for part in ("left_eye", "right_eye", "inner_lips"):
        points[list(WFLW98.parts[part])] = ring
    np.testing.assert_allclose(aspect_ratios(points), 0.5)
    cos, sin = math.cos(1), math.sin(1)
    turned = np.asarray(7 * points @ np.array([[cos, sin], [-sin, cos]]) + 3, np.float32)
    np.testing.assert_allclose(aspect_ratios(turned), 0.5, rtol=1e-5)


def test_ratios_of_68_points_are_near_those_of_98() -> None:
    points = _seen()
    np.testing.assert_allclose(aspect_ratios(ibug68_from_wflw98(points), IBUG68), aspect_ratios(points), rtol=0.25)
