"""Uses of a folder of labelled faces: crops to calibrate INT8 with, and the accuracy of a landmarker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import SCHEMAS, Schema
from lineament.landmarks.types import F32, U8, Landmarker, LineamentError

if TYPE_CHECKING:
    from lineament.train.evaluate import Scores


def calibration_crops(data: Path, card: ModelCard, n: int, label_shift_px: float = 0.0) -> U8:
    """(n, H, W, 3) RGB, or fewer if there are fewer, spread over the training list and cut with card.crop_scale.

    Not from the test list, on which the result is measured, unless the folder has no other faces.
    """
    from lineament.train.crops import CropConfig, Crops
    from lineament.train.data import read

    schema = SCHEMAS[card.schema]
    try:
        samples = read(data, "train", schema)
    except LineamentError:
        samples = read(data, "test", schema)
    samples = [sample for sample in samples if np.isfinite(sample.points).all()]
    if not samples:
        raise LineamentError(f"{data} has no faces with points to calibrate with; check it with `python -m train.data`")
    step = max(1, len(samples) // n)
    with TemporaryDirectory(prefix="crops-") as cache:
        cfg = CropConfig(scale=card.crop_scale, margin=1.0)
        crops = Crops(samples[::step][:n], card.input_hw, cfg, schema, Path(cache), label_shift_px)
        return np.stack([crops.input_crop(i).rgb for i in range(len(crops))])


def nme_on(data: Path, card: ModelCard, cache: Path, label_shift_px: float = 0.0) -> Callable[[Landmarker], float]:
    """A function that returns the NME, in percent, of a landmarker with such a card on levelled crops of the test list.

    cache: a folder that keeps the crops for the next landmarker.
    """
    scores = scores_on(data, card, level=True, label_shift_px=label_shift_px, cache=cache)
    return lambda landmarker: scores(landmarker).total.nme


def scores_on(
    data: Path, card: ModelCard, *, level: bool, label_shift_px: float = 0.0, cache: Path | None = None
) -> Callable[[Landmarker], Scores]:
    """A function that scores a landmarker with such a card on crops of the test list, levelled or not."""
    from lineament.train.crops import CropConfig
    from lineament.train.data import read
    from lineament.train.evaluate import evaluate

    schema = SCHEMAS[card.schema]
    samples = [sample for sample in read(data, "test", schema) if np.isfinite(sample.points).all()]
    crop = CropConfig(scale=card.crop_scale, level=level)

    def scores(landmarker: Landmarker) -> Scores:
        return evaluate(
            samples,
            lambda rgb: landmarker(rgb).points_unit,
            card.input_hw,
            crop,
            schema,
            label_shift_px=label_shift_px,
            cache=cache,
        )

    return scores


def test_faces(data: Path, schema: Schema, label_shift_px: float = 0.0) -> Iterator[tuple[U8, F32, frozenset[str]]]:
    """Each labelled face of the test list: image (H, W, 3) BGR, points (K, 2) px less the shift, attributes."""
    from lineament.train.data import read, shifted

    for sample in shifted(read(data, "test", schema), label_shift_px):
        if np.isfinite(sample.points).all():
            yield sample.bgr(), sample.points, sample.attributes


def nme(points: F32, truth: F32, schema: Schema) -> float:
    """Of one face, in percent; (K, 2) each."""
    from lineament.train import metrics

    return float(metrics.point_errors(points[None], truth[None], schema).mean())
