"""An imported model returns the same points as before, takes uint8 RGB, and runs in batches or says that it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.engines.import_onnx import ImportConfig, import_onnx
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train import data, metrics

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

ROOT = Path(__file__).resolve().parent.parent
HW = (8, 10)
BACKENDS = ("openvino", "onnxruntime")
MATRIX = np.random.default_rng(0).normal(0, 0.05, (3 * 8 * 10, 196)).astype(np.float32)


def foreign(
    path: Path,
    reshape: tuple[int, ...] = (1, -1),
    as_constant: bool = False,
    output_shape: tuple[int, ...] = (1, 196),
    element: int = TensorProto.FLOAT,
    mixes: bool = False,
    second_output: bool = False,
    opset: int = 11,
    extra: int = 0,
) -> Path:
    """A model as exporters write it, batch 1 throughout: pixels @ MATRIX.

    mixes: the images of a batch are averaged, which has no effect at batch 1. as_constant: the shape of its Reshape is
    a node instead of a weight. extra: how many numbers follow the points.
    """
    dtype = np.float16 if element == TensorProto.FLOAT16 else np.float32
    if extra:
        output_shape = (1, output_shape[1] + extra)
    matrix = np.column_stack([MATRIX, np.ones((len(MATRIX), extra))])
    weights = {"matrix": matrix.astype(dtype), "out_shape": np.array([1, *output_shape[1:]])}
    if mixes:
        weights |= {"flat_shape": np.array(reshape)}
        nodes = [
            helper.make_node("ReduceMean", ["input"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Add", ["mean", "input"], ["sum"]),
            helper.make_node("Sub", ["sum", "mean"], ["same"]),
            helper.make_node("Sub", ["mean", "same"], ["gap"]),
            helper.make_node("Add", ["same", "gap"], ["picture"]),
            helper.make_node("Reshape", ["picture", "flat_shape"], ["flat"]),
        ]
    elif as_constant:
        shape = numpy_helper.from_array(np.array(reshape), "shape")
        nodes = [
            helper.make_node("Constant", [], ["flat_shape"], value=shape),
            helper.make_node("Reshape", ["input", "flat_shape"], ["flat"]),
        ]
    else:
        weights |= {"flat_shape": np.array(reshape)}
        nodes = [helper.make_node("Reshape", ["input", "flat_shape"], ["flat"])]
    nodes += [
        helper.make_node("MatMul", ["flat", "matrix"], ["numbers"]),
        helper.make_node("Reshape", ["numbers", "out_shape"], ["output"]),
    ]
    outputs = [helper.make_tensor_value_info("output", element, output_shape)]
    if second_output:
        outputs.insert(0, helper.make_tensor_value_info("flat", element, [1, 240]))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("input", element, [1, 3, *HW])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=6), path)
    return path


def crops(n: int) -> U8:
    return np.random.default_rng(n).integers(0, 256, (n, *HW, 3)).astype(np.uint8)


def answer(rgb_NHWC: U8, mean: float | tuple[float, ...] = 0.0, std: float | tuple[float, ...] = 1.0) -> F32:
    pixels = (rgb_NHWC / 255 - mean) / std
    return np.asarray(pixels.transpose(0, 3, 1, 2).reshape(len(rgb_NHWC), -1) @ MATRIX, np.float32).reshape(-1, 98, 2)


def run(path: Path, rgb_NHWC: U8, backend: str = "onnxruntime") -> F32:
    pytest.importorskip(backend)
    with engines.load(str(path), backend) as landmarker:
        return landmarker(rgb_NHWC).points_unit


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"reshape": (1, 240)}, {"as_constant": True}, {"output_shape": (1, 98, 2)}, {"second_output": True}],
    ids=["N x 2K", "sizes spelled out", "shape in a node", "N x K x 2", "another output first"],
)
def test_a_model_of_batch_1_returns_the_same_points_for_each_image_of_a_batch(
    shape: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx", **shape), out))
    for n in (1, 2, 5):
        np.testing.assert_allclose(run(out, crops(n), backend), answer(crops(n)), atol=1e-4)
    assert onnx.load(out).graph.input[0].type.tensor_type.shape.dim[0].dim_param


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_that_mixes_the_images_of_a_batch_runs_one_by_one_and_logs_it(
    backend: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out.onnx"
    with caplog.at_level("INFO"):
        import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx", mixes=True), out))
    assert "peer keeps its batch size of 1" in caplog.text
    np.testing.assert_allclose(run(out, crops(3), backend), answer(crops(3)), atol=1e-4)


def test_bgr_mean_and_std_are_inside_the_graph_and_on_the_card(tmp_path: Path) -> None:
    out, mean, std = tmp_path / "out.onnx", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    card = import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx"), out, bgr=True, mean=mean, std=std, crop_scale=1.4))
    wanted = answer(crops(2)[..., ::-1], mean[::-1], std[::-1])
    np.testing.assert_allclose(run(out, crops(2)), wanted, atol=1e-4)
    with engines.load(str(out), "onnxruntime") as landmarker:
        assert landmarker.card == card
    assert (card.mean, card.std, card.crop_scale, card.input_hw, card.name) == (mean, std, 1.4, HW, "peer")
    assert len(card.weights_sha256) == 64


def test_a_half_precision_model_is_imported(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx", element=TensorProto.FLOAT16), out))
    np.testing.assert_allclose(run(out, crops(2)), answer(crops(2)), atol=2e-2)


def test_numbers_after_the_points_are_dropped(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx", extra=7), out, crop_scale=(1.2, 1.3)))
    np.testing.assert_allclose(run(out, crops(3)), answer(crops(3)), atol=1e-4)
    with engines.load(str(out)) as landmarker:
        assert landmarker.card.crop_scale == (1.2, 1.3)


def test_importing_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    peer = foreign(tmp_path / "peer.onnx")
    for name in ("a.onnx", "b.onnx"):
        import_onnx(ImportConfig(peer, tmp_path / name))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("made", "cfg", "said"),
    [
        (
            {},
            {"schema": "ibug68"},
            r"returns 'output' \(1, 196\), expected one output of at least 136 numbers.*schema",
        ),
        ({}, {"schema": "aflw21"}, "schema is 'aflw21', expected one of wflw98"),
        ({}, {"crop_scale": 0.0}, "crop_scale is 0.0"),
        ({}, {"std": (1.0, 0.0, 1.0)}, "std not 0"),
        ({"opset": 5}, {}, "opset 5, expected 7"),
    ],
    ids=["points", "schema", "crop_scale", "std", "opset"],
)
def test_an_unusable_model_or_option_raises_and_nothing_is_written(
    made: dict[str, Any], cfg: dict[str, Any], said: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.onnx"
    peer = foreign(tmp_path / "peer.onnx", **made)
    with pytest.raises(LineamentError, match=said):
        import_onnx(ImportConfig(peer, out, **cfg))
    assert list(tmp_path.iterdir()) == [peer]


@pytest.mark.parametrize("content", [None, b"", b"junk junk junk", b"\x00" * 50], ids=["absent", "empty", "text", "0"])
def test_a_file_that_is_not_a_model_is_one_clear_error(content: bytes | None, tmp_path: Path) -> None:
    peer = tmp_path / "peer.onnx"
    if content is not None:
        peer.write_bytes(content)
    with pytest.raises(LineamentError, match=r"peer\.onnx"):
        import_onnx(ImportConfig(peer, tmp_path / "out.onnx"))


def test_importing_an_imported_model_is_refused(tmp_path: Path) -> None:
    import_onnx(ImportConfig(foreign(tmp_path / "peer.onnx"), tmp_path / "once.onnx"))
    with pytest.raises(LineamentError, match=r"takes 'rgb' .*expected one image \(N, 3, height, width\)"):
        import_onnx(ImportConfig(tmp_path / "once.onnx", tmp_path / "twice.onnx"))


def test_the_command_line_imports_and_names_the_file_it_wrote(tmp_path: Path) -> None:
    peer, out = foreign(tmp_path / "peer.onnx"), tmp_path / "new" / "out.onnx"
    command = [sys.executable, "-m", "engines.import_onnx", peer, "--out", out, "--bgr", "--mean", "0.1", "0.2", "0.3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}" in done.stderr
    wanted = answer(crops(2)[..., ::-1], (0.3, 0.2, 0.1))
    np.testing.assert_allclose(run(out, crops(2)), wanted, atol=1e-4)
    done = subprocess.run([*command[:3], "nowhere.onnx", "--out", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "error: no model file at nowhere.onnx; check the spelling\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_imported_peer_has_its_known_score(backend: str, shared: Path, tmp_path: Path) -> None:
    samples = data.read(shared / "data" / "wflw-mini", "test")
    out = tmp_path / "pfld.onnx"
    import_onnx(ImportConfig(shared / "peers" / "pfld_ghostone_112_98pt.onnx", out, bgr=True, name="pfld"))
    rgb_NHWC = np.stack([cv2.resize(sample.bgr(), (112, 112))[..., ::-1] for sample in samples]).astype(np.uint8)
    # the labels are unit coordinates times 112
    points = run(out, rgb_NHWC, backend) * 112
    assert metrics.nme(points, np.stack([sample.points for sample in samples])).mean() == pytest.approx(3.76, abs=0.01)
