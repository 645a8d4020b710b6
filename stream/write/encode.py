"""Encode: writes frames with their own times into a container. Used by files, playlists and servers."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import av
import cv2
import numpy as np
from av.container import OutputContainer
from av.video.frame import PictureType
from av.video.stream import VideoStream

from lineament.landmarks.types import U8

H264 = ("libx264", {"preset": "ultrafast", "tune": "zerolatency", "crf": "21"})
"""a codec and its options, as VideoEncoder takes them"""
_TICKS = 90_000
"""timestamps per second"""


class VideoEncoder:
    """Writes into a container opened by the caller; its methods raise FFmpeg's errors and OSError."""

    def __init__(
        self,
        container: OutputContainer,
        codec: tuple[str, Mapping[str, str]],
        fps: float | None,
        size_hw: tuple[int, int],
    ) -> None:
        """fps: None if unknown; a hint for the encoder only. size_hw: of every frame, even numbers."""
        self.height, self.width = size_hw
        self._container = container
        rate = Fraction(fps or 30.0).limit_denominator(1001)
        options = {**codec[1], "g": str(max(1, round(rate)))}
        stream: VideoStream = container.add_stream(codec[0], rate=rate, options=options)  # type: ignore[assignment]
        stream.height, stream.width = size_hw
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        # the matrix of OpenCV's conversion; without it, players assume another above 576 lines
        stream.codec_context.colorspace, stream.codec_context.color_range = 5, 1
        self._stream = stream
        self._first_s: float | None = None
        self._last_tick = -1
        self._next_whole_s = 0.0
        """when the next key frame is due"""

    def add(self, yuv_i420: U8, time_s: float) -> None:
        """yuv_i420: (H * 3 / 2, W) uint8. time_s: of any clock, increasing."""
        if self._first_s is None:
            self._first_s = time_s
        time_s -= self._first_s
        picture = av.VideoFrame.from_ndarray(yuv_i420, format="yuv420p")
        self._last_tick = picture.pts = max(round(time_s * _TICKS), self._last_tick + 1)
        picture.time_base = Fraction(1, _TICKS)
        if time_s >= self._next_whole_s:
            # by time, not count: new viewers of a slow camera wait for a key frame, and segments end at one
            picture.pict_type, self._next_whole_s = PictureType.I, time_s + 1.0
        self._container.mux(self._stream.encode(picture))

    def finish(self) -> None:
        """Flushes the codec and closes the container."""
        self._container.mux(self._stream.encode())
        self._container.close()


def even(bgr: U8) -> tuple[int, int]:
    """(H, W) of a video that begins with this frame, rounded up to even numbers."""
    height, width = bgr.shape[:2]
    return height + height % 2, width + width % 2


def i420(bgr: U8, size_hw: tuple[int, int]) -> U8:
    """bgr letterboxed to a size and converted for VideoEncoder: (H * 3 / 2, W) uint8."""
    # OpenCV's conversion takes half the time of FFmpeg's
    return np.asarray(cv2.cvtColor(letterboxed(bgr, size_hw[1], size_hw[0]), cv2.COLOR_BGR2YUV_I420), np.uint8)


def letterboxed(bgr: U8, width: int, height: int) -> U8:
    """bgr fitted into (height, width): unchanged, with an odd edge repeated, or scaled and centred on black."""
    h, w = bgr.shape[:2]
    if (h, w) == (height, width):
        return bgr
    if (h + h % 2, w + w % 2) == (height, width):
        return np.asarray(cv2.copyMakeBorder(bgr, 0, height - h, 0, width - w, cv2.BORDER_REPLICATE), np.uint8)
    fit = min(height / h, width / w)
    small = cv2.resize(bgr, (max(1, round(w * fit)), max(1, round(h * fit))), interpolation=cv2.INTER_AREA)
    y, x = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    out = np.zeros((height, width, 3), np.uint8)
    out[y : y + small.shape[0], x : x + small.shape[1]] = small
    return out
