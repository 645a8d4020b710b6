"""Irises: where they are in the picture. numpy and cv2.

WFLW's pupils, and so those of a model that is trained on it, hardly leave the middle of the eye. So the darkest disc of
an iris's size is sought between the lids.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, Floats

_WIDTH = 40
"""px between the corners of an eye in the patch that is searched"""
_RADIUS = 8
"""of an iris in the patch: 5.9 mm, where an eye is 29 mm wide"""
_REACH = 12
"""px to either side: 45 degrees"""
_HW = (2 * _RADIUS + 1, 2 * (_RADIUS + _REACH) + 1)
_LEAST = 20
"""px of the iris between the lids, and of the rest of the eye"""
_CONTRAST = 15.0
"""least grey levels by which an iris is darker than the rest of the eye"""
_SMALLEST_PX = 18.0
"""least width of an eye in the frame: in a smaller one, lashes and reflections are as dark and as large"""
_FARTHEST = 1000.0
"""px in the patch: lids beyond are no eye's"""


def find_irises(bgr: U8, points: Floats) -> F32:
    """(2, 2) frame px of the irises' centres, that on the left of the image first; nan where there is none to be seen.

    bgr: (H, W, 3) uint8. points: (98, 2) of WFLW98, frame px. The height is that of the pupil's point: lids hide the
    upper and lower edge of an iris.
    """
    found = np.full((2, 2), np.nan, np.float32)
    for i, (eye, pupil) in enumerate((("left_eye", "left_pupil"), ("right_eye", "right_pupil"))):
        ring = WFLW98.part(eye, points).astype(np.float64)
        found[i] = _iris(bgr, ring, WFLW98.part(pupil, points)[0])
    return found


def _iris(bgr: U8, ring: F64, pupil: Floats) -> F64:
    """(2,) frame px. ring: (8, 2) from one corner along the top."""
    nowhere = np.full(2, np.nan)
    along = ring[4] - ring[0]
    width = float(np.hypot(*along))
    if not _SMALLEST_PX <= width < 1e5:
        return nowhere
    cos, sin = along * (_WIDTH / width**2)
    center = ring.mean(0)
    turned = np.array([[cos, sin], [-sin, cos]])
    patch_from_frame = np.column_stack([turned, (_RADIUS + _REACH, _RADIUS) - turned @ center])
    lids = ring @ turned.T + patch_from_frame[:, 2]
    if not np.abs(lids).max() < _FARTHEST:
        return nowhere
    patch = cv2.cvtColor(cv2.warpAffine(bgr, patch_from_frame, _HW[::-1]), cv2.COLOR_BGR2GRAY)
    between = cv2.fillPoly(np.zeros(_HW, np.uint8), [np.round(lids).astype(np.int32)], 1)
    planes = np.stack([between, between * patch]).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(planes, _HW[0], axis=2)
    area, light = windows.transpose(0, 2, 1, 3).reshape(2, -1, _disc().size) @ _disc().ravel()
    all_area, all_light = planes.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        contrast = (all_light - light) / (all_area - area) - light / area
    contrast[(area < _LEAST) | (all_area - area < _LEAST)] = -np.inf
    best = int(contrast.argmax())
    if not contrast[best] >= _CONTRAST:
        return nowhere
    aside = (best - _REACH + _peak(contrast[max(best - 1, 0) : best + 2])) / _WIDTH
    across = np.array([-along[1], along[0]]) / width
    return np.asarray(center + along * aside + across * ((pupil - center) @ across))


def _peak(around: Floats) -> float:
    """Where the parabola through three neighbours is highest, from the middle one; 0 beside an end or a gap."""
    if len(around) < 3 or not np.isfinite(around).all():
        return 0.0
    before, now, after = around.tolist()
    bend = before - 2 * now + after
    return (before - after) / 2 / bend if bend < 0 else 0.0


@cache
def _disc() -> F32:
    y, x = np.mgrid[-_RADIUS : _RADIUS + 1, -_RADIUS : _RADIUS + 1]
    return np.asarray(x * x + y * y <= (_RADIUS + 0.25) ** 2, np.float32)
