"""Everything a run depends on; the command line is made from it."""

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
from lineament.train.model import NetSpec
from lineament.train.schedule import ScheduleConfig


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on. `python -m train --help` shows it."""

    data: tuple[Path, ...]
    """Data sets: WFLW's folder, .csv or .jsonl lists, folders of .pts files, or packs. Several are concatenated."""
    run: Path = Path("runs/train")
    """Folder of the run. If it contains last.pt, the run is resumed; the config must be the same. With torchrun use
    --out instead, because torchrun has its own --run option."""
    backbone: str = "tf_efficientnet_b5"
    """Any convolutional timm model. B5 is the largest that runs in real time at 256 px on two CPU cores."""
    pretrained: bool = True
    """Start from timm's ImageNet weights, which halve the epochs needed. Downloads them once."""
    init: Path | None = None
    """Start from this file instead: a backbone's weights, or a model of an earlier run."""
    offline: Path | None = None
    """Without internet: read timm's weights from this folder, as <backbone>.safetensors, .pth or .bin."""
    head: HeadName = "coords"
    """'coords' regresses points with Wing loss; 'heatmap', 'star' and 'simcc' also predict their uncertainty."""
    stacks: int = 0
    """Number of hourglasses, for 'heatmap' and 'star'."""
    schema: str = "wflw98"
    """Schema of the points in the data."""
    input_px: int = 256
    """Side of the crop. WFLW's published results are mostly at 256."""
    crop: CropConfig = field(default_factory=CropConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 120
    """WFLW has only 7,500 faces: with augmentation, accuracy improves this long."""
    batch: int = 32
    """Faces per step, over all processes."""
    lr: float = 5e-4
    """AdamW's learning rate at batch 32; scale it with the square root of the batch."""
    weight_decay: float = 0.05
    """Applied to weights of two or more dimensions, not to norms and biases."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    drop_path: float = 0.2
    """Stochastic depth, as EfficientNet was trained with; ignored by backbones without it."""
    clip_norm: float = 5.0
    """Maximum gradient norm: Wing loss is steep near zero."""
    ema: float = 0.999
    """Decay of the averaged weights, which are validated and saved; warmed up from 0. 0 disables averaging."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision. auto: bf16 on a GPU that supports it natively, else fp16; off on the CPU."""
    channels_last: bool = True
    """Memory layout: up to twice as fast on a GPU's tensor cores, no slower on a CPU."""
    compile: bool = False
    """Use torch.compile: minutes to start, then faster steps; worth it for long runs on a GPU."""
    device: str = "auto"
    """auto, cpu, cuda or mps; under torchrun each process uses its own GPU."""
    workers: int = 2
    """Augmentation processes per training process; 0 augments in the training process."""
    seed: int = 0
    """Of everything random: hold-out, weights, batches, augmentation."""
    hold_out: float = 0.1
    """Share of the training pictures to validate on. The test list is not used."""
    val_every: int = 1
    """Epochs between validations."""
    checkpoint_min: float = 10.0
    """Minutes between checkpoints within an epoch."""
    label_shift_px: tuple[float, ...] = (0.0,)
    """Subtracted from every label: 0.5 for sets that count from a pixel's corner, such as wflw-mini. One number for
    all data sets, or one per data set."""
    presence: bool = False
    """Also learn whether the crop contains a face, from samples without points."""
    suspects: Path | None = None
    """suspects.csv of `python -m train.suspects`."""
    suspect_policy: Literal["drop", "down-weight"] = "down-weight"
    """What to do with the suspects: leave them out, or lower their weight in the loss."""
    name: str = "b5"
    """Name of the model in its card."""
    minutes: float | None = None
    """Stop after this time, at the end of an epoch. The learning-rate schedule does not depend on it."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.val_every < 1:
            raise ValueError(
                f"epochs, batch and val_every must be at least 1, got {self.epochs}, {self.batch}, {self.val_every}"
            )
        if not self.lr > 0 or not self.weight_decay >= 0 or not self.clip_norm > 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"lr {self.lr}, weight_decay {self.weight_decay}, clip_norm {self.clip_norm}, ema {self.ema}: "
                "wanted above 0, at least 0, above 0, and 0 to below 1"
            )
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out must be 0 to below 1, got {self.hold_out}")
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
    """Changes that a resumed run does not allow, as 'name: old -> new'."""
    found = []
    for name in old.keys() | new.keys():
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{at}{name}.")
        elif a != b and at + name not in ("run", "device", "workers", "checkpoint_min", "minutes"):
            found.append(f"{at}{name}: {a} -> {b}")
    return sorted(found)
