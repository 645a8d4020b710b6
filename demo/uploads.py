"""Validates uploads before they are decoded: type, bytes, pixels, seconds."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import av
import av.error
import cv2
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image, ImageOps

from lineament.demo.config import Limits
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.image import bgr_of

MAX_FRAME_BYTES, MAX_FRAME_PIXELS = 2_000_000, 1920 * 1080
"""of a webcam frame; the page sends much smaller ones"""
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
"""names in Pillow. JPEG 2000 is excluded, because a damaged file can crash the decoder"""
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
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
"""what Pillow raises for damaged files"""
_CLIPS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,ogg,flv,live_flv,asf,rm,mxf,gxf,nut,nsv,nuv,dv,"
    "wtv,ty,swf,ivf,amv,mtv,dhav,pva,ipu,gif,apng,webp,jpegxl_anim,flic,smk,bink,mjpeg,mpjpeg,mjpeg_2000,h261,h263,h264,"
    "hevc,vvc,evc,av1,obu,vc1,vc1test,cavsvideo,avs2,avs3,dirac,dnxhd,yuv4mpegpipe"
)
"""FFmpeg's names of containers that cannot refer to other files, unlike playlists"""
_LOCAL_ONLY = {"format_whitelist": _CLIPS, "protocol_whitelist": "file"}


def read_picture(path: Path, limits: Limits) -> U8:
    """(H, W, 3) uint8 BGR, upright. Raises LineamentError if the file is not a valid picture within the limits."""
    _check_size(path, limits, "picture")
    with _opened(path) as picture:
        width, height = picture.size
        if width * height > limits.picture_megapixels * 1e6:
            raise LineamentError(
                f"the picture has {width} x {height} pixels, more than {limits.picture_megapixels:g} million; "
                "use a smaller one"
            )
        # OpenCV decodes what is there of a truncated JPEG. For other formats the two libraries may read different
        # sizes, so Pillow, which checked the size, also decodes
        bgr = _by_opencv(path) if picture.format in ("JPEG", "MPO") else None
        return _by_pillow(picture) if bgr is None else bgr


def decode_frame(data: bytes) -> U8:
    """A webcam's JPEG as (H, W, 3) uint8 BGR."""
    if len(data) > MAX_FRAME_BYTES:
        raise LineamentError(f"the frame has {len(data)} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
                width, height = header.size
    except (*_DAMAGED, Image.DecompressionBombError):
        raise LineamentError("the frame is not a JPEG") from None
    if width * height > MAX_FRAME_PIXELS:
        raise LineamentError(f"the frame is {width} x {height}; the limit is {MAX_FRAME_PIXELS} pixels")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise LineamentError("the frame is a damaged JPEG")
    return np.asarray(bgr, np.uint8)


def check_clip(path: Path, limits: Limits) -> None:
    """Raises LineamentError if the file is not a video or exceeds a limit. Decodes nothing."""
    _check_size(path, limits, "clip")
    if is_still(path):
        raise LineamentError("the file is a picture, not a video; use the Image tab")
    try:
        with _container(path) as container:
            pictures = _moving(container)
            if not pictures:
                raise LineamentError("the file contains sound only; use a file with video")
            codec = cast("av.VideoCodecContext | None", pictures[0].codec_context)
            if codec is None:
                raise LineamentError("the clip's codec is not supported; use H.264, HEVC, VP9 or AV1")
            width, height = codec.width, codec.height
            seconds = _seconds(container)
            frames = pictures[0].frames
    except (av.error.FFmpegError, OSError, ValueError):
        raise LineamentError(
            "the file is not a supported video, or is damaged; use MP4, MOV, MKV, WebM, AVI or GIF"
        ) from None
    if width * height > limits.clip_megapixels * 1e6:
        raise LineamentError(
            f"the clip has {width} x {height} pixels, more than {limits.clip_megapixels:g} million; use a smaller one"
        )
    if not width * height:
        raise LineamentError("the clip does not state its frame size; check that another player opens it")
    if seconds > limits.clip_s or frames > limits.clip_frames:
        raise LineamentError(
            f"the clip has {seconds:.0f} s and {frames} frames; the limit is {limits.clip_s:g} s and "
            f"{limits.clip_frames} frames; use a part of it"
        )


def is_still(path: Path) -> bool:
    """Whether the file is a picture that does not move, whatever its name."""
    try:
        with _opened(path) as picture:
            kind, moves = picture.format, getattr(picture, "is_animated", False)
    except (LineamentError, *_DAMAGED):
        return False
    if kind == "JPEG":  # so does a Motion JPEG stream begin
        return not _has_video(path)
    return kind not in _ANIMATED or not moves


def is_clip(path: Path) -> bool:
    """Whether the file is a video or an animation, whatever its name and size."""
    return _has_video(path) and not is_still(path)


def _has_video(path: Path) -> bool:
    try:
        with _container(path) as container:
            return bool(_moving(container))
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _container(path: Path) -> InputContainer:
    # without the prefix, FFmpeg would parse "a:b.mp4" as a protocol
    return av.open(f"file:{path}", options=_LOCAL_ONLY, metadata_errors="replace")


def _moving(container: InputContainer) -> list[VideoStream]:
    """Its video, without cover art."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def _seconds(container: InputContainer) -> float:
    """Its length by its header; 0 if that does not say."""
    # Matroska states the time of the end, and a recording may begin at any time
    start = (container.start_time or 0) if "matroska" in container.format.name else 0
    return max(0, (container.duration or 0) - start) / av.time_base


def _check_size(path: Path, limits: Limits, what: str) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise LineamentError(f"the {what} has been deleted; upload it again") from None
    if not size:
        raise LineamentError(f"the {what} is empty (0 bytes); upload it again")
    if size > limits.upload_mb * 1e6:
        raise LineamentError(f"the {what} has {size / 1e6:.0f} MB; the limit is {limits.upload_mb} MB")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens the picture without decoding it. Raises LineamentError if it is not one."""
    with path.open("rb") as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html")):
        raise LineamentError("this is an SVG or a web page, not a photo; use PNG, JPEG or WebP")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large pictures and odd metadata
        try:
            picture = Image.open(path, formats=_PICTURES)
        except Image.DecompressionBombError as error:
            raise LineamentError("the picture has too many pixels; use a smaller one") from error
        except _DAMAGED:
            raise LineamentError("the file is not a supported picture, or is damaged; use PNG, JPEG or WebP") from None
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
        raise LineamentError("the picture is damaged; check that another program opens it") from None
