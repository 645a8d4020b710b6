"""Gaze: where the eyes look, from irises, eye corners and head pose. numpy.

Signs are those of the head pose: yaw > 0 to the right of the image, pitch > 0 up, both 0 for a look into the camera.
Unlike a head pose's, the angles do not roll with the head.

Each eyeball is a sphere behind the middle of its corners. The line of sight runs from its centre through the point
where the ray of the iris meets it. docs/vtubers.md has the error.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.iris import PUPILS, RINGS
from lineament.landmarks.measures import EYES
from lineament.landmarks.pose import Fit
from lineament.landmarks.types import F32, F64, Floats

RADIUS = 0.22
"""from an eyeball's centre of rotation to its pupil, in units of the mean face: 10.5 mm where the outer corners of the
eyes are 90 mm apart"""
_OPEN, _SHARE_OPEN = 0.12, 0.65
"""least height over width of an eye whose iris is used, for a stranger: a closed eye has about 0.1, one in twenty open
ones less than 0.15; and its least share of the relaxed eye's"""
_SEEN = 0.5
"""least share of an eye's width that is seen: a turned head hides its far eye behind the nose"""


class Gaze(NamedTuple):
    """Degrees, signs as above; nan while the eyes are closed, too small or hidden, or without a head pose."""

    yaw_deg: float
    pitch_deg: float


def gaze(points: Floats, fit: Fit, irises: F32 | None, neutral: F64 | None = None) -> Gaze:
    """Relative to the camera's line of sight. points: (98, 2) of WFLW98, frame px. fit: of these points.

    irises: (2, 2) frame px as place_irises returns them; nan or None for those not seen. neutral: (M,) measures of this
    person's relaxed face, which tell a closed eye from a narrow one.
    """
    return _angles(fit.turn @ sight(points, fit, irises, neutral))


def gaze_of_head(points: Floats, fit: Fit, irises: F32 | None, neutral: F64 | None = None) -> Gaze:
    """Relative to the head: both angles are 0 for eyes that look straight ahead, wherever the head is turned."""
    return _angles(sight(points, fit, irises, neutral))


def sight(points: Floats, fit: Fit, irises: F32 | None, neutral: F64 | None) -> F64:
    """(3,) the common direction of both eyes, in the space of the mean face; length 1, or nan."""
    if irises is None or not np.isfinite(irises).any():
        return np.full(3, math.nan)
    eyes = np.array(points, np.float64)
    eyes[PUPILS] = irises
    face = fit.frontal(eyes)
    rings, pupils = face[RINGS], face[PUPILS]
    corners = rings[:, 0], rings[:, 4]
    centers = (corners[0] + corners[1]) / 2 + _to_center()
    # the person's left eye comes first in neutral, and last here
    least_open = np.full(2, _OPEN) if neutral is None else _SHARE_OPEN * neutral[EYES][::-1]
    weights = _weights(rings, corners[1] - corners[0], least_open, fit) * np.isfinite(irises).all(1)
    directions = _directions(-fit.turn.T @ fit.moved, pupils, centers)
    total = weights @ np.where(weights[:, None] > 0, directions, 0.0)
    length = math.sqrt(total @ total)
    return np.asarray(total / length) if length > 0 else np.full(3, math.nan)


def _weights(rings: F64, widths: F64, least_open: F64, fit: Fit) -> F64:
    """(2,) how far each eye is relied on: the square of the share of its width that is seen, 0 for a closed eye.

    rings: (2, 8, 3). widths: (2, 3) from corner to corner. least_open: (2,) height over width.
    """
    lengths = _lengths(widths)
    heights = (rings[:, 5:8, 1] - rings[:, 1:4, 1]).sum(1) / 3
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = _lengths(widths @ fit.turn[:2].T) / lengths
        return np.where((heights > least_open * lengths) & (seen > _SEEN), seen**2, 0.0)


def _directions(lens: F64, pupils: F64, centers: F64) -> F64:
    """(2, 3) from each eyeball's centre to where its pupil's ray meets it first, or passes it nearest; length 1."""
    rays = pupils - lens
    rays = rays / _lengths(rays)[:, None]
    to_centers = centers - lens
    nearest = (rays * to_centers).sum(1)[:, None] * rays - to_centers
    inside = RADIUS**2 - (nearest * nearest).sum(1)
    met = nearest - np.sqrt(np.maximum(inside, 0))[:, None] * rays
    return np.asarray(met / _lengths(met)[:, None])


def _lengths(vectors: F64) -> F64:
    return np.asarray(np.sqrt((vectors * vectors).sum(-1)))


def _angles(direction: F64) -> Gaze:
    right, down, away = direction.tolist()
    return Gaze(math.degrees(math.atan2(right, -away)), math.degrees(math.atan2(-down, math.hypot(right, away))))


@cache
def _to_center() -> F64:
    """(3,) from the middle of an eye's corners to its eyeball's centre, the same for both eyes.

    The mean face looks straight ahead, so its pupil lies in front of the centre.
    """
    shape = mean_shape()
    offsets = shape[PUPILS] - (shape[RINGS[:, 0]] + shape[RINGS[:, 4]]) / 2
    return np.asarray(offsets.mean(0) * (0, 1, 1) + (0, 0, RADIUS))
