"""The mesh: its contract, on a public-domain face, and its accuracy, where the shared data is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.engines.mesh import MeshLandmarker
from lineament.landmarks.geometry import apply, crop_from_frame, frame_from_unit, warp
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, LineamentError
from lineament.train import data, metrics

pytestmark = pytest.mark.mesh

ASTRONAUT_BOX = np.array([178, 70, 272, 165], np.float32)


@pytest.fixture(scope="module")
def landmarker() -> Iterator[MeshLandmarker]:
    with MeshLandmarker() as landmarker:
        yield landmarker


def _follow(
    landmarker: MeshLandmarker, bgr: U8, box_xyxy: F32, roll_rad: float = 0.0, passes: int = 2
) -> Iterator[tuple[F32, float]]:
    """Points (98, 2) px and confidence after each pass, each on a crop round the points of the one before."""
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    region = box_xyxy
    for _ in range(passes):
        crop: F64 = crop_from_frame(region, landmarker.card, roll_rad)
        found = landmarker(warp(rgb, crop, landmarker.card.input_hw)[None])
        region = apply(frame_from_unit(crop, landmarker.card.input_hw), found.points_unit[0])
        roll_rad = WFLW98.roll_rad(region)
        yield region, float(found.confidence[0])


def _points(landmarker: MeshLandmarker, bgr: U8, box_xyxy: F32, roll_rad: float = 0.0, passes: int = 2) -> F32:
    *_, (points, _) = _follow(landmarker, bgr, box_xyxy, roll_rad, passes)
    return points


def _crops(astronaut: U8, landmarker: MeshLandmarker, n: int) -> U8:
    """(n, 192, 192, 3) RGB crops of one face, each a little larger."""
    rgb = np.ascontiguousarray(astronaut[..., ::-1])
    grow = np.array([-1, -1, 1, 1], np.float32)
    boxes = [ASTRONAUT_BOX + 3 * i * grow for i in range(n)]
    hw = landmarker.card.input_hw
    return np.stack([warp(rgb, crop_from_frame(box, landmarker.card), hw) for box in boxes])


def _mean_distance(a: F32, b: F32) -> float:
    """In percent of the inter-ocular distance of b."""
    return float(metrics.nme(a[None], b[None])[0])


def test_points_fall_on_the_face(landmarker: MeshLandmarker, astronaut: U8) -> None:
    *_, (points, confidence) = _follow(landmarker, astronaut, ASTRONAUT_BOX)
    left_pupil, right_pupil = points[96], points[97]
    assert confidence > 0.9
    np.testing.assert_allclose(left_pupil, (202.5, 100), atol=1.5)
    np.testing.assert_allclose(right_pupil, (246.5, 102), atol=1.5)


def test_each_pupil_lies_inside_its_lids(landmarker: MeshLandmarker, astronaut: U8) -> None:
    points = _points(landmarker, astronaut, ASTRONAUT_BOX)
    for eye, pupil in (("left_eye", "left_pupil"), ("right_eye", "right_pupil")):
        lids = np.ascontiguousarray(WFLW98.part(eye, points), np.float32)
        x, y = WFLW98.part(pupil, points)[0].tolist()
        assert cv2.pointPolygonTest(lids, (x, y), False) > 0


def test_a_still_face_stays_put_while_its_crop_follows_its_points(landmarker: MeshLandmarker, astronaut: U8) -> None:
    history = [points for points, _ in _follow(landmarker, astronaut, ASTRONAUT_BOX, passes=30)]
    assert _mean_distance(history[-1], history[1]) < 2
    assert _mean_distance(history[-1], history[-2]) < 0.2


def test_the_mirrored_picture_gives_mirrored_points(landmarker: MeshLandmarker, astronaut: U8) -> None:
    width = astronaut.shape[1]
    box = ASTRONAUT_BOX[[2, 1, 0, 3]] * (-1, 1, -1, 1) + np.array([width - 1, 0, width - 1, 0])
    mirrored = _points(landmarker, np.ascontiguousarray(astronaut[:, ::-1]), box.astype(np.float32))
    points = _points(landmarker, astronaut, ASTRONAUT_BOX)
    assert _mean_distance(np.asarray(WFLW98.flipped(mirrored, width), np.float32), points) < 3


def test_a_face_turned_in_its_plane_is_levelled(landmarker: MeshLandmarker, astronaut: U8) -> None:
    turn = cv2.getRotationMatrix2D((225.0, 117.0), -40, 1.0)
    turned = np.asarray(cv2.warpAffine(astronaut, turn, (512, 512)), np.uint8)
    straight = _points(landmarker, astronaut, ASTRONAUT_BOX, passes=4)
    points = _points(landmarker, turned, ASTRONAUT_BOX, roll_rad=np.radians(40), passes=4)
    assert _mean_distance(points, apply(np.asarray(turn, np.float64), straight)) < 3


@pytest.mark.parametrize("filled", [0, 128, 255])
def test_an_even_picture_is_no_face(landmarker: MeshLandmarker, filled: int) -> None:
    found = landmarker(np.full((1, 192, 192, 3), filled, np.uint8))
    assert np.isfinite(found.points_unit).all()
    assert found.confidence[0] < 0.5


def test_without_the_iris_model_points_are_nearly_the_same(landmarker: MeshLandmarker, astronaut: U8) -> None:
    with MeshLandmarker(iris=False) as plain:
        points = _points(plain, astronaut, ASTRONAUT_BOX)
    assert 0 < _mean_distance(points, _points(landmarker, astronaut, ASTRONAUT_BOX)) < 5


def test_load_names_the_models_there_are() -> None:
    with pytest.raises(LineamentError, match=r"'b99'.*mesh"):
        engines.load("b99")
    with pytest.raises(LineamentError, match="'cuda'"):
        engines.load("mesh", device="cuda")


def test_importing_the_engine_imports_neither_openvino_nor_mediapipe() -> None:
    code = "import sys, engines, engines.mesh; assert not {'openvino', 'mediapipe', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_on_wflw_mini_it_is_as_accurate_as_its_card_says(landmarker: MeshLandmarker, shared: Path) -> None:
    samples = data.read(shared / "data" / "wflw-mini", "test")
    found = [_points(landmarker, sample.bgr(), sample.rect_xyxy, passes=5) for sample in samples]
    nme = metrics.nme(np.stack(found), np.stack([sample.points for sample in samples]))
    assert nme.mean() == pytest.approx(landmarker.card.nme["wflw-mini test, rect, 5 passes, iris"], abs=0.02)
