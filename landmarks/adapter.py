"""The fitted linear map from MediaPipe's mesh to WFLW98, and where it is stored. numpy only.

The mesh is centred and scaled by its own mean and spread, mapped, and put back, so where a face lies in its crop and
how large it is there does not matter. `python -m engines.mesh_fit` makes the file; its card says how and how well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lineament.landmarks.types import F32, F64, LineamentError

WEIGHTS = Path(__file__).resolve().parent.parent / "engines" / "weights"
CARD_PATH = WEIGHTS / "mesh-wflw98.json"
MAP_PATH = WEIGHTS / "mesh-wflw98.npz"

N_MESH = 468
"""points of the face mesh; a row of features begins with them"""
N_EYE = 76
"""points of one eye by the iris model: 71 of lids and brow, then pupil and 4 of the iris; left eye first"""


@dataclass(frozen=True, slots=True)
class Adapter:
    """points = offset + weights @ features, both centred and scaled by the mesh."""

    weights: F32
    """(2 K, 2 V); V is N_MESH, or N_MESH + 2 N_EYE"""
    offset: F32
    """(2 K,)"""

    def __call__(self, features: F32) -> F32:
        """features: (N, V, 2) -> (N, K, 2), same space and unit. All nan where the mesh is one point or not finite."""
        n, v, _ = features.shape
        if 2 * v != self.weights.shape[1]:
            raise ValueError(f"the map takes {self.weights.shape[1] // 2} mesh points, got {v}")
        with np.errstate(all="ignore"):
            center, scale = frame_of_mesh(features)
            level = ((features - center) / scale).reshape(n, 2 * v)
            points = level @ self.weights.T + self.offset
            return np.asarray(points.reshape(n, len(self.offset) // 2, 2) * scale + center, np.float32)


def frame_of_mesh(features: F32) -> tuple[F32, F32]:
    """features: (N, V, 2) -> centre (N, 1, 2) and RMS radius (N, 1, 1) of the face mesh among them."""
    mesh = features[:, :N_MESH]
    center = np.asarray(np.add.reduce(mesh, 1, keepdims=True) / N_MESH, np.float32)
    away = mesh - center
    scale = np.sqrt(np.einsum("nvc,nvc->n", away, away) / np.float32(N_MESH))[:, None, None]
    return center, scale


@cache
def load(iris: bool) -> Adapter:
    """The shipped map, with or without the iris model's points among its features."""
    name = "iris" if iris else "mesh"
    with _open() as arrays:
        return Adapter(arrays[f"{name}_weights"].astype(np.float32), arrays[f"{name}_offset"].astype(np.float32))


@cache
def mean_shape() -> F64:
    """(98, 3) the mean face, x right, y down, z away from the camera; its RMS radius is about 1."""
    with _open() as arrays:
        return np.asarray(arrays["shape"], np.float64)


def _open() -> np.lib.npyio.NpzFile:
    if not MAP_PATH.is_file():
        raise LineamentError(
            f"the mesh's map to WFLW98 is missing at {MAP_PATH}; restore it with `git checkout {MAP_PATH.name}`"
        )
    arrays: np.lib.npyio.NpzFile = np.load(MAP_PATH)
    return arrays
