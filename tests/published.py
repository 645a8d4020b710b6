"""What the tests of outputs share: results to send, waiting for what happens elsewhere, and nothing left behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from lineament.landmarks.types import Face, Frame, Result, Track
from lineament.stream.write.base import Sink
from tests.waiting import WAIT_S, until


def result(index: int, size_hw: tuple[int, int] = (240, 320), faces: int = 1) -> Result:
    """A grey picture, the brighter the later; at 30 frames a second."""
    bgr = np.full((*size_hw, 3), 40 + index % 160, np.uint8)
    points = np.linspace((10, 10), (100, 100), 98).astype(np.float32)
    face = Face(np.array([10, 10, 100, 100], np.float32), 0.9)
    tracks = tuple(Track(number, face, points, 1.0) for number in range(faces))
    return Result(Frame(bgr, "clip.mp4", index, index / 30, 0.0), tracks)


def feed(sink: Sink, enough: Callable[[], bool], first: int = 0, size_hw: tuple[int, int] = (240, 320)) -> int:
    """Writes at some fifty frames a second until it is enough; returns the next index."""
    deadline_s, index, idle = time.monotonic() + WAIT_S, first, threading.Event()
    while not enough():
        assert time.monotonic() < deadline_s, "fed in vain"
        item = result(index, size_hw)
        sink.write(item, item.frame.bgr)
        index += 1
        idle.wait(0.02)
    return index


@contextmanager
def nothing_left() -> Iterator[None]:
    """No thread, no process and no descriptor outlives the block; a test's own client may take a moment to end its."""
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    until(lambda: not set(threading.enumerate()) - threads and len(os.listdir("/proc/self/fd")) <= descriptors)
