"""Synthetic occlusions: masks, caps, hands and microphones, drawn on a face from its 98 points.

Each leaves the points where they are: the label says where the mouth is behind the mask. Everything is laid out in the
space of the mean face (see train.glasses) and put on this face by the same camera, so it follows roll, yaw and pitch.

Spaces: `_face` is that of the mean face, x right, y down, z away from the camera, origin between the eyes, unit the
distance between the eyes' centres; `_px` is the picture.
"""

from __future__ import annotations

import random
from typing import Literal, get_args

import cv2
import numpy as np

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8
from lineament.train.glasses import SMALLEST_PX, Canvas, Rgb, camera_of

Kind = Literal["mask", "cap", "hand", "microphone"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_CLOTH: tuple[Rgb, ...] = (
    (235, 238, 240),
    (120, 170, 205),
    (150, 195, 215),
    (25, 25, 28),
    (60, 62, 70),
    (40, 60, 110),
    (150, 40, 45),
    (200, 170, 140),
    (90, 120, 80),
)
_FINGER, _STICK = (1.3, 2.5), (1.5, 3.0)
"""least and greatest length, in eye distances"""


def draw(rgb: U8, points: F32, kind: Kind, rng: random.Random) -> U8:
    """A copy of rgb (H, W, 3) with the object; rgb itself if it would be too small or outside of the picture.

    points: (98, 2) of WFLW98, px.
    """
    camera = camera_of(points)
    eye_px = float(np.hypot(*camera[1]))
    if not SMALLEST_PX <= eye_px < np.inf:
        return rgb
    match kind:
        case "mask":
            return _mask(rgb, points, camera, eye_px, rng)
        case "cap":
            return _cap(rgb, camera, eye_px, rng)
        case "hand":
            return _hand(rgb, points, camera, eye_px, rng)
        case "microphone":
            return _microphone(rgb, camera, eye_px, rng)


def _project(camera: F64, points_face: F64) -> F64:
    return np.asarray(points_face @ camera[:3] + camera[3], np.float64)


def _mask(rgb: U8, points: F32, camera: F64, eye_px: float, rng: random.Random) -> U8:
    """A mask from the nose ridge along the cheeks to below the chin, with folds and, mostly, straps to the ears."""
    contour = points[list(WFLW98.parts["contour"])].astype(np.float64)
    first = rng.randint(5, 9)
    jaw = contour[first : 33 - first]
    # cloth stands off the skin
    jaw = jaw + rng.uniform(0.02, 0.1) * (jaw - contour.mean(0))
    nose = points[WFLW98.parts["nose_ridge"][rng.randint(0, 2)]].astype(np.float64)
    corners = [points[WFLW98.parts[eye][4]].astype(np.float64) for eye in ("left_eye", "right_eye")]
    drop = rng.uniform(0.25, 0.55) * camera[1]
    cheeks = [(jaw[0] + corners[0]) / 2 + drop * 0.7, (jaw[-1] + corners[1]) / 2 + drop * 0.7]
    outline = np.concatenate([jaw, [cheeks[1], nose + 0.25 * drop, cheeks[0]]])
    straps = []
    if rng.random() < 0.7:
        thick = rng.uniform(0.03, 0.06) * camera[1]
        for at, ear in ((jaw[0], contour[0]), (jaw[-1], contour[-1])):
            straps.append(np.array([at, at + thick, ear + thick, ear]))
    canvas = Canvas(rgb, [outline, *straps], eye_px)
    if canvas.empty:
        return rgb
    colour = rng.choice(_CLOTH)
    cloth = canvas.mask([outline])
    canvas.paint(canvas.soft(canvas.mask([outline + 0.05 * camera[1]]), 0.05), (25, 15, 10), 0.3)
    canvas.paint(canvas.mask(straps), colour, 0.9)
    canvas.paint(cloth, colour, rng.uniform(0.93, 1.0))
    sag = 0.12 * np.sin(np.linspace(0, np.pi, 9))[:, None] * camera[1]
    for share in np.linspace(0.2, 0.7, rng.choice((0, 1, 3, 4))):
        fold = np.linspace(jaw[0], jaw[-1], 9) + sag + share * camera[1]
        line = np.concatenate([fold, (fold + 0.03 * camera[1])[::-1]])
        canvas.paint(np.minimum(canvas.mask([line]), cloth), [round(0.75 * value) for value in colour], 0.7)
    # keeps the shading of the face
    shade = canvas.soft(cloth, 0.25)
    canvas.paint(np.minimum(cv2.bitwise_not(shade), cloth), [round(0.6 * value) for value in colour], 0.5)
    return canvas.rgb


def _cap(rgb: U8, camera: F64, eye_px: float, rng: random.Random) -> U8:
    """A cap over the forehead, with or without a brim, down to above the eyes."""
    low = -rng.uniform(0.3, 0.75)
    angle = np.linspace(0, np.pi, 24)
    half = rng.uniform(1.15, 1.35)
    back = 0.25 + 0.9 * (1 - np.sin(angle))
    rim = np.column_stack([-half * np.cos(angle), np.full(24, low) - 0.12 * np.sin(angle), back])
    crown = np.column_stack([-1.05 * half * np.cos(angle), low - (0.9 + rng.random()) * np.sin(angle), back])
    shape = _project(camera, np.concatenate([rim, crown[::-1]]))
    brims = []
    if rng.random() < 0.6:
        ahead = rng.uniform(0.5, 1.0)
        bow = np.column_stack(
            [-0.95 * half * np.cos(angle), low + rng.uniform(-0.05, 0.3) * np.sin(angle), back - ahead * np.sin(angle)]
        )
        brims = [_project(camera, np.concatenate([rim, bow[::-1]]))]
    canvas = Canvas(rgb, [shape, *brims], eye_px)
    if canvas.empty:
        return rgb
    colour = rng.choice(_CLOTH)
    shadow = canvas.mask([polygon + 0.15 * camera[1] for polygon in brims or [shape]])
    canvas.paint(canvas.soft(shadow, 0.15), (20, 15, 12), 0.5)
    canvas.paint(canvas.mask([shape]), colour, 0.97)
    canvas.paint(canvas.mask(brims), [round(0.7 * value) for value in colour], 0.97)
    return canvas.rgb


def _hand(rgb: U8, points: F32, camera: F64, eye_px: float, rng: random.Random) -> U8:
    """Fingers side by side in the face's skin colour, from beyond its edge onto it."""
    part = rng.choice(("outer_lips", "contour", "left_eye", "right_eye", "nose_base", "left_brow", "right_brow"))
    tip = points[rng.choice(WFLW98.parts[part])].astype(np.float64)
    angle = rng.uniform(0, 2 * np.pi)
    along, across = (np.array([np.cos(a), np.sin(a)]) for a in (angle, angle + np.pi / 2))
    width = rng.uniform(0.24, 0.36) * eye_px
    fingers = []
    for i in range(rng.choice((1, 2, 3, 4, 4))):
        start = tip + across * width * (i - 1.5) * 1.02 + along * width * rng.uniform(-0.6, 0.6)
        fingers.append(_rounded_bar(start, start + along * rng.uniform(*_FINGER) * eye_px, width))
    palm = _rounded_bar(tip + along * 1.6 * eye_px, tip + along * 4.0 * eye_px, 4.4 * width)
    canvas = Canvas(rgb, [*fingers, palm], eye_px)
    if canvas.empty:
        return rgb
    skin = _skin(rgb, points)
    canvas.paint(canvas.soft(canvas.mask([f + 0.06 * camera[1] for f in fingers]), 0.08), (30, 18, 12), 0.4)
    canvas.paint(canvas.mask([palm]), skin, 0.97, lit=False)
    for finger in fingers:
        mask = canvas.mask([finger])
        tone = rng.uniform(0.92, 1.06)
        canvas.paint(mask, [min(255, round(tone * value)) for value in skin], 0.97, lit=False)
        edge = cv2.subtract(mask, canvas.soft(mask, 0.09))
        canvas.paint(np.asarray(edge, np.uint8), [round(0.55 * value) for value in skin], 0.8, lit=False)
    return canvas.rgb


def _microphone(rgb: U8, camera: F64, eye_px: float, rng: random.Random) -> U8:
    """A microphone with a foam or metal head in front of mouth or chin, and its handle."""
    head = _project(camera, np.array([[rng.uniform(-0.5, 0.5), rng.uniform(1.0, 2.0), -0.5]]))[0]
    away = rng.uniform(0.25, 0.75) * np.pi
    along = np.array([np.cos(away), np.sin(away)])
    radius = rng.uniform(0.2, 0.38) * eye_px
    ball = _rounded_bar(head, head + along * radius * rng.uniform(0.2, 1.2), 2 * radius)
    stick = _rounded_bar(head + along * radius, head + along * rng.uniform(*_STICK) * eye_px, radius)
    canvas = Canvas(rgb, [ball, stick], eye_px)
    if canvas.empty:
        return rgb
    colour = rng.choice(((20, 20, 22), (45, 45, 50), (95, 95, 100), (150, 150, 155), (130, 30, 30), (30, 45, 110)))
    canvas.paint(canvas.mask([stick]), (28, 28, 30), 0.97)
    mask = canvas.mask([ball])
    canvas.paint(mask, colour, 0.97)
    shine = canvas.mask([_rounded_bar(head - 0.3 * radius, head - 0.3 * radius + along * 0.2 * radius, 0.7 * radius)])
    canvas.paint(canvas.soft(shine, 0.05), [min(255, value + 70) for value in colour], 0.4)
    return canvas.rgb


def _rounded_bar(start: F64, end: F64, width: float) -> F64:
    """(n, 2) a bar with rounded ends."""
    along = (end - start) / max(1e-6, float(np.hypot(*(end - start))))
    across = np.array([-along[1], along[0]])
    angle = np.linspace(0, np.pi, 9)[:, None]
    cap = np.cos(angle) * across + np.sin(angle) * along
    return np.concatenate([end + cap * width / 2, start - cap * width / 2])


def _skin(rgb: U8, points: F32) -> Rgb:
    """The median colour of both cheeks."""
    nose = points[WFLW98.parts["nose_base"][2]]
    found = []
    for i in (8, 24):
        x, y = np.round((nose + points[WFLW98.parts["contour"][i]]) / 2).astype(int)
        patch = rgb[max(0, y - 2) : max(0, y + 3), max(0, x - 2) : max(0, x + 3)].reshape(-1, 3)
        found += list(patch)
    if not found:
        return (150, 110, 90)
    r, g, b = np.median(found, axis=0)
    return round(float(r)), round(float(g)), round(float(b))
