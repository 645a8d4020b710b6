"""Warm-up: the first inference of a process, by one thread alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import U8, Landmarks
from lineament.stream.analyse.detect import VideoDetector


def warm_up(landmarker: Callable[[U8], Landmarks], card: ModelCard) -> None:
    """Runs landmarker and detector once, on black.

    OpenVINO's bindings initialise in their first calls. Two threads that make one at the same time deadlock: one holds
    Python's lock, the other C++'s.
    """
    landmarker(np.zeros((1, *card.input_hw, 3), np.uint8))
    with VideoDetector() as find:
        find(np.zeros((64, 64, 3), np.uint8))
