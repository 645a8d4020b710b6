"""Landmark models ready to run: the ones that ship, MediaPipe's mesh, and model files. `load` opens them."""

from __future__ import annotations

import json
import logging
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from lineament.landmarks.command import CHECKOUT
from lineament.landmarks.types import Landmarker, LineamentError

if TYPE_CHECKING:
    from lineament.engines.onnxruntime_backend import Device
    from lineament.engines.openvino_backend import Precision

log = logging.getLogger(__name__)

DEFAULT = "student"
MODELS = {
    "student": "a small net distilled from larger ones on unlabelled photos; it also reports whether a face is there",
    "student-fast": "a smaller one, distilled the same way: less than half the time, less accurate",
    "b5": "EfficientNet-B5 with Wing loss, the most accurate; for a GPU or few faces, once `make engine` has built it",
    "mesh": "the face mesh and iris models inside the optional package mediapipe, mapped to the 98 points",
    "mesh-fast": "the same without the iris model: half the time, less exact pupils and lids",
}
WEIGHTS = Path(__file__).resolve().parent / "weights"
STUDENTS = ("student", "student-fast")
"""models that also ship as .onnx"""
CHECKPOINTS = {name: WEIGHTS / f"{name}-wflw98.safetensors" for name in (*STUDENTS, "b5")}
"""the trained models that ship"""
BUILT = (
    CHECKOUT / "out" / "engines"
    if CHECKOUT
    else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineament" / "engines"
)
"""where `make engine` writes the engines of models that ship, and records which it recommends here"""
FILES = "an .engine or .onnx from `make engine`, or a .safetensors from `make train`"
SUFFIXES = (".onnx", ".engine", ".safetensors")


def load(model: str, device: str = "auto", threads: int | None = None) -> Landmarker:
    """The landmarker called `model`: one of MODELS, or the path of a file with a model card.

        .onnx         auto, cpu: OpenVINO, or ONNX Runtime if OpenVINO is absent; auto uses the GPU if the package
                      onnxruntime-gpu is installed. By name: openvino, openvino-throughput (many crops per call, at the
                      cost of latency), onnxruntime (CPU), cuda, tensorrt (both of ONNX Runtime)
        .engine       auto, cuda, tensorrt: TensorRT, on the kind of GPU it was built for
        .safetensors  auto, torch: PyTorch, on the GPU if there is one; cpu, cuda

    The students take the devices of an .onnx; on auto and cpu they run in bf16 on processors built for it, on openvino
    in f32, which is the same everywhere. The b5 is the fastest file that `make engine` built of it here, and takes the
    devices of that file; until it is built, PyTorch runs its checkpoint.

    auto logs one line when it falls back; a named device never does. threads: how many a model file may use on the
    CPU; None leaves it to the runtime. Raises LineamentError if the model or device is unavailable.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, expected at least 1, or None for the runtime's default")
    if model in STUDENTS:
        return _load_onnx(WEIGHTS / f"{model}-wflw98.onnx", device, threads, "auto")
    if model == "b5":
        return _load_file(fastest_built("b5") or _checkpoint("b5"), device, threads)
    if model in MODELS:
        return _load_mesh(model, device)
    path = Path(os.path.expanduser(model))  # unlike Path.expanduser it accepts an unknown user
    if path.suffix.lower() in SUFFIXES:
        return _load_file(path, device, threads)
    what = f"{model} ends in {path.suffix}" if path.suffix else f"no model is called {model!r}"
    raise LineamentError(f"{what}; choose one of {', '.join(MODELS)}, or give {FILES}")


def ready() -> list[str]:
    """The MODELS that load here without PyTorch: all but a b5 that is not built, and the meshes without mediapipe."""
    from lineament.engines import mesh

    absent = set() if fastest_built("b5") else {"b5"}
    try:
        mesh.check_installed()
    except LineamentError:
        absent |= {"mesh", "mesh-fast"}
    return [name for name in MODELS if name not in absent]


def fastest_built(name: str) -> Path | None:
    """The file of a model that ships that `make engine` found fastest here; None if none was built of its current
    weights."""
    try:
        told = json.loads((BUILT / f"{name}.json").read_text())
        path, weights = BUILT / str(told["file"]), told["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if weights == _weights_sha256(CHECKPOINTS[name]) and os.path.isfile(path) else None


def note_fastest(name: str, path: Path) -> None:
    """Makes `name` load path, a file in BUILT, on this machine."""
    told = {"file": path.name, "weights_sha256": _weights_sha256(CHECKPOINTS[name])}
    (BUILT / f"{name}.json").write_text(json.dumps(told) + "\n")


def _weights_sha256(checkpoint: Path) -> str:
    """From the card of a .safetensors, whose header is JSON after eight bytes of length."""
    with checkpoint.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(json.loads(head["__metadata__"]["card"])["weights_sha256"])


def _checkpoint(name: str) -> Path:
    """The checkpoint of a model that is not built yet. Raises LineamentError without PyTorch, which runs it."""
    if _import_error("torch"):
        raise LineamentError(
            f"{name} is not built for this machine yet; run `make engine MODEL={name}` once, which takes minutes"
        )
    return CHECKPOINTS[name]


def _load_file(path: Path, device: str, threads: int | None) -> Landmarker:
    match path.suffix.lower():
        case ".onnx":
            return _load_onnx(path, device, threads)
        case ".engine":
            return _load_engine(path, device)
        case _:
            return _load_checkpoint(path, device, threads)


def _load_mesh(model: str, device: str) -> Landmarker:
    if device not in ("auto", "cpu", "openvino"):
        raise LineamentError(
            f"the mesh model runs on the CPU with OpenVINO, device was {device!r}; use 'cpu' or 'auto'"
        )
    from lineament.engines.mesh import MeshLandmarker

    return MeshLandmarker(iris=model == "mesh")


def _load_onnx(path: Path, device: str, threads: int | None, precision: Precision | None = None) -> Landmarker:
    """precision: for OpenVINO on auto and cpu."""
    match device:
        case "auto" | "cpu":
            if device == "auto" and _installed("onnxruntime-gpu"):
                try:
                    return _onnxruntime(path, "cuda", threads)
                except LineamentError as error:
                    log.warning("%s runs on the CPU because the GPU is unavailable: %s", path.name, error)
            if reason := _import_error("openvino"):
                log.warning("%s runs in ONNX Runtime because OpenVINO cannot be imported (%s)", path.name, reason)
                return _onnxruntime(path, "cpu", threads)
            return _openvino(path, threads, precision=precision)
        case "openvino" | "openvino-throughput":
            return _openvino(path, threads, device == "openvino-throughput")
        case "onnxruntime":
            return _onnxruntime(path, "cpu", threads)
        case "cuda" | "tensorrt":
            return _onnxruntime(path, device, threads)
        case _:
            raise LineamentError(
                f"{path.name} cannot run on device {device!r}; "
                "choose one of auto, cpu, openvino, openvino-throughput, onnxruntime, cuda, tensorrt"
            )


def _load_engine(path: Path, device: str) -> Landmarker:
    if device not in ("auto", "cuda", "tensorrt"):
        raise LineamentError(
            f"{path.name} runs only on an NVIDIA GPU with TensorRT, device was {device!r}; "
            "use 'auto', or give the .onnx it was built from"
        )
    from lineament.engines.tensorrt_backend import TensorRtLandmarker

    return TensorRtLandmarker(path)


def _load_checkpoint(path: Path, device: str, threads: int | None) -> Landmarker:
    from lineament.engines.torch_backend import TorchLandmarker, cuda_is_there

    match device:
        case "cpu" | "cuda":
            return TorchLandmarker(path, device, threads)
        case "auto" | "torch":
            if cuda_is_there():
                return TorchLandmarker(path, "cuda", threads)
            landmarker = TorchLandmarker(path, "cpu", threads)
            log.warning(
                "%s runs in PyTorch on the CPU without an NVIDIA GPU; `make engine MODEL=%s` builds a faster file",
                path.name,
                path,
            )
            return landmarker
        case _:
            raise LineamentError(
                f"{path.name} is a checkpoint, which PyTorch runs on auto, torch, cpu or cuda, device was "
                f"{device!r}; `make engine MODEL={path}` builds a file for other runtimes"
            )


def _openvino(
    path: Path, threads: int | None, throughput: bool = False, precision: Precision | None = None
) -> Landmarker:
    if reason := _import_error("openvino"):
        raise LineamentError(f"OpenVINO cannot be imported ({reason}); run `pip install -r requirements.txt`")
    from lineament.engines.openvino_backend import OpenVinoLandmarker

    return OpenVinoLandmarker(path, precision, threads, throughput)


def _onnxruntime(path: Path, device: Device, threads: int | None) -> Landmarker:
    if reason := _import_error("onnxruntime"):
        package = "onnxruntime" if device == "cpu" else "'onnxruntime-gpu[cuda,cudnn]'"
        raise LineamentError(f"ONNX Runtime cannot be imported ({reason}); run `pip install {package}`")
    from lineament.engines.onnxruntime_backend import OnnxRuntimeLandmarker

    return OnnxRuntimeLandmarker(path, device, threads, BUILT / "onnxruntime")


def _import_error(package: str) -> str | None:
    """Why package cannot be imported; None if it can."""
    try:
        __import__(package)
    except ImportError as error:
        return str(error)
    return None


def _installed(package: str) -> bool:
    """Whether pip lists the package; imports nothing."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
