"""Files for the CPU: built in every precision it has, compared with f32, and kept only if close and faster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineament import engines
from lineament.engines.model_file import read_card
from lineament.engines.openvino_build import (
    EXACT,
    MAX_MEAN_PX,
    MAX_NME_LOSS,
    MAX_P99_PX,
    Built,
    Judged,
    candidates,
    has_bf16,
    judge,
    last_layers,
    quantise,
    variants,
)
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import U8, Landmarker, LineamentError
from tests.labelled import mean_face, write_wflw

onnx = pytest.importorskip("onnx")
pytest.importorskip("openvino")
pytest.importorskip("nncf")
torch = pytest.importorskip("torch")

F32 = Judged(Built(Path("a.onnx"), "fp32", ""), ms=20.0, mean_px=0.0, p99_px=0.0, max_px=0.0, nme=4.0)
INT8 = Judged(Built(Path("b.onnx"), "int8", ""), ms=10.0, mean_px=0.3, p99_px=1.0, max_px=9.0, nme=4.05)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    """A small net with confidence, whose points depend on the image."""
    from lineament.engines.export import export
    from lineament.train.model import LandmarkNet, NetSpec, new_card

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64), presence=True)).eval()
    torch.nn.init.normal_(net.head.get_parameter("linear.weight"), std=0.5)
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    export(net, new_card(net, "tiny", 1.3), path)
    return path, read_card(path)


@pytest.fixture(scope="module")
def built(exported: tuple[Path, ModelCard], tmp_path_factory: pytest.TempPathFactory) -> list[Built]:
    path, card = exported
    return variants(path, card, crops(card, 24), tmp_path_factory.mktemp("build"))


def crops(card: ModelCard, n: int) -> U8:
    from lineament.engines.export import real_crops

    return real_crops(card, n)


# ---- what is made


def test_there_is_a_file_for_every_precision_of_this_processor(built: list[Built]) -> None:
    assert [one.precision for one in built] == ["fp32", *(["bf16"] if has_bf16() else []), "int8"]
    assert [read_card(one.path).precision for one in built] == [one.precision for one in built]


def test_cards_differ_only_in_precision_and_versions(built: list[Built], exported: tuple[Path, ModelCard]) -> None:
    for one in built[1:]:
        card = read_card(one.path)
        assert replace(card, precision="fp32", built_with=exported[1].built_with) == exported[1]
    assert "nncf" in read_card(built[-1].path).built_with


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_every_file_runs_in_every_runtime_close_to_f32(built: list[Built], backend: str) -> None:
    pytest.importorskip(backend)
    rgb_NHWC = crops(read_card(built[0].path), 6)
    with engines.load(str(built[0].path), backend) as landmarker:
        wanted = landmarker(rgb_NHWC)
    assert np.ptp(wanted.points_unit, axis=0).max() * 256 > 2, "the points move, so nearness means something"
    for one in built[1:]:
        with engines.load(str(one.path), backend) as landmarker:
            found = landmarker(rgb_NHWC)
        away_px = np.linalg.norm(found.points_unit - wanted.points_unit, axis=-1) * 256
        assert away_px.mean() < MAX_MEAN_PX
        np.testing.assert_allclose(found.confidence, wanted.confidence, atol=0.05)


def test_openvino_computes_the_convolutions_of_the_int8_file_in_int8(built: list[Built]) -> None:
    program = """
import sys
import openvino as ov

model = ov.Core().read_model(sys.argv[1])
model.reshape([1, 64, 64, 3])
compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
told = [op.get_rt_info() for op in compiled.get_runtime_model().get_ordered_ops()]
print(*(info["primitiveType"].astype(str) for info in told if info["layerType"].astype(str) == "Convolution"))
"""
    # on a processor with AMX, OpenVINO 2026.4 runs the convolutions of this net in f32
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
    command = [sys.executable, "-c", program, str(built[-1].path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    kinds = done.stdout.split()
    eight_bits = [kind for kind in kinds if kind.lower().endswith("i8")]
    # squeeze-and-excitation's stay in f32: NNCF leaves them, for they decide much and cost little
    assert len(eight_bits) > len(kinds) / 2, kinds


def test_the_output_layers_stay_in_f32(built: list[Built], exported: tuple[Path, ModelCard]) -> None:
    before, after = onnx.load(exported[0]), onnx.load(built[-1].path)
    exact = last_layers(before)
    weighted = [node.name for node in before.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert set(exact) >= set(weighted[-2:]), "the outputs: points and presence"
    assert len(exact) == EXACT + 1 < len(weighted) / 2
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    nodes = {node.name: node for node in after.graph.node}
    for name in exact:
        node = nodes[name]
        np.testing.assert_array_equal(kept[node.input[1]], weights[node.input[1]])


def test_ranges_come_from_the_given_crops(exported: tuple[Path, ModelCard]) -> None:
    path, card = exported
    dark = quantise(onnx.load(path), np.zeros((4, 64, 64, 3), np.uint8))
    faces = quantise(onnx.load(path), crops(card, 4))
    scales = [
        {
            tensor.name: onnx.numpy_helper.to_array(tensor).sum()
            for tensor in model.graph.initializer
            if "scale" in tensor.name
        }
        for model in (dark, faces)
    ]
    assert scales[0].keys() == scales[1].keys() and scales[0] != scales[1]


def test_a_graph_with_weights_stored_in_half_is_quantised_the_same_way(exported: tuple[Path, ModelCard]) -> None:
    from lineament.engines.export import halve_weights

    path, card = exported
    stored = onnx.load(path)
    halve_weights(stored)
    kinds = [
        sorted(node.op_type for node in quantise(model, crops(card, 4)).graph.node)
        for model in (onnx.load(path), stored)
    ]
    assert kinds[0] == kinds[1] and "QuantizeLinear" in kinds[0]


def test_an_older_graph_is_quantised_too(exported: tuple[Path, ModelCard], tmp_path: Path) -> None:
    from lineament.engines.export import run_onnx
    from tests.tint import CARD, answer, tint

    model = onnx.load(tint(tmp_path / "old.onnx"))
    model.opset_import[0].version = 9
    onnx.checker.check_model(model)
    rgb_NHWC = np.random.default_rng(0).integers(0, 256, (4, *CARD.input_hw, 3)).astype(np.uint8)
    found = run_onnx(quantise(model, rgb_NHWC).SerializeToString(), rgb_NHWC)
    np.testing.assert_allclose(found, answer(rgb_NHWC), atol=0.05)


def test_too_few_crops_are_refused(exported: tuple[Path, ModelCard], tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="got 3 crops to calibrate with, expected at least 4"):
        candidates(*exported, crops(exported[1], 3), tmp_path)


def test_without_nncf_the_other_files_are_built_and_the_log_says_why(
    exported: tuple[Path, ModelCard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    found = variants(*exported, crops(exported[1], 4), tmp_path)
    assert "int8" not in [one.precision for one in found] and found[0].precision == "fp32"
    (record,) = [record for record in caplog.records if record.name == "lineament.engines.openvino_build"]
    assert "no INT8" in record.message and "requirements-train.txt" in record.message


# ---- what is kept


def test_candidates_are_ordered_by_speed_and_logged(
    exported: tuple[Path, ModelCard], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lineament.engines.openvino_build"):
        found = candidates(*exported, None, tmp_path)
    assert found[0].path == exported[0]
    told = "\n".join(record.message for record in caplog.records)
    assert "crops of one portrait" in told
    for precision in ("fp32", "int8"):
        assert f"{precision}: " in told, "what is not kept is reported too"


def test_judging_measures_time_distance_and_nme(built: list[Built]) -> None:
    asked: list[Landmarker] = []

    def nme(landmarker: Landmarker) -> float:
        asked.append(landmarker)
        return float(len(asked))

    judged = judge(built, crops(read_card(built[0].path), 3), nme, rounds=3)
    assert [one.built for one in judged] == built and [one.nme for one in judged] == [1.0, 2.0, 3.0][: len(built)]
    assert judged[0].mean_px == judged[0].max_px == 0 and all(one.ms > 0 for one in judged)
    assert all(0 < one.mean_px <= one.p99_px <= one.max_px for one in judged[1:])


def test_a_close_and_faster_file_is_kept() -> None:
    assert F32.refusal([]) is None and INT8.refusal([F32]) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ms": 21.0}, r"21\.0 ms, fp32 20\.0 ms"),
        ({"mean_px": MAX_MEAN_PX + 0.1}, r"0\.85 px from f32 on average"),
        ({"p99_px": MAX_P99_PX + 0.1}, r"5\.10 px in 1 of 100"),
        ({"mean_px": float("nan")}, "nan px from f32"),
        ({"nme": 4.0 + MAX_NME_LOSS + 0.01}, r"NME is 4\.11, that of f32 4\.00"),
        ({"nme": float("nan")}, "NME is nan"),
    ],
)
def test_a_file_is_dropped_with_a_reason(changes: dict[str, float], said: str) -> None:
    import re

    reason = replace(INT8, **changes).refusal([F32])  # type: ignore[arg-type]
    assert reason and re.search(said, reason), reason


def test_int8_must_beat_the_fastest_of_the_others_not_f32_alone() -> None:
    bf16 = replace(F32, built=Built(Path("c.onnx"), "bf16", ""), ms=9.0)
    assert INT8.refusal([F32, bf16]) == "it takes 10.0 ms, bf16 9.0 ms"


def test_a_net_that_looks_untrained_is_reported(
    exported: tuple[Path, ModelCard], caplog: pytest.LogCaptureFixture
) -> None:
    """Its points hardly move, so INT8 cannot be far from them."""
    same = np.repeat(crops(exported[1], 1), 3, axis=0)
    judge([Built(exported[0], "fp32", "")], same, rounds=1)
    assert "an untrained net?" in caplog.text


# ---- labelled folders


def test_a_labelled_folder_gives_crops_of_its_training_faces_and_the_score_of_a_landmarker(
    exported: tuple[Path, ModelCard], tmp_path: Path
) -> None:
    from lineament.engines.labelled import calibration_crops, nme_on

    path, card = exported
    root = write_wflw(tmp_path, "train", [(f"{i}.png", mean_face(50 + i % 3)) for i in range(10)])
    write_wflw(tmp_path, "test", [(f"t{i}.png", mean_face()) for i in range(3)])
    found = calibration_crops(root, card, 5)
    assert found.shape == (5, 64, 64, 3) and found.dtype == np.uint8
    assert len(np.unique(found.reshape(5, -1), axis=0)) == 5, "five faces, not one five times"
    assert len(calibration_crops(root, card, 100)) == 10
    with engines.load(str(path), "cpu") as landmarker:
        nme = nme_on(root, card, tmp_path / "cache")
        assert nme(landmarker) == nme(landmarker) > 10, "an untrained net is far off"
