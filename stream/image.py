"""One picture from a file and to a file: any path, any depth, checked before it is decoded."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from landmarks.types import U8, LineamentError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
MAX_PIXELS = 100_000_000
"""a larger picture is refused undecoded: it would take more than 300 MB"""


def read_image(path: Path) -> U8:
    """(H, W, 3) uint8 BGR. EXIF rotation is honoured, alpha dropped, 16 bit and grey made 8 bit colour."""
    check_file(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {error.strerror or error}") from None
    pixels = _pixels(data)
    if pixels > MAX_PIXELS:
        raise LineamentError(
            f"{path} has over {MAX_PIXELS // 10**6} megapixels; make it smaller before you give it here"
        )
    try:
        # what does not tell its size might take all memory
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if pixels else None
    except cv2.error:
        bgr = None
    if bgr is None:
        raise LineamentError(f"cannot read {path}: not a picture, or a damaged one; does another program open it?")
    return np.asarray(bgr, np.uint8)


def write_image(path: Path, bgr: U8) -> None:
    """bgr: (H, W, 3) uint8; the kind comes from the path's ending."""
    good, data = cv2.imencode(path.suffix, bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])
    if not good:
        raise LineamentError(f"cannot write {path}: OpenCV does not encode {path.suffix}; use .png or .jpg")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise cannot_write(path, error) from None


def check_file(path: Path) -> None:
    """Says of a path what FFmpeg and OpenCV would not; a folder is theirs to refuse."""
    if not os.path.exists(path):  # unlike Path.exists it bears any name
        near = f"{path.parent} does not exist" if not os.path.exists(path.parent) else "check the spelling"
        raise LineamentError(f"cannot open {path}: no such file; {near}")
    if not os.access(path, os.R_OK):
        raise LineamentError(f"cannot open {path}: no permission to read it; try chmod u+r, or another user")
    if not (path.is_file() or path.is_dir()):  # nobody may be at the other end, and waiting could not be ended
        raise LineamentError(f"cannot open {path}: it is a pipe or a device, not a file; copy it into a file first")
    if path.is_file() and not path.stat().st_size:
        raise LineamentError(f"cannot open {path}: the file is empty (0 bytes); copy or record it again")


def cannot_write(path: Path, error: Exception) -> LineamentError:
    """The user's words for a failed write."""
    reason = getattr(error, "strerror", None) or str(error)
    return LineamentError(f"cannot write {path}: {reason.lower()}; check the path, its rights and the space left")


def _pixels(data: bytes) -> int:
    """width * height by the header; 0 where none can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a header shows when it is decoded
            with Image.open(io.BytesIO(data)) as header:
                return header.width * header.height
    except Image.DecompressionBombError:
        return MAX_PIXELS + 1
    except (OSError, ValueError, SyntaxError):
        return 0
