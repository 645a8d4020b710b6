"""Tracker: from a frame to the faces in it. Owns which faces are followed, where their crops lie, and their ids.

One frame goes: look for new faces (only when due) -> one crop a face -> one landmark batch -> frame px -> keep, lose or
merge. A followed face needs no detector: its next crop comes from its last points, carried on at its own velocity.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import hypot

import cv2
import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.geometry import apply, bounds, crop_from_frame, frame_from_unit, mirrored, warp
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import (
    F32,
    F64,
    Detector,
    Face,
    Floats,
    Frame,
    FrameLandmarker,
    Landmarker,
    NearDetector,
    Result,
    Track,
)
from lineament.stream.analyse.followed import AWAITED_S, Followed, Remembered, TrackConfig, TrackerState
from lineament.stream.analyse.scene import SAME_FACE, SAME_SCENE, SURELY_SAME_SCENE, Scene
from lineament.stream.analyse.smooth import Smoother


class Tracker:
    """Follows the faces of one source. detector and landmarker are borrowed, not closed.

    still: every frame stands alone; nothing is followed or smoothed from one to the next. The points of each
    crop are then averaged with those of its mirror image, at twice the time.

    A face whose box or points are not finite, in a heap or absurdly far away counts as not seen in this frame, so that
    no user of a result need expect such points.
    """

    def __init__(
        self, detector: Detector, landmarker: Landmarker, cfg: TrackConfig | None = None, *, still: bool = False
    ) -> None:
        self._detector, self._landmarker, self._cfg, self._still = detector, landmarker, cfg or TrackConfig(), still
        self._on_frame = landmarker.on_frame if isinstance(landmarker, FrameLandmarker) else None
        self._near = detector.near if isinstance(detector, NearDetector) else None
        self._schema = SCHEMAS[landmarker.card.schema]
        self.unusable = 0
        """faces not seen because a model gave a box or points that cannot be a face's, each once a frame"""
        self._followed: list[Followed] = []
        self._next_id = 1
        self._since_search, self._searched_s = 0, -math.inf
        self._scene = Scene(self._schema)
        self._changing = threading.Lock()
        self._before: tuple[TrackerState, float] | None = None

    def __call__(self, frame: Frame) -> Result:
        """Finds and follows the faces of the next frame. One thread at a time, frames in order."""
        ms: dict[str, float] = {}
        likeness = 1.0
        if self._still:
            self._followed, self._next_id = [], 1
        else:
            if self._before is not None:
                self._recall(frame)
            with _timed(ms, "track"):
                likeness = self._scene.likeness(frame)
            if likeness < SAME_SCENE:  # whoever was in the one before is not in this one
                with self._changing:
                    self._followed, self._searched_s = [], -math.inf
        regions = [followed.expected(frame.time_s) for followed in self._followed]
        awaited = {i for i, f in enumerate(self._followed) if f.shown or frame.time_s - f.time_s <= AWAITED_S}
        left_out = 0
        if (faces := self._detected(frame, regions, awaited, ms)) is not None:
            left_out = self._take_in(faces, regions, awaited, frame, ms)
        points, confidences = self._settle(frame, regions, awaited, ms)
        with _timed(ms, "track"), self._changing:
            tracks = self._update(frame, points, confidences, likeness < SURELY_SAME_SCENE)
        return Result(frame, tracks, ms, left_out)

    def state(self) -> TrackerState:
        """The faces that are followed now. May be called from any thread."""
        with self._changing:
            faces = tuple(Remembered(f.id, f.score, f.points) for f in self._followed if f.id)
            return TrackerState(self._next_id, faces)

    def resume(self, state: TrackerState, until_s: float = math.inf) -> None:
        """Goes on for a tracker that was lost, in whose place this one is; to be called before the first frame.

        Its faces are then out of sight since the first frame: who is found near one of them within patience_s has its
        id. until_s: of time.monotonic(); with a first frame captured later, they are strangers. Either way no id is
        given again.
        """
        with self._changing:
            self._next_id, self._before = state.next_id, (state, until_s)

    def _recall(self, frame: Frame) -> None:
        with self._changing:
            assert self._before is not None
            (state, until_s), self._before = self._before, None
            if frame.captured_s <= until_s:
                self._followed = [
                    Followed(f.score, f.points, frame.time_s, Smoother(self._schema), id=f.id, recalled=True)
                    for f in state.faces
                ]

    def _detected(
        self, frame: Frame, regions: Sequence[F32], awaited: set[int], ms: dict[str, float]
    ) -> tuple[Face, ...] | None:
        """What the detector says of this frame, or of where it is asked; None where it rests.

        Who is in doubt or just out of sight is looked for where expected: that is cheap, so searches may be seldom.
        """
        expected = [(self._followed[i], regions[i]) for i in sorted(awaited)]
        asked = [(f, r) for f, r in expected if (f.doubtful or f.shown is None) and _side(bounds(r), frame)]
        near = self._near
        if self._search_is_due(frame.time_s) or (asked and not near):
            with _timed(ms, "detect"):
                faces = self._detector(frame.bgr)
            self._since_search, self._searched_s = 1, frame.time_s
            return faces
        self._since_search += 1
        if not asked or not near:
            return None
        with _timed(ms, "check"):
            return near(frame.bgr, [Face(bounds(r), f.score, self._schema.roll_rad(r)) for f, r in asked])

    def _search_is_due(self, time_s: float) -> bool:
        in_sight = sum(not followed.may_be_elsewhere(time_s) for followed in self._followed)
        if in_sight and in_sight == len(self._followed):
            return self._since_search >= self._cfg.detect_every and in_sight < self._limit
        # also when time has gone back
        return self._still or self._cfg.detect_every == 1 or not 0 <= time_s - self._searched_s < _PAUSE_S

    @property
    def _limit(self) -> float:
        """Of the faces that are followed."""
        return self._cfg.max_faces or math.inf

    def _take_in(
        self, faces: Sequence[Face], regions: list[F32], awaited: set[int], frame: Frame, ms: dict[str, float]
    ) -> int:
        """Gives each detected face to its owner: one in sight, one out of sight, or a new one.

        Returns how many are left out because max_faces are followed.

        A face in sight needs no detection, unless its points have slid away from it or stand on their head: a neck, or
        a face upside down, can look right to a landmark model that is shown nothing else.

        regions: (K, 2) points to crop round, one for each followed face; corrected and added to here. awaited: the
        faces that will be looked at there.
        """
        detected = faces
        faces = [face for face in detected if _side(face.box_xyxy, frame) and math.isfinite(face.roll_rad)]
        self.unusable += len(detected) - len(faces)
        boxes = [face.box_xyxy for face in faces]
        gaps = _gaps(boxes, _boxes(regions))
        # whose velocity was wrong is nearer to where it was
        nearest = np.minimum(gaps, _gaps(boxes, _boxes([followed.points for followed in self._followed])))
        patience_s = self._cfg.patience_s  # after longer, who stands elsewhere is somebody else
        anywhere = [f.may_be_elsewhere(frame.time_s) and frame.time_s - f.time_s <= patience_s for f in self._followed]
        reach = np.where(anywhere, _SAME_FACE_UNSEEN, _SAME_FACE)
        owners = _nearest_first(nearest, nearest < reach)
        strayed = [
            (faces[k], i)
            for k, i in owners.items()
            if not self._followed[i].shown or gaps[k, i] > _SLID_OFF or self._is_turned(faces[k], regions[i])
        ]
        room = self._limit - sum(followed.shown is not None for followed in self._followed)
        newcomers = [(face, None) for k, face in enumerate(faces) if k not in owners]
        taken = int(min(room, len(newcomers)))
        found: list[tuple[Face, int | None]] = [*strayed, *newcomers[:taken]]
        # a first look at the detector's box, so that the second gets the crop that the points themselves ask for
        looks = self._landmarks(frame, [f.box_xyxy for f, _ in found], [f.roll_rad for f, _ in found], ms)
        for (face, owner), points_frame, confidence in zip(found, *looks):
            side = _side(bounds(points_frame), frame)
            if side < _MIN_FACE_PX:
                # who is followed already gets another look
                self.unusable += not side and owner is None and confidence >= self._cfg.min_confidence
                continue
            if owner is None:
                owner = len(regions)
                self._followed.append(Followed(face.score, points_frame, frame.time_s, Smoother(self._schema)))
                regions.append(points_frame)
            else:
                self._followed[owner].score = face.score
                regions[owner] = points_frame
            awaited.add(owner)
        return len(newcomers) - taken

    def _is_turned(self, face: Face, region: F32) -> bool:
        """Whether a face lies, for the detector, otherwise than the points that follow it.

        Of upright ones it says nothing: a face that has rolled over, and is followed, may look upright to it.
        """
        lies = math.cos(face.roll_rad) <= _UPRIGHT
        return lies and math.cos(face.roll_rad - self._schema.roll_rad(region)) < 0

    def _settle(
        self, frame: Frame, regions: Sequence[F32], awaited: set[int], ms: dict[str, float]
    ) -> tuple[list[F32], list[float]]:
        """Points of the faces awaited at `regions`, (K, 2) frame px each; looked at again where they have moved on.

        A model is at its best with the face in the middle of the crop, and a face that jumped is not: its points come
        out somewhere between where it was expected and where it is. A face without usable points, or not awaited, has
        confidence nan.
        """
        points, confidences = list(regions), [math.nan] * len(regions)
        boxes = _boxes(regions)
        # after a long pause, a velocity may carry a face anywhere
        unsettled = [i for i in sorted(awaited) if _side(boxes[i], frame)]
        for _ in range(_MAX_LOOKS):
            looked_at = [points[i] for i in unsettled]
            rolls_rad = [self._schema.roll_rad(region) for region in looked_at]
            for i, new, confidence in zip(unsettled, *self._landmarks(frame, looked_at, rolls_rad, ms)):
                points[i], confidences[i] = new, confidence
            moved = []
            for i, box in zip(unsettled, _boxes([points[i] for i in unsettled])):
                seen = confidences[i] >= self._cfg.min_confidence and _side(box, frame)
                if seen and _gap(box, boxes[i]) > _SETTLED:
                    moved.append(i)
                boxes[i] = box
            unsettled = moved
        for i, region in enumerate(regions):
            if not _side(boxes[i], frame):
                self.unusable += confidences[i] >= self._cfg.min_confidence
                points[i], confidences[i] = region, math.nan
        return points, confidences

    def _landmarks(
        self, frame: Frame, regions: Sequence[Floats], rolls_rad: Sequence[float], ms: dict[str, float]
    ) -> tuple[list[F32], list[float]]:
        """regions: (4,) boxes or (K, 2) points, frame px -> (K, 2) points in frame px and a confidence for each."""
        if not regions:
            return [], []
        card = self._landmarker.card
        with _timed(ms, "crop"):
            matrices = [crop_from_frame(region, card, roll) for region, roll in zip(regions, rolls_rad)]
            if self._still:
                matrices += [mirrored(matrix, card.input_hw) for matrix in matrices]
        if self._on_frame is not None:
            with _timed(ms, "landmark"):
                points_unit, confidences = self._on_frame(frame.bgr, matrices)
        else:
            with _timed(ms, "crop"):
                crops = [cv2.cvtColor(warp(frame.bgr, m, card.input_hw), cv2.COLOR_BGR2RGB) for m in matrices]
                rgb_NHWC = np.stack(crops).astype(np.uint8, copy=False)
            with _timed(ms, "landmark"):
                points_unit, confidences = self._landmarker(rgb_NHWC)
        points = [apply(frame_from_unit(m, card.input_hw), unit) for m, unit in zip(matrices, points_unit)]
        if self._still:
            n, flip = len(regions), np.array(self._schema.flip)
            with np.errstate(over="ignore", invalid="ignore"):
                points = [np.asarray((seen + twin[flip]) / 2, np.float32) for seen, twin in zip(points[:n], points[n:])]
            confidences = np.asarray((confidences[:n] + confidences[n:]) / 2, np.float32)
        return points, [float(confidence) for confidence in confidences]

    def _update(
        self, frame: Frame, points: Sequence[F32], confidences: Sequence[float], maybe_cut: bool
    ) -> tuple[Track, ...]:
        """Says which of the faces seen is which of those followed: each is the one that was expected there.

        maybe_cut: between the frame before and this one, so that it takes more than the right place to be the same face
        """
        expected = _boxes([followed.expected(frame.time_s) for followed in self._followed])
        boxes = _boxes(points)
        gaps, between = _gaps(boxes, expected), _gaps(boxes, boxes)
        # a crop that slid onto a neighbour's face brings the neighbour's points: the less expected copy goes
        newcomer = [followed.shown is None for followed in self._followed]
        seen = np.zeros(len(boxes), bool)
        for i in sorted(range(len(boxes)), key=lambda i: (newcomer[i], gaps[i, i])):
            seen[i] = self._is_face(boxes[i], confidences[i], frame) and not (between[i, seen] < _SAME_FACE).any()
        for followed, absent in zip(self._followed, newcomer):
            followed.shown = None
            if absent:  # what it did while out of sight is no motion to smooth
                followed.smoother.forget()
                followed.frames = 0
        may_be = ((gaps < _SAME_FACE) | np.eye(len(boxes), dtype=bool)) & seen[:, None]
        for i, j in _nearest_first(gaps, may_be).items():
            followed = self._followed[j]
            alone = maybe_cut and (np.delete(between[i], i) > 1).all()  # nobody hides it
            if alone and followed.frames and self._is_another(followed.points, points[i], frame):
                followed.become_another()
            self._show(followed, points[i], confidences[i], frame.time_s)
            followed.doubtful = (
                followed.frames < _YOUNG_FRAMES or gaps[i, j] > _SETTLED or _share_outside(boxes[i], frame) > _CUT_OFF
            )
        oldest_s = frame.time_s - self._cfg.patience_s
        kept = [f for f in self._followed if f.shown or (f.id and f.time_s >= oldest_s)]
        kept.sort(key=lambda f: (f.shown is None, f.id))
        self._followed = kept[: int(min(self._limit, len(kept)))]
        return tuple(f.shown for f in self._followed if f.shown)

    def _is_another(self, before: F32, now: F32, frame: Frame) -> bool:
        """Whether in the place of a face stands another one; what the frame's edge cuts cannot tell."""
        whole = max(_share_outside(bounds(points), frame) for points in (before, now)) <= -_ROUND_A_FACE
        return whole and self._scene.face_likeness(before, now) < SAME_FACE

    def _is_face(self, box_xyxy: F32, confidence: float, frame: Frame) -> bool:
        x, y = (box_xyxy[:2] + box_xyxy[2:]) / 2
        inside = 0 <= x < frame.bgr.shape[1] and 0 <= y < frame.bgr.shape[0]
        return bool(
            confidence >= self._cfg.min_confidence and inside and (box_xyxy[2:] - box_xyxy[:2]).min() >= _MIN_FACE_PX
        )

    def _show(self, followed: Followed, points: F32, confidence: float, time_s: float) -> None:
        """Moves a followed face to its new points and sets how it looks from outside."""
        middle: F32 = np.add.reduce(points, 0) / np.float32(len(points))
        elapsed_s, known = time_s - followed.middle_s, bool(followed.id) and not followed.recalled
        if known and elapsed_s >= _SHORTEST_S:
            velocity = (middle - followed.middle) / np.float32(elapsed_s)
            mean = (followed.velocity + velocity) / 2 if followed.frames > 1 else velocity
            followed.velocity = np.asarray(mean, np.float32)
        if not known or elapsed_s >= _SHORTEST_S:
            followed.middle, followed.middle_s = middle, time_s
        followed.points, followed.time_s, followed.frames = points, time_s, followed.frames + 1
        followed.recalled = False
        if not followed.id:
            followed.id, self._next_id = self._next_id, self._next_id + 1
        if self._cfg.smooth and not self._still:
            points = followed.smoother(points, time_s)
        face = Face(bounds(points), followed.score, self._schema.roll_rad(points))
        followed.shown = Track(followed.id, face, points, confidence)


_ROUND_A_FACE = 0.1
"""of a face's size, round its points: comparing faces looks at that too, and the frame's edge may hide it"""
_SAME_FACE = 0.4
"""two boxes whose centres lie nearer than this, in face sizes, show one face"""
_PAUSE_S = 0.16
"""between searches while nobody is in sight, or somebody is lost"""
_SLID_OFF = 0.2
"""points whose middle is further than this from the detector's, in face sizes, are not on the face; where they are,
on hard ones it is 0.13 in nine of ten and 0.24 in 99 of 100, and looking again does no harm"""
_UPRIGHT = 0.7
"""cosine of its roll, up to which a face lies"""
_CUT_OFF = 0.1
"""a face with more of its box outside the frame than this is doubtful: a model imagines the rest"""
_SHORTEST_S = 0.02
"""over less than this no velocity is measured: a network delivers frames in bursts, stamped when they arrive"""
_YOUNG_FRAMES = 5
"""until then a face's velocity is a guess"""
_SAME_FACE_UNSEEN = 1.5
"""the same for a face that was not seen for a while, which may have gone anywhere near"""
_SETTLED = 0.08
"""a face whose centre moved less than this between two looks, in face sizes, has been found"""
_MAX_LOOKS = 3
"""at one face in one frame; two are enough for all but the wildest"""
_MIN_FACE_PX = 8
"""a smaller face has no room for its points"""
_FARTHEST = 4
"""longer sides of the frame: no face that is partly in it has a point further away"""


def _nearest_first(gaps_MN: F64, may_be_MN: NDArray[np.bool_]) -> dict[int, int]:
    """Pairs of those that may be one: {row: column}, each used once, the nearest settled first."""
    matched: dict[int, int] = {}
    taken: set[int] = set()
    rows, columns = np.nonzero(may_be_MN)
    for k in np.argsort(gaps_MN[rows, columns], kind="stable"):
        row, column = int(rows[k]), int(columns[k])
        if row not in matched and column not in taken:
            matched[row] = column
            taken.add(column)
    return matched


def _boxes(points: Sequence[F32]) -> list[F32]:
    """bounds of each (K, 2), at once: much faster where there are many."""
    if len(points) < 2:
        return [bounds(one) for one in points]
    stacked = np.stack(points)
    return list(np.concatenate([stacked.min(1), stacked.max(1)], 1))


def _side(box_xyxy: F32, frame: Frame) -> float:
    """The shorter side of a box, px; 0 for one that no face has: under a pixel, absurdly far away or not finite."""
    x1, y1, x2, y2 = box_xyxy.tolist()
    farthest, side = _FARTHEST * max(frame.bgr.shape[:2]), min(x2 - x1, y2 - y1)
    near = -farthest <= x1 and -farthest <= y1 and x2 <= farthest and y2 <= farthest
    return side if near and side >= 1 else 0.0


def _gaps(a_xyxy: Sequence[F32], b_xyxy: Sequence[F32]) -> F64:
    """(M, N): _gap of each of M boxes to each of N."""
    if len(a_xyxy) * len(b_xyxy) < 10:
        return np.array([[_gap(a, b) for b in b_xyxy] for a in a_xyxy], np.float64).reshape(len(a_xyxy), len(b_xyxy))
    a, b = (np.array(boxes, np.float64) for boxes in (a_xyxy, b_xyxy))
    apart_MN2 = ((a[:, :2] + a[:, 2:])[:, None] - (b[:, :2] + b[:, 2:])) / 2
    size_M, size_N = ((boxes[:, 2:] - boxes[:, :2]).max(1) for boxes in (a, b))
    return np.asarray(np.hypot(*apart_MN2.transpose(2, 0, 1)) / np.maximum((size_M[:, None] + size_N) / 2, 1e-6))


def _gap(a_xyxy: F32, b_xyxy: F32) -> float:
    """Distance of two boxes' centres in units of their mean size."""
    # four numbers each: plain floats are several times faster here than arrays
    ax1, ay1, ax2, ay2 = a_xyxy.tolist()
    bx1, by1, bx2, by2 = b_xyxy.tolist()
    size = (max(ax2 - ax1, ay2 - ay1) + max(bx2 - bx1, by2 - by1)) / 2
    return float(hypot(ax1 + ax2 - bx1 - bx2, ay1 + ay2 - by1 - by2) / 2 / max(size, 1e-6))


def _share_outside(box_xyxy: F32, frame: Frame) -> float:
    """How far a box sticks out of the frame, over its own size."""
    height, width = frame.bgr.shape[:2]
    x1, y1, x2, y2 = box_xyxy.tolist()
    return float(max(-x1, -y1, x2 - width, y2 - height) / max(x2 - x1, y2 - y1, 1e-6))


@contextmanager
def _timed(ms: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the block's milliseconds to ms[stage]."""
    began = time.perf_counter()
    try:
        yield
    finally:
        ms[stage] = ms.get(stage, 0.0) + (time.perf_counter() - began) * 1e3
