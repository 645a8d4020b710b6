"""What a training step sees of a crop: turned, shifted, bent, partly hidden, behind glasses, badly lit, badly sent.

    python -m train.augment preview --data DIR --out sheet.png
    python -m train.augment bench

The transforms are albumentations' where it has them. All of geometry, flip and elastic bending too, is one map from the
wide crop to the input, because each interpolation blurs; then come things that hide the face, then what light, lens and
codec do to a picture. Points follow the pixels exactly, may leave the picture, and keep their number and order.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import cycle
from math import cos, radians, sin
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import tyro

# it would ask the internet for a newer version
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import apply, invert, warp
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema
from lineament.landmarks.types import F32, F64, U8, LineamentError
from lineament.train import glasses, worn
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import read
from lineament.train.sheet import Tile, sheet

log = logging.getLogger(__name__)

ONE_OF = (
    "gauss_noise",
    "gauss_blur",
    "blur",
    "motion_blur",
    "low_resolution",
    "compression",
    "clahe",
    "gamma",
    "posterize",
)
"""at most one of these happens to a crop"""
SWITCHES = (
    *("flip", "rotate", "shift_scale_rotate", "upside_down", "elastic", "occlusion", "glasses", "worn"),
    *("brightness_contrast", "colour", "cast", "duotone", "grey", "dark"),
    *ONE_OF,
)
"""the fields of AugmentConfig that are probabilities"""


@dataclass(frozen=True)
class AugmentConfig:
    """How often and how strongly. A field named after a transform is its probability; 0 switches it off."""

    flip: float = 0.5
    """Mirror, with left and right points exchanged: doubles the faces."""
    rotate: float = 0.6
    """Turn in the plane. Crops are levelled by the last points, which may be wrong or, for a new face, absent."""
    rotate_deg: float = 45.0
    """Farthest turn to either side."""
    shift_scale_rotate: float = 0.8
    """Move, zoom and turn a little, as a detector's box and a tracker's last points differ from the true ones."""
    shift: float = 0.08
    """Farthest move, as a share of the input's side."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Least and greatest zoom."""
    tilt_deg: float = 10.0
    """Farthest turn that comes with a move."""
    upside_down: float = 0.0
    """Turn by any angle at all, for people lying down and cameras on the ceiling; costs accuracy on upright faces."""
    elastic: float = 0.1
    """Bend smoothly: faces and grimaces that nobody has."""
    elastic_strength: float = 0.015
    """Spread of the bend's knots, as a share of the input's side."""
    elastic_knots: int = 5
    """Knots along a side; more is crinklier."""
    occlusion: float = 0.35
    """Cover parts with noise, a plain colour or another part of the picture: hands, microphones, people in front."""
    occlusion_patches: int = 3
    """Most patches at once."""
    occlusion_size: tuple[float, float] = (0.08, 0.4)
    """Sides of a patch, as shares of the input's."""
    glasses: float = 0.2
    """Put on glasses, which hide lids and brows behind rims, tints and glare. Only where the schema is wflw98."""
    worn: float = 0.15
    """Draw a mask, a cap, a hand or a microphone where people have them. Only where the schema is wflw98."""
    brightness_contrast: float = 0.4
    """Rooms at night, windows behind."""
    brightness_limit: float = 0.35
    """Greatest change, as a share of white."""
    contrast_limit: float = 0.35
    """Greatest change of the factor 1."""
    colour: float = 0.3
    """Other hue and saturation: lamps, screens, cheap white balance."""
    cast: float = 0.1
    """Weigh the channels: stage lights, sodium lamps, sunsets."""
    cast_gain: tuple[float, float] = (0.45, 1.5)
    """Least and greatest factor of a channel."""
    duotone: float = 0.05
    """Paint light and shade in two colours: screens in the dark, face paint, posters."""
    grey: float = 0.1
    """Drop colour: infrared cameras."""
    dark: float = 0.1
    """Little light and the noise that comes with it, brightened again by the camera or not."""
    dark_gain: tuple[float, float] = (0.08, 0.5)
    """Least and greatest share of the light that is left."""
    gauss_noise: float = 0.08
    """Sensor noise in the dark."""
    noise_std: tuple[float, float] = (0.01, 0.08)
    """Least and greatest spread, as shares of white."""
    gauss_blur: float = 0.06
    """Out of focus."""
    blur_sigma_px: tuple[float, float] = (0.5, 2.5)
    """Least and greatest."""
    blur: float = 0.03
    """Box blur: cheap scalers."""
    motion_blur: float = 0.08
    """A head that turns while the shutter is open."""
    motion_px: int = 11
    """Longest streak."""
    low_resolution: float = 0.18
    """Shrunk and blown up again: small faces of a wide frame."""
    resolution: tuple[float, float] = (0.12, 0.7)
    """Least and greatest share of the resolution that is left."""
    compression: float = 0.1
    """JPEG's blocks, as in a starved video stream."""
    quality: tuple[int, int] = (15, 70)
    """Least and greatest JPEG quality."""
    clahe: float = 0.04
    """Local contrast, as cameras with 'HDR' make it."""
    gamma: float = 0.08
    """Other curves from light to number."""
    gamma_percent: tuple[float, float] = (60.0, 160.0)
    """Least and greatest exponent times 100."""
    posterize: float = 0.03
    """Few grey levels: old codecs in the dark."""

    def __post_init__(self) -> None:
        for name in SWITCHES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is a probability, got {getattr(self, name)}; wanted 0 to 1")
        if (total := sum(getattr(self, name) for name in ONE_OF)) > 1 + 1e-6:
            raise ValueError(
                f"at most one of {', '.join(ONE_OF)} happens to a crop, but their probabilities add up to {total:.3f}; "
                "wanted at most 1"
            )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            low, high = value if isinstance(value, tuple) else (value, value)
            if not least <= low <= high <= most:
                raise ValueError(f"augment.{name} is {value}, wanted {least:g} to {most:g}, the lower first")

        if (steepness := self.elastic_strength * self.elastic_knots) > _STEEPEST:
            raise ValueError(
                f"augment.elastic_strength times elastic_knots is {steepness:.3f}: the picture would fold over itself; "
                f"wanted at most {_STEEPEST}"
            )

    @classmethod
    def off(cls) -> AugmentConfig:
        """Nothing happens: the wide crop's centre."""
        return cls().only()

    def only(self, *names: str) -> AugmentConfig:
        """Those always, nothing else; strengths as they are."""
        probabilities: dict[str, Any] = {name: float(name in names) for name in SWITCHES}
        return replace(self, **probabilities)

    def scaled(self, factor: float) -> AugmentConfig:
        """Every probability times factor, as far as it may go."""
        scaled: dict[str, Any] = {name: min(1.0, factor * getattr(self, name)) for name in SWITCHES}
        total = max(1.0, sum(scaled[name] for name in ONE_OF))
        return replace(self, **scaled | {name: scaled[name] / total for name in ONE_OF})


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("rotate_deg", 0, 180),
    ("shift", 0, 0.5),
    ("scale", 0.25, 4),
    ("tilt_deg", 0, 180),
    ("elastic_strength", 0, 0.15),
    ("elastic_knots", 1, 100),
    ("occlusion_patches", 1, 100),
    ("occlusion_size", 0.01, 1),
    ("brightness_limit", 0, 1),
    ("contrast_limit", 0, 1),
    ("noise_std", 0, 1),
    ("blur_sigma_px", 0.1, 20),
    ("motion_px", 3, 99),
    ("resolution", 0.05, 1),
    ("quality", 1, 100),
    ("gamma_percent", 10, 1000),
    ("cast_gain", 0, 4),
    ("dark_gain", 0.01, 1),
)
_STEEPEST = 0.15
"""neighbouring knots may differ by four times their spread, and the bend must stay below a pixel a pixel"""


class Augment:
    """Wide crops and their points in, inputs and their points out. Can be sent to worker processes."""

    def __init__(
        self, cfg: AugmentConfig, schema: Schema, input_hw: tuple[int, int], window_hw: tuple[int, int] | None = None
    ) -> None:
        """window_hw: how much of a wide crop becomes the input, where its pixels are not the input's: it is resized."""
        self._schema, self._input_hw = schema, input_hw
        window_hw = window_hw or input_hw
        steps: list[Any] = [Geometry(cfg, schema, window_hw)]
        if window_hw != input_hw:
            steps.append(Resize(*input_hw, area_for_downscale="image"))
        if (cfg.glasses or cfg.worn) and schema is not WFLW98:
            log.info("no glasses, masks or caps are drawn: they take points of %s, not %s", WFLW98.name, schema.name)
        else:
            steps += [kind(p=p) for kind, p in ((Glasses, cfg.glasses), (Worn, cfg.worn)) if p]
        if cfg.occlusion:
            steps.append(Occlusion(cfg, p=cfg.occlusion))
        steps += _photometric(cfg)
        # points may lie outside
        keypoints = A.KeypointParams("xys", remove_invisible=False, check_each_transform=False)
        self._compose = A.Compose(steps, keypoint_params=keypoints)

    def __call__(self, rgb: U8, points: F32, seed: int) -> tuple[U8, F32]:
        """rgb: (S, S, 3) uint8, points: (K, 2) px of it, or (K, 3) with a weight that stays with its point ->
        (height, width, 3), and points of that as they came. The same seed gives the same."""
        k, columns = len(self._schema), points.shape[-1]
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or points.shape not in ((k, 2), (k, 3)):
            raise ValueError(
                f"wanted (S, S, 3) uint8 and ({k}, 2) or ({k}, 3) points of {self._schema.name}, "
                f"got {rgb.shape} {rgb.dtype} and {points.shape}"
            )
        # one stream of numbers for all: Compose.set_random_seed would start each transform's own from the same seed, so
        # that all of equal probability happened together
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        # what albumentations calls a keypoint's scale is here its weight
        weighted = points if columns == 3 else np.column_stack([points, np.ones(k)])
        done = self._compose(image=rgb, keypoints=np.asarray(weighted, np.float32))
        return np.asarray(done["image"], np.uint8), np.asarray(done["keypoints"], np.float32)[:, :columns]


def _photometric(cfg: AugmentConfig) -> list[Any]:
    """What changes pixels where they are."""
    one_of: Mapping[str, Any] = {
        "gauss_noise": lambda p: A.GaussNoise(std_range=cfg.noise_std, p=p),
        "gauss_blur": lambda p: A.GaussianBlur(blur_limit=0, sigma_limit=cfg.blur_sigma_px, p=p),
        "blur": lambda p: A.Blur(blur_limit=(3, 5), p=p),
        # a kernel off its centre, or heavier at one end, would move the face away from its points
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


class Geometry(A.DualTransform):  # type: ignore[misc]
    """HorizontalFlip, Rotate, ShiftScaleRotate, ElasticTransform and CenterCrop in one interpolation.

    With nothing to do, or only to flip, the centre's pixels are taken as they are.
    """

    def __init__(self, cfg: AugmentConfig, schema: Schema, out_hw: tuple[int, int]) -> None:
        super().__init__(p=1.0)
        self._cfg, self._out_hw = cfg, out_hw
        self._mirrored = np.array(schema.flip)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Throws the dice: flipped, the matrix out_from_wide, and the bend of the output or None."""
        cfg, draw = self._cfg, self.py_random
        flipped = draw.random() < cfg.flip
        angle_deg, scale, shift_x, shift_y = 0.0, 1.0, 0.0, 0.0
        if draw.random() < cfg.rotate:
            angle_deg += draw.uniform(-cfg.rotate_deg, cfg.rotate_deg)
        if draw.random() < cfg.shift_scale_rotate:
            angle_deg += draw.uniform(-cfg.tilt_deg, cfg.tilt_deg)
            scale = draw.uniform(*cfg.scale)
            shift_x, shift_y = draw.uniform(-cfg.shift, cfg.shift), draw.uniform(-cfg.shift, cfg.shift)
        if draw.random() < cfg.upside_down:
            angle_deg += draw.uniform(-180.0, 180.0)
        wide_h, wide_w = params["shape"][:2]
        height, width = self._out_hw
        a, b = scale * cos(radians(angle_deg)), scale * sin(radians(angle_deg))
        linear = np.array([[-a if flipped else a, -b], [-b if flipped else b, a]])
        center = np.array([(width - 1) / 2 + shift_x * width, (height - 1) / 2 + shift_y * height])
        offset = center - linear @ ((wide_w - 1) / 2, (wide_h - 1) / 2)
        bend = self._bend() if draw.random() < cfg.elastic else None
        return {"flipped": flipped, "out_from_wide": np.column_stack([linear, offset]), "bend": bend}

    def apply(self, img: U8, flipped: bool, out_from_wide: F64, bend: F32 | None, **params: Any) -> U8:
        height, width = self._out_hw
        if bend is not None:
            # bent output px -> output px -> wide px
            (a, b, x), (c, d, y) = invert(out_from_wide).tolist()
            at = bend + _grid(self._out_hw)
            at_wide = np.stack([a * at[..., 0] + b * at[..., 1] + x, c * at[..., 0] + d * at[..., 1] + y], -1)
            bent = cv2.remap(img, at_wide.astype(np.float32), None, cv2.INTER_LINEAR)  # type: ignore[call-overload]
            return np.asarray(bent, np.uint8)
        (a, b, x), (c, d, y) = out_from_wide.tolist()
        left, top = round(x) - (width - 1) if flipped else round(-x), round(-y)
        plain = (abs(a), b, c, d) == (1, 0, 0, 1) and x == round(x) and y == round(y)
        if plain and 0 <= top <= img.shape[0] - height and 0 <= left <= img.shape[1] - width:
            window = img[top : top + height, left : left + width]
            # several times faster than a negative step in numpy
            return np.asarray(cv2.flip(window, 1), np.uint8) if flipped else np.array(window, np.uint8)
        return warp(img, out_from_wide, self._out_hw)

    def apply_to_keypoints(
        self, keypoints: F32, flipped: bool, out_from_wide: F64, bend: F32 | None, **params: Any
    ) -> F32:
        """keypoints: (K, 5), of which the first two columns are x, y."""
        moved = keypoints[self._mirrored] if flipped else keypoints.copy()
        points = apply(out_from_wide, moved[:, :2])
        moved[:, :2] = points if bend is None else _bent(points, bend)
        return moved

    def _bend(self) -> F32:
        """(H, W, 2) px: the output's pixel p shows what lay at p + bend[p]."""
        height, width = self._out_hw
        knots = self._cfg.elastic_knots
        rough = self.random_generator.standard_normal((knots, knots, 2), np.float32)
        rough = np.clip(rough, -2, 2) * np.float32(self._cfg.elastic_strength) * np.array([width, height], np.float32)
        return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _bent(points: F32, bend: F32) -> F32:
    """Where points (K, 2) come to lie: the q with q + bend[q] = p. Beyond the picture the bend is as at its edge."""
    bent = points
    for _ in range(12):
        # at the steepest each round leaves less than 0.6 of the error
        there = cv2.remap(bend, bent[None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        bent = points - np.asarray(there[0], np.float32)
    return bent


@cache
def _grid(hw: tuple[int, int]) -> F32:
    """(H, W, 2): each pixel's x, y."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    return np.stack([xs, ys], -1).astype(np.float32)


class Resize(A.Resize):  # type: ignore[misc]
    """albumentations' Resize, whose points forget that a pixel's centre is not its corner."""

    def apply_to_keypoints(self, keypoints: F32, **params: Any) -> F32:
        height, width = params["shape"][:2]
        moved = keypoints.copy()
        moved[:, :2] = (keypoints[:, :2] + 0.5) * (self.width / width, self.height / height) - 0.5
        return moved


class Glasses(A.ImageOnlyTransform):  # type: ignore[misc]
    """A random pair of train.glasses."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"points": data["keypoints"][:, :2].copy(), "style": glasses.random_style(self.py_random)}

    def apply(self, img: U8, points: F32, style: glasses.Style, **params: Any) -> U8:
        return glasses.draw(img, points, style)


class Worn(A.ImageOnlyTransform):  # type: ignore[misc]
    """One of train.worn."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {"points": data["keypoints"][:, :2].copy(), "kind": self.py_random.choice(worn.KINDS)}

    def apply(self, img: U8, points: F32, kind: worn.Kind, **params: Any) -> U8:
        return worn.draw(img, points, kind, self.py_random)


class Cast(A.ImageOnlyTransform):  # type: ignore[misc]
    """A factor a channel."""

    def __init__(self, gain: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self._gain = gain

    def apply(self, img: U8, **params: Any) -> U8:
        gains = np.array([self.py_random.uniform(*self._gain) for _ in range(3)])
        levels = np.clip(np.arange(256)[:, None] * gains, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(img, levels[None]), np.uint8)


class Duotone(A.ImageOnlyTransform):  # type: ignore[misc]
    """From one colour in the shade to another in the light, over what is left of the picture's own."""

    def apply(self, img: U8, **params: Any) -> U8:
        draw = self.py_random
        shade = np.array([draw.uniform(0, 110) for _ in range(3)])
        light = np.array([draw.uniform(value + 40, 255) for value in shade])
        share = np.linspace(0, 1, 256)[:, None]
        levels = (shade + (light - shade) * share).astype(np.uint8)
        grey = cv2.cvtColor(img, cv2.COLOR_RGB2GRAY)
        painted = cv2.LUT(cv2.merge([grey, grey, grey]), levels[None])
        alpha = draw.uniform(0.5, 1.0)
        return np.asarray(cv2.addWeighted(painted, alpha, img, 1 - alpha, 0), np.uint8)


class Dark(A.ImageOnlyTransform):  # type: ignore[misc]
    """Less light, the shot and read noise of a sensor at that light, then some of it brightened again."""

    def __init__(self, gain: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self._gain = gain

    def apply(self, img: U8, **params: Any) -> U8:
        draw = self.py_random
        gain = draw.uniform(*self._gain)
        light = img * np.float32(gain)
        spread = np.sqrt(light * np.float32(draw.uniform(0.0, 0.25)) + np.float32(draw.uniform(0.2, 2.0) ** 2))
        noisy = light + spread * self.random_generator.standard_normal(img.shape, np.float32)
        brighter = gain ** -draw.choice((0.0, draw.uniform(0.0, 0.9)))
        return np.asarray(np.clip(noisy * brighter, 0, 255), np.uint8)


class Occlusion(A.ImageOnlyTransform):  # type: ignore[misc]
    """Coarse dropout: turned rectangles and ellipses of noise, of one colour, or of another part of the picture."""

    def __init__(self, cfg: AugmentConfig, p: float) -> None:
        super().__init__(p=p)
        self._patches, self._size = cfg.occlusion_patches, cfg.occlusion_size

    def apply(self, img: U8, **params: Any) -> U8:
        covered = img.copy()
        for _ in range(self.py_random.randint(1, self._patches)):
            self._cover(covered, img)
        return covered

    def _cover(self, rgb: U8, before: U8) -> None:
        draw, (height, width) = self.py_random, rgb.shape[:2]
        center = (draw.uniform(0, width), draw.uniform(0, height))
        size = (draw.uniform(*self._size) * width, draw.uniform(*self._size) * height)
        turned = (center, size, draw.uniform(0, 180))
        x, y, w, h = cv2.boundingRect(cv2.boxPoints(turned))
        left, top, right, bottom = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
        if right <= left or bottom <= top:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        local = ((center[0] - left, center[1] - top), *turned[1:])
        if draw.random() < 0.5:
            cv2.ellipse(mask, local, (255,), cv2.FILLED)
        else:
            cv2.fillConvexPoly(mask, np.round(cv2.boxPoints(local)).astype(np.int32), (255,))
        part = rgb[top:bottom, left:right]
        part[:] = cv2.copyTo(self._filling(part.shape, before), mask, part.copy())

    def _filling(self, shape: tuple[int, ...], before: U8) -> U8:
        draw, (height, width) = self.py_random, shape[:2]
        match draw.choice(("noise", "plain", "elsewhere", "elsewhere")):
            case "noise":
                return self.random_generator.integers(0, 256, shape, np.uint8)
            case "plain":
                return np.full(shape, [draw.randrange(256) for _ in range(3)], np.uint8)
            case _:
                x, y = draw.randint(0, before.shape[1] - width), draw.randint(0, before.shape[0] - height)
                return before[y : y + height, x : x + width].copy()


class LowResolution(A.ImageOnlyTransform):  # type: ignore[misc]
    """Shrinks and blows up again. albumentations' Downscale rounds the small size, but maps by the unrounded factor: at
    the far edge the picture slips by more than a pixel from under its points."""

    def __init__(self, resolution: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self._resolution = resolution

    def apply(self, img: U8, **params: Any) -> U8:
        height, width = img.shape[:2]
        share = self.py_random.uniform(*self._resolution)
        small_wh = (max(1, round(width * share)), max(1, round(height * share)))
        small = cv2.resize(img, small_wh, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


# ---- to look at it, and to time it


@dataclass(frozen=True)
class PreviewConfig:
    """Writes a sheet with a row a transform, that one alone and always, then rows of all of them as they are set."""

    data: Path
    """A data set as for `python -m train`."""
    out: Path = Path("augment.png")
    """The sheet, .png or .jpg."""
    schema: Literal["wflw98", "ibug68"] = "wflw98"
    """Which points the data has."""
    input_px: int = 256
    """Side of the crop."""
    columns: int = 6
    """Faces a row."""
    seed: int = 0
    """Other faces, other dice."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass(frozen=True)
class BenchConfig:
    """Prints crops a second on one core, and what each transform costs."""

    input_px: int = 256
    """Side of the crop."""
    margin: float = 1.5
    """Side of the wide crop over the crop's."""
    seconds: float = 5.0
    """How long all of them together are timed; each alone for a sixteenth of that."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    commands: Any = Annotated[PreviewConfig, tyro.conf.subcommand("preview")]
    commands |= Annotated[BenchConfig, tyro.conf.subcommand("bench")]
    cfg = tyro.cli(commands, args=args, prog="python -m train.augment", description="Augmentation, seen and timed.")
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
        raise LineamentError(f"{cfg.data} holds no face to train on; wanted at least one")
    samples = random.Random(cfg.seed).sample(samples, min(cfg.columns, len(samples)))
    with TemporaryDirectory() as cache:
        crops = Crops(samples, hw, CropConfig(), schema, Path(cache))
        wide = [crops[i] for i in range(len(crops))]
    rows = [("off", AugmentConfig.off()), *((name, cfg.augment.only(name)) for name in SWITCHES)]
    rows += [("all, as set", cfg.augment)] * 4
    tiles: list[Tile] = []
    for name, row in rows:
        augment = Augment(row, schema, hw)
        for crop, _ in zip(cycle(wide), range(cfg.columns)):
            tiles.append(Tile(*augment(crop.rgb, crop.points, 1000 * cfg.seed + len(tiles)), name))
    sheet(tiles, cfg.out, cfg.columns)
    print(f"wrote {cfg.out}: {len(SWITCHES)} transforms, {cfg.columns} examples each; look whether points lie on faces")


def bench(cfg: BenchConfig) -> None:
    """Times it on a made-up picture, which costs what a real one does."""
    cv2.setNumThreads(1)
    hw, wide_px = (cfg.input_px, cfg.input_px), round(cfg.margin * cfg.input_px)
    rough = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    rgb = np.asarray(cv2.resize(rough, (wide_px, wide_px), interpolation=cv2.INTER_CUBIC), np.uint8)
    face = mean_shape()[:, :2]
    points = ((face - face.mean(0)) / np.ptp(face, axis=0).max() * cfg.input_px / 1.3 + wide_px / 2).astype(np.float32)
    total_ms = _cost_ms(Augment(cfg.augment, WFLW98, hw), rgb, points, cfg.seconds)
    off_ms = _cost_ms(Augment(AugmentConfig.off(), WFLW98, hw), rgb, points, cfg.seconds / 16)
    print(f"{1e3 / total_ms:.0f} crops/s of {cfg.input_px} px on one core; with all off {1e3 / off_ms:.0f}")
    print(f"{'':20}{'ms when it happens':>20}{'probability':>14}{'ms on average':>16}")
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
