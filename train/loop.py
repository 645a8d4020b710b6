"""The training loop, top to bottom: config, data, net, steps, validation, checkpoints.

    fitted = fit(TrainConfig(data=(Path("WFLW"),)), train_samples, val_samples)

A run is a folder: config.json, environment.json, curves.csv, TensorBoard's events, schedule.png, last.pt (to resume
from), best.safetensors (with its card) and sheets of what it sees. Interrupted and resumed, a run takes the very steps
it would have taken; under torchrun, N processes take the steps of one.

Suffixes: B faces, H W pixels, K points.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import platform
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, LineamentError
from lineament.train import metrics
from lineament.train.augment import Augment, AugmentConfig
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import Sample, shift_of_each
from lineament.train.heads import HeadName
from lineament.train.model import (
    LandmarkNet,
    NetSpec,
    load_initial,
    new_card,
    offline_weights,
    predictor,
    save,
    write_atomically,
)
from lineament.train.native import timm
from lineament.train.schedule import ScheduleConfig
from lineament.train.sheet import Tile, sheet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on. `python -m train --help` shows it."""

    data: tuple[Path, ...]
    """Data sets: WFLW's own folder, or .csv/.jsonl lists, or folders of .pts files; several are joined."""
    run: Path = Path("runs/train")
    """Folder of this run. One that holds last.pt is resumed if its config is the same, else refused. --out is the same
    for torchrun, which takes --run for an option of its own."""
    backbone: str = "tf_efficientnet_b5"
    """Any convolutional timm model. B5 is the largest that stays real-time at 256 px on two CPU cores."""
    pretrained: bool = True
    """Start from timm's ImageNet weights: they halve the epochs. Needs the internet once."""
    init: Path | None = None
    """Start from this local file instead: a backbone's weights, or a model of an earlier run."""
    offline: Path | None = None
    """Take timm's weights from this folder, from <backbone>.safetensors, .pth or .bin, where there is no internet."""
    head: HeadName = "coords"
    """'coords' regresses points by Wing loss; 'heatmap', 'star' and 'simcc' also say how sure they are."""
    stacks: int = 0
    """Hourglasses of the heatmap heads."""
    schema: str = "wflw98"
    """Which points the data has."""
    input_px: int = 256
    """Side of the crop: WFLW's published results are mostly at 256."""
    crop: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 120
    """WFLW has only 7,500 faces: augmentation goes on paying this long."""
    batch: int = 32
    """Faces a step, over all processes together."""
    lr: float = 5e-4
    """AdamW's rate at batch 32; scale it by the square root of the batch."""
    weight_decay: float = 0.05
    """On weights of two or more dimensions; norms and biases go free."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    drop_path: float = 0.2
    """Stochastic depth, as EfficientNet was trained with; ignored by backbones that have none."""
    clip_norm: float = 5.0
    """Longest gradient: Wing's is steep near zero."""
    ema: float = 0.999
    """Decay of the averaged weights, which are validated and kept; warmed up from 0. 0 switches it off."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision. auto: bf16 on a GPU made for it, fp16 on another, off on the CPU."""
    channels_last: bool = True
    """Memory layout: up to twice as fast on a GPU's tensor cores, and no slower on a CPU."""
    compile: bool = False
    """torch.compile: minutes to start, then faster steps; pays in long runs on a GPU."""
    device: str = "auto"
    """auto, cpu, cuda, mps; under torchrun each process takes its own GPU."""
    workers: int = 2
    """Processes that augment, a training process; 0 does it in line."""
    seed: int = 0
    hold_out: float = 0.1
    """Share of the training pictures to validate on: the test list chooses nothing."""
    val_every: int = 1
    """Epochs between validations."""
    checkpoint_min: float = 10.0
    """Minutes between checkpoints within an epoch."""
    label_shift_px: tuple[float, ...] = (0.0,)
    """Subtracted from every label, for sets that count from a pixel's corner: 0.5 for wflw-mini. One number for all
    data sets, or one for each."""
    presence: bool = False
    """Also learn whether a face is there at all, from samples without points."""
    suspects: Path | None = None
    """suspects.csv of `python -m train.suspects`."""
    suspect_policy: Literal["drop", "down-weight"] = "down-weight"
    name: str = "b5"
    """What the model's card calls it."""
    minutes: float | None = None
    """Stop after this long, at the end of an epoch; the schedule does not know."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.val_every < 1:
            raise ValueError(
                f"epochs, batch and val_every must be at least 1, got {self.epochs}, {self.batch}, {self.val_every}"
            )
        if not self.lr > 0 or not self.weight_decay >= 0 or not self.clip_norm > 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"lr {self.lr}, weight_decay {self.weight_decay}, clip_norm {self.clip_norm}, ema {self.ema}: "
                "wanted above 0, at least 0, above 0, and within 0..1"
            )
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out must lie within 0..1, got {self.hold_out}")
        shift_of_each(self.label_shift_px, self.data)
        if self.schema not in SCHEMAS:
            raise ValueError(f"unknown schema {self.schema!r}, wanted one of {sorted(SCHEMAS)}")

    @property
    def net(self) -> NetSpec:
        hw = (self.input_px, self.input_px)
        return NetSpec(self.backbone, self.head, self.schema, hw, self.stacks, self.presence, self.drop_path)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, default=str)


class Fitted(NamedTuple):
    """How a run ended."""

    run: Path
    best: Path
    """safetensors of the epoch with the lowest held-out NME"""
    nme: float
    """percent, on the held-out faces; nan when none were held out"""
    epochs: int
    """that were run"""


class Stopped(LineamentError):  # noqa: N818 - a state, not a fault
    """A signal ended the run; it can be gone on with."""


OnEpoch = Callable[[int, float], None]
"""(epoch, held-out NME); an exception from it ends the run"""


def fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch | None = None) -> Fitted:
    """Trains on `train`, keeps what does best on `val`. Resumes a run that was interrupted."""
    with _processes(cfg) as here:
        _seed(cfg.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # all batches are of one size
        run = Run(cfg, here, train, val)
        resumed = run.resume()
        if here.first and not resumed:
            run.describe()
            run.say_baseline()
        try:
            return run.go(on_epoch)
        finally:
            run.close()


class Here(NamedTuple):
    """Which of the processes this is."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


class Run:
    """One training under way: what must be saved to go on with it, and the steps."""

    def __init__(self, cfg: TrainConfig, here: Here, train: list[Sample], val: list[Sample]) -> None:
        if not train:
            raise LineamentError("there is nothing to train on: the data set is empty; `python -m train.data check` it")
        self.cfg, self.here = cfg, here
        self.epoch, self.batch_in_epoch = 0, 0
        self.best_nme, self.last_nme = math.inf, math.nan
        # one process cuts, the others find the cache ready
        self.crops = _one_first(here, lambda: self._crops(train))
        self.val = _one_first(here, lambda: self._crops(val)) if val else None
        self.batches = Batches(len(self.crops), cfg.batch, cfg.seed, here)
        init = cfg.init
        if cfg.offline and cfg.pretrained and not init:
            init = offline_weights(cfg.offline, cfg.backbone)
        self.net = _one_first(here, lambda: LandmarkNet(cfg.net, cfg.pretrained and init is None))
        if init:
            load_initial(self.net, init)
        if cfg.channels_last:
            self.net.to(memory_format=torch.channels_last)
        if here.world > 1 and here.device.type == "cuda":
            # there is no such thing on the CPU
            self.net = with_shared_statistics(self.net)
        self.net.to(here.device).train()
        frozen = [name for name, p in self.net.named_parameters() if not p.requires_grad]
        assert not frozen, f"no layer is frozen, but {frozen} are"
        self.ema = timm.utils.ModelEmaV3(self.net, decay=cfg.ema, use_warmup=True) if cfg.ema else None
        self.optimizer = _adamw(self.net, cfg)
        self.dtype = _amp_dtype(cfg, here.device)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=self.dtype == torch.float16)
        stepper: nn.Module = torch.compile(self.net) if cfg.compile else self.net  # type: ignore[assignment]
        if here.world > 1:
            ids = [here.device.index] if here.device.type == "cuda" else None
            stepper = nn.parallel.DistributedDataParallel(stepper, device_ids=ids)
        self.stepper = stepper
        self.writer: SummaryWriter | None = None
        self.stop = False

    def _crops(self, samples: list[Sample]) -> Crops:
        cfg = self.cfg
        hw = (cfg.input_px, cfg.input_px)
        return Crops(samples, hw, cfg.crop, SCHEMAS[cfg.schema], cfg.run.parent / "cache")

    # ---- the steps

    def go(self, on_epoch: OnEpoch | None) -> Fitted:
        cfg = self.cfg
        began_s = saved_s = time.monotonic()
        loader = self.loader()
        with _stopped_by_signals(self):
            while self.epoch < cfg.epochs:
                self.batches.start(self.epoch, self.batch_in_epoch)
                losses, rate = [], _Rate()
                with self._bar() as bar:
                    for batch in loader:
                        loss = self.step(batch)
                        losses.append(loss)
                        self.batch_in_epoch += 1
                        bar.update()
                        bar.set_postfix_str(f"loss {loss:.3f}  {rate(cfg.batch):.0f} faces/s", refresh=False)
                        if self.stop or time.monotonic() - saved_s > cfg.checkpoint_min * 60:
                            self.checkpoint()
                            saved_s = time.monotonic()
                        if self.stop:
                            raise Stopped(
                                f"stopped in epoch {self.epoch + 1}; the same command goes on from {cfg.run}/last.pt"
                            )
                self.epoch, self.batch_in_epoch = self.epoch + 1, 0
                over = self.epoch == cfg.epochs or bool(cfg.minutes and time.monotonic() - began_s > cfg.minutes * 60)
                self._end_epoch(losses, rate.mean, over, on_epoch)
                # short epochs would spend more time on checkpoints than on steps
                if over or self.epoch % cfg.val_every == 0 or time.monotonic() - saved_s > cfg.checkpoint_min * 60:
                    self.checkpoint()
                    saved_s = time.monotonic()
                if over and self.epoch < cfg.epochs:
                    log.info("%.0f minutes are over after %d epochs", cfg.minutes, self.epoch)
                    break
        nme = self.best_nme if math.isfinite(self.best_nme) else math.nan
        return Fitted(cfg.run, cfg.run / "best.safetensors", nme, self.epoch)

    def step(self, batch: Batch) -> float:
        """One batch: forward, backward, clip, step, average. Returns the loss over all processes."""
        cfg, here = self.cfg, self.here
        step = self.epoch * len(self.batches) + self.batch_in_epoch
        factor = cfg.schedule.factor(step, len(self.batches), cfg.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = cfg.lr * factor
        with record_function("forward"):
            rgb, points, weight = (t.to(here.device, non_blocking=True) for t in batch)
            with torch.autocast(here.device.type, self.dtype) if self.dtype else nullcontext():
                raw, presence = self.stepper(rgb)
            loss = self._loss(raw, presence, points, weight)
        # DDP averages gradients over processes; the loss is a share of the global batch's mean
        with record_function("backward"):
            self.scaler.scale(loss * here.world).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), cfg.clip_norm)
        # one exchange for both, so that all processes stop after the same step; the GPU is waited for here alone
        total, stop = _summed(torch.stack([loss.detach(), loss.new_tensor(float(self.stop))]), here)
        self.stop = stop > 0
        if not math.isfinite(total):
            raise self._not_finite("the loss", total, batch)
        if not self.scaler.is_enabled() and not math.isfinite(norm):
            raise self._not_finite("the gradient", float(norm), batch)
        with record_function("optimizer"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        with record_function("average"):
            if self.ema:
                self.ema.update(self.net, step)
        if self.writer and step % 10 == 0:
            for name, value in (("loss", total), ("lr", cfg.lr * factor), ("gradient norm", float(norm))):
                self.writer.add_scalar(f"step/{name}", value, step)
        return total

    def _loss(self, raw: Any, presence: Tensor | None, points: Tensor, weight: Tensor) -> Tensor:
        """This process's share of the mean over the global batch. A sample without points teaches presence alone."""
        there = torch.isfinite(points).all((1, 2))
        per_point = self.net.head.loss(raw, torch.nan_to_num(points, nan=0.5))
        # a product with 0 would let a nan through
        loss = torch.where(there, (per_point * weight).mean(1), 0.0).sum()
        if presence is not None:
            wrong = nn.functional.binary_cross_entropy_with_logits(presence.float(), there.float(), reduction="none")
            loss = loss + PRESENCE_WEIGHT * wrong.sum()
        return loss / self.batches.size(self.batch_in_epoch)

    def _not_finite(self, what: str, value: float, batch: Batch) -> LineamentError:
        path = self.cfg.run / f"not-finite-rank{self.here.rank}.pt"
        state = {"batch": tuple(batch), "epoch": self.epoch, "batch_in_epoch": self.batch_in_epoch}
        write_atomically(path, lambda temp: torch.save(state, temp))
        return LineamentError(
            f"{what} became {value} in epoch {self.epoch + 1}, batch {self.batch_in_epoch + 1}; "
            f"the batch is in {path}; look at its labels, or lower --lr; the last checkpoint is untouched"
        )

    # ---- the end of an epoch

    def _end_epoch(self, losses: list[float], faces_s: float, over: bool, on_epoch: OnEpoch | None) -> None:
        cfg = self.cfg
        due = self.val is not None and (self.epoch % cfg.val_every == 0 or over)
        nme = self.validate() if due and self.here.first else math.nan
        better = nme < self.best_nme if due else self.val is None
        if due:
            self.last_nme, self.best_nme = nme, min(nme, self.best_nme)
        if self.here.first:
            if better:
                self._save_best(nme)
            mean = float(np.mean(losses)) if losses else math.nan
            self._log_epoch(mean, nme, faces_s)
        if on_epoch and self.here.first:
            on_epoch(self.epoch, nme)

    @property
    def judged(self) -> LandmarkNet:
        """The weights that count: averaged, if averaging is on."""
        return self.ema.module if self.ema else self.net

    def validate(self) -> float:
        """NME on the held-out faces, percent; also draws a few of them."""
        assert self.val is not None
        crops = [self.val.input_crop(i) for i in range(len(self.val))]
        truth = np.stack([crop.points for crop in crops])
        labelled = np.isfinite(truth).all((1, 2))
        unit = predictor(self.judged, str(self.here.device))(np.stack([crop.rgb for crop in crops]))
        found = unit * self.cfg.input_px - 0.5
        schema = SCHEMAS[self.cfg.schema]
        errors = metrics.nme(found[labelled], truth[labelled], schema, LEAST_OCULAR)
        if self.writer and self.epoch % max(1, self.cfg.epochs // 10) in (0, 1):
            shown = np.flatnonzero(labelled)[:12]
            tiles = [
                Tile(crops[i].rgb, found[i], f"{error:.1f}", truth[i]) for i, error in zip(shown, errors, strict=False)
            ]
            picture = sheet(tiles, self.cfg.run / "val.jpg", columns=4)
            self.writer.add_image("val", picture[..., ::-1].copy(), self.epoch, dataformats="HWC")
        self.net.train()
        return float(errors.mean())

    def say_baseline(self) -> None:
        """What a net would score that has learnt nothing but where a face's points are on average."""
        if self.val is None:
            return
        truth = np.stack([self.val.input_crop(i).points for i in range(len(self.val))])
        known = np.stack([self.crops.input_crop(i).points for i in range(len(self.crops))])
        mean = np.broadcast_to(np.nanmean(known, axis=0), truth.shape)
        labelled = np.isfinite(truth).all((1, 2))
        if labelled.any():
            errors = metrics.nme(mean[labelled], truth[labelled], SCHEMAS[self.cfg.schema], LEAST_OCULAR)
            log.info("the mean face of the training crops has a held-out NME of %.3f", errors.mean())

    def _save_best(self, nme: float) -> None:
        card = new_card(self.judged, self.cfg.name, self.cfg.crop.scale)
        scores = {"held out": round(nme, 3)} if math.isfinite(nme) else {}
        save(self.judged, replace(card, nme=scores), self.cfg.run / "best.safetensors")

    def _log_epoch(self, loss: float, nme: float, faces_s: float) -> None:
        path = self.cfg.run / "curves.csv"
        lr = self.optimizer.param_groups[0]["lr"]
        row = {
            "epoch": self.epoch,
            "loss": f"{loss:.5f}",
            "nme": f"{nme:.4f}",
            "lr": f"{lr:.3e}",
            "faces_s": f"{faces_s:.1f}",
        }
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        if self.writer:
            self.writer.add_scalar("epoch/loss", loss, self.epoch)
            self.writer.add_scalar("epoch/faces per second", faces_s, self.epoch)
            if math.isfinite(nme):
                self.writer.add_scalar("epoch/held-out NME", nme, self.epoch)
        log.info("epoch %d  loss %.4f  held-out NME %.3f  best %.3f", self.epoch, loss, nme, self.best_nme)

    # ---- checkpoints

    def checkpoint(self) -> None:
        """Writes last.pt: all that the next step depends on."""
        if not self.here.first:
            return
        state = {
            "config": self.cfg.to_json(),
            "net": self.net.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "batch_in_epoch": self.batch_in_epoch,
            "best_nme": self.best_nme,
            **draws(self.here.device),
        }
        write_atomically(self.cfg.run / "last.pt", lambda temp: torch.save(state, temp))

    def resume(self) -> bool:
        """Goes back to last.pt if there is one."""
        path = self.cfg.run / "last.pt"
        if not path.exists():
            if self.here.first:
                self.cfg.run.mkdir(parents=True, exist_ok=True)
                self.writer = SummaryWriter(str(self.cfg.run))
            return False
        try:
            state = torch.load(path, map_location=self.here.device, weights_only=True)
        except Exception as error:
            raise LineamentError(f"cannot read {path}: {error}; delete it to start {self.cfg.run} anew") from error
        if changed := _differences(json.loads(state["config"]), json.loads(self.cfg.to_json())):
            raise LineamentError(
                f"{path} was made with another config ({'; '.join(changed[:5])}); "
                "give the same one to go on, or another --run to start anew"
            )
        self.net.load_state_dict(state["net"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch_in_epoch, self.best_nme = state["epoch"], state["batch_in_epoch"], state["best_nme"]
        draw_on(state, self.here.device)
        if self.here.first:
            self._forget_epochs_after_checkpoint()
            self.writer = SummaryWriter(
                str(self.cfg.run), purge_step=self.epoch * len(self.batches) + self.batch_in_epoch
            )
            log.info("going on with %s from epoch %d, batch %d", self.cfg.run, self.epoch + 1, self.batch_in_epoch + 1)
        return True

    def _forget_epochs_after_checkpoint(self) -> None:
        """Takes out of curves.csv the epochs that were run after the checkpoint and are run again."""
        path = self.cfg.run / "curves.csv"
        if path.exists():
            head, *rows = path.read_text().splitlines()
            kept = [head, *(row for row in rows if int(row.partition(",")[0]) <= self.epoch)]
            write_atomically(path, lambda temp: temp.write_text("\n".join(kept) + "\n"))

    def describe(self) -> None:
        """Writes down what this run is: config, environment, git state, schedule, and a sheet of what it is shown."""
        run = self.cfg.run
        (run / "config.json").write_text(self.cfg.to_json())
        (run / "environment.json").write_text(json.dumps(environment(self.here.device), indent=2))
        plot_schedule(self.cfg, len(self.batches), run / "schedule.png")
        shown = _Augmented(self.crops, self.cfg)
        tiles = []
        for i in range(min(24, len(self.crops))):
            rgb, points, weight = shown[(0, i)]
            tiles.append(
                Tile(
                    rgb, points * self.cfg.input_px - 0.5 if np.isfinite(points).all() else None, f"{weight.mean():.2f}"
                )
            )
        sheet(tiles, run / "train.jpg", columns=6)

    def close(self) -> None:
        if self.writer:
            self.writer.close()

    def loader(self) -> DataLoader[Any]:
        cfg = self.cfg
        return DataLoader(
            _Augmented(self.crops, cfg),
            batch_sampler=self.batches,
            num_workers=cfg.workers,
            collate_fn=_collate,
            worker_init_fn=_quiet_worker,
            persistent_workers=cfg.workers > 0,
            prefetch_factor=4 if cfg.workers else None,
            pin_memory=self.here.device.type == "cuda",
            # a draw of its own: at each start it takes a number from the one that stochastic depth draws from
            generator=torch.Generator(),
        )

    def _bar(self) -> tqdm[None]:
        total = len(self.batches)
        text = f"epoch {self.epoch + 1}/{self.cfg.epochs}"
        # None: silent where nobody watches
        quiet = None if self.here.first else True
        return tqdm(total=total, initial=self.batch_in_epoch, desc=text, disable=quiet, leave=False, dynamic_ncols=True)


def with_shared_statistics(net: LandmarkNet) -> LandmarkNet:
    """net with norms that see the whole batch, not this process's part of it. It may be net itself, changed."""
    # timm's own: PyTorch's takes a norm that ends in an activation for a bare one, and drops the activation
    shared: LandmarkNet = timm.layers.convert_sync_batchnorm(net)
    return shared


LEAST_OCULAR = 0.25
"""of a held-out face's extent, by which its error is measured: see metrics.point_errors"""
STAGES = ("forward", "backward", "optimizer", "average")
"""the parts of a step, as PyTorch's profiler sees them"""
PRESENCE_WEIGHT = 2.0
"""of presence beside the points' loss: a clear mistake then costs as much as being off by a pixel"""


# ---- batches


class Batch(NamedTuple):
    """What a step takes."""

    rgb: Tensor
    """(B, H, W, 3) uint8"""
    points: Tensor
    """(B, K, 2) unit coordinates; nan for a sample without points"""
    weight: Tensor
    """(B, K)"""


class Batches:
    """Which faces make up which batch: a function of seed and epoch alone. Each process takes its part of each batch.

    Keys are (epoch, index), so that augmentation too depends on nothing that a resumed run has lost.
    """

    def __init__(self, n: int, batch: int, seed: int, here: Here) -> None:
        self._n, self._batch, self._seed, self._here = n, min(batch, n), seed, here
        self._epoch, self._first = 0, 0
        if self._batch < here.world:
            raise LineamentError(
                f"a batch of {self._batch} faces cannot be shared by {here.world} processes; raise --batch"
            )

    def start(self, epoch: int, first: int) -> None:
        """The next iteration is of `epoch`, from batch number `first` on."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        """Batches in an epoch. The rest that fills none is left to other epochs' permutations."""
        return self._n // self._batch

    def size(self, number: int) -> int:
        """Faces in a batch, over all processes."""
        return self._batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._n)
        for number in range(self._first, len(self)):
            chosen = order[number * self._batch : (number + 1) * self._batch]
            yield [(self._epoch, int(i)) for i in chosen[self._here.rank :: self._here.world]]


class _Augmented(Dataset[tuple[Any, F32, F32]]):
    """Crops as a step sees them."""

    def __init__(self, crops: Crops, cfg: TrainConfig) -> None:
        self._crops, self._seed = crops, cfg.seed
        self._hw = (cfg.input_px, cfg.input_px)
        self._augment = Augment(cfg.augment, SCHEMAS[cfg.schema], self._hw)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, F32, F32]:
        epoch, i = key
        crop, sample = self._crops[i], self._crops.samples[i]
        seed = int(np.random.SeedSequence([self._seed, epoch, i]).generate_state(1)[0])
        relative = np.ones(len(crop.points)) if sample.point_weights is None else sample.point_weights
        rgb, weighted = self._augment(crop.rgb, np.column_stack([crop.points, relative]), seed)
        height, width = self._hw
        points_unit = np.asarray((weighted[:, :2] + 0.5) / (width, height), np.float32)
        return rgb, points_unit, np.asarray(sample.weight * weighted[:, 2], np.float32)


def _collate(items: list[tuple[Any, F32, F32]]) -> Batch:
    return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*items)))


def _quiet_worker(number: int) -> None:
    """A worker has one core, and leaves signals to the process that owns it: that one ends the step under way first."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


# ---- what the run stands on


@contextmanager
def _processes(cfg: TrainConfig) -> Iterator[Here]:
    """Joins the processes that torchrun started; alone otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(cfg.device)
    if world == 1:
        yield Here(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Here(rank, world, device)
    finally:
        dist.destroy_process_group()


_DRIVER = Path("/proc/driver/nvidia/version")
"""there if the kernel has NVIDIA's driver loaded"""


def pick_device(name: str) -> torch.device:
    """auto takes the GPU that is there, and says so in one line when it cannot be had."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cpu" and _DRIVER.exists():
            made_for = f"made for CUDA {torch.version.cuda}" if torch.version.cuda else "made for the CPU alone"
            log.warning(
                "training on the CPU although an NVIDIA driver is there, for torch %s, %s, finds no GPU; look at "
                "`nvidia-smi`, or install the torch that fits the driver (docs/gpu.md)",
                torch.__version__,
                made_for,
            )
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LineamentError("no CUDA device is to be had, device was 'cuda'; check `nvidia-smi`, or take --device cpu")
    return device


def _one_first(here: Here, make: Callable[[], Any]) -> Any:
    """make(), by the first process before the others: it leaves a cache behind."""
    if here.world == 1:
        return make()
    made = make() if here.first else None
    dist.barrier()
    return made if here.first else make()


def _summed(values: Tensor, here: Here) -> list[float]:
    """values (n,), summed over all processes."""
    if here.world > 1:
        dist.all_reduce(values)
    summed: list[float] = values.tolist()
    return summed


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def draws(device: torch.device) -> dict[str, Tensor | None]:
    """Where the random numbers stand that a step draws: of the CPU, and of this process's own GPU."""
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def draw_on(state: dict[str, Any], device: torch.device) -> None:
    """Goes on from `draws` of the first process, whose steps all others share, on any machine."""
    torch.set_rng_state(state["rng"].cpu())
    of_gpu = state["cuda_rng"]
    if isinstance(of_gpu, list):  # a checkpoint of before: of each GPU that the first process saw, its own the first
        of_gpu = of_gpu[0] if of_gpu else None
    if of_gpu is not None and device.type == "cuda":
        torch.cuda.set_rng_state(of_gpu.cpu(), device)


def _adamw(net: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """Decay on matrices and kernels only."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    free = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr)


def _amp_dtype(cfg: TrainConfig, device: torch.device) -> torch.dtype | None:
    match cfg.amp:
        case "off":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        case _:
            return None


@contextmanager
def _stopped_by_signals(run: Run) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run after the step under way, with a checkpoint. A second Ctrl-C interrupts."""

    def stop(number: int, frame: FrameType | None) -> None:
        run.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever started it there must stop it
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """What a resumed run may not change, as 'name: old -> new'."""
    found = []
    for name in old.keys() | new.keys():
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{at}{name}.")
        elif a != b and at + name not in ("run", "device", "workers", "checkpoint_min", "minutes"):
            found.append(f"{at}{name}: {a} -> {b}")
    return sorted(found)


class _Rate:
    """Faces a second, smoothed for the bar; `mean` over the epoch."""

    def __init__(self) -> None:
        self._began_s, self._faces = time.monotonic(), 0

    def __call__(self, faces: int) -> float:
        self._faces += faces
        return self.mean

    @property
    def mean(self) -> float:
        return self._faces / max(time.monotonic() - self._began_s, 1e-9)


def environment(device: torch.device) -> dict[str, str]:
    """Machine, versions and the state of the code."""
    import cv2

    packages = ("torch", "torchvision", "timm", "albumentations", "numpy")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        **{package: version(package) for package in packages},
        # its package may be the headless one
        "opencv": cv2.__version__,
        "git": _git("rev-parse", "HEAD"),
        "git changes": _git("status", "--short"),
    }


def _git(*args: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def plot_schedule(cfg: TrainConfig, steps_per_epoch: int, path: Path) -> None:
    """The learning rate over the run."""
    from matplotlib.figure import Figure

    steps = np.arange(cfg.epochs * steps_per_epoch)
    rates = [cfg.lr * cfg.schedule.factor(int(step), steps_per_epoch, cfg.epochs) for step in steps]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps / steps_per_epoch, rates)
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    figure.savefig(path)
