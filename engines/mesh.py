"""The embedded landmarker: the mesh and iris models inside the mediapipe package, run by OpenVINO on our crops.

    with MeshLandmarker() as landmarker:
        points_unit, confidence = landmarker(rgb_NHWC)

MediaPipe itself is never imported: only its two .tflite files are read. The face mesh says where the eyes are; the iris
model looks at each eye and gives lids and pupil; a fitted linear map (landmarks.adapter) turns both into WFLW98.
"""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from landmarks import adapter
from landmarks.adapter import N_EYE, N_MESH
from landmarks.card import ModelCard
from landmarks.geometry import apply, compose, crop_from_frame, invert, warp
from landmarks.schema import WFLW98
from landmarks.types import F32, F64, U8, Landmarks, LineamentError

INPUT_HW = (192, 192)
"""what the mesh model was trained on"""
CROP_SCALE = 1.65
"""best of 1.4 .. 2.0 by cross-validation; see the card"""

_EYE_CARD = ModelCard("iris", "eye", (64, 64), 2.3)
"""MediaPipe's own crop: 2.3 times the distance of an eye's corners"""
_EYE_CORNERS = ((33, 133), (362, 263))
"""mesh points: outer and inner corner of the left eye, inner and outer corner of the right"""
_MIRROR = np.array([[-1.0, 0.0, _EYE_CARD.input_hw[1] - 1.0], [0.0, 1.0, 0.0]])
"""the iris model knows left eyes only: the right one is mirrored before it and mirrored back"""


class Mesh(NamedTuple):
    """What the two models see in N crops, before the map to WFLW98."""

    features: F32
    """(N, V, 2) crop px: the face mesh, then each eye's points if the iris model ran"""
    depth: F32
    """(N, 468) of the face mesh, in the scale of crop px, away from the camera"""
    confidence: F32
    """(N,) 0..1 that a face is there"""


class MeshModels:
    """The two compiled graphs. Not for several threads at once: each graph has one set of buffers."""

    def __init__(self, iris: bool) -> None:
        self._mesh = _Graph("face_landmark/face_landmark.tflite")
        # one request an eye, side by side: batches of these small graphs are no faster than their parts
        self._eyes = [_Graph("iris_landmark/iris_landmark.tflite") for _ in _EYE_CORNERS] if iris else []

    def __call__(self, rgb_NHWC: U8) -> Mesh:
        """rgb_NHWC: (N, 192, 192, 3)."""
        n = len(rgb_NHWC)
        features = np.empty((n, N_MESH + len(self._eyes) * N_EYE, 2), np.float32)
        depth, confidence = np.empty((n, N_MESH), np.float32), np.empty(n, np.float32)
        for i, rgb in enumerate(rgb_NHWC):
            self._mesh.start(rgb)
            mesh, presence = self._mesh.wait()
            points = mesh.reshape(N_MESH, 3)
            features[i, :N_MESH], depth[i] = points[:, :2], points[:, 2]
            confidence[i] = 1 / (1 + np.exp(-presence.item()))
            crops = [self._look(rgb, points[:, :2], side) for side in range(len(self._eyes))]
            for side, eye_from_crop in enumerate(crops):
                lids, iris = self._eyes[side].wait()
                points_eye = np.concatenate([lids.reshape(-1, 3), iris.reshape(-1, 3)])[:, :2]
                first = N_MESH + side * N_EYE
                features[i, first : first + N_EYE] = apply(invert(eye_from_crop), points_eye)
        return Mesh(features, depth, confidence)

    def _look(self, rgb: U8, mesh: F32, side: int) -> F64:
        """Starts the iris model on one eye and returns the matrix of its crop."""
        corners = mesh[list(_EYE_CORNERS[side])]
        along = corners[1] - corners[0]
        eye_from_crop = crop_from_frame(corners, _EYE_CARD, float(np.arctan2(along[1], along[0])))
        if side == 1:
            eye_from_crop = compose(_MIRROR, eye_from_crop)
        self._eyes[side].start(warp(rgb, eye_from_crop, _EYE_CARD.input_hw))
        return eye_from_crop


class MeshLandmarker:
    """The default landmarks.types.Landmarker. It may be called from several threads; calls take turns."""

    def __init__(self, iris: bool = True) -> None:
        """iris: look at each eye a second time. Without it a face costs less than half and pupils are guessed."""
        self._adapter = adapter.load(iris)
        self._card = load_card()
        self._models: MeshModels | None = MeshModels(iris)
        self._turn = threading.Lock()

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
                f"got {rgb_NHWC.shape} {rgb_NHWC.dtype}; cut them with landmarks.geometry.warp and its card"
            )
        with self._turn:
            if self._models is None:
                raise LineamentError("the mesh landmarker is closed; make a new one with engines.load('mesh')")
            mesh = self._models(rgb_NHWC)
        points_crop = self._adapter(mesh.features)
        return Landmarks(np.asarray((points_crop + 0.5) / (width, height), np.float32), mesh.confidence)

    def close(self) -> None:
        """Frees the graphs. May be called twice."""
        with self._turn:
            self._models = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def load_card() -> ModelCard:
    """The card beside the fitted map; one that no longer fits this code is refused."""
    card = ModelCard.from_json(adapter.CARD_PATH.read_text())
    if (card.schema, card.input_hw) != (WFLW98.name, INPUT_HW):
        raise LineamentError(
            f"{adapter.CARD_PATH.name} says {card.schema} at {card.input_hw}, expected {WFLW98.name} at {INPUT_HW}; "
            "fit it again with `python -m engines.mesh_fit`"
        )
    return card


class _Graph:
    """One .tflite of the mediapipe package, compiled for single uint8 RGB pictures, with one request."""

    def __init__(self, path: str) -> None:
        import openvino as ov
        from openvino.preprocess import PrePostProcessor

        spec = importlib.util.find_spec("mediapipe")
        if spec is None or spec.origin is None:
            raise LineamentError(
                "the mesh model ships inside the package mediapipe, which is not installed; run `make setup`"
            )
        file = Path(spec.origin).parent / "modules" / path
        if not file.is_file():
            raise LineamentError(f"mediapipe has no {path} in {file.parent}; install the version in requirements.txt")
        core = ov.Core()
        steps = PrePostProcessor(core.read_model(file))
        steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
        steps.input().model().set_layout(ov.Layout("NHWC"))
        steps.input().preprocess().convert_element_type(ov.Type.f32).scale(255.0)
        compiled = core.compile_model(steps.build(), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        self._request: Any = compiled.create_infer_request()
        self._input: U8 = self._request.get_input_tensor().data
        self._outputs: list[F32] = [self._request.get_output_tensor(i).data for i in range(len(compiled.outputs))]

    def start(self, rgb: U8) -> None:
        self._input[0] = rgb
        self._request.start_async()

    def wait(self) -> list[F32]:
        """The graph's own buffers: read them before the next start."""
        self._request.wait()
        return self._outputs
