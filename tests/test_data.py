"""The reader of the official WFLW lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landmarks.types import LineamentError
from train import data


def _write(root: Path, text: str) -> Path:
    path = root / data.LISTS.format(split="train")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return root


def _line(flags: str = "0 0 0 0 0 0", name: str = "0--Parade/a.jpg", n: int = 196) -> str:
    return " ".join([*(f"{i}.5" for i in range(n)), "10 20 30 40", flags, name]) + "\n"


def test_a_line_becomes_points_rect_attributes_and_a_path(tmp_path: Path) -> None:
    (sample,) = data.read(_write(tmp_path, _line("1 0 0 0 0 1")), "train")
    assert sample.points.shape == (98, 2) and sample.points.dtype == np.float32
    np.testing.assert_array_equal(sample.points[1], (2.5, 3.5))
    np.testing.assert_array_equal(sample.rect_xyxy, (10, 20, 30, 40))
    assert sample.attributes == {"pose", "blur"}
    assert sample.image_path == tmp_path / "WFLW_images" / "0--Parade" / "a.jpg"


def test_faces_of_one_picture_stay_apart_and_in_order(tmp_path: Path) -> None:
    samples = data.read(_write(tmp_path, _line() + _line("0 1 0 0 0 0") + "\n"), "train")
    assert [sample.attributes for sample in samples] == [frozenset(), frozenset({"expression"})]


def test_a_name_may_hold_spaces(tmp_path: Path) -> None:
    (sample,) = data.read(_write(tmp_path, _line(name="my faces/a b.jpg")), "train")
    assert sample.name == "my faces/a b.jpg"


@pytest.mark.parametrize("line", [_line(n=195), _line(flags="0 0 x 0 0 0"), "hello\n"])
def test_a_malformed_line_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(LineamentError, match="line 2"):
        data.read(_write(tmp_path, _line() + line), "train")


def test_a_missing_list_and_a_missing_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"list_98pt_rect_attr_test\.txt"):
        data.read(tmp_path, "test")
    (sample,) = data.read(_write(tmp_path, _line()), "train")
    with pytest.raises(LineamentError, match=r"a\.jpg"):
        sample.bgr()


def test_wflw_mini_is_whole(shared: Path) -> None:
    for split, count in (("train", 300), ("test", 200)):
        samples = data.read(shared / "data" / "wflw-mini", split)  # type: ignore[arg-type]
        assert len(samples) == count
        sample = samples[0]
        np.testing.assert_allclose(sample.rect_xyxy[:2], sample.points.min(0), atol=1.5)
        assert sample.bgr().shape == (112, 112, 3)
