"""Trains a landmark model.

python -m train --data /path/to/WFLW
torchrun --nproc-per-node 4 -m train --data /path/to/WFLW --batch 128 --out runs/four
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import tyro

from lineament.landmarks.command import ends_in_a_line, program
from lineament.landmarks.schema import SCHEMAS
from lineament.train import data, suspects
from lineament.train.config import TrainConfig
from lineament.train.loop import Fitted, fit
from lineament.train.model import load, save
from lineament.train.sample import Sample

log = logging.getLogger("lineament")


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s", stream=sys.stderr)
    given = sys.argv[1:] if args is None else args
    args = [re.sub(r"^--out(?=$|=)", "--run", arg) for arg in given]  # torchrun consumes --run itself
    cfg = tyro.cli(
        Annotated[TrainConfig, tyro.conf.arg(name="")],
        args=args,
        prog=program("train", "train"),
        description="Trains a landmark model. The run folder gets best.safetensors, and best-half.safetensors to ship.",
    )
    train(cfg)
    return 0


def train(cfg: TrainConfig) -> Fitted:
    """Reads the data, holds out faces, trains, and logs the next command."""
    training, val = held_out(cfg)
    log.info("%d faces to train on, %d held out; run folder: %s", len(training), len(val), cfg.run)
    fitted = fit(cfg, training, val)
    score = f"held-out NME {fitted.nme:.3f}" if val else "no held-out NME"
    log.info("%s after %d epochs: %s", score, fitted.epochs, fitted.best)
    if int(os.environ.get("RANK", 0)) == 0:
        shipped = ship(fitted.best)
        log.info("in half precision, to ship: %s, %.1f MB", shipped, shipped.stat().st_size / 1e6)
    shift = f" --label-shift-px {cfg.label_shift_px[0]:g}" if cfg.label_shift_px[0] else ""
    log.info("next: python -m train.evaluate %s --data %s%s", fitted.best, cfg.data[0], shift)
    return fitted


def ship(best: Path) -> Path:
    """Writes best-half.safetensors beside best: the same weights in float16, with their card."""
    net, card = load(best)
    path = best.with_name(f"{best.stem}-half.safetensors")
    save(net, card, path, half=True)
    return path


def held_out(cfg: TrainConfig) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and those to validate on, which come from the first data set only."""
    sets = data.read_sets(cfg.data, cfg.label_shift_px, SCHEMAS[cfg.schema])
    if cfg.suspects:
        sets[0] = suspects.apply(sets[0], cfg.suspects, cfg.suspect_policy)
    training, val = data.hold_out(sets[0], cfg.hold_out, cfg.seed)
    return [*training, *(sample for more in sets[1:] for sample in more)], val


if __name__ == "__main__":
    sys.exit(main())
