"""Points that no face has: in a heap, in a line, huge, tiny, not finite, far outside. Whatever a model says of one
face, no measure of it raises or warns, the other faces lose nothing by it, and the stream goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import isfinite, isnan, pi
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lineament.landmarks import adapter
from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.card import ModelCard
from lineament.landmarks.expression import expression
from lineament.landmarks.gaze import gaze
from lineament.landmarks.geometry import apply, crop_from_frame, frame_from_unit, warp
from lineament.landmarks.iris import find_irises, place_irises
from lineament.landmarks.pose import aspect_ratios, fit, head_pose
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, Face, Frame, Landmarks, Result, Track
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.smooth import Smoother
from lineament.stream.analyse.track import Tracker
from lineament.stream.teachers import Teacher, label_faces
from lineament.stream.write.blur import Blur
from lineament.stream.write.draw import DrawConfig, draw
from lineament.stream.write.files import JsonlSink
from lineament.stream.write.json_line import JsonLine
from lineament.stream.write.network import parsed
from lineament.stream.write.openseeface import packet
from lineament.stream.write.udp import Moment
from lineament.stream.write.vmc import Vmc
from tests.blobs import BlobDetector, BlobLandmarker, scene

some = settings(deadline=None, max_examples=60)
few = settings(deadline=None, max_examples=25)

CARD = ModelCard(name="test", schema="wflw98", input_hw=(64, 96), crop_scale=1.5)
HEALTHY = np.asarray(mean_shape()[:, :2] * 25 + (240, 100), np.float32)
"""(98, 2) px of a frame of 240 x 320"""
NOISE = np.random.default_rng(0).integers(0, 256, (240, 320, 3)).astype(np.uint8)
ALL_DRAWN = DrawConfig(boxes=True, pose=True, gaze=True)


# ---- what a broken model may say

number = st.floats(width=32)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
pair = st.tuples(finite, finite)


def _float32(points: object) -> F32:
    with np.errstate(over="ignore"):
        return np.asarray(points, np.float32)


def _with_holes(points: F32, holes: Sequence[tuple[int, int, float]]) -> F32:
    points = points.copy()
    for index, axis, value in holes:
        points[index, axis] = value
    return points


equal = st.tuples(number, number).map(lambda at: _float32(np.full((98, 2), at)))
collinear = st.tuples(pair, pair).map(lambda ends: _float32(np.linspace(*np.float64(ends), 98)))
huge = st.floats(3, 38).map(lambda power: _float32(HEALTHY * np.float64(10.0**power)))
tiny = st.tuples(st.floats(-45, -2), pair).map(lambda t: _float32(HEALTHY * np.float64(10.0 ** t[0]) + t[1]))
far = pair.map(lambda away: _float32(HEALTHY + np.float64(away)))
holed = st.lists(st.tuples(st.integers(0, 97), st.integers(0, 1), number), min_size=1, max_size=5).map(
    lambda holes: _with_holes(HEALTHY, holes)
)
anything = hnp.arrays(np.float32, (98, 2), elements=number, fill=number)
single = st.one_of(equal, collinear, huge, tiny, far, holed, anything)
mixed = st.tuples(single, single, st.integers(1, 97)).map(lambda t: np.concatenate([t[0][: t[2]], t[1][t[2] :]]))
degenerate = st.one_of(single, mixed)
boxes = hnp.arrays(np.float32, 4, elements=number)

BROKEN = {
    "not a number": np.full((98, 2), np.nan),
    "one not a number": _with_holes(HEALTHY, [(96, 0, np.nan)]),
    "one infinite": _with_holes(HEALTHY, [(96, 0, -np.inf)]),
    "in a heap": np.full((98, 2), 0.4),
    "in a line": np.linspace((0.2, 0.5), (0.8, 0.5), 98),
    "huge": HEALTHY * 1e30,
    "tiny": 0.5 + (HEALTHY - 100) * 1e-9,
    "far outside": HEALTHY + 1e8,
}


def track_of(points: F32, number: int = 7) -> Track:
    box_xyxy = np.concatenate((points.min(0), points.max(0)))
    return Track(number, Face(box_xyxy, 0.9), points, 0.8, irises=points[[96, 97]])


def result_of(*points: F32, index: int = 0) -> Result:
    frame = Frame(NOISE, "test", index, index / 30, 0.0)
    return Result(frame, tuple(track_of(each, i + 1) for i, each in enumerate(points)))


def strictly(line: str) -> dict[str, list[dict[str, object]]]:
    """The line as JSON, in which NaN and Infinity are errors."""
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(read, dict)
    return read


# ---- one measure


@some
@given(degenerate)
def test_a_pose_is_of_angles_or_none(points: F32) -> None:
    pose = head_pose(points, (240, 320))
    assert all(map(isnan, pose)) or all(abs(angle) <= 180 for angle in pose)


@some
@given(degenerate)
def test_a_gaze_is_of_angles_or_none(points: F32) -> None:
    look = gaze(points, fit(points, (240, 320)), points[[96, 97]])
    assert all(map(isnan, look)) or all(abs(angle) <= 180 for angle in look)


@some
@given(degenerate)
def test_an_iris_is_found_near_its_eye_or_nowhere(points: F32) -> None:
    irises = place_irises(points, find_irises(NOISE, points))
    for iris, eye in zip(irises, ("left_eye", "right_eye")):
        off = np.hypot(*(iris - WFLW98.part(eye, points).astype(float).mean(0)))
        assert np.isnan(iris).all() or off <= 2 * np.ptp(points.astype(float), axis=0).max()


@some
@given(degenerate)
def test_an_expression_is_of_shares_or_none(points: F32) -> None:
    values = expression(points, fit(points, (240, 320)), points[[96, 97]]).values()
    assert all(isnan(value) or 0 <= value <= 1 for value in values)


@some
@given(degenerate)
def test_no_face_keeps_an_avatar_from_what_can_be_sent(points: F32) -> None:
    moment = Moment(track_of(points), (240, 320), 0.0)
    assert all(len(datagram) <= 1400 for datagram in Vmc(parsed("osc://127.0.0.1"))(moment))
    assert all(len(datagram) == 1785 for datagram in packet(moment))


@some
@given(degenerate)
def test_openness_is_not_negative_or_none(points: F32) -> None:
    assert all(isnan(ratio) or 0 <= ratio < np.inf for ratio in aspect_ratios(points))


@some
@given(degenerate)
def test_a_roll_is_an_angle_or_none_and_none_where_an_eye_is_not_finite(points: F32) -> None:
    eyes = points[[*WFLW98.parts["left_eye"], *WFLW98.parts["right_eye"]]]
    roll_rad = WFLW98.roll_rad(points)
    assert isnan(roll_rad) or (-pi <= roll_rad <= pi and np.isfinite(eyes).all())


@some
@given(st.one_of(degenerate, boxes), st.floats(-pi, pi))
def test_a_region_is_cropped_or_refused_with_a_reason(region: F32, roll_rad: float) -> None:
    try:
        matrix = crop_from_frame(region, CARD, roll_rad)
    except ValueError as error:
        assert "region" in str(error)
        return
    assert np.isfinite(matrix).all()
    crop = warp(NOISE, matrix, CARD.input_hw)
    assert crop.shape == (64, 96, 3) and crop.dtype == np.uint8
    assert apply(frame_from_unit(matrix, CARD.input_hw), HEALTHY / 100).shape == (98, 2)


@pytest.mark.parametrize(
    ("x", "side"),
    [(160, 1e-3), (160, 1), (160, 1e5), (160, 1e7), (160, 1e20), (1e6, 1e-3), (1e6, 40), (-1e9, 40), (1e20, 1e20)],
)
def test_a_crop_of_any_size_anywhere_shows_its_share_of_the_frame_and_black(x: float, side: float) -> None:
    white = np.full((240, 320, 3), 255, np.uint8)
    corners = np.array([(x - side / 2, 120 - side / 2), (x + side / 2, 120 + side / 2)])
    crop = warp(white, crop_from_frame(corners, CARD), CARD.input_hw)
    assert crop.shape == (64, 96, 3)
    assert crop.all() if x == 160 and side <= 1 else (crop > 0).mean() < 0.001


@some
@given(degenerate, st.permutations([0, 1]))
def test_a_degenerate_mesh_has_no_points_and_its_neighbour_in_the_batch_its_own(points: F32, order: list[int]) -> None:
    healthy = np.random.default_rng(0).uniform(0, 100, (adapter.N_MESH, 2)).astype(np.float32)
    bad = np.resize(points, healthy.shape)
    mapped = adapter.load(iris=False)(np.stack([bad, healthy])[order])
    assert mapped.shape == (2, 98, 2)
    alone = adapter.load(iris=False)(healthy[None])[0]
    np.testing.assert_allclose(mapped[order.index(1)], alone, rtol=1e-4, atol=1e-2)


@some
@given(degenerate, st.sampled_from(["points", "curves", "both", "none"]), st.sampled_from(["wflw98", "ibug68"]))
def test_a_face_that_cannot_be_drawn_is_left_out(points: F32, what: str, schema: str) -> None:
    cfg = DrawConfig(draw=what, schema=schema, boxes=True, pose=True, gaze=True)  # type: ignore[arg-type]
    drawn = draw(result_of(points, HEALTHY), WFLW98, cfg)
    assert drawn.shape == NOISE.shape
    if not np.isfinite(points).all():
        frame, healthy = result_of(HEALTHY).frame, track_of(HEALTHY, 2)
        assert (drawn == draw(Result(frame, (healthy,)), WFLW98, cfg)).all()


@some
@given(boxes, degenerate)
def test_any_box_and_score_can_be_drawn_and_written(box_xyxy: F32, points: F32) -> None:
    for at in (HEALTHY, points):
        broken = Track(1, Face(box_xyxy, float("nan")), at, float("inf"))
        result = Result(result_of().frame, (broken,))
        draw(result, WFLW98, ALL_DRAWN, "note")
        (face,) = strictly(JsonLine()(result))["faces"]
        assert face["score"] is None and face["confidence"] is None


@some
@given(degenerate, st.sampled_from(["wflw98", "ibug68"]))
def test_a_line_of_json_has_null_for_what_is_not_finite_and_the_healthy_face_as_ever(points: F32, schema: str) -> None:
    line = JsonLine(schema)
    bad, healthy = strictly(line(result_of(points, HEALTHY)))["faces"]
    assert healthy == {**strictly(line(result_of(HEALTHY)))["faces"][0], "id": 2}
    if schema == "wflw98":
        known = [[value is not None for value in point] for point in bad["points"]]  # type: ignore[attr-defined]
        assert known == np.isfinite(points).tolist()


@some
@given(st.lists(st.one_of(degenerate, st.just(HEALTHY)), max_size=6))
def test_a_smoother_forgets_what_is_not_finite(sequence: list[F32]) -> None:
    smooth = Smoother()
    for i, points in enumerate(sequence):
        out = smooth(points, i / 30)
        assert out.shape == points.shape
        assert np.isfinite(out).all() == np.isfinite(points).all()
    smooth(BROKEN["one not a number"], 1.0)
    assert (smooth(HEALTHY, 1.1) == HEALTHY).all()
    np.testing.assert_allclose(smooth(HEALTHY, 1.2), HEALTHY, rtol=1e-5)


@some
@given(degenerate)
def test_blurring_hides_the_healthy_face_whatever_the_other_is(points: F32) -> None:
    blurred = Blur()(result_of(points, HEALTHY)).frame.bgr
    assert blurred.shape == NOISE.shape
    x, y = HEALTHY.mean(0).astype(int)
    assert (blurred[y - 20 : y + 20, x - 20 : x + 20] != NOISE[y - 20 : y + 20, x - 20 : x + 20]).mean() > 0.9


def test_a_face_with_a_point_that_is_not_finite_is_hidden_where_its_others_are() -> None:
    whole = Blur()(result_of(HEALTHY)).frame.bgr
    assert (Blur()(result_of(BROKEN["one not a number"])).frame.bgr == whole).all()


# ---- a stream


class Sick(BlobLandmarker):
    """Gives its own points, in unit coordinates of the crop, to the darker of two squares, as sure as ever."""

    def __init__(self, points_unit: F32) -> None:
        super().__init__()
        self.points_unit = points_unit
        self.sick = False

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        points, confidence, _ = super().__call__(rgb_NHWC)
        height, width = self.card.input_hw
        for i, rgb in enumerate(rgb_NHWC):
            if self.sick and abs(int(rgb[height // 2, width // 2, 0]) - 210) < 15:
                points[i], confidence[i] = self.points_unit, 0.95
        return Landmarks(points, confidence)


class Confused(BlobDetector):
    """Finds one face more than there are, wherever it is told."""

    def __init__(self, face: Face) -> None:
        super().__init__()
        self._face = face

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        return self._face, *super().__call__(bgr)


def two_faces(index: int) -> Frame:
    return scene([(80 + index, 100), (230 - index, 120)], index)


FRAMES = 14


@cache
def undisturbed() -> list[Result]:
    track = Tracker(BlobDetector(), BlobLandmarker(), TrackConfig(detect_every=3))
    return [track(two_faces(index)) for index in range(FRAMES)]


def shown(result: Result, blur: Blur, lines: JsonlSink) -> None:
    """All that is done with a result."""
    drawn = draw(blur(result), WFLW98, ALL_DRAWN)
    lines.write(result, drawn)


def assert_as_ever(result: Result, index: int) -> None:
    """The brighter square is followed as if nothing were, and nobody's points are absurd."""
    (expected,) = (track for track in undisturbed()[index].tracks if track.id == 1)
    (healthy,) = (track for track in result.tracks if track.id == 1)
    assert np.abs(healthy.points - expected.points).max() < 1.5
    assert all(np.abs(track.points).max() < 4 * 320 and isfinite(track.face.roll_rad) for track in result.tracks)


def finds_both(result: Result) -> bool:
    centers = sorted(track.points[:, 0].min() + 20 for track in result.tracks)
    wanted = (80 + result.frame.index, 230 - result.frame.index)
    return len(centers) == 2 and np.abs(np.subtract(centers, wanted)).max() < 6


@few
@given(degenerate, st.booleans())
def test_a_stream_outlives_any_points_and_finds_the_face_again(points_unit: F32, from_the_start: bool) -> None:
    landmarker, blur, lines = Sick(points_unit), Blur(), JsonlSink("/dev/null")
    track = Tracker(BlobDetector(), landmarker, TrackConfig(detect_every=3))
    with lines:
        for index in range(FRAMES):
            landmarker.sick = (0 if from_the_start else 4) <= index < 8
            result = track(two_faces(index))
            shown(result, blur, lines)
            assert_as_ever(result, index)
    assert finds_both(result)


@pytest.mark.parametrize("still", [False, True], ids=["followed", "still"])
@pytest.mark.parametrize("first", [0, 4], ids=["at the first look", "amid the track"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_face_without_usable_points_is_counted_once_a_frame(
    kind: str, first: int, still: bool, tmp_path: Path
) -> None:
    landmarker = Sick(np.asarray(BROKEN[kind], np.float32))
    track = Tracker(BlobDetector(), landmarker, TrackConfig(detect_every=1), still=still)
    lines = JsonlSink(str(tmp_path / "a.jsonl"))
    with lines:
        for index in range(FRAMES):
            landmarker.sick = first <= index < 8
            result = track(two_faces(index))
            shown(result, Blur(), lines)
            assert len(result.tracks) == (1 if landmarker.sick else 2)
            if not still:
                assert_as_ever(result, index)
    assert track.unusable == 8 - first
    assert finds_both(result)
    written = [len(strictly(line)["faces"]) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert written == [1 if first <= index < 8 else 2 for index in range(FRAMES)]


@few
@given(boxes, number)
def test_a_detector_may_give_any_box(box_xyxy: F32, roll_rad: float) -> None:
    track = Tracker(Confused(Face(box_xyxy, 0.99, roll_rad)), BlobLandmarker(), TrackConfig(detect_every=1))
    for index in range(4):
        assert_as_ever(track(two_faces(index)), index)


def test_a_box_that_is_none_is_counted() -> None:
    for box_xyxy in ((5, 5, 5, 5), (90, 90, 10, 10), (0, 0, np.nan, 50), (0, 0, np.inf, 50), (1e9, 0, 2e9, 1e9)):
        track = Tracker(
            Confused(Face(np.array(box_xyxy, np.float32), 0.99)), BlobLandmarker(), TrackConfig(detect_every=1)
        )
        assert_as_ever(track(two_faces(0)), 0)
        assert track.unusable == 1


def test_a_healthy_stream_counts_none() -> None:
    track = Tracker(BlobDetector(), BlobLandmarker(), TrackConfig(detect_every=3))
    for index in range(30):  # one of them walks out of the picture
        track(scene([(280 + 4 * index, 100), (100, 120)], index))
    assert track.unusable == 0


def test_a_face_that_a_pause_carries_anywhere_ends_nothing() -> None:
    track = Tracker(BlobDetector(), BlobLandmarker(), TrackConfig(detect_every=3))
    for index in range(6):
        track(scene([(80 + 8 * index, 100)], index))
    for index, pause_s in enumerate((1e3, 1e6, 1e12, 1e12), start=6):
        frame = scene([(80 + 8 * index, 100)], index)
        result = track(replace(frame, time_s=frame.time_s + pause_s))
    assert len(result.tracks) == 1


# ---- labelling


@few
@given(degenerate)
def test_teachers_that_give_no_usable_points_of_a_face_leave_the_others_labels_alone(points_unit: F32) -> None:
    faces = [Face(np.array([60, 80, 100, 120], np.float32), 0.9), Face(np.array([210, 100, 250, 140], np.float32), 0.9)]
    teacher = Sick(points_unit)
    alone = label_faces(two_faces(0).bgr, faces, [Teacher(teacher, 1.0)], WFLW98)
    teacher.sick = True
    healthy, bad = label_faces(two_faces(0).bgr, faces, [Teacher(teacher, 1.0)], WFLW98)
    np.testing.assert_allclose(healthy.points, alone[0].points)
    assert isnan(bad.disagreement) or bad.disagreement >= 0
