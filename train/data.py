"""The official WFLW lists: one face a line, 98 points, rect, attributes, picture. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from landmarks.schema import WFLW98
from landmarks.types import F32, U8, LineamentError

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"

_N_POINTS = len(WFLW98)
_N_VALUES = 2 * _N_POINTS + 4 + len(ATTRIBUTES)


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a list."""

    name: str
    """the picture's path in WFLW_images; several faces may share it"""
    points: F32
    """(98, 2) px of the picture"""
    rect_xyxy: F32
    """(4,) px, the box that came with the points"""
    attributes: frozenset[str]
    """those of ATTRIBUTES that hold"""
    image_path: Path

    def bgr(self) -> U8:
        """(H, W, 3) uint8, read from disk."""
        image = cv2.imread(str(self.image_path))
        if image is None:
            raise LineamentError(
                f"cannot read the picture {self.image_path}; is WFLW_images unpacked beside the lists?"
            )
        return np.asarray(image, np.uint8)


def read(root: Path, split: Literal["train", "test"]) -> list[Sample]:
    """The samples of one list under root, in its order. Raises LineamentError on a missing or malformed list."""
    path = root / LISTS.format(split=split)
    if not path.is_file():
        raise LineamentError(f"no WFLW list at {path}; --data must hold WFLW_annotations and WFLW_images")
    lines = path.read_text().splitlines()
    return [_sample(line, f"{path.name} line {i}", root) for i, line in enumerate(lines, 1) if line.strip()]


def _sample(line: str, where: str, root: Path) -> Sample:
    # a name may hold spaces: it is all that follows the numbers
    *fields, name = line.strip().split(" ", _N_VALUES)
    if len(fields) != _N_VALUES:
        raise LineamentError(f"{where} has {len(fields)} numbers before the name, expected {_N_VALUES}")
    try:
        values = np.array(fields, np.float32)
    except ValueError as error:
        raise LineamentError(f"{where} holds something other than {_N_VALUES} numbers and a name: {error}") from error
    points, rect, flags = np.split(values, [2 * _N_POINTS, 2 * _N_POINTS + 4])
    held = frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags, strict=True) if flag)
    return Sample(name, points.reshape(_N_POINTS, 2), rect, held, root / "WFLW_images" / name)
