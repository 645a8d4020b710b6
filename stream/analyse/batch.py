"""Batching: one landmark model for many threads. The crops that are waiting when it is free form one batch.

with SharedLandmarker(engines.load("b5.engine")) as landmarker:
    ...  # any number of threads: landmarker(rgb_NHWC)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Self

import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import U8, Landmarker, Landmarks


@dataclass(slots=True)
class _Request:
    crops: U8
    """(N, H, W, 3)"""
    answer: Landmarks | None = None
    error: Exception | None = None
    answered: bool = False


class SharedLandmarker:
    """A Landmarker that batches calls from several threads; owns the one that it is given.

    It has no thread of its own: the caller that finds the model free runs it for all that wait. So no call waits for
    longer than the running batch and the next, however many crops the others have.
    """

    def __init__(self, landmarker: Landmarker) -> None:
        self.batches = 0
        """how often the model ran"""
        self.crops = 0
        """how many crops it was given"""
        self._landmarker = landmarker
        self._free = threading.Lock()
        self._waiting: list[_Request] = []
        self._door = threading.Lock()

    @property
    def card(self) -> ModelCard:
        return self._landmarker.card

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        """As the model itself; what it raises is raised in every call of the batch."""
        request = _Request(rgb_NHWC)
        with self._door:
            self._waiting.append(request)
        with self._free:
            if not request.answered:
                with self._door:
                    batch, self._waiting = self._waiting, []
                self._answer(batch)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def alone(self, rgb_NHWC: U8) -> Landmarks:
        """As a call, but as a batch of its own, and not counted."""
        with self._free:
            return self._landmarker(rgb_NHWC)

    def _answer(self, batch: list[_Request]) -> None:
        try:
            crops = batch[0].crops if len(batch) == 1 else np.concatenate([r.crops for r in batch])
            found = self._landmarker(crops)
            self.batches, self.crops = self.batches + 1, self.crops + len(crops)
            first = 0
            for request in batch:
                last = first + len(request.crops)
                seen = None if found.visibility is None else found.visibility[first:last]
                request.answer = Landmarks(found.points_unit[first:last], found.confidence[first:last], seen)
                first = last
        except Exception as error:  # noqa: BLE001 - handed to every caller, who raises it
            for request in batch:
                request.error = error
        for request in batch:
            request.answered = True

    def close(self) -> None:
        with self._free:
            self._landmarker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
