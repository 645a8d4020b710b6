"""Cuts: whether two frames in a row show the same scene, and whether a face is still the same person."""

from __future__ import annotations

import cv2
import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import crop_from_frame, warp
from lineament.landmarks.schema import Schema
from lineament.landmarks.types import F32, U8, Frame

SAME_SCENE = 0.5
"""likeness of two frames in a row; lower after a cut"""
SURELY_SAME_SCENE = 0.9
"""below it, after a pan or with a face that fills the frame, the faces are compared too"""
SAME_FACE = 0.8
"""likeness of a face in two frames in a row; lower for nine of ten pairs of people, above 0.97 for the same one"""

_CELLS, _SAMPLES = 12, 4
"""cells along each side of a thumbnail, pixels sampled along each side of a cell"""
_PLAIN = 3.0
"""grey levels of contrast below which a picture shows nothing: a covered lens, a blank wall"""
_IN_A_ROW_S = 0.25
"""between two frames: after longer, anything in the same scene may have changed"""
_FACE = ModelCard(name="thumbnail", schema="", input_hw=(24, 24), crop_scale=1.4)
_SHIFT = 4
"""px of such a thumbnail"""


class Scene:
    """Compares each frame of a video with the one before."""

    def __init__(self, schema: Schema) -> None:
        """schema: of the face points."""
        self._schema = schema
        self._thumbnail: F32 | None = None
        """of the last frame that was not blank"""
        self._before: Frame | None = None
        self._now: Frame | None = None

    def likeness(self, frame: Frame) -> float:
        """Correlation of this frame with the one before, -1..1; 1 if either is blank or they are far apart in time."""
        self._before, self._now = self._now, frame
        thumbnail = _thumbnail(frame.bgr)
        if cv2.meanStdDev(thumbnail)[1][0, 0] < _PLAIN:
            return 1.0
        last, self._thumbnail = self._thumbnail, thumbnail
        if last is None or self._before is None or not 0 <= frame.time_s - self._before.time_s <= _IN_A_ROW_S:
            return 1.0
        return _correlation(last, thumbnail)

    def face_likeness(self, before: F32, now: F32) -> float:
        """Correlation of a face in the frame before with one in this, both (K, 2) frame px, levelled; -1..1.

        The best over small shifts, because points jitter.
        """
        if self._before is None or self._now is None:
            return 1.0
        middle = self._face(self._before, before)[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT]
        return _correlation(self._face(self._now, now), middle)

    def _face(self, frame: Frame, points: F32) -> F32:
        face = warp(frame.bgr, crop_from_frame(points, _FACE, self._schema.roll_rad(points)), _FACE.input_hw)
        return np.asarray(cv2.cvtColor(face, cv2.COLOR_BGR2GRAY), np.float32)


def _thumbnail(bgr: U8) -> F32:
    """(cells, cells) grey levels from a few pixels each: some microseconds at any frame size."""
    n = _CELLS * _SAMPLES
    few = cv2.resize(bgr, (n, n), interpolation=cv2.INTER_NEAREST)
    green = np.ascontiguousarray(few[..., 1], np.float32)
    return np.asarray(cv2.resize(green, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA), np.float32)


def _correlation(a: F32, b: F32) -> float:
    """-1..1, of the best place of b within a."""
    return float(cv2.matchTemplate(a, b, cv2.TM_CCOEFF_NORMED).max())
