"""A desktop window, and whether there is a desktop."""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import cv2

from lineament.landmarks.types import U8, Frame, LineamentError, Result
from lineament.stream.read.image import write_image

log = logging.getLogger(__name__)


class WindowSink:
    """A window. q, Esc or closing it sets `quit`; s saves a snapshot; space pauses. Main thread only."""

    def __init__(
        self, title: str = "Lineament", *, still: bool = False, paced: bool = False, snapshots: Path = Path(".")
    ) -> None:
        """still: every frame stays until a key is pressed. paced: plays in real time, for files.

        snapshots: the folder for `s`.
        """
        self.quit = False
        self.lost = 0
        self._title = title
        self._still, self._paced = still, paced
        self._clock_s = 0.0
        """time.monotonic() of the source's time 0"""
        self._snapshots = snapshots
        self._opened = False
        self._shown = False

    def __enter__(self) -> Self:
        if not has_display():
            raise LineamentError(
                "cannot open a window: there is no display, or this OpenCV has no GUI; use --no-window"
            )
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # it warns of fonts that it does not need
        cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._opened = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Shows the drawing; blocks while paused, with the window responsive."""
        # checked first, because imshow would reopen a closed window
        self.quit = self.quit or self._closed_by_user()
        if self.quit:
            return
        if not self._shown:
            height, width = drawn_bgr.shape[:2]
            fit = min(1.0, 1280 / width, 800 / height)
            cv2.resizeWindow(self._title, round(width * fit), round(height * fit))
        cv2.imshow(self._title, drawn_bgr)
        key, paused = self._key(result.frame.time_s), self._still
        self._shown = True
        while True:
            if key in (ord("q"), 27) or self._closed_by_user():
                self.quit = True
            elif key == ord("s"):
                self._snapshot(result.frame, drawn_bgr)
            elif key == ord(" "):
                paused = not paused
            elif key != -1 and self._still:
                paused = False
            if self.quit or not paused:
                self._clock_s = max(self._clock_s, time.monotonic() - result.frame.time_s)
                return
            key = cv2.waitKey(30)

    def idle(self) -> None:
        """Keeps the window responsive while no frame arrives."""
        if self._shown:
            self.quit = self.quit or cv2.waitKey(1) in (ord("q"), 27) or self._closed_by_user()

    def _key(self, time_s: float) -> int:
        """The key pressed until the next frame is due, else -1. Short waits, because Ctrl-C is blocked in one."""
        while True:
            wait_ms = self._wait_ms(time_s)
            key = cv2.waitKey(min(wait_ms, 200))
            if key != -1 or wait_ms <= 200:
                return key

    def _wait_ms(self, time_s: float) -> int:
        """Milliseconds until the next frame is due; at least 1, which the window needs to draw."""
        if not self._shown:
            self._clock_s = time.monotonic() - time_s
        return max(1, round((self._clock_s + time_s - time.monotonic()) * 1e3)) if self._paced else 1

    def _closed_by_user(self) -> bool:
        try:
            return self._shown and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # Qt is gone with its last window
            return True

    def _snapshot(self, frame: Frame, drawn_bgr: U8) -> None:
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(frame.source).stem).strip("-")
        path = self._snapshots / f"lineament-{stem}-{frame.index:06d}.png"
        write_image(path, drawn_bgr)
        log.warning("saved %s", path)

    def close(self) -> None:
        if self._opened and not self._closed_by_user():
            cv2.destroyWindow(self._title)
        self._opened = self._shown = False


@functools.cache
def has_display() -> bool:
    """Whether a window can be opened, tested by opening one.

    In a separate process: if the display does not answer, Qt aborts the process.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False
