"""Faces with known pose, gaze and expression: the mean face, changed in 3-D and seen by a pinhole camera."""

from __future__ import annotations

import math

import cv2
import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64

HW = (720, 1280)
EYEBALL = 10.5 / 48
"""from an eyeball's centre to its pupil: 10.5 mm, if the mean face's unit is 48 mm"""


def turn(yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0) -> F64:
    """(3, 3), with the signs of the head pose, so -z is forwards."""
    turned = np.eye(3)
    for axis, angle in ((0, -pitch_deg), (1, -yaw_deg), (2, roll_deg)):
        turned = cv2.Rodrigues(np.eye(3)[axis] * math.radians(angle))[0] @ turned
    return turned


def seen(
    shape: F64 | None = None, yaw_deg: float = 0, pitch_deg: float = 0, roll_deg: float = 0, away: float = 20.0
) -> F32:
    """(98, 2) px of a face (98, 3), the mean one if None, in front of a camera with a focal length of 1280 px."""
    shape = mean_shape() if shape is None else shape
    points = shape @ turn(yaw_deg, pitch_deg, roll_deg).T + (0, 0, away)
    return np.asarray(points[:, :2] / points[:, 2:] * 1280 + (640, 360), np.float32)


def looking(yaw_deg: float, pitch_deg: float, shape: F64 | None = None) -> F64:
    """(98, 3): a face whose eyeballs are turned within the head by that."""
    shape = (mean_shape() if shape is None else shape).copy()
    ahead = np.array([0.0, 0.0, -1.0])
    for part in ("left_pupil", "right_pupil"):
        (at,) = WFLW98.parts[part]
        shape[at] += EYEBALL * (turn(yaw_deg, pitch_deg) @ ahead - ahead)
    return shape


def with_eyes(share: float, eyes: tuple[str, ...] = ("left_eye", "right_eye")) -> F64:
    """(98, 3): the height of these eyes, of the image, times share."""
    shape = mean_shape().copy()
    for eye in eyes:
        ring = list(WFLW98.parts[eye])
        top, bottom = ring[1:4], ring[:4:-1]
        middle = (shape[top, 1] + shape[bottom, 1]) / 2
        for edge in (top, bottom):
            shape[edge, 1] = middle + share * (shape[edge, 1] - middle)
    return shape


def moved(by: tuple[float, float], *points: int) -> F64:
    """(98, 3): these points moved right and down, in units of the mean face."""
    shape = mean_shape().copy()
    shape[list(points), :2] += by
    return shape


def with_mouth(gap: float) -> F64:
    """(98, 3): the lips apart by gap; the lower lip moves, and the jaw with it."""
    shape = mean_shape().copy()
    inner, outer = WFLW98.parts["inner_lips"], WFLW98.parts["outer_lips"]
    now = shape[list(inner[5:8]), 1].mean() - shape[list(inner[1:4]), 1].mean()
    lower = [*inner[5:8], *outer[7:]]
    shape[lower, 1] += gap - now
    shape[8:25, 1] += gap - now
    return shape


def mirrored(points: F32) -> F32:
    """(98, 2) of the mirror image."""
    return WFLW98.flipped(points, HW[1]).astype(np.float32)
