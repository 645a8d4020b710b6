"""The profile of training: it times the real steps, by parts that make up the whole, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineament.train.config import TrainConfig
from lineament.train.loop import STAGES
from lineament.train.profile import Profile, ProfileConfig, main, measure, table
from tests.labelled import mean_face, write_wflw


def config(data: Path, run: Path) -> TrainConfig:
    return TrainConfig(
        (data,), run, backbone="test_efficientnet", pretrained=False, input_px=64, batch=4, workers=0, device="cpu"
    )


def test_the_parts_make_up_the_step_and_no_run_is_begun(tmp_path: Path) -> None:
    write_wflw(tmp_path / "data", "train", [(f"{i}.png", mean_face()) for i in range(8)])
    found = measure(ProfileConfig(config(tmp_path / "data", tmp_path / "run"), steps=2, seconds=0.2))
    assert found.fed_s > 0 and found.batch == 4 and tuple(found.parts_ms) == STAGES
    assert all(ms > 0 for ms in found.parts_ms.values())
    assert sum(found.parts_ms.values()) <= found.step_ms
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("fed_s", "slower"), [(50.0, "loader"), (500.0, "steps")])
def test_the_table_says_what_an_epoch_waits_for(tmp_path: Path, fed_s: float, slower: str) -> None:
    found = Profile(fed_s, 100.0, {"forward": 40.0, "backward": 60.0}, 10)
    lines = table(found, config(tmp_path, tmp_path)).splitlines()
    assert "100 faces/s" in lines[2] and "40%" in lines[3] and lines[-1] == f"an epoch is bound by the {slower}"


def test_a_data_set_that_is_not_there_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "gone"), "--no-pretrained"]) == 1
    assert capsys.readouterr().err.startswith("error: ")
