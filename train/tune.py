"""Searches for the settings that train best: AdamW's, the schedule's and how strongly to augment.

    python -m train.tune --data WFLW --trials 20 --epochs 20

Every trial is a training of its own, judged on the held-out faces; one that does worse than half of the others at the
same epoch is cut short. The study lives in an SQLite file: the same command adds trials to it, and a trial that was
interrupted goes on where it was. At the end it says the command that trains with the best settings.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import optuna
import optuna.visualization.matplotlib as plots
import tyro
from matplotlib import pyplot
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.types import LineamentError
from lineament.train import loop
from lineament.train.__main__ import held_out
from lineament.train.augment_config import AugmentConfig
from lineament.train.config import TrainConfig
from lineament.train.loop import Fitted, OnEpoch
from lineament.train.sample import Sample

log = logging.getLogger("lineament")

Fit = Callable[[TrainConfig, list[Sample], list[Sample], OnEpoch], Fitted]
"""loop.fit, or what a test puts in its place"""

FREE = ("run", "device", "workers", "checkpoint_min", "name", "lr", "weight_decay", "schedule")
"""fields of TrainConfig in which calls of one study may differ: a trial chooses them, or its score is the same"""
BASE, CONTINUES, INTERRUPTED, FAILURE = "base", "continues", "interrupted", "failure"
"""what a study and its trials keep beside Optuna's own: the fixed settings; the number of the trial that is gone on
with; whether the user stopped it; why it failed"""
STARTUP = 5
"""trials at random, never cut short, before the search has something to go by"""
HEARTBEAT_S = 60
"""a trial that has not been heard of for twice this long was killed, and is taken up again"""


@dataclass(frozen=True)
class TuneConfig:
    """Searches for the best training settings. The training options are the same in all trials."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    study: str = "sqlite:///runs/tune.db"
    """Database of the trials; an existing study is continued."""
    trials: int = 20
    """How many trials to add to the study."""
    out: Path = Path("runs/tune")
    """Folder for the trials' runs and the plots; --run is not used."""
    study_name: str | None = None
    """Name of the study in the database. Default: from data, model and input size."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")

    @property
    def name(self) -> str:
        base = self.training
        sets = "+".join(path.resolve().stem for path in base.data)
        return self.study_name or f"{sets}-{base.backbone}-{base.head}-{base.input_px}"


class Tuned(NamedTuple):
    """What a search came to."""

    config: TrainConfig
    """the best trial's"""
    nme: float
    """percent, on the held-out faces"""
    trials: int
    """that the study has now, of any outcome"""


def tune(cfg: TuneConfig, train: list[Sample], val: list[Sample], fit: Fit | None = None) -> Tuned:
    """Runs cfg.trials more trials. Ctrl-C ends it early, with what there is.

    Raises LineamentError when no trial of the study has come to a score, or the study is of other settings.
    """
    if not val:
        raise LineamentError("no faces are held out, so trials cannot be compared; give --hold-out 0.1 or so")
    study = open_study(cfg)
    for trial in study.get_trials(states=[TrialState.FAIL]):
        if trial.user_attrs.get(INTERRUPTED):
            _take_up(study, trial)
    try:
        # a training that fails is a result too: it says where not to look
        study.optimize(_objective(cfg, train, val, fit or _fit), cfg.trials, catch=(LineamentError,))
    except KeyboardInterrupt:
        log.info("stopped; the same command goes on with the trial that was interrupted")
    return _outcome(cfg, study)


def open_study(cfg: TuneConfig) -> optuna.Study:
    """The study of that name in that file, or a new one. Raises LineamentError if its trials were of other settings."""
    scheme, _, path = cfg.study.partition(":///")
    if scheme == "sqlite" and path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            # heartbeats are "experimental"
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = optuna.storages.RDBStorage(
                cfg.study,
                # nobody closes a storage, so no connection is kept in a pool
                engine_kwargs={"poolclass": NullPool},
                heartbeat_interval=HEARTBEAT_S,
                heartbeat_stale_trial_callback=_take_up,
            )
        study = optuna.create_study(
            storage=storage,
            study_name=cfg.name,
            direction="minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=cfg.training.epochs // 4),
            load_if_exists=True,
        )
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise LineamentError(
            f"cannot open the study {cfg.study} ({reason}); wanted something like sqlite:///runs/tune.db"
        ) from error
    # another seed each time: with the same one, a search that goes on would first try again what it began with
    seed = int(np.random.SeedSequence([cfg.training.seed, len(study.trials)]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    fixed = json.loads(cfg.training.to_json())
    fixed = {name: value for name, value in fixed.items() if name not in FREE}
    before = study.user_attrs.get(BASE)
    if before is None:
        study.set_user_attr(BASE, fixed)
    elif changed := sorted(name for name in before.keys() | fixed.keys() if before.get(name) != fixed.get(name)):
        told = "; ".join(f"{name} was {before.get(name)}, now {fixed.get(name)}" for name in changed[:3])
        raise LineamentError(
            f"the study {cfg.name} has trials of other settings ({told}), scores of both cannot be compared; "
            "give the same ones, or --study-name for a new study"
        )
    return study


def search_space(trial: optuna.Trial, base: TrainConfig) -> TrainConfig:
    """base with what the trial suggests. Times are shares of the epochs, so that they mean the same for any number."""
    kind = trial.suggest_categorical("schedule", ["step", "cosine"])
    schedule = replace(
        base.schedule, kind=kind, warmup_epochs=_rounded(trial.suggest_float("warmup_share", 0.0, 0.2) * base.epochs)
    )
    if kind == "step":
        first = trial.suggest_float("first_step", 0.3, 0.8)
        # the second half way between it and the end
        schedule = replace(
            schedule,
            step_at=(_rounded(first), _rounded((first + 1) / 2)),
            gamma=_rounded(trial.suggest_float("gamma", 0.05, 0.5)),
        )
    return replace(
        base,
        lr=_rounded(trial.suggest_float("lr", 5e-5, 5e-3, log=True)),
        weight_decay=_rounded(trial.suggest_float("weight_decay", 1e-4, 0.5, log=True)),
        schedule=schedule,
        augment=_scaled(base.augment, trial.suggest_float("augment", 0.0, 1.5)),
    )


def command(cfg: TrainConfig) -> str:
    """The command line that trains with cfg: the flags in which it differs from the defaults."""
    flags = [flag for name, value in _changes(cfg, TrainConfig(data=())) for flag in _flag(name, value)]
    return shlex.join(["python", "-m", "train", *flags])


# ---- one trial


def _objective(cfg: TuneConfig, train: list[Sample], val: list[Sample], fit: Fit) -> Callable[[optuna.Trial], float]:
    def objective(trial: optuna.Trial) -> float:
        chosen = search_space(trial, cfg.training)
        run = cfg.out / cfg.name / f"trial-{trial.user_attrs.get(CONTINUES, trial.number)}"
        log.info("trial %d: %s", trial.number, ", ".join(f"{name} {_short(v)}" for name, v in trial.params.items()))

        def on_epoch(epoch: int, nme: float) -> None:
            # nan: not validated in this epoch
            if math.isfinite(nme):
                trial.report(nme, epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        try:
            fitted = fit(replace(chosen, run=run), train, val, on_epoch)
            if not math.isfinite(fitted.nme):
                raise LineamentError(f"the held-out NME came out as {fitted.nme}")
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)
            raise
        except LineamentError as error:
            trial.set_user_attr(FAILURE, str(error))
            log.warning("trial %d failed: %s", trial.number, error)
            _forget_checkpoint(run)
            raise
        except optuna.TrialPruned:
            _forget_checkpoint(run)
            raise
        _forget_checkpoint(run)
        return fitted.nme

    return objective


def _fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch) -> Fitted:
    try:
        return loop.fit(cfg, train, val, on_epoch)
    except loop.Stopped as error:
        # the loop took Ctrl-C to write a checkpoint first
        raise KeyboardInterrupt from error


def _take_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """Puts a trial that was cut off at the head of the queue, once; it goes on from its run's checkpoint."""
    number = trial.user_attrs.get(CONTINUES, trial.number)
    later = [t for t in study.get_trials(deepcopy=False) if t.number > trial.number or t.state == TrialState.WAITING]
    if trial.params and not any(t.user_attrs.get(CONTINUES) == number for t in later):
        study.enqueue_trial(trial.params, user_attrs={CONTINUES: number})


def _forget_checkpoint(run: Path) -> None:
    """A trial that is over is not gone on with, and its checkpoint is the largest file of the run."""
    (run / "last.pt").unlink(missing_ok=True)


# ---- what it came to


def _outcome(cfg: TuneConfig, study: optuna.Study) -> Tuned:
    trials = study.get_trials()
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        reasons = [trial.user_attrs[FAILURE] for trial in trials if FAILURE in trial.user_attrs]
        why = f"the last failure: {reasons[-1]}" if reasons else "none ran to its end"
        raise LineamentError(f"none of the study's {len(trials)} trials has a score yet; {why}")
    best = search_space(optuna.trial.FixedTrial(study.best_params), cfg.training)
    return Tuned(best, study.best_value, len(trials))


def plot(study: optuna.Study, out: Path) -> tuple[Path, ...]:
    """History, slices and epochs of the trials, and from two on which settings mattered."""
    out.mkdir(parents=True, exist_ok=True)
    kinds = {
        "history": plots.plot_optimization_history,
        "slice": plots.plot_slice,
        "epochs": plots.plot_intermediate_values,
    }
    if len({trial.value for trial in study.get_trials(states=[TrialState.COMPLETE])}) >= 2:
        kinds["importances"] = plots.plot_param_importances
        kinds["parallel"] = plots.plot_parallel_coordinate
    written = []
    pyplot.switch_backend("Agg")
    for name, draw in kinds.items():
        with warnings.catch_warnings():
            # so are the plots, and they complain of what the trials happen to lack
            warnings.simplefilter("ignore")
            axes = draw(study)
            figure = (axes.flat[0] if isinstance(axes, np.ndarray) else axes).figure
            path = out / f"{name}.png"
            figure.savefig(path, dpi=100, bbox_inches="tight")
            pyplot.close(figure)
        written.append(path)
    return tuple(written)


def _changes(value: Any, default: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The fields in which two dataclasses differ, by their dotted names."""
    for field in fields(value):
        mine, usual = getattr(value, field.name), getattr(default, field.name)
        if is_dataclass(mine):
            yield from _changes(mine, usual, f"{at}{field.name}.")
        elif mine != usual:
            yield at + field.name, mine


def _flag(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        path, _, last = dashed.rpartition(".")
        prefix = f"{path}." if path else ""
        return [f"--{prefix}{'' if value else 'no-'}{last}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{dashed}", *(str(v) for v in values)]


def _rounded(value: float) -> float:
    """To four digits: more would only be hard to read."""
    return float(f"{value:.4g}")


def _scaled(augment: AugmentConfig, factor: float) -> AugmentConfig:
    """Probabilities times factor, cut after four places: rounded up, those that exclude each other may exceed 1."""
    scaled = augment.scaled(factor)
    cut = {name: math.floor(value * 1e4) / 1e4 for name, value in _changes(scaled, augment)}
    return replace(scaled, **cut)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- the command line


@ends_in_a_line
def main(args: list[str] | None = None, fit: Fit | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # it would print a traceback for every trial that fails, and for Ctrl-C
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    cfg = tyro.cli(TuneConfig, args=args, prog="python -m train.tune", description=TuneConfig.__doc__)
    tuned = tune(cfg, *held_out(cfg.training), fit)
    plot(open_study(cfg), cfg.out / cfg.name)
    print(f"{tuned.trials} trials, best held-out NME {tuned.nme:.3f}; plots in {cfg.out / cfg.name}")
    print(command(replace(tuned.config, run=Path("runs") / f"{cfg.name}-best")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
