"""Which labels of a data set are probably wrong, given predictions by models that never saw them. No torch.

Three signs: a label is far from the prediction; it fits much better with left and right exchanged; its contour folds
back on itself.

Suffixes: N faces, K points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lineament.landmarks.schema import WFLW98, Schema
from lineament.landmarks.types import F64, Floats, LineamentError
from lineament.train.sample import Sample

USUAL = 3.5
"""robust z above which a face is an outlier (Iglewicz and Hoaglin's cut)"""
PART_USUAL = 5.0
"""the same for a single part: a face has eleven parts, and so eleven chances of an outlier"""
SWAPPED, FOLDED = 10.0, 6.0
"""minimum score of a face with that sign: a swap is almost certain, a fold may be an unusual profile"""
SWAP_GAIN = 2.0
"""exchanging left and right must divide the error by at least this"""
SWAP_LEAST = 15.0
"""minimum error before the exchange, percent of the face's unit"""
LEAST_NME, LEAST_SPREAD = 0.1, 0.1
"""percent, and of its logarithm: floors, so that labels which all agree raise no outliers"""
EXTENT_SHARE = 0.6
"""of the face's longer side, the eye distance of a frontal face and the shortest unit. In a profile the eye corners
nearly meet, which alone would make it suspect"""
FOLD_RAD = np.radians(110)
"""a contour that turns by more than this between two steps turns back"""
SHORT_STEP, LONG_STEP = 0.03, 0.1
"""of the extent: steps below the first have no reliable direction, steps below the second are never jumps"""
JUMP = 5.0
"""times the median of the neighbouring steps"""
NEAR_STEPS = 4
MOST_REASONS = 4
WHOLE = "left and right"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A face whose label is in doubt."""

    index: int
    """of the sample in the list searched"""
    score: float
    """robust z, at least SWAPPED or FOLDED if such a sign was found"""
    reasons: tuple[str, ...]
    """to print; a swap or fold first, then the parts farthest off"""

    @property
    def weight(self) -> float:
        """Multiplies the face's loss if it is kept: 1 at the usual limit, falling with the square."""
        return min(1.0, (USUAL / self.score) ** 2)


def find(samples: Sequence[Sample], predictions: Floats, schema: Schema = WFLW98) -> list[Suspect]:
    """The suspects among samples, worst first.

    predictions: (N, K, 2) px of the pictures, by models not trained on the face. Faces without points are skipped.
    """
    labels = np.array([sample.points for sample in samples], np.float64)
    if predictions.shape != labels.shape:
        raise LineamentError(
            f"the predictions have shape {predictions.shape}, the labels {labels.shape}; predict this data set again"
        )
    rows = np.flatnonzero(np.isfinite(labels).all((1, 2)) & np.isfinite(predictions).all((1, 2)))
    if not len(rows):
        raise LineamentError("no face has both a label and a prediction: there is nothing to compare")
    labels, guesses = labels[rows], predictions[rows].astype(np.float64)
    unit_N = _unit(labels, schema)
    signs: list[list[_Sign]] = [[] for _ in rows]
    # swaps and folds first: they explain why parts are far off
    far = sorted(_far(guesses, labels, unit_N, schema), key=lambda sign: -sign.score)
    for sign in (*_swaps(guesses, labels, unit_N, schema), *_folds(labels, schema), *far):
        signs[sign.face].append(sign)
    suspects = []
    for index, found in zip(rows.tolist(), signs):
        if found:
            score = max(sign.score for sign in found)
            suspects.append(Suspect(index, round(score, 2), tuple(sign.reason for sign in found[:MOST_REASONS])))
    return sorted(suspects, key=lambda suspect: -suspect.score)


def rank(samples: Sequence[Sample], predictions: Floats, schema: Schema = WFLW98) -> list[tuple[int, float]]:
    """(index, percent between label and prediction) of every face that has both, largest first."""
    labels = np.array([sample.points for sample in samples], np.float64)
    apart_N = _error(predictions.astype(np.float64), labels, _unit(labels, schema), range(len(schema)))
    rows = np.flatnonzero(np.isfinite(apart_N))
    order = rows[np.argsort(-apart_N[rows], kind="stable")]
    return [(int(i), float(apart_N[i])) for i in order]


def robust_z(values_N: Floats) -> F64:
    """How many deviations each value's logarithm lies above the median. Errors are skewed, their logarithms barely.

    A deviation is 1.4826 times the median absolute deviation, which is robust to outliers.
    """
    logs = np.log(np.maximum(values_N, LEAST_NME))
    away = logs - np.median(logs)
    return np.asarray(away / max(1.4826 * float(np.median(np.abs(away))), LEAST_SPREAD), np.float64)


# ---- the signs


class _Sign(NamedTuple):
    face: int
    """row among the faces compared"""
    score: float
    reason: str


def _unit(labels: F64, schema: Schema) -> F64:
    """(N,) px that count as 100 %: the inter-ocular distance, or EXTENT_SHARE of the face if that is more."""
    left, right = schema.eye_corners
    ocular = np.linalg.norm(labels[:, left] - labels[:, right], axis=-1)
    extent = np.ptp(labels, axis=1).max(1)
    return np.maximum(np.maximum(ocular, extent * EXTENT_SHARE), 1e-6)


def _error(guesses: F64, labels: F64, unit_N: F64, points: Sequence[int]) -> F64:
    """(N,) percent of each face's unit, over some of the points."""
    away = np.linalg.norm(guesses[:, points] - labels[:, points], axis=-1)
    return np.asarray(away.mean(1) / unit_N * 100, np.float64)


def _far(guesses: F64, labels: F64, unit_N: F64, schema: Schema) -> Iterator[_Sign]:
    """Faces and parts whose error is an outlier among all faces."""
    for part, points in {"face": range(len(schema)), **schema.parts}.items():
        error_N = _error(guesses, labels, unit_N, list(points))
        usual, z_N = USUAL if part == "face" else PART_USUAL, robust_z(error_N)
        for i in np.flatnonzero(z_N > usual).tolist():
            reason = f"{part} off by {error_N[i]:.1f} %, median {np.median(error_N):.1f} %"
            yield _Sign(i, float(z_N[i]) * USUAL / usual, reason)


def _swaps(guesses: F64, labels: F64, unit_N: F64, schema: Schema) -> Iterator[_Sign]:
    """Faces that fit much better with left and right exchanged, in the whole face or in one pair of parts."""
    whole_face: set[int] = set()
    for name, moved in _exchanged(schema).items():
        order = np.arange(len(schema))
        order[moved] = np.array(schema.flip)[moved]
        before_N = _error(guesses, labels, unit_N, moved)
        after_N = _error(guesses, labels[:, order], unit_N, moved)
        for i in np.flatnonzero((before_N > SWAP_LEAST) & (after_N * SWAP_GAIN < before_N)).tolist():
            if i not in whole_face:
                yield _Sign(
                    i, SWAPPED, f"{name} exchanged: error {before_N[i]:.1f} % as labelled, {after_N[i]:.1f} % exchanged"
                )
            if name == WHOLE:
                whole_face.add(i)


def _exchanged(schema: Schema) -> dict[str, list[int]]:
    """Which points may be exchanged together: all, each pair of parts, each part that is its own mirror image."""
    flip = np.array(schema.flip)
    groups = {WHOLE: list(range(len(schema)))}
    for part, points in schema.parts.items():
        moved = sorted({*points, *flip[list(points)].tolist()})
        if moved not in groups.values() and (flip[moved] != moved).any():
            groups[f"left and right of {part.removeprefix('left_')}"] = moved
    return groups


def _folds(labels: F64, schema: Schema) -> Iterator[_Sign]:
    for i, contour in enumerate(schema.part("contour", labels)):
        for reason in folds(contour):
            yield _Sign(i, FOLDED, reason)


def folds(contour: Floats) -> list[str]:
    """What is wrong with a contour (n, 2), given in order; empty for one that goes round a face."""
    steps = np.diff(contour.astype(np.float64), axis=0)
    length = np.linalg.norm(steps, axis=1)
    extent = float(np.ptp(contour, axis=0).max())
    if extent <= 0:
        return ["all points of the contour coincide"]
    found = []
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    turn = np.abs((np.diff(heading) + np.pi) % (2 * np.pi) - np.pi)
    long_enough = np.minimum(length[:-1], length[1:]) > SHORT_STEP * extent
    if (back := np.flatnonzero((turn > FOLD_RAD) & long_enough)).size:
        found.append(f"contour turns back at point {back[0] + 1}")
    if crossing := _crossing(contour.astype(np.float64), length, LONG_STEP * extent):
        found.append(f"contour crosses itself between points {crossing[0]} and {crossing[1]}")
    usual = [np.median(length[max(0, i - NEAR_STEPS) : i + NEAR_STEPS + 1]) for i in range(len(length))]
    if (jumps := np.flatnonzero((length > JUMP * np.array(usual)) & (length > LONG_STEP * extent))).size:
        found.append(f"contour jumps between points {jumps[0]} and {jumps[0] + 1}")
    return found


def _crossing(contour: F64, length: F64, shortest_loop: float) -> tuple[int, int] | None:
    """The first two steps (i, j) that cross with a loop longer than shortest_loop between them."""
    start, step = contour[:-1], np.diff(contour, axis=0)
    way = np.concatenate([[0.0], np.cumsum(length)])
    i, j = np.triu_indices(len(step), 2)
    looped = way[j] - way[i + 1] > shortest_loop
    i, j = i[looped], j[looped]
    between = start[j] - start[i]
    det = _cross(step[i], step[j])
    with np.errstate(divide="ignore", invalid="ignore"):
        along_i, along_j = _cross(between, step[j]) / det, _cross(between, step[i]) / det
    hit = (det != 0) & (along_i >= 0) & (along_i <= 1) & (along_j >= 0) & (along_j <= 1)
    first = np.flatnonzero(hit)
    return (int(i[first[0]]), int(j[first[0]])) if first.size else None


def _cross(a: F64, b: F64) -> F64:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], np.float64)
