"""Contact sheets: small pictures with their points, side by side. numpy and cv2 only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from lineament.landmarks.types import U8, Floats, LineamentError

TILE_PX = 224
_POINTS_BGR, _TRUTH_BGR = (90, 255, 120), (80, 80, 255)
_SHIFT = 4


class Tile(NamedTuple):
    """One picture of a sheet."""

    rgb: U8
    """(H, W, 3)"""
    points: Floats | None = None
    """(K, 2) px of the picture, drawn green, or None"""
    caption: str = ""
    truth: Floats | None = None
    """(K, 2) px, drawn red under the points"""


def sheet(tiles: Sequence[Tile], path: Path, columns: int = 6) -> U8:
    """Writes the tiles as one picture, row by row, each letterboxed into a square; returns it, (H, W, 3) BGR."""
    if not tiles:
        raise LineamentError(f"nothing to draw on {path}: got no pictures")
    drawn = [_drawn(tile) for tile in tiles]
    drawn += [np.zeros_like(drawn[0])] * (-len(drawn) % columns)
    rows = [np.hstack(drawn[i : i + columns]) for i in range(0, len(drawn), columns)]
    picture = np.vstack(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(str(path), picture)
    except (OSError, cv2.error):
        # a folder that cannot be created, or an unknown suffix
        written = False
    if not written:
        raise LineamentError(
            f"cannot write the sheet to {path}; check the folder's permissions and the suffix (.jpg, .png)"
        )
    return picture


def _drawn(tile: Tile) -> U8:
    height, width = tile.rgb.shape[:2]
    scale = TILE_PX / max(height, width)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small_hw = max(1, round(height * scale)), max(1, round(width * scale))
    small = cv2.resize(tile.rgb[..., ::-1], small_hw[::-1], interpolation=how)
    canvas = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    for points, colour in ((tile.truth, _TRUTH_BGR), (tile.points, _POINTS_BGR)):
        for x, y in () if points is None else (points + 0.5) * scale - 0.5:
            if np.isfinite((x, y)).all() and max(abs(x), abs(y)) < 4 * TILE_PX:
                center = round(float(x) * 2**_SHIFT), round(float(y) * 2**_SHIFT)
                cv2.circle(canvas, center, round(1.3 * 2**_SHIFT), colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)
    for tint, thick in (((20, 20, 20), 3), ((255, 255, 255), 1)):
        # cv2 draws ASCII only
        text = tile.caption.encode("ascii", "replace").decode()
        cv2.putText(canvas, text, (4, TILE_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.4, tint, thick, cv2.LINE_AA)
    return canvas
