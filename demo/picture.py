"""One picture: its faces drawn and as JSON, CSV and .pts, and a comparison of two models on it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.landmarks.geometry import crop_from_frame, rgb_crops
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema, convert
from lineament.landmarks.types import U8, Floats, Frame, LineamentError, Result
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.write.draw import draw
from lineament.stream.write.json_line import result_json
from lineament.stream.write.table import csv_of

_TIMED_RUNS = 9
"""runs of a model on one crop; the median is reported"""
_SHOWN_LONG_SIDE = 2560
"""of a drawing as sent to the page, px; enough to zoom in, at a reasonable download size"""


def find(bgr: U8, settings: Settings, models: Models) -> Result:
    """The faces in a still picture. bgr: (H, W, 3)."""
    with Analyser(models[settings.model], settings.track, still=True) as analyse:
        return analyse(Frame(bgr, "picture", 0, 0.0, time.monotonic()))


def drawn_url(result: Result, settings: Settings) -> str:
    """The drawing as a data: URL, so that nothing has to be stored."""
    canvas = draw(result, WFLW98, settings.view)
    scale = _SHOWN_LONG_SIDE / max(canvas.shape[:2])
    if scale < 1:
        size = (max(1, round(canvas.shape[1] * scale)), max(1, round(canvas.shape[0] * scale)))
        canvas = np.asarray(cv2.resize(canvas, size, interpolation=cv2.INTER_AREA), np.uint8)
    ok, jpeg = cv2.imencode(".jpg", canvas, [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not ok:
        raise LineamentError("the drawing could not be encoded; use a smaller picture")
    return _data_url("image/jpeg", jpeg.tobytes())


def downloads(result: Result, settings: Settings) -> list[tuple[str, str]]:
    """(file name, data: URL) of the points as JSON, CSV, and one .pts per face."""
    if not result.tracks:
        return []
    text = json.dumps(result_json(result, settings.schema), indent=1)
    table = csv_of(result, SCHEMAS[settings.schema])
    files = [("points.json", "application/json", text), ("points.csv", "text/csv", table)]
    for track in result.tracks:
        points = convert(track.points, WFLW98, SCHEMAS[settings.schema])
        files.append((f"face-{track.id}.pts", "text/plain", pts(points)))
    return [(name, _data_url(kind, text.encode())) for name, kind, text in files]


def pts(points: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
    """One face in the format of 300W. points: (K, 2) frame px; in the file, pixels count from 1."""
    rows = "\n".join(f"{x + 1:.3f} {y + 1:.3f}" for x, y in points.tolist())
    return f"version: 1\nn_points: {len(points)}\n{{\n{rows}\n}}\n"


@dataclass(frozen=True, slots=True)
class Timed:
    """The result and time of one model on a picture."""

    model: str
    result: Result
    landmark_ms: float
    """median for the crop of one face; nan without a face"""


def compare(bgr: U8, names: tuple[str, str], settings: Settings, models: Models) -> tuple[Timed, Timed, float]:
    """Runs both models on a picture; also returns how far their points are apart."""
    first, second = (_timed(bgr, replace(settings, model=name), models) for name in names)
    one, other = ([track.points for track in timed.result.tracks] for timed in (first, second))
    return first, second, apart(one, other, WFLW98)


def _timed(bgr: U8, settings: Settings, models: Models) -> Timed:
    result = find(bgr, settings, models)
    if not result.tracks:
        return Timed(settings.model, result, float("nan"))
    landmarker, track = models[settings.model], result.tracks[0]
    card = landmarker.card
    matrix = crop_from_frame(track.points, card, track.face.roll_rad)
    crop = rgb_crops(bgr, [matrix], card.input_hw)
    spent = []
    for _ in range(_TIMED_RUNS):
        began_s = time.perf_counter()
        landmarker(crop)
        spent.append((time.perf_counter() - began_s) * 1e3)
    return Timed(settings.model, result, float(np.median(spent)))


def apart(first: Sequence[Floats], second: Sequence[Floats], schema: Schema) -> float:
    """Mean distance between the points of faces that two models found, in percent of the distance between the outer
    eye corners; nan without such a face. first, second: (K, 2) per face."""
    left, right = schema.eye_corners
    distances = []
    for a in first:
        ocular = float(np.linalg.norm(a[left] - a[right]))
        means = [float(np.linalg.norm(a - b, axis=1).mean()) for b in second]
        # the nearest face is the same one, unless the other model missed it
        if means and ocular > 0 and min(means) < ocular:
            distances.append(100 * min(means) / ocular)
    return float(np.mean(distances)) if distances else float("nan")


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
