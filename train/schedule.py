"""The learning rate as a stateless function of the step, so that resuming needs only the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run, in epochs."""

    kind: Literal["step", "cosine"] = "step"
    """'step' multiplies the rate by gamma at each of step_at; 'cosine' decays it to zero at the end."""
    warmup_epochs: float = 5.0
    """Linear from zero to the full rate, because AdamW's variance estimates are unreliable at first."""
    step_at: tuple[float, ...] = (0.6, 0.85)
    """When the rate steps down, as shares of the run. A net converges at 0.01 of the rate, not yet at half of it."""
    gamma: float = 0.1
    """Factor of each step down."""

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0 or not 0 < self.gamma <= 1 or not all(0 < at < 1 for at in self.step_at):
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs}, step_at {self.step_at}, gamma {self.gamma}: "
                "wanted at least 0, each between 0 and 1, and above 0 to 1"
            )

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """Factor of the base rate at `step` (0, 1, ...): 0 to 1, and above 0 before the end."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup_epochs:
            return (step + 1) / max(math.ceil(self.warmup_epochs * steps_per_epoch), 1)
        if self.kind == "step":
            return float(self.gamma ** sum(epoch >= at * epochs for at in self.step_at))
        after = (epoch - self.warmup_epochs) / max(epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, after)))


def plot(schedule: ScheduleConfig, lr: float, steps_per_epoch: int, epochs: int, path: Path) -> None:
    """Plots the learning rate over a run. lr: the base rate."""
    from matplotlib.figure import Figure

    steps = range(epochs * steps_per_epoch)
    rates = [lr * schedule.factor(step, steps_per_epoch, epochs) for step in steps]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([step / steps_per_epoch for step in steps], rates)
    axes.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
    figure.savefig(path)
