"""JSON: a result as one line of it, for files, brokers, browsers and the demo."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lineament.landmarks.schema import IBUG68, SCHEMAS, WFLW98, ibug68_from_wflw98
from lineament.landmarks.types import F32, Frame, LineamentError, Result, Track
from lineament.stream.read.source import redacted

Measure = Callable[[Track, Frame], Mapping[str, object]]
"""more to say of a face than its points: pose, ratios"""


class JsonLine:
    """A result as one line of JSON, without the line's end; what is not finite is null. README.md shows one."""

    def __init__(self, schema: str = WFLW98.name, measure: Measure | None = None) -> None:
        """measure: adds fields to each face."""
        if schema not in SCHEMAS:
            raise LineamentError(f"unknown schema {schema!r}; choose from {', '.join(SCHEMAS)}")
        self._schema, self._measure = schema, measure

    def __call__(self, result: Result) -> str:
        frame = result.frame
        return json.dumps(
            {
                "source": redacted(frame.source),
                "index": frame.index,
                "time_s": round(frame.time_s, 6),
                "width": frame.bgr.shape[1],
                "height": frame.bgr.shape[0],
                "schema": self._schema,
                "faces": [self._face(track, frame) for track in result.tracks],
                "ms": {stage: round(ms, 3) for stage, ms in result.ms.items()},
            },
            allow_nan=False,
        )

    def _face(self, track: Track, frame: Frame) -> dict[str, object]:
        points = ibug68_from_wflw98(track.points) if self._schema == IBUG68.name else track.points
        more = self._measure(track, frame) if self._measure else {}
        return {
            "id": track.id,
            "score": _plain(float(track.face.score)),
            "confidence": _plain(float(track.confidence)),
            "box_xyxy": _rounded(track.face.box_xyxy),
            "points": _rounded(points),
            **{name: _plain(value) for name, value in more.items()},
        }


def _rounded(values: F32) -> object:
    """Nested lists, in hundredths of a pixel; null for what is not finite."""
    rounded = np.round(values.astype(float), 2)
    return rounded.tolist() if np.isfinite(rounded).all() else _plain(rounded)


def _plain(value: Any) -> object:
    """value as JSON knows it: arrays as lists, floats to 4 decimals, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
