"""Crops: their geometry is serving's, their cache is whole or absent, and its pixels belong to what was asked for."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import apply, crop_from_frame, invert, warp
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, LineamentError
from lineament.train.crops import CropConfig, Crops
from lineament.train.sample import Sample
from tests.labelled import mean_face

HW = (64, 64)


def turned(points: F32, degrees: float) -> F32:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = points.mean(0)
    return np.asarray((points - middle) @ np.array([[c, s], [-s, c]]) + middle, np.float32)


def face(folder: Path, points: F32, name: str = "a.png", side: int = 300) -> Sample:
    """A picture that is smooth, so that resampling it twice agrees, with a dot on the first point."""
    y, x = np.mgrid[:side, :side]
    bgr = np.stack([x * 200 / side, y * 200 / side, (x + y) * 100 / side], -1).astype(np.uint8)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), bgr)
    return Sample(name, points, np.array([60, 70, 220, 210], np.float32), frozenset(), path)


def crops_of(samples: list[Sample], cache: Path, cfg: CropConfig | None = None, **changes: float) -> Crops:
    return Crops(samples, HW, cfg or CropConfig(), WFLW98, cache, **changes)


def card(scale: float = 1.3) -> ModelCard:
    return ModelCard("test", WFLW98.name, HW, scale)


def test_the_input_crop_is_what_serving_cuts(tmp_path: Path) -> None:
    sample = face(tmp_path, turned(mean_face(140, 150, 40), 20))
    crops = crops_of([sample], tmp_path / "cache")
    crop = crops.input_crop(0)
    matrix = crop_from_frame(sample.points, card(), WFLW98.roll_rad(sample.points))
    served = warp(np.ascontiguousarray(sample.bgr()[..., ::-1]), matrix, HW)
    assert crop.rgb.shape == (*HW, 3) and np.abs(crop.rgb.astype(int) - served).max() <= 2
    np.testing.assert_allclose(crop.points, apply(matrix, sample.points), atol=1e-3)
    np.testing.assert_allclose(crops.frame_from_input(0), invert(matrix), atol=1e-9)
    assert abs(WFLW98.roll_rad(crop.points)) < 1e-5


def test_the_wide_crop_has_the_input_in_its_middle_and_shows_what_is_round_it(tmp_path: Path) -> None:
    crops = crops_of([face(tmp_path, mean_face(140, 150, 40))], tmp_path / "cache")
    wide, crop = crops[0], crops.input_crop(0)
    assert wide.rgb.shape == (96, 96, 3)
    np.testing.assert_array_equal(wide.rgb[16:80, 16:80], crop.rgb)
    np.testing.assert_allclose(wide.points - 16, crop.points, atol=1e-4)
    assert wide.rgb.min() > 0, "the picture reaches beyond the input, so no border may be black"


def test_colour_lies_under_the_points_where_the_label_says(tmp_path: Path) -> None:
    """The picture's blue grows with x and its green with y, so a colour tells where a pixel comes from."""
    sample = face(tmp_path, turned(mean_face(140, 150, 40), -30))
    crop = crops_of([sample], tmp_path / "cache").input_crop(0)
    inside = ((crop.points > 1) & (crop.points < 62)).all(1)
    x, y = np.round(crop.points[inside]).astype(int).T
    frame = apply(crops_of([sample], tmp_path / "cache").frame_from_input(0), np.stack([x, y], 1).astype(np.float32))
    np.testing.assert_allclose(crop.rgb[y, x, 2] / 200 * 300, frame[:, 0], atol=4)
    np.testing.assert_allclose(crop.rgb[y, x, 1] / 200 * 300, frame[:, 1], atol=4)


def test_points_go_to_the_crop_and_back(tmp_path: Path) -> None:
    samples = [face(tmp_path, turned(mean_face(140, 150, 40), angle)) for angle in (0, 25, -70)]
    for source in ("points", "rect"):
        crops = crops_of(samples, tmp_path / "cache", CropConfig(source=source))  # type: ignore[arg-type]
        for i, sample in enumerate(samples):
            back = apply(crops.frame_from_input(i), crops.input_crop(i).points)
            np.testing.assert_allclose(back, sample.points, atol=1e-3)


def test_rect_crops_and_those_not_to_be_levelled_keep_the_roll(tmp_path: Path) -> None:
    sample = face(tmp_path, turned(mean_face(140, 150, 40), 20))
    roll = WFLW98.roll_rad(sample.points)
    for cfg in (CropConfig(level=False), CropConfig(source="rect")):
        crop = crops_of([sample], tmp_path / "cache", cfg).input_crop(0)
        assert WFLW98.roll_rad(crop.points) == pytest.approx(roll, abs=1e-5)
    matrix = crop_from_frame(sample.rect_xyxy, card())
    np.testing.assert_allclose(crop.points, apply(matrix, sample.points), atol=1e-3)


def test_the_shift_is_taken_off_the_labels(tmp_path: Path) -> None:
    sample = face(tmp_path, mean_face(140, 150, 40))
    shifted = replace(sample, points=sample.points + np.float32(0.5))
    a, b = crops_of([sample], tmp_path / "cache"), crops_of([shifted], tmp_path / "cache", label_shift_px=0.5)
    np.testing.assert_allclose(a[0].points, b[0].points, atol=1e-3)


def test_a_sample_without_points_is_cut_round_its_rect(tmp_path: Path) -> None:
    sample = replace(face(tmp_path, mean_face()), points=np.full((98, 2), np.nan, np.float32))
    crops = crops_of([sample], tmp_path / "cache")
    assert np.isnan(crops[0].points).all()
    np.testing.assert_allclose(crops.frame_from_input(0), invert(crop_from_frame(sample.rect_xyxy, card())))


# ---- the detector's boxes


def boxes(path: Path, *rows: tuple[str, list[float]]) -> Path:
    path.write_text("".join(json.dumps({"image": image, "box_xyxy": box}) + "\n" for image, box in rows))
    return path


def test_the_nearest_box_of_the_same_picture_round_the_middle_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    points = mean_face(140, 150, 40)
    samples = [face(tmp_path, points, name) for name in ("x/a.png", "y/a.png", "lost.png")]
    middle = (points.min(0) + points.max(0)) / 2
    near = [*(middle - 50), *(middle + 52)]
    path = boxes(
        tmp_path / "boxes.jsonl",
        ("x/a.png", [float(v) for v in (*(middle - 40), *(middle + 90))]),
        ("x/a.png", [float(v) for v in near]),
        ("x/a.png", [0, 0, 20, 20]),
        (str(tmp_path / "y" / "a.png"), [float(v) for v in (*(middle - 70), *(middle + 71))]),
        ("lost.png", [0, 0, 20, 20]),
    )
    with caplog.at_level(logging.INFO, "lineament.train.crops"):
        crops = crops_of(samples, tmp_path / "cache", CropConfig("detector", path))
    expected = (near, [*(middle - 70), *(middle + 71)], samples[2].rect_xyxy)
    for i, box in enumerate(expected):
        matrix = crop_from_frame(np.array(box, np.float32), card())
        np.testing.assert_allclose(crops.frame_from_input(i), invert(matrix), atol=1e-4)
    (said,) = [record.getMessage() for record in caplog.records if "no detected box" in record.getMessage()]
    assert said.startswith("1 of 3 faces")


def test_boxes_of_other_pictures_and_broken_ones_are_refused(tmp_path: Path) -> None:
    samples = [face(tmp_path, mean_face(140, 150, 40))]
    path = boxes(tmp_path / "boxes.jsonl", ("other.png", [0, 0, 300, 300]))
    with pytest.raises(LineamentError, match=r"none of the boxes.*python -m stream\.label"):
        crops_of(samples, tmp_path / "cache", CropConfig("detector", path))
    path.write_text("{}\n")
    with pytest.raises(LineamentError, match="cannot read boxes"):
        crops_of(samples, tmp_path / "cache", CropConfig("detector", path))
    with pytest.raises(ValueError, match="give both or neither"):
        CropConfig("detector")


# ---- the cache


def test_a_second_time_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [face(tmp_path, mean_face(140, 150, 40), f"{i}.png") for i in range(3)]
    first = crops_of(samples, tmp_path / "cache")
    before = [first[i].rgb for i in range(3)]
    monkeypatch.setattr(Sample, "bgr", lambda self: pytest.fail("a picture was read"))
    again = crops_of(samples, tmp_path / "cache")
    assert again.path == first.path
    for i, rgb in enumerate(before):
        np.testing.assert_array_equal(again[i].rgb, rgb)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.path.name]


def test_another_picture_label_size_or_config_is_another_cache(tmp_path: Path) -> None:
    sample = face(tmp_path, mean_face(140, 150, 40))
    paths = [crops_of([sample], tmp_path / "cache").path]
    for cfg in (CropConfig(scale=1.5), CropConfig(margin=2), CropConfig(source="rect")):
        paths.append(crops_of([sample], tmp_path / "cache", cfg).path)
    paths.append(Crops([sample], (32, 32), CropConfig(), WFLW98, tmp_path / "cache").path)
    paths.append(crops_of([replace(sample, points=sample.points + 1)], tmp_path / "cache").path)
    os.utime(sample.image_path, ns=(1, 1))
    paths.append(crops_of([sample], tmp_path / "cache").path)
    assert len(set(paths)) == len(paths)


def test_faces_of_one_picture_keep_their_places(tmp_path: Path) -> None:
    points = [mean_face(100 + 20 * i, 150, 30) for i in range(4)]
    names = ("b.png", "a.png", "b.png", "a.png")
    samples = [face(tmp_path, p, name) for p, name in zip(points, names)]
    crops = crops_of(samples, tmp_path / "cache")
    for i, sample in enumerate(samples):
        alone = crops_of([sample], tmp_path / "cache")
        np.testing.assert_array_equal(crops[i].rgb, alone[0].rgb)


def test_a_picture_that_cannot_be_read_leaves_no_cache(tmp_path: Path) -> None:
    samples = [face(tmp_path, mean_face(140, 150, 40), f"{i}.png") for i in range(3)]
    samples[2].image_path.write_bytes(b"no picture")
    with pytest.raises(LineamentError, match=r"2\.png"):
        crops_of(samples, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_was_copied_half_is_cut_again(tmp_path: Path) -> None:
    samples = [face(tmp_path, mean_face(140, 150, 40))]
    crops = crops_of(samples, tmp_path / "cache")
    whole = crops.path.read_bytes()
    for part in (b"", whole[:60], whole[:-1000]):
        crops.path.write_bytes(part)
        assert crops_of(samples, tmp_path / "cache").path.read_bytes() == whole


def test_a_disk_too_small_is_said_before_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1, 1, 1000))
    with pytest.raises(LineamentError, match=r"take 0\.0 GB in .*lower --crop\.margin"):
        crops_of([face(tmp_path, mean_face(140, 150, 40))], tmp_path / "cache")


def test_a_worker_gets_the_file_not_the_pixels(tmp_path: Path) -> None:
    samples = [face(tmp_path, mean_face(140, 150, 40), f"{i}.png") for i in range(20)]
    crops = crops_of(samples, tmp_path / "cache")
    rgb = crops[3].rgb
    sent = pickle.dumps(crops)
    assert len(sent) < 20 * 96 * 96 * 3 / 5
    np.testing.assert_array_equal(pickle.loads(sent)[3].rgb, rgb)


def test_writing_to_a_crop_does_not_change_the_cache(tmp_path: Path) -> None:
    crops = crops_of([face(tmp_path, mean_face(140, 150, 40))], tmp_path / "cache")
    before = crops[0].rgb.copy()
    crops[0].rgb[:] = 0
    crops.input_crop(0).rgb[:] = 0
    np.testing.assert_array_equal(crops[0].rgb, before)


def test_labels_of_another_schema_and_empty_ones_are_refused(tmp_path: Path) -> None:
    sample = face(tmp_path, mean_face())
    with pytest.raises(LineamentError, match=r"\(68, 2\), expected \(98, 2\) of wflw98"):
        crops_of([replace(sample, points=mean_face()[:68])], tmp_path / "cache")
    with pytest.raises(LineamentError, match=r"a\.png: cannot crop round an empty region"):
        crops_of([replace(sample, points=np.ones((98, 2), np.float32))], tmp_path / "cache")


@pytest.mark.parametrize("bad", [{"scale": 0}, {"margin": 0.9}])
def test_senseless_crops_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="wanted above 0, and at least 1"):
        CropConfig(**bad)  # type: ignore[arg-type]


def test_real_crops_show_real_faces_alike(shared: Path, tmp_path: Path) -> None:
    from lineament.train.data import read

    samples = read(shared / "data" / "wflw-mini", "test")[:40]
    crops = crops_of(samples, tmp_path / "cache", label_shift_px=0.5)
    eyes = np.stack([crops.input_crop(i).points[[60, 72]] for i in range(len(crops))]) / HW[1]
    # levelled and scaled by the points, the eyes are always in about the same place
    assert np.abs(eyes[:, 0, 1] - eyes[:, 1, 1]).max() < 0.1
    assert eyes[..., 1].std() < 0.05
