"""Landmark models made ready to run: those that ship, MediaPipe's mesh, model files, and the way to ask for one."""

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
    "student": "a small net taught by larger ones on photos without labels; it also tells whether a face is there",
    "student-fast": "a smaller one, taught the same: less than half the time, less accurate",
    "b5": "EfficientNet-B5 with Wing loss, the most accurate; for a GPU or few faces, once `make engine` has built it",
    "mesh": "the face mesh and iris models inside the optional package mediapipe, mapped to the 98 points",
    "mesh-fast": "the same without the iris model: half the time, pupils and lids less exact",
}
WEIGHTS = Path(__file__).resolve().parent / "weights"
STUDENTS = ("student", "student-fast")
"""those that ship as .onnx, too"""
CHECKPOINTS = {name: WEIGHTS / f"{name}-wflw98.safetensors" for name in (*STUDENTS, "b5")}
"""the trained models that ship"""
BUILT = (
    CHECKOUT / "out" / "engines"
    if CHECKOUT
    else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineament" / "engines"
)
"""where `make engine` puts what it builds of them, and notes which file is the fastest here"""
FILES = "a .engine or .onnx that `make engine` wrote, or a .safetensors that `make train` wrote"


def load(model: str, device: str = "auto", threads: int | None = None) -> Landmarker:
    """The landmarker called `model`: one of MODELS, or the path of a file that holds a model card.

        .onnx         auto, cpu: OpenVINO, or ONNX Runtime where OpenVINO is absent; auto takes the GPU if the package
                      onnxruntime-gpu is installed. By name: openvino, openvino-throughput (many crops a call, at the
                      cost of each), onnxruntime (CPU), cuda, tensorrt (both of ONNX Runtime)
        .engine       auto, cuda, tensorrt: TensorRT, on the kind of GPU that it was built for
        .safetensors  auto, torch: PyTorch, on the GPU if there is one; cpu, cuda

    The students take the devices of an .onnx; on auto and cpu they run in bf16 where the processor is made for that, on
    openvino in f32, the same on all. The b5 is the fastest file that `make engine` built of it here, and takes the
    devices of that; until it is built, its checkpoint runs by PyTorch.

    auto says so in one line when it takes another than the usual; a named device never falls back. threads: how many
    a model file may use on the CPU; None leaves it to the runtime. Raises LineamentError for a model or device that
    cannot be had.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, wanted at least 1, or None for the runtime's own choice")
    if model in STUDENTS:
        return _load_onnx(WEIGHTS / f"{model}-wflw98.onnx", device, threads, "auto")
    if model == "b5":
        model = str(fastest_built("b5") or _checkpoint("b5"))
    if model in MODELS:
        if device not in ("auto", "cpu", "openvino"):
            raise LineamentError(
                f"the mesh model runs on the CPU by OpenVINO, device was {device!r}; ask for 'cpu' or 'auto'"
            )
        from lineament.engines.mesh import MeshLandmarker

        return MeshLandmarker(iris=model == "mesh")
    path = Path(os.path.expanduser(model))  # unlike Path's own it bears a user that is not there
    match path.suffix.lower():
        case ".onnx":
            return _load_onnx(path, device, threads)
        case ".engine":
            return _load_engine(path, device)
        case ".safetensors":
            return _load_checkpoint(path, device, threads)
        case "":
            raise LineamentError(f"no model is called {model!r}; choose one of {', '.join(MODELS)}, or give {FILES}")
        case suffix:
            raise LineamentError(
                f"{model} ends in {suffix}, which is no kind of model file; "
                f"choose one of {', '.join(MODELS)}, or give {FILES}"
            )


def ready() -> list[str]:
    """Those of MODELS that load here without PyTorch: all but a b5 that is not built, and meshes without mediapipe."""
    from lineament.engines import mesh

    absent = set() if fastest_built("b5") else {"b5"}
    try:
        mesh.check_installed()
    except LineamentError:
        absent |= {"mesh", "mesh-fast"}
    return [name for name in MODELS if name not in absent]


def fastest_built(name: str) -> Path | None:
    """The file that `make engine` found fastest here, of a model that ships; None where none was built of its weights
    as they are now."""
    try:
        told = json.loads((BUILT / f"{name}.json").read_text())
        path, weights = BUILT / str(told["file"]), told["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return path if weights == _weights_sha256(CHECKPOINTS[name]) and os.path.isfile(path) else None


def note_fastest(name: str, path: Path) -> None:
    """path, in BUILT, is what `name` stands for on this machine from now on."""
    told = {"file": path.name, "weights_sha256": _weights_sha256(CHECKPOINTS[name])}
    (BUILT / f"{name}.json").write_text(json.dumps(told) + "\n")


def _weights_sha256(checkpoint: Path) -> str:
    """As the card of a .safetensors says; its head is JSON behind eight bytes of length."""
    with checkpoint.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return str(json.loads(head["__metadata__"]["card"])["weights_sha256"])


def _checkpoint(name: str) -> Path:
    """The checkpoint of a model that is not built yet. Raises LineamentError where PyTorch is not there to run it."""
    if _not_usable("torch"):
        raise LineamentError(f"{name} is not built for this machine yet; run `make engine MODEL={name}`, minutes, once")
    return CHECKPOINTS[name]


def _load_onnx(path: Path, device: str, threads: int | None, precision: Precision | None = None) -> Landmarker:
    """precision: of OpenVINO, where it is not asked for by name."""
    match device:
        case "auto" | "cpu":
            if device == "auto" and _installed("onnxruntime-gpu"):
                try:
                    return _onnxruntime(path, "cuda", threads)
                except LineamentError as error:
                    log.warning("%s runs on the CPU, for the GPU cannot be had: %s", path.name, error)
            if reason := _not_usable("openvino"):
                log.warning("%s runs by ONNX Runtime, for OpenVINO cannot be imported (%s)", path.name, reason)
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
            f"{path.name} runs on an NVIDIA GPU by TensorRT alone, device was {device!r}; "
            "ask for 'auto', or give the .onnx that it was built from"
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
                "%s runs by PyTorch on the CPU, for it finds no NVIDIA GPU; `make engine MODEL=%s` makes a faster file",
                path.name,
                path,
            )
            return landmarker
        case _:
            raise LineamentError(
                f"{path.name} is a checkpoint, which runs by PyTorch on auto, torch, cpu or cuda, device was "
                f"{device!r}; `make engine MODEL={path}` makes a file for other runtimes"
            )


def _openvino(
    path: Path, threads: int | None, throughput: bool = False, precision: Precision | None = None
) -> Landmarker:
    if reason := _not_usable("openvino"):
        raise LineamentError(f"OpenVINO cannot be imported ({reason}); run `pip install -r requirements.txt`")
    from lineament.engines.openvino_backend import OpenVinoLandmarker

    return OpenVinoLandmarker(path, precision, threads, throughput)


def _onnxruntime(path: Path, device: Device, threads: int | None) -> Landmarker:
    if reason := _not_usable("onnxruntime"):
        package = "onnxruntime" if device == "cpu" else "onnxruntime-gpu"
        raise LineamentError(f"ONNX Runtime cannot be imported ({reason}); run `pip install {package}`")
    from lineament.engines.onnxruntime_backend import OnnxRuntimeLandmarker

    return OnnxRuntimeLandmarker(path, device, threads)


def _not_usable(package: str) -> str | None:
    """Why it cannot be imported; None where it can."""
    try:
        __import__(package)
    except ImportError as error:
        return str(error)
    return None


def _installed(package: str) -> bool:
    """Asked of the list of packages, which costs nothing."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
