"""Which box is which: distances between boxes of faces, and the pairs that they suggest.

A gap is the distance between two boxes' centres in units of their mean size.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.geometry import bounds
from lineament.landmarks.types import F32, F64, Frame

_FARTHEST = 4
"""longer sides of the frame: no face that is partly in the frame has a point further away"""


def nearest_first(gaps_MN: F64, allowed_MN: NDArray[np.bool_]) -> dict[int, int]:
    """Greedy matching: {row: column} over the allowed pairs, each row and column used once, smallest gap first."""
    matched: dict[int, int] = {}
    taken: set[int] = set()
    rows, columns = np.nonzero(allowed_MN)
    for k in np.argsort(gaps_MN[rows, columns], kind="stable"):
        row, column = int(rows[k]), int(columns[k])
        if row not in matched and column not in taken:
            matched[row] = column
            taken.add(column)
    return matched


def boxes_of(points: Sequence[F32]) -> list[F32]:
    """bounds of each (K, 2), in one call: much faster for many faces."""
    if len(points) < 2:
        return [bounds(one) for one in points]
    stacked = np.stack(points)
    return list(np.concatenate([stacked.min(1), stacked.max(1)], 1))


def gaps_between(a_xyxy: Sequence[F32], b_xyxy: Sequence[F32]) -> F64:
    """(M, N): the gap of each of M boxes to each of N."""
    if len(a_xyxy) * len(b_xyxy) < 10:
        return np.array([[gap_between(a, b) for b in b_xyxy] for a in a_xyxy], np.float64).reshape(
            len(a_xyxy), len(b_xyxy)
        )
    a, b = (np.array(boxes, np.float64) for boxes in (a_xyxy, b_xyxy))
    apart_MN2 = ((a[:, :2] + a[:, 2:])[:, None] - (b[:, :2] + b[:, 2:])) / 2
    size_M, size_N = ((boxes[:, 2:] - boxes[:, :2]).max(1) for boxes in (a, b))
    return np.asarray(np.hypot(*apart_MN2.transpose(2, 0, 1)) / np.maximum((size_M[:, None] + size_N) / 2, 1e-6))


def gap_between(a_xyxy: F32, b_xyxy: F32) -> float:
    """The gap of two boxes."""
    # four numbers each: plain floats are several times faster here than arrays
    ax1, ay1, ax2, ay2 = a_xyxy.tolist()
    bx1, by1, bx2, by2 = b_xyxy.tolist()
    size = (max(ax2 - ax1, ay2 - ay1) + max(bx2 - bx1, by2 - by1)) / 2
    return float(hypot(ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2) / 2 / max(size, 1e-6))


def shorter_side(box_xyxy: F32, frame: Frame) -> float:
    """px; 0 for a box that cannot be a face's: under a pixel, absurdly far away or not finite."""
    x1, y1, x2, y2 = box_xyxy.tolist()
    farthest, side = _FARTHEST * max(frame.bgr.shape[:2]), min(x2 - x1, y2 - y1)
    near = -farthest <= x1 and -farthest <= y1 and x2 <= farthest and y2 <= farthest
    return side if near and side >= 1 else 0.0


def center_inside(box_xyxy: F32, frame: Frame) -> bool:
    """Whether the box's centre lies in the frame."""
    x, y = (box_xyxy[:2] + box_xyxy[2:]) / 2
    return bool(0 <= x < frame.bgr.shape[1] and 0 <= y < frame.bgr.shape[0])


def share_outside(box_xyxy: F32, frame: Frame) -> float:
    """How far a box extends beyond the frame, in its own size; negative while it keeps a distance from every edge."""
    height, width = frame.bgr.shape[:2]
    x1, y1, x2, y2 = box_xyxy.tolist()
    return float(max(-x1, -y1, x2 - width, y2 - height) / max(x2 - x1, y2 - y1, 1e-6))
