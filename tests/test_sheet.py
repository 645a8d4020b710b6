"""Contact sheets: dots lie on their points, and what cannot be written is said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.types import LineamentError
from lineament.train.sheet import TILE_PX, Tile, sheet

GREY = np.full((56, 56, 3), 100, np.uint8)


def test_a_dot_lies_on_its_point_and_truth_has_another_colour(tmp_path: Path) -> None:
    points, truth = np.array([[9.5, 20.0]], np.float32), np.array([[40.0, 30.0]], np.float32)
    picture = sheet([Tile(GREY, points, "", truth)], tmp_path / "s.png", 1)
    marked = np.abs(picture.astype(int) - 100).sum(-1) > 30
    green, red = marked & (picture[..., 1] > 120), marked & (picture[..., 2] > 120)
    for where, (x, y) in ((green, points[0]), (red & ~green, truth[0])):
        found = np.argwhere(where).mean(0)[::-1]
        np.testing.assert_allclose(found, ((x + 0.5) * 4 - 0.5, (y + 0.5) * 4 - 0.5), atol=0.75)


def test_the_file_is_the_picture_that_is_returned_row_by_row(tmp_path: Path) -> None:
    tiles = [Tile(np.full((8, 8, 3), (shade, 0, 0), np.uint8)) for shade in (50, 100, 150)]
    picture = sheet(tiles, tmp_path / "new folder" / "s.png", columns=2)
    assert picture.shape == (2 * TILE_PX, 2 * TILE_PX, 3)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new folder" / "s.png")), picture)
    centers = picture[TILE_PX // 2 :: TILE_PX, TILE_PX // 2 :: TILE_PX]
    # red in, BGR out; the place without a tile is black
    assert centers[..., 2].tolist() == [[50, 100], [150, 0]] and not centers[..., :2].any()


def test_points_far_away_or_not_finite_and_thin_pictures_do_no_harm(tmp_path: Path) -> None:
    points = np.array([[np.nan, 1], [1e9, 1], [-50, -50]], np.float32)
    plain = sheet([Tile(GREY)], tmp_path / "s.png")
    np.testing.assert_array_equal(sheet([Tile(GREY, points)], tmp_path / "s.png"), plain)
    sheet([Tile(np.zeros((1, 1000, 3), np.uint8), None, "Ünïcode 顔")], tmp_path / "s.png")


@pytest.mark.parametrize("name", ["s.what", "s", "file/s.png"])
def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LineamentError, match="cannot write the sheet"):
        sheet([Tile(GREY)], tmp_path / name)


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="nothing to draw"):
        sheet([], tmp_path / "s.png")
