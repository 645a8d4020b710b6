"""The linear map from MediaPipe's mesh to WFLW98, and the mean 3-D face. numpy only.

The mesh is normalised by its own mean and RMS radius, mapped and denormalised, so the position and size of a face in
its crop do not matter. `python -m engines.mesh_fit` fits both and writes the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lineament.landmarks.types import F32, F64, LineamentError

MAP_PATH = Path(__file__).resolve().with_name("mesh-wflw98.npz")
"""both maps, with and without the iris model's points, and the mean face"""

N_MESH = 468
"""points of the face mesh, the first of a row of features"""
N_EYE = 76
"""points of one eye from the iris model: 71 of lids and brow, then pupil and 4 of the iris; left eye first"""


@dataclass(frozen=True, slots=True)
class Adapter:
    """points = offset + weights @ features, both normalised by the mesh."""

    weights: F32
    """(2 K, 2 V); V is N_MESH, or N_MESH + 2 N_EYE"""
    offset: F32
    """(2 K,)"""

    def __call__(self, features: F32) -> F32:
        """features: (N, V, 2) -> (N, K, 2), same space and unit. All nan if the mesh is one point or not finite."""
        n, v, _ = features.shape
        if 2 * v != self.weights.shape[1]:
            raise ValueError(f"expected {self.weights.shape[1] // 2} mesh points, got {v}")
        with np.errstate(all="ignore"):
            center, scale = frame_of_mesh(features)
            normalised = ((features - center) / scale).reshape(n, 2 * v)
            points = normalised @ self.weights.T + self.offset
            return np.asarray(points.reshape(n, len(self.offset) // 2, 2) * scale + center, np.float32)


def frame_of_mesh(features: F32) -> tuple[F32, F32]:
    """features: (N, V, 2) -> centre (N, 1, 2) and RMS radius (N, 1, 1) of their face mesh."""
    mesh = features[:, :N_MESH]
    center = np.asarray(np.add.reduce(mesh, 1, keepdims=True) / N_MESH, np.float32)
    away = mesh - center
    scale = np.sqrt(np.einsum("nvc,nvc->n", away, away) / np.float32(N_MESH))[:, None, None]
    return center, scale


@cache
def load(iris: bool) -> Adapter:
    """The shipped map, for features with or without the iris model's points."""
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
            f"no WFLW98 mesh map at {MAP_PATH}; restore it with `git checkout {MAP_PATH.name}`, or reinstall lineament"
        )
    arrays: np.lib.npyio.NpzFile = np.load(MAP_PATH)
    return arrays
