"""Distance of two models' points, in px of a 256-px crop: the unit in which engines are compared."""

from __future__ import annotations

import numpy as np

from lineament.landmarks.types import F32, F64


def distances_px(a_NK2: F32, b_NK2: F32) -> F64:
    """(N, K) px of a 256-px crop, from unit coordinates; nan where either is."""
    return np.asarray(np.linalg.norm(np.asarray(a_NK2 - b_NK2, np.float64), axis=-1) * 256)
