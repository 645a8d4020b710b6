"""Followed: what is remembered of a face from frame to frame, and when a tracker looks and lets go."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lineament.landmarks.types import (
    F32,
    Track,
)
from lineament.stream.analyse.smooth import Smoother


@dataclass(frozen=True, slots=True)
class TrackConfig:
    """When to look for faces and when to let go of one."""

    max_faces: int = 32
    """Of a video, follow at most this many, 0 for no limit; while all are in sight, the detector rests. Pictures that
    stand alone show every face."""
    detect_every: int = 10
    """Look for new faces every this many frames: at 30 fps a newcomer waits a third of a second at most. Six times
    a second while nobody is in sight or somebody is lost, and after a gap of more than 0.2 s; with 1, every frame."""
    min_confidence: float = 0.5
    """Of the landmark model, 0..1: below it a face counts as not seen in this frame."""
    patience_s: float = 1.5
    """Seconds that a face out of sight keeps its id; longer, and somebody else may stand there."""
    smooth: bool = True
    """One Euro on a video's points; pictures that stand alone are never smoothed."""

    def __post_init__(self) -> None:
        if self.max_faces < 0 or self.detect_every < 1:
            raise ValueError(
                f"max_faces must be at least 1, or 0 for no limit, and detect_every at least 1, "
                f"got {self.max_faces} and {self.detect_every}"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence must lie within 0..1, got {self.min_confidence}")
        if not self.patience_s >= 0:
            raise ValueError(f"patience_s must be 0 or more seconds, got {self.patience_s}")


@dataclass(frozen=True, slots=True)
class Remembered:
    """One face of a tracker that another goes on for."""

    id: int
    score: float
    """the detector's, when it last took this face in"""
    points: F32
    """(K, 2) frame px"""


@dataclass(frozen=True, slots=True)
class TrackerState:
    """What a tracker hands on to the one that goes on for it: a kB a face. No velocity, for nobody knows the gap."""

    next_id: int
    """never given to a face yet"""
    faces: tuple[Remembered, ...] = ()


@dataclass(slots=True)
class Followed:
    """What the tracker remembers of one face."""

    score: float
    """the detector's, when it last took this face in"""
    points: F32
    """(K, 2) frame px, as the model gave them: the next crop comes from these"""
    time_s: float
    smoother: Smoother
    velocity: F32 = field(default_factory=lambda: np.zeros(2, np.float32))
    """(2,) px/s of the whole face"""
    middle: F32 = field(default_factory=lambda: np.zeros(2, np.float32))
    """(2,) frame px of the face when its velocity was last measured"""
    middle_s: float = 0.0
    """when that was"""
    id: int = 0
    """1, 2, ...; 0 for a detection that the landmark model has not confirmed yet"""
    shown: Track | None = None
    """as the last result has it; None while the face is out of sight"""
    frames: int = 0
    """in sight without a break"""
    doubtful: bool = True
    """new, cut off by the frame's edge or not where it was expected: the detector looks whether the points are on it"""

    recalled: bool = False
    """from the tracker before this one, and not seen by this one yet: nobody knows for how long it has moved"""

    def become_another(self) -> None:
        """In the same place stands somebody new."""
        self.smoother.forget()
        self.id, self.frames, self.velocity = 0, 0, np.zeros(2, np.float32)

    def may_be_elsewhere(self, time_s: float) -> bool:
        """Out of sight, or not seen for a while because no frame came: a camera stalls, a model warms up."""
        return self.shown is None or time_s - self.time_s > AWAITED_S

    def expected(self, time_s: float) -> F32:
        """(K, 2) frame px: the last points, carried on at the face's velocity for a while."""
        return self.points + self.velocity * np.float32(min(time_s - self.time_s, CARRIED_S))


CARRIED_S = 0.5
"""for so long a face out of sight is expected to go on as it went"""


AWAITED_S = 0.2
"""for so long it is looked at there in every frame; then only searches find it. A gap between frames that is
longer leaves every face to a search"""
