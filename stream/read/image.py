"""Reads and writes pictures: any path, any bit depth, checked before they are decoded.

with Picture(path) as picture:
    bgr = picture.read()
"""

from __future__ import annotations

import io
import logging
import mimetypes
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np
from PIL import Image
from PIL.ExifTags import Base as Tag
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from lineament.landmarks.types import U8, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.read.pixels import bgr_of, eight_bit, exposed

log = logging.getLogger(__name__)

WRITTEN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jp2"})
IMAGE_SUFFIXES = WRITTEN_SUFFIXES.union(
    {".apng", ".jpe", ".jfif", ".mpo", ".dib", ".gif", ".avif", ".heic", ".heif", ".hif"},
    {".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".hdr"},
)
"""of pictures that can be read; what a file is, its content tells"""
MAX_SIDE_PX = 32766
"""cv2.warpAffine accepts no longer side"""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names. It reads others, some by starting programs"""
_HEIF = frozenset(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
"""how a HEIC begins; with the last two also an AVIF"""
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_JPEG_VIDEOS = frozenset({".mjpeg", ".mjpg"})
_JPEG_END = b"\xff\xd9"
_FLOAT_BYTES = 4
_MAX_PAGES = 10_000
"""of a TIFF; the time to find them grows with their square"""
_PREVIEW, _MASK = 1, 4
"""bits of a TIFF page's NewSubfileType"""
_PLANES = 2
"""PlanarConfiguration of a TIFF that keeps each colour apart"""
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    cv2.error,
)
"""what Pillow and OpenCV raise for damaged files"""


class UnreadableError(LineamentError):
    """A file that cannot be read."""

    def __init__(self, name: object, why: str, then: str, verb: str = "read") -> None:
        super().__init__(f"cannot {verb} {name}: {why}; {then}")
        self.why = why


class Picture:
    """A picture file, opened but not decoded. Its kind follows from its content, not its name. A context manager.

    It may have several frames: the pages of a TIFF, the frames of an animation, the images of a HEIC.
    """

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS, called: str = "") -> None:
        """max_pixels: larger frames are refused undecoded. called: its name in errors, else the path.

        Raises LineamentError if the file is not a picture.
        """
        self._path, self._max_pixels, self._called = path, max_pixels, called or str(path)
        check_file(path)
        self.first, self.frames = 0, 1
        """the frame that stands for the file, and the number of all"""
        self.pages: tuple[int, ...] = (0,)
        """the frames that are pictures of their own"""
        self.cut_short = False
        """True once a frame was read whose end is missing"""
        self._head = _head(path)
        self._picture = self._opened()
        try:
            if self._picture is not None:
                with self._explained():
                    self._count(self._picture)
        except BaseException:
            self.close()
            raise

    @property
    def kind(self) -> str:
        """Pillow's name of the format; "" for one that OpenCV reads."""
        return (self._picture and self._picture.format) or ""

    @property
    def moving(self) -> range:
        """The frames that follow each other in time; empty for pictures that do not move."""
        if self.kind not in _ANIMATED or self._picture is None:
            return range(0)
        # programs that know no animations show a picture of its own, which is the first
        frames = range(int(bool(self._picture.info.get("default_image"))), self.frames)
        return frames if len(frames) > 1 else range(0)

    def left_out(self, read: int = 1) -> str:
        """What is missing after a number of frames was read; "" if nothing is."""
        if read < self.frames:
            which, several = {"TIFF": ("first", "pages"), "HEIF": ("main one", "images")}.get(
                self.kind, ("first", "frames")
            )
            return f"the {which} of {self.frames} {several}"
        return "its end is missing" if self.cut_short else ""

    def read(self, frame: int | None = None) -> U8:
        """(H, W, 3) uint8 BGR, upright, without alpha. frame: None is the first.

        Raises LineamentError if the frame is too large or damaged.
        """
        with self._explained():
            bgr = self._decoded(self.first if frame is None else frame)
        self._check_size(bgr.shape[1], bgr.shape[0])  # a HEIC's header may state another
        return bgr

    def duration_ms(self) -> float:
        """How long the frame that was read last is shown; 0 if the file does not say."""
        value = self._picture.info.get("duration") if self._picture else None
        return float(value) if isinstance(value, int | float) else 0.0

    def close(self) -> None:
        if self._picture is not None:
            self._picture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _opened(self) -> Image.Image | None:
        """None if OpenCV reads it."""
        with self._explained():
            if is_heif := self._head[4:12] in _HEIF:
                _add_heif()
            try:
                return Image.open(self._path, formats=("AVIF", "HEIF") if is_heif else _FORMATS)
            except DAMAGED:
                if self._float_size() is None:
                    raise
        return None

    def _count(self, picture: Image.Image) -> None:
        self.first = picture.tell()
        if isinstance(picture, TiffImageFile):
            self.pages = self._tiff_pages(picture)
            self.first, self.frames = self.pages[0], len(self.pages)
            return
        if self.kind not in ("JPEG", "MPO"):  # whose others show the same scene, for another eye or screen
            self.frames = getattr(picture, "n_frames", 1)
        self.pages = (self.first,)

    def _tiff_pages(self, picture: TiffImageFile) -> tuple[int, ...]:
        """Without previews and masks."""
        pages, raw = [], Tag.DNGVersion in picture.tag_v2 or Tag.SubIFDs in picture.tag_v2
        try:
            for page in range(_MAX_PAGES):
                picture.seek(page)
                kind = picture.tag_v2.get(Tag.NewSubfileType, 0)
                if not (isinstance(kind, int) and kind & (_PREVIEW | _MASK)):
                    pages.append(page)
        except EOFError:  # there is no such page
            pass
        except DAMAGED:
            self.cut_short = True
        if not pages and raw:
            raise UnreadableError(self._called, "a camera's raw photo", "export it as JPEG or TIFF")
        return tuple(pages) or (0,)

    def _decoded(self, frame: int) -> U8:
        if self._picture is None:
            return self._floats()
        self._picture.seek(frame)
        self._check_size(*self._picture.size, _FLOAT_BYTES if self._picture.mode == "F" else 1)
        if self.kind in ("JPEG", "MPO"):
            return self._jpeg(self._picture)
        if isinstance(self._picture, TiffImageFile):
            return self._tiff(self._picture, frame)
        return bgr_of(self._picture)

    def _jpeg(self, picture: Image.Image) -> U8:
        """By OpenCV, which is faster; one that is cut short by Pillow, which reads what is there."""
        data = self._path.read_bytes()
        if data.endswith(_JPEG_END):
            bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if bgr is not None:
                return np.asarray(bgr, np.uint8)
        try:
            return bgr_of(picture)
        except OSError:
            with Image.open(io.BytesIO(data + _JPEG_END), formats=("JPEG",)) as ended:
                bgr = bgr_of(ended)
            self.cut_short = True
            return bgr

    def _tiff(self, picture: TiffImageFile, page: int) -> U8:
        """By OpenCV if Pillow cannot, or would take one byte of two for a colour."""
        size, tags = picture.size, picture.tag_v2
        try:
            if tags.get(Tag.PlanarConfiguration) == _PLANES and max(tags[Tag.BitsPerSample]) > 8:
                raise ValueError
            return bgr_of(picture)
        except DAMAGED:
            if page:  # OpenCV reads the first
                raise
            bgr = cv2.imdecode(np.frombuffer(self._path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if bgr is None or sorted(bgr.shape[:2]) != sorted(size):
                raise
            return np.asarray(bgr, np.uint8)

    def _floats(self) -> U8:
        """A picture of floating-point colours, by OpenCV: Pillow has none."""
        self._check_size(*(self._float_size() or (0, 0)), _FLOAT_BYTES)
        data = np.frombuffer(self._path.read_bytes(), np.uint8)
        colours = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if colours is None:
            raise ValueError
        return exposed(colours) if self._head.startswith(b"#?") else eight_bit(colours)

    def _float_size(self) -> tuple[int, int] | None:
        """Width and height of a Radiance HDR or TIFF; None if it is neither."""
        with self._path.open("rb") as file:
            if self._head.startswith((b"#?RADIANCE", b"#?RGBE")):
                size = re.search(rb"\n-Y (\d{1,9}) \+X (\d{1,9})\n", file.read(4096))
                return (int(size[2]), int(size[1])) if size else None
            if not self._head.startswith((b"II*\0", b"MM\0*")):
                return None
            directory = ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
        width, height = directory.get(Tag.ImageWidth), directory.get(Tag.ImageLength)
        return (width, height) if isinstance(width, int) and isinstance(height, int) else None

    def _check_size(self, width: int, height: int, value_bytes: int = 1) -> None:
        if width * height > (most := self._max_pixels // value_bytes):
            raise self._too_large(most)
        if max(width, height) > MAX_SIDE_PX:
            why = f"it is {width}x{height}, expected sides up to {MAX_SIDE_PX} px"
            raise UnreadableError(self._called, why, "crop it first")

    def _too_large(self, most: int) -> UnreadableError:
        return UnreadableError(self._called, f"it has over {most / 1e6:g} megapixels", "downscale it first")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises UnreadableError for what Pillow and OpenCV raise, and closes the file."""
        try:
            with warnings.catch_warnings(action="ignore"):  # about large pictures and odd metadata
                yield
        except LineamentError:
            raise
        except Image.DecompressionBombError:
            raise self._too_large(self._max_pixels) from None
        except DAMAGED:
            why, then = _other(self._head)
            raise UnreadableError(self._called, why, then) from None


def read_image(path: Path) -> U8:
    """(H, W, 3) uint8 BGR of the first picture in a file, as Picture reads it. Logs what is left out."""
    with Picture(path) as picture:
        bgr = picture.read()
        if left_out := picture.left_out():
            log.warning("%s is read in part: %s", path, left_out)
        return bgr


def kind_of(path: Path) -> Literal["picture", "animation", "video", "other"]:
    """What a file is, by its content; a video also by its name."""
    if not os.path.isfile(path):
        return "other"
    if path.suffix.lower() in _JPEG_VIDEOS:  # which begins like a JPEG
        return "video"
    try:
        with Picture(path) as picture:
            return "animation" if picture.moving else "picture"
    except LineamentError:
        named = (mimetypes.guess_type(path.name)[0] or "").startswith("video/")
        return "video" if named or _is_video(_head(path)) else "other"


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
        raise UnreadableError(path, "no such file", near, "open")
    if not os.access(path, os.R_OK):
        raise UnreadableError(path, "no permission to read it", "try chmod u+r, or another user", "open")
    if not (path.is_file() or path.is_dir()):  # reading one could block forever
        raise UnreadableError(path, "a pipe or a device, not a file", "copy it to a file first", "open")
    if path.is_file() and not path.stat().st_size:
        raise UnreadableError(path, "the file is empty (0 bytes)", "copy or record it again", "open")


def cannot_write(path: Path, error: Exception) -> LineamentError:
    """The error for a failed write."""
    reason = getattr(error, "strerror", None) or str(error)
    return LineamentError(f"cannot write {path}: {reason.lower()}; check the path, its permissions and the free space")


def _head(path: Path) -> bytes:
    """The first bytes of a file, which tell its kind."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except (OSError, ValueError):  # it is a folder, or locked
        return b""


@cache
def _add_heif() -> None:
    """Lets Pillow read HEIC. Only when one is met: this loads a library of 20 MB."""
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _is_video(head: bytes) -> bool:
    return head[4:8] == b"ftyp" or head.startswith(b"\x1aE\xdf\xa3") or (head[:4], head[8:12]) == (b"RIFF", b"AVI ")


def _other(head: bytes) -> tuple[str, str]:
    """Why a file is not a picture, and what to do."""
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        return "an SVG or a web page, not a photo", "use PNG, JPEG or HEIC"
    return "not a picture, or damaged", "check whether another program opens it"


def turned(bgr: U8, transposed: bool, mirror_x: bool, mirror_y: bool) -> U8:
    """bgr transposed, then mirrored left-right and top-bottom: covers all eight orientations."""
    if transposed:
        bgr = np.asarray(cv2.transpose(bgr), np.uint8)
    if mirror_x or mirror_y:
        bgr = np.asarray(cv2.flip(bgr, -1 if mirror_x and mirror_y else int(mirror_x)), np.uint8)
    return bgr
