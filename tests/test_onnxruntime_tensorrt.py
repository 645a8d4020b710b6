"""ONNX Runtime's TensorRT provider builds once, in half precision, for any number of faces. A small class stands in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.types import LineamentError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from lineament.engines.export import real_crops  # noqa: E402 - after the check that it can
from lineament.engines.fp16 import precisions_of_layers  # noqa: E402 - after the check that it can
from lineament.engines.onnxruntime_tensorrt import needs  # noqa: E402
from tests.tint import CARD, answer, crops, tint  # noqa: E402

DOCUMENTED = {
    "trt_fp16_enable",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_profile_max_shapes",
}
"""those of https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html that are used; ONNX Runtime
1.31.1 has each of them in its parser, and refuses any other name"""
REAL = onnxruntime.InferenceSession


class Session:
    """An InferenceSession with providers for NVIDIA that runs on the CPU and refuses batches outside its profile."""

    opened: list[Session]
    reason: str = ""

    def __init__(self, graph: bytes, options: object, providers: list[Any], enable_fallback: int) -> None:
        if self.reason:
            raise RuntimeError(self.reason)
        assert not enable_fallback, "a named device never falls back"
        (self.first, self.options), self.second = providers
        self.graph, self.sizes = graph, list[int]()
        self._session = REAL(graph, options, providers=["CPUExecutionProvider"])
        Session.opened.append(self)

    def get_providers(self) -> list[str]:
        return [self.first, self.second]

    def run(self, outputs: list[str], feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        n, *rest = feed["rgb"].shape
        if "trt_profile_min_shapes" in self.options:
            bounds = (self.options[f"trt_profile_{bound}_shapes"].removeprefix("rgb:") for bound in ("min", "max"))
            (fewest, *smallest), (most, *largest) = (map(int, bound.split("x")) for bound in bounds)
            assert fewest <= n <= most and rest == smallest == largest
        self.sizes.append(n)
        return list(self._session.run(outputs, feed))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture(autouse=True)
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path / "built")
    monkeypatch.setattr(Session, "opened", [], raising=False)
    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


def test_any_number_of_faces_runs_in_batches_of_at_most_sixteen(tmp_path: Path) -> None:
    with engines.load(str(tint(tmp_path / "tint.onnx")), "tensorrt") as landmarker:
        for n in (1, 16, 3, 37):
            np.testing.assert_allclose(landmarker(crops(n)).points_unit, answer(crops(n)), atol=1e-5)
        assert landmarker.card == CARD
    assert Session.opened[0].sizes == [1, 16, 3, 16, 16, 5]


def test_the_engine_is_built_once_for_all_batches_and_kept(tmp_path: Path) -> None:
    with engines.load(str(tint(tmp_path / "tint.onnx")), "tensorrt"):
        (session,) = Session.opened
    folder = Path(session.options["trt_engine_cache_path"])
    assert folder.parent == tmp_path / "built" / "onnxruntime" / onnxruntime.__version__ and folder.is_dir()
    assert session.options == {
        "trt_fp16_enable": "True",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder.parent),
        "trt_profile_min_shapes": "rgb:1x12x16x3",
        "trt_profile_opt_shapes": "rgb:1x12x16x3",
        "trt_profile_max_shapes": "rgb:16x12x16x3",
    }
    assert session.options.keys() == DOCUMENTED and (session.first, session.second) == (
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
    )


def test_a_graph_for_one_face_needs_no_profile(tmp_path: Path) -> None:
    with engines.load(str(tint(tmp_path / "tint.onnx", batch=1)), "tensorrt") as landmarker:
        np.testing.assert_allclose(landmarker(crops(3)).points_unit, answer(crops(3)), atol=1e-5)
    (session,) = Session.opened
    assert session.sizes == [1, 1, 1] and not any("profile" in name for name in session.options)


def test_each_graph_keeps_its_engine_apart_because_the_provider_does_not_look_at_weights(tmp_path: Path) -> None:
    path = tint(tmp_path / "tint.onnx")
    model = onnx.load(path)
    offset = next(weights for weights in model.graph.initializer if weights.name == "offset")
    offset.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(offset) + 1, "offset"))
    onnx.save(model, tmp_path / "trained further.onnx")
    (tmp_path / "copy.onnx").write_bytes(path.read_bytes())
    for name in ("tint", "trained further", "copy"):
        engines.load(str(tmp_path / f"{name}.onnx"), "tensorrt").close()
    first, further, copy = (session.options["trt_engine_cache_path"] for session in Session.opened)
    assert first == copy != further


def test_the_student_is_given_in_half_precision_from_its_first_operator_on_tensorrt() -> None:
    with engines.load("student-fast", "tensorrt") as landmarker:
        rgb = real_crops(landmarker.card, 2)
        found = landmarker(rgb).points_unit
    in_f32 = REAL(engines.WEIGHTS / "student-fast-wflw98.onnx", providers=["CPUExecutionProvider"])
    assert np.abs(found - in_f32.run(["points"], {"rgb": rgb})[0]).max() * 256 < 0.5
    model = onnx.load_from_string(Session.opened[0].graph)
    n_half, n_single = precisions_of_layers(model)
    assert n_half > 10 * n_single
    # TensorRT has no transpose of uint8
    (first,) = [node for node in model.graph.node if "rgb" in node.input]
    assert first.op_type == "Cast"


def test_a_provider_that_does_not_start_names_the_tensorrt_that_it_is_linked_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "capi").mkdir()
    linked = b"\0libnvinfer.so.10\0libcudart.so.13\0libnvinfer_plugin.so.10\0"
    (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").write_bytes(linked)
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(Session, "reason", "Please install TensorRT libraries")
    with pytest.raises(LineamentError, match=r"install TensorRT libraries; its .* needs TensorRT 10: ") as it:
        engines.load(str(tint(tmp_path / "tint.onnx")), "tensorrt")
    assert "`pip install 'tensorrt-cu13>=10,<11'`" in str(it.value) and str(tmp_path / "built") in str(it.value)
    assert not capsys.readouterr().out
    (tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so").unlink()
    assert needs(onnxruntime) == "its TensorRT provider needs the TensorRT that this release of ONNX Runtime names"


def test_what_cannot_be_in_half_precision_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized = onnx.load(tint(tmp_path / "int8.onnx"))
    quantized.graph.node[1].op_type = "QuantizeLinear"
    onnx.save(quantized, tmp_path / "int8.onnx")
    with pytest.raises(
        LineamentError, match=r"cannot run .*int8\.onnx: the model is quantized for CPUs; give the \.onnx"
    ):
        engines.load(str(tmp_path / "int8.onnx"), "tensorrt")
    model = onnx.load(tint(tmp_path / "odd.onnx"))
    model.graph.node[1].op_type = "Nonsense"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(LineamentError, match=r"odd\.onnx.*Nonsense"):
        engines.load(str(tmp_path / "odd.onnx"), "tensorrt")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(LineamentError, match="needs onnx for that; run `pip install onnx`"):
        engines.load(str(tint(tmp_path / "tint.onnx")), "tensorrt")
    assert not Session.opened


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "built").write_text("a file, not a folder")
    with pytest.raises(LineamentError, match=r"cannot keep engines in .*built.*make it writable"):
        engines.load(str(tint(tmp_path / "tint.onnx")), "tensorrt")


def test_the_installed_provider_knows_every_option() -> None:
    """Where onnxruntime-gpu is installed in place of onnxruntime."""
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not provider.is_file():
        pytest.skip("needs onnxruntime-gpu")
    linked = provider.read_bytes()
    assert all(f"\0{name}\0".encode() in linked for name in DOCUMENTED)
