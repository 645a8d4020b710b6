"""A landmark graph in half precision, with single precision where it matters, for runtimes that take types as written.

    half = half_precision(onnx.load("b5.onnx"))

TensorRT 11 chooses no precision of its own: a network runs in the types that its graph names. So the graph itself is
rewritten. Pixels become floats as the first thing of all, for TensorRT moves no uint8 about. Half are the layers with
weights and all between them, which is nearly all of the work. Single stay:

    before the first layer   pixels and their normalisation
    averages                 a mean over a whole map adds up more than half precision can count
    the last layer, where it gives coordinates: near 0.7, half precision knows steps of 0.12 px in a crop of 256
    decoding                 softmax, argmax, expected values, and all that follows

The pass is our own, after trying two others on the graphs of PyTorch's exporter (2026-11):

    onnxconverter-common 1.16   leaves the exporter's own casts as they are, and so writes a graph that does not load
                                (Type Error at the first Cast) unless every such node is named to it; then puts a cast
                                at each border of each named node; raises small weights to 1e-7
    NVIDIA ModelOpt 0.47        AutoCast wants onnx 1.21, ONNX Runtime 1.24 for CUDA, CuPy and Polygraphy: gigabytes
                                that contradict the pins of requirements-train.txt, for the same rewriting
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lineament.engines.export import restore_weights
from lineament.landmarks.types import F32, LineamentError

if TYPE_CHECKING:
    import onnx

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AVERAGES = ("ReduceMean", "GlobalAveragePool", "ReduceSum")
_CHOICES = ("Softmax", "LogSoftmax", "ArgMax")
"""where scores end and decoding begins"""
_DATA_INPUTS = {"Resize": (0,), "Pad": (0, 2), "Clip": (0, 1, 2)}
"""inputs that may be half, for operators that have others which may not"""
_LIMIT = float(np.finfo(np.float16).max)


def half_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of model, same inputs and outputs. Raises LineamentError when a weight is too large for half precision."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    restore_weights(whole)
    try:
        model = onnx.shape_inference.infer_shapes(whole, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:200]
        raise LineamentError(f"the types in the graph cannot be worked out: {reason}; export it again") from None
    graph = model.graph
    _cast_pixels_first(graph)
    floats = {
        port.name
        for port in [*graph.input, *graph.output, *graph.value_info]
        if port.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    weights = {tensor.name: tensor for tensor in graph.initializer}
    floats |= {name for name, tensor in weights.items() if tensor.data_type == TensorProto.FLOAT}
    outputs = {port.name for port in graph.output}
    to_half = _half_nodes(model)

    # tensors that are half under their own name, and the names of copies by (tensor, type)
    halves: set[str] = set()
    cast: dict[tuple[str, int], str] = {}
    nodes: list[onnx.NodeProto] = []

    def as_type(name: str, wanted: int) -> str:
        """The name under which tensor `name` can be had in type wanted; makes it when nobody has asked before."""
        if (name in halves) == (wanted == TensorProto.FLOAT16):
            return name
        if (name, wanted) not in cast:
            other = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
            if name in weights:
                graph.initializer.append(_half_weight(numpy_helper.to_array(weights[name]), name, other))
            else:
                nodes.append(helper.make_node("Cast", [name], [other], name=f"cast_{other}", to=wanted))
            cast[name, wanted] = other
        return cast[name, wanted]

    for i, node in enumerate(graph.node):
        wanted = TensorProto.FLOAT16 if i in to_half else TensorProto.FLOAT
        for at, name in enumerate(node.input):
            if name in floats and at in _DATA_INPUTS.get(node.op_type, range(len(node.input))):
                node.input[at] = as_type(name, wanted)
        back = []
        for at, name in enumerate(node.output):
            if i in to_half and name in floats:
                if name in outputs:
                    node.output[at] = f"{name}_half"
                    back.append(helper.make_node("Cast", [node.output[at]], [name], to=TensorProto.FLOAT))
                else:
                    halves.add(name)
        nodes += [node, *back]

    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    rewritten = helper.make_graph(nodes, graph.name, graph.input, graph.output, kept)
    half = helper.make_model(
        rewritten, opset_imports=model.opset_import, producer_name=model.producer_name, ir_version=model.ir_version
    )
    half.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(half)
    # sizes and types of all tensors anew, and proof that the types agree
    return onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)


def precisions_of_layers(model: onnx.ModelProto) -> tuple[int, int]:
    """How many layers with weights are in half and in single precision."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = [types[node.input[1]] for node in model.graph.node if _is_layer(node, types)]
    return found.count(10), found.count(1)  # FLOAT16, FLOAT


def _cast_pixels_first(graph: onnx.GraphProto) -> None:
    """uint8 -> Transpose -> Cast becomes uint8 -> Cast -> Transpose, in place."""
    from onnx import NodeProto, TensorProto

    pixels = {port.name for port in graph.input if port.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in pixels:
            continue
        readers = [other for other in graph.node if node.output[0] in other.input]
        if len(readers) != 1 or readers[0].op_type != "Cast":
            continue
        turn, cast = NodeProto(), NodeProto()
        turn.CopyFrom(node)
        cast.CopyFrom(readers[0])
        cast.input[0], cast.output[0] = node.input[0], node.output[0]
        turn.input[0], turn.output[0] = cast.output[0], readers[0].output[0]
        node.CopyFrom(cast)
        readers[0].CopyFrom(turn)


def _half_nodes(model: onnx.ModelProto) -> set[int]:
    """Indices of the nodes that become half: see the module."""
    nodes = list(model.graph.node)
    weights = [tensor.name for tensor in model.graph.initializer]
    decoding = _reached(nodes, (i for i, node in enumerate(nodes) if node.op_type in _CHOICES))
    layers = {i for i, node in enumerate(nodes) if _is_layer(node, weights) and i not in decoding}
    chosen_from = _reaching(nodes, decoding)
    # a layer that no other follows and that nothing is chosen from gives the coordinates themselves
    last = {
        i
        for i in layers
        if nodes[i].op_type in ("Gemm", "MatMul") and i not in chosen_from and _reached(nodes, [i]) & layers == {i}
    }
    layers -= last
    between = _reached(nodes, layers) & _reaching(nodes, layers)
    return {i for i in between if nodes[i].op_type not in _AVERAGES}


def _is_layer(node: onnx.NodeProto, weights: Iterable[str]) -> bool:
    return node.op_type in _LAYERS and node.input[1] in weights


def _reached(nodes: list[onnx.NodeProto], start: Iterable[int]) -> set[int]:
    """start, and all that depends on it. An ONNX graph lists its nodes in the order in which they can run."""
    found, tensors = set(start), set[str]()
    for i, node in enumerate(nodes):
        if i in found or not tensors.isdisjoint(node.input):
            found.add(i)
            tensors.update(node.output)
    return found


def _reaching(nodes: list[onnx.NodeProto], end: Iterable[int]) -> set[int]:
    """end, and all that it depends on."""
    found, tensors = set(end), set[str]()
    for i, node in reversed(list(enumerate(nodes))):
        if i in found or not tensors.isdisjoint(node.output):
            found.add(i)
            tensors.update(node.input)
    return found


def _half_weight(values: F32, name: str, other: str) -> onnx.TensorProto:
    from onnx import numpy_helper

    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > _LIMIT:
        raise LineamentError(
            f"the weights {name!r} reach {np.abs(values).max():.3g}, more than half precision holds ({_LIMIT:.0f}); "
            "run this model by OpenVINO or ONNX Runtime, or train it with weight decay"
        )
    return numpy_helper.from_array(values.astype(np.float16), other)
