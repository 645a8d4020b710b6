"""The learning rate as a stateless function of the step: resuming needs to know nothing but where it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate goes, in epochs."""

    kind: Literal["step", "cosine"] = "step"
    """'step': StepLR, times gamma every step_epochs. 'cosine': down to zero at the end."""
    warmup_epochs: float = 5.0
    """Linear from nothing to the full rate: AdamW's variances are unreliable before they have seen some batches."""
    step_epochs: float = 20.0
    """Epochs between two steps, counted from the end of the warm-up."""
    gamma: float = 0.5
    """What a step multiplies by."""

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0 or not self.step_epochs > 0 or not 0 < self.gamma <= 1:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs}, step_epochs {self.step_epochs}, gamma {self.gamma}: "
                "wanted at least 0, more than 0, and within 0..1"
            )

    def factor(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """What to multiply the base rate by in `step` (0, 1, ...): within 0..1, never 0 before the end."""
        epoch = step / steps_per_epoch
        if epoch < self.warmup_epochs:
            return (step + 1) / max(math.ceil(self.warmup_epochs * steps_per_epoch), 1)
        after = epoch - self.warmup_epochs
        if self.kind == "step":
            # a whole number of steps may come out a hair short
            return float(self.gamma ** math.floor(after / self.step_epochs + 1e-9))
        return 0.5 * (1 + math.cos(math.pi * min(1.0, after / max(epochs - self.warmup_epochs, 1e-9))))
