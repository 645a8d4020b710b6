"""A graph in half precision says the same, is half where the work is, and single where half would be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lineament.engines.export import graph_of, halve_weights, put_card, real_crops, run_onnx
from lineament.engines.fp16 import half_precision, precisions_of_layers
from lineament.engines.import_onnx import ImportConfig, import_onnx
from lineament.engines.model_file import CARD_KEY, read_card
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import F32, LineamentError
from lineament.train.heads import HeadName
from lineament.train.model import LandmarkNet, NetSpec, new_card

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper
HEADS: tuple[HeadName, ...] = ("coords", "simcc", "heatmap", "star")
CROP_PX = 256


def net_of(head: HeadName) -> LandmarkNet:
    """A tiny net whose points, unlike those of a fresh one, move with the picture."""
    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", head=head, input_hw=(64, 64), presence=True)).eval()
    last = {"coords": "head.linear.weight", "simcc": "head.per_point.weight"}.get(head, "head.outputs.0.weight")
    with torch.no_grad():
        net.get_parameter(last).mul_({"coords": 1000, "simcc": 3000, "heatmap": 30, "star": 30}[head])
    return net


@pytest.fixture(scope="module", params=HEADS)
def pair(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, onnx.ModelProto, ModelCard]:
    """A graph, the same in half precision, and their card."""
    net = net_of(request.param)
    card = new_card(net, request.param, 1.3)
    model = graph_of(net)
    put_card(model, card)
    return model, half_precision(model), card


def error_px(single: onnx.ModelProto, half: onnx.ModelProto, card: ModelCard) -> F32:
    """(N, K) px of a 256-px crop."""
    crops = real_crops(card, 9)
    wanted, got = (run_onnx(model.SerializeToString(), crops) for model in (single, half))
    moved = np.ptp(wanted, axis=0).max() * CROP_PX
    assert moved > 5, "a graph that gives the same points whatever it sees proves nothing"
    return np.asarray(np.linalg.norm(wanted - got, axis=-1) * CROP_PX, np.float32)


def test_its_points_are_those_of_the_single_precision_graph(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard],
) -> None:
    single, half, card = pair
    error = error_px(single, half, card)
    if card.head == "heatmap":
        # untrained heatmaps have second peaks as high as the first, and the least rounding picks the other one
        assert np.percentile(error, 97) < 0.5
    else:
        assert error.max() < 0.5


def test_all_layers_are_half_but_the_last_that_gives_numbers_themselves(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard],
) -> None:
    single, half, card = pair
    n_half, n_single = precisions_of_layers(half)
    # the presence; the coordinates of the head that has nothing to decode
    assert n_single == (2 if card.head == "coords" else 1)
    assert precisions_of_layers(single) == (0, n_half + n_single)
    convs = [node.input[1] for node in half.graph.node if node.op_type == "Conv"]
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert convs and {types[name] for name in convs} == {onnx.TensorProto.FLOAT16}


def test_a_graph_whose_weights_are_stored_in_half_is_rewritten_alike(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard],
) -> None:
    single, half, _ = pair
    stored = onnx.ModelProto()
    stored.CopyFrom(single)
    halve_weights(stored)
    found = half_precision(stored)
    assert precisions_of_layers(found) == precisions_of_layers(half)
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in half.graph.node]


def test_means_and_decoding_are_single(pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard]) -> None:
    _, half, _ = pair
    types = {port.name: port.type.tensor_type.elem_type for port in [*half.graph.value_info, *half.graph.output]}
    for node in half.graph.node:
        if node.op_type in ("ReduceMean", "ReduceSum", "Softmax", "Sub", "Div", "Floor"):
            assert types[node.output[0]] == onnx.TensorProto.FLOAT, node.name
        if node.op_type == "ArgMax":
            assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
    assert {types[port.name] for port in half.graph.output} == {onnx.TensorProto.FLOAT}


def test_ports_and_card_stay_and_the_given_graph_is_left_alone(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard], tmp_path: Path
) -> None:
    single, half, card = pair
    assert list(half.graph.input) == list(single.graph.input)
    assert [port.name for port in half.graph.output] == ["points", "confidence"]
    assert half.metadata_props[0].key == CARD_KEY
    onnx.save(half, tmp_path / "half.onnx")
    assert read_card(tmp_path / "half.onnx") == card
    before = single.SerializeToString()
    half_precision(single)
    assert single.SerializeToString() == before


def test_pixels_are_cast_before_all_else(pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard]) -> None:
    _, half, _ = pair
    assert [node.op_type for node in half.graph.node if "rgb" in node.input] == ["Cast"]


def test_a_tensor_is_cast_once_however_many_want_it(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard],
) -> None:
    _, half, _ = pair
    casts = [(node.input[0], node.attribute[0].i) for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))


def test_an_imported_trained_model_says_the_same_in_half(shared: Path, tmp_path: Path) -> None:
    peer = shared / "peers" / "pfld_ghostone_112_98pt.onnx"
    card = import_onnx(ImportConfig(peer, tmp_path / "pfld.onnx", bgr=True))
    single = onnx.load(tmp_path / "pfld.onnx")
    assert error_px(single, half_precision(single), card)[:-1].max() < 0.5


def test_nodes_kept_in_single_are_float_and_the_rest_is_as_before(
    pair: tuple[onnx.ModelProto, onnx.ModelProto, ModelCard],
) -> None:
    single, half, card = pair
    convs = [node for node in half.graph.node if node.op_type == "Conv"]
    grouped = [node.name for node in convs if next(a.i for a in node.attribute if a.name == "group") > 1]
    kept = {*grouped, convs[0].name, next(node.name for node in half.graph.node if node.op_type == "Sigmoid")}
    assert len(grouped) == 2 and len(kept) == 4
    found = half_precision(single, kept)
    onnx.checker.check_model(found, full_check=True)
    before, after = types_by_node(half), types_by_node(found)
    floats = {onnx.TensorProto.FLOAT16: onnx.TensorProto.FLOAT}
    for name in kept:
        before[name] = [floats.get(kind, kind) for kind in before[name]]
    assert after == before
    n_half, n_single = precisions_of_layers(half)
    assert precisions_of_layers(found) == (n_half - 3, n_single + 3)
    error = error_px(single, found, card)
    # as for the whole graph in half
    assert (np.percentile(error, 97) if card.head == "heatmap" else error.max()) < 0.5


def nodes_of(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    assert len({node.name for node in model.graph.node} - {""}) == len(model.graph.node), "names are not unique"
    return {node.name: node for node in model.graph.node}


def types_by_node(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The types of the inputs and outputs of each node but the casts, which follow from those of the others."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    ports = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    types |= {port.name: port.type.tensor_type.elem_type for port in ports}
    return {
        name: [types[end] for end in [*node.input, *node.output] if end]
        for name, node in nodes_of(model).items()
        if node.op_type != "Cast"
    }


def test_nodes_without_a_name_or_with_that_of_another_get_one_of_their_own() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["y"]),
        helper.make_node("Relu", ["y"], ["z"], name="same"),
        helper.make_node("Neg", ["z"], ["w"], name="same"),
        helper.make_node("MatMul", ["w", "second"], ["v"], name="MatMul_y"),
        helper.make_node("MatMul", ["v", "first"], ["points"]),
    ]
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3]) for name in ("x", "points")]
    weights = [numpy_helper.from_array(np.eye(3, dtype=np.float32), name) for name in ("first", "second")]
    graph = helper.make_graph(nodes, "unnamed", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    names = nodes_of(half_precision(model))
    assert {"MatMul_y", "same", "same_", "MatMul_y_", "MatMul_points"} <= set(names)
    # a last layer gives numbers itself
    assert precisions_of_layers(half_precision(model, ["MatMul_y_"])) == (1, 2)


def test_a_weight_beyond_half_precision_is_refused() -> None:
    weight = np.full((3, 4), 1e5, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["y"]),
        helper.make_node("MatMul", ["y", "second"], ["points"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", n]) for name, n in (("x", 3), ("points", 4))
    ]
    weights = [numpy_helper.from_array(weight, "first"), numpy_helper.from_array(np.eye(4, dtype=np.float32), "second")]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(LineamentError, match=r"weights 'first' reach 1e\+05.*OpenVINO"):
        half_precision(model)
