"""An ONNX landmark model on the CPU by ONNX Runtime: where OpenVINO is absent, and to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.engine_file import CONFIDENCE, POINTS, REMAKE, FileLandmarker, Port, check_graph, landmarks_of, read_card
from landmarks.types import U8, Landmarks, LineamentError

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxRuntimeLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker. A graph whose batch is free runs all faces at once, one of batch 1 each in turn."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        super().__init__(path, read_card(path))
        try:
            self._session: Any = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no other base
            reason = " ".join(str(error).split())[-300:]
            raise LineamentError(f"ONNX Runtime cannot run {path}: {reason}; {REMAKE}") from error
        inputs, outputs = _ports(self._session.get_inputs()), _ports(self._session.get_outputs())
        check_graph(path, self._card, inputs, outputs)
        self._input = inputs[0].name
        self._one_by_one = inputs[0].shape[0] == 1
        self._outputs = [name for name in (POINTS, CONFIDENCE) if any(output.name == name for output in outputs)]

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        batches = [rgb_NHWC[i : i + 1] for i in range(len(rgb_NHWC))] if self._one_by_one else [rgb_NHWC]
        found = [self._session.run(self._outputs, {self._input: batch}) for batch in batches]
        arrays = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        return landmarks_of(arrays[0], arrays[1] if len(arrays) > 1 else None)

    def _release(self) -> None:
        del self._session


def _ports(ports: list[Any]) -> list[Port]:
    return [
        Port(
            port.name,
            # a free size has a name, or none at all
            tuple(size if isinstance(size, int) else None for size in port.shape),
            _DTYPES.get(port.type, port.type),
        )
        for port in ports
    ]
