"""Pictures from files, the rendered sample, and real-time playback of any recorded source."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.read.base import BaseSource, Source
from lineament.stream.read.image import IMAGE_SUFFIXES, check_file, read_image
from lineament.stream.read.sample import Sample

log = logging.getLogger(__name__)


class ImageSource(BaseSource):
    """One picture, or those of a folder in natural order (2 before 10). EXIF rotation is honoured, alpha dropped."""

    still = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._left: Iterator[Path] = iter(())

    def _open(self) -> None:
        if not os.path.isdir(self._path):
            check_file(self._path)
            paths = [self._path]
        else:
            paths = [p for p in self._path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
            paths.sort(key=lambda p: [int(s) if s.isdecimal() else s.lower() for s in re.split(r"(\d+)", p.name)])
        if not paths:
            wanted = ", ".join(sorted(IMAGE_SUFFIXES))
            raise LineamentError(f"{self.name} is a folder without pictures; expected some of {wanted}")
        self.frame_count = len(paths)
        self._left = iter(paths)

    def _next(self) -> Frame | None:
        for path in self._left:
            try:
                return self._frame(read_image(path), float(self._index), str(path))
            except LineamentError as error:
                if self.frame_count == 1:
                    raise
                log.warning("skipped: %s", error)
        if not self._index:
            raise LineamentError(
                f"{self.name} contains no readable picture ({self.frame_count} files); try another program on them"
            )
        return None


class SampleSource(BaseSource):
    """The rendered sample, as a file of known length; PacedSource makes it live."""

    def __init__(self, sample: Sample | None = None) -> None:
        super().__init__("sample")
        self.sample = sample or Sample()

    def _open(self) -> None:
        self.fps, self.frame_count = self.sample.fps, len(self.sample)

    def _next(self) -> Frame | None:
        if self._index >= len(self.sample):
            return None
        return self._frame(self.sample.render(self._index), self._index / self.sample.fps)


class PacedSource(BaseSource):
    """Plays any recorded source in real time, as if it were live."""

    live = True

    def __init__(self, source: Source) -> None:
        super().__init__(source.name)
        self.still = source.still
        self._source = source
        self._start_s: float | None = None

    def close(self) -> None:
        self._closed.set()  # wakes the wait
        self._source.close()

    def _open(self) -> None:
        self._source.__enter__()
        self.fps = self._source.fps

    def _next(self) -> Frame | None:
        frame = self._source.read()
        if frame is None:
            return None
        if self._start_s is None:
            self._start_s = time.monotonic()
        self._closed.wait(max(0.0, self._start_s + frame.time_s - time.monotonic()))
        return replace(frame, captured_s=time.monotonic())
