"""Transforms that albumentations lacks: all geometry in one interpolation, and synthetic occlusions."""

from __future__ import annotations

from functools import cache
from math import cos, radians, sin
from typing import Any

import albumentations as A
import cv2
import numpy as np

from lineament.landmarks.geometry import apply, invert, warp
from lineament.landmarks.schema import Schema
from lineament.landmarks.types import F32, F64, U8
from lineament.train import glasses, worn
from lineament.train.augment_config import AugmentConfig


class Geometry(A.DualTransform):  # type: ignore[misc]
    """HorizontalFlip, Rotate, ShiftScaleRotate, ElasticTransform and CenterCrop in one interpolation.

    With nothing to do, or only to flip, the centre's pixels are taken as they are.
    """

    def __init__(self, cfg: AugmentConfig, schema: Schema, out_hw: tuple[int, int]) -> None:
        super().__init__(p=1.0)
        self._cfg, self._out_hw = cfg, out_hw
        self._mirrored = np.array(schema.flip)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Random parameters: flipped, the matrix out_from_wide, and the bend of the output or None."""
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
        """(H, W, 2) px: the output's pixel p shows the input at p + bend[p]."""
        height, width = self._out_hw
        knots = self._cfg.elastic_knots
        rough = self.random_generator.standard_normal((knots, knots, 2), np.float32)
        rough = np.clip(rough, -2, 2) * np.float32(self._cfg.elastic_strength) * np.array([width, height], np.float32)
        return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _bent(points: F32, bend: F32) -> F32:
    """Moved points (K, 2): the q with q + bend[q] = p. Outside of the picture, the bend of its edge applies."""
    bent = points
    for _ in range(12):
        # each iteration leaves less than 0.6 of the error, even at the steepest bend
        there = cv2.remap(bend, bent[None], None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        bent = points - np.asarray(there[0], np.float32)
    return bent


@cache
def _grid(hw: tuple[int, int]) -> F32:
    """(H, W, 2): each pixel's x, y."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    return np.stack([xs, ys], -1).astype(np.float32)


class Resize(A.Resize):  # type: ignore[misc]
    """albumentations' Resize with keypoints at pixel centres; its own ignores that a centre is not a corner."""

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
    """A factor per channel."""

    def __init__(self, gain: tuple[float, float], p: float) -> None:
        super().__init__(p=p)
        self._gain = gain

    def apply(self, img: U8, **params: Any) -> U8:
        gains = np.array([self.py_random.uniform(*self._gain) for _ in range(3)])
        levels = np.clip(np.arange(256)[:, None] * gains, 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(img, levels[None]), np.uint8)


class Duotone(A.ImageOnlyTransform):  # type: ignore[misc]
    """Blends in a gradient from one colour in the shadows to another in the highlights."""

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
    """Low light: darkens, adds the shot and read noise of a sensor, and partly brightens again."""

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
