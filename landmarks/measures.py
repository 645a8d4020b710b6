"""Measures of a face turned to the front, by which an expression differs from the relaxed face. numpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from lineament.landmarks.pose import SEEN, Fit
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F64, Floats


class Measure(NamedTuple):
    """What relaxed faces have, in units of the mean face: about 48 mm."""

    typical: float
    least: float
    most: float
    quantile: float
    """where a person's relaxed value lies among all values seen of them: eyes are mostly open, lips often closed"""


# from the points of 4193 nearly frontal faces in photos, relaxed or not
_EYE = Measure(0.28, 0.15, 0.38, 0.75)
_BROW = Measure(0.34, 0.22, 0.5, 0.5)
_CORNER = Measure(-0.125, -0.18, -0.1, 0.5)
_OUT = Measure(0.55, 0.47, 0.6, 0.5)

# left and right are the person's
MEASURES = {
    # height over width
    "eye_left": _EYE,
    "eye_right": _EYE,
    # an end's height over the corner of the eye
    "brow_inner_left": _BROW,
    "brow_inner_right": _BROW,
    "brow_outer_left": _BROW,
    "brow_outer_right": _BROW,
    # the mouth's corners: height over the upper lip, less what an open mouth lowers it, and distance from the middle
    # between the eyes
    "corner_left": _CORNER,
    "corner_right": _CORNER,
    "out_left": _OUT,
    "out_right": _OUT,
    # between the lips
    "gap": Measure(0.02, 0.0, 0.08, 0.25),
}
EYES, INNER_BROWS, OUTER_BROWS, CORNERS, OUT = (slice(i, i + 2) for i in range(0, 10, 2))
"""their places in an array, the person's left first"""
GAP = 10

TYPICAL: F64 = np.array([measure.typical for measure in MEASURES.values()])
"""(M,) of people in general"""
LEAST: F64 = np.array([measure.least for measure in MEASURES.values()])
MOST: F64 = np.array([measure.most for measure in MEASURES.values()])
QUANTILES: F64 = np.array([measure.quantile for measure in MEASURES.values()])


def measures(points: Floats, fit: Fit, visibility: Floats | None = None) -> F64:
    """(M,) in the order of MEASURES; nan without a head pose, for an eye without width, and for what is hidden.

    points: (98, 2) of WFLW98, frame px. fit: of these points. visibility: (98,) of the points, if known.
    """
    with np.errstate(all="ignore"):
        values = _weights() @ fit.frontal(points)[:, :2].ravel()
        values[EYES] /= values[-2:]
    if visibility is not None:
        values[_shares() @ visibility < SEEN] = np.nan
    return np.where(np.isfinite(values), values, np.nan)[:-2]


@cache
def _weights() -> F64:
    """(M + 2, 196): their products with the frontal x and y are the measures, but an eye's height is not yet divided by
    its width. The widths follow at the end."""
    parts = WFLW98.parts
    lips, inner_lips = parts["outer_lips"], parts["inner_lips"]
    right_eye, left_eye = parts["left_eye"], parts["right_eye"]  # the person's
    right_brow, left_brow = parts["left_brow"], parts["right_brow"]
    upper_lip, right_corner, left_corner = lips[2:5], lips[:1], lips[6:7]
    gap = _mean(inner_lips[5:8], 1) - _mean(inner_lips[1:4], 1)
    # not from the nose, which lies further in front: an error of the yaw would move it sideways
    middle = _mean((right_eye[0], right_eye[4], left_eye[0], left_eye[4]), 0)
    return np.stack(
        [
            _mean(left_eye[5:8], 1) - _mean(left_eye[1:4], 1),
            _mean(right_eye[5:8], 1) - _mean(right_eye[1:4], 1),
            # upper and lower edge, the two points nearest to the end
            _mean(left_eye[:1], 1) - _mean((*left_brow[:2], *left_brow[-2:]), 1),
            _mean(right_eye[4:5], 1) - _mean(right_brow[3:7], 1),
            _mean(left_eye[4:5], 1) - _mean(left_brow[3:6], 1),
            _mean(right_eye[:1], 1) - _mean((*right_brow[:2], right_brow[-1]), 1),
            # 0.2: fitted to the same photos
            _mean(upper_lip, 1) - _mean(left_corner, 1) + 0.2 * gap,
            _mean(upper_lip, 1) - _mean(right_corner, 1) + 0.2 * gap,
            _mean(left_corner, 0) - middle,
            middle - _mean(right_corner, 0),
            gap,
            *(_mean(eye[4:5], 0) - _mean(eye[:1], 0) for eye in (left_eye, right_eye)),
        ]
    )


@cache
def _shares() -> F64:
    """(M + 2, 98): how far each measure rests on each point; rows sum to 1."""
    shares = np.abs(_weights()).reshape(-1, len(WFLW98), 2).sum(2)
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _mean(points: Sequence[int], axis: int) -> F64:
    """(196,) weights of the mean x (axis 0) or y (axis 1) of these points."""
    weights = np.zeros((len(WFLW98), 2))
    weights[list(points), axis] = 1 / len(points)
    return weights.ravel()
