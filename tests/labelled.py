"""A small labelled data set in WFLW's own layout: every face is the mean face, somewhere in its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32
from lineament.train.sample import ATTRIBUTES, Sample

LIST = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"
SIDE = 100
"""of a picture, px"""


def mean_face(x: float = 50, y: float = 50, radius: float = 25) -> F32:
    """(98, 2) px."""
    return np.asarray(mean_shape()[:, :2] * radius + (x, y), np.float32)


def exchanged(points: F32, *parts: str) -> F32:
    """The points of these parts in the order that they have in the mirrored picture: left and right mixed up."""
    wrong = points.copy()
    for part in parts:
        indices = list(WFLW98.parts[part])
        wrong[indices] = points[np.array(WFLW98.flip)[indices]]
    return wrong


def sample(points: F32, name: str = "face.png", attributes: Sequence[str] = (), root: Path = Path()) -> Sample:
    rect = np.concatenate([points.min(0), points.max(0)])
    return Sample(name, points, rect, frozenset(attributes), root / "WFLW_images" / name)


def write_wflw(root: Path, split: str, faces: Sequence[tuple[str, F32]]) -> Path:
    """Pictures of grey noise and the list of their faces; a name may come several times."""
    lines = []
    for number, (name, points) in enumerate(faces):
        path = root / "WFLW_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(90, 160, (SIDE, SIDE, 3), np.uint8)
        assert cv2.imwrite(str(path), noise)
        rect = np.concatenate([points.min(0), points.max(0)]).round().astype(int)
        flags = [0] * len(ATTRIBUTES)
        lines.append(" ".join([*(f"{v:.6f}" for v in points.ravel()), *map(str, rect), *map(str, flags), name]))
    path = root / LIST.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return root
