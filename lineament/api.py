"""The public Python API: faces in an image, in a stream, and in your own frames.

Images are (H, W, 3) uint8 in BGR, as OpenCV reads them. Points and boxes are in image pixels; integer coordinates are
pixel centres. The 98 points are in WFLW order.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from lineament import engines
from lineament.landmarks.expression import expression
from lineament.landmarks.gaze import Gaze, gaze
from lineament.landmarks.pose import AspectRatios, Fit, HeadPose, aspect_ratios, fit
from lineament.landmarks.schema import SCHEMAS, WFLW98
from lineament.landmarks.types import F32, F64, U8, Landmarker, LineamentError, Result
from lineament.landmarks.types import Frame as _Frame
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.detect import MIN_SCORE
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.read.image import read_image
from lineament.stream.read.reconnect import RetryConfig, reconnecting
from lineament.stream.read.spec import ReadConfig
from lineament.stream.run.pipeline import Pipeline


@dataclass(frozen=True)
class Face:
    """One face."""

    points: F32
    """(98, 2) px"""
    box: F32
    """(4,) px: x0, y0, x1, y1"""
    id: int
    """constant while the face is tracked; 1, 2, ... in an image"""
    score: float
    """detection score, 0..1"""
    confidence: float
    """0..1: the landmark model's probability that this is a face"""
    image_hw: tuple[int, int]
    """height and width of the image"""
    visibility: F32 | None = None
    """(98,) 0..1: how surely each point is seen, not hidden; None with a model that does not say"""
    irises: F32 | None = None
    """(2, 2) px, that on the left of the image first; nan for one that cannot be seen"""
    neutral: F64 | None = None
    """measures of this person's relaxed face, learnt while the face is tracked; None in an image"""

    def part(self, name: str) -> F32:
        """(N, 2) px: 'contour', 'left_brow', 'nose_ridge', 'left_eye', 'outer_lips', 'left_pupil' and so on.

        Left is the left of the image. Raises LineamentError for an unknown part.
        """
        if name not in WFLW98.parts:
            raise LineamentError(f"a face has no part {name!r}; choose from {', '.join(WFLW98.parts)}")
        return np.asarray(WFLW98.part(name, self.points), np.float32)

    @cached_property
    def pose(self) -> HeadPose:
        """Degrees: yaw_deg > 0 to the right of the image, pitch_deg > 0 up, roll_deg > 0 clockwise; nan if unknown."""
        return self._fit.pose

    @cached_property
    def gaze(self) -> Gaze:
        """Degrees: yaw_deg > 0 to the right of the image, pitch_deg > 0 up, both 0 for a look into the camera.

        nan while the eyes are closed or less than 18 px wide.
        """
        return gaze(self.points, self._fit, self.irises, self.neutral)

    @cached_property
    def expression(self) -> dict[str, float]:
        """Coefficients from 0 to 1 by ARKit's names: "jawOpen", "eyeBlinkLeft" and so on; nan if unknown.

        Here Left is the person's left, which is on the right of an image that is not mirrored.
        """
        return expression(self.points, self._fit, self.irises, self.neutral, self.visibility)

    @cached_property
    def openness(self) -> AspectRatios:
        """Height over width of left_eye, right_eye and mouth: 0 is closed; an open eye has about 0.3; nan if hidden."""
        return aspect_ratios(self.points, visibility=self.visibility)

    @cached_property
    def _fit(self) -> Fit:
        return fit(self.points, self.image_hw)


@dataclass(frozen=True)
class Frame:
    """One frame of a stream, with its faces."""

    image: U8
    """(H, W, 3) BGR"""
    faces: list[Face]
    index: int
    """frame number in its source; a live source skips some"""
    time_s: float
    """seconds since the source started"""


def find(
    image: str | os.PathLike[str] | U8,
    *,
    model: str = engines.DEFAULT,
    device: str = "auto",
    min_score: float = MIN_SCORE,
) -> list[Face]:
    """Returns every face in an image, best first. Thread-safe; calls with the same model share it and take turns.

    image: a file, of which the first page or frame is read, or (H, W, 3) uint8 BGR. model, device: as for `lineament
    stream`. min_score: minimum detection score, 0..1. Raises LineamentError if image is not an image.
    """
    bgr = read_image(Path(image)) if isinstance(image, str | os.PathLike) else _checked(image)
    landmarker, lock = _shared(model, device)
    with lock, Analyser(landmarker, still=True, min_score=min_score) as analyse:
        return _faces(analyse(_Frame(bgr, "picture", 0, 0.0, time.monotonic())))


def stream(
    source: str | int = "auto",
    *,
    model: str = engines.DEFAULT,
    device: str = "auto",
    track: TrackConfig | None = None,
    retry_s: float = float("inf"),
    stream: int | None = None,
    poll_s: float | None = None,
) -> Iterator[Frame]:
    """Yields the frames of a source with their faces: every frame of a file; the newest of a camera, skipping others.

    source: as for `lineament stream`: a camera number, a file, a folder of images, an rtsp:// or http:// URL, 'sample',
    or 'auto', the webcam. stream: the number of a file's video stream; by default the largest. poll_s: fetch a picture
    at an http:// address every so many seconds. A lost live source is reopened for up to retry_s seconds. Closing the
    iterator or leaving its loop closes the source and ends its threads. Raises LineamentError if the source cannot be
    read.
    """
    with ExitStack() as stack:
        landmarker = stack.enter_context(engines.load(model, device))
        _check_schema(landmarker, model)
        one = reconnecting(str(source), RetryConfig(retry_s), ReadConfig(stream, poll_s))
        stack.callback(one.close)
        analyser = stack.enter_context(Analyser(landmarker, track, still=one.still))
        for result in stack.enter_context(Pipeline(one, analyser)):
            yield Frame(result.frame.bgr, _faces(result), result.frame.index, result.frame.time_s)


class Tracker:
    """Tracks faces through your own frames. A context manager; not thread-safe.

    with lineament.Tracker() as tracker:
        faces = tracker(image_bgr, time_s)
    """

    def __init__(self, *, model: str = engines.DEFAULT, device: str = "auto", track: TrackConfig | None = None) -> None:
        """model, device: as for `lineament stream`. Raises LineamentError if the model cannot run."""
        with ExitStack() as stack:
            self._landmarker = stack.enter_context(engines.load(model, device))
            _check_schema(self._landmarker, model)
            self._analyse = stack.enter_context(Analyser(self._landmarker, track))
            self._stack = stack.pop_all()
        self._index, self._time_s = 0, -np.inf

    def __call__(self, image: U8, time_s: float | None = None) -> list[Face]:
        """Returns the faces in the next frame. image: (H, W, 3) uint8 BGR.

        time_s: capture time in seconds on any clock, never decreasing; the current time if None.
        """
        now_s = time.monotonic()
        time_s = now_s if time_s is None else time_s
        if not time_s >= self._time_s:
            raise LineamentError(f"time_s went back from {self._time_s} to {time_s}; use one tracker per source")
        self._time_s = time_s
        result = self._analyse(_Frame(_checked(image), "frames", self._index, time_s, now_s))
        self._index += 1
        return _faces(result)

    def close(self) -> None:
        """Frees the model. May be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


_opened: dict[tuple[str, str], tuple[Landmarker, threading.Lock]] = {}
_opening = threading.Lock()


def _shared(model: str, device: str) -> tuple[Landmarker, threading.Lock]:
    """The model that all calls of `find` share, because loading one takes longer than an image."""
    with _opening:
        if (model, device) not in _opened:
            landmarker = engines.load(model, device)
            _check_schema(landmarker, model)
            _opened[model, device] = (landmarker, threading.Lock())
        return _opened[model, device]


def _check_schema(landmarker: Landmarker, model: str) -> None:
    if SCHEMAS[landmarker.card.schema] is not WFLW98:
        raise LineamentError(
            f"{model} returns points of schema {landmarker.card.schema}, wanted {WFLW98.name}; use `lineament stream`"
        )


def _checked(image: U8) -> U8:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise LineamentError(f"an image is (H, W, 3) uint8 in BGR, as cv2.imread returns it; got {got}")
    return image


def _faces(result: Result) -> list[Face]:
    hw = result.frame.bgr.shape[:2]
    return [
        Face(t.points, t.face.box_xyxy, t.id, t.face.score, t.confidence, hw, t.visibility, t.irises, t.neutral)
        for t in result.tracks
    ]
