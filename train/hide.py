"""Hides a part of a face, and says which of its points are still seen: the targets of train.visibility.

    rgb, visible = hide(rgb, points, other_rgb, random.Random(0))

What hides is drawn: glasses (train.glasses), masks, caps, hands and microphones (train.worn), and patches of any shape,
up to half of the picture. How much of the face shows through is measured, not guessed: the same object drawn on two
opposite pictures leaves their difference where it is clear, and none where it is opaque.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8
from lineament.train import glasses, worn

_AROUND = 0.02
"""radius of what is looked at round a point, in sides of the picture"""
_CHANCE = {"nothing": 0.25, "glasses": 0.35, "worn": 0.3, "patch": 0.5}
_SUNGLASSES, _OVER_EYES = 0.5, 0.25
"""of the glasses, with lenses that nothing shines through; of the patches, on the eyes"""

Draw = Callable[[U8], U8]
"""draws one object; the same object however often it is called"""


def hide(rgb: U8, points: F32, other_rgb: U8, rng: random.Random) -> tuple[U8, F32]:
    """rgb: (H, W, 3). points: (98, 2) of WFLW98, px. other_rgb: a picture to cut patches from.

    Returns a copy with up to three objects on it, and how much of each point is seen, (98,) 0..1; 0 for one outside
    the picture.
    """
    height, width = rgb.shape[:2]
    clear = np.ones((height, width), np.float32)
    if rng.random() > _CHANCE["nothing"]:
        for draw in _objects(rgb, points, other_rgb, rng):
            clear *= clarity(draw, (height, width))
            rgb = draw(rgb)
    x, y = np.round(points.T).astype(int)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    visible = np.zeros(len(points), np.float32)
    visible[inside] = clear[y[inside], x[inside]]
    return rgb, visible


def _objects(rgb: U8, points: F32, other_rgb: U8, rng: random.Random) -> list[Draw]:
    """At random; in the order in which they lie on the face."""
    objects: list[Draw] = []
    if rng.random() < _CHANCE["glasses"]:
        style = glasses.random_style(rng)
        if rng.random() < _SUNGLASSES:
            colour = rng.choice(
                (style.lens_rgb, (8, 8, 8), (rng.randrange(256), rng.randrange(256), rng.randrange(256)))
            )
            style = replace(style, lens_rgb=colour, lens_alpha=rng.uniform(0.9, 1.0), fade=rng.choice((0.0, 0.0, 0.3)))
        objects.append(lambda picture: glasses.draw(picture, points, style))
    if rng.random() < _CHANCE["worn"]:
        kind, seed = rng.choice(worn.KINDS), rng.random()
        objects.append(lambda picture: worn.draw(picture, points, kind, random.Random(seed)))
    if rng.random() < _CHANCE["patch"]:
        over_eyes = rng.random() < _OVER_EYES
        mask = _over_eyes(rgb.shape[:2], points, rng) if over_eyes else _shape(rgb.shape[:2], rng)
        filling = _filling(rgb, other_rgb, rng)
        objects.append(lambda picture: _blended(picture, filling, mask))
    return objects


def clarity(draw: Draw, hw: tuple[int, int]) -> F32:
    """(H, W) 0..1: how much of a picture shows through what is drawn on it, on average round each pixel."""
    # black, grey and white in turn: mean and median are those of the opposite picture wherever one looks, because an
    # object is drawn in the light of its surroundings, and a hand in the colour of the skin
    one = np.ascontiguousarray((np.indices(hw).sum(0) % 3 * 127)[..., None].repeat(3, 2), np.uint8)
    other = np.asarray(254 - one, np.uint8)
    side = 2 * max(1, round(_AROUND * hw[1])) + 1
    before, after = (
        cv2.blur(cv2.absdiff(a, b).mean(2), (side, side)) for a, b in ((one, other), (draw(one), draw(other)))
    )
    return np.asarray(np.clip(after / before, 0, 1), np.float32)


def _shape(hw: tuple[int, int], rng: random.Random) -> U8:
    """(H, W) 0 or 255: a half of the picture, a rectangle, an ellipse or a blob."""
    height, width = hw
    mask = np.zeros(hw, np.uint8)
    center = (rng.uniform(0, width), rng.uniform(0, height))
    size = (rng.uniform(0.1, 0.6) * width, rng.uniform(0.1, 0.6) * height)
    turned = (center, size, rng.uniform(0, 180))
    match rng.choice(("half", "rectangle", "ellipse", "blob")):
        case "half":
            angle, away = rng.choice((0.0, 90.0, 180.0, 270.0)) + rng.gauss(0, 8), rng.uniform(-0.05, 0.35) * width
            along = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            middle = np.array([width, height]) / 2 + along * (away + width)
            half = ((float(middle[0]), float(middle[1])), (2.0 * width, 3.0 * height), angle)
            cv2.fillConvexPoly(mask, np.round(cv2.boxPoints(half)).astype(np.int32), (255,))
        case "rectangle":
            cv2.fillConvexPoly(mask, np.round(cv2.boxPoints(turned)).astype(np.int32), (255,))
        case "ellipse":
            cv2.ellipse(mask, turned, (255,), cv2.FILLED)
        case _:
            angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            reach = np.array([rng.uniform(0.4, 1.2) for _ in angles])[:, None] * np.array(size) / 2
            outline = np.array(center) + reach * np.column_stack([np.cos(angles), np.sin(angles)])
            cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], (255,))
            mask = np.asarray(cv2.threshold(cv2.GaussianBlur(mask, (0, 0), 0.03 * width), 127, 255, 0)[1], np.uint8)
    return mask


def _over_eyes(hw: tuple[int, int], points: F32, rng: random.Random) -> U8:
    """(H, W) 0 or 255: a disc on one eye or both, or a bar across."""
    mask = np.zeros(hw, np.uint8)
    left, right = (WFLW98.part(eye, points).mean(0) for eye in ("left_eye", "right_eye"))
    roll_deg, apart = np.degrees(WFLW98.roll_rad(points)), float(np.hypot(*(right - left)))
    high = rng.uniform(0.3, 0.8) * apart
    if rng.random() < 0.4:
        x, y = (left + right).tolist()
        bar = ((x / 2, y / 2), (rng.uniform(1.6, 2.4) * apart, high), float(roll_deg))
        cv2.fillConvexPoly(mask, np.round(cv2.boxPoints(bar)).astype(np.int32), (255,))
        return mask
    for x, y in rng.choice(((left,), (right,), (left, right), (left, right), (left, right))):
        disc = ((float(x), float(y)), (rng.uniform(0.9, 1.4) * high + 0.2 * apart, high), float(roll_deg))
        cv2.ellipse(mask, disc, (255,), cv2.FILLED)
    return mask


def _filling(rgb: U8, other_rgb: U8, rng: random.Random) -> U8:
    """A picture of the size of rgb: one colour, a gradient, noise, another picture, or rgb itself from elsewhere."""
    height, width = rgb.shape[:2]
    colours = np.array([[rng.randrange(256) for _ in range(3)] for _ in range(2)], np.float32)
    match rng.choice(("plain", "plain", "gradient", "noise", "other", "other", "other", "moved")):
        case "plain":
            return np.full(rgb.shape, rng.choice((colours[0], [0, 0, 0], [rng.randrange(256)] * 3)), np.uint8)
        case "gradient":
            share = np.linspace(0, 1, height)[:, None, None]
            return np.asarray((colours[0] * (1 - share) + colours[1] * share).repeat(width, 1), np.uint8)
        case "noise":
            coarse = rng.choice((4, 8, 16, 64))
            noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (coarse, coarse, 3), np.uint8)
            return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
        case "other":
            turned = cv2.rotate(other_rgb, rng.choice((0, 1, 2)))
            return np.asarray(cv2.resize(turned, (width, height)), np.uint8)
        case _:
            return np.asarray(np.roll(rgb, (rng.randrange(height), rng.randrange(width)), (0, 1)), np.uint8)


def _blended(rgb: U8, over: U8, mask: U8) -> U8:
    return np.asarray(np.where(mask[..., None] > 127, over, rgb), np.uint8)
