"""Profiles an epoch: the speed of the loader, and the parts of a step.

    python -m train.profile --data /path/to/WFLW
    python -m train.profile --data /path/to/WFLW --backbone mobilenetv4_conv_small --no-pretrained --input-px 112

Takes all that `python -m train` takes; --run and its files are left alone.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from lineament.landmarks.command import ends_in_a_line
from lineament.train.__main__ import held_out
from lineament.train.batches import Batch
from lineament.train.config import TrainConfig
from lineament.train.loop import STAGES, Run
from lineament.train.machine import Here, environment, pick_device


@dataclass(frozen=True)
class ProfileConfig:
    """Times the loader alone, then whole steps by their parts."""

    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field()
    steps: int = 5
    """Steps to time, after two for warm-up."""
    seconds: float = 10.0
    """Seconds to time the loader."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.seconds > 0:
            raise ValueError(f"steps {self.steps} and seconds {self.seconds}: expected at least 1, and above 0")


class Profile(NamedTuple):
    """The measurements."""

    fed_s: float
    """faces per second of the loader alone"""
    step_ms: float
    """one step, mean"""
    parts_ms: dict[str, float]
    """of a step, by loop.STAGES"""
    batch: int

    @property
    def trained_s(self) -> float:
        """Faces per second of the steps alone."""
        return self.batch / self.step_ms * 1e3


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(ProfileConfig, args=args, prog="python -m train.profile", description=__doc__)
    # selected once, because it may log
    cfg = replace(cfg, train=replace(cfg.train, device=str(pick_device(cfg.train.device))))
    print(table(measure(cfg), cfg.train))
    return 0


def measure(cfg: ProfileConfig) -> Profile:
    """Times a temporary run. Raises LineamentError on bad data."""
    training, _ = held_out(cfg.train)
    with TemporaryDirectory() as folder:
        run = Run(replace(cfg.train, run=Path(folder) / "run"), Here(0, 1, pick_device(cfg.train.device)), training, [])
        fed_s = _fed(run, cfg.seconds)
        batch = next(iter(run.loader()))
        for _ in range(2):
            run.step(batch)
        began_s = time.perf_counter()
        with profile(activities=_activities(run.here.device)) as profiled:
            for _ in range(cfg.steps):
                # reading the loss synchronises the device
                run.step(batch)
        step_ms = (time.perf_counter() - began_s) * 1e3 / cfg.steps
        totals = {event.key: max(event.cpu_time_total, event.device_time_total) for event in profiled.key_averages()}
        return Profile(fed_s, step_ms, {name: totals[name] / 1e3 / cfg.steps for name in STAGES}, len(batch.rgb))


def table(found: Profile, cfg: TrainConfig) -> str:
    """found as text."""
    said = environment(pick_device(cfg.device))
    lines = [
        f"{cfg.backbone} at {cfg.input_px} px, batch {found.batch}, {cfg.workers} workers; "
        f"torch {said['torch']}, {said['cores']} cores, gpu {said['gpu']}",
        f"{'loader alone':14}{found.fed_s:9.0f} faces/s",
        f"{'steps alone':14}{found.trained_s:9.0f} faces/s{found.step_ms:12.1f} ms per step",
    ]
    for name, ms in found.parts_ms.items():
        lines.append(f"  {name:12}{ms:29.1f} ms{ms / found.step_ms:8.0%}")
    slower = "loader" if found.fed_s < found.trained_s else "steps"
    return "\n".join([*lines, f"an epoch is bound by the {slower}"])


def _fed(run: Run, seconds: float) -> float:
    """Faces per second, after the workers have started and their buffered batches are used."""
    batches = _forever(run)
    ahead = 4 * max(run.cfg.workers, 1)
    for _ in islice(batches, ahead + 1):
        pass
    began_s, faces = time.perf_counter(), 0
    for batch in batches:
        faces += len(batch.rgb)
        if (taken_s := time.perf_counter() - began_s) > seconds:
            return faces / taken_s
    raise AssertionError("the loader has no end")


def _forever(run: Run) -> Iterator[Batch]:
    loader, epoch = run.loader(), 0
    while True:
        run.batches.start(epoch, 0)
        yield from loader
        epoch += 1


def _activities(device: torch.device) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]


if __name__ == "__main__":
    sys.exit(main())
