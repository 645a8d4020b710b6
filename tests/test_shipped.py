"""The models that ship: what they are worth on labelled faces, and that a B5 runs before it is built for a machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lineament import engines
from lineament.engines.export import real_crops
from lineament.landmarks.schema import WFLW98
from lineament.train.crops import CropConfig
from lineament.train.data import read
from lineament.train.evaluate import Scores, evaluate, load_predictor
from lineament.train.model import read_header

LEFT_EYE, MOUTH = (list(WFLW98.parts[part]) for part in ("left_eye", "outer_lips"))


def scored(name: str, wflw: Path) -> Scores:
    """On the hard faces, cropped round their points, not levelled."""
    predict, card = load_predictor(engines.CHECKPOINTS[name], "cpu")
    crop = CropConfig(scale=card.crop_scale, level=False)
    return evaluate(read(wflw, "test"), predict, card.input_hw, crop)


@pytest.mark.parametrize(
    ("name", "hard", "pose", "failures"),
    [("student", 5.8, 8.7, 10.0), ("student-fast", 6.7, 10.1, 14.0), ("b5", 5.6, 8.6, 10.0)],
)
def test_what_ships_is_worth_on_hard_faces_and_on_turned_ones_what_is_said(
    name: str, hard: float, pose: float, failures: float, shared: Path
) -> None:
    scores = scored(name, shared / "data" / "wflw-hard-dev")
    assert len(scores.nme) == 61
    assert scores.total.nme < hard and scores.by_subset()["pose"].nme < pose and scores.total.failures < failures


def test_what_ships_says_in_its_card_what_it_scored() -> None:
    for name, path in engines.CHECKPOINTS.items():
        spec, card = read_header(path)
        assert (card.name, card.precision, spec.presence) == (name, "fp16", True)
        assert {
            "held out",
            "wflw-hard-dev test, points crop",
            "wflw-hard-dev test, points crop, pose",
        } <= card.nme.keys()
        assert path.stat().st_size < 64e6 and path.with_suffix(".md").is_file()


def test_a_b5_that_is_not_built_runs_by_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path)
    with engines.load("b5", "cpu") as landmarker:
        crops = real_crops(landmarker.card, 3)
        faces = landmarker(np.concatenate([crops, np.full_like(crops[:1], 120)]))
    assert (faces.confidence[:3] > 0.9).all() and faces.confidence[3] < 0.5, "a grey crop holds no face"
    eyes, mouths = (faces.points_unit[:3, part].mean(1) for part in (LEFT_EYE, MOUTH))
    # the crops lean by some 0.3 rad
    assert (mouths[:, 1] - eyes[:, 1] > 0.1).all()
