"""Crops: every face cut out once, with the margin that augmentation needs, and cached decoded on disk. No torch.

    crops = Crops(samples, (256, 256), CropConfig(), WFLW98, Path("runs/cache"))
    wide = crops[0]              # for augmentation: the input's resolution, margin times its side
    seen = crops.input_crop(0)   # its centre: exactly the crop of serving

An epoch then reads pixels from a memory-mapped file instead of decoding large pictures for small faces.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from lineament.landmarks.card import CropScale, ModelCard, is_crop_scale
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply, crop_from_frame, invert, warp
from lineament.landmarks.schema import Schema
from lineament.landmarks.types import F32, F64, U8, Floats, LineamentError
from lineament.train.data import shifted
from lineament.train.sample import Sample, stamp_ns

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CropConfig:
    """Which part of a picture the model sees.

    In serving, a rect or a detector's box jitters. Here it does not, because augmentation shifts, scales and rotates
    every crop differently in each epoch.
    """

    source: Literal["points", "rect", "detector"] = "points"
    """Region to crop: the labelled points (as for a tracked face), the list's rect, or a detector's box."""
    boxes: Path | None = None
    """For source 'detector': the .jsonl that `python -m stream.label` wrote for the same pictures."""
    scale: CropScale = 1.3
    """Side of the crop over that of the region: above 1, because the points do not include the forehead. Two numbers
    scale width and height. See landmarks.card.CropScale."""
    level: bool = True
    """Rotate the crop so that the eyes are level, as serving does with a tracked face. Only with source 'points'."""
    margin: float = 1.5
    """Side of the cached crop over that of the input: 1.42 contains the input rotated by 45 degrees."""

    def __post_init__(self) -> None:
        if not is_crop_scale(self.scale) or not self.margin >= 1:
            raise ValueError(f"scale {self.scale} and margin {self.margin}: wanted above 0, and at least 1")
        if (self.source == "detector") != (self.boxes is not None):
            raise ValueError("source 'detector' and boxes go together: give both or neither")


class Crop(NamedTuple):
    """A part of a picture and the points in it."""

    rgb: U8
    """(H, W, 3)"""
    points: F32
    """(K, 2) px of the crop"""


class Crops:
    """The crops of a list of samples, in its order. Cheap to pickle to a worker: the pixels stay in the file."""

    def __init__(
        self,
        samples: Sequence[Sample],
        input_hw: tuple[int, int],
        cfg: CropConfig,
        schema: Schema,
        cache: Path,
        label_shift_px: float = 0.0,
    ) -> None:
        """Cuts all crops into cache, unless they are cached. label_shift_px is subtracted from every label."""
        self.samples = shifted(samples, label_shift_px)
        self.input_hw = input_hw
        self._pad_hw, wide_hw = _padded(input_hw, cfg)
        for sample in self.samples:
            if sample.points.shape != (len(schema), 2):
                raise LineamentError(
                    f"a sample has points {sample.points.shape}, expected ({len(schema)}, 2) of {schema.name}"
                )
        boxes = _boxes(cfg.boxes, self.samples) if cfg.boxes else None
        self._matrices = [
            _wide_from_frame(sample, None if boxes is None else boxes[i], cfg, schema, input_hw)
            for i, sample in enumerate(self.samples)
        ]
        self.path = cache / f"crops-{self._digest(cfg, wide_hw)}.npy"
        self._wide_hw = wide_hw
        self._pixels: U8 | None = None
        if self.samples and not self._is_whole():
            self._cut()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Crop:
        """The wide crop."""
        return Crop(np.array(self._open()[i]), apply(self._matrices[i], self.samples[i].points))

    def input_crop(self, i: int) -> Crop:
        """What the model sees of sample i without augmentation: the centre of the wide crop."""
        (pad_y, pad_x), (height, width) = self._pad_hw, self.input_hw
        wide = self[i]
        rgb = np.ascontiguousarray(wide.rgb[pad_y : pad_y + height, pad_x : pad_x + width])
        return Crop(rgb, wide.points - np.array([pad_x, pad_y], np.float32))

    def frame_from_input(self, i: int) -> F64:
        """(2, 3) from px of the input crop back to px of the picture."""
        pad_y, pad_x = self._pad_hw
        return invert(self._matrices[i] - np.array([[0.0, 0.0, pad_x], [0.0, 0.0, pad_y]]))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pixels": None}

    def _open(self) -> U8:
        if self._pixels is None:
            self._pixels = np.load(self.path, mmap_mode="r")
        return self._pixels

    def _is_whole(self) -> bool:
        """Whether the cache exists and is complete."""
        try:
            return bool(np.load(self.path, mmap_mode="r").shape == (len(self.samples), *self._wide_hw, 3))
        except (OSError, ValueError, EOFError):
            return False

    def _cut(self) -> None:
        """Fills the cache, whole or not at all. Sorted by picture, so that each is decoded once."""
        height, width = self._wide_hw
        needed = len(self.samples) * height * width * 3
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.path.parent).free
        except OSError as error:
            raise LineamentError(
                f"cannot cache crops in {self.path.parent}: {error.strerror}; choose another --run"
            ) from error
        # writing to a memory-mapped file on a full disk kills the process (SIGBUS)
        if needed > free:
            raise LineamentError(
                f"the crops of {len(self.samples)} faces take {needed / 1e9:.1f} GB in {self.path.parent}, which has "
                f"{free / 1e9:.1f} GB free; delete the crops of earlier runs there, or lower --crop.margin"
            )
        with replaced(self.path) as part:
            pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (len(self.samples), *self._wide_hw, 3))
            order = sorted(range(len(self.samples)), key=lambda i: str(self.samples[i].image_path))
            picture, opened = np.zeros((1, 1, 3), np.uint8), Path()
            for i in tqdm(order, desc="cutting crops", disable=None, leave=False):
                if self.samples[i].image_path != opened:
                    opened = self.samples[i].image_path
                    picture = np.ascontiguousarray(self.samples[i].bgr()[..., ::-1])
                pixels[i] = warp(picture, self._matrices[i], self._wide_hw)
            pixels.flush()
            del pixels
        log.info("cut %d crops into %s, %.2f GB", len(self.samples), self.path, needed / 1e9)

    def _digest(self, cfg: CropConfig, wide_hw: tuple[int, int]) -> str:
        """A hash of everything the pixels depend on."""
        digest = hashlib.sha256(json.dumps([asdict(cfg), wide_hw], default=str).encode())
        stamps = {path: stamp_ns(path) for path in {s.image_path for s in self.samples}}
        for sample, matrix in zip(self.samples, self._matrices):
            digest.update(f"{sample.image_path}|{stamps.get(sample.image_path)}|".encode() + matrix.tobytes())
        return digest.hexdigest()[:20]


def wide_view(sample: Sample, cfg: CropConfig, schema: Schema, input_hw: tuple[int, int]) -> tuple[F32, float]:
    """Where the wide crop of `sample` lies: its corners (4, 2) in px of the picture, and how many px of the crop one px
    of the picture becomes."""
    wide_from_frame = _wide_from_frame(sample, None, cfg, schema, input_hw)
    height, width = _padded(input_hw, cfg)[1]
    corners = np.array([[-0.5, -0.5], [width - 0.5, -0.5], [width - 0.5, height - 0.5], [-0.5, height - 0.5]])
    return apply(invert(wide_from_frame), corners), float(np.hypot(*wide_from_frame[0, :2]))


def _padded(input_hw: tuple[int, int], cfg: CropConfig) -> tuple[tuple[int, int], tuple[int, int]]:
    """The margins above and beside the input, equal on both sides so that the centre is exactly the input; and the size
    of the wide crop."""
    pad_y, pad_x = (round(side * (cfg.margin - 1) / 2) for side in input_hw)
    return (pad_y, pad_x), (input_hw[0] + 2 * pad_y, input_hw[1] + 2 * pad_x)


def _wide_from_frame(
    sample: Sample, box_xyxy: F32 | None, cfg: CropConfig, schema: Schema, input_hw: tuple[int, int]
) -> F64:
    """The matrix of the wide crop of a sample."""
    card = ModelCard("crop", schema.name, input_hw, cfg.scale)
    pad_y, pad_x = _padded(input_hw, cfg)[0]
    region: Floats
    roll_rad = 0.0
    if cfg.source == "points" and np.isfinite(sample.points).all():
        region, roll_rad = sample.points, schema.roll_rad(sample.points) if cfg.level else 0.0
    elif box_xyxy is not None:
        region = box_xyxy
    else:
        region = sample.rect_xyxy
    try:
        return crop_from_frame(region, card, roll_rad) + np.array([[0.0, 0.0, pad_x], [0.0, 0.0, pad_y]])
    except ValueError as error:
        raise LineamentError(f"{sample.name}: {error}; `python -m train.data check` finds such rows") from error


def _boxes(path: Path, samples: Sequence[Sample]) -> list[F32 | None]:
    """Each sample's box: of the boxes in its picture that contain its centre, the nearest; None if there is none."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        found = defaultdict[str, list[_Box]](list)
        for row in rows:
            picture = Path(row["image"])
            found[picture.name].append(_Box(picture, np.array(row["box_xyxy"], np.float32).reshape(4)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LineamentError(
            f"cannot read boxes from {path}: {error}; make them with `python -m stream.label PICTURES --out {path}`"
        ) from error
    home = path.resolve().parent
    chosen = [_nearest(sample, found[sample.image_path.name], home) for sample in samples]
    if samples and all(box is None for box in chosen):
        raise LineamentError(
            f"none of the boxes in {path} contains a face of this data set; make them from its pictures with "
            f"`python -m stream.label PICTURES --out {path}`"
        )
    if missed := sum(box is None for box in chosen):
        log.info("%d of %d faces have no detected box in %s; using their rect", missed, len(samples), path)
    return chosen


class _Box(NamedTuple):
    picture: Path
    """as the list names it: relative to the list's folder, or absolute"""
    xyxy: F32


def _nearest(sample: Sample, boxes: Sequence[_Box], home: Path) -> F32 | None:
    """The box that contains a sample's centre. Its picture must match by path: names repeat between folders."""
    if np.isfinite(sample.points).all():
        middle = (sample.points.min(0) + sample.points.max(0)) / 2
    else:
        middle = (sample.rect_xyxy[:2] + sample.rect_xyxy[2:]) / 2
    name, path = Path(sample.name).parts, sample.image_path.resolve()
    inside = [
        box
        for picture, box in boxes
        if (box[:2] < middle).all()
        and (middle < box[2:]).all()
        # or by name: the data set may have moved since
        and (picture.parts[-len(name) :] == name or (home / picture).resolve() == path)
    ]
    return min(inside, key=lambda box: float(np.hypot(*((box[:2] + box[2:]) / 2 - middle))), default=None)
