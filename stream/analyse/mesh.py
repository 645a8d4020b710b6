"""Mesh: adds the 468 points of MediaPipe's face mesh to the faces of each frame, whichever model found them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lineament.engines.mesh import MeshModels, load_card
from lineament.landmarks.geometry import apply, crop_from_frame, invert, mirrored, rgb_crops
from lineament.landmarks.schema import MESH468
from lineament.landmarks.types import F32, Frame, Result
from lineament.stream.analyse.smooth import Smoother


class Mesh:
    """A tracker whose tracks have a mesh. Raises LineamentError if the model files are not installed.

    smooth: as the tracker's points. still: every frame stands alone; the points of each crop are averaged with those of
    its mirror image.
    """

    def __init__(self, analyse: Callable[[Frame], Result], *, smooth: bool, still: bool) -> None:
        self._analyse, self._smooth, self._still = analyse, smooth and not still, still
        self._models, self._card = MeshModels(iris=False), load_card()
        self._smoothers: dict[int, Smoother] = {}
        """by id, of the faces in the last frame"""

    def __call__(self, frame: Frame) -> Result:
        result = self._analyse(frame)
        if not result.tracks:
            self._smoothers = {}
            return result
        began = time.perf_counter()
        ids = [track.id for track in result.tracks]
        meshes = dict(zip(ids, self._meshes(result)))
        if self._smooth:
            self._smoothers = {i: self._smoothers.get(i) or Smoother(MESH468) for i in ids}
            meshes = {i: smoother(meshes[i], frame.time_s) for i, smoother in self._smoothers.items()}
        tracks = tuple(replace(track, mesh=meshes[track.id]) for track in result.tracks)
        return replace(result, tracks=tracks, ms={**result.ms, "mesh": (time.perf_counter() - began) * 1e3})

    def _meshes(self, result: Result) -> list[F32]:
        """(468, 2) frame px for each track."""
        bgr, hw = result.frame.bgr, self._card.input_hw
        matrices = [crop_from_frame(track.points, self._card, track.face.roll_rad) for track in result.tracks]
        n = len(matrices)
        if self._still:
            matrices += [mirrored(matrix, hw) for matrix in matrices]
        seen = self._models(rgb_crops(bgr, matrices, hw)).features
        meshes = [apply(invert(matrix), points) for matrix, points in zip(matrices, seen)]
        flip = list(MESH468.flip)
        twins = [twin[flip] for twin in meshes[n:]] if self._still else meshes
        return [np.asarray((mesh + twin) / 2, np.float32) for mesh, twin in zip(meshes[:n], twins)]
