"""Webcams, through OpenCV."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.read.base import READ_TIMEOUT_S, BaseSource


class CameraSource(BaseSource):
    """A webcam, by number."""

    live = True

    def __init__(self, number: int, capture: Callable[[int], Any] | None = None) -> None:
        """capture: opens a camera like cv2.VideoCapture; for tests."""
        super().__init__(f"camera {number}")
        self._number = number
        self._make_capture = capture
        self._capture: Any = None
        self._first_s: float | None = None

    def _open(self) -> None:
        if self._make_capture is None:
            device = Path(f"/dev/video{self._number}")
            if sys.platform == "linux" and not device.exists():
                others = sorted(str(path) for path in Path("/dev").glob("video*"))
                found = f"found {', '.join(others)}" if others else "no camera found"
                raise LineamentError(
                    f"cannot open {self.name}: no {device}; {found}; connect one, or try --source sample"
                )
            if sys.platform == "linux" and not os.access(device, os.R_OK | os.W_OK):
                raise LineamentError(
                    f"cannot open {self.name}: no permission for {device}; "
                    "add yourself to its group (sudo usermod -aG video $USER) and log in again"
                )
        self._capture = (self._make_capture or _capture)(self._number)
        if not self._capture.isOpened():
            raise LineamentError(
                f"cannot open {self.name}: missing, in use by another program, or not permitted; "
                "close other programs that use it, allow camera access, or try another number"
            )
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else None  # also excludes NaN

    def _next(self) -> Frame | None:
        good, bgr = self._capture.read()
        if not good or bgr is None:
            raise LineamentError(
                f"lost {self.name} after {self._index} frames: it stopped delivering; check the cable and restart"
            )
        now = time.monotonic()
        if self._first_s is None:
            self._first_s = now
        return self._frame(bgr, now - self._first_s)

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()


def _capture(number: int) -> cv2.VideoCapture:
    """A camera at up to 1280x720, with the smallest buffer the driver allows."""
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(round(READ_TIMEOUT_S)))
    loud = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        linux = sys.platform == "linux"
        capture = cv2.VideoCapture(number, cv2.CAP_V4L2 if linux else cv2.CAP_ANY)
        if capture.isOpened():
            if linux:  # raw frames of this size exceed USB 2 at 30 fps
                capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, 1280)
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, 720)
            capture.set(cv2.CAP_PROP_FPS, 30)
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        return capture
    finally:
        cv2.utils.logging.setLogLevel(loud)
