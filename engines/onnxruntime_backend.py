"""Runs an ONNX landmark model in ONNX Runtime: on the CPU if OpenVINO is absent, on NVIDIA GPUs, and as a baseline."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lineament.engines.model_file import (
    OUTPUTS,
    REMAKE,
    FileLandmarker,
    Port,
    check_graph,
    landmarks_of,
    read_card,
)
from lineament.landmarks.types import U8, Landmarks, LineamentError

Device = Literal["cpu", "cuda", "tensorrt"]
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "tensor(float16)": "float16"}
_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class OnnxRuntimeLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker. Runs all faces in one batch; one by one if the graph has batch size 1, and at most
    16 at once on tensorrt."""

    def __init__(self, path: Path, device: Device, threads: int | None, cache: Path) -> None:
        """device: cuda and tensorrt are providers of the package onnxruntime-gpu; both raise if they cannot run.

        threads: on the CPU; None uses all cores. cache: a folder for the engine that tensorrt builds, in half
        precision, when it opens a model for the first time, which takes minutes.
        """
        import onnxruntime

        super().__init__(path, read_card(path))
        if (provider := _PROVIDERS[device]) not in (present := onnxruntime.get_available_providers()):
            raise LineamentError(
                f"{path} cannot run on {device}: this ONNX Runtime {onnxruntime.__version__} has {', '.join(present)}, "
                f"not {provider}; `pip uninstall onnxruntime`, then `pip install 'onnxruntime-gpu[cuda,cudnn]'`"
            )
        if device != "cpu":
            _load_libraries(onnxruntime, device)
        options = onnxruntime.SessionOptions()
        # otherwise its threads spin after a call and keep cores from the next stage
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        graph: Path | bytes = path
        providers: list[Any] = [provider]
        self._most, self._next = sys.maxsize, REMAKE
        if device == "tensorrt":
            from lineament.engines.onnxruntime_tensorrt import MOST, for_tensorrt, needs

            graph, settings = for_tensorrt(path, self._card, cache, onnxruntime.__version__)
            # CUDA runs what TensorRT does not support
            providers = [(provider, settings), _PROVIDERS["cuda"]]
            self._most = MOST
            self._next = f"{needs(onnxruntime)}; engines kept in {cache} may be deleted"
        try:
            # otherwise it falls back to another provider, and prints why to stdout, which is for results
            self._session: Any = onnxruntime.InferenceSession(graph, options, providers=providers, enable_fallback=0)
        except Exception as error:  # its exceptions have no other common base
            raise self._failed(error) from error
        if provider not in (used := self._session.get_providers()):
            # a provider that fails to load is skipped silently
            raise LineamentError(
                f"{path} cannot run on {device}: ONNX Runtime {onnxruntime.__version__} could not start {provider} and "
                f"used {', '.join(used)}; install the driver, CUDA and cuDNN that this release of ONNX Runtime names"
                f"{f'; {self._next}' * (device == 'tensorrt')}"
            )
        inputs, outputs = _ports(self._session.get_inputs()), _ports(self._session.get_outputs())
        check_graph(path, self._card, inputs, outputs)
        self._input = inputs[0].name
        if inputs[0].shape[0] == 1:
            self._most = 1
        self._outputs = [name for name in OUTPUTS if any(output.name == name for output in outputs)]

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        batches = [rgb_NHWC[i : i + self._most] for i in range(0, len(rgb_NHWC), self._most)]
        try:
            found = [self._session.run(self._outputs, {self._input: batch}) for batch in batches]
        except Exception as error:  # corrupt weights, or out of memory
            raise self._failed(error) from error
        return landmarks_of({name: np.concatenate(parts) for name, parts in zip(self._outputs, zip(*found))})

    def _failed(self, error: Exception) -> LineamentError:
        reason = " ".join(str(error).split())[-300:]
        return LineamentError(f"ONNX Runtime cannot run {self._path}: {reason}; {self._next}")

    def _release(self) -> None:
        del self._session


def _load_libraries(onnxruntime: Any, device: Device) -> None:
    """Loads CUDA, cuDNN and TensorRT from pip packages, which the system's linker does not search.

    A library that is not there may be on the linker's path; the session fails if it is not.
    """
    if device == "tensorrt":
        with suppress(ImportError, OSError, RuntimeError):
            importlib.import_module("tensorrt")
    if preload := getattr(onnxruntime, "preload_dlls", None):  # since 1.21
        # it prints missing libraries, and stdout is for results
        with redirect_stdout(sys.stderr):
            preload()


def _ports(ports: list[Any]) -> list[Port]:
    return [
        Port(
            port.name,
            # a dynamic size is a name or None
            tuple(size if isinstance(size, int) else None for size in port.shape),
            _DTYPES.get(port.type, port.type),
        )
        for port in ports
    ]
