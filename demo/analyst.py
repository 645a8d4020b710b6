"""Analyst: tracks the faces in one visitor's live video, with settings that may change at any time."""

from __future__ import annotations

from typing import Self

from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.landmarks.types import Frame, Result
from lineament.stream.analyse.detect import VideoDetector
from lineament.stream.analyse.track import Tracker


class Analyst:
    """One visitor's detector and tracker. Both have state, so they are not shared; the models are, and are borrowed.

    Called from one thread at a time. Another thread may set `settings`; they apply from the next frame.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.settings = settings
        self._models = models
        self._detector = VideoDetector()
        self._tracker: Tracker | None = None
        self._tracker_cfg: tuple[object, ...] = ()

    def __call__(self, frame: Frame) -> Result:
        settings = self.settings
        wanted = (settings.model, settings.track)
        if self._tracker is None or wanted != self._tracker_cfg:
            self._tracker = Tracker(self._detector, self._models[settings.model], settings.track)
            self._tracker_cfg = wanted
        return self._tracker(frame)

    def close(self) -> None:
        """Releases the visitor's own detector."""
        self._tracker = None
        self._detector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
