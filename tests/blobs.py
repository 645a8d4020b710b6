"""A small world for testing the tracker: faces are bright squares, each of its own grey, that hide one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import cv2
import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, Face, Frame, Landmarks

CARD = ModelCard(name="blobs", schema="wflw98", input_hw=(64, 64), crop_scale=1.6)


def template() -> F32:
    """(98, 2) in 0..1: contour on the outline, eyes level, so that bounds and roll are known."""
    points = np.full((98, 2), 0.5, np.float32)
    points[:33] = [(x, 1.0) for x in np.linspace(0, 1, 33)]
    points[33:51] = [(x, 0.0) for x in np.linspace(0, 1, 18)]
    points[list(WFLW98.parts["left_eye"])] = (0.3, 0.4)
    points[list(WFLW98.parts["right_eye"])] = (0.7, 0.4)
    return points


def scene(centers: Sequence[tuple[float, float]], index: int = 0, size: int = 40, fps: float = 30.0) -> Frame:
    """A 240 x 320 frame with a bright square at each centre; later ones cover earlier ones."""
    bgr = np.zeros((240, 320, 3), np.uint8)
    for grey, (x, y) in zip(range(250, 100, -40), centers):
        corner = (round(x - size / 2), round(y - size / 2))
        cv2.rectangle(bgr, corner, (corner[0] + size - 1, corner[1] + size - 1), (grey, grey, grey), cv2.FILLED)
    return Frame(bgr, "blobs", index, index / fps, 0.0)


def boxes_of(grey: U8) -> list[F32]:
    """(4,) xyxy of each square that shows, half hidden ones too. grey: (H, W)."""
    boxes = []
    for level in range(250, 100, -40):
        # interpolation blurs a level by a little
        ys, xs = np.nonzero(np.abs(grey.astype(int) - level) < 15)
        if len(xs) > 60:
            boxes.append(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32))
    return boxes


class BlobDetector:
    """Finds every square; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.blind = False

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        self.calls += 1
        boxes = [] if self.blind else boxes_of(bgr[..., 0])
        # no detector takes a thin strip for a face
        return tuple(Face(b, 0.9) for b in boxes if 0.5 < (b[2] - b[0]) / (b[3] - b[1]) < 2)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


class NearBlobDetector(BlobDetector):
    """Also looks where it is asked; counts those looks."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []
        """faces, by call"""

    def near(self, bgr: U8, faces: Sequence[Face]) -> tuple[Face, ...]:
        self.asked.append(len(faces))
        boxes = [face.box_xyxy for face in faces]
        found = [Face(b, 0.9) for b in boxes_of(bgr[..., 0]) if 0.5 < (b[2] - b[0]) / (b[3] - b[1]) < 2]
        return tuple(face for face in found if any(np.abs(face.box_xyxy - box).max() < 40 for box in boxes))


class BlobLandmarker:
    """The template on the square nearest the crop's centre; no confidence where there is none."""

    card = CARD

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        self.batches.append(len(rgb_NHWC))
        height, width = CARD.input_hw
        points = np.zeros((len(rgb_NHWC), 98, 2), np.float32)
        confidence = np.zeros(len(rgb_NHWC), np.float32)
        for i, rgb in enumerate(rgb_NHWC):
            boxes = boxes_of(rgb[..., 0])
            if boxes:
                x1, y1, x2, y2 = min(boxes, key=lambda b: abs(b[0] + b[2] - width) + abs(b[1] + b[3] - height))
                points[i] = (template() * (x2 - x1, y2 - y1) + (x1, y1)) / (width, height)
                confidence[i] = 0.95
        return Landmarks(points, confidence)

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...
