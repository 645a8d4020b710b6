"""Synthetic glasses: frames, tinted lenses and glare, drawn on a face from its 98 points.

Rims are strong edges just where lids and brows are to be found, and tints and glare hide them; a model that has seen
few glasses follows the rims. A pair is a small model in three dimensions in the space of the mean face; an affine
camera fitted to the points puts it on this face, so it follows roll, yaw and pitch. numpy and cv2.

Spaces: `_face` is that of the mean face, x right, y down, z away from the camera, origin between the eyes, unit the
distance between the eyes' centres (about 62 mm); `_lens` is a lens in its own plane, x away from the nose, y down, its
edges at -1 and 1; `_px` is the picture.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, Floats

Shape = Literal["round", "rectangle", "wayfarer", "aviator"]
Rgb = tuple[int, int, int]

SMALLEST_PX = 10.0
"""least distance of the eyes; closer, glasses would be a smudge"""

_RIMS: tuple[Rgb, ...] = (
    (18, 18, 20),
    (30, 28, 30),
    (45, 40, 40),
    (70, 42, 24),
    (105, 66, 36),
    (90, 90, 95),
    (150, 150, 155),
    (176, 146, 88),
    (120, 25, 30),
    (30, 45, 95),
    (205, 195, 185),
)
"""mostly dark, then horn, steel, gold, colours and milky plastic"""
_TINTS: tuple[Rgb, ...] = ((18, 18, 20), (20, 22, 28), (50, 34, 20), (24, 36, 26), (22, 30, 56), (95, 60, 20))
_GLARES: tuple[Rgb, ...] = ((255, 255, 255), (245, 250, 255), (190, 215, 255), (200, 255, 215))
"""lamps, windows, screens, and the green of an anti-reflective coating"""
_FIXED_BITS = 4


class Glare(NamedTuple):
    """A reflection on one lens or both."""

    polygon_lens: F32
    """(n, 2), clipped at the edge of the lens"""
    rgb: Rgb
    alpha: float
    lenses: tuple[int, ...]
    """0 left, 1 right"""


@dataclass(frozen=True, slots=True)
class Style:
    """One pair of glasses. Lengths are in eye distances."""

    shape: Shape
    half_width: float
    half_height: float
    drop: float
    """offset of the lens centres below the eyes"""
    rim: float
    """thickness; 0 is rimless"""
    upper_rim_only: bool
    rim_rgb: Rgb
    lens_rgb: Rgb
    lens_alpha: float
    """0 clear, 1 opaque"""
    fade: float
    """share of lens_alpha lost towards the bottom"""
    glares: tuple[Glare, ...]


def random_style(rng: random.Random) -> Style:
    """A random pair: mostly clear lenses and dark rims, one in four are sunglasses."""
    shape: Shape = rng.choice(("round", "rectangle", "rectangle", "wayfarer", "wayfarer", "aviator"))
    width, height, drop = _SIZES[shape]
    grow = rng.uniform(0.9, 1.12)
    rim = rng.choice((rng.uniform(0.02, 0.04), rng.uniform(0.04, 0.09), rng.uniform(0.04, 0.09)))
    if shape == "aviator":
        rim = rng.uniform(0.02, 0.035)
    kind = rng.random()
    if kind < 0.25:
        tint, alpha, fade = rng.choice(_TINTS), rng.uniform(0.6, 0.97), rng.choice((0.0, rng.uniform(0.2, 0.6)))
    elif kind < 0.4:
        tint, alpha, fade = rng.choice(_TINTS), rng.uniform(0.12, 0.45), rng.choice((0.0, rng.uniform(0.3, 0.9)))
    else:
        tint, alpha, fade = (225, 232, 235), rng.uniform(0.0, 0.1), 0.0
    return Style(
        shape=shape,
        half_width=width * grow,
        half_height=height * grow * rng.uniform(0.92, 1.08),
        drop=drop + rng.uniform(-0.03, 0.05),
        rim=0.0 if rng.random() < 0.06 else rim,
        upper_rim_only=shape != "aviator" and rng.random() < 0.15,
        rim_rgb=rng.choice(_RIMS),
        lens_rgb=tint,
        lens_alpha=alpha,
        fade=fade,
        glares=tuple(_random_glare(rng) for _ in range(rng.choice((0, 0, 1, 1, 2)))),
    )


def draw(rgb: U8, points: F32, style: Style) -> U8:
    """A copy of rgb (H, W, 3) with the glasses on; rgb itself if they would be too small or outside of the picture.

    points: (98, 2) of WFLW98, px.
    """
    if points.shape != (len(WFLW98), 2):
        raise ValueError(f"glasses take {len(WFLW98)} points (98, 2) of {WFLW98.name}, got shape {points.shape}")
    camera = camera_of(points)
    # the vertical axis keeps its length when a face turns away
    eye_px = float(np.hypot(*camera[1]))
    if not SMALLEST_PX <= eye_px < np.inf:
        return rgb
    frame = _Frame(points, camera, style)
    canvas = Canvas(rgb, [*frame.outer_px, *frame.solid_px], eye_px)
    if canvas.empty:
        return rgb
    solid = canvas.mask(frame.solid_px)
    down = tuple(0.06 * camera[1])
    canvas.paint(canvas.soft(canvas.mask([polygon + down for polygon in frame.solid_px]), 0.05), (25, 15, 10), 0.3)
    glass = [canvas.mask([outline]) for outline in frame.outer_px]
    both = np.maximum(*glass)
    if style.lens_alpha > 0:
        canvas.paint(canvas.faded(both, frame.top_px, frame.bottom_px, style.fade), style.lens_rgb, style.lens_alpha)
    for glare in style.glares:
        for side in glare.lenses:
            shine = canvas.soft(canvas.mask([frame.on_lens(side, glare.polygon_lens)]), 0.03)
            canvas.paint(np.minimum(shine, glass[side]), glare.rgb, glare.alpha, lit=False)
    if style.rim == 0:
        canvas.paint(canvas.mask(frame.edge_px), (235, 240, 245), 0.3)
    canvas.paint(solid, style.rim_rgb, 0.97)
    if style.rim >= 0.03:
        lighter = [min(255, round(70 + 0.75 * value)) for value in style.rim_rgb]
        canvas.paint(np.minimum(canvas.soft(canvas.mask(frame.shine_px), 0.008), solid), lighter, 0.5)
    canvas.uncover(frame.nose_px)
    return canvas.rgb


# ---- the model


_SIZES: dict[Shape, tuple[float, float, float]] = {
    "round": (0.355, 0.355, 0.06),
    "rectangle": (0.41, 0.255, 0.05),
    "wayfarer": (0.41, 0.325, 0.06),
    "aviator": (0.435, 0.385, 0.14),
}
"""half width, half height and drop of a common pair"""
_BRIDGE = 0.15
"""half the gap between the lenses"""
_STAND_OFF = -0.19
"""z of the bridge: lenses sit 12 mm before the eyes"""


@cache
def _outline(shape: Shape) -> F64:
    """(n, 2) of a lens, from the outer end along the bottom to the inner one, and back along the top."""
    angle = np.linspace(0, 2 * np.pi, 56, endpoint=False)
    roundness = {"round": 2.0, "rectangle": 5.0, "wayfarer": 3.6, "aviator": 2.5}[shape]
    x, y = (np.sign(wave) * np.abs(wave) ** (2 / roundness) for wave in (np.cos(angle), np.sin(angle)))
    if shape == "wayfarer":
        # wide above, its outer corner drawn up
        return np.column_stack([x * (1 - 0.1 * y), y - 0.12 * np.maximum(x, 0) ** 2 * (y < 0)])
    if shape == "aviator":
        # flat above, hanging outward below
        return np.column_stack([x * (1 - 0.12 * y) + 0.06 * np.maximum(y, 0), np.where(y < 0, 0.85 * y, y)])
    return np.column_stack([x, y])


@cache
def _solve() -> tuple[list[int], F64]:
    """Indices (n,) of points that are rigid on the skull, and the (4, n) matrix that fits a camera to them."""
    rigid = [i for part in ("left_eye", "right_eye", "nose_ridge", "nose_base") for i in WFLW98.parts[part]]
    rigid += [WFLW98.parts[brow][i] for brow in ("left_brow", "right_brow") for i in (0, 4)]
    shape = mean_shape()
    left, right = (shape[list(WFLW98.parts[eye])].mean(0) for eye in ("left_eye", "right_eye"))
    face = (shape - (left + right) / 2) / np.hypot(*(right - left)[:2])
    weight = np.ones(len(rigid))
    # lenses must be centred on these
    weight[:16] = 2.0
    homogeneous = np.column_stack([face[rigid], np.ones(len(rigid))])
    return rigid, np.asarray(np.linalg.pinv(homogeneous * weight[:, None]) * weight, np.float64)


def camera_of(points: F32) -> F64:
    """(4, 2): [x y z 1]_face @ camera = px."""
    rigid, solve = _solve()
    return np.asarray(solve @ points[rigid].astype(np.float64), np.float64)


class _Frame:
    """The polygons of one pair on one face, px."""

    def __init__(self, points: F32, camera: F64, style: Style) -> None:
        self._camera, self._style = camera, style
        outline = _outline(style.shape)
        rim_x, rim_y = (max(0.0, 1 - 2 * style.rim / (2 * half)) for half in (style.half_width, style.half_height))
        inner = outline * (rim_x, rim_y)
        # the second half, from the inner end along the top and back to the start
        over = [*range(len(outline) // 2, len(outline)), 0]
        self.outer_px = [self.on_lens(side, outline) for side in (0, 1)]
        self.solid_px: list[F64] = []
        self.shine_px: list[F64] = []
        self.edge_px: list[F64] = []
        for side in (0, 1):
            if style.upper_rim_only:
                bow = np.concatenate([outline[over], inner[over][::-1]])
                self.solid_px.append(self.on_lens(side, bow))
            else:
                self.solid_px.append(_ring(self.on_lens(side, outline), self.on_lens(side, inner)))
            self.edge_px.append(_ring(self.on_lens(side, outline), self.on_lens(side, outline * 0.95)))
            glint = outline[(outline[:, 1] < -0.3) & (outline[:, 0] < 0.75)] * ((rim_x + 1) / 2, (rim_y + 1) / 2)
            thin = glint * (1, 1 - 0.25 * style.rim / style.half_height)
            self.shine_px.append(self.on_lens(side, np.concatenate([glint, thin[::-1]])))
        self.solid_px += [self._bridge(), *self._temples(points)]
        self.top_px = self._project(np.array([[0.0, style.drop - style.half_height, _STAND_OFF]]))[0]
        self.bottom_px = self._project(np.array([[0.0, style.drop + style.half_height, _STAND_OFF]]))[0]
        self.nose_px = [_nose(points)]

    def on_lens(self, side: int, points_lens: Floats) -> F64:
        """(n, 2) of a lens -> (n, 2) px. side: 0 left, 1 right."""
        style = self._style
        x_lens, y_lens = np.asarray(points_lens, np.float64).T
        x = _BRIDGE + style.half_width * (1 + x_lens)
        y = style.drop + style.half_height * y_lens
        return self._project(np.column_stack([x if side else -x, y, self._depth(x, y)]))

    def _depth(self, x: F64, y: F64) -> F64:
        """z of the front: wrapped round the face, its lower edge nearer to the cheeks."""
        return np.asarray(_STAND_OFF + 0.22 * x**2 + 0.1 * y, np.float64)

    def _project(self, points_face: F64) -> F64:
        return np.asarray(points_face @ self._camera[:3] + self._camera[3], np.float64)

    def _bridge(self) -> F64:
        """A bow over the nose between the lenses' inner ends; two thin bars would be no more than noise."""
        style = self._style
        thick = max(style.rim * 1.1, 0.028)
        x = np.linspace(-1, 1, 9) * (_BRIDGE + 0.05)
        y = style.drop - 0.38 * style.half_height - 0.05 * (1 - (x / x[-1]) ** 2)
        z = self._depth(x, y) - 0.03
        upper, lower = (np.column_stack([x, y + off, z]) for off in (-thick / 2, thick / 2))
        return self._project(np.concatenate([upper, lower[::-1]]))

    def _temples(self, points: F32) -> list[F64]:
        """From the hinges back to the ears, where the contour begins. The head hides one that runs inward."""
        style = self._style
        thick = max(style.rim * 1.1, 0.035)
        contour = points[list(WFLW98.parts["contour"])].astype(np.float64)
        across = self._camera[0] / np.hypot(*self._camera[0])
        found = []
        for side, ear_px in ((0, contour[0]), (1, contour[-1])):
            x = _BRIDGE + style.half_width * 1.96
            y = style.drop - 0.42 * style.half_height
            hinge = np.array([x if side else -x, y, self._depth(np.array(x), np.array(y))])
            up, low = self._project(hinge + np.array([[0, -thick / 2, 0], [0, thick / 2, 0]]))
            ear_px = ear_px - 0.1 * self._camera[1]
            reach = (ear_px - up) @ across * (1 if side else -1)
            if reach > 0.05 * np.hypot(*self._camera[1]):
                narrow = 0.35 * (low - up)
                found.append(np.array([up, low, ear_px + narrow, ear_px - narrow]))
        return found


def _ring(outer: F64, inner: F64) -> F64:
    """One polygon: the outline, then the inside in reverse."""
    return np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])


def _nose(points: F32) -> F64:
    """The hull of the nose below the bridge: in a face turned away it occludes the far lens."""
    ridge, base = (WFLW98.parts[part] for part in ("nose_ridge", "nose_base"))
    seen = points[[*ridge[1:], *base]]
    return np.asarray(cv2.convexHull(seen.astype(np.float32))[:, 0], np.float64)


def _random_glare(rng: random.Random) -> Glare:
    """A slanted streak, or the picture of a window or a screen."""
    lenses = rng.choice(((0,), (1,), (0, 1), (0, 1)))
    rgb, alpha = rng.choice(_GLARES), rng.uniform(0.2, 0.75)
    x, y = rng.uniform(-0.6, 0.6), rng.uniform(-0.6, 0.3)
    if rng.random() < 0.6:
        slant, wide = rng.uniform(-0.9, 0.9), rng.uniform(0.06, 0.35)
        polygon = [(x + slant - wide, -1.2), (x + slant + wide, -1.2), (x - slant + wide, 1.2), (x - slant - wide, 1.2)]
    else:
        wide, high, skew = rng.uniform(0.12, 0.4), rng.uniform(0.12, 0.35), rng.uniform(-0.2, 0.2)
        polygon = [(x - wide, y - high), (x + wide, y - high + skew), (x + wide, y + high), (x - wide, y + high + skew)]
    return Glare(np.array(polygon, np.float32), rgb, alpha, lenses)


# ---- paint


class Canvas:
    """The part of a picture that the glasses can touch, and masks (H, W) 0..255 uint8 of that size."""

    def __init__(self, rgb: U8, polygons_px: list[F64], eye_px: float) -> None:
        height, width = rgb.shape[:2]
        everything = np.concatenate(polygons_px)
        # margin for the shadow
        pad = 0.2 * eye_px
        low = np.clip(np.floor(everything.min(0) - pad), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(everything.max(0) + pad), 0, (width, height)).astype(int)
        self.empty = bool((high - low < 2).any())
        self._low, self._eye_px = low, eye_px
        self.rgb = rgb if self.empty else rgb.copy()
        self._before = rgb[low[1] : high[1], low[0] : high[0]]
        self._part = self.rgb[low[1] : high[1], low[0] : high[0]]
        # plastic is no brighter than the light on the face
        self._light = 1.0 if self.empty else min(1.1, 0.25 + float(self._before.mean()) / 130)

    def mask(self, polygons_px: list[F64]) -> U8:
        """Each filled, edges anti-aliased."""
        mask = np.zeros(self._part.shape[:2], np.uint8)
        for polygon in polygons_px:
            fixed = np.round(np.clip(polygon - self._low, -4096, 4096) * (1 << _FIXED_BITS)).astype(np.int32)
            cv2.fillPoly(mask, [fixed], (255,), cv2.LINE_AA, _FIXED_BITS)
        return mask

    def soft(self, mask: U8, sigma: float) -> U8:
        """Blurred by sigma eye distances."""
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(0.3, sigma * self._eye_px)), np.uint8)

    def faded(self, mask: U8, top_px: F64, bottom_px: F64, fade: float) -> U8:
        """Weaker from top to bottom by the share `fade`."""
        if fade == 0:
            return mask
        ys, xs = np.mgrid[: mask.shape[0], : mask.shape[1]]
        axis = bottom_px - top_px
        start = top_px - self._low
        along = ((xs - start[0]) * axis[0] + (ys - start[1]) * axis[1]) / max(1e-6, float(axis @ axis))
        return np.asarray(mask * (1 - fade * np.clip(along, 0, 1)), np.uint8)

    def paint(self, mask: U8, rgb: Sequence[int], alpha: float, lit: bool = True) -> None:
        """Blends a colour over the picture. lit: scaled by the picture's brightness, unlike a reflection."""
        light = self._light if lit else 1.0
        # integers in OpenCV: several times faster than floats in numpy, and accurate to half a grey level
        share = cv2.convertScaleAbs(mask, alpha=alpha)
        over = cv2.merge([cv2.convertScaleAbs(share, alpha=min(1.0, light * value / 255)) for value in rgb])
        self._part[:] = cv2.add(_times(self._part, cv2.bitwise_not(share)), over)

    def uncover(self, polygons_px: list[F64]) -> None:
        """Restores the original picture."""
        share = self.mask(polygons_px)
        self._part[:] = cv2.add(_times(self._part, cv2.bitwise_not(share)), _times(self._before, share))


def _times(rgb: U8, share: Any) -> Any:
    """rgb (H, W, 3) times share (H, W), 255 being one."""
    return cv2.multiply(rgb, cv2.merge([share, share, share]), scale=1 / 255)
