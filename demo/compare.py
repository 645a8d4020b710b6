"""Compares two models on a clip: the same job twice, and figures from the points that it wrote.

Suffixes: T frames, K points of the schema.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lineament.demo.clip import Annotated, annotate
from lineament.demo.config import Limits
from lineament.demo.models import Models
from lineament.demo.picture import apart
from lineament.demo.settings import Settings
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32
from lineament.stream.steadiness import jitter

SIDES = ("left", "right")
"""names of the folders of the results"""
_NOT_ANALYSIS = ("capture", "draw", "age")
"""stages that are the same for every model"""
_SHORTEST = 12
"""frames of a face that can tell how steady it is"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on the clip. Means; nan if there is nothing to measure."""

    model: str
    made: Annotated
    frame_ms: float
    """from a frame to its tracks"""
    jitter: float
    """while a head is nearly still, per mille of the face size"""


def compare_clip(
    path: Path,
    folder: Path,
    names: tuple[str, str],
    settings: Settings,
    models: Models,
    limits: Limits,
    cancelled: threading.Event,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> tuple[Measured, Measured, float]:
    """Writes the files of `annotate` to folder/left and folder/right; its errors.

    Also returns the distance between the points, for faces that both found: percent of the distance between the outer
    eye corners. on_progress: gets the frames done by both models, and the total if known.
    """
    before = 0

    def on_frame(done: int, total: int | None) -> None:
        # the second model does what the first did
        on_progress(before + done, (before + total if before else 2 * total) if total else None)

    measured = []
    for name, side in zip(names, SIDES):
        made = annotate(path, folder / side, replace(settings, model=name), models, limits, cancelled, on_frame)
        measured.append(Measured(name, made, *_figures(made.jsonl)))
        before = made.frames
    distances = [
        apart(_points(first), _points(second), SCHEMAS[settings.schema])
        for first, second in zip(*(_lines(one.made.jsonl) for one in measured))
    ]
    return measured[0], measured[1], _mean(distances)


def _figures(jsonl: Path) -> tuple[float, float]:
    """(frame_ms, jitter) of Measured."""
    spent_ms = []
    runs: dict[int, list[list[tuple[int, float, F32]]]] = {}
    for line in _lines(jsonl):
        spent_ms.append(sum(ms for stage, ms in line["ms"].items() if stage not in _NOT_ANALYSIS))
        for face, points in zip(line["faces"], _points(line)):
            of_face = runs.setdefault(face["id"], [])
            # a new run after a gap: what happened in between is not jitter
            if not of_face or of_face[-1][-1][0] != line["index"] - 1:
                of_face.append([])
            of_face[-1].append((line["index"], line["time_s"], points))
    shaken = []
    for run in (run for of_face in runs.values() for run in of_face if len(run) >= _SHORTEST):
        points_TK2, times_s = np.stack([points for _, _, points in run]), np.array([time_s for _, time_s, _ in run])
        if np.isfinite(points_TK2).all():
            shaken.append(jitter(points_TK2, points_TK2, times_s))
    return _mean(spent_ms), _mean(shaken)


def _lines(jsonl: Path) -> Iterator[dict[str, Any]]:
    with jsonl.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _points(line: dict[str, Any]) -> list[F32]:
    """(K, 2) per face; nan where unknown."""
    return [np.array(face["points"], np.float32) for face in line["faces"]]


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
