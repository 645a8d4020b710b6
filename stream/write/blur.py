"""Blur: makes every face in a frame unrecognisable."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from lineament.landmarks.types import F32, F64, U8, Result

_HOLD_S = 1.0
"""for which a face that is no longer found stays blurred: it is more often missed than gone"""
_REACH = 0.95
"""radius of the disc, in longer sides of the points' bounds, which end at the brows: includes hair and ears"""
_CELLS = 3
"""across the disc: too few to recognise a person, or for a detector to find a face (it does with seven)"""


class Blur:
    """Blurs the faces of one source's results, in order. Only a face that is found is blurred."""

    def __init__(self) -> None:
        self._held: list[tuple[F64, float]] = []
        """(3,) discs x, y, radius in frame px, and the time until which each stays blurred"""

    def __call__(self, result: Result) -> Result:
        """The result with a copy of its frame, in which each face's disc is a few flat cells."""
        now_s = result.frame.time_s
        seen = [track.points[np.isfinite(track.points).all(1)] for track in result.tracks]
        found = [(_disc(points), now_s + _HOLD_S) for points in seen if len(points)]
        held = [(disc, until_s) for disc, until_s in self._held if now_s < until_s <= now_s + _HOLD_S]
        self._held = found + [old for old in held if not any(_covers(new, old[0]) for new, _ in found)]
        bgr = result.frame.bgr.copy()
        for disc, _ in self._held:
            _hide(bgr, disc)
        return replace(result, frame=replace(result.frame, bgr=bgr))


def _disc(points: F32) -> F64:
    low, high = points.min(0).astype(np.float64), points.max(0).astype(np.float64)
    return np.array([*((low + high) / 2), max(1.0, _REACH * (high - low).max())])


def _covers(new: F64, old: F64) -> bool:
    """Whether the old disc most likely shows the new one's face."""
    return bool(np.hypot(*(new[:2] - old[:2])) < new[2] / 2)


def _hide(bgr: U8, disc: F64) -> None:
    height, width = bgr.shape[:2]
    x, y, radius = (float(v) for v in disc)
    x1, y1 = max(0, int(x - radius)), max(0, int(y - radius))
    x2, y2 = min(width, int(x + radius) + 1), min(height, int(y + radius) + 1)
    if x1 >= x2 or y1 >= y2:
        return
    part = bgr[y1:y2, x1:x2]
    cells = [max(1, round(_CELLS * side / (2 * radius))) for side in (x2 - x1, y2 - y1)]
    flat = cv2.resize(cv2.resize(part, cells, interpolation=cv2.INTER_AREA), (x2 - x1, y2 - y1), None, 0, 0, 0)
    ys, xs = np.ogrid[y1:y2, x1:x2]
    within = (xs - x) ** 2 + (ys - y) ** 2 <= radius**2
    np.copyto(part, flat, where=within[..., None])
