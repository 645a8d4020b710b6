"""A landmark model in NVIDIA DeepStream: the graph and configuration of nvinfer, and what it cuts out of a frame.

    rect = nvinfer_rect(face, card, (1080, 1920))                                # for the object, before nvinfer
    frame_from_unit(nvinfer_crop(rect, card), card.input_hw)                     # for the model's points, after it

nvinfer cuts exactly the rectangle of an object, which is therefore grown to our crop first. The keys of its
configuration, and how it cuts (get_converted_buffer in gstnvinfer.cpp), are those of DeepStream 9:
github.com/NVIDIA/DeepStream, src/gst-plugins/gst-nvinfer. docs/serving.md has the code around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lineament.engines.model_file import CONFIDENCE, INPUT
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import F64

if TYPE_CHECKING:
    import onnx

Rect = tuple[float, float, float, float]
"""left, top, width and height of a rectangle in DeepStream: frame px, from the edges of pixels"""


def planar(half: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph of fp16.half_precision that takes what nvinfer passes: float32 (N, 3, H, W) RGB, 0..255.

    Its confidence is (N, 1), because nvinfer takes the batch off: a number would have no dimension.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.ModelProto()
    model.CopyFrom(half)
    graph, pixels = model.graph, f"{INPUT}_NHWC"
    others = {INPUT: pixels, CONFIDENCE: f"{CONFIDENCE}_N"}
    for node in graph.node:
        node.input[:] = [others.get(name, name) for name in node.input]
        node.output[:] = [others.get(name, name) for name in node.output]
    graph.node.insert(0, helper.make_node("Transpose", [INPUT], [pixels], name=pixels, perm=[0, 2, 3, 1]))
    batch, height, width, _ = graph.input[0].type.tensor_type.shape.dim
    shape = [batch.dim_param, 3, height.dim_value, width.dim_value]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, shape))
    for output in graph.output:
        if output.name == CONFIDENCE:
            graph.node.append(helper.make_node("Flatten", [others[CONFIDENCE]], [CONFIDENCE], name=CONFIDENCE, axis=1))
            output.type.tensor_type.shape.dim.add(dim_value=1)
    # inferred for NHWC bytes; the checker infers them again
    del graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def nvinfer_config(card: ModelCard, max_batch: int, face_class: int = 0) -> str:
    """The text of nvinfer's configuration, for landmarks.onnx in the same folder."""
    height, width = card.input_hw
    padded = int(not isinstance(card.crop_scale, tuple))
    return f"""# {card.name}, on the faces that the detector with gie-unique-id=1 finds.
# Their rectangles have to be grown and squared before: docs/serving.md of Lineament.
[property]
gie-unique-id=2
# secondary: on the detector's objects
process-mode=2
operate-on-gie-id=1
operate-on-class-ids={face_class}
input-object-min-width=16
input-object-min-height=16
# other: its outputs are attached to the object as they are
network-type=100
output-tensor-meta=1
onnx-file=landmarks.onnx
model-engine-file=landmarks.onnx_b{max_batch}_gpu0_fp32.engine
batch-size={max_batch}
# in the types of the graph, which is in half precision
strongly-typed=1
network-mode=0
infer-dims=3;{height};{width}
network-input-order=0
# RGB, 0..255: normalisation is part of the graph
model-color-format=0
net-scale-factor=1.0
maintain-aspect-ratio={padded}
symmetric-padding={padded}
# bilinear
scaling-filter=1
"""


def nvinfer_rect(face: Rect, card: ModelCard, frame_hw: tuple[int, int]) -> Rect:
    """The rectangle that an object needs for nvinfer to cut the crop of geometry.crop_from_frame, upright.

    face: as points bound a face. nvinfer does not cut beyond the frame, so the rectangle is moved into it, and is at
    most as large. nvinfer rounds to even numbers, so all four are even. Raises ValueError if face is empty or not
    finite.
    """
    if not (np.isfinite(face).all() and min(face[2:]) > 0):
        raise ValueError(f"cannot crop round a rectangle that is empty or not finite: {face}")
    size_wh, most_wh = np.array(face[2:]), np.array(frame_hw[::-1]) // 2 * 2
    middle_xy = face[:2] + size_wh / 2
    grown_wh = size_wh * card.crop_scale if isinstance(card.crop_scale, tuple) else max(size_wh) * card.crop_scale
    sides_wh = np.clip(2 * np.round(np.broadcast_to(grown_wh, 2) / 2), 2, most_wh)
    start_xy = np.clip(2 * np.round((middle_xy - sides_wh / 2) / 2), 0, most_wh - sides_wh)
    return (*start_xy.tolist(), *sides_wh.tolist())


def nvinfer_crop(rect: Rect, card: ModelCard) -> F64:
    """(2, 3) crop_from_frame of what nvinfer cuts for a rectangle of nvinfer_rect, in the pixels of landmarks.types.

    With it, geometry.frame_from_unit maps the model's points to the frame.
    """
    left, top, wide, high = map(int, rect)
    height, width = card.input_hw
    to_wh = [width, height]
    if not isinstance(card.crop_scale, tuple):
        # the other side is padded in black, half on each end
        to_wh = [width, width * high // wide] if width * high <= height * wide else [height * wide // high, height]
    scale_xy = np.array(to_wh) / [wide, high]
    pad_xy = (np.array([width, height]) - to_wh) // 2
    # a pixel's centre is half a pixel from its edge
    offset_xy = pad_xy + scale_xy * (0.5 - np.array([left, top])) - 0.5
    return np.column_stack([np.diag(scale_xy), offset_xy])
