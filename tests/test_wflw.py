"""From WFLW's own folder to scores, by the command line, with every head; what a short run learnt is not asked."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import lineament.train.__main__ as command
from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import WFLW98
from lineament.train import loop, model
from lineament.train.config import TrainConfig
from lineament.train.crops import CropConfig
from lineament.train.data import group_of, read
from lineament.train.evaluate import Predict, evaluate, load_predictor
from lineament.train.sample import Sample

DOCS = Path(__file__).resolve().parent.parent / "docs" / "training.md"
HEADS = ("coords", "heatmap", "star", "simcc")
EPOCHS, BATCH, INPUT_PX, SHIFT_PX = 2, 16, 64, 0.5
HELD_OUT, FACES, CROPS_OF_A_FACE = 0.8, 30, 10
"""of wflw-mini's training list; most of it is held out, for steps cost more than validation"""


@dataclass(frozen=True)
class Trained:
    """A run that has ended."""

    head: str
    wflw: Path
    run: Path
    code: int
    """what the command line returned"""
    start: Path
    """the weights that it was told to start from"""
    training: list[Sample]
    """what the command line gave the loop to train on"""
    held_out: list[Sample]

    @property
    def best(self) -> Path:
        return self.run / "best.safetensors"

    def predictor(self) -> tuple[Predict, ModelCard, CropConfig]:
        predict, card = load_predictor(self.best)
        return predict, card, CropConfig(scale=card.crop_scale)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs lie side by side, and share the crops that the first of them cuts."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=HEADS)
def trained(request: pytest.FixtureRequest, shared: Path, runs: Path) -> Trained:
    """A run as a user starts it, but small, and from weights that are known."""
    head, wflw = request.param, shared / "data" / "wflw-mini"
    run, start = runs / head, runs / f"{head}-start.safetensors"
    torch.manual_seed(1)
    net = model.LandmarkNet(model.NetSpec("mobilenetv4_conv_small", head, input_hw=(INPUT_PX, INPUT_PX)))
    model.save(net, model.new_card(net, "start", CropConfig().scale), start)
    arguments = {
        "data": wflw,
        "label-shift-px": SHIFT_PX,
        "head": head,
        "backbone": "mobilenetv4_conv_small",
        "init": start,
        "input-px": INPUT_PX,
        "epochs": EPOCHS,
        "batch": BATCH,
        "workers": 0,
        "hold-out": HELD_OUT,
        "weight-decay": 0,  # then nothing but a gradient moves a weight
        "run": run,
    }
    given: list[list[Sample]] = []

    def fit(cfg: TrainConfig, training: list[Sample], held_out: list[Sample]) -> loop.Fitted:
        given.extend([training, held_out])
        return loop.fit(cfg, training, held_out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "fit", fit)
        code = command.main(["--no-pretrained", *(text for k, v in arguments.items() for text in (f"--{k}", str(v)))])
    assert given, f"the command line returned {code} before it trained"
    return Trained(head, wflw, run, code, start, *given)


def test_the_run_ends_well_and_every_loss_was_finite(trained: Trained) -> None:
    assert trained.code == 0
    rows = list(csv.DictReader((trained.run / "curves.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, EPOCHS + 1))
    # a mean over the steps is finite only if each of them is
    assert np.isfinite([[float(row[name]) for name in ("loss", "nme", "lr")] for row in rows]).all()
    assert not list(trained.run.glob("not-finite*"))


def test_the_folder_of_the_run_holds_what_the_page_says(trained: Trained) -> None:
    section = DOCS.read_text().split("## A run\n")[1].split("\n\n")[0].split("The same command")[0]
    promised = set(re.findall(r"`([\w-]+\.\w+)`", section))
    assert {"config.json", "curves.csv", "last.pt", "best.safetensors"} <= promised, "the page was not understood"
    names = {path.name for path in trained.run.iterdir()}
    assert promised <= names and any(name.startswith("events.out") for name in names)
    assert all((trained.run / name).stat().st_size > 0 for name in names)
    asked = json.loads((trained.run / "config.json").read_text())
    assert asked["head"] == trained.head and asked["data"] == [str(trained.wflw)]
    assert asked["label_shift_px"] == [SHIFT_PX] and asked["input_px"] == INPUT_PX


def test_the_best_model_loads_and_its_card_says_what_it_is(trained: Trained) -> None:
    net, card = model.load(trained.best)
    assert (card.head, card.schema, card.input_hw) == (trained.head, "wflw98", (INPUT_PX, INPUT_PX))
    assert (net.spec.head, net.spec.backbone) == (trained.head, "mobilenetv4_conv_small")
    assert card.crop_scale == CropConfig().scale and np.isfinite(card.nme["held out"])


def test_whole_faces_are_held_out_of_the_training_list(trained: Trained) -> None:
    training, held_out = (Counter(map(group_of, samples)) for samples in (trained.training, trained.held_out))
    assert len(training) + len(held_out) == FACES and len(held_out) == round(HELD_OUT * FACES)
    assert not training.keys() & held_out.keys()
    assert set((training + held_out).values()) == {CROPS_OF_A_FACE}
    listed = {sample.name: sample.points for sample in read(trained.wflw, "train")}
    both = {sample.name: sample.points for sample in (*trained.training, *trained.held_out)}
    assert both.keys() == listed.keys()
    assert all(np.array_equal(both[name], listed[name] - np.float32(SHIFT_PX)) for name in listed)


def test_no_layer_is_frozen(trained: Trained) -> None:
    before, after = parameters(trained.start), parameters(trained.best)
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name]) and not idle(name, trained.head)]
    # and the run started where it was told to: a step of Adam moves a weight by about the rate, which never exceeds lr
    steps = EPOCHS * (len(trained.training) // BATCH)
    reach = steps * TrainConfig((trained.wflw,)).lr
    assert not [name for name in before if float((after[name] - before[name]).abs().max()) > reach]


def idle(name: str, head: str) -> bool:
    """Whether a bias changes nothing, so that rounding alone moves it: a norm or star's softmax takes it away again."""
    return name.endswith("dw_start.bn.bias") or (head, name) == ("star", "head.outputs.0.bias")


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.load(path)[0].named_parameters()}


def test_every_face_of_the_test_list_is_scored_by_all_its_points(trained: Trained) -> None:
    predict, card, crop = trained.predictor()
    faces = read(trained.wflw, "test")
    scores = evaluate(faces, predict, card.input_hw, crop, WFLW98, label_shift_px=SHIFT_PX)
    assert scores.errors.shape == (200, 98) and np.isfinite(scores.errors).all()
    assert scores.total.faces == 200 and np.isfinite(scores.nme).all() and np.isfinite(scores.total.nme)
    # each of its own picture
    assert len(np.unique(scores.truth, axis=0)) == len({face.name for face in faces}) == 200
    np.testing.assert_array_equal(scores.truth, np.stack([face.points for face in faces]) - np.float32(SHIFT_PX))


def test_the_held_out_score_is_what_evaluation_says_of_the_same_faces(trained: Trained) -> None:
    if trained.head == "heatmap":
        pytest.skip("of a heatmap that has learnt little, rounding may make another cell the highest")
    predict, card, crop = trained.predictor()
    again = evaluate(trained.held_out, predict, card.input_hw, crop, WFLW98).total.nme
    assert again == pytest.approx(card.nme["held out"], rel=0.01)
