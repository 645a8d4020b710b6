"""Everything that a run depends on; the command line is made from it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lineament.landmarks.schema import SCHEMAS
from lineament.train.augment_config import AugmentConfig
from lineament.train.crops import CropConfig
from lineament.train.data import shift_of_each
from lineament.train.heads import HeadName
from lineament.train.model import (
    NetSpec,
)
from lineament.train.schedule import ScheduleConfig


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


def differences(old: dict[str, Any], new: dict[str, Any], at: str = "") -> list[str]:
    """What a resumed run may not change, as 'name: old -> new'."""
    found = []
    for name in old.keys() | new.keys():
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{at}{name}.")
        elif a != b and at + name not in ("run", "device", "workers", "checkpoint_min", "minutes"):
            found.append(f"{at}{name}: {a} -> {b}")
    return sorted(found)
