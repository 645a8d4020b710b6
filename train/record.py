"""What a run writes for people: its config and environment, curves.csv, TensorBoard's events and pictures."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply, crop_from_unit
from lineament.train.batches import Augmented
from lineament.train.config import TrainConfig
from lineament.train.crops import Crops
from lineament.train.machine import environment
from lineament.train.schedule import plot
from lineament.train.sheet import Tile, sheet

log = logging.getLogger(__name__)

STEPS_LOGGED = 10
"""TensorBoard gets every tenth step"""


class Record:
    """The files of one run's folder. Only the first process writes them."""

    def __init__(self, cfg: TrainConfig, resumed_step: int | None = None) -> None:
        """resumed_step: TensorBoard drops what it has of this step and later ones."""
        cfg.run.mkdir(parents=True, exist_ok=True)
        self._cfg, self._curves = cfg, cfg.run / "curves.csv"
        self._events = SummaryWriter(str(cfg.run), purge_step=resumed_step)

    def describe(self, crops: Crops, steps_per_epoch: int, device: torch.device) -> None:
        """Writes config, environment, schedule and a sheet of training crops."""
        cfg = self._cfg
        (cfg.run / "config.json").write_text(cfg.to_json())
        (cfg.run / "environment.json").write_text(json.dumps(environment(device), indent=2))
        plot(cfg.schedule, cfg.lr, steps_per_epoch, cfg.epochs, cfg.run / "schedule.png")
        augmented = Augmented(crops, cfg)
        crop_from_input = crop_from_unit((cfg.input_px, cfg.input_px))
        tiles = []
        for i in range(min(24, len(crops))):
            rgb, points_unit, weight = augmented[(0, i)]
            points = apply(crop_from_input, points_unit) if np.isfinite(points_unit).all() else None
            tiles.append(Tile(rgb, points, f"{weight.mean():.2f}"))
        sheet(tiles, cfg.run / "train.jpg", columns=6)

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        if step % STEPS_LOGGED == 0:
            for name, value in figures.items():
                self._events.add_scalar(f"step/{name}", value, step)

    def epoch(self, epoch: int, loss: float, nme: float, lr: float, faces_s: float, best_nme: float) -> None:
        """Adds a row to curves.csv. nme: nan if the epoch was not validated."""
        row = {
            "epoch": epoch,
            "loss": f"{loss:.5f}",
            "nme": f"{nme:.4f}",
            "lr": f"{lr:.3e}",
            "faces_s": f"{faces_s:.1f}",
        }
        new = not self._curves.exists()
        with self._curves.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        self._events.add_scalar("epoch/loss", loss, epoch)
        self._events.add_scalar("epoch/faces per second", faces_s, epoch)
        validated = ""
        if math.isfinite(nme):
            self._events.add_scalar("epoch/held-out NME", nme, epoch)
            validated = f"  held-out NME {nme:.3f}  best {best_nme:.3f}"
        log.info("epoch %d  loss %.4f%s", epoch, loss, validated)

    def validation(self, epoch: int, tiles: Sequence[Tile]) -> None:
        """Draws held-out faces, about ten times in a run."""
        if epoch % max(1, self._cfg.epochs // 10) in (0, 1):
            picture_bgr = sheet(tiles, self._cfg.run / "val.jpg", columns=4)
            self._events.add_image("val", picture_bgr[..., ::-1].copy(), epoch, dataformats="HWC")

    def drop_epochs_after(self, epoch: int) -> None:
        """Removes from curves.csv the epochs after the checkpoint: they will run again."""
        if self._curves.exists():
            head, *rows = self._curves.read_text().splitlines()
            kept = [head, *(row for row in rows if int(row.partition(",")[0]) <= epoch)]
            with replaced(self._curves) as part:
                part.write_text("\n".join(kept) + "\n")

    def close(self) -> None:
        self._events.close()
