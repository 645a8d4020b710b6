"""The search for settings goes on where it was, survives failures, and says how to train with the best it found."""

from __future__ import annotations

import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cv2
import optuna
import pytest
import tyro

from lineament.landmarks.types import LineamentError
from lineament.train import loop, tune
from lineament.train.config import TrainConfig
from lineament.train.loop import Fitted, OnEpoch
from lineament.train.sample import Sample
from lineament.train.tune import TuneConfig, command, open_study, search_space
from tests.labelled import mean_face, sample, write_wflw

FACES = [sample(mean_face())]
optuna.logging.set_verbosity(optuna.logging.WARNING)


def config(folder: Path, trials: int = 2, **training: object) -> TuneConfig:
    base = replace(TrainConfig(data=(folder / "wflw",), epochs=2), **training)  # type: ignore[arg-type]
    return TuneConfig(base, f"sqlite:///{folder}/deep/tune.db", trials, folder / "tune")


class Valley:
    """Stands in for training: the held-out NME is least at a rate of 1e-3, and comes down over the epochs."""

    def __init__(self) -> None:
        self.configs: list[TrainConfig] = []

    def __call__(self, cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
        self.configs.append(cfg)
        nme = self.nme(cfg)
        for epoch in range(1, cfg.epochs + 1):
            on_epoch(epoch, nme + 4 / epoch)
        return Fitted(cfg.run, cfg.run / "best.safetensors", nme, cfg.epochs)

    def nme(self, cfg: TrainConfig) -> float:
        return 4 + abs(math.log10(cfg.lr / 1e-3))


def search(cfg: TuneConfig, fit: tune.Fit) -> tune.Tuned:
    return tune.tune(cfg, FACES, FACES, fit)


def test_the_best_trial_is_found_and_its_config_is_the_one_it_was_trained_with(tmp_path: Path) -> None:
    fit = Valley()
    tuned = search(config(tmp_path, trials=4), fit)
    best = min(fit.configs, key=fit.nme)
    assert tuned.nme == fit.nme(best)
    assert replace(tuned.config, run=best.run) == best
    assert tuned.trials == len(fit.configs) == 4


def test_only_what_is_searched_differs_between_trials_and_every_trial_has_its_own_folder(tmp_path: Path) -> None:
    fit = Valley()
    cfg = config(tmp_path, batch=16)
    search(cfg, fit)
    assert len({one.run for one in fit.configs}) == len(fit.configs)
    for one in fit.configs:
        base = cfg.training
        same = replace(
            one, run=base.run, lr=base.lr, weight_decay=base.weight_decay, schedule=base.schedule, augment=base.augment
        )
        assert same == base
        assert one.schedule.warmup_epochs <= 0.2 * 2 and 5e-5 <= one.lr <= 5e-3


def test_the_same_command_adds_to_the_study(tmp_path: Path) -> None:
    first, second = Valley(), Valley()
    search(config(tmp_path, trials=3), first)
    tuned = search(config(tmp_path, trials=2), second)
    assert (len(second.configs), tuned.trials) == (2, 5)
    assert tuned.nme == min(fit.nme(one) for fit in (first, second) for one in fit.configs)
    # a resumed search does not try the same again
    assert not {one.lr for one in first.configs} & {one.lr for one in second.configs}


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(tmp_path: Path) -> None:
    class Fragile(Valley):
        def __call__(self, cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
            fitted = super().__call__(cfg, train, val, on_epoch)
            match len(self.configs):
                case 1:
                    raise LineamentError("the loss became nan in epoch 1")
                case 2:
                    return fitted._replace(nme=math.nan)
            return fitted

    cfg, fit = config(tmp_path, trials=4), Fragile()
    tuned = search(cfg, fit)
    assert tuned.trials == 4 and tuned.nme == min(fit.nme(one) for one in fit.configs[2:])
    states = [(trial.state.name, trial.user_attrs.get("failure")) for trial in open_study(cfg).trials]
    assert states == [
        ("FAIL", "the loss became nan in epoch 1"),
        ("FAIL", "the held-out NME came out as nan"),
        ("COMPLETE", None),
        ("COMPLETE", None),
    ]


def test_a_study_of_failures_says_why_the_last_one_failed(tmp_path: Path) -> None:
    def fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
        raise LineamentError("no such backbone")

    with pytest.raises(LineamentError, match=r"none of the study's 2 trials has a score.*no such backbone"):
        search(config(tmp_path, trials=2), fit)


def test_a_mistake_in_the_code_is_not_taken_for_a_bad_trial(tmp_path: Path) -> None:
    def fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        search(config(tmp_path), fit)


def test_an_interrupted_trial_is_gone_on_with_first_in_its_own_folder(tmp_path: Path) -> None:
    class Interrupted(Valley):
        def __call__(self, cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
            cfg.run.mkdir(parents=True)
            (cfg.run / "last.pt").touch()
            if len(self.configs) == 2:
                self.configs.append(cfg)
                raise KeyboardInterrupt
            return super().__call__(cfg, train, val, on_epoch)

    fit = Interrupted()
    tuned = search(config(tmp_path, trials=4), fit)
    assert tuned.trials == 3 and tuned.nme == min(fit.nme(one) for one in fit.configs[:2])
    # only the checkpoint that something will go on from is kept
    assert [(one.run / "last.pt").exists() for one in fit.configs] == [False, False, True]
    again = Valley()
    assert search(config(tmp_path, trials=2), again).trials == 5
    assert again.configs[0] == fit.configs[2]
    assert again.configs[1] not in fit.configs
    assert not (fit.configs[2].run / "last.pt").exists()
    once_more = Valley()
    search(config(tmp_path, trials=1), once_more)
    assert once_more.configs[0] not in fit.configs


def test_what_the_loop_says_on_ctrl_c_ends_the_search_instead_of_failing_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def stopped(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
        calls.append(cfg.run)
        raise loop.Stopped("stopped in epoch 3; the same command resumes from last.pt")

    monkeypatch.setattr(loop, "fit", stopped)
    with pytest.raises(LineamentError, match="none ran to its end"):
        tune.tune(config(tmp_path), FACES, FACES)
    assert len(calls) == 1


def test_a_hopeless_trial_is_cut_short(tmp_path: Path) -> None:
    class Ever(Valley):
        """The first five are fine, the sixth is hopeless from the start."""

        def nme(self, cfg: TrainConfig) -> float:
            return 4.0 + self.configs.index(cfg) / 10 if self.configs.index(cfg) < 5 else 50.0

    cfg = config(tmp_path, trials=6, epochs=4)
    search(cfg, Ever())
    states = [trial.state.name for trial in open_study(cfg).trials]
    assert states == ["COMPLETE"] * 5 + ["PRUNED"]
    # in the first quarter of the epochs nothing is judged
    assert open_study(cfg).trials[-1].last_step == 1


def test_epochs_without_a_validation_are_no_reason_to_cut(tmp_path: Path) -> None:
    def fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
        on_epoch(1, math.nan)
        on_epoch(2, 5.0)
        return Fitted(cfg.run, cfg.run, 5.0, 2)

    cfg = config(tmp_path, trials=2)
    assert search(cfg, fit).trials == 2
    assert [trial.intermediate_values for trial in open_study(cfg).trials] == [{2: 5.0}] * 2


def test_plots_are_written_and_importances_from_two_scores_on(tmp_path: Path) -> None:
    cfg = config(tmp_path, trials=1)
    search(cfg, Valley())
    assert {path.stem for path in tune.plot(open_study(cfg), tmp_path)} == {"history", "slice", "epochs"}
    search(cfg, Valley())
    paths = tune.plot(open_study(cfg), tmp_path)
    assert {path.stem for path in paths} == {"history", "slice", "epochs", "importances", "parallel"}
    for path in paths:
        assert cv2.imread(str(path)).std() > 1


def test_trials_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    search(config(tmp_path), Valley())
    with pytest.raises(LineamentError, match=r"epochs was 2, now 20.*--study-name"):
        search(config(tmp_path, epochs=20), Valley())
    # where it runs changes nothing, and a new name is a new study
    search(config(tmp_path, workers=0, device="cpu"), Valley())
    renamed = replace(config(tmp_path, epochs=3), study_name="longer")
    assert search(renamed, Valley()).trials == 2


def test_a_study_is_named_after_data_and_model(tmp_path: Path) -> None:
    assert config(tmp_path).name == "wflw-tf_efficientnet_b5-coords-256"


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"cannot open the study tune\.db.*sqlite:///"):
        search(replace(config(tmp_path), study="tune.db"), Valley())


def test_without_held_out_faces_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="--hold-out"):
        tune.tune(config(tmp_path), FACES, [], Valley())


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_the_command_trains_with_exactly_that_config(kind: str, tmp_path: Path) -> None:
    params = dict(warmup_share=0.13, lr=1.23456e-3, weight_decay=0.02, augment=0.7, first_step=0.31, gamma=0.3)
    trial = optuna.trial.FixedTrial({"schedule": kind, **params})
    base = TrainConfig(
        data=(tmp_path / "a b", tmp_path / "c"), epochs=7, pretrained=False, compile=True, minutes=2.5, head="simcc"
    )
    chosen = search_space(trial, base)
    assert chosen.lr == 1.235e-3 and chosen.schedule.kind == kind
    python, *words = shlex.split(command(chosen))
    assert (python, words[:2]) == ("python", ["-m", "train"])
    parsed: TrainConfig = tyro.cli(Annotated[TrainConfig, tyro.conf.arg(name="")], args=words[2:])
    assert parsed == chosen


def test_the_command_line_searches_and_ends_with_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = [(f"p{i}x.png", mean_face(40 + i)) for i in range(6)]
    root = write_wflw(tmp_path / "set", "train", faces)
    args = f"--data {root} --study sqlite:///{tmp_path}/t.db --trials 2 --epochs 2 --out {tmp_path}/o --hold-out 0.4"
    assert tune.main(shlex.split(args), Valley()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("2 trials, best held-out NME 4.")
    assert out[1].startswith(f"python -m train --data {root} ") and "--epochs 2" in out[1]
    assert tune.main(shlex.split(args.replace("--hold-out 0.4", "--hold-out 0")), Valley()) == 1
    assert "--hold-out" in capsys.readouterr().err
