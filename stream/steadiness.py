"""How steady a face's points are in real video without ground truth: while the head is nearly still, motion that comes
and goes within three frames is jitter. Also how much of a blink or a mouth opening smoothing keeps.

Suffixes: T frames, K points of WFLW98.
"""

from __future__ import annotations

import numpy as np

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, Floats
from lineament.stream.analyse.smooth import similarity

STILL = 0.12
"""face sizes per second below which a head is nearly still"""
STANDS_OUT = (0.35, 0.25, 0.01)
"""a peak counts as a blink or a mouth opening if it exceeds these shares of the range, of the median and of the face
size; less than the last is half a pixel on a small face, which is jitter"""

_LEFT, _RIGHT, _LIPS = (WFLW98.parts[part] for part in ("left_eye", "right_eye", "inner_lips"))
_UPPER = {"eye": [*_LEFT[1:4], *_RIGHT[1:4]], "mouth": [*_LIPS[1:4]]}
_LOWER = {"eye": [*_LEFT[:4:-1], *_RIGHT[:4:-1]], "mouth": [*_LIPS[:4:-1]]}


def jitter(points_TK2: F32, raw_TK2: F32, times_s: F64) -> float:
    """RMS second difference of the points while the head is nearly still, per mille of the face size.

    raw_TK2: the same face unsmoothed, which determines when the head is still. Returns nan if it never is.
    """
    speed = _median5(_speed(raw_TK2, times_s))
    still = (speed[:-2] < STILL) & (speed[1:-1] < STILL) & (speed[2:] < STILL)
    still[:4] = False  # the filter is still settling
    bend = points_TK2[2:] - 2 * points_TK2[1:-1] + points_TK2[:-2]
    if still.sum() < 8:
        return float("nan")
    return 1e3 * float(np.sqrt((bend[still] ** 2).sum(-1).mean())) / _size(raw_TK2)


def depths(points_TK2: F32, raw_TK2: F32) -> list[float]:
    """For each blink and mouth opening in the raw points, the share of its depth that points_TK2 keeps."""
    found, size = [], _size(raw_TK2)
    for part, opens in (("eye", -1.0), ("mouth", 1.0)):
        raw, seen = (opens * _opening(points, part) for points in (raw_TK2, points_TK2))
        away, left = raw - np.median(raw), seen - np.median(seen)
        scales = np.ptp(raw), abs(np.median(raw)), size
        least = max(share * float(scale) for share, scale in zip(STANDS_OUT, scales))
        i = 1
        while i < len(away) - 1:
            if away[i] > least and away[i] >= away[i - 1] and away[i] >= away[i + 1]:
                found.append(float(left[i - 1 : i + 3].max() / away[i]))
                i += 2
            i += 1
    return found


def _size(points_TK2: F32) -> float:
    """Mean longer side of the face's bounds, px."""
    return float(np.ptp(points_TK2, axis=1).max(-1).mean())


def _opening(points_TK2: F32, part: str) -> F64:
    """(T,) px between upper and lower lids, mean of both eyes, or between the lips."""
    gap = points_TK2[:, _UPPER[part]] - points_TK2[:, _LOWER[part]]
    return np.asarray(np.linalg.norm(gap, axis=-1).mean(1), np.float64)


def _speed(points_TK2: F32, times_s: F64) -> F64:
    """(T,) RMS of the motion that all points share, face sizes per second; 0 in the first frame."""
    flat = points_TK2.astype(np.float64).view(np.complex128)[..., 0]
    shape = flat - flat.mean(1, keepdims=True)
    size = 2 * np.sqrt((np.abs(shape) ** 2).mean(1))
    motions = [similarity(old, new) for old, new in zip(flat[:-1], flat[1:])]
    turned, moved = np.array(motions, np.complex128).reshape(-1, 2).T[:, :, None]
    shared = np.sqrt((np.abs(turned * shape[:-1] + moved) ** 2).mean(1))
    speed = shared / np.maximum(size[1:], 1e-12) / np.maximum(np.diff(times_s), 1e-6)
    return np.concatenate([[0.0], speed])


def _median5(values: Floats) -> F64:
    return np.array([np.median(values[max(0, i - 2) : i + 3]) for i in range(len(values))])
