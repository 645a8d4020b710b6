"""One model for many threads: those who wait are answered together, each with its own points."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from lineament.landmarks.types import U8, Landmarks
from lineament.stream.analyse.batch import SharedLandmarker
from tests.blobs import CARD

WAIT_S = 20.0


class Slow:
    """Holds its first call until told to go on; its points say which crop they belong to."""

    card = CARD

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.broken = self.closed = False

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        self.batches.append(len(rgb_NHWC))
        self.entered.set()
        self.go_on.wait(WAIT_S)
        if self.broken:
            raise RuntimeError("no memory")
        grey = rgb_NHWC[:, 0, 0, 0].astype(np.float32)
        return Landmarks(np.tile(grey[:, None, None], (1, 98, 2)), grey)

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Slow:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def crops(*greys: int) -> U8:
    return np.stack([np.full((64, 64, 3), grey, np.uint8) for grey in greys])


def call_from_threads(shared: SharedLandmarker, model: Slow, calls: list[U8]) -> list[Landmarks | Exception]:
    """The first call holds the model until all the others wait for it."""
    answers: list[Landmarks | Exception] = [RuntimeError("no answer")] * len(calls)

    def call(i: int) -> None:
        try:
            answers[i] = shared(calls[i])
        except RuntimeError as error:
            answers[i] = error

    threads = [threading.Thread(target=call, args=[i], name=f"call {i}") for i in range(len(calls))]
    threads[0].start()
    assert model.entered.wait(WAIT_S)
    for thread in threads[1:]:
        thread.start()
    deadline_s = time.monotonic() + WAIT_S
    while len(shared._waiting) < len(calls) - 1 and time.monotonic() < deadline_s:
        time.sleep(0.001)
    model.go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return answers


def test_those_who_wait_are_answered_in_one_batch_and_each_gets_its_own() -> None:
    model = Slow()
    with SharedLandmarker(model) as shared:
        asked = [[1], [2, 3], [], [4], [5, 6, 7]]
        answers = call_from_threads(shared, model, [crops(*greys) if greys else crops(0)[:0] for greys in asked])
    assert model.batches == [1, 6] and (shared.batches, shared.crops) == (2, 7)
    for greys, answer in zip(asked, answers):
        assert isinstance(answer, Landmarks) and answer.points_unit.shape == (len(greys), 98, 2)
        assert answer.confidence.tolist() == greys and (answer.points_unit[:, 5, 1] == greys).all()
    assert model.closed


def test_a_failure_reaches_everyone_and_the_next_call_is_as_if_nothing_had_been() -> None:
    model = Slow()
    shared = SharedLandmarker(model)
    model.broken = True
    answers = call_from_threads(shared, model, [crops(1), crops(2), crops(3)])
    assert [str(answer) for answer in answers] == ["no memory"] * 3
    model.broken = False
    assert shared(crops(9)).confidence.tolist() == [9]


def test_alone_it_is_the_model_itself() -> None:
    model = Slow()
    model.go_on.set()
    shared = SharedLandmarker(model)
    for greys in ((1,), (2, 3)):
        assert shared(crops(*greys)).confidence.tolist() == list(greys)
    assert model.batches == [1, 2] and shared.card is CARD
    assert shared.alone(crops(5)).confidence.tolist() == [5] and (shared.batches, shared.crops) == (2, 3)
    with pytest.raises(IndexError):  # what the model raises
        shared(np.zeros((1,), np.uint8))
