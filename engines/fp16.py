"""A landmark graph in half precision, with single precision where accuracy needs it, for strongly typed runtimes.

    half = half_precision(onnx.load("b5.onnx"))

TensorRT 11 does not choose precisions: a network runs in the types of its graph, so the graph itself is rewritten.
Pixels are cast to float before anything else, because TensorRT does not transpose uint8. Layers with weights and all
nodes between them, nearly all of the work, become half precision. These stay in single precision:

    before the first layer   pixels and their normalisation
    averages                 a mean over a whole feature map exceeds the range and resolution of half precision
    the last layer, if it outputs coordinates: near 0.7, the spacing of half precision is 0.12 px in a crop of 256
    decoding                 softmax, argmax, expected values and everything after them
    any other node by name, if TensorRT has no half-precision kernel for it (engines.missing_kernel)

Two existing tools were tried on the graphs of PyTorch's exporter (2026-11):

    onnxconverter-common 1.16   keeps the exporter's own casts and so writes a graph that does not load (Type Error at
                                the first Cast) unless each such node is listed; then adds casts around every listed
                                node; raises small weights to 1e-7
    NVIDIA ModelOpt 0.47        AutoCast needs onnx 1.21, ONNX Runtime 1.24 for CUDA, CuPy and Polygraphy: gigabytes
                                that conflict with the pins of requirements-train.txt, for the same rewriting
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lineament.engines.export import restore_weights
from lineament.landmarks.types import F32, LineamentError

if TYPE_CHECKING:
    import onnx

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AVERAGES = ("ReduceMean", "GlobalAveragePool", "ReduceSum")
_DECODERS = ("Softmax", "LogSoftmax", "ArgMax")
"""the first operators of decoding"""
_DATA_INPUTS = {"Resize": (0,), "Pad": (0, 2), "Clip": (0, 1, 2)}
"""the inputs that may be half, for operators with other inputs that may not"""
_LIMIT = float(np.finfo(np.float16).max)


def half_precision(model: onnx.ModelProto, keep_single: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of model, same inputs and outputs. Raises LineamentError when a weight is too large for half precision,
    or the model quantized.

    keep_single: names, in the copy, of nodes to leave in single precision. Every node of the copy has a unique name.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise LineamentError("the model is quantized for CPUs; give the .onnx or checkpoint that it was made from")
    typed = _with_types(model)
    _name_nodes(typed.graph)
    _cast_pixels_first(typed.graph)
    half_nodes, rewrite = _half_nodes(typed), _Rewrite(typed.graph)
    for i, node in enumerate(typed.graph.node):
        rewrite.add(node, half=i in half_nodes and node.name not in keep_single)
    return _assembled(typed, rewrite.nodes)


def precisions_of_layers(model: onnx.ModelProto) -> tuple[int, int]:
    """The number of layers with weights in half and in single precision."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = [types[node.input[1]] for node in model.graph.node if _is_layer(node, types)]
    return found.count(10), found.count(1)  # TensorProto.FLOAT16, TensorProto.FLOAT


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with single-precision weights and with the type of every tensor."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    restore_weights(copy)
    try:
        return onnx.shape_inference.infer_shapes(copy, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        reason = " ".join(str(error).split())[:200]
        raise LineamentError(f"cannot infer the tensor types of the graph: {reason}; export it again") from None


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names the nodes that have no name or that of another, in place: TensorRT says by name which one it refuses."""
    taken: set[str] = set()
    for node in graph.node:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)


class _Rewrite:
    """Collects a graph's nodes in their new precisions, with a cast wherever half and single precision meet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        from onnx import TensorProto

        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        ports = [*graph.input, *graph.output, *graph.value_info]
        self._floats = {port.name for port in ports if port.type.tensor_type.elem_type == TensorProto.FLOAT}
        self._floats |= {name for name, w in self._weights.items() if w.data_type == TensorProto.FLOAT}
        self._outputs = {port.name for port in graph.output}
        self._halves: set[str] = set()
        """tensors that are half under their own name"""
        self._copies: dict[str, str] = {}
        """names of the copies in the other precision"""

    def add(self, node: onnx.NodeProto, half: bool) -> None:
        """Adds node with all its floating-point inputs in one precision. The graph's outputs stay single."""
        from onnx import TensorProto, helper

        for at, name in enumerate(node.input):
            if name in self._floats and at in _DATA_INPUTS.get(node.op_type, range(len(node.input))):
                node.input[at] = self._in_precision(name, half)
        casts = []
        for at, name in enumerate(node.output):
            if half and name in self._outputs & self._floats:
                node.output[at] = f"{name}_half"
                casts.append(
                    helper.make_node("Cast", [node.output[at]], [name], name=f"cast_{name}", to=TensorProto.FLOAT)
                )
            elif half and name in self._floats:
                self._halves.add(name)
        self.nodes += [node, *casts]

    def _in_precision(self, name: str, half: bool) -> str:
        """The name of tensor `name` in that precision; the copy is made at its first use."""
        from onnx import TensorProto, helper, numpy_helper

        if (name in self._halves) == half:
            return name
        if name not in self._copies:
            copy = f"{name}_{'half' if half else 'single'}"
            if name in self._weights:
                values = numpy_helper.to_array(self._weights[name])
                self._graph.initializer.append(_half_weight(values, name, copy))
            else:
                to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
                self.nodes.append(helper.make_node("Cast", [name], [copy], name=f"cast_{copy}", to=to))
            self._copies[name] = copy
        return self._copies[name]


def _assembled(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """A checked model of these nodes and the weights that they use; all else is model's."""
    import onnx
    from onnx import helper

    graph = model.graph
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    assembled = helper.make_model(
        helper.make_graph(nodes, graph.name, graph.input, graph.output, weights),
        opset_imports=model.opset_import,
        producer_name=model.producer_name,
        ir_version=model.ir_version,
    )
    assembled.metadata_props.extend(model.metadata_props)
    onnx.checker.check_model(assembled)
    # infers all shapes and types again and checks that the types agree
    return onnx.shape_inference.infer_shapes(assembled, check_type=True, strict_mode=True)


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
        transpose, cast = NodeProto(), NodeProto()
        transpose.CopyFrom(node)
        cast.CopyFrom(readers[0])
        cast.input[0], cast.output[0] = node.input[0], node.output[0]
        transpose.input[0], transpose.output[0] = cast.output[0], readers[0].output[0]
        node.CopyFrom(cast)
        readers[0].CopyFrom(transpose)


def _half_nodes(model: onnx.ModelProto) -> set[int]:
    """Indices of the nodes that become half, by the rules of this module's docstring."""
    nodes = list(model.graph.node)
    weights = [tensor.name for tensor in model.graph.initializer]
    decoding = _downstream(nodes, (i for i, node in enumerate(nodes) if node.op_type in _DECODERS))
    layers = {i for i, node in enumerate(nodes) if _is_layer(node, weights) and i not in decoding}
    decoded = _upstream(nodes, decoding)
    # a last layer whose output is not decoded outputs the coordinates themselves
    last = {
        i
        for i in layers
        if nodes[i].op_type in ("Gemm", "MatMul") and i not in decoded and _downstream(nodes, [i]) & layers == {i}
    }
    layers -= last
    between = _downstream(nodes, layers) & _upstream(nodes, layers)
    return {i for i in between if nodes[i].op_type not in _AVERAGES}


def _is_layer(node: onnx.NodeProto, weights: Iterable[str]) -> bool:
    return node.op_type in _LAYERS and node.input[1] in weights


def _downstream(nodes: list[onnx.NodeProto], start: Iterable[int]) -> set[int]:
    """start, and all nodes that depend on it. An ONNX graph is sorted topologically."""
    found, tensors = set(start), set[str]()
    for i, node in enumerate(nodes):
        if i in found or not tensors.isdisjoint(node.input):
            found.add(i)
            tensors.update(node.output)
    return found


def _upstream(nodes: list[onnx.NodeProto], end: Iterable[int]) -> set[int]:
    """end, and all nodes that it depends on."""
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
            f"the weights {name!r} reach {np.abs(values).max():.3g}, above half precision's maximum of {_LIMIT:.0f}; "
            "run this model with OpenVINO or ONNX Runtime, or train it with weight decay"
        )
    return numpy_helper.from_array(values.astype(np.float16), other)
