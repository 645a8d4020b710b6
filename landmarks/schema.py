"""Schemas: which index is which point of a face. The meaning of an array of points never comes from its length.

Left and right are those of the image: "left_eye" is on the left of an unmirrored image (the person's right eye).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import atan2, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.types import F32, Floats, Track


@dataclass(frozen=True)
class Schema:
    """A set of K landmarks."""

    name: str
    parts: Mapping[str, tuple[int, ...]]
    """part name to indices, in drawing order; together they contain each of 0..K-1 once"""
    closed: frozenset[str]
    """parts whose curve is closed"""
    flip: tuple[int, ...]
    """flip[i] is the index of point i in the mirror image; applied twice it is the identity"""
    eye_corners: tuple[int, int]
    """outer corners of the left and right eye; NME is normalised by their distance"""
    scattered: frozenset[str] = frozenset()
    """parts that are no curve"""

    def __len__(self) -> int:
        return len(self.flip)

    @property
    def curves(self) -> Mapping[str, tuple[int, ...]]:
        """the parts that are drawn as a curve"""
        return {name: indices for name, indices in self.parts.items() if name not in self.scattered}

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """index pairs to connect"""
        pairs: list[tuple[int, int]] = []
        for name, indices in self.curves.items():
            pairs += zip(indices, indices[1:])
            if name in self.closed:
                pairs.append((indices[-1], indices[0]))
        return tuple(pairs)

    def flipped(self, points: Floats, width: float) -> Floats:
        """(..., K, 2) points of the mirrored image. width: w for pixels; for unit coordinates pass 2 (1 - x)."""
        mirrored = points[..., self.flip, :].copy()
        mirrored[..., 0] = width - 1 - mirrored[..., 0]
        return mirrored

    def part(self, name: str, points: Floats) -> Floats:
        """points: (..., K, 2) -> (..., n, 2), those of one part."""
        return points[..., self._indices[name], :]

    @cached_property
    def quick(self) -> NDArray[np.bool_]:
        """(K,) whether a point can move fast on its own, within a frame or two: lids, pupils and lips"""
        quick = np.zeros(len(self), bool)
        for name, indices in self.parts.items():
            quick[list(indices)] = name.endswith(("_eye", "_pupil", "_lips"))
        return quick

    @cached_property
    def _eye_line(self) -> tuple[NDArray[np.intp], F32]:
        """the eyes' indices, and weights whose product with their points is the vector from left to right centre"""
        left, right = self.parts["left_eye"], self.parts["right_eye"]
        weights = [-1 / len(left)] * len(left) + [1 / len(right)] * len(right)
        return np.array([*left, *right]), np.array(weights, np.float32)

    @cached_property
    def _indices(self) -> dict[str, NDArray[np.intp]]:
        """parts as arrays, which index faster"""
        return {name: np.array(indices) for name, indices in self.parts.items()}

    def roll_rad(self, points: Floats) -> float:
        """In-plane angle of the line from the left eye's centre to the right eye's. points: (K, 2).

        0 if the centres coincide, nan if an eye is not finite.
        """
        indices, weights = self._eye_line
        with np.errstate(over="ignore", invalid="ignore"):
            x, y = (weights @ points[indices]).tolist()
        return atan2(y, x) if isfinite(x) and isfinite(y) else nan


def _span(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


# fmt: off
_WFLW98_FLIP = (
    *range(32, -1, -1),
    46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38,
    51, 52, 53, 54, 59, 58, 57, 56, 55,
    72, 71, 70, 69, 68, 75, 74, 73, 64, 63, 62, 61, 60, 67, 66, 65,
    82, 81, 80, 79, 78, 77, 76, 87, 86, 85, 84, 83, 92, 91, 90, 89, 88, 95, 94, 93,
    97, 96,
)
_IBUG68_FLIP = (
    *range(16, -1, -1),
    26, 25, 24, 23, 22, 21, 20, 19, 18, 17,
    27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
)
# points 0..247 of MediaPipe's face are the midline and the left of the image; their partners follow in the same order
_MESH468_MIDLINE = (0, 1, 2, 4, 5, 6, *range(8, 20), 94, 151, 152, 164, 168, 175, 195, 197, 199, 200)
_MESH468_LEFT = tuple(sorted(set(range(248)).difference(_MESH468_MIDLINE)))
_MESH468_PARTNERS = dict(zip(_MESH468_LEFT, range(248, 468))) | dict(zip(range(248, 468), _MESH468_LEFT))
_MESH468_FLIP = tuple(_MESH468_PARTNERS.get(i, i) for i in range(468))
# the usual 98 -> 68 subset: every second contour point, upper edges of the brows, lids without their middles
_WFLW98_OF_IBUG68 = (
    *range(0, 33, 2), 33, 34, 35, 36, 37, 42, 43, 44, 45, 46, *range(51, 60),
    60, 61, 63, 64, 65, 67, 68, 69, 71, 72, 73, 75, *range(76, 96),
)
# fmt: on

WFLW98 = Schema(
    name="wflw98",
    parts={
        "contour": _span(0, 32),
        "left_brow": _span(33, 41),
        "right_brow": _span(42, 50),
        "nose_ridge": _span(51, 54),
        "nose_base": _span(55, 59),
        "left_eye": _span(60, 67),
        "right_eye": _span(68, 75),
        "outer_lips": _span(76, 87),
        "inner_lips": _span(88, 95),
        "left_pupil": (96,),
        "right_pupil": (97,),
    },
    closed=frozenset({"left_brow", "right_brow", "left_eye", "right_eye", "outer_lips", "inner_lips"}),
    flip=_WFLW98_FLIP,
    eye_corners=(60, 72),
)

IBUG68 = Schema(
    name="ibug68",
    parts={
        "contour": _span(0, 16),
        "left_brow": _span(17, 21),
        "right_brow": _span(22, 26),
        "nose_ridge": _span(27, 30),
        "nose_base": _span(31, 35),
        "left_eye": _span(36, 41),
        "right_eye": _span(42, 47),
        "outer_lips": _span(48, 59),
        "inner_lips": _span(60, 67),
    },
    closed=frozenset({"left_eye", "right_eye", "outer_lips", "inner_lips"}),
    flip=_IBUG68_FLIP,
    eye_corners=(36, 45),
)

# MediaPipe's own contours; its left is the person's
# fmt: off
_MESH468_CURVES: dict[str, tuple[int, ...]] = {
    "contour": (
        10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149,
        150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
    ),
    "left_brow": (70, 63, 105, 66, 107, 55, 65, 52, 53, 46),
    "right_brow": (336, 296, 334, 293, 300, 276, 283, 282, 295, 285),
    "nose_ridge": (168, 6, 197, 195, 5, 4, 1),
    "nose_base": (98, 97, 2, 326, 327),
    "left_eye": (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    "right_eye": (362, 398, 384, 385, 386, 387, 388, 466, 263, 249, 390, 373, 374, 380, 381, 382),
    "outer_lips": (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146),
    "inner_lips": (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95),
}
# fmt: on

MESH468 = Schema(
    name="mesh468",
    parts={
        **_MESH468_CURVES,
        "surface": tuple(sorted(set(range(468)).difference(*_MESH468_CURVES.values()))),
    },
    closed=frozenset(_MESH468_CURVES) - {"nose_ridge", "nose_base"},
    flip=_MESH468_FLIP,
    eye_corners=(33, 263),
    scattered=frozenset({"surface"}),
)

SCHEMAS: Mapping[str, Schema] = {schema.name: schema for schema in (WFLW98, IBUG68, MESH468)}


def ibug68_from_wflw98(points: F32) -> F32:
    """points: (..., 98, 2) -> (..., 68, 2). Raises ValueError for another number of points."""
    if points.shape[-2] != len(WFLW98):
        raise ValueError(f"expected {len(WFLW98)} points of {WFLW98.name}, got shape {points.shape}")
    return points[..., _WFLW98_OF_IBUG68, :]


def points_of(track: Track, source: Schema, target: Schema) -> F32:
    """A track's points in `target`, frame px. source: of track.points. Raises ValueError if it has none in `target`."""
    if target is not MESH468 or source is MESH468:
        return convert(track.points, source, target)
    if track.mesh is None:
        raise ValueError(f"no points of {MESH468.name} were found for this track; it has {source.name}")
    return track.mesh


def visibility_of(track: Track, source: Schema, target: Schema) -> F32 | None:
    """(K,) of a track's points in `target`, 0..1; None if unknown. source: of track.points."""
    if track.visibility is None or (target is MESH468 and source is not MESH468):
        return None
    return convert(track.visibility[:, None], source, target)[:, 0]


def convert(points: F32, source: Schema, target: Schema) -> F32:
    """Converts (..., K, 2) points from `source` to `target`. Raises ValueError if there is no conversion."""
    if source is target:
        return points
    if (source, target) == (WFLW98, IBUG68):
        return ibug68_from_wflw98(points)
    raise ValueError(f"cannot convert points from {source.name} to {target.name}; only wflw98 to ibug68 is known")
