"""Packs: what a run cuts from one is what it cuts from the pictures; pieces, groups, damage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import U8, LineamentError
from lineament.train import pack
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import check, group_of, hold_out, read
from lineament.train.sample import stamp_ns
from tests.labelled import mean_face, write_wflw

PX = 64


def photo(path: Path, side: int) -> U8:
    """A smooth picture, so that a pixel's place shows in its value."""
    rough = np.random.default_rng(side).integers(0, 256, (8, 8, 3), np.uint8)
    picture = cv2.resize(rough, (side, side), interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return np.asarray(picture, np.uint8)


def labelled(root: Path) -> Path:
    """Faces large, small, turned, cut off by the edge, and a box without one, in JSONL."""
    photo(root / "large.png", 900)
    photo(root / "small.png", 120)
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    rows = [
        {
            "image": "large.png",
            "points": mean_face(450, 400, 180).tolist(),
            "weight": 0.5,
            "point_weights": [0.5, 1.5] * 49,
        },
        {"image": "large.png", "points": (mean_face(0, 0, 120) @ turn.T + (300, 500)).tolist()},
        {"image": "small.png", "points": mean_face(60, 60, 20).tolist(), "attributes": ["blur", "pose"]},
        {"image": "small.png", "points": mean_face(8, 100, 20).tolist(), "group": "somebody"},
        {"image": "large.png", "points": None, "box_xyxy": [20, 20, 90, 110]},
    ]
    path = root / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def packed(labels: Path, out: Path, **changes: object) -> list[Path]:
    cfg = replace(pack.PackConfig((labels,), out, input_px=PX, quality=100), **changes)  # type: ignore[arg-type]
    return [path for path, _ in pack.pack(read(labels, "train"), cfg)]


def test_a_run_sees_the_same_faces_from_a_pack_as_from_the_pictures(tmp_path: Path) -> None:
    labels = labelled(tmp_path)
    (path,) = packed(labels, tmp_path / "packs" / "faces")
    before, after = read(labels, "train"), read(path, "train")
    seen = [Crops(samples, (PX, PX), CropConfig(), WFLW98, tmp_path / "cache") for samples in (before, after)]
    for i, (one, other) in enumerate(zip(before, after, strict=True)):
        assert (one.weight, one.attributes) == (other.weight, other.attributes)
        np.testing.assert_array_equal(one.point_weights, other.point_weights)
        a, b = seen[0][i], seen[1][i]
        np.testing.assert_allclose(a.points, b.points, atol=0.15)
        difference = np.abs(a.rgb.astype(int) - b.rgb)
        # shrunk in one step or in two, and through a JPEG: alike but for the outline of a picture that ends in sight
        assert np.median(difference) <= 1 and np.percentile(difference, 90) <= 5, one.name


def test_a_face_is_stored_no_larger_than_training_sees_it(tmp_path: Path) -> None:
    (path,) = packed(labelled(tmp_path), tmp_path / "faces")
    shapes = [sample.bgr().shape for sample in read(path, "train")]
    # a square of the wide crop's side, turned, and a pixel or two round it
    most = np.sqrt(2) * PX * CropConfig().margin + 4
    assert all(max(shape[:2]) <= most for shape in shapes)
    # the large faces were shrunk to it, the small ones are as they were
    assert min(shapes[0][:2]) > 60 and max(shapes[2][:2]) < 120


def test_pieces_hold_no_more_than_they_may_and_a_folder_of_them_is_one_data_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        assert cv2.imwrite(str(tmp_path / f"{i}.png"), rng.integers(0, 256, (512, 512, 3), np.uint8))
        rows.append({"image": f"{i}.png", "points": mean_face(256, 256, 128).tolist()})
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = packed(labels, tmp_path / "packs" / "noise", input_px=256, piece_mb=1)
    assert len(paths) > 1 and all(path.stat().st_size <= 1e6 for path in paths)
    together = read(tmp_path / "packs", "train")
    assert [sample.name for sample in together] == [f"{i:06}.jpg" for i in range(12)]
    assert sum(len(read(path, "train")) for path in paths) == 12
    assert not check(tmp_path / "packs", "train").problems


def test_faces_of_one_picture_are_still_held_out_together(tmp_path: Path) -> None:
    labels = labelled(tmp_path)
    (path,) = packed(labels, tmp_path / "faces")
    assert [group_of(s) for s in read(path, "train")] == ["large", "large", "small", "somebody", "large"]
    for seed in range(5):
        kept, out = hold_out(read(path, "train"), 0.3, seed)
        assert out and not {group_of(s) for s in kept} & {group_of(s) for s in out}


def test_a_label_shift_is_taken_off_once(tmp_path: Path) -> None:
    root = write_wflw(tmp_path / "set", "train", [("a.png", mean_face(50, 50, 10))])
    args = [str(root), "--out", str(tmp_path / "faces"), "--label-shift-px", "0.5", "--input-px", "256"]
    assert pack.main(args) == 0
    (face,) = read(tmp_path / "faces-1.zip", "train")
    left_top = face.points.min(0) - (mean_face(50, 50, 10) - 0.5).min(0)
    # the piece begins at a whole pixel of the picture
    np.testing.assert_allclose(left_top, np.round(left_top), atol=0.011)


def test_older_packs_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    labels = labelled(tmp_path)
    packed(labels, tmp_path / "faces")
    with pytest.raises(LineamentError, match=r"faces-1\.zip is there already; delete it"):
        packed(labels, tmp_path / "faces")


def test_what_is_no_pack_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK no zip at all")
    with pytest.raises(LineamentError, match=r"cannot read the pack .*a\.zip.*copy it again"):
        read(tmp_path / "a.zip", "train")
    labels = labelled(tmp_path)
    (path,) = packed(labels, tmp_path / "faces")
    with pytest.raises(LineamentError, match="packs are for training"):
        read(tmp_path, "test")
    assert stamp_ns(path / "000000.jpg") == path.stat().st_mtime_ns and stamp_ns(path / "9.jpg") is None


def test_nothing_to_pack_is_said(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="nothing to pack"):
        pack.pack([], pack.PackConfig((tmp_path,), tmp_path / "x"))
    with pytest.raises(ValueError, match="piece_mb 0"):
        pack.PackConfig((tmp_path,), tmp_path / "x", piece_mb=0)
