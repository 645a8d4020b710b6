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
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lineament.landmarks.command import stopped_by_signals
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import LineamentError
from lineament.train import metrics
from lineament.train.batches import Augmented, Batch, Batches, collate, quiet_worker
from lineament.train.config import TrainConfig, differences
from lineament.train.crops import Crops
from lineament.train.machine import (
    Here,
    amp_dtype,
    draw_on,
    draws,
    environment,
    one_first,
    processes,
    seed_all,
    summed,
)
from lineament.train.model import (
    LandmarkNet,
    load_initial,
    new_card,
    offline_weights,
    predictor,
    save,
    write_atomically,
)
from lineament.train.native import timm
from lineament.train.sample import Sample
from lineament.train.schedule import plot
from lineament.train.sheet import Tile, sheet

log = logging.getLogger(__name__)


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
    with processes(cfg) as here:
        seed_all(cfg.seed)
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


class Run:
    """One training under way: what must be saved to go on with it, and the steps."""

    def __init__(self, cfg: TrainConfig, here: Here, train: list[Sample], val: list[Sample]) -> None:
        if not train:
            raise LineamentError("there is nothing to train on: the data set is empty; `python -m train.data check` it")
        self.cfg, self.here = cfg, here
        self.epoch, self.batch_in_epoch = 0, 0
        self.best_nme, self.last_nme = math.inf, math.nan
        # one process cuts, the others find the cache ready
        self.crops = one_first(here, lambda: self._crops(train))
        self.val = one_first(here, lambda: self._crops(val)) if val else None
        self.batches = Batches(len(self.crops), cfg.batch, cfg.seed, here)
        init = cfg.init
        if cfg.offline and cfg.pretrained and not init:
            init = offline_weights(cfg.offline, cfg.backbone)
        self.net = one_first(here, lambda: LandmarkNet(cfg.net, cfg.pretrained and init is None))
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
        self.dtype = amp_dtype(cfg, here.device)
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
        with stopped_by_signals(self.end_soon):
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

    def end_soon(self) -> None:
        """After the step under way, with a checkpoint."""
        self.stop = True

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
        total, stop = summed(torch.stack([loss.detach(), loss.new_tensor(float(self.stop))]), here)
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
        if changed := differences(json.loads(state["config"]), json.loads(self.cfg.to_json())):
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
        plot(self.cfg.schedule, self.cfg.lr, len(self.batches), self.cfg.epochs, run / "schedule.png")
        shown = Augmented(self.crops, self.cfg)
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
            Augmented(self.crops, cfg),
            batch_sampler=self.batches,
            num_workers=cfg.workers,
            collate_fn=collate,
            worker_init_fn=quiet_worker,
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


# ---- what the run stands on


def _adamw(net: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """Decay on matrices and kernels only."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    free = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr)


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
