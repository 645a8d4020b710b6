"""What a visitor hands in, checked before anything decodes it: kind, bytes, pixels, seconds."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
import cv2
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from lineament.demo.config import Limits
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.image import bgr_of

MAX_FRAME_BYTES, MAX_FRAME_PIXELS = 2_000_000, 1920 * 1080
"""of one picture from a webcam; the page sends far smaller ones"""
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
"""Pillow's names. JPEG 2000 is not among them: a damaged one can crash its decoder"""
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    struct.error,
)
"""what Pillow raises for files that are not what they begin as"""
_CLIPS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,ogg,flv,asf,mjpeg,h264,hevc,apng"
"""FFmpeg's names of containers that hold pictures and point nowhere else, as playlists do"""
_NOWHERE_ELSE = {"format_whitelist": _CLIPS, "protocol_whitelist": "file"}


def read_picture(path: Path, limits: Limits) -> U8:
    """(H, W, 3) uint8 BGR, upright. Raises LineamentError with one sentence for whatever is no good picture."""
    _check_size(path, limits, "picture")
    with _opened(path) as picture:
        width, height = picture.size
        if width * height > limits.picture_megapixels * 1e6:
            raise LineamentError(
                f"the picture has {width} x {height} pixels, more than {limits.picture_megapixels:g} million; "
                "send a smaller one"
            )
        # OpenCV shows a JPEG that was cut off as far as it goes. Of other kinds the two libraries may read different
        # sizes, so the one that was asked for the size decodes
        bgr = _by_opencv(path) if picture.format in ("JPEG", "MPO") else None
        return _by_pillow(picture) if bgr is None else bgr


def decode_frame(data: bytes) -> U8:
    """A webcam's JPEG as (H, W, 3) uint8 BGR."""
    if len(data) > MAX_FRAME_BYTES:
        raise LineamentError(f"a frame of {len(data)} bytes came, at most {MAX_FRAME_BYTES} are taken")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
                width, height = header.size
    except (*_DAMAGED, Image.DecompressionBombError):
        raise LineamentError("a frame came that is no JPEG picture") from None
    if width * height > MAX_FRAME_PIXELS:
        raise LineamentError(f"a frame of {width} x {height} came, at most {MAX_FRAME_PIXELS} pixels are taken")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise LineamentError("a frame came that is a damaged JPEG picture")
    return np.asarray(bgr, np.uint8)


def check_clip(path: Path, limits: Limits) -> None:
    """Raises LineamentError with one sentence for what is no clip or too much of one; decodes nothing."""
    _check_size(path, limits, "clip")
    try:
        # the prefix, for FFmpeg takes "a:b.mp4" for a protocol
        with av.open(f"file:{path}", options=_NOWHERE_ELSE, metadata_errors="replace") as container:
            pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not pictures:
                raise LineamentError("the file holds sound only; send one with a video in it")
            width, height = pictures[0].codec_context.width, pictures[0].codec_context.height
            seconds = container.duration / av.time_base if container.duration else None
            frames = pictures[0].frames
    except (av.error.FFmpegError, OSError, ValueError):
        raise LineamentError(
            "the file is no video that is taken here, or a damaged one; send an MP4, MOV, MKV, WebM, AVI or GIF"
        ) from None
    if width * height > limits.clip_megapixels * 1e6:
        raise LineamentError(
            f"the clip has {width} x {height} pixels, more than {limits.clip_megapixels:g} million; send a smaller one"
        )
    if not width * height:
        raise LineamentError("the clip does not say how large its frames are; does another player open it?")
    if (seconds or 0) > limits.clip_s or frames > limits.clip_frames:
        raise LineamentError(
            f"the clip lasts {seconds or 0:.0f} s and has {frames} frames, at most {limits.clip_s:g} s and "
            f"{limits.clip_frames} frames are taken; send a part of it"
        )


def _check_size(path: Path, limits: Limits, what: str) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise LineamentError(f"the {what} is no longer here; send it again") from None
    if not size:
        raise LineamentError(f"the {what} is empty (0 bytes); send it again")
    if size > limits.upload_mb * 1e6:
        raise LineamentError(f"the {what} has {size / 1e6:.0f} MB, at most {limits.upload_mb} MB are taken")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture by its header, undecoded. Raises LineamentError for what is none."""
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        raise LineamentError("this is a drawing (SVG) or a web page, not a photo; send a PNG, JPEG or WebP")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures, and of what is odd in them
        try:
            picture = Image.open(path, formats=_PICTURES)
        except Image.DecompressionBombError as error:
            raise LineamentError("the picture has too many pixels; send a smaller one") from error
        except _DAMAGED:
            raise LineamentError(
                "the file is no picture that is taken here, or a damaged one; send a PNG, JPEG or WebP"
            ) from None
        with picture:
            yield picture


def _by_opencv(path: Path) -> U8 | None:
    try:
        bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        return None
    return None if bgr is None else np.asarray(bgr, np.uint8)


def _by_pillow(picture: Image.Image) -> U8:
    try:
        return bgr_of(ImageOps.exif_transpose(picture))
    except (*_DAMAGED, Image.DecompressionBombError):
        raise LineamentError("the picture is damaged; does another program open it?") from None
