"""Relay: a process that encodes pictures and sends them to a media server. stream.write.network starts and feeds it.

python -m lineament.stream.write.relay < orders

A process, because writing to a server by FFmpeg cannot be ended from outside: a server that stops reading holds its
thread for ever, PyAV's time-outs are for reading, and RTSP ignores FFmpeg's own. A process can always be ended.

Its input is an Order as one line of JSON, then pictures of one size: seconds (a double), then I420 bytes. Its output is
nothing until the server has taken the first picture, then a line "up"; after a failure the name of FFmpeg's error. It
ends with its input, and by itself when the server takes nothing for some seconds.
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
"""the longest that connecting, or sending one picture, may take"""
STAMP = struct.Struct("<d")
"""a picture's time, before its bytes"""
_IO_US = str(3_000_000)
"""microseconds that FFmpeg may wait in one step, where it heeds that"""
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
    """What to send where."""

    url: str
    """it comes by the input, because others can read a command line"""
    fps: float | None
    """None for unknown"""
    height: int
    width: int


def main() -> int:
    """0 when the input ended and the server has everything; else 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process when it is done
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
            os._exit(1)  # leaving in good order would try to tell the server
    return 0


def _relay(order: Order, orders: BinaryIO, answers: BinaryIO) -> None:
    form, options = _FORMATS[order.url.split("://")[0].lower()]
    signal.alarm(STUCK_S)  # whatever this process is stuck in then, the system ends it
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
    logging.disable()  # FFmpeg's messages hold the address
    sys.exit(main())
