"""The 468 points of MediaPipe's mesh: where they lie, what mirrors them, and how they reach every output."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.geometry import bounds
from lineament.landmarks.schema import IBUG68, MESH468, WFLW98, points_of
from lineament.landmarks.types import F32, U8, Face, Frame, Landmarker, Result, Track
from lineament.stream.__main__ import main
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.mesh import Mesh
from lineament.stream.write.draw import DrawConfig, draw

mesh = pytest.mark.mesh


@pytest.fixture(scope="module")
def student() -> Iterator[Landmarker]:
    with engines.load("student") as landmarker:
        yield landmarker


def still(landmarker: Landmarker, bgr: U8) -> Result:
    with Analyser(landmarker, still=True) as analyse:
        return Mesh(analyse, smooth=True, still=True)(Frame(bgr, "photo.jpg", 0, 0.0, 0.0))


def mesh_of(result: Result) -> F32:
    (track,) = result.tracks
    assert track.mesh is not None
    return track.mesh


@mesh
def test_each_part_lies_on_the_same_part_of_the_98_points(student: Landmarker, astronaut: U8) -> None:
    result = still(student, astronaut)
    (track,) = result.tracks
    size = float(np.ptp(track.points, axis=0).max())
    for name in ("left_eye", "right_eye", "left_brow", "right_brow", "nose_base", "outer_lips", "inner_lips"):
        ours, theirs = (
            schema.part(name, points) for schema, points in ((WFLW98, track.points), (MESH468, mesh_of(result)))
        )
        assert np.abs(ours.mean(0) - theirs.mean(0)).max() < 0.05 * size, name
    assert result.ms["mesh"] > 0


@mesh
def test_the_mesh_of_the_mirror_image_is_the_flipped_mesh(student: Landmarker, astronaut: U8) -> None:
    """Each point by itself: a wrong partner would be a neighbour, some pixels away."""
    mirrored = still(student, np.ascontiguousarray(astronaut[:, ::-1]))
    back = MESH468.flipped(mesh_of(mirrored), astronaut.shape[1])
    assert np.linalg.norm(back - mesh_of(still(student, astronaut)), axis=1).max() < 0.5


@mesh
def test_the_flip_maps_mediapipes_triangles_onto_each_other() -> None:
    spec = importlib.util.find_spec("mediapipe")
    assert spec is not None and spec.origin is not None
    names: dict[str, frozenset[tuple[int, int]]] = {}
    exec((Path(spec.origin).parent / "python/solutions/face_mesh_connections.py").read_text(), names)
    edges = {frozenset(edge) for edge in names["FACEMESH_TESSELATION"]}
    unmatched = [edge for edge in edges if frozenset(MESH468.flip[i] for i in edge) not in edges]
    # three pairs of quadrilaterals are cut along the other diagonal
    assert len(edges) == 1322 and len(unmatched) == 6
    drawn = {frozenset(edge) for name in ("OVAL", "LIPS", "EYE") for key in names if name in key for edge in names[key]}
    assert {frozenset(edge) for edge in MESH468.edges} >= drawn


@mesh
def test_a_face_on_its_side_has_the_mesh_of_the_upright_one(student: Landmarker, astronaut: U8) -> None:
    upright = mesh_of(still(student, astronaut))
    lying = mesh_of(still(student, np.ascontiguousarray(cv2.rotate(astronaut, cv2.ROTATE_90_CLOCKWISE))))
    turned = np.stack([astronaut.shape[0] - 1 - upright[:, 1], upright[:, 0]], 1)
    assert np.linalg.norm(lying - turned, axis=1).mean() < 0.02 * np.ptp(upright, axis=0).max()


@mesh
def test_the_mesh_is_as_steady_as_the_other_points(student: Landmarker, astronaut: U8) -> None:
    noise = np.random.default_rng(0)
    frames = [np.clip(astronaut + noise.normal(0, 8, astronaut.shape), 0, 255).astype(np.uint8) for _ in range(12)]

    def motion(smooth: bool) -> float:
        with Analyser(student) as analyse:
            found = Mesh(analyse, smooth=smooth, still=False)
            meshes = [mesh_of(found(Frame(bgr, "clip", i, i / 30, 0.0))) for i, bgr in enumerate(frames)]
        return float(np.abs(np.diff(meshes, axis=0)).mean())

    assert motion(smooth=True) < 0.5 * motion(smooth=False)


@mesh
@pytest.mark.parametrize("model", ["mesh", "student"])
def test_json_table_and_picture_have_the_mesh(
    model: str, astronaut: U8, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", astronaut)
    options = ["--source", "photo.png", "--no-window", "--model", model, "--schema", "mesh468"]
    assert main([*options, "--out", "a.jsonl", "--out", "a.csv", "--out", "drawn.png"]) == 0
    told = json.loads(Path("a.jsonl").read_text())
    (face,) = told["faces"]
    assert told["schema"] == "mesh468" and len(face["points"]) == 468 and face["pose_deg"]["yaw"] is not None
    with open("a.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [[float(row[f"x_{i}"]), float(row[f"y_{i}"])] for i in range(468)] == face["points"] and "x_468" not in row
    changed = (cv2.imread("drawn.png") != astronaut).any(2)
    on_it = [changed[round(y) - 1 : round(y) + 2, round(x) - 1 : round(x) + 2].any() for x, y in face["points"]]
    assert all(on_it)


def test_without_mediapipe_the_mesh_is_refused_before_the_source_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    options = ["--source", f"{tmp_path}/absent.mp4", "--no-window", "--schema", "mesh468"]
    for sources in ([], ["--source", "sample"]):
        caplog.clear()
        assert main([*options, *sources, "--out", f"{tmp_path}/{{name}}.csv"]) == 1
        assert "pip install --no-deps mediapipe" in caplog.text and "absent" not in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_track_gives_the_points_that_it_has() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (98, 2)).astype(np.float32)
    track = Track(1, Face(bounds(points), 0.9), points, 0.9)
    assert points_of(track, WFLW98, WFLW98) is points and len(points_of(track, WFLW98, IBUG68)) == 68
    with pytest.raises(ValueError, match="mesh468"):
        points_of(track, WFLW98, MESH468)


def test_the_surface_is_drawn_as_dots_alone() -> None:
    points = np.random.default_rng(0).uniform(20, 180, (98, 2)).astype(np.float32)
    dots = np.full((468, 2), 10, np.float32)
    dots[list(MESH468.parts["surface"])] = np.random.default_rng(1).uniform(20, 180, (328, 2))
    track = Track(1, Face(np.array([0, 0, 1, 1], np.float32), 0.9), points, 0.9, mesh=dots)
    result = Result(Frame(np.zeros((200, 200, 3), np.uint8), "clip", 0, 0.0, 0.0), (track,))
    curves = draw(result, WFLW98, DrawConfig("curves", "mesh468"))
    assert not curves[20:, 20:].any() and draw(result, WFLW98, DrawConfig("points", "mesh468"))[20:, 20:].any()
