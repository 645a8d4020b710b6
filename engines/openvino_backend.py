"""An ONNX landmark model on the CPU by OpenVINO: the default. Imported only where it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.engine_file import CONFIDENCE, POINTS, REMAKE, FileLandmarker, Port, check_graph, landmarks_of, read_card
from landmarks.types import F32, U8, Landmarks, LineamentError

Precision = Literal["f32", "bf16"]


class OpenVinoLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker. Reads and compiles in the constructor, so that a bad file is found before a stream.

    Faces run one after the other, in a graph compiled for one. On two cores that costs no more than batches do, and a
    frame with more faces than any before never waits for a graph of its size. Medians in ms, 2-core AMD EPYC,
    OpenVINO 2026.4.1, f32, by number of faces: fixed batch / dynamic batch / one by one.

        PFLD at 112 px          1: 1.44 / 1.56 / 1.47    2: 2.61 / 2.93 / 2.71 (p10: 2.37 / 2.61 / 2.71)
        small CNN at 256 px     1: 4.72 / 4.88 / 4.91    2: 10.2 / 10.1 / 10.4    8: 29.3 / 28.7 / 30.1
    """

    def __init__(self, path: Path, precision: Precision = "f32") -> None:
        """precision: f32 gives the same points on every processor; bf16 is faster on those that have it, less exact."""
        import openvino as ov

        if precision not in ("f32", "bf16"):
            raise ValueError(f"precision is {precision!r}, wanted f32 or bf16")
        super().__init__(path, read_card(path))
        core = ov.Core()
        try:
            model = core.read_model(path)
            # before the batch becomes 1, so that a message tells of the file as it is
            check_graph(path, self._card, _ports(model.inputs), _ports(model.outputs))
            height, width = self._card.input_hw
            model.reshape([1, height, width, 3])
            config = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": True}
            compiled = core.compile_model(model, "CPU", {**config, "INFERENCE_PRECISION_HINT": precision})
        except RuntimeError as error:
            reason = " ".join(str(error).split())[-300:]
            raise LineamentError(f"OpenVINO cannot run {path}: {reason}; {REMAKE}") from error
        self._request: Any = compiled.create_infer_request()
        self._input_NHWC: U8 = self._request.get_input_tensor().data
        self._points: F32 = self._request.get_tensor(POINTS).data
        judges = any(CONFIDENCE in output.get_names() for output in compiled.outputs)
        self._confidence: F32 | None = self._request.get_tensor(CONFIDENCE).data if judges else None

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        points = np.empty((len(rgb_NHWC), *self._points.shape[1:]), np.float32)
        confidence = None if self._confidence is None else np.empty(len(rgb_NHWC), np.float32)
        for i, rgb in enumerate(rgb_NHWC):
            self._input_NHWC[0] = rgb
            self._request.infer()
            points[i] = self._points[0]
            if confidence is not None and self._confidence is not None:
                confidence[i] = self._confidence[0]
        return landmarks_of(points, confidence)

    def _release(self) -> None:
        # the arrays point into the request's memory
        del self._input_NHWC, self._points, self._confidence, self._request


def _ports(ports: list[Any]) -> list[Port]:
    return [
        Port(
            # a port without a name cannot be asked for by one
            min(port.get_names(), default=""),
            tuple(None if size.is_dynamic else size.get_length() for size in port.get_partial_shape()),
            str(np.dtype(port.get_element_type().to_dtype())),
        )
        for port in ports
    ]
