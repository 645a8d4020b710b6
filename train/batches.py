"""Batches: which faces make up which, and how a step sees them. A function of seed and epoch alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, LineamentError
from lineament.train.augment import Augment
from lineament.train.config import TrainConfig
from lineament.train.crops import Crops
from lineament.train.machine import Here


class Batch(NamedTuple):
    """What a step takes."""

    rgb: Tensor
    """(B, H, W, 3) uint8"""
    points: Tensor
    """(B, K, 2) unit coordinates; nan for a sample without points"""
    weight: Tensor
    """(B, K)"""


class Batches:
    """Which faces make up which batch: a function of seed and epoch alone. Each process takes its part of each batch.

    Keys are (epoch, index), so that augmentation too depends on nothing that a resumed run has lost.
    """

    def __init__(self, n: int, batch: int, seed: int, here: Here) -> None:
        self._n, self._batch, self._seed, self._here = n, min(batch, n), seed, here
        self._epoch, self._first = 0, 0
        if self._batch < here.world:
            raise LineamentError(
                f"a batch of {self._batch} faces cannot be shared by {here.world} processes; raise --batch"
            )

    def start(self, epoch: int, first: int) -> None:
        """The next iteration is of `epoch`, from batch number `first` on."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        """Batches in an epoch. The rest that fills none is left to other epochs' permutations."""
        return self._n // self._batch

    def size(self, number: int) -> int:
        """Faces in a batch, over all processes."""
        return self._batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._n)
        for number in range(self._first, len(self)):
            chosen = order[number * self._batch : (number + 1) * self._batch]
            yield [(self._epoch, int(i)) for i in chosen[self._here.rank :: self._here.world]]


class Augmented(Dataset[tuple[Any, F32, F32]]):
    """Crops as a step sees them."""

    def __init__(self, crops: Crops, cfg: TrainConfig) -> None:
        self._crops, self._seed = crops, cfg.seed
        self._hw = (cfg.input_px, cfg.input_px)
        self._augment = Augment(cfg.augment, SCHEMAS[cfg.schema], self._hw)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, F32, F32]:
        epoch, i = key
        crop, sample = self._crops[i], self._crops.samples[i]
        seed = int(np.random.SeedSequence([self._seed, epoch, i]).generate_state(1)[0])
        relative = np.ones(len(crop.points)) if sample.point_weights is None else sample.point_weights
        rgb, weighted = self._augment(crop.rgb, np.column_stack([crop.points, relative]), seed)
        height, width = self._hw
        points_unit = np.asarray((weighted[:, :2] + 0.5) / (width, height), np.float32)
        return rgb, points_unit, np.asarray(sample.weight * weighted[:, 2], np.float32)


def collate(items: list[tuple[Any, F32, F32]]) -> Batch:
    return Batch(*(torch.from_numpy(np.stack(column)) for column in zip(*items)))


def quiet_worker(number: int) -> None:
    """A worker has one core, and leaves signals to the process that owns it: that one ends the step under way first."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
