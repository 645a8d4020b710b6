"""Models side by side: each on its own crop, with the NME that evaluating it alone gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from lineament import engines
from lineament.landmarks.types import LineamentError
from tests.labelled import mean_face, write_wflw

pytest.importorskip("torch")
from lineament.engines.compare import CompareConfig, compare, main, table
from lineament.train.evaluate import EvaluateConfig, report


def test_models_of_other_crops_stand_in_one_table_with_the_nme_of_evaluating_each_alone(tmp_path: Path) -> None:
    root = write_wflw(tmp_path / "set", "test", [(f"{i}.png", mean_face(45 + 9 * i)) for i in range(3)])
    own = str(engines.WEIGHTS / "student-fast-wflw98.onnx")
    cfg = CompareConfig(("student", "student-fast", own), (root,), (0.5,), device="openvino", n=2)
    rows = compare(cfg)
    assert [row.name for row in rows] == ["student", "student-fast", own]
    assert rows[0].card.input_hw != rows[1].card.input_hw == rows[2].card.input_hw
    for row in rows[:2]:
        alone = report(EvaluateConfig(engines.CHECKPOINTS[row.name], root, out=tmp_path / row.name, label_shift_px=0.5))
        assert row.scores[0].total.nme == pytest.approx(alone[0].total.nme, abs=0.05)
        assert row.size_mb == pytest.approx(engines.CHECKPOINTS[row.name].stat().st_size / 1e6)
    assert rows[1].scores[0].total == rows[2].scores[0].total
    lines = table(rows, cfg)
    assert len(lines) == 4 + 3 and "set: NME | FR@10 | pose" in lines[2]
    assert [line.count("|") for line in lines[2:]] == [9] * 5
    assert "| 1.00 |" in lines[4] and f"| {rows[1].scores[0].total.nme:.2f} |" in lines[5]


def test_the_command_prints_the_machine_and_names_what_it_cannot_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["student-fast", "--n", "1"]) == 0
    assert "cores" in capsys.readouterr().out.splitlines()[0]
    assert main(["nobody"]) == 1
    assert "no model is called 'nobody'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="2 numbers for 1 data sets"):
        CompareConfig(("student",), (Path("a"),), (0.5, 0.0))
    with pytest.raises(LineamentError):
        compare(CompareConfig(("student-fast",), (Path("absent"),), n=1))
