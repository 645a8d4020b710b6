"""A labelled face and its picture: a file, or a member of a pack, with a path through the .zip."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile, ZipFile

import cv2
import numpy as np

from lineament.landmarks.types import F32, U8, LineamentError

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")


PACKED_LIST = "train.jsonl"
"""in a pack"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled face."""

    name: str
    """the picture's path in its data set; may be shared by several faces"""
    points: F32
    """(K, 2) px of the picture; all nan if there is no face"""
    rect_xyxy: F32
    """(4,) px, the labelled box, or the bounds of the points"""
    attributes: frozenset[str]
    """the true ones of ATTRIBUTES"""
    image_path: Path
    weight: float = 1.0
    """factor of this face's loss: confidence in its label"""
    point_weights: F32 | None = None
    """(K,) weight of each point among the others, 1 on average; None: equal"""
    visible: F32 | None = None
    """(K,) 1 for a point that is seen, 0 for a hidden one, nan if unknown; None: not labelled"""
    group: str = ""
    """faces of one group are held out together; without one, see group_of"""

    def bgr(self) -> U8:
        """(H, W, 3) uint8, read from disk or from a pack."""
        image = picture(self.image_path)
        if image is None:
            raise LineamentError(
                f"cannot read the picture {self.image_path}; is WFLW_images unpacked beside the lists? "
                "`python -m train.data check` names all that is missing"
            )
        return np.asarray(image, np.uint8)


class Problem(NamedTuple):
    """An error in one row, and what to do."""

    file: str
    line: int
    """0 for the whole file"""
    kind: str
    """the kind, for counts"""
    what: str
    next: str

    def __str__(self) -> str:
        text = f"{self.file} line {self.line}: {self.what}; {self.next}"
        # a row may contain newlines, terminal escapes and invalid characters
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def stamp_ns(path: Path) -> int | None:
    """When the picture, or its pack, was last modified; None if it is missing."""
    pack, member = in_pack(path)
    if pack:
        return os.stat(pack).st_mtime_ns if os.path.isfile(pack) and member in members(opened(pack)) else None
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else None


def picture(path: Path) -> U8 | None:
    """(H, W, 3) BGR; None if it cannot be decoded."""
    pack, member = in_pack(path)
    try:
        if pack:
            image = cv2.imdecode(np.frombuffer(opened(pack).read(member), np.uint8), cv2.IMREAD_COLOR)
        else:
            image = cv2.imread(str(path))
    except (cv2.error, KeyError, OSError, BadZipFile):  # cv2's: a header that claims thousands of megapixels
        return None
    return None if image is None else np.asarray(image, np.uint8)


def in_pack(path: Path) -> tuple[Path | None, str]:
    """The pack and the name in it; (None, "") for a plain file."""
    pack = next((parent for parent in path.parents if parent.suffix.lower() == ".zip"), None)
    return (pack, path.relative_to(pack).as_posix()) if pack and os.path.isfile(pack) else (None, "")


@cache
def opened(pack: Path) -> ZipFile:
    """Kept open, because opening one reads its directory of thousands of pictures."""
    try:
        return ZipFile(pack)
    except (OSError, BadZipFile) as error:
        raise LineamentError(f"cannot read the pack {pack}: {error}; copy it again, or write it again") from error


@cache
def members(pack: ZipFile) -> frozenset[str]:
    return frozenset(pack.namelist())
