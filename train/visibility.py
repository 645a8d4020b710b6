"""Teaches a trained net which of its points are seen. Its points and its presence output do not change.

    python -m train.visibility student.safetensors --data photos/ --out seen.safetensors

Every training face is hidden in part by drawn objects (train.hide), so which points are seen is known; a face's own
`visible` labels count too. The same output learns which crops do not fit a face, upside down or beside it: there the
points are wrong, and the presence of a face is lowered. Only this output learns, on the features of the frozen net: it
takes minutes.
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train.augment import Augment
from lineament.train.augment_config import ONE_OF, AugmentConfig
from lineament.train.batches import quiet_worker, seed_of, stacked
from lineament.train.crops import CropConfig, Crops
from lineament.train.data import hold_out, read_sets
from lineament.train.hide import hide
from lineament.train.model import LandmarkNet, load, save
from lineament.train.sample import Sample

log = logging.getLogger(__name__)

_MOVES = ("flip", "rotate", "shift_scale_rotate", "upside_down", "elastic")
"""augmentations of where the face lies, which come before the objects"""
_LOOKS = ("brightness_contrast", "colour", "cast", "duotone", "grey", "dark", *ONE_OF)
"""augmentations of colours and sharpness, which come after them"""
_DOUBTED = 0.5
"""a point that the first round takes for hidden although nothing was drawn there may be: the second ignores it"""
_HELD_OUT = 0.05
_MISFITS, _FIT_WEIGHT = 0.3, 0.5
"""share of the crops that do not fit, and weight of knowing them"""
_UNKNOWN = 2
"""of a point, where 1 is seen and 0 hidden"""


@dataclass(frozen=True)
class VisibilityConfig:
    """Adds an output to a trained model: the probability that each point is seen."""

    model: Annotated[Path, tyro.conf.Positional]
    """The .safetensors to add it to."""
    data: tuple[Path, ...]
    """Data sets, as for `python -m train`; a .jsonl may say which points are `visible`: 1, 0 or null for each."""
    out: Path
    """The .safetensors to write."""
    label_shift_px: tuple[float, ...] = (0.0,)
    """Subtracted from every label: 0.5 for labels that count from a pixel's corner. One number, or one a data set."""
    epochs: int = 4
    """Of the second of two rounds. It ignores points that look hidden after the first although nothing was drawn; the
    first takes half as many."""
    batch: int = 64
    """Faces a step."""
    lr: float = 2e-3
    """Of AdamW, falling to zero along a cosine."""
    workers: int = 1
    """Processes that draw."""
    seed: int = 0
    """Chooses the faces that are held out, and what is drawn."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class Hidden(NamedTuple):
    """A batch of faces with something in front of them."""

    rgb: Tensor
    """(B, H, W, 3) uint8"""
    visible: Tensor
    """(B, K + 1) 0..1: of each point, and 1 for a crop that fits its face"""
    known: Tensor
    """(B, K + 1) 1 where visible is known, else 0"""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("lineament").setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    teach(tyro.cli(VisibilityConfig, args=args, prog="python -m train.visibility"))
    return 0


def teach(cfg: VisibilityConfig) -> ModelCard:
    """Writes cfg.out and returns its card. Raises LineamentError for a model of another schema than WFLW98."""
    plain, card = load(cfg.model)
    if plain.schema is not WFLW98:
        raise LineamentError(f"{cfg.model} returns {plain.spec.schema}, wanted {WFLW98.name}: objects are drawn by it")
    net = LandmarkNet(replace(plain.spec, visibility=True)).eval()
    net.load_state_dict(plain.state_dict(), strict=False)
    samples = [sample for some in read_sets(cfg.data, cfg.label_shift_px, WFLW98) for sample in some]
    samples, held_out = hold_out(samples, _HELD_OUT, cfg.seed)
    log.info("%d faces to learn from, %d held out", len(samples), len(held_out))
    with TemporaryDirectory() as cache:
        crops, others = (
            Crops(some, net.input_hw, CropConfig(scale=card.crop_scale), WFLW98, Path(cache))
            for some in (samples, held_out)
        )
        faces, exam = HiddenFaces(crops, cfg), HiddenFaces(others, cfg)
        for round_ in (1, 2):
            _learn(net, faces, cfg, cfg.epochs if round_ == 2 else max(1, cfg.epochs // 2))
            if round_ == 1:
                faces.forget(seen_of(net, crops) < _DOUBTED)
            log.info("round %d, held out: %s", round_, report(net, exam, cfg))
    return save(net, card, cfg.out, half=card.precision == "fp16")


class HiddenFaces(Dataset[tuple[U8, F32, F32]]):
    """Augmented crops with something in front of the face, by (epoch, index)."""

    def __init__(self, crops: Crops, cfg: VisibilityConfig) -> None:
        self.crops, self._seed = crops, cfg.seed
        self._move, self._look = (
            Augment(cfg.augment.keeping(*names), WFLW98, crops.input_hw) for names in (_MOVES, _LOOKS)
        )
        self._given = np.stack([_visible_of(sample) for sample in crops.samples])

    def __len__(self) -> int:
        return len(self.crops)

    def forget(self, doubted_NK: np.ndarray) -> None:
        """Counts these points as unknown unless their sample says."""
        unlabelled = np.array([sample.visible is None for sample in self.crops.samples])
        self._given[doubted_NK & unlabelled[:, None]] = np.nan

    def __getitem__(self, key: tuple[int, int]) -> tuple[U8, F32, F32]:
        epoch, i = key
        seed = seed_of(self._seed, epoch, i)
        rng = random.Random(seed)
        crop, other = self.crops[i], self.crops[rng.randrange(len(self.crops))]
        has_face = bool(np.isfinite(crop.points).all())
        if not has_face or rng.random() < _MISFITS:
            rgb, _ = self._move(_misfit(crop.rgb, rng) if has_face else crop.rgb, crop.points, seed)
            rgb, _ = self._look(rgb, crop.points, seed)
            # where its points are is unknown
            return (
                rgb,
                np.zeros(len(crop.points) + 1, np.float32),
                np.eye(1, len(crop.points) + 1, len(crop.points), dtype=np.float32)[0],
            )
        # the flip exchanges points, and takes what is known of each along
        rgb, moved = self._move(
            crop.rgb, np.column_stack([crop.points, np.nan_to_num(self._given[i], nan=_UNKNOWN)]), seed
        )
        points, given = moved[:, :2], moved[:, 2]
        rgb, clear = hide(rgb, points, other.rgb, rng)
        rgb, _ = self._look(rgb, points, seed)
        known = (given <= 1) | (clear < 0.5)
        visible = np.append(clear * (given > 0.5), 1)
        return rgb, visible.astype(np.float32), np.append(known, 1).astype(np.float32)


def _learn(net: LandmarkNet, faces: HiddenFaces, cfg: VisibilityConfig, epochs: int) -> None:
    """Trains the visibility output."""
    assert net.visibility is not None
    visibility = net.visibility
    optimizer = torch.optim.AdamW(visibility.parameters(), lr=cfg.lr, weight_decay=0.01)
    steps = epochs * (len(faces) // cfg.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for epoch in range(epochs):
        order = np.random.default_rng([cfg.seed, epoch]).permutation(len(faces))
        total, count = 0.0, 0
        for rgb, visible, known in _batches(faces, [(epoch, int(i)) for i in order], cfg):
            loss = _wrong(visibility.logits(_features(net, rgb)), visible, known)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, count = total + float(loss.detach()), count + 1
        log.info("epoch %d of %d: loss %.4f", epoch + 1, epochs, total / max(1, count))


def _wrong(logits_BK: Tensor, visible: Tensor, known: Tensor) -> Tensor:
    wrong = nn.functional.binary_cross_entropy_with_logits(logits_BK, visible, reduction="none") * known
    points, crop = wrong[:, :-1], wrong[:, -1]
    return points.sum() / known[:, :-1].sum().clamp_min(1) + _FIT_WEIGHT * crop.mean()


@torch.no_grad()
def _features(net: LandmarkNet, rgb: Tensor) -> Tensor:
    return net.levels(rgb)[-1].float()


def _batches(faces: HiddenFaces, keys: list[tuple[int, int]], cfg: VisibilityConfig) -> Iterator[Hidden]:
    chunks = [keys[start : start + cfg.batch] for start in range(0, len(keys), cfg.batch)]
    loader = DataLoader(
        faces,
        batch_sampler=chunks,
        num_workers=cfg.workers,
        worker_init_fn=quiet_worker,
        collate_fn=lambda items: Hidden(*stacked(items)),
    )
    yield from loader


@torch.inference_mode()
def seen_of(net: LandmarkNet, crops: Crops, batch: int = 64) -> F32:
    """(N, K) the visibility of the points of crops as they are."""
    found = []
    for start in range(0, len(crops), batch):
        rgb = np.stack([crops.input_crop(i).rgb for i in range(start, min(start + batch, len(crops)))])
        visibility = net.points(torch.from_numpy(rgb)).visibility
        assert visibility is not None
        found.append(visibility.numpy())
    return np.concatenate(found)


@torch.inference_mode()
def report(net: LandmarkNet, exam: HiddenFaces, cfg: VisibilityConfig) -> str:
    """The share of points called hidden, by where they are."""
    assert net.visibility is not None
    found, wanted, known = [], [], []
    for hidden in _batches(exam, [(epoch, i) for epoch in (1001, 1002) for i in range(len(exam))], cfg):
        found.append(net.visibility.logits(_features(net, hidden.rgb)).sigmoid().numpy())
        wanted.append(hidden.visible.numpy())
        known.append(hidden.known.numpy() > 0)
    seen, visible, sure = (np.concatenate(some) for some in (found, wanted, known))
    known_seen, known_visible = seen[:, :-1][sure[:, :-1]], visible[:, :-1][sure[:, :-1]]
    fit, fits = seen[:, -1], visible[:, -1] == 1
    labelled = np.stack([_visible_of(sample) for sample in exam.crops.samples])
    plain = seen_of(net, exam.crops)
    groups = {
        "behind drawn objects": known_seen[known_visible < 0.1],
        "beside them": known_seen[known_visible > 0.9],
        "of faces as they are, labelled hidden": plain[labelled == 0],
        "of faces as they are, seen": plain[labelled == 1],
        "crops that fit": fit[fits],
        "crops that do not": fit[~fits],
    }
    return ", ".join(f"{name} {(some < 0.5).mean():.1%}" for name, some in groups.items() if len(some))


def _misfit(rgb: U8, rng: random.Random) -> U8:
    """rgb (S, S, 3) upside down or nearly, beside the face, or much closer to it or further away."""
    side, turn_deg, scale, shift = rgb.shape[0], 0.0, 1.0, (0.0, 0.0)
    match rng.choice(("turned", "turned", "beside", "scaled")):
        case "turned":
            turn_deg = 180 + rng.uniform(-70, 70)
        case "beside":
            angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.75) * side
            shift = (away * float(np.cos(angle)), away * float(np.sin(angle)))
        case _:
            scale = rng.choice((rng.uniform(0.25, 0.4), rng.uniform(2.5, 4.0)))
    middle = (side - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), turn_deg, scale)
    matrix[:, 2] += np.array(shift)
    return np.asarray(cv2.warpAffine(rgb, matrix, (side, side), borderMode=cv2.BORDER_REFLECT), np.uint8)


def _visible_of(sample: Sample) -> F32:
    """(K,) 1 seen, 0 hidden, nan unknown. A label without it shows the whole face, as most photos do."""
    if sample.visible is not None:
        return sample.visible
    return np.where(np.isfinite(sample.points).all(1), np.float32(1), np.float32(np.nan))


if __name__ == "__main__":
    sys.exit(main())
