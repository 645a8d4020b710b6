"""Analyst: follows the faces of one visitor's video, by the settings of the moment."""

from __future__ import annotations

from typing import Self

from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.landmarks.types import Frame, Result
from lineament.stream.analyse.detect import VideoDetector
from lineament.stream.analyse.track import Tracker


class Analyst:
    """One visitor's detector and tracker: both remember, so nobody shares them. The models are shared and borrowed.

    Frames come from one thread at a time; settings may be set by another meanwhile and hold from the next frame on.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.settings = settings
        self._models = models
        self._detector = VideoDetector()
        self._tracker: Tracker | None = None
        self._made_for: tuple[object, ...] = ()

    def __call__(self, frame: Frame) -> Result:
        settings = self.settings
        wanted = (settings.model, settings.track)
        if self._tracker is None or wanted != self._made_for:
            self._tracker = Tracker(self._detector, self._models[settings.model], settings.track)
            self._made_for = wanted
        return self._tracker(frame)

    def close(self) -> None:
        """Lets go of the visitor's own graphs."""
        self._tracker = None
        self._detector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
