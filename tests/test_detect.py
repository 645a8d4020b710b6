"""Detectors: what they find does not depend on where, how large or how turned a face lies; nothing is invented."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmarks.types import F32, U8, Detector, Face
from stream.detect import BlazeFace, MediaPipeFaces, StillFaces, StreamFaces, tiles

PHOTOS = Path(importlib.util.find_spec("skimage").origin).parent / "data"  # type: ignore[union-attr, arg-type]
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


@pytest.mark.parametrize("make", [StreamFaces, StillFaces])
@pytest.mark.parametrize("photo", ["coffee.png", "rocket.jpg", "chelsea.png", "gravel.png", "brick.png"])
def test_the_second_look_invents_no_face(make: Callable[[], Detector], photo: str) -> None:
    bgr = np.asarray(cv2.imread(str(PHOTOS / photo)), np.uint8)
    assert make()(bgr) == ()


@pytest.mark.parametrize("blur_px", [0.1, 1.6, 4.0])
def test_noise_is_no_face(blur_px: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    bgr = np.asarray(cv2.normalize(cv2.GaussianBlur(noise, (0, 0), blur_px), None, 0, 255, cv2.NORM_MINMAX), np.uint8)  # type: ignore[call-overload]
    assert StreamFaces()(bgr) == ()
    assert StillFaces()(bgr) == ()


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
    with pytest.raises(ValueError, match="smallest_px is 0"):
        StreamFaces(smallest_px=0)


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_still_may_lie_on_its_side(astronaut: U8, degrees: int) -> None:
    turn = {90: cv2.ROTATE_90_CLOCKWISE, -90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180}[degrees]
    face = only(StillFaces()(np.asarray(cv2.rotate(astronaut, turn), np.uint8)))
    difference = np.exp(1j * (face.roll_rad - np.radians(degrees)))
    assert abs(np.degrees(np.angle(difference))) < 12


def pasted(astronaut: U8, face_px: float, centers: list[tuple[int, int]]) -> tuple[U8, list[F32]]:
    """A grey 1920x1080 frame with the astronaut's face at these places, and the boxes where it is."""
    canvas = np.full((1080, 1920, 3), 90, np.uint8)
    scale = face_px / 100
    head = cv2.resize(astronaut[20:220, 125:325], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    boxes = []
    for x, y in centers:
        left, top = x - head.shape[1] // 2, y - head.shape[0] // 2
        canvas[top : top + head.shape[0], left : left + head.shape[1]] = head
        boxes.append(np.array([50, 52, 150, 152], np.float32) * scale + np.float32([left, top, left, top]))
    return canvas, boxes


@pytest.mark.parametrize("face_px", [40, 60, 80, 120])
def test_stills_show_every_small_face_of_a_large_picture(astronaut: U8, face_px: float) -> None:
    bgr, boxes = pasted(astronaut, face_px, [(150, 150), (970, 533), (1777, 930)])
    faces = StillFaces()(bgr)
    assert len(faces) == len(boxes)
    assert all(any(iou(face.box_xyxy, box) > 0.5 for face in faces) for box in boxes)


@pytest.mark.parametrize("face_px", [48, 80, 120])
def test_a_stream_shows_every_small_face_of_its_first_frame(astronaut: U8, face_px: float) -> None:
    bgr, boxes = pasted(astronaut, face_px, [(150, 150), (970, 533), (1777, 930)])
    faces = StreamFaces()(bgr)
    assert all(any(iou(face.box_xyxy, box) > 0.5 for face in faces) for box in boxes)


@pytest.mark.parametrize("calls_before", [1, 2, 7])
@pytest.mark.parametrize("center", [(150, 150), (970, 533), (1777, 930)])
def test_a_stream_comes_upon_a_small_face_within_half_a_second(
    astronaut: U8, calls_before: int, center: tuple[int, int]
) -> None:
    """Also where nobody was in sight before, and a call looks at less."""
    bgr, (box,) = pasted(astronaut, 48, [center])
    with StreamFaces() as detect:
        for _ in range(calls_before):
            assert detect(np.full_like(bgr, 90)) == ()
        faces = [face for _ in range(16) for face in detect(bgr)]
    assert any(iou(face.box_xyxy, box) > 0.5 for face in faces)


def test_a_stream_goes_on_looking_for_others_while_it_sees_one(astronaut: U8) -> None:
    """Every window has its turn, twice as often as where nobody is in sight."""
    near, (box,) = pasted(astronaut, 400, [(970, 533)])
    far, boxes = pasted(astronaut, 48, [(150, 150), (1777, 930)])
    both = np.where(far != 90, far, near)
    with StreamFaces() as detect:
        assert any(iou(face.box_xyxy, box) > 0.5 for face in detect(near))
        faces = [face for _ in range(8) for face in detect(both)]
    assert all(any(iou(face.box_xyxy, other) > 0.5 for face in faces) for other in boxes)


def test_tiles_cover_the_frame_and_share_a_quarter_with_their_neighbours() -> None:
    frame = np.zeros((1080, 1920, 3), np.uint8)
    windows = tiles(frame, 480)
    lefts, tops = sorted({w.x - 240 for w in windows}), sorted({w.y - 240 for w in windows})
    assert (lefts[0], lefts[-1], tops[0], tops[-1]) == (-0.5, 1920 - 480 - 0.5, -0.5, 1080 - 480 - 0.5)
    assert np.diff(lefts).max() <= 360
    assert np.diff(tops).max() <= 360
    assert len(windows) == len(lefts) * len(tops)


def test_one_window_that_covers_the_frame_makes_tiles_needless() -> None:
    assert tiles(np.zeros((112, 112, 3), np.uint8), 480) == []


def test_no_tight_crop_is_missed(shared: Path) -> None:
    crops = sorted((shared / "data/wflw-mini/WFLW_images/test").rglob("*.*"))[::4]
    assert crops
    with StillFaces() as detect:
        for crop in crops:
            assert len(detect(np.asarray(cv2.imread(str(crop)), np.uint8))) == 1, crop


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
