"""The values that travel through the house. Frozen; an array in them is never written to after hand-over.

Pixel convention, stated once: an integer coordinate is the centre of a pixel, x right, y down. An image of
width w covers -0.5 .. w - 0.5, and a horizontal flip is `w - 1 - x`. Unit coordinates of a crop of width w
are `(x + 0.5) / w`: 0 and 1 are the crop's edges whatever its size, and a flip is `1 - x`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.card import ModelCard

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


class LineamentError(Exception):
    """A failure that the user can act on: what, got, wanted, next. The CLI prints it and exits 1."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source."""

    bgr: U8
    """(H, W, 3) uint8"""
    source: str
    """what a log may show: a path, a camera number, a URL without its password"""
    index: int
    """0, 1, 2, ... as the source delivered them; a gap is a dropped frame"""
    time_s: float
    """seconds since the source began: the container's timestamp for a file, the clock for a camera"""
    captured_s: float
    """time.monotonic() when the picture left the source; a frame's age counts from here"""


@dataclass(frozen=True, slots=True)
class Face:
    """What a detector says of one face."""

    box_xyxy: F32
    """(4,) frame px"""
    score: float
    """0..1"""
    roll_rad: float = 0.0
    """in-plane angle of the eye line, 0 when level, positive when it turns clockwise on the screen"""


@dataclass(frozen=True, slots=True)
class Track:
    """One face that is being followed."""

    id: int
    face: Face
    points: F32
    """(K, 2) frame px, in the order of the model's schema"""
    confidence: float
    """0..1, the landmark model's own belief that a face is there"""


@dataclass(frozen=True, slots=True)
class Result:
    """A frame and every face in it; no face is an empty tuple."""

    frame: Frame
    tracks: tuple[Track, ...]
    ms: Mapping[str, float] = field(default_factory=dict)
    """milliseconds by stage, those that ran: capture, detect, check, crop, landmark, track, ..."""
    left_out: int = 0
    """faces that were found in this frame but are not followed, because as many as allowed are"""


class Landmarks(NamedTuple):
    """What a landmark model says of N crops."""

    points_unit: F32
    """(N, K, 2) unit crop coordinates; outside 0..1 where a point lies outside its crop"""
    confidence: F32
    """(N,) 0..1; all ones for a model that does not judge"""


class Detector(Protocol):
    """Finds faces in a picture. A context manager, cheap to construct; `close` may be called twice."""

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        """bgr: (H, W, 3) uint8. Best score first; no face is an empty tuple."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class NearDetector(Detector, Protocol):
    """A Detector that can also look only where faces are expected, for a fraction of a search."""

    def near(self, bgr: U8, faces: Sequence[Face]) -> tuple[Face, ...]:
        """bgr: (H, W, 3) uint8. What is there near these boxes, each levelled by its roll. Best score first."""
        ...


class Landmarker(Protocol):
    """Puts points on crops. A context manager; `close` may be called twice; a call after it raises."""

    @property
    def card(self) -> ModelCard: ...

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        """rgb_NHWC: (N, H, W, 3) uint8 with H, W of card.input_hw. N = 0 is allowed. Another dtype or shape raises."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class FrameLandmarker(Landmarker, Protocol):
    """A Landmarker that also cuts the crops itself, where that is faster than to be given them: on a GPU."""

    def on_frame(self, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
        """bgr: (H, W, 3) uint8, which is not kept. One set of points for each of the (2, 3) matrices, in its crop."""
        ...
