"""Augmentation of training crops: geometry, occlusion, drawn glasses and masks, lighting, blur and compression.

    python -m train.augment preview --data DIR --out sheet.png
    python -m train.augment bench

Uses albumentations' transforms where they exist. All geometry, including flip and elastic deformation, is one map from
the wide crop to the input, because each interpolation blurs. Next comes what hides the face, then the effects of light,
lens and codec. Points follow the pixels exactly, may leave the picture, and keep their number and order.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import tyro

# otherwise it checks for a newer version online
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train.augment_config import ONE_OF, SWITCHES, AugmentConfig
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import read
from lineament.train.sheet import Tile, sheet
from lineament.train.transforms import (
    Cast,
    Dark,
    Duotone,
    Geometry,
    Glasses,
    LowResolution,
    Occlusion,
    Resize,
    Worn,
)

log = logging.getLogger(__name__)


class Augment:
    """Turns wide crops and their points into inputs and theirs. Can be pickled to worker processes."""

    def __init__(
        self, cfg: AugmentConfig, schema: Schema, input_hw: tuple[int, int], window_hw: tuple[int, int] | None = None
    ) -> None:
        """window_hw: size of the part of a wide crop that becomes the input, if it must be resized."""
        self._schema, self._input_hw = schema, input_hw
        window_hw = window_hw or input_hw
        steps: list[Any] = [Geometry(cfg, schema, window_hw)]
        if window_hw != input_hw:
            steps.append(Resize(*input_hw, area_for_downscale="image"))
        if (cfg.glasses or cfg.worn) and schema is not WFLW98:
            log.info("not drawing glasses, masks or caps: they need points of %s, got %s", WFLW98.name, schema.name)
        else:
            steps += [kind(p=p) for kind, p in ((Glasses, cfg.glasses), (Worn, cfg.worn)) if p]
        if cfg.occlusion:
            steps.append(Occlusion(cfg, p=cfg.occlusion))
        steps += _photometric(cfg)
        # points may lie outside the picture
        keypoints = A.KeypointParams("xys", remove_invisible=False, check_each_transform=False)
        self._compose = A.Compose(steps, keypoint_params=keypoints)

    def __call__(self, rgb: U8, points: F32, seed: int) -> tuple[U8, F32]:
        """rgb: (S, S, 3) uint8, points: (K, 2) px of it, or (K, 3) with a weight per point -> (height, width, 3), and
        its points in the same layout. Deterministic for a seed."""
        k, columns = len(self._schema), points.shape[-1]
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or points.shape not in ((k, 2), (k, 3)):
            raise ValueError(
                f"wanted (S, S, 3) uint8 and ({k}, 2) or ({k}, 3) points of {self._schema.name}, "
                f"got {rgb.shape} {rgb.dtype} and {points.shape}"
            )
        # one random stream: Compose.set_random_seed would seed all transforms alike, so that those of equal probability
        # would always be applied together
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # the keypoint's scale carries its weight
        weighted = points if columns == 3 else np.column_stack([points, np.ones(k)])
        done = self._compose(image=rgb, keypoints=np.asarray(weighted, np.float32))
        return np.asarray(done["image"], np.uint8), np.asarray(done["keypoints"], np.float32)[:, :columns]


def _photometric(cfg: AugmentConfig) -> list[Any]:
    """Transforms that change colours, not positions."""
    one_of: Mapping[str, Any] = {
        "gauss_noise": lambda p: A.GaussNoise(std_range=cfg.noise_std, p=p),
        "gauss_blur": lambda p: A.GaussianBlur(blur_limit=0, sigma_limit=cfg.blur_sigma_px, p=p),
        "blur": lambda p: A.Blur(blur_limit=(3, 5), p=p),
        # an off-centre or asymmetric kernel would shift the face relative to its points
        "motion_blur": lambda p: A.MotionBlur(
            (3, cfg.motion_px | 1), allow_shifted=False, direction_range=(0.0, 0.0), p=p
        ),
        "low_resolution": lambda p: LowResolution(cfg.resolution, p),
        "compression": lambda p: A.ImageCompression(quality_range=cfg.quality, p=p),
        "clahe": lambda p: A.CLAHE(clip_limit=(1.0, 4.0), p=p),
        "gamma": lambda p: A.RandomGamma(gamma_limit=cfg.gamma_percent, p=p),
        "posterize": lambda p: A.Posterize(num_bits=(3, 5), p=p),
    }
    steps: list[Any] = []
    if cfg.brightness_contrast:
        limits = {"brightness_limit": cfg.brightness_limit, "contrast_limit": cfg.contrast_limit}
        steps.append(A.RandomBrightnessContrast(**limits, p=cfg.brightness_contrast))
    if cfg.colour:
        steps.append(A.HueSaturationValue(12, 40, 0, p=cfg.colour))
    if cfg.cast:
        steps.append(Cast(cfg.cast_gain, p=cfg.cast))
    if cfg.duotone:
        steps.append(Duotone(p=cfg.duotone))
    if cfg.grey:
        steps.append(A.ToGray(p=cfg.grey))
    if cfg.dark:
        steps.append(Dark(cfg.dark_gain, p=cfg.dark))
    chosen = [one_of[name](p) for name in ONE_OF if (p := getattr(cfg, name))]
    if chosen:
        steps.append(A.OneOf(chosen, p=min(1.0, sum(step.p for step in chosen))))
    return steps


# ---- preview and benchmark


@dataclass(frozen=True)
class PreviewConfig:
    """Writes a sheet with one row per transform, applied alone and always, then rows with all of them as configured."""

    data: Path
    """Data set, as for `python -m train`."""
    out: Path = Path("augment.png")
    """Sheet to write, .png or .jpg."""
    schema: Literal["wflw98", "ibug68"] = "wflw98"
    """Schema of the points in the data."""
    input_px: int = 256
    """Side of the crop."""
    columns: int = 6
    """Faces per row."""
    seed: int = 0
    """Chooses the faces and the random parameters."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class BenchConfig:
    """Prints crops per second on one core, and the cost of each transform."""

    input_px: int = 256
    """Side of the crop."""
    margin: float = 1.5
    """Side of the wide crop over that of the crop."""
    seconds: float = 5.0
    """How long to time all transforms together; each one alone is timed for a sixteenth of this."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    commands: Any = Annotated[PreviewConfig, tyro.conf.subcommand("preview")]
    commands |= Annotated[BenchConfig, tyro.conf.subcommand("bench")]
    cfg = tyro.cli(commands, args=args, prog="python -m train.augment", description="Shows or times augmentation.")
    if isinstance(cfg, PreviewConfig):
        preview(cfg)
    else:
        bench(cfg)
    return 0


def preview(cfg: PreviewConfig) -> None:
    """Writes the sheet."""
    schema, hw = SCHEMAS[cfg.schema], (cfg.input_px, cfg.input_px)
    samples = read(cfg.data, "train", schema)
    if not samples:
        raise LineamentError(f"{cfg.data} has no faces to train on; check it with `python -m train.data check`")
    samples = random.Random(cfg.seed).sample(samples, min(cfg.columns, len(samples)))
    with TemporaryDirectory() as cache:
        crops = Crops(samples, hw, CropConfig(), schema, Path(cache))
        wide = [crops[i] for i in range(len(crops))]
    rows = [("off", AugmentConfig.off()), *((name, cfg.augment.only(name)) for name in SWITCHES)]
    rows += [("all, as configured", cfg.augment)] * 4
    tiles: list[Tile] = []
    for name, row in rows:
        augment = Augment(row, schema, hw)
        for crop, _ in zip(cycle(wide), range(cfg.columns)):
            tiles.append(Tile(*augment(crop.rgb, crop.points, 1000 * cfg.seed + len(tiles)), name))
    sheet(tiles, cfg.out, cfg.columns)
    print(f"wrote {cfg.out}: {len(SWITCHES)} transforms, {cfg.columns} examples each; check that points lie on faces")


def bench(cfg: BenchConfig) -> None:
    """Times augmentation on a synthetic picture, which costs the same as a real one."""
    cv2.setNumThreads(1)
    hw, wide_px = (cfg.input_px, cfg.input_px), round(cfg.margin * cfg.input_px)
    rough = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    rgb = np.asarray(cv2.resize(rough, (wide_px, wide_px), interpolation=cv2.INTER_CUBIC), np.uint8)
    face = mean_shape()[:, :2]
    points = ((face - face.mean(0)) / np.ptp(face, axis=0).max() * cfg.input_px / 1.3 + wide_px / 2).astype(np.float32)
    total_ms = _cost_ms(Augment(cfg.augment, WFLW98, hw), rgb, points, cfg.seconds)
    off_ms = _cost_ms(Augment(AugmentConfig.off(), WFLW98, hw), rgb, points, cfg.seconds / 16)
    print(f"{1e3 / total_ms:.0f} crops/s of {cfg.input_px} px on one core; with all transforms off {1e3 / off_ms:.0f}")
    print(f"{'':20}{'ms when applied':>20}{'probability':>14}{'ms on average':>16}")
    for name in SWITCHES:
        cost_ms = _cost_ms(Augment(cfg.augment.only(name), WFLW98, hw), rgb, points, cfg.seconds / 16) - off_ms
        share = getattr(cfg.augment, name)
        print(f"{name:20}{cost_ms:20.2f}{share:14.2f}{share * cost_ms:16.2f}")


def _cost_ms(augment: Augment, rgb: U8, points: F32, seconds: float) -> float:
    augment(rgb, points, 0)
    start, count = time.perf_counter(), 0
    while (taken_s := time.perf_counter() - start) < seconds:
        count += 1
        augment(rgb, points, count)
    return 1e3 * taken_s / max(1, count)


if __name__ == "__main__":
    sys.exit(main())
