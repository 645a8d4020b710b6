"""Crops cut on the GPU: a graph from a frame to the crops of its faces, equivalent to landmarks.geometry.warp.

    graph = crop_graph((256, 256))

Inputs are `frame`, uint8 (H, W, 3) BGR of any size, and `matrices`, float32 (N, 2, 3), frame_from_crop in pixels. The
output is `rgb`, uint8 (N, height, width, 3), which is the input of the landmark graph, so the two run back to back and
the crops never leave the GPU. It does not average: a crop that shrinks its frame to less than half is cut on the CPU by
landmarks.geometry.warp, which does.

Bilinear weights are exact here and multiples of 1/32 in OpenCV: on photos the two differ by 0.1 of 255 on average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lineament.engines.model_file import INPUT

if TYPE_CHECKING:
    import onnx

FRAME, MATRICES = "frame", "matrices"
"""input names"""
OPSET = 19
"""20 renames GridSample's `bilinear` to `linear`, which TensorRT up to 11.1 reads as `nearest`: NVIDIA/TensorRT 4646"""


def crop_graph(input_hw: tuple[int, int]) -> onnx.ModelProto:
    """Stacks the sampling grids of all crops into one tall grid, so that a single GridSample reads the frame once."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"crop_{output}", **attributes))
        return output

    _add_grid(add)
    _add_sampling(add)
    inputs = [
        helper.make_tensor_value_info(FRAME, TensorProto.UINT8, ["H", "W", 3]),
        helper.make_tensor_value_info(MATRICES, TensorProto.FLOAT, ["N", 2, 3]),
    ]
    outputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", *input_hw, 3])]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in _constants(*input_hw).items()]
    model = helper.make_model(
        helper.make_graph(nodes, "crops", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="lineament",
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model


def _constants(height: int, width: int) -> dict[str, Any]:
    return {
        # crop pixels; landmarks.types states the pixel convention
        "xs": np.arange(width, dtype=np.float32).reshape(1, 1, width),
        "ys": np.arange(height, dtype=np.float32).reshape(1, height, 1),
        "at_0": np.array(0),
        "at_1": np.array(1),
        "at_2": np.array(2),
        "axis_0": np.array([0]),
        "axes_12": np.array([1, 2]),
        "axis_last": np.array([3]),
        "two": np.float32(2),
        "one": np.float32(1),
        "low": np.float32(0),
        "high": np.float32(255),
        "channels": np.array([2, 1, 0]),
        "tall": np.array([1, -1, width, 2]),
        "single": np.array([-1, height, width, 3]),
    }


def _add_grid(add: Callable[..., str]) -> None:
    """From frame and matrices to `grid_tall`, (1, N * height, width, 2): x and y of each crop pixel in the frame."""
    from onnx import TensorProto

    add("Shape", [FRAME], "frame_shape")
    grid = []
    for row, side in (("0", "at_1"), ("1", "at_0")):  # x and the frame's width, then y and its height
        add("Gather", [MATRICES, f"at_{row}"], f"row_{row}", axis=1)
        for column in "012":
            add("Gather", [f"row_{row}", f"at_{column}"], f"scalar_{row}{column}", axis=1)
            add("Unsqueeze", [f"scalar_{row}{column}", "axes_12"], f"m_{row}{column}")
        # products and sums instead of a matrix product, which a GPU may round to ten bits
        add("Mul", [f"m_{row}0", "xs"], f"along_x_{row}")
        add("Mul", [f"m_{row}1", "ys"], f"along_y_{row}")
        add("Add", [f"along_x_{row}", f"along_y_{row}"], f"turned_{row}")
        add("Add", [f"turned_{row}", f"m_{row}2"], f"pixel_{row}")
        # GridSample's -1..1 spans the image from edge to edge: unit coordinates times 2, minus 1
        add("Gather", ["frame_shape", side], f"side_{row}", axis=0)
        add("Cast", [f"side_{row}"], f"size_{row}", to=TensorProto.FLOAT)
        add("Mul", [f"pixel_{row}", "two"], f"doubled_{row}")
        add("Add", [f"doubled_{row}", "one"], f"centred_{row}")
        add("Div", [f"centred_{row}", f"size_{row}"], f"unit_{row}")
        add("Sub", [f"unit_{row}", "one"], f"flat_{row}")
        grid.append(add("Unsqueeze", [f"flat_{row}", "axis_last"], f"grid_{row}"))
    add("Concat", grid, "grid", axis=3)
    add("Reshape", ["grid", "tall"], "grid_tall")


def _add_sampling(add: Callable[..., str]) -> None:
    """From frame and `grid_tall` to the crops."""
    from onnx import TensorProto

    add("Cast", [FRAME], "frame_float", to=TensorProto.FLOAT)
    add("Gather", ["frame_float", "channels"], "frame_rgb", axis=2)
    add("Transpose", ["frame_rgb"], "frame_CHW", perm=[2, 0, 1])
    add("Unsqueeze", ["frame_CHW", "axis_0"], "frame_1CHW")
    add("GridSample", ["frame_1CHW", "grid_tall"], "sampled", mode="bilinear", padding_mode="zeros", align_corners=0)
    add("Transpose", ["sampled"], "sampled_HWC", perm=[0, 2, 3, 1])
    add("Reshape", ["sampled_HWC", "single"], "crops_float")
    add("Round", ["crops_float"], "rounded")
    add("Clip", ["rounded", "low", "high"], "clipped")
    add("Cast", ["clipped"], INPUT, to=TensorProto.UINT8)
