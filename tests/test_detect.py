"""Detectors: what they find does not depend on where, how large or how turned a face lies; nothing is invented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmarks.types import F32, U8, Detector, Face
from stream.detect import BlazeFace, MediaPipeFaces, StillFaces, StreamFaces

ALL = [lambda: BlazeFace("short"), lambda: BlazeFace("full"), StreamFaces, StillFaces]
NAMES = ["short", "full", "stream", "still"]


@pytest.fixture(scope="module", params=ALL, ids=NAMES)
def detect(request: pytest.FixtureRequest) -> Detector:
    return request.param()


def iou(a: F32, b: F32) -> float:
    shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def only(faces: tuple[Face, ...]) -> Face:
    assert len(faces) == 1, faces
    return faces[0]


def moved(bgr: U8, matrix: list[list[float]], size_wh: tuple[int, int]) -> U8:
    return np.asarray(cv2.warpAffine(bgr, np.array(matrix, float), size_wh, flags=cv2.INTER_AREA), np.uint8)


def test_the_face_is_where_it_is(detect: Detector, astronaut: U8) -> None:
    face = only(detect(astronaut))
    assert iou(face.box_xyxy, np.array([177, 70, 272, 175], np.float32)) > 0.8
    assert face.box_xyxy.dtype == np.float32
    assert 0.5 <= face.score <= 1
    assert abs(face.roll_rad) < 0.2


def test_a_moved_face_moves_the_box(detect: Detector, astronaut: U8) -> None:
    before = only(detect(astronaut))
    after = only(detect(moved(astronaut, [[1, 0, 60], [0, 1, 100]], (512, 512))))
    assert iou(after.box_xyxy, before.box_xyxy + np.float32([60, 100, 60, 100])) > 0.85


def test_a_scaled_picture_scales_the_box(detect: Detector, astronaut: U8) -> None:
    before = only(detect(astronaut))
    double = only(detect(cv2.resize(astronaut, (1024, 1024))))  # type: ignore[arg-type]
    # pixel centres: x -> 2 x + 1/2
    assert iou(double.box_xyxy, before.box_xyxy * 2 + np.float32(0.5)) > 0.85


@pytest.mark.parametrize("degrees", [-30, 30])
def test_a_turned_face_has_that_roll(detect: Detector, astronaut: U8, degrees: float) -> None:
    turn = cv2.getRotationMatrix2D((225, 120), -degrees, 1.0)
    before, after = only(detect(astronaut)), only(detect(moved(astronaut, turn.tolist(), (512, 512))))
    assert np.degrees(after.roll_rad - before.roll_rad) == pytest.approx(degrees, abs=8)


def test_no_face_is_an_empty_tuple(detect: Detector) -> None:
    assert detect(np.zeros((480, 640, 3), np.uint8)) == ()
    assert detect(np.full((480, 640, 3), 255, np.uint8)) == ()


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4000, 3), (3, 4000), (17, 900)])
def test_any_shape_of_picture_is_looked_at(detect: Detector, shape: tuple[int, int]) -> None:
    assert detect(np.full((*shape, 3), 90, np.uint8)) == ()


def test_a_view_of_an_array_is_as_good_as_its_copy(detect: Detector, astronaut: U8) -> None:
    view = astronaut[:, ::-1][::2, ::2]
    assert not view.flags.c_contiguous
    for a, b in zip(detect(view), detect(view.copy()), strict=True):
        np.testing.assert_array_equal(a.box_xyxy, b.box_xyxy)


@pytest.mark.parametrize(
    "spoil", [lambda x: x[..., 0], lambda x: x.astype(np.float32), lambda x: x[..., :2], lambda x: x[:0]]
)
def test_what_is_no_bgr_picture_is_refused(detect: Detector, astronaut: U8, spoil: Callable[[U8], U8]) -> None:
    with pytest.raises(ValueError, match=r"wanted \(H, W, 3\) uint8 BGR"):
        detect(spoil(astronaut))


def test_looking_leaves_the_picture_alone(detect: Detector, astronaut: U8) -> None:
    before = astronaut.copy()
    detect(astronaut)
    np.testing.assert_array_equal(astronaut, before)


@pytest.mark.parametrize("make", [*ALL, MediaPipeFaces], ids=[*NAMES, "mediapipe"])
def test_close_may_be_called_twice(make: Callable[[], StreamFaces]) -> None:
    with make() as detect:
        detect(np.zeros((64, 64, 3), np.uint8))
    detect.close()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"min_score is 1\.5"):
        BlazeFace(min_score=1.5)
    with pytest.raises(ValueError, match="no range 'long'"):
        BlazeFace("long")  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_still_may_lie_on_its_side(astronaut: U8, degrees: int) -> None:
    turn = {90: cv2.ROTATE_90_CLOCKWISE, -90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180}[degrees]
    face = only(StillFaces()(np.asarray(cv2.rotate(astronaut, turn), np.uint8)))
    difference = np.exp(1j * (face.roll_rad - np.radians(degrees)))
    assert abs(np.degrees(np.angle(difference))) < 12


# MediaPipe's full range keeps to a score of 0.6, whatever its caller asked for
@pytest.mark.parametrize(("range", "min_score"), [("short", 0.5), ("full", 0.6)])
def test_blazeface_gives_mediapipes_boxes(astronaut: U8, range: str, min_score: float) -> None:
    with BlazeFace(range, min_score) as ours, MediaPipeFaces(range, min_score) as theirs:  # type: ignore[arg-type]
        agree(ours(astronaut), theirs(astronaut))


@pytest.mark.parametrize(("range", "min_score"), [("short", 0.5), ("full", 0.6)])
def test_blazeface_gives_mediapipes_boxes_on_crowds(shared: Path, range: str, min_score: float) -> None:
    photos = sorted((shared / "data/unlabelled/wider").glob("*.jpg"))[:40]
    with BlazeFace(range, min_score) as ours, MediaPipeFaces(range, min_score) as theirs:  # type: ignore[arg-type]
        for photo in photos:
            bgr = np.asarray(cv2.imread(str(photo)), np.uint8)
            agree(ours(bgr), theirs(bgr))


def agree(ours: tuple[Face, ...], theirs: tuple[Face, ...]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert iou(a.box_xyxy, b.box_xyxy) > 0.95
        assert a.score == pytest.approx(b.score, abs=1e-3)
        assert np.cos(a.roll_rad - b.roll_rad) > 0.999
