"""Batches: which faces are in each one, augmented. They depend on seed and epoch only."""

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
    """The input of a step."""

    rgb: Tensor
    """(B, H, W, 3) uint8"""
    points: Tensor
    """(B, K, 2) unit coordinates; nan for a sample without points"""
    weight: Tensor
    """(B, K)"""


class Batches:
    """Which faces are in each batch, from seed and epoch only. Each process takes its part of every batch.

    Keys are (epoch, index), so that augmentation does not depend on state that a resumed run has lost either.
    """

    def __init__(self, n: int, batch: int, seed: int, here: Here) -> None:
        self._n, self._seed, self._here = n, seed, here
        self.size = min(batch, n)
        """faces in a batch, over all processes"""
        self._epoch, self._first = 0, 0
        if self.size < here.world:
            raise LineamentError(
                f"cannot split a batch of {self.size} faces over {here.world} processes; raise --batch"
            )

    def start(self, epoch: int, first: int) -> None:
        """The next iteration yields `epoch`'s batches, starting at number `first`."""
        self._epoch, self._first = epoch, first

    def __len__(self) -> int:
        """Batches in an epoch. Faces left over are in other epochs' permutations."""
        return self._n // self.size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(self._n)
        for number in range(self._first, len(self)):
            chosen = order[number * self.size : (number + 1) * self.size]
            yield [(self._epoch, int(i)) for i in chosen[self._here.rank :: self._here.world]]


class Augmented(Dataset[tuple[Any, F32, F32]]):
    """Crops as a step gets them."""

    def __init__(self, crops: Crops, cfg: TrainConfig) -> None:
        self._crops, self._seed = crops, cfg.seed
        self._hw = (cfg.input_px, cfg.input_px)
        self._augment = Augment(cfg.augment, SCHEMAS[cfg.schema], self._hw)

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, F32, F32]:
        epoch, i = key
        crop, sample = self._crops[i], self._crops.samples[i]
        seed = seed_of(self._seed, epoch, i)
        relative = np.ones(len(crop.points)) if sample.point_weights is None else sample.point_weights
        rgb, weighted = self._augment(crop.rgb, np.column_stack([crop.points, relative]), seed)
        height, width = self._hw
        points_unit = np.asarray((weighted[:, :2] + 0.5) / (width, height), np.float32)
        return rgb, points_unit, np.asarray(sample.weight * weighted[:, 2], np.float32)


def seed_of(run: int, epoch: int, i: int) -> int:
    """Of what is random about sample i in an epoch."""
    return int(np.random.SeedSequence([run, epoch, i]).generate_state(1)[0])


def collate(items: list[tuple[Any, F32, F32]]) -> Batch:
    return Batch(*stacked(items))


def stacked(items: list[tuple[Any, ...]]) -> Iterator[Tensor]:
    """A tensor for each entry of a sample."""
    return (torch.from_numpy(np.stack(column)) for column in zip(*items))


def quiet_worker(worker: int) -> None:
    """Limits a worker to one thread, and leaves signals to its parent, which finishes the current step first."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
