"""A turned face has the yaw asked for, its points follow, and the background stays in place."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.engines.mesh import MeshModels
from lineament.engines.turn import OUT_HW, Solid, TurnConfig, solid_of, turn, turn_sets
from lineament.landmarks.geometry import apply, crop_from_frame, frame_from_unit, warp
from lineament.landmarks.pose import head_pose
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.stream.read.image import write_image

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def points(astronaut: U8) -> F32:
    """(98, 2) of the astronaut, px."""
    box = np.array([180.0, 70.0, 275.0, 180.0], np.float32)
    with engines.load("student") as landmarker:
        crop = crop_from_frame(box, landmarker.card)
        rgb = warp(np.ascontiguousarray(astronaut[..., ::-1]), crop, landmarker.card.input_hw)
        unit = landmarker(rgb[None]).points_unit[0]
    return apply(frame_from_unit(crop, landmarker.card.input_hw), unit)


@pytest.fixture(scope="module")
def solid(astronaut: U8, points: F32) -> Solid:
    made = solid_of(np.ascontiguousarray(astronaut[..., ::-1]), points, MeshModels(iris=False))
    assert made is not None
    return made


def yaw_deg(points: F32) -> float:
    return head_pose(points, OUT_HW).yaw_deg


def test_a_turn_by_zero_returns_the_photo(solid: Solid) -> None:
    same = turn(solid, 0.0, 0.0)
    moved = (same.points - solid.points[:, :2]).mean(0)
    np.testing.assert_allclose(same.points - moved, solid.points[:, :2], atol=0.01)
    shifted = cv2.warpAffine(solid.rgb, np.float64([[1, 0, moved[0]], [0, 1, moved[1]]]), OUT_HW[::-1])
    face = cv2.boundingRect(same.points)
    x, y, w, h = face
    apart = np.abs(same.rgb[y : y + h, x : x + w].astype(int) - shifted[y : y + h, x : x + w])
    assert np.median(apart) <= 2


@pytest.mark.parametrize("by_deg", [-50.0, 50.0])
def test_points_turn_by_the_angle_that_was_asked_for(solid: Solid, by_deg: float) -> None:
    before = yaw_deg(np.asarray(solid.points[:, :2], np.float32))
    assert yaw_deg(turn(solid, by_deg, 0.0).points) - before == pytest.approx(by_deg, abs=15)


@pytest.mark.parametrize("by_deg", [-45.0, 45.0])
def test_a_landmark_model_sees_the_turned_face_where_its_points_are(solid: Solid, by_deg: float) -> None:
    turned = turn(solid, by_deg, 0.0)
    with engines.load("student") as landmarker:
        crop = crop_from_frame(turned.points, landmarker.card)
        found = landmarker(warp(turned.rgb, crop, landmarker.card.input_hw)[None]).points_unit[0]
    points = apply(frame_from_unit(crop, landmarker.card.input_hw), found)
    size = np.ptp(turned.points, axis=0).max()
    assert np.sign(yaw_deg(points)) == np.sign(by_deg)
    for part in ("nose_ridge", "outer_lips"):
        indices = list(WFLW98.parts[part])
        assert np.linalg.norm(points[indices] - turned.points[indices], axis=1).mean() < 0.08 * size, part


def test_the_edge_of_the_image_stays_in_place(solid: Solid) -> None:
    turned = turn(solid, 60.0, 0.0)
    for rows in (slice(0, 4), slice(-4, None)):
        assert np.median(np.abs(turned.rgb[rows].astype(int) - solid.rgb[rows])) < 40


def test_a_set_becomes_images_that_training_and_labelling_can_read(astronaut: U8, points: F32, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", astronaut)
    row = {"image": "a.png", "points": points.tolist()}
    empty = {"image": "a.png", "points": None, "box_xyxy": [0, 0, 50, 50]}
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, [row, empty])))
    made = turn_sets(TurnConfig((tmp_path / "labels.jsonl",), tmp_path / "turned", each=2, sheet=tmp_path / "s.jpg"))
    rows = [json.loads(line) for line in (tmp_path / "turned" / "labels.jsonl").read_text().splitlines()]
    assert made == len(rows) == 2
    for row in rows:
        picture = cv2.imread(str(tmp_path / "turned" / row["image"]))
        assert picture is not None and picture.shape == (*OUT_HW, 3)
        assert row["group"] == "a" and abs(yaw_deg(np.array(row["points"], np.float32))) > 40 - 15


@pytest.mark.parametrize(
    "wrong", [{"yaw_deg": (50.0, 40.0)}, {"yaw_deg": (0.0, 40.0)}, {"pitch_deg": 80.0}, {"each": 0}]
)
def test_angles_out_of_range_raise(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="expected 0 to 90"):
        TurnConfig((tmp_path,), tmp_path / "out", **wrong)  # type: ignore[arg-type]
