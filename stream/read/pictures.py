"""Pictures and animations from files, the rendered sample, and real-time playback of any recorded source."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.read.base import BaseSource, Source
from lineament.stream.read.folder import Folder
from lineament.stream.read.image import Picture
from lineament.stream.read.sample import Sample
from lineament.stream.read.spec import PAGE

log = logging.getLogger(__name__)

_SHORTEST_MS, _USUAL_MS = 10.0, 100.0
"""a frame that is to be shown no longer than the first is shown for the second, as in browsers"""


class ImageSource(BaseSource):
    """One picture, every page of one, or the pictures of a folder in natural order (2 before 10)."""

    still = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._frames: Iterator[Frame] = iter(())

    def _open(self) -> None:
        if os.path.isdir(self._path):
            folder = Folder(self._path)
            self.frame_count = len(folder.pictures)
            self._frames = self._all_of(folder)
            return
        with Picture(self._path) as picture:
            self.frame_count = len(picture.pages)
        self._frames = self._pages_of(self._path)

    def _next(self) -> Frame | None:
        return next(self._frames, None)

    def _all_of(self, folder: Folder) -> Iterator[Frame]:
        for path in folder.pictures:
            try:
                yield from self._pages_of(path, folder.in_part)
            except LineamentError as error:
                folder.skip(path, getattr(error, "why", str(error)))
        if not self._index:
            raise LineamentError(f"{self.name} contains no readable picture ({len(folder.pictures)} files): {folder}")
        self.frame_count = self._index
        if not folder.complete:
            log.warning("%s", folder)

    def _pages_of(self, path: Path, in_part: dict[Path, str] | None = None) -> Iterator[Frame]:
        """in_part: gets what is left out; without it, that is logged."""
        with Picture(path) as picture:
            pages, damaged = len(picture.pages), list[str]()
            for number, page in enumerate(picture.pages, 1):
                source = f"{path}{PAGE}{number}" if pages > 1 else str(path)
                try:
                    yield self._frame(picture.read(page), float(self._index), source)
                except LineamentError:
                    damaged.append(str(number))
                    if len(damaged) == pages:
                        raise
            left_out = [f"without page {', '.join(damaged)}"] if damaged else []
            left_out += [missing] if (missing := picture.left_out(pages)) else []
        if left_out and in_part is not None:
            in_part[path] = "; ".join(left_out)
        elif left_out:
            log.warning("%s is read in part: %s", path, "; ".join(left_out))

    def _release(self) -> None:
        self._frames = iter(())


class AnimationSource(BaseSource):
    """An animated GIF, WebP, PNG or AVIF, as a video with its own times."""

    def __init__(self, path: Path, max_pixels: int = MAX_PIXELS) -> None:
        """max_pixels: of a frame."""
        super().__init__(str(path))
        self._path, self._max_pixels = path, max_pixels
        self._picture: Picture | None = None
        self._left: Iterator[int] = iter(())
        self._time_s = 0.0

    def _open(self) -> None:
        self._picture = Picture(self._path, self._max_pixels, self.name)
        moving = self._picture.moving or range(1)
        self.frame_count, self._left = len(moving), iter(moving)
        self._picture.read(moving[0])
        self.fps = 1 / self._shown_s(self._picture)

    def _next(self) -> Frame | None:
        assert self._picture is not None
        number = next(self._left, None)
        if number is None:
            return None
        try:
            bgr = self._picture.read(number)
        except LineamentError:
            if not self._index:
                raise
            log.warning("%s is damaged or ends early: %d frames of %d", self.name, self._index, self.frame_count)
            self._left, self.frame_count = iter(()), self._index
            return None
        frame = self._frame(bgr, self._time_s)
        self._time_s += self._shown_s(self._picture)
        return frame

    def _shown_s(self, picture: Picture) -> float:
        shown_ms = picture.duration_ms()
        return (shown_ms if shown_ms > _SHORTEST_MS else _USUAL_MS) / 1000

    def _release(self) -> None:
        self._left = iter(())
        if self._picture is not None:
            self._picture.close()


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
