from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import (
    apply,
    compose,
    covered,
    crop_from_frame,
    crop_from_unit,
    frame_from_unit,
    invert,
    warp,
)
from lineament.landmarks.types import F32, U8

CARD = ModelCard(name="test", schema="wflw98", input_hw=(192, 192), crop_scale=1.5)
coordinate = st.floats(-2000, 2000, width=32)
boxes = st.builds(
    lambda x, y, w, h: np.array([x, y, x + w, y + h], np.float32),
    coordinate,
    coordinate,
    st.floats(4, 1000, width=32),
    st.floats(4, 1000, width=32),
)
rolls = st.floats(-np.pi, np.pi)


def dots(hw: tuple[int, int], points: F32) -> U8:
    """A soft white dot at each point: its centre of mass is the point."""
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    image = np.zeros(hw)
    for x, y in points:
        image = np.maximum(image, np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 6.0**2)))
    return np.repeat((image * 255).astype(np.uint8)[..., None], 3, 2)


def center_of_mass(image: U8) -> F32:
    weight = image[..., 0].astype(np.float64)
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(xs * weight).sum(), (ys * weight).sum()], np.float32) / np.float32(weight.sum())


@given(boxes, rolls)
def test_to_the_crop_and_back_is_the_same_point(box: F32, roll: float) -> None:
    matrix = crop_from_frame(box, CARD, roll)
    points = np.array([[box[0], box[1]], [box[2], box[3]], [0, 0]], np.float32)
    back = apply(invert(matrix), apply(matrix, points).astype(np.float64))
    assert np.abs(back - points).max() < 0.05


@given(boxes, rolls)
def test_the_centre_of_a_box_is_the_centre_of_its_crop(box: F32, roll: float) -> None:
    center = (box[:2] + box[2:]) / 2
    assert np.abs(apply(crop_from_frame(box, CARD, roll), center) - 95.5).max() < 0.01


@given(boxes, rolls)
def test_the_crop_is_scale_times_the_longer_side(box: F32, roll: float) -> None:
    scale = np.sqrt(np.linalg.det(crop_from_frame(box, CARD, roll)[:, :2]))
    assert scale == pytest.approx(192 / (1.5 * max(box[2:] - box[:2])), rel=1e-5)


@given(boxes)
def test_a_pair_of_scales_stretches_the_box_to_the_input(box: F32) -> None:
    card = replace(CARD, input_hw=(128, 96), crop_scale=(1.2, 1.3))
    width, height = box[2:] - box[:2]
    crop = crop_from_frame(box, card)
    assert crop[0, 0] == pytest.approx(96 / (1.2 * max(width, height / 4)), rel=1e-5)
    assert crop[1, 1] == pytest.approx(128 / (1.3 * max(height, width / 4)), rel=1e-5)
    assert crop[0, 1] == crop[1, 0] == 0


@given(boxes)
def test_a_box_and_its_corner_points_give_the_same_crop(box: F32) -> None:
    corners = box.reshape(2, 2)
    np.testing.assert_allclose(crop_from_frame(box, CARD), crop_from_frame(corners, CARD), rtol=1e-4, atol=1e-2)


@given(rolls, st.floats(0.2, 5), coordinate, coordinate)
def test_a_face_that_turns_moves_and_grows_gives_the_same_crop(roll: float, scale: float, x: float, y: float) -> None:
    face = np.random.default_rng(0).uniform(-100, 100, (98, 2))
    turn = scale * np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    moved = face @ turn.T + (x, y)
    before = apply(crop_from_frame(face, CARD), face)
    after = apply(crop_from_frame(moved, CARD, roll), moved)
    assert np.abs(before - after).max() < 0.02


def test_unit_coordinates_span_the_crops_edges() -> None:
    matrix = crop_from_unit((100, 200))
    np.testing.assert_allclose(apply(matrix, np.array([[0.0, 0.0], [1.0, 1.0]])), [[-0.5, -0.5], [199.5, 99.5]])


def test_unit_coordinates_do_not_depend_on_the_crops_size() -> None:
    box, unit = np.array([10, 20, 110, 140], np.float32), np.array([[0.3, 0.7]], np.float32)
    frames = []
    for size in (64, 192, 256):
        card = ModelCard(name="test", schema="wflw98", input_hw=(size, size), crop_scale=1.5)
        frames.append(apply(frame_from_unit(crop_from_frame(box, card, 0.3), card.input_hw), unit))
    np.testing.assert_allclose(frames[0], frames[1], atol=1e-3)
    np.testing.assert_allclose(frames[0], frames[2], atol=1e-3)


@pytest.mark.parametrize("side", [60, 200, 500, 900])
@pytest.mark.parametrize("roll", [0.0, 0.7])
def test_a_dot_in_the_frame_lands_where_the_matrix_says(side: int, roll: float) -> None:
    """The warp and the matrix agree to a fraction of a pixel, also where the crop shrinks the picture."""
    at = np.array([505.3, 396.8], np.float32)
    image = dots((800, 1000), at[None])
    box = np.array([500 - side / 2, 400 - side / 2, 500 + side / 2, 400 + side / 2], np.float32)
    matrix = crop_from_frame(box, CARD, roll)
    seen = center_of_mass(warp(image, matrix, CARD.input_hw))
    assert np.abs(seen - apply(matrix, at)).max() < 0.1


def test_a_shrinking_crop_averages_instead_of_aliasing() -> None:
    stripes = np.zeros((960, 960, 3), np.uint8)
    stripes[::2] = 255
    crop = warp(stripes, crop_from_frame(np.array([240, 240, 720, 720], np.float32), CARD), CARD.input_hw)
    assert np.abs(crop.astype(int) - 127).max() < 64


@given(boxes, rolls)
def test_a_crop_shows_no_pixel_beyond_those_it_is_said_to_cover(box: F32, roll: float) -> None:
    matrix = crop_from_frame(box, CARD, roll)
    left, top, right, bottom = covered(matrix, CARD.input_hw, (300, 400))
    frame = np.full((300, 400, 3), 255, np.uint8)
    frame[top:bottom, left:right] = 0
    assert not warp(frame, matrix, CARD.input_hw).any()


def test_what_a_crop_covers_is_no_more_than_its_bounds_and_a_pixel_round_them() -> None:
    upright = crop_from_frame(np.array([100, 100, 228, 228], np.float32), CARD)  # 192 px at scale 1: from 68 to 260 px
    assert covered(upright, CARD.input_hw, (300, 400)).tolist() == [67, 67, 262, 262]
    assert covered(upright, CARD.input_hw, (200, 100)).tolist() == [67, 67, 100, 200]
    left, top, right, bottom = covered(upright, CARD.input_hw, (50, 50))
    assert left >= right and top >= bottom, "it lies outside"


def test_outside_the_frame_is_black() -> None:
    white = np.full((50, 50, 3), 255, np.uint8)
    crop = warp(white, crop_from_frame(np.array([1000, 1000, 1050, 1050], np.float32), CARD), CARD.input_hw)
    assert not crop.any()
    crop = warp(white, crop_from_frame(np.array([5000, 0, 9000, 4000], np.float32), CARD), CARD.input_hw)
    assert not crop.any()


def test_compose_applies_the_second_first() -> None:
    rng = np.random.default_rng(1)
    a, b, points = rng.normal(size=(2, 3)), rng.normal(size=(2, 3)), rng.normal(size=(5, 2))
    np.testing.assert_allclose(apply(compose(a, b), points), apply(a, apply(b, points)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("region", [[5, 5, 5, 5], [9, 9, 1, 1], [0, 0, np.nan, 5], [0, 0, np.inf, 5]])
def test_an_empty_or_broken_region_is_refused(region: list[float]) -> None:
    with pytest.raises(ValueError, match="region"):
        crop_from_frame(np.array(region, np.float32), CARD)


def test_opencv_can_open_windows() -> None:
    """Three packages write cv2/; the one that was installed last must be one with a GUI."""
    lines = cv2.getBuildInformation().splitlines()
    gui = [line for line in lines if line.strip().startswith("GUI:")]
    assert gui and "NONE" not in gui[0]
