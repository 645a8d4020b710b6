"""A release that lacks a kernel, and an inspector that says nonsense, cost a line in the log and not the engine."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lineament.engines import tensorrt_build, tensorrt_library
from lineament.engines.engine_file import CROP_PLAN, POINTS_PLAN, LibraryName, read_header, read_plans
from lineament.engines.export import real_crops, run_onnx
from lineament.engines.fp16 import half_precision
from lineament.engines.tensorrt_backend import TensorRtLandmarker
from lineament.engines.tensorrt_build import BuildReport, build
from lineament.engines.tensorrt_library import Library, collecting_logger, installed, library
from lineament.landmarks.geometry import crop_from_frame
from lineament.landmarks.types import U8, LineamentError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lineament.engines.missing_kernel import refused_nodes  # noqa: E402
from tests import fake_builder  # noqa: E402
from tests.fake_builder import FakeBuilderTrt, FakeLayer, play_builder  # noqa: E402
from tests.fake_tensorrt import FakeCuda, play_tensorrt  # noqa: E402

NO_KERNEL = (
    "No low-precision conv kernel available for this strongly-typed Conv/ConvTranspose. Consider keeping "
    "Conv/ConvTranspose and Q/DQ ops in FP32. Failing node: {}"
)
IN_11 = (
    "IBuilder::buildSerializedNetworkToStream: Error Code 10: Internal Error (Could not find any implementation for "
    "node {}. In computeCosts at /_src/optimizer/common/tactic/optimizer.cpp:4211)"
)
IN_10 = (
    "[optimizer.cpp::computeCosts::3869] Error Code 10: Internal Error (Could not find any implementation for node {}.)"
)
SKIPPED = (
    "UNSUPPORTED_STATE: Skipping tactic 9 due to insufficient memory on requested size of 1048576000 detected for "
    "tactic 0x8a196054417f1c8a."
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny net as ONNX, with two grouped convolutions, whose points move with the picture."""
    from lineament.engines.export import export
    from lineament.train.model import LandmarkNet, NetSpec, new_card

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64), presence=True)).eval()
    with torch.no_grad():
        net.get_parameter("head.linear.weight").mul_(1000)
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    export(net, new_card(net, "tiny", 1.3), path)
    return path


@pytest.fixture(scope="module")
def half(exported: Path) -> onnx.ModelProto:
    return half_precision(onnx.load(exported))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeBuilderTrt:
    trt = FakeBuilderTrt()
    play_builder(monkeypatch, trt)
    return trt


def convolutions(model: onnx.ModelProto, grouped: bool = False) -> list[str]:
    """Names of the convolutions, or of the grouped ones only."""
    groups = {
        node.name: next((entry.i for entry in node.attribute if entry.name == "group"), 1)
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    return [name for name, n in groups.items() if n > 1 or not grouped]


def in_half(layer: FakeLayer) -> bool:
    data = layer.get_input(0)
    return data is not None and data.dtype == "HALF"


def refusing(names: list[str]) -> Callable[[FakeLayer], str | None]:
    return lambda layer: layer.name if layer.name in names and in_half(layer) else None


def single_layers(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes with weights in single precision."""
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    return {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm") and node.input[1] in floats}


def built(exported: Path, tmp_path: Path) -> BuildReport:
    return build(exported, tmp_path / "tiny.engine", "tensorrt", "best.safetensors", progress=False)


# ---- a kernel is missing


def test_a_convolution_without_a_half_precision_kernel_is_built_in_single(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = convolutions(half, grouped=True)[0]
    trt.refuses = refusing([refused])
    report = built(exported, tmp_path)
    assert report.in_single == (refused,) and (report.n_half, report.n_single) == (17, 3)
    assert single_layers(trt.built[1]) == single_layers(half) | {refused}
    assert [line for line in caplog.messages if "kernel" in line] == [
        f"no half-precision kernel for 1 node ({refused}): building again with it in single precision"
    ]
    assert report.checked == (
        f"17 of 20 layers in the network, 17 of 20 in the engine; 1 node ({refused}) in single precision, for lack of "
        "a half-precision kernel"
    )
    header = read_header(report.path)
    assert header.in_single == (refused,) and header.key == report.key


def test_an_engine_with_nodes_in_single_precision_is_up_to_date(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    trt.refuses = refusing(convolutions(half)[3:5])
    first, n_builds = built(exported, tmp_path), len(trt.built)
    again = built(exported, tmp_path)
    assert again.build_s == 0 and len(trt.built) == n_builds
    assert (again.key, again.n_half, again.n_single, again.in_single) == (first.key, 16, 4, first.in_single)
    assert again.checked.startswith("checked when it was built; 2 nodes (")


def test_all_grouped_convolutions_of_a_kind_go_to_single_once_two_were_refused(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    """A B5 has 39 of them, and a build on a GPU takes minutes."""
    node = next(node for node in half.graph.node if node.name in convolutions(half, grouped=True))
    many = onnx.ModelProto()
    many.CopyFrom(half)
    for i in range(37):
        copy = many.graph.node.add()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = f"grouped_{i}", f"grouped_{i}_out"
    first = refused_nodes(many, [IN_11.format("grouped_0")])
    then = refused_nodes(half_with_single(many, first), [IN_11.format("grouped_1")], first)
    assert first == ["grouped_0"]
    assert {"grouped_0", *then} == set(convolutions(many, grouped=True)) and len(then) == 38


def half_with_single(half: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """half, where the nodes of those names take other inputs, which are not half, as after a cast."""
    copy = onnx.ModelProto()
    copy.CopyFrom(half)
    for node in copy.graph.node:
        if node.name in names:
            node.input[:] = [f"{name}_single" for name in node.input]
    return copy


def test_several_rounds_keep_what_was_moved_and_the_timings_of_the_rounds_before(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    (tmp_path / "tiny.timing").write_bytes(b"another release's timings")
    refused = [convolutions(half)[i] for i in (2, 5, 9)]
    trt.refuses = refusing(refused)
    report = built(exported, tmp_path)
    assert list(report.in_single) == refused and len(trt.built) == 5  # three refusals, one plan, one for crops
    before = trt.timings_before
    assert before[0] == b"" and all(after.startswith(old) and after != old for old, after in zip(before, before[1:]))
    assert (tmp_path / "tiny.timing").read_bytes().startswith(before[3])


def test_an_engine_with_a_node_in_single_precision_gives_the_same_points(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = built(exported, tmp_path)
    trt.refuses = refusing(convolutions(half, grouped=True))
    moved = build(exported, tmp_path / "moved.engine", "tensorrt", progress=False)
    play_tensorrt(monkeypatch)
    crops, found = real_crops(read_header(plain.path).card, 3), []
    for path in (plain.path, moved.path):
        with TensorRtLandmarker(path) as landmarker:
            found.append(landmarker(crops).points_unit)
    assert np.ptp(found[0], axis=0).max() * 256 > 5
    assert 0 < np.linalg.norm(found[0] - found[1], axis=-1).max() * 256 < 0.5


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ([NO_KERNEL.format("{1}"), IN_11.format("{1}")], [1]),
        ([IN_10.format("w + {2}")], [2]),
        ([IN_10.format("w + {2} + PWN({s2}, {m2})")], [2, "s2", "m2"]),
        ([IN_10.format("Reformatting CopyNode for Input Tensor 0 to {1} + {s1}")], [1, "s1"]),
        ([IN_11.format("{4}_17")], [4]),  # the parser numbers the layers of one node
        (["No implementation of layer {5} obeys the requested constraints. I.e. no conforming implementation"], [5]),
        ([IN_11.format("(Unnamed Layer* 8) [Convolution]")], []),
        ([IN_11.format("a/{1}"), IN_11.format("{1}x"), IN_11.format("{1}.weight")], []),
        (["somebody mentions {1}"], []),
    ],
)
def test_the_nodes_are_found_in_the_forms_of_the_message(
    said: list[str], named: list[int | str], half: onnx.ModelProto
) -> None:
    names: dict[str, str] = {}
    for i, name in enumerate(convolutions(half)):
        names[str(i)] = name
        conv = next(node for node in half.graph.node if node.name == name)
        readers = {node.op_type: node.name for node in half.graph.node if conv.output[0] in node.input}
        names |= {f"s{i}": readers.get("Sigmoid", ""), f"m{i}": readers.get("Mul", "")}
    told = [re.sub(r"\{(\w+)\}", lambda found: names[found[1]], message) for message in said]
    assert sorted(refused_nodes(half, told)) == sorted(names[str(name)] for name in named)


def test_a_node_that_is_single_already_is_not_mistaken_for_another(exported: Path, half: onnx.ModelProto) -> None:
    """node_silu_3 is not the third layer of node_silu."""
    names = [node.name for node in half.graph.node]
    longer = next(name for name in names if name.startswith("node_silu_"))
    assert "node_silu" in names
    moved = half_precision(onnx.load(exported), [longer])
    assert refused_nodes(half, [IN_11.format(longer)]) == [longer]
    assert refused_nodes(moved, [IN_11.format(longer)], [longer]) == []


def test_in_a_range_the_grouped_convolutions_are_suspected_unless_the_operation_is_named(half: onnx.ModelProto) -> None:
    """Either end may be innocent, and may be a constant or a layer that TensorRT added."""
    whole = IN_11.format("{ForeignNode[net.head.linear.bias...(Unnamed Layer* 6) [Shuffle]]}")
    assert refused_nodes(half, [whole]) == convolutions(half, grouped=True)
    begin, *_, end = plain = convolutions(half)[2:6]
    assert not set(plain) & set(convolutions(half, grouped=True))
    assert refused_nodes(half, [IN_10.format(f"{{ForeignNode[weight + {begin}...{end} + PWN(x)]}}")]) == plain
    guilty = next(node for node in half.graph.node if node.name == convolutions(half)[8])
    operation = (
        "Skipping tactic 0x0000000000000000 due to exception [autotuner.cpp:get_best_tactics:1520] Autotuner: no "
        f"tactics to implement operation:\n 1379: corrltn: {guilty.output[0]}'_before_bias.1-(f16[1,48,8,8][]so[]"
    )
    assert refused_nodes(half, [operation, whole]) == [guilty.name]


def test_a_build_that_is_short_of_memory_is_not_repeated(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    refused = convolutions(half)[6]
    trt.refuses = refusing([refused])
    trt.says = lambda layer: [("WARNING", SKIPPED)] * (layer.name == refused)
    with pytest.raises(LineamentError, match=r"no memory left; close other programs.*Skipping tactic 9"):
        built(exported, tmp_path)
    assert len(trt.built) == 1 and not list(tmp_path.iterdir())


def test_memory_that_was_short_at_an_earlier_layer_is_not_the_cause(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    first, _, refused, *_ = convolutions(half)
    trt.refuses = refusing([refused])
    trt.says = lambda layer: [("WARNING", SKIPPED), ("ERROR", "Requested amount of GPU memory")] * (layer.name == first)
    assert built(exported, tmp_path).in_single == (refused,)


@pytest.mark.parametrize(
    ("refuses", "n_builds"),
    [
        (lambda layer: "(Unnamed Layer* 8) [Shuffle]" if layer.type == "CONVOLUTION" else None, 1),
        # also in single precision
        (lambda layer: layer.name if layer.type == "CONVOLUTION" else None, 2),
        # one after the other, until most layers would be single, or for too long
        (lambda layer: layer.name if layer.type == "CONVOLUTION" and in_half(layer) else None, 9),
        (lambda layer: layer.name if layer.type == "SIGMOID" and in_half(layer) else None, 10),
    ],
)
def test_a_release_that_cannot_build_it_is_named_with_another(
    refuses: fake_builder.Refusal, n_builds: int, trt: FakeBuilderTrt, exported: Path, tmp_path: Path
) -> None:
    trt.refuses = refuses
    with pytest.raises(
        LineamentError, match=r"tensorrt 11\.4\.0 cannot build.*pip install tensorrt(-cu12)?==10\.16"
    ) as raised:
        built(exported, tmp_path)
    assert len(trt.built) == n_builds and not list(tmp_path.iterdir())
    assert ("even with" in str(raised.value)) == (n_builds > 1) and "\n" not in str(raised.value)


def test_an_engine_of_which_most_layers_are_single_is_refused(
    trt: FakeBuilderTrt, exported: Path, half: onnx.ModelProto, tmp_path: Path
) -> None:
    first, last = convolutions(half)[0], convolutions(half)[-1]
    trt.refuses = lambda layer: f"{first} + {' + '.join(convolutions(half)[:11])} + {last}" if in_half(layer) else None
    with pytest.raises(LineamentError, match="no kernel for a layer"):
        built(exported, tmp_path)
    assert len(trt.built) == 1


@pytest.mark.parametrize("timings", [b"another release", b"torn"])
def test_timings_of_another_release_do_not_hide_that_a_kernel_is_missing(
    timings: bytes,
    trt: FakeBuilderTrt,
    exported: Path,
    half: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = convolutions(half, grouped=True)[0]
    trt.refuses = refusing([refused])
    (tmp_path / "tiny.timing").write_bytes(timings)
    # of a release that does not print for which layer it looks
    monkeypatch.setattr(tensorrt_library, "_NEXT_LAYER", "never printed")
    assert built(exported, tmp_path).in_single == (refused,)
    assert timings not in (tmp_path / "tiny.timing").read_bytes()


def test_timings_that_cannot_be_kept_do_not_cost_the_engine(
    trt: FakeBuilderTrt, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tiny.timing").mkdir()
    assert list(read_plans(built(exported, tmp_path).path)) == [POINTS_PLAN, CROP_PLAN]
    assert "cannot keep timings for the next build" in caplog.text


# ---- the crop plan is optional


def test_an_engine_without_a_crop_plan_cuts_its_crops_on_the_cpu(
    trt: FakeBuilderTrt,
    exported: Path,
    tmp_path: Path,
    astronaut: U8,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole = build(exported, tmp_path / "whole.engine", "tensorrt", progress=False)
    trt.refuses = lambda layer: layer.name if layer.type == "GRIDSAMPLE" else None
    report = built(exported, tmp_path)
    assert list(read_plans(report.path)) == [POINTS_PLAN] and list(read_plans(whole.path)) == [POINTS_PLAN, CROP_PLAN]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.search(r"tiny\.engine will cut its crops on the CPU.*crop_sampled", warning.getMessage())
    play_tensorrt(monkeypatch)
    found, uploaded = [], []
    for path in (report.path, whole.path):
        with TensorRtLandmarker(path) as landmarker:
            matrices = [crop_from_frame(np.array([205.0, 90, 245, 140]), landmarker.card)]
            found.append(landmarker.on_frame(astronaut, matrices).points_unit)
            uploaded.append(FakeCuda.made[-1].uploaded)
    # crops before, in and after the capture; or once the part of the frame around them, and a matrix
    assert uploaded == [3 * (64 * 64 * 3), 192 * 128 * 3 + 6 * 4]
    np.testing.assert_allclose(found[0], found[1], atol=0.5 / 256)


# ---- the inspector


def layers(single: int, lower: int, **ends: tuple[str, str]) -> str:
    """As an inspector describes them: each key of an end, with its value in single and in half precision."""
    described = []
    for i in range(single + lower):
        end = {"Name": "x", **{key.replace("_", "/"): values[i >= single] for key, values in ends.items()}}
        described.append({"Name": f"conv_{i}", "LayerType": "CaskConvolution", "Inputs": [end], "Outputs": [end]})
    return json.dumps({"Layers": described})


OLD = {"Format_Datatype": ("Row major linear FP32", "Channel major FP16 format where channel % 8 == 0")}
SHORT = {"Format_Datatype": ("Float", "Half")}
NEW = {"Datatype": ("Float", "Half"), "Format": ("Format not available due to dynamic shapes",) * 2}
TENSORS = {"DataType": ("Float", "Half"), "Format": ("Row major linear format",) * 2}


@pytest.mark.parametrize("form", [OLD, SHORT, NEW, TENSORS])
def test_an_engine_in_single_precision_is_kept_with_a_warning(
    form: dict[str, tuple[str, str]],
    trt: FakeBuilderTrt,
    exported: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the form of TensorRT up to 10, and in those since 11."""
    trt.inspects = lambda model: layers(2, 18, **form)
    assert built(exported, tmp_path).checked.endswith("network, 18 of 20 in the engine") and not caplog.messages
    trt.inspects = lambda model: layers(20, 0, **form)
    report = build(exported, tmp_path / "slow.engine", "tensorrt", progress=False)
    assert report.path.exists() and report.checked.endswith("network, 0 of 20 in the engine")
    (line,) = caplog.messages
    assert "20 convolutions and matrix products in single precision, expected 2," in line
    assert "may be slow: conv_0, conv_1, conv_2;" in line


@pytest.mark.parametrize(
    "said",
    [
        None,
        "",
        "null",
        "[]",
        "{}",
        '{"Layers": null}',
        '{"Layers": ["conv1 + relu1", "conv2"]}',
        '{"Layers": [{"Name": "a", "Metadata": "{"unescaped": 1}"}]}',
        '{"Layers": [{"Name": "a", "LayerType": "CaskConvolution", "Inputs": [',
        '{"Layers": [{"Name": "a", "LayerType": "kgen"}]}',
        '{"Layers": ' * 100_000,
    ],
)
def test_an_engine_whose_inspector_cannot_be_read_is_kept(
    said: str | None, trt: FakeBuilderTrt, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trt.inspects = lambda model: said
    report = built(exported, tmp_path)
    assert report.path.exists()
    assert report.checked == "18 of 20 layers in the network, the engine could not be inspected"
    (line,) = caplog.messages
    assert line.startswith("cannot inspect the engine, which is kept: the inspector ") and len(line) < 250


@pytest.mark.parametrize(
    "more",
    [
        {"Inputs": None, "Outputs": ["x"], "Weights": {"Type": "Half", "Count": 9}},
        {"Inputs": [], "Outputs": [{"Name": "x", "Datatype": "Half", "Dimensions": float("nan")}]},
        {"Metadata": "\x1e[ONNX Layer: a]\x1f[ONNX Layer: b]", "Weights": {"Type": "Half", "Count": 9}},
    ],
)
def test_odd_layers_are_read_all_the_same(
    more: dict[str, Any], trt: FakeBuilderTrt, exported: Path, tmp_path: Path
) -> None:
    odd = json.dumps({"Layers": [{"Name": "a", "LayerType": "CaskConvolution", **more}, "b"]})
    trt.inspects = lambda model: f"\n{odd}\n\0 trailing".replace("\\u001e", "\x1e").replace("\\u001f", "\x1f")
    assert built(exported, tmp_path).checked.endswith("1 of 1 in the engine")


def test_a_plan_that_does_not_open_for_inspection_is_kept(
    trt: FakeBuilderTrt, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as for lack of memory; whether it runs is seen when it is compared with PyTorch."""
    trt.opens_nothing = True
    report = built(exported, tmp_path)
    assert report.path.exists() and report.checked.endswith("the engine could not be inspected")
    assert "cannot open the engine it built" in caplog.text and "no memory left" in caplog.text


def test_an_engine_whose_inspector_raises_is_kept(
    trt: FakeBuilderTrt, exported: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(model: onnx.ModelProto) -> str:
        return b"\xff".decode()

    trt.inspects = broken
    assert built(exported, tmp_path).path.exists() and "cannot inspect the engine it built" in caplog.text


@pytest.mark.parametrize(("name", "flags"), [("tensorrt", set[str]()), ("tensorrt-rtx", {"REQUIRE_USER_ALLOCATION"})])
def test_an_rtx_engine_leaves_all_allocation_to_us_because_it_is_captured(
    name: LibraryName, flags: set[str], trt: FakeBuilderTrt, exported: Path, tmp_path: Path
) -> None:
    build(exported, tmp_path / "tiny.engine", name, progress=False)
    # TF32 would cost accuracy; memory that follows the size of the frame matters for crops only
    assert trt.flags == [flags, flags | {"RUNTIME_ACTIVATION_RESIZE"}]


# ---- for real


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="needs tensorrt-rtx: pip install -r requirements-rtx.txt")
def test_a_graph_with_some_nodes_in_single_is_built_for_real_with_just_those(
    exported: Path, half: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX's parser and builder, which are told that two convolutions were refused."""
    refused = convolutions(half, grouped=True)
    graphs = refuse_first(monkeypatch, refused)
    report = build(exported, tmp_path / "tiny.engine", "tensorrt-rtx", progress=False)
    assert report.in_single == tuple(refused) and (report.n_half, report.n_single) == (16, 4)
    # the products of the last layers have no half precision either
    found = parsed_singles(library("tensorrt-rtx"), graphs[1])
    assert {name for name, kind in found.items() if kind == "CONVOLUTION"} == set(refused) and len(found) == 4


def refuse_first(monkeypatch: pytest.MonkeyPatch, names: list[str]) -> list[onnx.ModelProto]:
    """The first build refuses these nodes, later ones are real. Returns the list of their graphs, which grows."""
    graphs: list[onnx.ModelProto] = []
    plan = tensorrt_build._PlanBuild.plan

    def played(self: Any, model: onnx.ModelProto, profile: Any, progress: bool) -> bytes:
        graphs.append(model)
        if len(graphs) == 1:
            raise tensorrt_build._NoKernelError("no kernel", [IN_11.format(" + ".join(names))])
        return plan(self, model, profile, progress)

    monkeypatch.setattr(tensorrt_build._PlanBuild, "plan", played)
    return graphs


def parsed_singles(lib: Library, model: onnx.ModelProto) -> dict[str, str]:
    """Names and kinds of the convolutions and matrix products that take single precision in the parsed network."""
    trt = lib.module
    logger = collecting_logger(trt)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString())
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    found = [network.get_layer(i) for i in range(network.num_layers)]
    return {
        layer.name: layer.type.name
        for layer in found
        if layer.type in heavy and layer.get_input(0).dtype == trt.DataType.FLOAT
    }


@pytest.mark.gpu
def test_on_a_gpu_an_engine_with_convolutions_in_single_agrees_with_its_graph(
    exported: Path, half: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not installed("tensorrt"):
        pytest.skip("needs tensorrt: pip install -r requirements-gpu.txt")
    refuse_first(monkeypatch, convolutions(half, grouped=True))
    report = build(exported, tmp_path / "tiny.engine", "tensorrt", progress=False)
    assert len(report.in_single) == 2
    rgb = real_crops(read_header(report.path).card, 5)
    with TensorRtLandmarker(report.path) as landmarker:
        error = np.linalg.norm(landmarker(rgb).points_unit - run_onnx(exported.read_bytes(), rgb), axis=-1).max()
    assert error * 256 < 0.5
