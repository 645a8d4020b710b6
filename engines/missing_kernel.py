"""Finds the nodes for which TensorRT has no half-precision kernel, in the messages of a failed build.

A strongly typed network leaves TensorRT no choice: if it lacks a kernel for one node in half precision, nothing is
built. TensorRT 11.2 lacks it for grouped convolutions on an RTX 4090, where 10.16 has it
(https://github.com/NVIDIA/TensorRT/issues/4838). In single precision that node can be built. It is named by itself,
with the nodes that are fused with it, or only as part of a range that is compiled as a whole:

    Could not find any implementation for node node_Conv_12. In computeCosts at ...
    Could not find any implementation for node weight + node_Conv_12 + PWN(node_Sigmoid_3, node_silu).)
    Could not find any implementation for node {ForeignNode[node_Conv_3...node_Conv_30]}.)

For a range, an earlier message may name the operation by its output, with underscores for dots:

    Autotuner: no tactics to implement operation: 1379: corrltn: val_12'_before_bias.1-(f16[1,48,64,64]...
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

_REFUSED = re.compile(r"(?:any implementation for node|Failing node:|No implementation of layer) (.+)")
_RANGE = re.compile(r"ForeignNode\[(.+?)\.\.\.(.+)\]\}")
_GROUPED = "grouped "
_OPERATION = re.compile(r"no tactics to implement operation: *\d+: \w+: ([^' ]+)'")


def refused_nodes(half: onnx.ModelProto, messages: Sequence[str], moved: Collection[str] = ()) -> list[str]:
    """Names of the nodes of half to build in single precision, in the order of the graph; none if none is named.

    moved: the nodes that already are. If a grouped convolution is refused after one like it, all like it are named: a
    B5 has 39, and each failed build takes minutes.
    """
    said = [" ".join(message.split()) for message in messages]
    refused = [found[1] for message in said if (found := _REFUSED.search(message))]
    nodes, names = _half_nodes(half), [node.name for node in half.graph.node]
    ranges = [found for text in refused if (found := _RANGE.search(text))]
    named = {name for text in refused if not _RANGE.search(text) for name in _named(names, text)}
    named |= _of_operations(nodes, [found[1] for message in said if (found := _OPERATION.search(message))])
    named &= set(nodes)
    if not named and ranges:
        named = _in_range(nodes, names, ranges[0][1], ranges[0][2])
    before = {_kind(node) for node in half.graph.node if node.name in moved}
    again = {kind for name in named if (kind := _kind(nodes[name])) in before and kind.startswith(_GROUPED)}
    return [name for name, node in nodes.items() if name in named or _kind(node) in again]


def _half_nodes(half: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes that take half precision, by name, without the casts from it."""
    from onnx import TensorProto

    halves = {tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    ports = half.graph.value_info
    halves |= {port.name for port in ports if port.type.tensor_type.elem_type == TensorProto.FLOAT16}
    return {node.name: node for node in half.graph.node if node.op_type != "Cast" and halves & set(node.input)}


def _named(names: Collection[str], text: str) -> set[str]:
    """Those of names that are in text, neither as the middle of a longer name nor of a path.

    The parser adds a number to the name of a node for which it makes several layers.
    """
    found = set()
    for name in names:
        if name in text:
            whole = re.finditer(rf"(?<![\w/:-])(?<!\w\.){re.escape(name)}(?:_\d+)?(?![\w/:-]|\.\w)", text)
            if any(match[0] == name or match[0] not in names for match in whole):
                found.add(name)
    return found


def _of_operations(nodes: Mapping[str, onnx.NodeProto], outputs: Collection[str]) -> set[str]:
    flat = {re.sub(r"\W", "_", output) for output in outputs}
    return {name for name, node in nodes.items() if any(re.sub(r"\W", "_", output) in flat for output in node.output)}


def _in_range(nodes: Mapping[str, onnx.NodeProto], names: Sequence[str], begin: str, end: str) -> set[str]:
    """The grouped convolutions between two layers of TensorRT, or all layers with weights if none is half.

    nodes: those in half precision. names: of all, in the order of the graph. begin, end: each may be a constant or
    TensorRT's own layer; the range then extends to that end of the graph.
    """
    first = min(map(names.index, _named(names, begin)), default=0)
    last = max(map(names.index, _named(names, end)), default=len(names) - 1)
    kinds = {name: kind for name in names[first : last + 1] if name in nodes and (kind := _kind(nodes[name]))}
    return {name for name, kind in kinds.items() if kind.startswith(_GROUPED)} or set(kinds)


def _kind(node: onnx.NodeProto) -> str:
    """What layers have in common that need the same kernel; empty if node has no weights."""
    from onnx import helper

    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return ""
    values: dict[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    grouped = values.pop("group", 1) > 1
    return f"{_GROUPED * grouped}{node.op_type} {sorted(values.items())}"
