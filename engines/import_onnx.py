"""Imports a foreign ONNX landmark model: wraps it to take uint8 RGB and return unit points, and adds a model card.

    python -m engines.import_onnx peer.onnx --out pfld.onnx --schema wflw98 --crop-scale 1.2 --bgr --name pfld

The model must have one float input (N, 3, H, W) and an output of 2 K numbers per image: x, y of each point, as
fractions of the crop's width and height. Needs onnx and onnxruntime (requirements-train.txt).
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray

from lineament.engines.model_file import CARD_KEY, INPUT, POINTS
from lineament.landmarks.card import CropScale, ModelCard, is_crop_scale
from lineament.landmarks.command import ends_in_a_line, install
from lineament.landmarks.files import replaced
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, U8, LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

_PREFIX = "imported/"
"""prefix of every name of the foreign graph, to avoid clashes with ours"""
_TOLERANCE = 1e-4
"""unit coordinates: a hundredth of a pixel at 112"""


@dataclass(frozen=True)
class ImportConfig:
    """Imports a foreign ONNX landmark model."""

    peer: Annotated[Path, tyro.conf.Positional]
    """The foreign .onnx file."""
    out: Path
    """The wrapped .onnx to write."""
    schema: str = "wflw98"
    """Schema of its points: wflw98 or ibug68."""
    crop_scale: CropScale = 1.2
    """Size of the crops it was trained on over the points' bounding box. One number: a square, by the box's longer
    side. Two: width and height, each by its own side, stretched to the model's input."""
    bgr: bool = False
    """The model takes BGR instead of RGB."""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Subtracted from RGB in 0..1."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB in 0..1, less the mean, is divided by it. For a model that takes 0..255 it is 1/255 = 0.003921569."""
    name: str = ""
    """Name of the model; by default that of its file."""

    def __post_init__(self) -> None:
        if self.schema not in SCHEMAS:
            raise LineamentError(f"schema is {self.schema!r}, expected one of {', '.join(SCHEMAS)}")
        if not is_crop_scale(self.crop_scale):
            raise LineamentError(f"crop_scale is {self.crop_scale}, expected one or two numbers over 0, such as 1.2")
        if not np.isfinite([*self.mean, *self.std]).all() or 0 in self.std:
            raise LineamentError(f"mean {self.mean} and std {self.std} must be finite, and std not 0")


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    import_onnx(tyro.cli(ImportConfig, args=args, prog="python -m engines.import_onnx"))
    return 0


def import_onnx(cfg: ImportConfig) -> ModelCard:
    """Writes cfg.out atomically, once its points equal those of the foreign model, and returns its card."""
    try:
        import onnx  # noqa: F401 - fail early if absent
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise LineamentError(f"importing needs {error.name}; run {install('train')}") from None

    foreign = _read(cfg.peer)
    port, output = _ports_of(foreign, cfg)
    height, width = (size.dim_value for size in port.type.tensor_type.shape.dim[2:])
    card = ModelCard(
        name=cfg.name or cfg.peer.stem,
        schema=cfg.schema,
        input_hw=(height, width),
        crop_scale=cfg.crop_scale,
        mean=cfg.mean,
        std=cfg.std,
        weights_sha256=hashlib.sha256(cfg.peer.read_bytes()).hexdigest(),
        built_with={"onnx": version("onnx")},
    )
    crops = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    wanted = _run_foreign(foreign, port, output, crops, cfg)
    wrapped = _wrapped(_freed_batch(foreign), port, output, card, cfg, batch=None)
    if reason := _difference(wrapped, crops, wanted):
        log.info("%s keeps its batch size of 1: in a batch of 2 %s", card.name, reason)
        wrapped = _wrapped(foreign, port, output, card, cfg, batch=1)
        if reason := _difference(wrapped, crops, wanted):
            raise LineamentError(f"wrapping {cfg.peer} changed its output: {reason}; is the file intact?")
    _save(wrapped, cfg.out)
    log.info("wrote %s: %s, %d points of crops of %dx%d", cfg.out, card.name, len(SCHEMAS[cfg.schema]), width, height)
    return card


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    try:
        with replaced(path) as part:
            onnx.save(model, part)
    except OSError as error:
        raise LineamentError(f"cannot write {path}: {error.strerror or error}; check the path") from None


def _read(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not os.path.isfile(path):
        raise LineamentError(f"no model file at {path}; check the spelling")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LineamentError(f"{path} is not a valid ONNX file: {reason}; copy it again") from None
    opsets = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if opsets and opsets[0] < 7:  # the first with broadcasting
        raise LineamentError(f"{path} has opset {opsets[0]}, expected 7 or later; export it again")
    return model


def _ports_of(model: onnx.ModelProto, cfg: ImportConfig) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """The image input and the points output. Raises LineamentError if the model has others."""
    weights = {initializer.name for initializer in model.graph.initializer}
    inputs = [port for port in model.graph.input if port.name not in weights]
    if len(inputs) != 1 or len(shape := _shape(inputs[0])) != 4 or shape[1] != 3 or not all(shape[2:]):
        listed = ", ".join(f"{port.name!r} {_shape(port)}" for port in inputs)
        raise LineamentError(f"{cfg.peer} takes {listed}, expected one image (N, 3, height, width) of fixed size")
    if inputs[0].type.tensor_type.elem_type not in (1, 10):  # FLOAT, FLOAT16
        raise LineamentError(
            f"{cfg.peer} takes ONNX type {inputs[0].type.tensor_type.elem_type}, expected float or float16"
        )
    n_values = 2 * len(SCHEMAS[cfg.schema])
    sized = [port for port in model.graph.output if 0 not in _shape(port)[1:]]
    # in some models other numbers follow the points, such as a pose; others have the points of another schema
    others = {2 * len(schema) for schema in SCHEMAS.values()}
    longer = [port for port in sized if _count(port) > n_values and _count(port) not in others]
    outputs = [port for port in sized if _count(port) == n_values] or longer
    if len(outputs) != 1:
        listed = ", ".join(f"{port.name!r} {_shape(port)}" for port in model.graph.output)
        raise LineamentError(
            f"{cfg.peer} returns {listed}, expected one output of at least {n_values} numbers per image, points first, "
            f"because {cfg.schema} has {n_values // 2} points; is the schema right?"
        )
    return inputs[0], outputs[0]


def _shape(port: onnx.ValueInfoProto) -> tuple[int, ...]:
    """0 for a dynamic size."""
    return tuple(size.dim_value for size in port.type.tensor_type.shape.dim)


def _count(port: onnx.ValueInfoProto) -> int:
    """Numbers per image."""
    return int(np.prod(_shape(port)[1:]))


def _freed_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which each Reshape that was exported with batch 1 keeps the batch size of its input.

    A hard-coded (1, -1) puts all images of a batch in one row, which the next matrix does not fit. Whether nothing else
    fixes the batch size is for the caller to try.
    """
    import onnx
    from onnx import numpy_helper

    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    del freed.graph.value_info[:]
    shapes = {node.input[1] for node in freed.graph.node if node.op_type == "Reshape" and len(node.input) > 1}
    constants = [(tensor.name, tensor) for tensor in freed.graph.initializer]
    for node in freed.graph.node:
        if node.op_type == "Constant":
            constants += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    for name, tensor in constants:
        shape = numpy_helper.to_array(tensor) if name in shapes else np.empty(0)
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1:
            # 0 keeps the size of the input
            tensor.CopyFrom(numpy_helper.from_array(np.array([0, *shape[1:]], np.int64), tensor.name))
    return freed


def _wrapped(
    foreign: onnx.ModelProto,
    port: onnx.ValueInfoProto,
    output: onnx.ValueInfoProto,
    card: ModelCard,
    cfg: ImportConfig,
    batch: int | None,
) -> onnx.ModelProto:
    """foreign between pre- and postprocessing, as engines.model_file specifies. batch: None for a dynamic one."""
    import onnx
    from onnx import TensorProto, compose, helper, numpy_helper

    inner = compose.add_prefix(foreign, _PREFIX)
    before, before_consts = _preprocessing(port, cfg)
    after, after_consts = _postprocessing(output, cfg)
    size: int | str = "N" if batch is None else batch
    rgb = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [size, *card.input_hw, 3])
    points = helper.make_tensor_value_info(POINTS, TensorProto.FLOAT, [size, len(SCHEMAS[cfg.schema]), 2])
    consts = [numpy_helper.from_array(array, name) for name, array in {**before_consts, **after_consts}.items()]
    nodes, weights = [*before, *inner.graph.node, *after], [*consts, *inner.graph.initializer]
    wrapped = helper.make_model(
        helper.make_graph(nodes, card.name, [rgb], [points], weights),
        opset_imports=inner.opset_import,
        functions=inner.functions,
        producer_name="lineament",
        # before 4, initializers had to be inputs too
        ir_version=max(4, inner.ir_version),
    )
    helper.set_model_props(wrapped, {CARD_KEY: card.to_json()})
    onnx.checker.check_model(wrapped)
    return wrapped


def _preprocessing(
    port: onnx.ValueInfoProto, cfg: ImportConfig
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Nodes from INPUT to the foreign input, and their constants: (rgb / 255 - mean) / std as a product and a sum."""
    from onnx import TensorProto, helper

    std = np.array(cfg.std)
    nodes = [
        helper.make_node("Transpose", [INPUT], ["rgb_NCHW"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["rgb_NCHW"], ["rgb_float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rgb_float", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normal"]),
    ]
    consts = {
        "scale": (1 / (255 * std)).reshape(1, 3, 1, 1).astype(np.float32),
        "shift": (-np.array(cfg.mean) / std).reshape(1, 3, 1, 1).astype(np.float32),
    }
    if cfg.bgr:
        nodes.append(helper.make_node("Gather", ["normal", "bgr"], ["ordered"], axis=1))
        consts["bgr"] = np.array([2, 1, 0], np.int64)
    ordered = "ordered" if cfg.bgr else "normal"
    element = port.type.tensor_type.elem_type
    return [*nodes, helper.make_node("Cast", [ordered], [_PREFIX + port.name], to=element)], consts


def _postprocessing(
    output: onnx.ValueInfoProto, cfg: ImportConfig
) -> tuple[list[onnx.NodeProto], dict[str, NDArray[Any]]]:
    """Nodes from the foreign output to POINTS, and their constants. Numbers after the points are dropped."""
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", [_PREFIX + output.name], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["row"]),
        helper.make_node("Gather", ["row", "first"], ["values"], axis=1),
        helper.make_node("Reshape", ["values", "points_shape"], [POINTS]),
    ]
    n_points = len(SCHEMAS[cfg.schema])
    return nodes, {"points_shape": np.array([-1, n_points, 2], np.int64), "first": np.arange(2 * n_points)}


def _run_foreign(
    model: onnx.ModelProto, port: onnx.ValueInfoProto, output: onnx.ValueInfoProto, crops: U8, cfg: ImportConfig
) -> F32:
    """The points (N, K, 2) of the unwrapped model for crops (N, H, W, 3), one at a time."""
    rgb = crops.astype(np.float64) / 255
    normal = ((rgb - cfg.mean) / cfg.std)[..., :: -1 if cfg.bgr else 1].transpose(0, 3, 1, 2)
    dtype = np.float16 if port.type.tensor_type.elem_type == 10 else np.float32
    try:
        session = _session(model)
        found = [session.run([output.name], {port.name: np.ascontiguousarray(x[None], dtype)})[0] for x in normal]
    except Exception as error:  # ONNX Runtime's exceptions share no other base
        reason = " ".join(str(error).split())[-300:]
        raise LineamentError(f"ONNX Runtime cannot run {cfg.peer}: {reason}; export it again") from error
    n_points = len(SCHEMAS[cfg.schema])
    return np.asarray(np.stack(found), np.float32).reshape(len(crops), -1)[:, : 2 * n_points].reshape(-1, n_points, 2)


def _difference(wrapped: onnx.ModelProto, crops: U8, wanted: F32) -> str | None:
    """How the points of crops differ from those wanted, or why the model fails; None if they are equal."""
    one_by_one = wrapped.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    try:
        session = _session(wrapped)
        batches = [crops[i : i + 1] for i in range(len(crops))] if one_by_one else [crops]
        found = np.concatenate([session.run([POINTS], {INPUT: batch})[0] for batch in batches])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no other base
        return f"it fails ({' '.join(str(error).split())[-200:]})"
    if found.shape != wanted.shape:
        return f"it returns shape {found.shape}, expected {wanted.shape}"
    gap = float(np.abs(found - wanted).max())
    return None if gap <= _TOLERANCE else f"points move by up to {gap:.2g} of the crop"


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # the caller reports failures
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main())
