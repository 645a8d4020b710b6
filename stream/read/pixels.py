"""Pixels of any depth as 8-bit BGR."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from lineament.landmarks.types import U8

_WHITE_PERCENTILE = 99.9
"""of values beyond 1, the brightest that keeps its difference to the others"""
_BRIGHT_PERCENTILE = 90.0
"""of luminance; lamps and the sun are beyond"""
_BLACK, _BRIGHT = 0.001, 4.0
"""of linear light: what is black beside that, and how much brighter than the mean white may be"""
_GAMMA = 2.2


def bgr_of(picture: Image.Image) -> U8:
    """(H, W, 3) uint8 BGR, upright, of a picture opened by Pillow. Raises Pillow's error if it is damaged."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F" or picture.mode.startswith("I"):  # grey that Pillow would clip to 8 bits
        return eight_bit(np.asarray(picture))
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), np.uint8)[..., ::-1])


def eight_bit(values: np.ndarray[Any, np.dtype[Any]]) -> U8:
    """(H, W, 3) uint8 of grey (H, W) or BGR (H, W, 3).

    Integers are of the 8, 10, 12, 14 or 16 bits that the brightest needs: sensors with 12 bits fill files of 16.
    Floats are 0..1, or 0..white if they exceed 1.
    """
    scaled: np.ndarray[Any, np.dtype[Any]]
    if values.dtype.kind == "f":
        values = np.nan_to_num(values.astype(np.float32), posinf=0.0, neginf=0.0)
        scaled = values * (255 / max(1.0, float(np.percentile(values, _WHITE_PERCENTILE))))
    else:
        bits = max(8, int(values.max(initial=0)).bit_length())
        scaled = values >> (bits + bits % 2 - 8)
    bgr = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(bgr if bgr.ndim == 3 else np.repeat(bgr[..., None], 3, axis=2))


def exposed(light: np.ndarray[Any, np.dtype[Any]]) -> U8:
    """(H, W, 3) uint8 of linear light (H, W, 3) of any range, exposed for the scene and not for its lamps."""
    light = np.nan_to_num(light.astype(np.float32), posinf=0.0, neginf=0.0).clip(0)
    luminance = light.mean(axis=2)
    bright, white = np.percentile(luminance, (_BRIGHT_PERCENTILE, _WHITE_PERCENTILE))
    if (lit := luminance[luminance > _BLACK * bright]).size:
        white = min(white, _BRIGHT * float(np.exp(np.log(lit).mean())))
    return np.rint(255 * np.clip(light / (white or 1.0), 0, 1) ** (1 / _GAMMA)).astype(np.uint8)
