"""Validates uploads before they are decoded: type, bytes, pixels, seconds."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Literal, NamedTuple, cast

import av
import av.error
import cv2
import numpy as np
from av.container import InputContainer
from PIL import Image

from lineament.demo.config import Limits
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.image import DAMAGED, Picture, kind_of
from lineament.stream.read.streams import largest, videos_of

MAX_FRAME_BYTES, MAX_FRAME_PIXELS = 2_000_000, 1920 * 1080
"""of a webcam frame; the page sends much smaller ones"""
_CLIPS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,ogg,flv,live_flv,asf,rm,mxf,gxf,nut,nsv,nuv,dv,"
    "wtv,ty,swf,ivf,amv,mtv,dhav,pva,ipu,gif,apng,webp,jpegxl_anim,flic,smk,bink,mjpeg,mpjpeg,mjpeg_2000,h261,h263,h264,"
    "hevc,vvc,evc,av1,obu,vc1,vc1test,cavsvideo,avs2,avs3,dirac,dnxhd,yuv4mpegpipe"
)
"""FFmpeg's names of containers that cannot refer to other files, unlike playlists"""
_LOCAL_ONLY = {"format_whitelist": _CLIPS, "protocol_whitelist": "file"}


class Upload(NamedTuple):
    """A picture, and what of its file is left out."""

    bgr: U8
    """(H, W, 3), upright"""
    left_out: str
    """empty if nothing is"""


def read_upload(path: Path, limits: Limits) -> Upload:
    """The first picture in a file. Raises LineamentError if it is not a valid picture within the limits."""
    _check_size(path, limits, "picture")
    # errors must not contain the server's path
    with Picture(path, int(limits.picture_megapixels * 1e6), called="the picture") as picture:
        return Upload(picture.read(), picture.left_out())


def read_picture(path: Path, limits: Limits) -> U8:
    """(H, W, 3) uint8 BGR, as read_upload."""
    return read_upload(path, limits).bgr


def decode_frame(data: bytes) -> U8:
    """A webcam's JPEG as (H, W, 3) uint8 BGR."""
    if len(data) > MAX_FRAME_BYTES:
        raise LineamentError(f"the frame has {len(data)} bytes; the limit is {MAX_FRAME_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as header:
                width, height = header.size
    except (*DAMAGED, Image.DecompressionBombError):
        raise LineamentError("the frame is not a JPEG") from None
    if width * height > MAX_FRAME_PIXELS:
        raise LineamentError(f"the frame is {width} x {height}; the limit is {MAX_FRAME_PIXELS} pixels")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise LineamentError("the frame is a damaged JPEG")
    return np.asarray(bgr, np.uint8)


def check_clip(path: Path, limits: Limits) -> Literal["video", "animation"]:
    """What the file is. Raises LineamentError if it is neither, or exceeds a limit. Decodes nothing."""
    _check_size(path, limits, "clip")
    kind = kind_of(path)
    if kind == "picture":
        raise LineamentError("the file is a picture, not a video; use the Image tab")
    if kind == "animation":
        _check_animation(path, limits)
        return "animation"
    try:
        with _container(path) as container:
            if not (videos := videos_of(container)):
                raise LineamentError("the file contains sound only; use a file with video")
            video = largest(videos)
            codec = cast("av.VideoCodecContext | None", video.codec_context)
            if codec is None:
                raise LineamentError("the clip's codec is not supported; use H.264, HEVC, VP9 or AV1")
            width, height = codec.width, codec.height
            seconds = _seconds(container)
            frames = video.frames
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
    return "video"


def _check_animation(path: Path, limits: Limits) -> None:
    with Picture(path, called="the animation") as picture:
        if (frames := len(picture.moving)) > limits.clip_frames:
            raise LineamentError(
                f"the animation has {frames} frames; the limit is {limits.clip_frames} frames; use a part of it"
            )


def is_clip(path: Path) -> bool:
    """Whether the file is a video or an animation, whatever its name and size."""
    kind = kind_of(path)
    return kind == "animation" or (kind != "picture" and _has_video(path))


def _has_video(path: Path) -> bool:
    try:
        with _container(path) as container:
            return bool(videos_of(container))
    except (av.error.FFmpegError, OSError, ValueError):
        return False


def _container(path: Path) -> InputContainer:
    # without the prefix, FFmpeg would parse "a:b.mp4" as a protocol
    return av.open(f"file:{path}", options=_LOCAL_ONLY, metadata_errors="replace")


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
