"""Landmark models made ready to run: the embedded mesh, model files, and the way to ask for one."""

from __future__ import annotations

import logging
from pathlib import Path

from landmarks.types import Landmarker, LineamentError

log = logging.getLogger(__name__)

MODELS = {
    "mesh": "the face mesh and iris models inside the mediapipe package, mapped to the 98 points",
    "mesh-fast": "the same without the iris model: half the time, pupils and lids less exact",
}


def load(model: str, device: str = "auto") -> Landmarker:
    """The landmarker called `model`: one of MODELS, or the path of an .onnx file that holds a model card.

    device: auto or cpu, which take the fastest runtime there is and say so if it is not the usual one; or the name of
    a runtime, openvino or onnxruntime. Raises LineamentError for a model or device that cannot be had.
    """
    if model in MODELS:
        if device not in ("auto", "cpu", "openvino"):
            raise LineamentError(
                f"the mesh model runs on the CPU by OpenVINO, device was {device!r}; ask for 'cpu' or 'auto'"
            )
        from engines.mesh import MeshLandmarker

        return MeshLandmarker(iris=model == "mesh")
    path = Path(model).expanduser()
    match path.suffix.lower():
        case ".onnx":
            return _load_onnx(path, device)
        case "":
            raise LineamentError(
                f"no model is called {model!r}; choose one of {', '.join(MODELS)}, or give the path of an .onnx file"
            )
        case suffix:
            raise LineamentError(
                f"{model} ends in {suffix}, which is no kind of model file; "
                f"choose one of {', '.join(MODELS)}, or give the path of an .onnx file"
            )


def _load_onnx(path: Path, device: str) -> Landmarker:
    match device:
        case "auto" | "cpu":
            if reason := _not_usable("openvino"):
                log.warning("%s runs by ONNX Runtime, for OpenVINO cannot be imported (%s)", path.name, reason)
                return _onnxruntime(path)
            return _openvino(path)
        case "openvino":
            return _openvino(path)
        case "onnxruntime":
            return _onnxruntime(path)
        case _:
            raise LineamentError(
                f"{path.name} cannot run on device {device!r}; choose one of auto, cpu, openvino, onnxruntime"
            )


def _openvino(path: Path) -> Landmarker:
    if reason := _not_usable("openvino"):
        raise LineamentError(f"OpenVINO cannot be imported ({reason}); run `pip install -r requirements.txt`")
    from engines.openvino_backend import OpenVinoLandmarker

    return OpenVinoLandmarker(path)


def _onnxruntime(path: Path) -> Landmarker:
    if reason := _not_usable("onnxruntime"):
        raise LineamentError(f"ONNX Runtime cannot be imported ({reason}); run `pip install onnxruntime`")
    from engines.onnxruntime_backend import OnnxRuntimeLandmarker

    return OnnxRuntimeLandmarker(path)


def _not_usable(package: str) -> str | None:
    """Why it cannot be imported; None where it can."""
    try:
        __import__(package)
    except ImportError as error:
        return str(error)
    return None
