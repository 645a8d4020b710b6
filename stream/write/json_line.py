"""JSON of a face, and of a result as one line, for files, brokers, browsers and the demo."""

from __future__ import annotations

import json
import math

import numpy as np

from lineament.landmarks.expression import expression
from lineament.landmarks.gaze import gaze
from lineament.landmarks.pose import aspect_ratios, fit
from lineament.landmarks.schema import SCHEMAS, WFLW98, points_of, visibility_of
from lineament.landmarks.types import F32, Frame, LineamentError, Result, Track
from lineament.stream.read.spec import redacted


class JsonLine:
    """A result as one line of JSON, without the newline; a number that is not finite is null. README.md shows one."""

    def __init__(self, schema: str = WFLW98.name) -> None:
        if schema not in SCHEMAS:
            raise LineamentError(f"unknown schema {schema!r}; choose from {', '.join(SCHEMAS)}")
        self._schema = schema

    def __call__(self, result: Result) -> str:
        frame = result.frame
        return json.dumps(
            {"source": redacted(frame.source), "time_s": round(frame.time_s, 6), **result_json(result, self._schema)},
            allow_nan=False,
        )


def result_json(result: Result, schema: str) -> dict[str, object]:
    """A result as JSON values, without its source, which may be private. schema: of the points."""
    height, width = result.frame.bgr.shape[:2]
    return {
        "index": result.frame.index,
        "width": width,
        "height": height,
        "schema": schema,
        "faces": [face_json(track, result.frame, schema) for track in result.tracks],
        "ms": {stage: round(ms, 3) for stage, ms in result.ms.items()},
    }


def face_json(track: Track, frame: Frame, schema: str) -> dict[str, object]:
    """A face as JSON values: scores, box, points, how surely each is seen, head pose, gaze, openness, expression."""
    visibility = visibility_of(track, WFLW98, SCHEMAS[schema])
    found = fit(track.points, frame.bgr.shape[:2])
    ratios = aspect_ratios(track.points, visibility=track.visibility)
    pose, look = found.pose, gaze(track.points, found, track.irises, track.neutral)
    values = expression(track.points, found, track.irises, track.neutral, track.visibility)
    return {
        "id": track.id,
        "score": known(float(track.face.score)),
        "confidence": known(float(track.confidence)),
        "box_xyxy": _rounded(track.face.box_xyxy),
        "points": _rounded(points_of(track, WFLW98, SCHEMAS[schema])),
        "visibility": None if visibility is None else _rounded(visibility),
        "pose_deg": {"yaw": known(pose.yaw_deg), "pitch": known(pose.pitch_deg), "roll": known(pose.roll_deg)},
        "eye_aspect": [known(ratios.left_eye), known(ratios.right_eye)],
        "mouth_aspect": known(ratios.mouth),
        "gaze_deg": {"yaw": known(look.yaw_deg), "pitch": known(look.pitch_deg)},
        "expression": {name: known(value) for name, value in values.items()},
    }


def known(value: float, digits: int = 4) -> float | None:
    """Rounded; None for nan and infinity, which JSON lacks."""
    return round(value, digits) if math.isfinite(value) else None


def _rounded(values: F32) -> object:
    """Nested lists, rounded to 0.01 px; None for nan and infinity."""
    plain = np.round(values.astype(float), 2).astype(object)
    plain[~np.isfinite(values)] = None
    return plain.tolist()
