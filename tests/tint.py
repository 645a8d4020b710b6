"""A model whose answer can be worked out: it turns the mean colour of a crop into points by a known matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import F32, U8

CARD = ModelCard(name="tint", schema="wflw98", input_hw=(12, 16), crop_scale=1.3)
RNG = np.random.default_rng(0)
MATRIX, OFFSET = RNG.normal(0, 0.5, (3, 196)).astype(np.float32), RNG.normal(0, 0.5, 196).astype(np.float32)

RAMP = np.linspace(0, 1, 98, dtype=np.float32)


def tint(
    path: Path,
    card: str | None = CARD.to_json(),
    batch: int | str = "N",
    hw: tuple[int, int] = (12, 16),
    n_points: int = 98,
    judges: bool = False,
    names: tuple[str, str] = ("rgb", "points"),
    dtype: int = onnx.TensorProto.UINT8,
) -> Path:
    """Writes a model whose points are (mean RGB / 255) @ MATRIX + OFFSET.

    judges: with the mean green as confidence, and the mean blue times RAMP as visibility.
    """
    constants = {
        "scale": np.float32(1 / 255),
        "matrix": MATRIX[:, : 2 * n_points],
        "offset": OFFSET[: 2 * n_points],
        "shape": np.array([-1, n_points, 2]),
        "green": np.int64(1),
        "blue": np.array([2]),
        "ramp": RAMP[None, :n_points],
    }
    nodes = [
        helper.make_node("Cast", [names[0]], ["rgb_float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["rgb_float", "scale"], ["light"]),
        helper.make_node("ReduceMean", ["light"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["mean", "matrix"], ["turned"]),
        helper.make_node("Add", ["turned", "offset"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], [names[1]]),
    ]
    outputs = [helper.make_tensor_value_info(names[1], onnx.TensorProto.FLOAT, [batch, n_points, 2])]
    if judges:
        nodes.append(helper.make_node("Gather", ["mean", "green"], ["confidence"], axis=1))
        outputs.append(helper.make_tensor_value_info("confidence", onnx.TensorProto.FLOAT, [batch]))
        nodes.append(helper.make_node("Gather", ["mean", "blue"], ["light_of_blue"], axis=1))
        nodes.append(helper.make_node("MatMul", ["light_of_blue", "ramp"], ["visibility"]))
        outputs.append(helper.make_tensor_value_info("visibility", onnx.TensorProto.FLOAT, [batch, n_points]))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tint",
            [helper.make_tensor_value_info(names[0], dtype, [batch, *hw, 3])],
            outputs,
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    if card is not None:
        helper.set_model_props(model, {"card": card})
    onnx.save(model, path)
    return path


def crops(n: int) -> U8:
    return np.random.default_rng(n).integers(0, 256, (n, 12, 16, 3)).astype(np.uint8)


def answer(rgb_NHWC: U8) -> F32:
    mean = rgb_NHWC.astype(np.float64).mean((1, 2)) / 255
    return np.asarray(mean @ MATRIX + OFFSET, np.float32).reshape(-1, 98, 2)


def tint_net() -> Any:
    """The same model as PyTorch has it, of the methods that a LandmarkNet is asked for."""
    import torch

    from lineament.train.model import Answer

    class Tint(torch.nn.Module):
        def points(self, rgb_BHW3: torch.Tensor) -> Answer:
            mean = rgb_BHW3.float().mean((1, 2)) / 255
            matrix, offset = (torch.from_numpy(array).to(mean.device) for array in (MATRIX, OFFSET))
            points = mean @ matrix + offset
            return Answer(points.unflatten(1, (98, 2)), None, None)

    return Tint()
