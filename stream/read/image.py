"""Reads and writes one picture: any path, any bit depth, checked before it is decoded."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from lineament.landmarks.types import U8, LineamentError
from lineament.stream import MAX_PIXELS

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
MAX_SIDE_PX = 32766
"""cv2.warpAffine accepts no longer side"""


def read_image(path: Path) -> U8:
    """(H, W, 3) uint8 BGR. EXIF rotation is honoured, alpha dropped, 16 bit and grey made 8 bit colour."""
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {error.strerror or error}") from None
    header = _header(data)
    if header is not None and header.width * header.height > MAX_PIXELS:
        raise LineamentError(f"{path} has over {MAX_PIXELS // 10**6} megapixels; downscale it first")
    if header is not None and max(header.width, header.height) > MAX_SIDE_PX:
        wide = f"{header.width}x{header.height}"
        raise LineamentError(f"{path} is {wide}, expected sides up to {MAX_SIDE_PX} px; crop it first")
    # without a size in its header, a picture might take all memory
    bgr = _decoded(data, header) if header is not None else None
    if bgr is None:
        raise LineamentError(f"cannot read {path}: not a picture, or damaged; check whether another program opens it")
    return bgr


def bgr_of(picture: Image.Image) -> U8:
    """(H, W, 3) uint8 BGR of a picture opened by Pillow. Raises Pillow's error if it is damaged."""
    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip to 8 bits
        grey = np.clip(np.asarray(picture) // 256, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), np.uint8)[..., ::-1])


def write_image(path: Path, bgr: U8) -> None:
    """bgr: (H, W, 3) uint8; the format follows from the suffix."""
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg", ".jfif")
    good, data = cv2.imencode(path.suffix, bgr, [cv2.IMWRITE_JPEG_QUALITY, 95] if is_jpeg else [])
    if not good:
        raise LineamentError(f"cannot write {path}: OpenCV does not encode {path.suffix}; use .png or .jpg")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise cannot_write(path, error) from None


def check_file(path: Path) -> None:
    """Raises a clearer LineamentError than FFmpeg and OpenCV would; folders are left to them."""
    if not os.path.exists(path):  # unlike Path.exists, accepts any name
        near = f"{path.parent} does not exist" if not os.path.exists(path.parent) else "check the spelling"
        raise LineamentError(f"cannot open {path}: no such file; {near}")
    if not os.access(path, os.R_OK):
        raise LineamentError(f"cannot open {path}: no permission to read it; try chmod u+r, or another user")
    if not (path.is_file() or path.is_dir()):  # reading one could block forever
        raise LineamentError(f"cannot open {path}: a pipe or a device, not a file; copy it to a file first")
    if path.is_file() and not path.stat().st_size:
        raise LineamentError(f"cannot open {path}: the file is empty (0 bytes); copy or record it again")


def cannot_write(path: Path, error: Exception) -> LineamentError:
    """The error for a failed write."""
    reason = getattr(error, "strerror", None) or str(error)
    return LineamentError(f"cannot write {path}: {reason.lower()}; check the path, its permissions and the free space")


class _Header(NamedTuple):
    """A picture's header."""

    width: int
    height: int
    kind: str | None
    """Pillow's format name"""


def _header(data: bytes) -> _Header | None:
    """None if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoding reports what is wrong
            with Image.open(io.BytesIO(data)) as picture:
                return _Header(picture.width, picture.height, picture.format)
    except Image.DecompressionBombError:
        return _Header(MAX_PIXELS + 1, 1, None)
    except (OSError, ValueError, SyntaxError):
        return None


def _decoded(data: bytes, header: _Header) -> U8 | None:
    """(H, W, 3) uint8 BGR, upright; None if it cannot be decoded."""
    try:
        if header.kind == "JPEG2000":  # a damaged one crashes OpenCV
            with Image.open(io.BytesIO(data)) as picture:
                return bgr_of(picture)
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, OSError, ValueError, SyntaxError):
        return None
    return None if bgr is None else np.asarray(bgr, np.uint8)


def turned(bgr: U8, transposed: bool, mirror_x: bool, mirror_y: bool) -> U8:
    """bgr transposed, then mirrored left-right and top-bottom: covers all eight orientations."""
    if transposed:
        bgr = np.asarray(cv2.transpose(bgr), np.uint8)
    if mirror_x or mirror_y:
        bgr = np.asarray(cv2.flip(bgr, -1 if mirror_x and mirror_y else int(mirror_x)), np.uint8)
    return bgr
