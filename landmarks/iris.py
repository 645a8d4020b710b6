"""Irises: where they are in the picture. numpy and cv2.

WFLW's pupils, and so those of a model that is trained on it, hardly leave the middle of the eye. So the darkest disc of
an iris's size is sought between the lids.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

from lineament.landmarks.pose import SEEN
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
_SMALLEST_PX, _LARGEST_PX = 18.0, 1e5
"""least and most width of an eye in the frame: in a smaller one, lashes and reflections are as dark and as large"""
_FARTHEST = 1000.0
"""px in the patch: lids beyond are no eye's"""

RINGS = np.array([WFLW98.parts["left_eye"], WFLW98.parts["right_eye"]])
"""(2, 8) indices of the lids of each eye, from one corner along the top"""
PUPILS = np.array([*WFLW98.parts["left_pupil"], *WFLW98.parts["right_pupil"]])
"""(2,)"""


def find_irises(bgr: U8, points: Floats, visibility: Floats | None = None) -> F64:
    """(2,) how far each iris lies to the right of the middle of its eye's corners, in widths of the eye; the eye on the
    left of the image first. Nan where none can be seen.

    bgr: (H, W, 3) uint8. points: (98, 2) of WFLW98, frame px, not smoothed: those are where the eyes are in this frame.
    visibility: (98,) of the points, if known.
    """
    found = np.array([_aside(bgr, ring) for ring in points[RINGS].astype(np.float64)])
    if visibility is not None:
        found[visibility[RINGS].mean(1) < SEEN] = np.nan
    return found


def place_irises(points: Floats, aside: F64) -> F32:
    """(2, 2) frame px of irises that lie so far aside. points: (98, 2) frame px, which may be smoothed.

    Lids hide the upper and lower edge of an iris, so its height over the eye's corners is that of the pupil's point.
    """
    rings = points[RINGS].astype(np.float64)
    along = rings[:, 4] - rings[:, 0]
    across = np.column_stack([-along[:, 1], along[:, 0]])
    middles = (rings[:, 0] + rings[:, 4]) / 2
    with np.errstate(all="ignore"):
        up = ((points[PUPILS] - middles) * across).sum(1) / (across * across).sum(1)
        return np.asarray(middles + along * aside[:, None] + across * up[:, None], np.float32)


def _aside(bgr: U8, ring: F64) -> float:
    """ring: (8, 2) frame px, from one corner along the top."""
    along = ring[4] - ring[0]
    width = float(np.hypot(*along))
    if not _SMALLEST_PX <= width < _LARGEST_PX:
        return np.nan
    cos, sin = along * (_WIDTH / width**2)
    turned = np.array([[cos, sin], [-sin, cos]])
    # in the patch, the middle of the corners across, and of the lids down
    lids = (ring - (ring[0] + ring[4]) / 2) @ turned.T
    lids += (_RADIUS + _REACH, _RADIUS - lids[:, 1].mean())
    if not np.abs(lids).max() < _FARTHEST:
        return np.nan
    patch_from_frame = np.column_stack([turned, lids[0] - turned @ ring[0]])
    patch = cv2.cvtColor(cv2.warpAffine(bgr, patch_from_frame, _HW[::-1]), cv2.COLOR_BGR2GRAY)
    between = cv2.fillPoly(np.zeros(_HW, np.uint8), [np.round(lids).astype(np.int32)], 1)
    planes = np.stack([between, between * patch]).reshape(2, -1).astype(np.float32)
    area, light = planes @ _discs()
    all_area, all_light = planes.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        contrast = (all_light - light) / (all_area - area) - light / area
    contrast[(area < _LEAST) | (all_area - area < _LEAST)] = -np.inf
    best = int(contrast.argmax())
    if not contrast[best] >= _CONTRAST:
        return np.nan
    return (best - _REACH + _peak(contrast[max(best - 1, 0) : best + 2])) / _WIDTH


def _peak(around: Floats) -> float:
    """Where the parabola through three neighbours is highest, from the middle one; 0 beside an end or a gap."""
    if len(around) < 3 or not np.isfinite(around).all():
        return 0.0
    before, now, after = around.tolist()
    bend = before - 2 * now + after
    return (before - after) / 2 / bend if bend < 0 else 0.0


@cache
def _discs() -> F32:
    """(height times width of the patch, places of an iris), 1 within it."""
    y, x = np.mgrid[: _HW[0], : _HW[1]]
    places = _RADIUS + np.arange(2 * _REACH + 1)
    distance = np.hypot(x[..., None] - places, y[..., None] - _RADIUS)
    return np.asarray(distance <= _RADIUS + 0.25, np.float32).reshape(-1, len(places))
