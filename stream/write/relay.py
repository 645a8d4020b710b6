"""Relay: a process that encodes frames and sends them to a media server. stream.write.media starts and feeds it.

python -m lineament.stream.write.relay < orders

A process, because a blocked write of FFmpeg cannot be interrupted: a server that stops reading blocks its thread
forever, PyAV's timeouts are for reading only, and RTSP ignores FFmpeg's own. A process can always be killed.

Input: an Order as one line of JSON, then frames of one size: seconds (a double), then I420 bytes. Output: a line "up"
when the server has accepted the first frame; after a failure, the name of FFmpeg's error. It ends with its input, or
when the server accepts nothing for STUCK_S.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import struct
import sys
from dataclasses import dataclass
from typing import BinaryIO

import av
import av.error
import numpy as np

from lineament.stream.write.encode import H264, VideoEncoder

STUCK_S = 6
"""timeout to connect, or to send one frame"""
STAMP = struct.Struct("<d")
"""a frame's time, before its bytes"""
_IO_US = str(3_000_000)
"""timeout of one FFmpeg call, microseconds, for protocols that support it"""
_FORMATS = {
    "rtsp": ("rtsp", {"rtsp_transport": "tcp", "timeout": _IO_US}),
    "rtsps": ("rtsp", {"rtsp_transport": "tcp", "timeout": _IO_US}),
    "rtmp": ("flv", {"rw_timeout": _IO_US, "flvflags": "no_duration_filesize"}),
    "rtmps": ("flv", {"rw_timeout": _IO_US, "flvflags": "no_duration_filesize"}),
    "srt": ("mpegts", {"connect_timeout": "3000", "timeout": _IO_US}),
}
SCHEMES = tuple(_FORMATS)


@dataclass(frozen=True, slots=True)
class Order:
    """What to send, and where."""

    url: str
    """passed by the input, because other users can read a command line"""
    fps: float | None
    """None if unknown"""
    height: int
    width: int


def main() -> int:
    """Returns 0 if the input ended and the server has everything; else 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    orders, answers = sys.stdin.buffer, sys.stdout.buffer
    line = orders.readline()
    if not line:
        return 0
    order = Order(**json.loads(line))
    try:
        _relay(order, orders, answers)
    except (av.error.FFmpegError, OSError) as error:
        try:
            _answer(answers, type(error).__name__)
        finally:
            os._exit(1)  # a clean exit would try to tell the server
    return 0


def _relay(order: Order, orders: BinaryIO, answers: BinaryIO) -> None:
    form, options = _FORMATS[order.url.split("://")[0].lower()]
    signal.alarm(STUCK_S)  # kills this process if it is stuck
    container = av.open(order.url, "w", format=form, options=options)
    encoder = VideoEncoder(container, H264, order.fps, (order.height, order.width))
    size, up = order.height * 3 // 2 * order.width, False
    while len(data := orders.read(STAMP.size + size)) == STAMP.size + size:
        yuv = np.frombuffer(data, np.uint8, offset=STAMP.size).reshape(-1, order.width)
        signal.alarm(STUCK_S)
        encoder.add(yuv, STAMP.unpack_from(data)[0])
        signal.alarm(0)
        if not up:
            _answer(answers, "up")
            up = True
    signal.alarm(STUCK_S)
    encoder.finish()


def _answer(answers: BinaryIO, line: str) -> None:
    answers.write(f"{line}\n".encode())
    answers.flush()


if __name__ == "__main__":
    logging.disable()  # messages of FFmpeg contain the address
    sys.exit(main())
