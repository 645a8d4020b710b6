"""The mesh landmarker: the mesh and iris models of the mediapipe package, run by OpenVINO on our crops.

    with MeshLandmarker() as landmarker:
        points_unit, confidence, _ = landmarker(rgb_NHWC)

MediaPipe itself is never imported: only its two .tflite files are read. The face mesh locates the eyes, the iris model
refines the lids and pupil of each, and a fitted linear map (landmarks.adapter) maps both to WFLW98.
"""

from __future__ import annotations

import importlib.util
import threading
from math import atan2
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from lineament.landmarks import adapter
from lineament.landmarks.adapter import N_EYE, N_MESH
from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import apply, crop_from_frame, crop_from_unit, invert, mirrored, warp
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, Landmarks, LineamentError

CARD_PATH = Path(__file__).resolve().parent / "weights" / "mesh-wflw98.json"
INPUT_HW = (192, 192)
"""input size of the mesh model"""
CROP_SCALE = 1.65
"""best of 1.4 .. 2.0 in cross-validation; see weights/mesh-wflw98.md"""

_FACE_FILE, _IRIS_FILE = "face_landmark/face_landmark.tflite", "iris_landmark/iris_landmark.tflite"
"""in the `modules` folder of mediapipe"""
_EYE_CARD = ModelCard("iris", "eye", (64, 64), 2.3)
"""MediaPipe's own crop: 2.3 times the distance of an eye's corners"""
_EYE_CORNERS = ((33, 133), (362, 263))
"""mesh points: outer and inner corner of the left eye, inner and outer corner of the right"""


class Mesh(NamedTuple):
    """Output of the two models for N crops, before the map to WFLW98."""

    features: F32
    """(N, V, 2) crop px: the face mesh, followed by each eye's points if the iris model ran"""
    depth: F32
    """(N, 468) of the face mesh, in crop px, growing away from the camera"""
    confidence: F32
    """(N,) 0..1 that a face is there"""


class MeshModels:
    """The two compiled graphs. Not thread-safe: each graph has one set of buffers."""

    def __init__(self, iris: bool) -> None:
        self._mesh = _Graph(_FACE_FILE, batch=1)
        # both eyes in one batch cost less than one after the other; batching faces gains nothing
        self._eyes = _Graph(_IRIS_FILE, batch=len(_EYE_CORNERS)) if iris else None

    def __call__(self, rgb_NHWC: U8) -> Mesh:
        """rgb_NHWC: (N, 192, 192, 3)."""
        n, n_eyes = len(rgb_NHWC), len(_EYE_CORNERS) if self._eyes else 0
        features = np.empty((n, N_MESH + n_eyes * N_EYE, 2), np.float32)
        depth, confidence = np.empty((n, N_MESH), np.float32), np.empty(n, np.float32)
        for i, rgb in enumerate(rgb_NHWC):
            self._mesh.input_NHWC[0] = rgb
            mesh, presence = self._mesh.infer()
            points = mesh.reshape(N_MESH, 3)
            features[i, :N_MESH], depth[i] = points[:, :2], points[:, 2]
            confidence[i] = 1 / (1 + np.exp(-presence.item()))
            if self._eyes:
                features[i, N_MESH:] = self._look_at_eyes(self._eyes, rgb, points[:, :2])
        return Mesh(features, depth, confidence)

    def _look_at_eyes(self, graph: _Graph, rgb: U8, mesh: F32) -> F32:
        """rgb: (192, 192, 3), mesh: (468, 2) crop px -> (2 N_EYE, 2) crop px, the left eye's points first."""
        matrices = []
        for side, corners in enumerate(_EYE_CORNERS):
            outer, inner = mesh[corners[0]], mesh[corners[1]]
            eye_from_crop = crop_from_frame(np.stack([outer, inner]), _EYE_CARD, atan2(*(inner - outer)[::-1]))
            # the iris model knows left eyes only, so the right one is mirrored, and its points mirrored back
            matrices.append(mirrored(eye_from_crop, _EYE_CARD.input_hw) if side == 1 else eye_from_crop)
            graph.input_NHWC[side] = warp(rgb, matrices[-1], _EYE_CARD.input_hw)
        lids, iris = graph.infer()
        eyes = np.concatenate([lids.reshape(2, -1, 3), iris.reshape(2, -1, 3)], axis=1)[..., :2]
        return np.concatenate([apply(invert(matrix), eye) for matrix, eye in zip(matrices, eyes)])


class MeshLandmarker:
    """The mesh as a landmarks.types.Landmarker. Thread-safe; calls run one at a time."""

    def __init__(self, iris: bool = True) -> None:
        """iris: refine each eye with the iris model. Without it a face costs less than half, pupils are rough."""
        self._adapter = adapter.load(iris)
        self._card = load_card()
        self._models: MeshModels | None = MeshModels(iris)
        self._lock = threading.Lock()

    @property
    def card(self) -> ModelCard:
        return self._card

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        """rgb_NHWC: (N, 192, 192, 3) uint8 -> points (N, 98, 2) and confidence (N,)."""
        height, width = self._card.input_hw
        wanted = (len(rgb_NHWC) if rgb_NHWC.ndim else 0, height, width, 3)
        if rgb_NHWC.dtype != np.uint8 or rgb_NHWC.shape != wanted:
            raise ValueError(
                f"the mesh model takes crops (N, {height}, {width}, 3) uint8 RGB, "
                f"got {rgb_NHWC.shape} {rgb_NHWC.dtype}; cut them with landmarks.geometry.warp and the model's card"
            )
        with self._lock:
            if self._models is None:
                raise LineamentError("the mesh landmarker is closed; make a new one with engines.load('mesh')")
            mesh = self._models(rgb_NHWC)
        unit_from_crop = invert(crop_from_unit(self._card.input_hw))
        return Landmarks(apply(unit_from_crop, self._adapter(mesh.features)), mesh.confidence)

    def close(self) -> None:
        """Frees the graphs. May be called twice."""
        with self._lock:
            self._models = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_installed() -> None:
    """Raises LineamentError, with how to install them, if the mesh models are absent."""
    for path in (_FACE_FILE, _IRIS_FILE):
        _file(path)


def load_card() -> ModelCard:
    """The card of the fitted map. Raises LineamentError if it does not match this code."""
    card = ModelCard.from_json(CARD_PATH.read_text())
    if (card.schema, card.input_hw) != (WFLW98.name, INPUT_HW):
        raise LineamentError(
            f"{CARD_PATH.name} has {card.schema} at {card.input_hw}, expected {WFLW98.name} at {INPUT_HW}; "
            "fit it again with `python -m engines.mesh_fit`"
        )
    return card


def _file(path: str) -> Path:
    """A model file inside the mediapipe package, found without importing it."""
    spec = importlib.util.find_spec("mediapipe")
    if spec is None or spec.origin is None:
        raise LineamentError(
            "the mesh models are files in the package mediapipe, which is not installed; run `pip install --no-deps "
            "mediapipe==0.10.21` (Python 3.11 or 3.12) or, in a checkout, `make stream MODEL=mesh` (any Python)"
        )
    file = Path(spec.origin).parent / "modules" / path
    if not file.is_file():
        raise LineamentError(
            f"mediapipe has no {path} in {file.parents[1]}; 0.10.21 is the last version with it: "
            "run `pip install --no-deps mediapipe==0.10.21`"
        )
    return file


class _Graph:
    """A .tflite of the mediapipe package, compiled for batches of `batch` uint8 RGB images, with one request."""

    def __init__(self, path: str, batch: int) -> None:
        import openvino as ov
        from openvino.preprocess import PrePostProcessor

        core = ov.Core()
        model = core.read_model(_file(path))
        model.reshape([batch, *model.input().shape[1:]])
        steps = PrePostProcessor(model)
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NHWC"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        # float32 everywhere, so that points are the same on processors with and without bfloat16
        config = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": True, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(steps.build(), "CPU", config)
        self._request: Any = compiled.create_infer_request()
        self.input_NHWC: U8 = self._request.get_input_tensor().data
        """write the images here, then infer"""
        self._outputs: list[F32] = [self._request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    def infer(self) -> list[F32]:
        """The graph's output buffers; the next call overwrites them."""
        self._request.infer()
        return self._outputs
