"""Exports a trained checkpoint to an ONNX graph for any runtime, and checks that its points are the same.

    python -m engines.export runs/train/best.safetensors --out b5.onnx

As model_file specifies, the graph takes uint8 RGB crops (N, H, W, 3) and returns points in unit crop coordinates,
whatever the head; it includes normalisation and decoding. It is written only if it agrees with PyTorch on real crops.
"""

from __future__ import annotations

import logging
import sys
import warnings
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from lineament.engines.distance import distances_px
from lineament.engines.model_file import CARD_KEY, OUTPUTS
from lineament.engines.portrait import portrait
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import crop_from_frame, warp
from lineament.landmarks.types import F32, U8, LineamentError

if TYPE_CHECKING:
    import onnx

    from lineament.train.model import LandmarkNet

log = logging.getLogger(__name__)

MAX_ERROR_PX = 0.05
"""largest distance of a point from PyTorch's, px of a 256-px crop"""
HALF_MAX_ERROR_PX = 0.1
"""same with rounded weights, on faces only: the output for a black image may depend on the last bit"""
OPSET = 20
"""TensorRT 10.12 and OpenVINO support all of it"""


@dataclass(frozen=True)
class ExportConfig:
    """Exports a trained model to ONNX."""

    model: Annotated[Path, tyro.conf.Positional]
    """best.safetensors of a run."""
    out: Path
    """The .onnx to write."""
    half: bool = False
    """Store weights in half precision, which halves the file; the arithmetic stays in f32."""


@ends_in_a_line
def main() -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # not the root logger: PyTorch's exporter logs every step
    log.setLevel(logging.INFO)
    cfg = tyro.cli(ExportConfig, prog="python -m engines.export")
    from lineament.train.model import load

    net, card = load(cfg.model)
    error_px = export(net, card, cfg.out, cfg.half)
    log.info("wrote %s: within %.4f px of PyTorch", cfg.out, error_px)
    return 0


def export(net: LandmarkNet, card: ModelCard, path: Path, half: bool = False) -> float:
    """Writes net as ONNX with its card; returns the largest distance from PyTorch's points, px of a 256-px crop.

    half: store weights in half precision. Raises LineamentError, and writes nothing, if the distance is more than
    MAX_ERROR_PX (HALF_MAX_ERROR_PX).
    """
    model = graph_of(net)
    if half:
        halve_weights(model)
    put_card(model, replace(card, built_with={**card.built_with, "onnx": version("onnx")}))
    data = model.SerializeToString()
    crops, most_px = real_crops(card, 8), HALF_MAX_ERROR_PX
    if not half:
        crops, most_px = np.concatenate([crops, np.zeros_like(crops[:1])]), MAX_ERROR_PX
    error_px = largest_difference_px(run_onnx(data, crops), run_torch(net, crops))
    if not error_px <= most_px:
        raise LineamentError(
            f"the exported graph is {error_px:.3f} px of a 256-px crop away from PyTorch, at most {most_px} is "
            f"allowed, so {path} was not written; try the torch and onnxscript in requirements-train.txt"
        )
    with replaced(path) as part:
        part.write_bytes(data)
    return error_px


def graph_of(net: LandmarkNet) -> onnx.ModelProto:
    """All of net, including decoding, with a dynamic batch size."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, rgb: torch.Tensor) -> Any:
            found = [output for output in self.net.points(rgb) if output is not None]
            return tuple(found) if len(found) > 1 else found[0]

    whole = Whole().eval().cpu()
    example = torch.zeros((2, *net.input_hw, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        names = [name for name, output in zip(OUTPUTS, net.points(example)) if output is not None]
        # about the exporter's internals
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            whole,
            (example,),
            input_names=["rgb"],
            output_names=names,
            dynamic_shapes={"rgb": {0: torch.export.Dim("n", min=1, max=1024)}},
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # the exporter records the source file and line of each node, which is large and private
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def halve_weights(model: onnx.ModelProto) -> None:
    """Rounds kernels and matrices to half precision, with a cast back to single before each use."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)


def restore_weights(model: onnx.ModelProto) -> None:
    """Undoes halve_weights except for the rounding: weights are single precision again, without casts."""
    from onnx import TensorProto, numpy_helper

    halved = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.input[0] in halved and node.attribute[0].i == TensorProto.FLOAT:
            tensor = halved[node.input[0]]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), node.output[0]))
            model.graph.node.remove(node)


def put_card(model: onnx.ModelProto, card: ModelCard) -> None:
    """Sets the card in the metadata."""
    kept = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != CARD_KEY]
    del model.metadata_props[:]
    for key, value in [*kept, (CARD_KEY, card.to_json())]:
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def real_crops(card: ModelCard, n: int) -> U8:
    """(n, H, W, 3) RGB: varied crops of the face in scikit-image's astronaut."""
    rgb = np.ascontiguousarray(portrait()[..., ::-1])
    rng = np.random.default_rng(0)
    crops = []
    for _ in range(n):
        center, half = np.array([225.0, 122.0]) + rng.normal(0, 8, 2), rng.uniform(45, 90)
        box = np.concatenate([center - half, center + half])
        matrix = crop_from_frame(box, card, float(rng.normal(0, 0.3)))
        crops.append(warp(rgb, matrix, card.input_hw))
    return np.stack(crops)


def run_torch(net: LandmarkNet, rgb_NHWC: U8) -> F32:
    from lineament.train.model import predictor

    return predictor(net)(rgb_NHWC)


def run_onnx(data: bytes, rgb_NHWC: U8) -> F32:
    """The points (N, K, 2) from ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["points"], {"rgb": rgb_NHWC})[0], np.float32)


def largest_difference_px(a_NK2: F32, b_NK2: F32) -> float:
    """Of any point, px of a 256-px crop; nan if either contains one."""
    return float(distances_px(a_NK2, b_NK2).max())


if __name__ == "__main__":
    sys.exit(main())
