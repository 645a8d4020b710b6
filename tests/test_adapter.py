"""The map from mesh to WFLW98 is equivariant to shift and scale, and its file fits the code."""

from __future__ import annotations

import numpy as np
import pytest

from lineament.engines.mesh import load_card
from lineament.landmarks import adapter
from lineament.landmarks.adapter import N_EYE, N_MESH
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, LineamentError


def _mesh(n: int, v: int) -> F32:
    return np.random.default_rng(0).normal(96, 30, (n, v, 2)).astype(np.float32)


@pytest.mark.parametrize("iris", [True, False])
def test_moving_and_scaling_the_mesh_moves_and_scales_the_points(iris: bool) -> None:
    points_of = adapter.load(iris)
    mesh = _mesh(3, N_MESH + 2 * N_EYE * iris)
    shift = np.array([40.0, -7.0], np.float32)
    np.testing.assert_allclose(points_of(mesh * 2.5 + shift), points_of(mesh) * 2.5 + shift, atol=2e-3)


def test_a_face_maps_the_same_alone_and_among_others() -> None:
    points_of = adapter.load(iris=True)
    meshes = _mesh(3, N_MESH + 2 * N_EYE)
    np.testing.assert_allclose(points_of(meshes)[1], points_of(meshes[1:2])[0], atol=1e-3)


def test_no_face_maps_to_no_points() -> None:
    assert adapter.load(iris=False)(_mesh(0, N_MESH)).shape == (0, len(WFLW98), 2)


def test_a_mesh_of_another_size_is_refused_with_both_counts() -> None:
    with pytest.raises(ValueError, match=r"expected 468 mesh points, got 478"):
        adapter.load(iris=False)(_mesh(1, 478))


def test_the_card_belongs_to_the_map() -> None:
    import hashlib

    card = load_card()
    assert card.weights_sha256 == hashlib.sha256(adapter.MAP_PATH.read_bytes()).hexdigest()
    assert card.schema == WFLW98.name and card.head == "mesh" and card.nme


def test_the_mean_face_is_symmetric_and_its_nose_points_at_the_camera() -> None:
    shape = adapter.mean_shape()
    np.testing.assert_allclose(shape[list(WFLW98.flip)] * (-1, 1, 1), shape, atol=1e-6)
    tip = WFLW98.parts["nose_ridge"][-1]
    assert shape[:, 2].argmin() == tip


def test_a_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter.load.cache_clear()
    monkeypatch.setattr(adapter, "MAP_PATH", adapter.MAP_PATH.with_name("gone.npz"))
    with pytest.raises(LineamentError, match=r"gone\.npz"):
        adapter.load(iris=True)
