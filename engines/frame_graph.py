"""Crops cut on the GPU: a graph that takes a frame and gives the crops of its faces, as landmarks.geometry.warp does.

    graph = crop_graph((256, 256))

It takes `frame`, uint8 (H, W, 3) BGR of any size, and `matrices`, float32 (N, 2, 3), frame_from_crop in pixels, and
gives `rgb`, uint8 (N, height, width, 3): what the landmark graph takes, so that the two run one after the other and
the crops never leave the GPU. Only a crop that shrinks its frame to less than half is not its business: the CPU's
averages first (see landmarks.geometry.warp), and that one is then asked.

Pixels between others are weighed exactly here and in steps of 1/32 by OpenCV: on photos the two differ by 0.1 of 255
on average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lineament.engines.model_file import INPUT

if TYPE_CHECKING:
    import onnx

FRAME, MATRICES = "frame", "matrices"
"""names of its inputs"""
OPSET = 20


def crop_graph(input_hw: tuple[int, int]) -> onnx.ModelProto:
    """The grids of all crops are stacked into one tall grid, so that one GridSample reads the one frame."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    height, width = input_hw
    constants = {
        # of crop pixels; the pixel convention is in landmarks.types
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
    nodes = []

    def node(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"crop_{output}", **attributes))
        return output

    node("Shape", [FRAME], "frame_shape")
    grid = []
    for row, side in (("0", "at_1"), ("1", "at_0")):  # x, with the frame's width; y, with its height
        node("Gather", [MATRICES, f"at_{row}"], f"row_{row}", axis=1)
        for column in "012":
            node("Gather", [f"row_{row}", f"at_{column}"], f"scalar_{row}{column}", axis=1)
            node("Unsqueeze", [f"scalar_{row}{column}", "axes_12"], f"m_{row}{column}")
        # products and sums, not a matrix product, which a GPU may round to ten bits
        node("Mul", [f"m_{row}0", "xs"], f"along_x_{row}")
        node("Mul", [f"m_{row}1", "ys"], f"along_y_{row}")
        node("Add", [f"along_x_{row}", f"along_y_{row}"], f"turned_{row}")
        node("Add", [f"turned_{row}", f"m_{row}2"], f"pixel_{row}")
        # GridSample's -1..1 runs from edge to edge of the picture: unit coordinates, doubled
        node("Gather", ["frame_shape", side], f"side_{row}", axis=0)
        node("Cast", [f"side_{row}"], f"size_{row}", to=TensorProto.FLOAT)
        node("Mul", [f"pixel_{row}", "two"], f"doubled_{row}")
        node("Add", [f"doubled_{row}", "one"], f"centred_{row}")
        node("Div", [f"centred_{row}", f"size_{row}"], f"unit_{row}")
        node("Sub", [f"unit_{row}", "one"], f"flat_{row}")
        grid.append(node("Unsqueeze", [f"flat_{row}", "axis_last"], f"grid_{row}"))
    node("Concat", grid, "grid", axis=3)
    node("Reshape", ["grid", "tall"], "grid_tall")
    node("Cast", [FRAME], "frame_float", to=TensorProto.FLOAT)
    node("Gather", ["frame_float", "channels"], "frame_rgb", axis=2)
    node("Transpose", ["frame_rgb"], "frame_CHW", perm=[2, 0, 1])
    node("Unsqueeze", ["frame_CHW", "axis_0"], "frame_1CHW")
    node("GridSample", ["frame_1CHW", "grid_tall"], "sampled", mode="linear", padding_mode="zeros", align_corners=0)
    node("Transpose", ["sampled"], "sampled_HWC", perm=[0, 2, 3, 1])
    node("Reshape", ["sampled_HWC", "single"], "crops_float")
    node("Round", ["crops_float"], "rounded")
    node("Clip", ["rounded", "low", "high"], "clipped")
    node("Cast", ["clipped"], INPUT, to=TensorProto.UINT8)
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "crops",
            [
                helper.make_tensor_value_info(FRAME, TensorProto.UINT8, ["H", "W", 3]),
                helper.make_tensor_value_info(MATRICES, TensorProto.FLOAT, ["N", 2, 3]),
            ],
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", height, width, 3])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="lineament",
        ir_version=9,
    )
    onnx.checker.check_model(model)
    return model
