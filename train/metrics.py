"""Errors of points: NME, FR, AUC. numpy only.

NME is in percent of the distance of the eyes' outer corners, as the WFLW protocol has it.
"""

from __future__ import annotations

import numpy as np

from lineament.landmarks.schema import WFLW98, Schema
from lineament.landmarks.types import F64, Floats


def point_errors(predicted: Floats, truth: Floats, schema: Schema = WFLW98, least_ocular: float = 0.0) -> F64:
    """(N, K, 2), (N, K, 2) -> (N, K) percent of each face's inter-ocular distance. Raises ValueError on a mismatch.

    least_ocular: share of a face's extent that the distance counts as at the least. The protocol knows none, but in a
    profile that was labelled by a model the corners may coincide, and that face alone would then make the mean.
    """
    if predicted.shape != truth.shape or predicted.shape[1:] != (len(schema), 2):
        raise ValueError(f"expected two arrays (N, {len(schema)}, 2), got {predicted.shape} and {truth.shape}")
    left, right = schema.eye_corners
    ocular = np.linalg.norm(truth[:, left] - truth[:, right], axis=-1)
    ocular = np.maximum(ocular, least_ocular * np.ptp(truth, axis=1).max(-1))
    if not (ocular > 0).all():
        raise ValueError(f"face {int(np.argmin(ocular))} has coincident eye corners, which the NME divides by")
    return np.asarray(np.linalg.norm(predicted - truth, axis=-1) / ocular[:, None] * 100, np.float64)


def nme(predicted: Floats, truth: Floats, schema: Schema = WFLW98, least_ocular: float = 0.0) -> F64:
    """(N,) percent per face; the mean is the NME of a set. least_ocular: see point_errors."""
    return np.asarray(point_errors(predicted, truth, schema, least_ocular).mean(1))


def failure_rate(nme_N: Floats, limit: float = 10.0) -> float:
    """Percent of faces whose NME is above limit percent: FR@10."""
    return float((nme_N > limit).mean() * 100)


def auc(nme_N: Floats, limit: float = 10.0) -> float:
    """Area under the curve of cumulative errors up to limit percent, 0..1: AUC@10. Exact, not binned."""
    return float(np.clip(1 - nme_N / limit, 0, 1).mean())
