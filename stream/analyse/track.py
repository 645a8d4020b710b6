"""Tracker: from a frame to the faces in it. Owns which faces are followed, where their crops lie, and their ids.

One frame: search for new faces (only when due) -> one crop a face -> one landmark batch -> frame px -> keep, drop or
merge. A followed face needs no detector: its next crop comes from its last points, extrapolated at its own velocity.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.geometry import apply, bounds, crop_from_frame, frame_from_unit, mirrored, rgb_crops
from lineament.landmarks.iris import find_irises, place_irises
from lineament.landmarks.schema import SCHEMAS, WFLW98
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
from lineament.stream.analyse.followed import AWAITED_S, Followed, Look, Remembered, TrackConfig, TrackerState
from lineament.stream.analyse.match import (
    boxes_of,
    center_inside,
    gap_between,
    gaps_between,
    nearest_first,
    share_outside,
    shorter_side,
)
from lineament.stream.analyse.scene import SAME_FACE, SAME_SCENE, SURELY_SAME_SCENE, Scene
from lineament.stream.analyse.smooth import Smoother

_COMPARED_MARGIN = 0.1
"""of a face's size, round its points: comparing faces looks at that too, and the frame's edge may hide it"""
_SAME_FACE = 0.4
"""two boxes with a smaller gap show one face"""
_SAME_HEAD = 0.8
"""the same for a face and its points upside down, which reach from the mouth to above the hair"""
_SAME_FACE_UNSEEN = 1.5
"""the same for a face that was out of sight for a while and may have moved anywhere near"""
_PAUSE_S = 0.16
"""between searches while nobody is in sight, or somebody is lost"""
_SLID_OFF = 0.2
"""points with a larger gap to the detector's box are not on the face; on hard faces where they are, the gap is 0.13 for
nine of ten and 0.24 for 99 of 100, and a second look does no harm"""
_UPRIGHT = 0.7
"""cosine of the roll up to which a face lies on its side or is upside down"""
_CUT_OFF = 0.1
"""a face with more of its box outside the frame is in doubt: the model guesses the rest"""
_SHORTEST_S = 0.02
"""no velocity is measured over less: a network delivers frames in bursts, stamped on arrival"""
_YOUNG_FRAMES = 5
"""until then a face's velocity is a guess"""
_SETTLED = 0.08
"""a face whose box moved by a smaller gap between two looks has been found"""
_MAX_LOOKS = 3
"""at one face in one frame; two are enough for all but the wildest"""
_NEW_SHARE = 0.5
"""of the newest look in a point's visibility: objects in front of a face stay for more than a few frames"""
_MIN_FACE_PX = 8
"""a smaller face has no room for its points"""


class Tracker:
    """Follows the faces of one source. detector and landmarker are borrowed, not closed.

    still: every frame stands alone; nothing is followed or smoothed from one to the next. The points of each
    crop are then averaged with those of its mirror image, at twice the time.
    expressive: also finds irises and learns each face's relaxed look, for gaze and expression; takes 0.3 ms a face.

    A face whose box or points are not finite, collapsed or absurdly far away counts as not seen in this frame, so no
    result contains such points.
    """

    def __init__(
        self,
        detector: Detector,
        landmarker: Landmarker,
        cfg: TrackConfig | None = None,
        *,
        still: bool = False,
        expressive: bool = True,
    ) -> None:
        self._detector, self._landmarker, self._cfg, self._still = detector, landmarker, cfg or TrackConfig(), still
        self._expressive = expressive and SCHEMAS[landmarker.card.schema] is WFLW98
        self._on_frame = landmarker.on_frame if isinstance(landmarker, FrameLandmarker) else None
        self._near = detector.near if isinstance(detector, NearDetector) else None
        self._schema = SCHEMAS[landmarker.card.schema]
        self.unusable = 0
        """faces not seen because a model returned a box or points that cannot be a face's; counted once a frame"""
        self._followed: list[Followed] = []
        self._next_id = 1
        self._since_search, self._searched_s = 0, -math.inf
        self._scene = Scene(self._schema)
        self._changing = threading.Lock()
        self._before: tuple[TrackerState, float] | None = None

    def __call__(self, frame: Frame) -> Result:
        """Finds and follows the faces of the next frame. One thread at a time, frames in order."""
        ms: dict[str, float] = {}
        likeness = self._likeness(frame, ms)
        if likeness < SAME_SCENE:  # a still picture or a cut: nobody from before is in this frame
            with self._changing:
                self._followed, self._searched_s = [], -math.inf
        regions = [followed.expected(frame.time_s) for followed in self._followed]
        awaited = {i for i, f in enumerate(self._followed) if f.shown or frame.time_s - f.time_s <= AWAITED_S}
        left_out = 0
        if (faces := self._detected(frame, regions, awaited, ms)) is not None:
            left_out = self._take_in(faces, regions, awaited, frame, ms)
        looks = self._settle(frame, regions, awaited, ms)
        with _timed(ms, "track"), self._changing:
            tracks = self._update(frame, looks, likeness < SURELY_SAME_SCENE)
        return Result(frame, tracks, ms, left_out)

    def state(self) -> TrackerState:
        """The faces followed now. May be called from any thread."""
        with self._changing:
            faces = tuple(Remembered(f.id, f.score, f.points) for f in self._followed if f.id)
            return TrackerState(self._next_id, faces)

    def resume(self, state: TrackerState, until_s: float = math.inf) -> None:
        """Takes over from a tracker that was lost; call it before the first frame.

        Its faces count as out of sight since the first frame: a face found near one of them within patience_s keeps
        its id. until_s: of time.monotonic(); if the first frame is captured later, all faces get new ids. No id is
        ever used twice.
        """
        with self._changing:
            self._next_id, self._before = state.next_id, (state, until_s)

    def _likeness(self, frame: Frame, ms: dict[str, float]) -> float:
        """Correlation of this frame with the one before, -1..1; of a still picture, the least."""
        if self._still:
            self._next_id = 1
            return -1.0
        if self._before is not None:
            self._recall(frame)
        with _timed(ms, "track"):
            return self._scene.likeness(frame)

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
        """The faces that the detector finds in this frame, or near the faces in doubt; None where it rests.

        Faces in doubt or just out of sight are checked where they are expected: that is cheap, so searches can be rare.
        """
        expected = [(self._followed[i], regions[i]) for i in sorted(awaited)]
        asked = [(f, r) for f, r in expected if (f.doubtful or f.shown is None) and shorter_side(bounds(r), frame)]
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
        """The number of faces that may be followed."""
        return self._cfg.max_faces or math.inf

    def _take_in(
        self, detected: Sequence[Face], regions: list[F32], awaited: set[int], frame: Frame, ms: dict[str, float]
    ) -> int:
        """Matches each detected face to one in sight, one out of sight, or a new one.

        Returns the number of faces left out because max_faces are followed.

        regions: (K, 2) points to crop round, one for each followed face; corrected and extended here. awaited: the
        faces that will be looked at there.
        """
        faces = [face for face in detected if shorter_side(face.box_xyxy, frame) and math.isfinite(face.roll_rad)]
        self.unusable += len(detected) - len(faces)
        gaps = gaps_between([face.box_xyxy for face in faces], boxes_of(regions))
        owners = self._owners(faces, gaps, frame.time_s)
        strayed = [(faces[k], i) for k, i in owners.items() if self._has_strayed(faces[k], i, regions[i], gaps[k, i])]
        newcomers = [face for k, face in enumerate(faces) if k not in owners]
        room = self._limit - sum(followed.shown is not None for followed in self._followed)
        taken = int(min(room, len(newcomers)))
        found: list[tuple[Face, int | None]] = [*strayed, *((face, None) for face in newcomers[:taken])]
        # a first look at the detector's box, so that the second gets the crop that the points themselves ask for
        looks = self._first_looks(frame, [face for face, _ in found], ms)
        for (face, owner), look in zip(found, looks):
            side = shorter_side(bounds(look.points), frame)
            if side < _MIN_FACE_PX:
                # a face that is followed already gets another look
                self.unusable += not side and owner is None and look.confidence >= self._cfg.min_confidence
                continue
            if owner is None:
                owner = len(regions)
                self._followed.append(Followed(face.score, look.points, frame.time_s, Smoother(self._schema)))
                regions.append(look.points)
            else:
                self._followed[owner].score = face.score
                regions[owner] = look.points
            awaited.add(owner)
        return len(newcomers) - taken

    def _first_looks(self, frame: Frame, faces: Sequence[Face], ms: dict[str, float]) -> list[Look]:
        """A look at each detected face; where that shows none, the look of the other way up, if that shows one.

        A detector may take a chin for a forehead.
        """
        looks = self._landmarks(frame, [face.box_xyxy for face in faces], [face.roll_rad for face in faces], ms)
        doubted = [k for k, look in enumerate(looks) if look.confidence < self._cfg.min_confidence]
        boxes, rolls_rad = [faces[k].box_xyxy for k in doubted], [faces[k].roll_rad + math.pi for k in doubted]
        for k, other in zip(doubted, self._landmarks(frame, boxes, rolls_rad, ms)):
            if other.confidence >= self._cfg.min_confidence:
                looks[k] = other
        return looks

    def _owners(self, faces: Sequence[Face], gaps: F64, time_s: float) -> dict[int, int]:
        """{detected face: followed face} of those that are one. gaps: (detected, followed), to where each is expected.

        A face out of sight may have moved further; after patience_s, a face elsewhere is somebody else.
        """
        # a face whose velocity was wrong is nearer to where it was
        last_boxes = boxes_of([followed.points for followed in self._followed])
        nearest = np.minimum(gaps, gaps_between([face.box_xyxy for face in faces], last_boxes))
        anywhere = [f.may_be_elsewhere(time_s) and time_s - f.time_s <= self._cfg.patience_s for f in self._followed]
        reach = np.where(anywhere, _SAME_FACE_UNSEEN, _SAME_FACE)
        return nearest_first(nearest, nearest < reach)

    def _has_strayed(self, face: Face, owner: int, region: F32, gap: float) -> bool:
        """Whether a followed face takes the detector's box in place of its own points.

        A face in sight does not, unless its points have slid off it or are upside down: a neck, or a face upside down,
        can look right to a landmark model that is shown nothing else.
        """
        return self._followed[owner].shown is None or gap > _SLID_OFF or self._is_turned(face, region)

    def _is_turned(self, face: Face, region: F32) -> bool:
        """Whether the detector sees a face lying the other way up than the points that follow it.

        An upright box is no evidence: a face that rolled over while it was followed may look upright to the detector.
        """
        lies = math.cos(face.roll_rad) <= _UPRIGHT
        return lies and math.cos(face.roll_rad - self._schema.roll_rad(region)) < 0

    def _settle(self, frame: Frame, regions: Sequence[F32], awaited: set[int], ms: dict[str, float]) -> list[Look]:
        """Looks at the awaited faces at `regions`, (K, 2) frame px each, and again where they have moved.

        A model is most accurate with the face in the middle of the crop. The points of a face that jumped come out
        somewhere between where it was expected and where it is. A face without usable points, or not awaited, has
        confidence nan.
        """
        looks = [Look(region, math.nan, None) for region in regions]
        boxes = boxes_of(regions)
        # after a long pause, a velocity may carry a face anywhere
        unsettled = [i for i in sorted(awaited) if shorter_side(boxes[i], frame)]
        for _ in range(_MAX_LOOKS):
            looked_at = [looks[i].points for i in unsettled]
            rolls_rad = [self._schema.roll_rad(region) for region in looked_at]
            for i, look in zip(unsettled, self._landmarks(frame, looked_at, rolls_rad, ms)):
                looks[i] = look
            moved = []
            for i, box in zip(unsettled, boxes_of([looks[i].points for i in unsettled])):
                seen = looks[i].confidence >= self._cfg.min_confidence and shorter_side(box, frame)
                if seen and gap_between(box, boxes[i]) > _SETTLED:
                    moved.append(i)
                boxes[i] = box
            unsettled = moved
        for i, region in enumerate(regions):
            if not shorter_side(boxes[i], frame):
                self.unusable += looks[i].confidence >= self._cfg.min_confidence
                looks[i] = Look(region, math.nan, None)
        return looks

    def _landmarks(
        self, frame: Frame, regions: Sequence[Floats], rolls_rad: Sequence[float], ms: dict[str, float]
    ) -> list[Look]:
        """Looks at each of regions: (4,) boxes or (K, 2) points, frame px."""
        if not regions:
            return []
        card = self._landmarker.card
        with _timed(ms, "crop"):
            matrices = [crop_from_frame(region, card, roll) for region, roll in zip(regions, rolls_rad)]
            if self._still:
                matrices += [mirrored(matrix, card.input_hw) for matrix in matrices]
        if self._on_frame is not None:
            with _timed(ms, "landmark"):
                points_unit, confidences, visibility = self._on_frame(frame.bgr, matrices)
        else:
            with _timed(ms, "crop"):
                rgb_NHWC = rgb_crops(frame.bgr, matrices, card.input_hw)
            with _timed(ms, "landmark"):
                points_unit, confidences, visibility = self._landmarker(rgb_NHWC)
        points = [apply(frame_from_unit(m, card.input_hw), unit) for m, unit in zip(matrices, points_unit)]
        if self._still:
            n, flip = len(regions), np.array(self._schema.flip)
            with np.errstate(over="ignore", invalid="ignore"):
                points = [np.asarray((seen + twin[flip]) / 2, np.float32) for seen, twin in zip(points[:n], points[n:])]
            confidences = np.asarray((confidences[:n] + confidences[n:]) / 2, np.float32)
            if visibility is not None:
                visibility = np.asarray((visibility[:n] + visibility[n:, flip]) / 2, np.float32)
        each = [None] * len(points) if visibility is None else list(visibility)
        return [Look(*look) for look in zip(points, map(float, confidences), each)]

    def _update(self, frame: Frame, looks: Sequence[Look], maybe_cut: bool) -> tuple[Track, ...]:
        """Matches the faces seen to those followed, each to the one expected nearest.

        maybe_cut: there may be a cut before this frame, so the same place alone does not make it the same face.
        """
        expected = boxes_of([followed.expected(frame.time_s) for followed in self._followed])
        boxes = boxes_of([look.points for look in looks])
        gaps, between = gaps_between(boxes, expected), gaps_between(boxes, boxes)
        seen = self._seen(looks, boxes, gaps, between, frame)
        for followed in self._followed:
            if followed.shown is None:  # motion while out of sight must not be smoothed
                followed.smoother.forget()
                followed.frames = 0
            followed.shown = None
        allowed = ((gaps < _SAME_FACE) | np.eye(len(boxes), dtype=bool)) & seen[:, None]
        for i, j in nearest_first(gaps, allowed).items():
            followed = self._followed[j]
            alone = maybe_cut and (np.delete(between[i], i) > 1).all()  # nobody hides it
            if alone and followed.frames and self._is_another(followed.points, looks[i].points, frame):
                followed.become_another()
            followed.visibility = self._visibility(followed, looks[i], frame)
            self._look_into(followed, looks[i].points, frame)
            self._show(followed, looks[i], frame)
            followed.doubtful = (
                followed.frames < _YOUNG_FRAMES or gaps[i, j] > _SETTLED or share_outside(boxes[i], frame) > _CUT_OFF
            )
        oldest_s = frame.time_s - self._cfg.patience_s
        kept = [f for f in self._followed if f.shown or (f.id and f.time_s >= oldest_s)]
        kept.sort(key=lambda f: (f.shown is None, f.id))
        self._followed = kept[: int(min(self._limit, len(kept)))]
        return tuple(f.shown for f in self._followed if f.shown)

    def _seen(
        self, looks: Sequence[Look], boxes: Sequence[F32], gaps: F64, between: F64, frame: Frame
    ) -> NDArray[np.bool_]:
        """(N,) bool: which of the looks show a face, and each face once.

        A crop that slid onto a neighbour's face returns the neighbour's points: the less expected copy is dropped. So
        is the less confident of two looks at one head that disagree about which way up it is.
        gaps: of each look to where each face was expected. between: of the looks to one another.
        """
        seen = np.zeros(len(boxes), bool)
        for i in sorted(range(len(boxes)), key=lambda i: (self._followed[i].shown is None, gaps[i, i])):
            seen[i] = self._is_face(boxes[i], looks[i].confidence, frame) and not (between[i, seen] < _SAME_FACE).any()
        for i, j in np.argwhere(np.triu(between < _SAME_HEAD, 1) & seen & seen[:, None]):
            one, other = (self._schema.roll_rad(looks[k].points) for k in (i, j))
            if math.cos(one - other) < 0:
                seen[min(i, j, key=lambda k: looks[k].confidence)] = False
        return seen

    def _is_another(self, before: F32, now: F32, frame: Frame) -> bool:
        """Whether a face was replaced by another at the same place; unknown, so False, where the frame's edge cuts."""
        whole = max(share_outside(bounds(points), frame) for points in (before, now)) <= -_COMPARED_MARGIN
        return whole and self._scene.face_likeness(before, now) < SAME_FACE

    def _is_face(self, box_xyxy: F32, confidence: float, frame: Frame) -> bool:
        large = bool((box_xyxy[2:] - box_xyxy[:2]).min() >= _MIN_FACE_PX)
        return confidence >= self._cfg.min_confidence and large and center_inside(box_xyxy, frame)

    def _look_into(self, followed: Followed, points: F32, frame: Frame) -> None:
        """What gaze and expression need beyond the points."""
        if not self._expressive:
            return
        followed.irises = find_irises(frame.bgr, points, followed.visibility)
        if not self._still:
            followed.neutral.see(points, frame.bgr.shape[:2], frame.time_s, followed.visibility)

    def _show(self, followed: Followed, look: Look, frame: Frame) -> None:
        """Moves a followed face to its new points and sets the track that the result shows."""
        points, time_s = look.points, frame.time_s
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
        irises = None if followed.irises is None else place_irises(points, followed.irises)
        seen, learnt = followed.visibility, followed.neutral.measures
        followed.shown = Track(followed.id, face, points, look.confidence, seen, irises=irises, neutral=learnt)

    def _visibility(self, followed: Followed, look: Look, frame: Frame) -> F32 | None:
        """(K,) the visibility of a look, averaged over the last looks; 0 outside the frame."""
        if look.visibility is None:
            return None
        seen, before = look.visibility, followed.visibility if followed.frames and self._cfg.smooth else None
        if before is not None:
            seen = before + np.float32(_NEW_SHARE) * (seen - before)
        height, width = frame.bgr.shape[:2]
        inside = ((look.points > -0.5) & (look.points < (width - 0.5, height - 0.5))).all(1)
        return np.where(inside, seen, np.float32(0))


@contextmanager
def _timed(ms: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the block's milliseconds to ms[stage]."""
    began = time.perf_counter()
    try:
        yield
    finally:
        ms[stage] = ms.get(stage, 0.0) + (time.perf_counter() - began) * 1e3
