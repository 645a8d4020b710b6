"""Writes a model for NVIDIA's servers: a model repository for Triton, and nvinfer's configuration for DeepStream.

    python -m engines.serving student --out out/serving

    triton/student/config.pbtxt, 1/model.onnx               for ONNX Runtime; or 1/model.plan of an .engine
    deepstream/config_infer_landmarks.txt, landmarks.onnx

docs/serving.md has the clients. Triton's configuration is text of its protobuf message inference.ModelConfig;
engines/deepstream.py has nvinfer's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from lineament.engines import CHECKPOINTS, STUDENTS, SUFFIXES, WEIGHTS
from lineament.engines.deepstream import nvinfer_config, planar
from lineament.engines.engine_file import POINTS_PLAN, read_header, read_plans
from lineament.engines.fp16 import half_precision
from lineament.engines.model_file import OUTPUTS, REMAKE, Port, check_graph, read_card
from lineament.engines.onnxruntime_tensorrt import profile_options
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line, install
from lineament.landmarks.files import replaced
from lineament.landmarks.types import LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

CARD = "card"
"""parameter of Triton's configuration: the model card, without its scores"""
CACHE = "/cache"
"""folder in Triton's container for the engines that its TensorRT provider builds"""
_MAX_BATCH = 1024
"""of nvinfer"""
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}
"""Triton's names"""


@dataclass(frozen=True)
class ServingConfig:
    """Writes a model for NVIDIA Triton Inference Server and NVIDIA DeepStream."""

    model: str
    """'student', 'student-fast', 'b5', an .onnx with a model card, a .safetensors from `make train`, or an .engine from
    `make engine`, for Triton only."""
    out: Path = Path("out/serving")
    """Folder for `triton` and `deepstream`."""
    name: str = ""
    """Name of the model in Triton; by default that of its card."""
    max_batch: int = 16
    """Most crops per call; an .engine has its own."""
    tensorrt: bool = False
    """Let Triton run the .onnx by ONNX Runtime's TensorRT provider in FP16 instead of by CUDA."""
    face_class: int = 0
    """The detector's class of faces, for DeepStream; 2 with NVIDIA's PeopleNet."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= _MAX_BATCH or self.face_class < 0:
            raise LineamentError(
                f"got max_batch {self.max_batch}, face_class {self.face_class}; "
                f"expected 1 to {_MAX_BATCH}, and the number of a class, from 0 on"
            )


@ends_in_a_line
def main(args: Sequence[str] | None = None) -> int:
    import tyro

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # not the root logger: PyTorch's exporter logs every step
    log.setLevel(logging.INFO)
    config = (tyro.conf.PositionalRequiredArgs,)
    write(tyro.cli(ServingConfig, args=args, prog="python -m engines.serving", config=config))
    return 0


def write(cfg: ServingConfig) -> None:
    """Writes the files of cfg. Raises LineamentError."""
    path = Path(os.path.expanduser(cfg.model))
    try:
        if path.suffix == ".engine":
            _write_plan(cfg, path)
        else:
            with TemporaryDirectory(prefix="lineament-") as folder:
                _write_onnx(cfg, _exported(cfg.model, path, Path(folder)))
    except ImportError as error:
        raise LineamentError(f"writing for a server needs {error.name}; run {install('train')}") from None


def _exported(name: str, path: Path, folder: Path) -> Path:
    """The .onnx of a model; that of a checkpoint is written to folder."""
    if name in STUDENTS:
        return WEIGHTS / f"{name}-wflw98.onnx"
    path = CHECKPOINTS.get(name, path)
    if path.suffix == ".onnx":
        return path
    if path.suffix != ".safetensors":
        raise LineamentError(
            f"{name} cannot be served; choose one of {', '.join(CHECKPOINTS)}, or give a file: {', '.join(SUFFIXES)}"
        )
    from lineament.engines.export import export
    from lineament.train.model import load

    net, card = load(path)
    export(net, replace(card, precision="fp32"), exported := folder / f"{path.stem}.onnx")
    return exported


def _write_onnx(cfg: ServingConfig, path: Path) -> None:
    file = _read(path)
    if file.input.shape[0] is not None:
        raise LineamentError(f"{path} has a fixed batch size, expected a dynamic one; {REMAKE}")
    name, half = _name(cfg, file.card), half_precision(file.model)
    graph = half.SerializeToString()
    config = triton_config(name, file, cfg.max_batch)
    if cfg.tensorrt:
        # the provider names an engine by the names in the graph, not by its weights (microsoft/onnxruntime 6455)
        cache = f"{CACHE}/{name}-{hashlib.sha256(graph).hexdigest()[:16]}"
        config += _tensorrt_provider(cache, file.card, cfg.max_batch)
    triton, deepstream = cfg.out / "triton" / name, cfg.out / "deepstream"
    _put(triton / "1" / "model.onnx", graph if cfg.tensorrt else path.read_bytes())
    _put(triton / "config.pbtxt", config.encode())
    _put_for_nvinfer(deepstream / "landmarks.onnx", planar(half).SerializeToString())
    config = nvinfer_config(file.card, cfg.max_batch, cfg.face_class)
    _put(deepstream / "config_infer_landmarks.txt", config.encode())


def _write_plan(cfg: ServingConfig, path: Path) -> None:
    """The .engine itself does not list its outputs; the .onnx that `make engine` writes beside it does."""
    header = read_header(path)
    key = header.key
    fewest, usual, most = key.batches
    if key.library != "tensorrt":
        raise LineamentError(f"{path} was built by {key.library}, which Triton does not have; give the .onnx beside it")
    if fewest > 1:
        raise LineamentError(f"{path} takes at least {fewest} crops, but Triton may pass one; {header.rebuild}")
    file = _read(path.with_suffix(".onnx"))
    if file.card.weights_sha256 != key.weights_sha256:
        raise LineamentError(
            f"{path.with_suffix('.onnx')} has other weights than {path.name}, whose outputs it lists; {header.rebuild}"
        )
    triton = cfg.out / "triton" / (name := _name(cfg, file.card))
    _put(triton / "1" / "model.plan", read_plans(path)[POINTS_PLAN])
    config = triton_config(name, file._replace(card=header.card), most, plan_usual=usual)
    _put(triton / "config.pbtxt", config.encode())
    log.info("the plan needs %s, and a Triton with TensorRT %s", key.gpu, key.library_version)


def _put_for_nvinfer(path: Path, graph: bytes) -> None:
    """Also removes engines that nvinfer built from another graph: it would open them whatever the weights."""
    if not path.is_file() or path.read_bytes() != graph:
        for engine in path.parent.glob(f"{path.name}_b*.engine"):
            engine.unlink()
            log.info("removed %s, which was built from another model", engine)
    _put(path, graph)


def _put(path: Path, content: bytes) -> None:
    with replaced(path) as part:
        part.write_bytes(content)
    log.info("wrote %s", path)


def _name(cfg: ServingConfig, card: ModelCard) -> str:
    name = cfg.name or card.name
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise LineamentError(
            f"{name!r} cannot be the name of a model in Triton; give --name, letters, digits and ._- only"
        )
    return name


class ModelFile(NamedTuple):
    """An .onnx with a model card."""

    card: ModelCard
    model: onnx.ModelProto
    input: Port
    outputs: list[Port]


def _read(path: Path) -> ModelFile:
    """Raises LineamentError if the graph is not what its card says."""
    card = read_card(path)
    import onnx

    def ports(values: Sequence[onnx.ValueInfoProto]) -> list[Port]:
        found = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
            found.append(Port(value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
        return found

    model = onnx.load(path)
    inputs, outputs = ports(model.graph.input), ports(model.graph.output)
    check_graph(path, card, inputs, outputs)
    return ModelFile(card, model, inputs[0], [port for port in outputs if port.name in OUTPUTS])


# ---- Triton


def triton_config(name: str, file: ModelFile, max_batch: int, plan_usual: int = 0) -> str:
    """The text of config.pbtxt. plan_usual: for a TensorRT plan, the batch size that it is tuned for."""
    card = {key: value for key, value in asdict(file.card).items() if key not in ("nme", "built_with")}
    preferred = sorted({plan_usual, max_batch} - {1}) if plan_usual else []
    lines = [
        f'name: "{name}"',
        f'backend: "{"tensorrt" if plan_usual else "onnxruntime"}"',
        f"max_batch_size: {max_batch}",
        f"input {_tensor(file.input)}",
        *(f"output {_tensor(port)}" for port in file.outputs),
        f"instance_group {{ count: 1 kind: {'KIND_GPU' if plan_usual else 'KIND_AUTO'} }}",
        f"dynamic_batching {{ preferred_batch_size: {preferred} }}",
        f'parameters {{ key: "{CARD}" value {{ string_value: {json.dumps(json.dumps(card))} }} }}',
    ]
    return "\n".join([*lines, ""])


def _tensor(port: Port) -> str:
    """A port without its batch dimension. Triton has no scalars: one number per crop is a list of one."""
    sizes = list(port.shape[1:])
    dims = f"dims: {sizes}" if sizes else "dims: [1] reshape { shape: [] }"
    return f'{{ name: "{port.name}" data_type: {_TYPES[port.dtype]} {dims} }}'


def _tensorrt_provider(cache: str, card: ModelCard, max_batch: int) -> str:
    """For a graph in half precision: TensorRT 11 runs it in its own types, earlier releases only if FP16 is allowed."""
    parameters = {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        **profile_options(card.input_hw, (1, max_batch, max_batch)),
    }
    lines = [f'  parameters {{ key: "{key}" value: "{value}" }}' for key, value in parameters.items()]
    head = "optimization { execution_accelerators { gpu_execution_accelerator {"
    return "\n".join([head, '  name: "tensorrt"', *lines, "} } }", ""])


if __name__ == "__main__":
    sys.exit(main())
