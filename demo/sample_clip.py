"""The sample as a video file, for the Video tab, and for the Live tab without a camera."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from lineament.landmarks.types import Frame, Result
from lineament.stream.read.sample import Sample
from lineament.stream.write.files import VideoSink


class SampleClip:
    """Rendered on first use, which takes some seconds. Thread-safe."""

    def __init__(self, folder: Path, sample: Sample | None = None) -> None:
        self._path = folder / "sample.mp4"
        self._sample = sample or Sample(fps=25.0)
        self._rendering = threading.Lock()
        self._rendered = False

    def path(self) -> Path:
        with self._rendering:
            if not self._rendered:
                self._render()
                self._rendered = True
        return self._path

    def _render(self) -> None:
        with VideoSink(self._path, self._sample.fps) as sink:
            for index in range(len(self._sample)):
                bgr = self._sample.render(index)
                frame = Frame(bgr, "sample", index, index / self._sample.fps, time.monotonic())
                sink.write(Result(frame, ()), bgr)
