"""Shared value types and protocols. Values are frozen, and their arrays are never written to after hand-over.

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
    """A failure that the user can act on: what, got, wanted, next. The CLI prints it and exits with 1."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One image from a source."""

    bgr: U8
    """(H, W, 3) uint8"""
    source: str
    """safe to log: a path, a camera number, a URL without its password"""
    index: int
    """0, 1, 2, ... in the order of the source; a gap is a dropped frame"""
    time_s: float
    """seconds since the source began: the container's timestamp for a file, the clock for a camera"""
    captured_s: float
    """time.monotonic() when the source delivered it; a frame's age counts from then"""
    stamp_s: float | None = None
    """its timestamp in its file, on the clock of the file's audio; None for all others"""


@dataclass(frozen=True, slots=True)
class Face:
    """A detected face."""

    box_xyxy: F32
    """(4,) frame px"""
    score: float
    """0..1"""
    roll_rad: float = 0.0
    """in-plane angle of the eye line, 0 if level, positive clockwise on the screen"""


@dataclass(frozen=True, slots=True)
class Track:
    """A tracked face."""

    id: int
    face: Face
    points: F32
    """(K, 2) frame px, in the order of the model's schema"""
    confidence: float
    """0..1, the landmark model's own confidence that there is a face"""
    visibility: F32 | None = None
    """(K,) 0..1: how surely each point is seen; low behind sunglasses, a mask or a hand, 0 outside the frame; None from
    a model without this output"""
    mesh: F32 | None = None
    """(468, 2) frame px, the points of schema.MESH468; None unless they are wanted"""
    irises: F32 | None = None
    """(2, 2) frame px, that on the left of the image first; nan for one that cannot be seen (landmarks/iris.py)"""
    neutral: F64 | None = None
    """(M,) measures of this person's relaxed face, learnt so far (landmarks/measures.py); None in still pictures"""


@dataclass(frozen=True, slots=True)
class Result:
    """A frame and its faces; no face is an empty tuple."""

    frame: Frame
    tracks: tuple[Track, ...]
    ms: Mapping[str, float] = field(default_factory=dict)
    """milliseconds by stage, for stages that ran: capture, detect, check, crop, landmark, track, ..."""
    left_out: int = 0
    """faces found in this frame but not tracked, because the limit is reached"""


class Landmarks(NamedTuple):
    """A landmark model's output for N crops."""

    points_unit: F32
    """(N, K, 2) unit crop coordinates; outside 0..1 for a point outside its crop"""
    confidence: F32
    """(N,) 0..1; all ones for a model without this output"""
    visibility: F32 | None = None
    """(N, K) 0..1: how surely each point is seen; None from a model without this output"""


class Detector(Protocol):
    """Finds faces in an image. A context manager, cheap to construct; `close` may be called twice."""

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        """bgr: (H, W, 3) uint8. Best score first; no face is an empty tuple."""
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


@runtime_checkable
class NearDetector(Detector, Protocol):
    """A Detector that can also look only where faces are expected, at a fraction of the cost."""

    def near(self, bgr: U8, faces: Sequence[Face]) -> tuple[Face, ...]:
        """bgr: (H, W, 3) uint8. The faces near these boxes, each levelled by its roll. Best score first."""
        ...


class Landmarker(Protocol):
    """Finds landmarks in crops. A context manager; `close` may be called twice; a call after it raises."""

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
    """A Landmarker that can also cut the crops itself, which is faster on a GPU."""

    def on_frame(self, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
        """bgr: (H, W, 3) uint8, not kept. One set of points per (2, 3) matrix, in unit coordinates of its crop."""
        ...
