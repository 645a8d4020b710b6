"""Labels are the weighted mean of what teachers say, weigh less the more these differ, and are written whole.

Faces are the squares of tests.blobs; each teacher here knows where their points lie, and errs in a known way.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import pytest

from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, Face, Landmarks, LineamentError
from lineament.stream import label as label_module
from lineament.stream import teachers as teachers_module
from lineament.stream.label import LabelConfig, label_folder, main
from lineament.stream.read.image import write_image
from lineament.stream.teachers import Teacher, label_faces
from lineament.train import data
from tests.blobs import boxes_of, scene, template

ROOT = Path(__file__).resolve().parent.parent
SIZE = 80
"""of a square, px; its eyes lie 0.4 of that apart"""
OCULAR = 0.5 * SIZE
"""what disagreement is measured by: no less than half the points' extent"""


def face_of_square() -> F32:
    """(98, 2) in 0..1, its own mirror image; the blob's template is not."""
    return np.asarray((template() + WFLW98.flipped(template(), 2)) / 2, np.float32)


class Knows:
    """Puts the points on the square nearest its crop's centre, moved by a share of the square's size."""

    def __init__(
        self,
        move: tuple[float, float] = (0.0, 0.0),
        confidence: float = 1.0,
        schema: str = "wflw98",
        hw: tuple[int, int] = (96, 96),
    ) -> None:
        self.card = ModelCard("knows", schema, hw, 1.6)
        self.calls: list[int] = []
        self._move, self._confidence = np.float32(move), confidence

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        self.calls.append(len(rgb_NHWC))
        height, width = self.card.input_hw
        points = np.zeros((len(rgb_NHWC), 98, 2), np.float32)
        for i, rgb in enumerate(rgb_NHWC):
            x1, y1, x2, y2 = min(
                boxes_of(rgb[..., 0]), key=lambda b: abs(b[0] + b[2] - width) + abs(b[1] + b[3] - height)
            )
            points[i] = ((face_of_square() + self._move) * (x2 - x1, y2 - y1) + (x1, y1)) / (width, height)
        return Landmarks(points, np.full(len(rgb_NHWC), self._confidence, np.float32))

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None: ...


def picture(*centers: tuple[float, float]) -> U8:
    return scene(centers or [(160.0, 120.0)], size=SIZE).bgr


def face_at(x: float, y: float) -> Face:
    """A detector's box, not quite round the square."""
    half = 0.45 * SIZE
    return Face(np.array([x - half + 3, y - half - 2, x + half + 3, y + half - 2], np.float32), 0.9)


def truth(x: float, y: float) -> F32:
    """(98, 2) px of the square centred there."""
    corner = np.round(np.array([x, y]) - SIZE / 2) - 0.5
    return np.asarray(face_of_square() * SIZE + corner, np.float32)


# ---- one face


def test_teachers_that_know_and_agree_give_the_true_points_at_full_weight() -> None:
    teachers = [Teacher(Knows(), 1.0), Teacher(Knows(hw=(64, 64)), 0.25)]
    (label,) = label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)
    # a square's edge in a crop is known to a pixel
    np.testing.assert_allclose(label.points, truth(160, 120), atol=1.5)
    assert label.disagreement < 5 and label.weight > 0.4


def test_the_label_is_the_mean_by_the_teachers_weights() -> None:
    def shift_of(weight: float) -> F32:
        teachers = [Teacher(Knows(), 1.0), Teacher(Knows(move=(0.0, 0.2)), weight)]
        (label,) = label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)
        return np.asarray((label.points - truth(160, 120)).mean(0) / SIZE, np.float32)

    np.testing.assert_allclose(shift_of(1.0), (0, 0.1), atol=0.02)
    np.testing.assert_allclose(shift_of(0.25), (0, 0.04), atol=0.02)


def test_disagreement_is_the_mean_distance_of_two_guesses_over_that_of_the_eye_corners() -> None:
    teachers = [Teacher(Knows(), 1.0), Teacher(Knows(move=(0.0, 0.2)), 1.0)]
    (label,) = label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)
    # of 28 pairs of guesses, 16 are of one teacher with the other
    assert label.disagreement == pytest.approx(100 * 16 / 28 * 0.2 * SIZE / OCULAR, abs=3)


def test_a_lean_to_one_side_of_the_crop_is_doubt_and_the_mirror_takes_it_out_of_the_label() -> None:
    (label,) = label_faces(picture(), [face_at(160, 120)], [Teacher(Knows(move=(0.1, 0.0)), 1.0)], WFLW98)
    np.testing.assert_allclose(label.points.mean(0), truth(160, 120).mean(0), atol=1)
    # of six pairs of guesses, four are of a crop with a mirrored one
    assert label.disagreement == pytest.approx(100 * 4 / 6 * 0.2 * SIZE / OCULAR, abs=3)


def test_weight_falls_as_teachers_part_and_as_they_doubt_that_a_face_is_there() -> None:
    def weight(move: float, confidence: float) -> float:
        teachers = [Teacher(Knows(), 1.0), Teacher(Knows((0.0, move), confidence), 1.0)]
        return label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)[0].weight

    weights = [weight(move, 1.0) for move in (0.0, 0.05, 0.1, 0.3)]
    assert weights == sorted(weights, reverse=True) and 0 < weights[-1] < 0.1 < weights[0] <= 1
    assert weight(0.0, 0.5) == pytest.approx(0.5 * weights[0], rel=1e-3)


def test_a_profile_whose_eye_corners_meet_has_a_finite_disagreement() -> None:
    points = np.repeat(face_of_square()[None] * 100, 2, axis=0)
    points[:, [60, 72]] = [[(20, 40), (80, 40)], [(50, 40), (50, 40)]]
    frontal, profile = teachers_module._ocular(points, WFLW98)
    assert frontal == pytest.approx(60) and profile == pytest.approx(50)


def test_a_point_that_teachers_dispute_counts_less_than_its_neighbours() -> None:
    class Unsure(Knows):
        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            points, confidence, _ = super().__call__(rgb_NHWC)
            points[:, 16] += 0.1
            return Landmarks(points, confidence)

    teachers = [Teacher(Knows(), 1.0), Teacher(Unsure(), 1.0)]
    (label,) = label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)
    assert label.point_weights.mean() == pytest.approx(1, abs=1e-5)
    assert label.point_weights.argmin() == 16 and label.point_weights[16] < 0.5


def test_each_teacher_has_its_own_crop_and_is_asked_closer_and_wider() -> None:
    stretched, square = Knows(), Knows()
    stretched.card = ModelCard("stretched", "wflw98", (96, 96), (1.6, 2.4))
    teachers = [Teacher(stretched, 1.0), Teacher(square, 1.0)]
    (label,) = label_faces(picture(), [face_at(160, 120)], teachers, WFLW98)
    np.testing.assert_allclose(label.points, truth(160, 120), atol=1.5)


def test_points_that_slid_off_the_detectors_face_are_astray() -> None:
    (label,) = label_faces(picture(), [face_at(160, 120)], [Teacher(Knows(), 1.0)], WFLW98)
    assert not label.astray
    assert replace(label, face=Face(label.face.box_xyxy + 60, 0.9)).astray


def test_all_faces_of_a_picture_go_through_a_teacher_together() -> None:
    teacher = Knows()
    centers = [(50.0, 120.0), (160.0, 120.0), (270.0, 120.0)]
    labels = label_faces(picture(*centers), [face_at(*c) for c in centers], [Teacher(teacher, 1.0)], WFLW98)
    assert teacher.calls == [6, 12]
    for label, center in zip(labels, centers, strict=True):
        np.testing.assert_allclose(label.points, truth(*center), atol=1.5)


def test_no_faces_give_no_labels_and_no_teachers_an_error() -> None:
    assert label_faces(picture(), [], [Teacher(Knows(), 1.0)], WFLW98) == []
    with pytest.raises(ValueError, match="at least one teacher"):
        label_faces(picture(), [face_at(160, 120)], [], WFLW98)


# ---- a folder, with the real detector and the student


@pytest.fixture
def photos(tmp_path: Path, astronaut: U8) -> Path:
    """A portrait, the same mirrored in a folder within, a picture without a face, and one that is none."""
    folder = tmp_path / "photos"
    (folder / "inner").mkdir(parents=True)
    write_image(folder / "a.png", astronaut)
    write_image(folder / "inner" / "b.JPG", np.ascontiguousarray(astronaut[:, ::-1]))
    write_image(folder / "grey.png", np.full((100, 100, 3), 90, np.uint8))
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    (folder / "notes.txt").write_text("no picture")
    return folder


def rows_of(path: Path) -> dict[str, dict[str, object]]:
    return {str(row["image"]): row for row in map(json.loads, path.read_text().splitlines())}


def test_every_face_of_every_picture_under_a_folder_becomes_a_line(photos: Path, astronaut: U8) -> None:
    out = photos / "labels.jsonl"
    summary = label_folder(LabelConfig(photos, out, sheet=photos / "sheet.png"))
    assert summary == (4, 1, 1, 2, 0, 0, 0, 2, 0)
    rows = rows_of(out)
    assert list(rows) == ["a.png", "inner/b.JPG"]
    straight, mirrored = (np.array(row["points"], np.float32) for row in rows.values())
    np.testing.assert_allclose(straight[96:], [(202.5, 100), (246.5, 102)], atol=3)
    np.testing.assert_allclose(mirrored, WFLW98.flipped(straight, astronaut.shape[1]), atol=2)
    for row in rows.values():
        assert set(row) == {"image", "points", "box_xyxy", "weight", "point_weights", "disagreement", "score"}
        box_xyxy = np.array(row["box_xyxy"])
        center = np.array(row["points"]).mean(0)
        assert (box_xyxy[:2] < center).all() and (center < box_xyxy[2:]).all()
        assert isinstance(row["weight"], float) and 0.5 < row["weight"] <= 1
    sheet = cv2.imread(str(photos / "sheet.png"))
    assert sheet is not None and sheet.shape == (240, 1440, 3)


def test_pictures_outside_the_files_folder_are_named_in_full(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "labels.jsonl"
    label_folder(LabelConfig(photos, out))
    assert list(rows_of(out)) == [str(photos / "a.png"), str(photos / "inner" / "b.JPG")]


def test_training_reads_what_was_labelled(photos: Path, tmp_path: Path) -> None:
    for out in (photos / "labels.jsonl", tmp_path / "elsewhere" / "labels.jsonl"):
        label_folder(LabelConfig(photos, out))
        samples = data.read(out, "train")
        for sample, row in zip(samples, rows_of(out).values(), strict=True):
            np.testing.assert_allclose(sample.points, row["points"], atol=1e-3)
            np.testing.assert_allclose(sample.rect_xyxy, row["box_xyxy"], atol=1e-3)
            assert sample.weight == row["weight"]
            assert sample.bgr().shape == (512, 512, 3)


def test_empty_boxes_show_no_face_and_training_reads_them_as_such(photos: Path) -> None:
    out = photos / "labels.jsonl"
    assert label_folder(LabelConfig(photos, out, empty=1.0)).empty == 2
    samples = data.read(out, "train")
    faces = [sample for sample in samples if np.isfinite(sample.points).all()]
    empty = [sample for sample in samples if np.isnan(sample.points).all()]
    assert len(faces) == len(empty) == 2
    for face, none in zip(faces, empty, strict=True):
        assert face.name == none.name
        middle, (x1, y1, x2, y2) = face.points.mean(0), none.rect_xyxy
        assert not (x1 < middle[0] < x2 and y1 < middle[1] < y2) or x2 - x1 > 1.5 * np.ptp(face.points[:, 0])


def test_a_place_that_cannot_be_written_is_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(photos), "--out", str(photos / "a.png" / "labels.jsonl")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: cannot write")


def test_labelling_twice_writes_the_same_file(photos: Path, tmp_path: Path) -> None:
    outs = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for out in outs:
        label_folder(LabelConfig(photos, out))
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_faces_too_small_or_disputed_are_left_out_and_counted(photos: Path, tmp_path: Path) -> None:
    assert label_folder(LabelConfig(photos, tmp_path / "a.jsonl", min_face_px=200))[-6:] == (2, 2, 0, 0, 0, 0)
    assert label_folder(LabelConfig(photos, tmp_path / "b.jsonl", max_disagreement=0.01))[-6:] == (2, 0, 2, 0, 0, 0)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text() == ""


def test_a_run_that_fails_leaves_the_old_file_and_no_part(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "labels.jsonl"
    out.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(label_module, "label_faces", interrupted)
    assert main([str(photos), "--out", str(out)]) == 130
    assert out.read_text() == "old"
    assert [path for path in tmp_path.iterdir() if "labels" in path.name] == [out]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere"], "no folder at nowhere"),
        (["{empty}"], "contains no pictures"),
        (["{photos}", "--teacher", "b99"], "no model is called 'b99'"),
        (["{photos}", "--teacher", "mesh:0"], "has weight 0.0, expected a number above 0"),
        (["{photos}", "--max-disagreement", "0"], "max_disagreement is 0.0"),
        (["{photos}", "--min-score", "1"], "min_score is 1.0"),
        (["{photos}", "--sheet", "sheet.gif"], "sheet is sheet.gif, expected a picture"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    args: list[str], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    given = [arg.format(empty=tmp_path / "empty", photos=photos) for arg in args]
    assert main([*given, "--out", str(tmp_path / "labels.jsonl")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
    assert not list(tmp_path.glob("labels*"))


def test_teachers_of_different_schemas_are_refused(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setattr(teachers_module.engines, "load", lambda model: Knows(schema=model))
    with pytest.raises(LineamentError, match="schemas ibug68, wflw98, expected one"):
        label_folder(LabelConfig(photos, photos / "labels.jsonl", teacher=("wflw98", "ibug68")))


def test_a_teachers_weight_follows_the_last_colon_and_a_path_may_hold_others() -> None:
    parsed = teachers_module._parsed
    assert parsed("mesh", 1.0) == ("mesh", 1.0)
    assert parsed("mesh:0.3", 1.0) == ("mesh", 0.3)
    assert parsed("C:/models/pfld.onnx", 1.0) == ("C:/models/pfld.onnx", 1.0)
    assert parsed("a:b.onnx:2", 1.0) == ("a:b.onnx", 2.0)


def test_how_good_the_teachers_are_is_said_before_they_label(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    label_folder(LabelConfig(photos, photos / "train.jsonl"))
    checked = tmp_path / "checked.jsonl"
    checked.write_text(
        "".join(
            (photos / "train.jsonl")
            .read_text()
            .replace('"a.png"', f'"{photos}/a.png"')
            .replace('"inner', f'"{photos}/inner')
            .splitlines(keepends=True)
        )
    )
    with caplog.at_level("INFO"):
        label_folder(LabelConfig(photos, tmp_path / "labels.jsonl", check=(f"{checked}:0",)))
    # what it labelled itself it finds again
    said = next(line for line in caplog.messages if "NME" in line)
    nme = float(re.search(r"NME of ([\d.]+) on the 2 test faces", said)[1])  # type: ignore[index]
    assert nme < 1.0


def test_the_command_runs_without_the_training_packages(photos: Path, tmp_path: Path) -> None:
    script = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "timm", "albumentations", "onnx", "onnxruntime"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from lineament.stream.label import main
teachers = ["--teacher", "student", "--teacher", "student"]
sys.exit(main([{str(photos)!r}, "--out", {str(tmp_path / "labels.jsonl")!r}, *teachers]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "4 images, 1 unreadable, 1 without face, 2 faces, 0 small, 0 disputed, 0 astray, 2 kept" in done.stderr
