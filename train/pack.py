"""Labelled faces as packs: a .zip holds train.jsonl and a JPEG a face, no larger than training sees it.

    python -m train.pack labels.jsonl --out packs/faces
    python -m train --data packs/

A face takes its picture's pixels in a box round the widest crop that training cuts, so that a set of large photos
shrinks to what a run needs, and travels to the machine that trains. Any unzip opens a pack.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply
from lineament.landmarks.schema import SCHEMAS, Schema
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train.crops import CropConfig, wide_view
from lineament.train.data import group_of, read_sets, shift_of_each
from lineament.train.sample import PACKED_LIST, Sample

log = logging.getLogger("lineament")


@dataclass(frozen=True)
class PackConfig:
    """Packs labelled faces for training elsewhere."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Data sets as for `python -m train --data`: their training splits, joined."""
    out: Path
    """packs/faces writes packs/faces-1.zip, packs/faces-2.zip, ..."""
    input_px: int = 256
    """Largest input to train for: a face is stored no larger than such a run's crop."""
    crop: CropConfig = field(default_factory=CropConfig)
    """Crop that training will use; a wider margin than this one would show black."""
    piece_mb: float = 64.0
    """Maximum size of a pack, MB."""
    quality: int = 92
    """JPEG quality."""
    label_shift_px: tuple[float, ...] = (0.0,)
    """Subtracted from every label, so that packed ones need no shift. One number, or one for each data set."""
    schema: str = "wflw98"
    """Which points the data has."""

    def __post_init__(self) -> None:
        if not self.piece_mb >= 1 or not 1 <= self.quality <= 100 or self.input_px < 32:
            raise ValueError(
                f"piece_mb {self.piece_mb}, quality {self.quality}, input_px {self.input_px}: "
                "wanted at least 1, 1 to 100, at least 32"
            )
        shift_of_each(self.label_shift_px, self.data)
        if self.schema not in SCHEMAS:
            raise ValueError(f"unknown schema {self.schema!r}, wanted one of {sorted(SCHEMAS)}")


class Packed(NamedTuple):
    """One face, ready to be written."""

    row: dict[str, Any]
    """of train.jsonl"""
    jpeg: bytes

    @property
    def line(self) -> str:
        return json.dumps(self.row, separators=(",", ":")) + "\n"

    @property
    def size(self) -> int:
        """Bytes in a pack, with what the container says of the picture twice."""
        return len(self.jpeg) + len(self.line) + 200


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(PackConfig, args=args, prog="python -m train.pack", description=PackConfig.__doc__)
    sets = read_sets(cfg.data, cfg.label_shift_px, SCHEMAS[cfg.schema])
    for piece, faces in pack([sample for one in sets for sample in one], cfg):
        print(f"{piece}: {faces} faces, {piece.stat().st_size / 1e6:.1f} MB")
    return 0


def pack(samples: list[Sample], cfg: PackConfig) -> list[tuple[Path, int]]:
    """Writes the packs, each whole or not at all; returns their paths and numbers of faces.

    Raises LineamentError where there is nothing to pack, a picture cannot be read, or older packs are in the way.
    """
    if not samples:
        raise LineamentError(f"there is nothing to pack in {', '.join(map(str, cfg.data))}; `train.data check` them")
    if old := sorted(cfg.out.parent.glob(f"{cfg.out.name}-*.zip")):
        raise LineamentError(f"{old[0]} is there already; delete it and its like, or choose another --out")
    written: list[tuple[Path, int]] = []
    faces: list[Packed] = []

    def finish() -> None:
        path = cfg.out.with_name(f"{cfg.out.name}-{len(written) + 1}.zip")
        _write(path, faces)
        written.append((path, len(faces)))

    cfg.out.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    for face in _packed_faces(samples, cfg, SCHEMAS[cfg.schema]):
        if faces and size + face.size > cfg.piece_mb * 1e6:
            finish()
            faces, size = [], 0
        faces.append(face)
        size += face.size
    finish()
    return written


def _write(path: Path, faces: list[Packed]) -> None:
    with replaced(path) as part, ZipFile(part, "w", ZIP_STORED) as zipped:
        for face in faces:
            zipped.writestr(face.row["image"], face.jpeg)
        zipped.writestr(PACKED_LIST, "".join(face.line for face in faces))


def _packed_faces(samples: list[Sample], cfg: PackConfig, schema: Schema) -> Iterator[Packed]:
    """Each sample cut out of its picture, in order."""
    opened, picture = Path(), np.zeros((1, 1, 3), np.uint8)
    for number, sample in enumerate(tqdm(samples, desc="packing", disable=None, leave=False)):
        if sample.image_path != opened:
            opened, picture = sample.image_path, sample.bgr()
        piece, (points, box) = _cut(sample, picture, cfg, schema)
        done, jpeg = cv2.imencode(".jpg", piece, [cv2.IMWRITE_JPEG_QUALITY, cfg.quality])
        assert done, "OpenCV writes JPEG"
        row: dict[str, Any] = {
            "image": f"{number:06}.jpg",
            "points": _rounded(points) if np.isfinite(points).all() else None,
            "box_xyxy": [value for corner in _rounded(box) for value in corner],
            "group": group_of(sample),
        }
        if sample.attributes:
            row["attributes"] = sorted(sample.attributes)
        if sample.weight != 1:
            row["weight"] = sample.weight
        if sample.point_weights is not None:
            row["point_weights"] = [round(float(weight), 2) for weight in sample.point_weights]
        yield Packed(row, jpeg.tobytes())


def _cut(sample: Sample, bgr: U8, cfg: PackConfig, schema: Schema) -> tuple[U8, tuple[F32, F32]]:
    """The part of the picture that training sees, shrunk to what it sees of it; points (K, 2) and the box's corners
    (2, 2), in px of that part."""
    corners, scale = wide_view(sample, cfg.crop, schema, (cfg.input_px, cfg.input_px))
    limit = np.array([bgr.shape[1], bgr.shape[0]])
    # a pixel round it, for interpolation; a face may lie at the picture's edge, or beyond
    low = np.clip(np.floor(corners.min(0)).astype(int) - 1, 0, limit - 1)
    high = np.clip(np.ceil(corners.max(0)).astype(int) + 2, low + 1, limit)
    piece = bgr[low[1] : high[1], low[0] : high[0]]
    small_wh = np.maximum(1, np.round((high - low) * min(1.0, scale))).astype(int)
    if scale < 1:
        piece = np.asarray(cv2.resize(piece, tuple(map(int, small_wh)), interpolation=cv2.INTER_AREA), np.uint8)
    x, y = small_wh / (high - low)
    # pixel centres: the corner of the first pixel lies at -0.5
    piece_from_frame = np.array([[x, 0, (0.5 - low[0]) * x - 0.5], [0, y, (0.5 - low[1]) * y - 0.5]])
    return piece, (apply(piece_from_frame, sample.points), apply(piece_from_frame, sample.rect_xyxy.reshape(2, 2)))


def _rounded(points: F32) -> list[list[float]]:
    return [[round(float(x), 2), round(float(y), 2)] for x, y in points]


if __name__ == "__main__":
    sys.exit(main())
