"""The training loop: steps, validation, checkpoints.

    fitted = fit(TrainConfig(data=(Path("WFLW"),)), train_samples, val_samples)

A run is a folder: last.pt (to resume from), best.safetensors (with its card), and what train.record writes. A run that
is interrupted and resumed takes exactly the steps of an uninterrupted one; under torchrun, N processes take the steps
of one.

Suffixes: B faces, H W pixels, K points.
"""

from __future__ import annotations

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
from tqdm import tqdm

from lineament.landmarks.command import stopped_by_signals
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply, crop_from_unit
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, F64, LineamentError
from lineament.train import metrics
from lineament.train.batches import Augmented, Batch, Batches, collate, quiet_worker
from lineament.train.config import TrainConfig, differences
from lineament.train.crops import Crops
from lineament.train.machine import Here, amp_dtype, draw_on, draws, one_first, processes, seed_all, summed
from lineament.train.model import LandmarkNet, load_initial, new_card, offline_weights, predictor, save
from lineament.train.native import timm
from lineament.train.record import Record
from lineament.train.sample import Sample
from lineament.train.sheet import Tile

log = logging.getLogger(__name__)

LEAST_OCULAR = 0.25
"""of a held-out face's extent, the least unit of its error: see metrics.point_errors"""
STAGES = ("forward", "backward", "optimizer", "average")
"""the parts of a step, as PyTorch's profiler sees them"""
PRESENCE_WEIGHT = 2.0
"""of the presence loss: a clear mistake then costs as much as an error of one pixel"""


class Fitted(NamedTuple):
    """The result of a run."""

    run: Path
    best: Path
    """safetensors of the epoch with the lowest held-out NME"""
    nme: float
    """percent, on the held-out faces; nan if none were held out"""
    epochs: int
    """epochs run"""


class Stopped(LineamentError):  # noqa: N818 - a state, not a fault
    """A signal stopped the run; it can be resumed."""


OnEpoch = Callable[[int, float], None]
"""(epoch, held-out NME); an exception from it ends the run"""


def fit(cfg: TrainConfig, train: list[Sample], val: list[Sample], on_epoch: OnEpoch | None = None) -> Fitted:
    """Trains on `train` and keeps the epoch that is best on `val`. Resumes an interrupted run, not a finished one."""
    with processes(cfg) as here:
        if done := finished(cfg):
            return done
        seed_all(cfg.seed)
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True  # all batches have one size
        run = Run(cfg, here, train, val)
        try:
            if not run.resume():
                run.start()
            return run.go(on_epoch)
        finally:
            run.close()


def finished(cfg: TrainConfig) -> Fitted | None:
    """The result of a run that has all its epochs. Logs at which epoch another is resumed, or raises LineamentError."""
    state = read_checkpoint(cfg)
    if state is None:
        return None
    epoch, nme, best = state["epoch"], state["best_nme"], cfg.run / "best.safetensors"
    if epoch < cfg.epochs:
        batch = f", batch {state['batch_in_epoch'] + 1}" if state["batch_in_epoch"] else ""
        log.info("resuming %s at epoch %d of %d%s; another --run starts over", cfg.run, epoch + 1, cfg.epochs, batch)
        return None
    says = "%s is finished, all %d epochs; to train further, give another --run and --init %s"
    log.info(says, cfg.run, epoch, best)
    return Fitted(cfg.run, best, nme if math.isfinite(nme) else math.nan, epoch)


def read_checkpoint(cfg: TrainConfig, device: torch.device | None = None) -> dict[str, Any] | None:
    """last.pt of the run; None if there is none. Without a device, weights are read only if they are used."""
    path = cfg.run / "last.pt"
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device or "cpu", weights_only=True, mmap=device is None)
    except Exception as error:
        raise LineamentError(f"cannot read {path}: {error}; delete it to start {cfg.run} over") from error
    if changed := differences(json.loads(state["config"]), json.loads(cfg.to_json())):
        raise LineamentError(
            f"{path} was made with another config ({'; '.join(changed[:5])}); "
            "use the same config to resume, or another --run to start over"
        )
    return state


class Run:
    """A training run: its state, as checkpoints save it, and its steps."""

    def __init__(self, cfg: TrainConfig, here: Here, train: list[Sample], val: list[Sample]) -> None:
        if not train:
            raise LineamentError("the data set has no faces to train on; check it with `python -m train.data check`")
        self.cfg, self.here = cfg, here
        self.epoch, self.batch_in_epoch = 0, 0
        self.best_nme = math.inf
        # one process cuts the crops, the others find them cached
        self.crops = one_first(here, lambda: self._crops(train))
        self.val = one_first(here, lambda: self._crops(val)) if val else None
        self.batches = Batches(len(self.crops), cfg.batch, cfg.seed, here)
        self.net = _net(cfg, here)
        self.ema = timm.utils.ModelEmaV3(self.net, decay=cfg.ema, use_warmup=True) if cfg.ema else None
        self.optimizer = _adamw(self.net, cfg)
        self.dtype = amp_dtype(cfg, here.device)
        self.scaler = torch.amp.GradScaler(here.device.type, enabled=self.dtype == torch.float16)
        self.stepper = _stepper(self.net, cfg, here)
        self.record: Record | None = None
        self.saved_s = time.monotonic()
        self.stop = False

    def _crops(self, samples: list[Sample]) -> Crops:
        cfg = self.cfg
        hw = (cfg.input_px, cfg.input_px)
        return Crops(samples, hw, cfg.crop, SCHEMAS[cfg.schema], cfg.run.parent / "cache")

    # ---- epochs

    def go(self, on_epoch: OnEpoch | None) -> Fitted:
        cfg = self.cfg
        began_s = self.saved_s = time.monotonic()
        loader = self.loader()
        with stopped_by_signals(self.stop_soon):
            while self.epoch < cfg.epochs:
                losses, faces_s = self._train_epoch(loader)
                self.epoch, self.batch_in_epoch = self.epoch + 1, 0
                over = self.epoch == cfg.epochs or bool(cfg.minutes and time.monotonic() - began_s > cfg.minutes * 60)
                self._end_epoch(losses, faces_s, over, on_epoch)
                # not after every short epoch: a checkpoint would take longer than its steps
                if over or self.epoch % cfg.val_every == 0 or self._checkpoint_due():
                    self.checkpoint()
                if over and self.epoch < cfg.epochs:
                    log.info("stopped after %d epochs: --minutes %g have passed", self.epoch, cfg.minutes)
                    break
        nme = self.best_nme if math.isfinite(self.best_nme) else math.nan
        return Fitted(cfg.run, cfg.run / "best.safetensors", nme, self.epoch)

    def stop_soon(self) -> None:
        """Stops after the current step, with a checkpoint."""
        self.stop = True

    def _train_epoch(self, loader: DataLoader[Any]) -> tuple[list[float], float]:
        """The loss of each step, and faces per second."""
        self.batches.start(self.epoch, self.batch_in_epoch)
        losses, rate = [], _Rate()
        with self._bar() as bar:
            for batch in loader:
                loss = self.step(batch)
                losses.append(loss)
                self.batch_in_epoch += 1
                bar.update()
                bar.set_postfix_str(f"loss {loss:.3f}  {rate(self.cfg.batch):.0f} faces/s", refresh=False)
                if self.stop or self._checkpoint_due():
                    self.checkpoint()
                if self.stop:
                    where = f"stopped in epoch {self.epoch + 1}"
                    raise Stopped(f"{where}; the same command resumes from {self.cfg.run}/last.pt")
        return losses, rate.mean

    def _end_epoch(self, losses: list[float], faces_s: float, over: bool, on_epoch: OnEpoch | None) -> None:
        if not self.here.first:
            return
        due = self.val is not None and (self.epoch % self.cfg.val_every == 0 or over)
        nme = self.validate() if due else math.nan
        if self.val is None or nme < self.best_nme:
            self._save_best(nme)
        if due:
            self.best_nme = min(nme, self.best_nme)
        if self.record:
            lr = self.optimizer.param_groups[0]["lr"]
            loss = float(np.mean(losses)) if losses else math.nan
            self.record.epoch(self.epoch, loss, nme, lr, faces_s, self.best_nme)
        if on_epoch:
            on_epoch(self.epoch, nme)

    # ---- steps

    def step(self, batch: Batch) -> float:
        """One batch: forward, backward, clip, step, average. Returns the loss over all processes."""
        cfg, here = self.cfg, self.here
        step = self.epoch * len(self.batches) + self.batch_in_epoch
        lr = cfg.lr * cfg.schedule.factor(step, len(self.batches), cfg.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with record_function("forward"):
            loss = self._loss(batch)
        # DDP averages gradients over processes; the loss is a share of the global batch's mean
        with record_function("backward"):
            self.scaler.scale(loss * here.world).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), cfg.clip_norm)
        # one exchange for both, so that all processes stop after the same step; the only wait for the GPU
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
        if self.record:
            self.record.step(step, {"loss": total, "lr": lr, "gradient norm": float(norm)})
        return total

    def _loss(self, batch: Batch) -> Tensor:
        """This process's share of the mean over the global batch. A sample without points trains presence only."""
        rgb, points, weight = (t.to(self.here.device, non_blocking=True) for t in batch)
        with torch.autocast(self.here.device.type, self.dtype) if self.dtype else nullcontext():
            raw, presence = self.stepper(rgb)
        there = torch.isfinite(points).all((1, 2))
        per_point = self.net.head.loss(raw, torch.nan_to_num(points, nan=0.5))
        # where, because nan * 0 is nan
        loss = torch.where(there, (per_point * weight).mean(1), 0.0).sum()
        if presence is not None:
            wrong = nn.functional.binary_cross_entropy_with_logits(presence.float(), there.float(), reduction="none")
            loss = loss + PRESENCE_WEIGHT * wrong.sum()
        return loss / self.batches.size

    def _not_finite(self, what: str, value: float, batch: Batch) -> LineamentError:
        path = self.cfg.run / f"not-finite-rank{self.here.rank}.pt"
        state = {"batch": tuple(batch), "epoch": self.epoch, "batch_in_epoch": self.batch_in_epoch}
        with replaced(path) as part:
            torch.save(state, part)
        return LineamentError(
            f"{what} became {value} in epoch {self.epoch + 1}, batch {self.batch_in_epoch + 1}; "
            f"the batch is in {path}: check its labels, or lower --lr. The last checkpoint is unchanged"
        )

    # ---- validation

    @property
    def judged(self) -> LandmarkNet:
        """The net that is validated and saved: averaged weights, if averaging is on."""
        return self.ema.module if self.ema else self.net

    def validate(self) -> float:
        """NME on the held-out faces, percent. Also draws some of them."""
        assert self.val is not None
        crops = [self.val.input_crop(i) for i in range(len(self.val))]
        truth = np.stack([crop.points for crop in crops])
        points_unit = predictor(self.judged, str(self.here.device))(np.stack([crop.rgb for crop in crops]))
        found = apply(crop_from_unit(self.val.input_hw), points_unit)
        errors = self._errors(found, truth)
        if self.record:
            shown = zip(np.flatnonzero(np.isfinite(truth).all((1, 2)))[:12], errors)
            self.record.validation(
                self.epoch, [Tile(crops[i].rgb, found[i], f"{error:.1f}", truth[i]) for i, error in shown]
            )
        self.net.train()
        return float(errors.mean())

    def _baseline(self) -> None:
        """Logs what a net would score that has learnt only the mean face."""
        if self.val is None:
            return
        truth = np.stack([self.val.input_crop(i).points for i in range(len(self.val))])
        known = np.stack([self.crops.input_crop(i).points for i in range(len(self.crops))])
        errors = self._errors(np.broadcast_to(np.nanmean(known, axis=0), truth.shape), truth)
        if len(errors):
            log.info("the mean face of the training crops has a held-out NME of %.3f", errors.mean())

    def _errors(self, found: F32, truth: F32) -> F64:
        """NME of each held-out face that has points, percent."""
        labelled = np.isfinite(truth).all((1, 2))
        return metrics.nme(found[labelled], truth[labelled], SCHEMAS[self.cfg.schema], LEAST_OCULAR)

    def _save_best(self, nme: float) -> None:
        card = new_card(self.judged, self.cfg.name, self.cfg.crop.scale)
        scores = {"held out": round(nme, 3)} if math.isfinite(nme) else {}
        save(self.judged, replace(card, nme=scores), self.cfg.run / "best.safetensors")

    # ---- checkpoints

    def _checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_s > self.cfg.checkpoint_min * 60

    def checkpoint(self) -> None:
        """Writes last.pt: everything the next step depends on."""
        if self.here.first:
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
            with replaced(self.cfg.run / "last.pt") as part:
                torch.save(state, part)
        self.saved_s = time.monotonic()

    def start(self) -> None:
        """Begins a run that has no checkpoint."""
        if self.here.first:
            self.record = Record(self.cfg)
            self.record.describe(self.crops, len(self.batches), self.here.device)
            self._baseline()

    def resume(self) -> bool:
        """Restores last.pt; returns False if there is none."""
        state = read_checkpoint(self.cfg, self.here.device)
        if state is None:
            return False
        self.net.load_state_dict(state["net"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.batch_in_epoch, self.best_nme = state["epoch"], state["batch_in_epoch"], state["best_nme"]
        draw_on(state, self.here.device)
        if self.here.first:
            self.record = Record(self.cfg, self.epoch * len(self.batches) + self.batch_in_epoch)
            self.record.drop_epochs_after(self.epoch)
        return True

    def close(self) -> None:
        if self.record:
            self.record.close()

    # ---- feeding and progress

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
            # its own: each start draws a number, from the generator of stochastic depth if none is given
            generator=torch.Generator(),
        )

    def _bar(self) -> tqdm[None]:
        total = len(self.batches)
        text = f"epoch {self.epoch + 1}/{self.cfg.epochs}"
        # None: silent if stderr is not a terminal
        quiet = None if self.here.first else True
        return tqdm(total=total, initial=self.batch_in_epoch, desc=text, disable=quiet, leave=False, dynamic_ncols=True)


def _net(cfg: TrainConfig, here: Here) -> LandmarkNet:
    init = cfg.init
    if cfg.offline and cfg.pretrained and not init:
        init = offline_weights(cfg.offline, cfg.backbone)
    # one process downloads the weights, the others find them cached
    net: LandmarkNet = one_first(here, lambda: LandmarkNet(cfg.net, cfg.pretrained and init is None))
    if init:
        load_initial(net, init)
    if cfg.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if here.world > 1 and here.device.type == "cuda":  # PyTorch has no SyncBatchNorm on the CPU
        net = with_shared_statistics(net)
    net.to(here.device).train()
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert not frozen, f"no layer is frozen, but {frozen} are"
    return net


def with_shared_statistics(net: LandmarkNet) -> LandmarkNet:
    """net with batch norms over all processes. Changes net in place where it can."""
    # timm's own: PyTorch's treats a norm with a built-in activation as a plain one and drops the activation
    shared: LandmarkNet = timm.layers.convert_sync_batchnorm(net)
    return shared


def _adamw(net: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """Decays matrices and kernels only."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    free = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": cfg.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=cfg.lr)


def _stepper(net: LandmarkNet, cfg: TrainConfig, here: Here) -> nn.Module:
    """net as the steps call it: compiled and distributed if asked for."""
    stepper: nn.Module = torch.compile(net) if cfg.compile else net  # type: ignore[assignment]
    if here.world > 1:
        ids = [here.device.index] if here.device.type == "cuda" else None
        stepper = nn.parallel.DistributedDataParallel(stepper, device_ids=ids)
    return stepper


class _Rate:
    """Faces per second since the epoch began."""

    def __init__(self) -> None:
        self._began_s, self._faces = time.monotonic(), 0

    def __call__(self, faces: int) -> float:
        self._faces += faces
        return self.mean

    @property
    def mean(self) -> float:
        return self._faces / max(time.monotonic() - self._began_s, 1e-9)
