"""Followed: the state of one face from frame to frame, and the settings of a tracker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lineament.landmarks.types import F32, F64, Track
from lineament.stream.analyse.neutral import Neutral
from lineament.stream.analyse.smooth import Smoother


@dataclass(frozen=True, slots=True)
class TrackConfig:
    """When to search for faces and when to drop one."""

    max_faces: int = 32
    """Most faces to follow in a video, 0 for no limit. While that many are in sight, the detector rests. In still
    pictures every face is shown."""
    detect_every: int = 10
    """Frames between searches for new faces: 10 at 30 fps finds a new face within a third of a second. While no
    face is in sight or one is lost, and after a gap of more than 0.2 s, it searches six times a second. 1 searches
    every frame."""
    min_confidence: float = 0.5
    """Least confidence of the landmark model, 0..1; below it a face counts as not seen in this frame."""
    patience_s: float = 1.5
    """Seconds for which a face out of sight keeps its id."""
    smooth: bool = True
    """Smooth the points of a video (One Euro filter); still pictures are never smoothed."""

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
    """One face of a tracker that another takes over."""

    id: int
    score: float
    """of the detector, when it last found this face"""
    points: F32
    """(K, 2) frame px"""


@dataclass(frozen=True, slots=True)
class TrackerState:
    """What a tracker passes to its successor: 1 kB a face. No velocity, because the gap in time is unknown."""

    next_id: int
    """the next unused id"""
    faces: tuple[Remembered, ...] = ()


class Look(NamedTuple):
    """What the landmark model says of one crop."""

    points: F32
    """(K, 2) frame px"""
    confidence: float
    visibility: F32 | None
    """(K,) 0..1"""


@dataclass(slots=True)
class Followed:
    """The tracker's state of one face."""

    score: float
    """of the detector, when it last found this face"""
    points: F32
    """(K, 2) frame px, straight from the model: the next crop comes from these"""
    time_s: float
    smoother: Smoother
    velocity: F32 = field(default_factory=lambda: np.zeros(2, np.float32))
    """(2,) px/s of the whole face"""
    middle: F32 = field(default_factory=lambda: np.zeros(2, np.float32))
    """(2,) frame px of the face when its velocity was last measured"""
    middle_s: float = 0.0
    """when that was"""
    visibility: F32 | None = None
    """(K,) 0..1, as in Track"""
    id: int = 0
    """1, 2, ...; 0 until the landmark model confirms the detection"""
    shown: Track | None = None
    """as in the last result; None while the face is out of sight"""
    frames: int = 0
    """in sight in a row"""
    doubtful: bool = True
    """new, cut off by the frame's edge or not where it was expected: the detector checks that the points are on it"""
    recalled: bool = False
    """taken over from another tracker and not seen yet: how long it has been moving is unknown"""
    neutral: Neutral = field(default_factory=Neutral)
    irises: F64 | None = None
    """(2,) as find_irises returns them, of the last frame"""

    def become_another(self) -> None:
        """Starts again as a new face at the same place."""
        self.smoother.forget()
        self.neutral = Neutral()
        self.id, self.frames, self.velocity = 0, 0, np.zeros(2, np.float32)

    def may_be_elsewhere(self, time_s: float) -> bool:
        """Out of sight, or not seen for a while because no frame came (a stalled camera, a model warming up)."""
        return self.shown is None or time_s - self.time_s > AWAITED_S

    def expected(self, time_s: float) -> F32:
        """(K, 2) frame px: the last points, extrapolated at the face's velocity for up to EXTRAPOLATED_S."""
        return self.points + self.velocity * np.float32(min(time_s - self.time_s, EXTRAPOLATED_S))


EXTRAPOLATED_S = 0.5
"""for which a face out of sight is expected to keep its velocity"""

AWAITED_S = 0.2
"""for which it is looked at there in every frame; after that, or after a longer gap between frames, only a search
finds it"""
