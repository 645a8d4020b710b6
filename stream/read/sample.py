"""The sample: a clip rendered from a public-domain photo, with known true motion of every point.

The head of scikit-image's astronaut moves over a plain backdrop, turns in plane, grows and shrinks, leaves the
frame and returns. `frame_from_photo` returns its exact position in any frame; rendering is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from lineament.engines.portrait import portrait
from lineament.landmarks.geometry import apply, compose, warp
from lineament.landmarks.types import F64, U8, Floats, LineamentError

FACE_PHOTO_XYXY = (172.0, 62.0, 278.0, 190.0)
"""the face in the photo, hairline to chin, photo px"""
_HEAD_PHOTO_XYXY = (96, 2, 348, 330)
"""the moving part, head and collar, faded out towards an ellipse in this rectangle, photo px"""
_BACKDROP_PHOTO_XYXY = (306, 4, 372, 240)
"""the backdrop, a plain part of the photo, photo px"""
_LOOP_S = 10.0
"""period of the motion"""


@dataclass(frozen=True)
class Sample:
    """A clip of `len(sample)` frames; cheap to make, the photo is read at the first `render`."""

    size_hw: tuple[int, int] = (480, 640)
    """height and width, px"""
    fps: float = 30.0
    seconds: float = 10.0
    faces: int = 1
    """1..3 copies of the face, each in its own column and with its own motion"""
    noise: float = 2.0
    """standard deviation of the sensor noise, grey levels; it differs from frame to frame, and is the same every run"""

    def __post_init__(self) -> None:
        if min(self.size_hw) < 32 or not self.fps > 0 or not self.seconds > 0 or self.faces not in (1, 2, 3):
            raise LineamentError(
                f"the sample got size_hw {self.size_hw}, {self.fps} fps, {self.seconds} s, {self.faces} faces; "
                "it wants at least 32x32, fps and seconds above 0, and 1 to 3 faces"
            )

    def __len__(self) -> int:
        """Frames in the clip."""
        return max(1, round(self.seconds * self.fps))

    def frame_from_photo(self, index: int, face: int = 0) -> F64:
        """The true (2, 3) matrix at one frame: photo px to frame px. It is smooth in index, and defined for any."""
        height, width = self.size_hw
        column = width / self.faces
        unit = min(height / 480, column / 400)
        phase = 2 * np.pi * (index / self.fps / _LOOP_S + face * 0.37)
        # a face is 91 to 219 px wide at 640x480, upright at the start, and ducks out below once a loop
        scale = unit * np.exp(np.log(1.33) + 0.44 * np.sin(2 * phase - 1.2))
        angle = np.radians(35) * np.sin(3 * phase)
        x = column * (face + 0.5 + 0.14 * np.sin(2 * phase))
        y = height * (0.48 + 0.06 * np.sin(phase + 1.0)) + 1.05 * height * _duck(phase)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        left, top, right, bottom = FACE_PHOTO_XYXY
        about_face = np.array([[1.0, 0.0, -(left + right) / 2], [0.0, 1.0, -(top + bottom) / 2]])
        return compose(np.array([[cos, -sin, x], [sin, cos, y]]), about_face)

    def inside(self, index: int, face: int = 0) -> float:
        """The share of the face that lies in the frame: 1 when all of it can be seen, 0 when none."""
        left, top, right, bottom = FACE_PHOTO_XYXY
        grid_photo = np.stack(np.meshgrid(np.linspace(left, right, 9), np.linspace(top, bottom, 9)), -1).reshape(-1, 2)
        grid_frame = apply(self.frame_from_photo(index, face), grid_photo)
        height, width = self.size_hw
        return float(((grid_frame >= -0.5) & (grid_frame < (width - 0.5, height - 0.5))).all(1).mean())

    def visible(self, index: int, face: int = 0) -> bool:
        """Whether the whole face is in the frame."""
        return self.inside(index, face) == 1

    def render(self, index: int) -> U8:
        """(H, W, 3) uint8 BGR."""
        bgr = self._background.copy()
        for face in range(self.faces):
            self._paste(bgr, self.frame_from_photo(index, face))
        if self.noise:
            # a shifted cut of one noise field: as good as new noise, at a tenth of its price
            height, width = self.size_hw
            y, x = np.random.default_rng(index).integers(0, 64, 2)
            brighter, darker = self._noise
            cv2.add(bgr, brighter[y : y + height, x : x + width], dst=bgr)
            cv2.subtract(bgr, darker[y : y + height, x : x + width], dst=bgr)
        return bgr

    def _paste(self, bgr: U8, frame_from_photo: F64) -> None:
        """Draws the head into bgr, touching only the pixels under it."""
        left, top, right, bottom = _HEAD_PHOTO_XYXY
        corners_photo = np.array([[left, top], [right, top], [left, bottom], [right, bottom]], float)
        corners_frame = apply(frame_from_photo, corners_photo)
        limit = np.array([bgr.shape[1], bgr.shape[0]])
        x0, y0 = np.clip(np.floor(corners_frame.min(0)).astype(int), 0, limit)
        x1, y1 = np.clip(np.ceil(corners_frame.max(0)).astype(int) + 1, 0, limit)
        if x0 == x1 or y0 == y1:
            return
        photo_from_head = np.array([[1.0, 0.0, left], [0.0, 1.0, top]])
        cut_from_frame = np.array([[1.0, 0.0, -x0], [0.0, 1.0, -y0]])
        cut_from_head = compose(cut_from_frame, compose(frame_from_photo, photo_from_head))
        cut_bgra = warp(self._head_bgra, cut_from_head, (int(y1 - y0), int(x1 - x0)))
        cut = bgr[y0:y1, x0:x1]
        behind = cv2.cvtColor(255 - cut_bgra[..., 3], cv2.COLOR_GRAY2BGR)
        cv2.multiply(cut, behind, dst=cut, scale=1 / 255)
        cv2.add(cut, cv2.cvtColor(cut_bgra, cv2.COLOR_BGRA2BGR), dst=cut)

    @cached_property
    def _head_bgra(self) -> U8:
        """(h, w, 4), colour already multiplied by alpha."""
        left, top, right, bottom = _HEAD_PHOTO_XYXY
        bgr = portrait()[top:bottom, left:right]
        height, width = bgr.shape[:2]
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        alpha = np.clip((1 - np.hypot(x, y)) / 0.22, 0, 1)
        alpha = alpha * alpha * (3 - 2 * alpha)
        return np.asarray(np.rint(np.dstack([bgr * alpha[..., None], 255 * alpha])), np.uint8)

    @cached_property
    def _background(self) -> U8:
        """(H, W, 3): the photo's own studio backdrop, stretched and blurred."""
        height, width = self.size_hw
        left, top, right, bottom = _BACKDROP_PHOTO_XYXY
        soft = cv2.GaussianBlur(portrait()[top:bottom, left:right], (0, 0), 9)
        return np.asarray(cv2.resize(soft, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)

    @cached_property
    def _noise(self) -> tuple[U8, U8]:
        """(H + 64, W + 64, 3) each: the grey levels to add, and those to take away."""
        height, width = self.size_hw
        field: Floats = np.random.default_rng(0).standard_normal((height + 64, width + 64, 3), dtype=np.float32)
        levels = np.rint(self.noise * field)
        return np.maximum(levels, 0).astype(np.uint8), np.maximum(-levels, 0).astype(np.uint8)


def _duck(phase: float) -> float:
    """0 most of the loop, 1 while the face is below the frame, smooth between."""
    # distance from three quarters of the loop, as a share of it
    away = abs((phase / (2 * np.pi) - 0.75 + 0.5) % 1 - 0.5)
    ramp = float(np.clip((0.16 - away) / 0.12, 0, 1))
    return ramp * ramp * (3 - 2 * ramp)
