"""Model files: which backend runs one, that it agrees with PyTorch, and what is said of a bad one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lineament import engines
from lineament.engines.model_file import FileLandmarker, read_card
from lineament.landmarks.types import U8, LineamentError

onnx = pytest.importorskip("onnx")

from tests.tint import CARD, RAMP, answer, crops, tint  # noqa: E402 - after the check that it can

helper = onnx.helper
BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


def test_a_model_that_judges_is_believed(backend: str, tmp_path: Path) -> None:
    with engines.load(str(tint(tmp_path / "judge.onnx", judges=True)), backend) as landmarker:
        found = landmarker(crops(3))
    np.testing.assert_allclose(found.confidence, crops(3)[..., 1].mean((1, 2)) / 255, atol=1e-5)
    blue = crops(3)[..., 2].mean((1, 2)) / 255
    np.testing.assert_allclose(found.visibility, blue[:, None] * RAMP, atol=1e-5)
    np.testing.assert_allclose(found.points_unit, answer(crops(3)), atol=1e-5)


def test_the_student_runs_where_the_instructions_of_bf16_are_out_of_reach() -> None:
    """As under a hypervisor that hides them: OpenVINO sees a processor with bf16, and oneDNN may not use it."""
    program = """
import numpy as np
from lineament import engines
with engines.load("student") as landmarker:
    print(landmarker(np.zeros((1, *landmarker.card.input_hw, 3), np.uint8)).points_unit.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "(1, 98, 2)\n", done.stderr


def test_bfloat16_is_near_and_another_precision_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from lineament.engines.openvino_backend import OpenVinoLandmarker
    from lineament.engines.openvino_build import has_bf16

    path = tint(tmp_path / "tint.onnx")
    with OpenVinoLandmarker(path, "bf16") as landmarker:
        np.testing.assert_allclose(landmarker(crops(2)).points_unit, answer(crops(2)), atol=0.05)
    for said, precision in (("fp32", "f32"), ("int8", "f32"), ("bf16", "bf16" if has_bf16() else "f32")):
        with OpenVinoLandmarker(tint(path, replace(CARD, precision=said).to_json())) as landmarker:
            assert landmarker.precision == precision, f"a card that says {said} is obeyed"
    with pytest.raises(ValueError, match="int3"):
        OpenVinoLandmarker(path, "int3")  # type: ignore[arg-type]


def test_the_student_is_exact_by_openvino_and_near_that_by_default() -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnxruntime")
    from lineament.engines.export import largest_difference_px, real_crops

    with (
        engines.load("student") as usual,
        engines.load("student", "openvino") as exact,
        engines.load("student", "onnxruntime") as other,
    ):
        rgb = real_crops(exact.card, 4)
        wanted = exact(rgb).points_unit
        assert largest_difference_px(other(rgb).points_unit, wanted) < 0.01
        # in bf16 this far, or the last layer is rounded too
        assert np.linalg.norm(usual(rgb).points_unit - wanted, axis=-1).mean() * 256 < 0.2


def test_a_processor_without_bfloat16_says_so_and_runs_in_f32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    openvino = pytest.importorskip("openvino")
    from lineament.engines.openvino_backend import OpenVinoLandmarker

    class Old(openvino.Core):  # type: ignore[misc]
        def get_property(self, *args: Any) -> Any:
            return ["FP32", "INT8"] if args[-1] == "OPTIMIZATION_CAPABILITIES" else super().get_property(*args)

    monkeypatch.setattr(openvino, "Core", Old)
    with OpenVinoLandmarker(tint(tmp_path / "tint.onnx"), "bf16") as landmarker:
        assert landmarker.precision == "f32"
    (record,) = caplog.records
    assert record.message == "tint.onnx runs in f32 because this processor has no bf16"


def test_bfloat16_rounds_what_the_network_sees_and_not_its_points(tmp_path: Path) -> None:
    """Between 0.5 and 1 its steps are 0.004, a pixel of a 256-px crop."""
    pytest.importorskip("openvino")
    from lineament.engines.openvino_backend import OpenVinoLandmarker
    from lineament.engines.openvino_build import has_bf16

    if not has_bf16():
        pytest.skip("this processor has no bf16")
    shades = np.stack([np.full((12, 16, 3), shade, np.uint8) for shade in range(100, 200)])
    with OpenVinoLandmarker(tint(tmp_path / "tint.onnx"), "bf16") as landmarker:
        found = landmarker(shades).points_unit
    steps = np.abs(np.diff(found, axis=0))
    true = np.abs(np.diff(answer(shades), axis=0))
    # every step of the light moves every point, as little as it should: none stands still and then jumps
    np.testing.assert_allclose(steps, true, atol=1e-5)


# ---- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64), presence=True)).eval()
    # far enough apart that an error would show: points of an untrained net hardly move
    torch.nn.init.normal_(net.head.get_parameter("linear.weight"), std=1.0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(net, new_card(net, "tiny", 1.3), path)
    return path


def test_a_checkpoint_and_the_files_made_of_it_say_the_same(checkpoint: Path, tmp_path: Path) -> None:
    from lineament.engines.export import export, largest_difference_px, real_crops
    from lineament.train.model import load

    net, card = load(checkpoint)
    export(net, card, path := tmp_path / "tiny.onnx")
    rgb_NHWC = real_crops(card, 5)
    with engines.load(str(checkpoint), "cpu") as landmarker:
        wanted = landmarker(rgb_NHWC)
        assert landmarker.card == card
    assert np.ptp(wanted.points_unit, axis=0).max() > 0.02 and len(np.unique(wanted.confidence)) > 1
    for backend in BACKENDS:
        with engines.load(str(path), backend) as landmarker:
            found = landmarker(rgb_NHWC)
        assert largest_difference_px(found.points_unit, wanted.points_unit) < 0.05
        np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-4)


def test_a_checkpoint_on_the_cpu_names_the_way_to_something_faster(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with engines.load(str(checkpoint)):
        (record,) = caplog.records
    assert "tiny.safetensors runs in PyTorch on the CPU" in record.message and "make engine" in record.message
    with pytest.raises(LineamentError, match="finds no NVIDIA GPU"):
        engines.load(str(checkpoint), "cuda")
    with pytest.raises(LineamentError, match=r"is a checkpoint.*'openvino'.*make engine"):
        engines.load(str(checkpoint), "openvino")


def test_without_torch_a_checkpoint_is_one_clear_error(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for device in ("auto", "cpu"):
        with pytest.raises(LineamentError, match=r"torch cannot be imported.*requirements-train\.txt.*make engine"):
            engines.load(str(checkpoint), device)


# ---- files that are refused


def bad_cards() -> dict[str, tuple[str | None, str]]:
    """name: the card, and what the message says"""
    values = json.loads(CARD.to_json())
    return {
        "absent": (None, "no model card"),
        "no JSON": ("{", "malformed"),
        "a list": ("[1]", "malformed: .*JSON object, got list"),
        "deep": ("[" * 100_000, "malformed"),
        "a field lacks": (json.dumps({**values} | {"extra": 1}), r"malformed: .*unknown fields \['extra'\]"),
        "input_hw a number": (json.dumps({**values, "input_hw": 112}), "malformed"),
        "input_hw of three": (json.dumps({**values, "input_hw": [1, 2, 3]}), r"input_hw \(1, 2, 3\)"),
        "input_hw negative": (json.dumps({**values, "input_hw": [-12, 16]}), r"input_hw \(-12, 16\)"),
        "crop_scale nan": (json.dumps({**values, "crop_scale": float("nan")}), "crop_scale nan"),
        "crop_scale text": (json.dumps({**values, "crop_scale": "1.2"}), "crop_scale '1.2'"),
        "name a list": (json.dumps({**values, "name": ["a"]}), r"name \['a'\]"),
        "unknown schema": (json.dumps({**values, "schema": "aflw21"}), r"schema 'aflw21', expected one of wflw98"),
        "schema a list": (json.dumps({**values, "schema": ["wflw98"]}), r"schema \['wflw98'\]"),
        "another size": (replace(CARD, input_hw=(16, 12)).to_json(), r"takes 'rgb' .*12, 16, 3.*expected.*16, 12, 3"),
        "another schema": (replace(CARD, schema="ibug68").to_json(), r"returns 'points' .*98, 2.*expected.*68, 2"),
    }


@pytest.mark.parametrize("name", bad_cards())
def test_a_bad_card_is_refused_with_what_was_got_wanted_and_what_to_do(backend: str, name: str, tmp_path: Path) -> None:
    card, said = bad_cards()[name]
    path = tint(tmp_path / "bad.onnx", card)
    with pytest.raises(LineamentError, match=said) as caught:
        engines.load(str(path), backend)
    assert "bad.onnx" in str(caught.value) and "engines.import_onnx" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": ("image", "points")}, "takes 'image'.*expected one input 'rgb'"),
        ({"names": ("rgb", "output")}, "returns 'output'.*expected 'points'"),
        ({"dtype": onnx.TensorProto.FLOAT}, "float32.*expected.*uint8"),
        ({"n_points": 68}, r"68, 2.*expected 'points' \(any, 98, 2\)"),
        ({"batch": 4}, r"\(4, 12, 16, 3\).*expected.*\(any or 1, 12, 16, 3\)"),
    ],
    ids=["input's name", "output's name", "input's type", "points", "batch of 4"],
)
def test_a_graph_that_is_not_ours_is_refused(backend: str, changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=said):
        engines.load(str(tint(tmp_path / "bad.onnx", **changes)), backend)


def test_the_backends_refuse_in_the_same_words(tmp_path: Path) -> None:
    for backend in BACKENDS:
        pytest.importorskip(backend)
    path = tint(tmp_path / "bad.onnx", replace(CARD, schema="ibug68").to_json())
    said = set()
    for backend in BACKENDS:
        with pytest.raises(LineamentError) as caught:
            engines.load(str(path), backend)
        said.add(str(caught.value))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no model file at"),
        (b"", r"empty \(0 bytes\)"),
        (b"\x00" * 200, "not an? (valid )?ONNX file"),
        (b"not a model at all, but a text of some length", "not an? (valid )?ONNX file"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 64, "not an? (valid )?ONNX file"),
    ],
    ids=["absent", "empty", "zeros", "text", "picture"],
)
def test_what_is_no_model_is_one_clear_error(backend: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LineamentError, match=said):
        engines.load(str(path), backend)


def test_a_folder_is_no_model(backend: str, tmp_path: Path) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(LineamentError, match="no model file at"):
        engines.load(str(tmp_path / "folder.onnx"), backend)


def test_a_file_cut_anywhere_is_refused(backend: str, tmp_path: Path) -> None:
    whole = tint(tmp_path / "tint.onnx").read_bytes()
    cut = tmp_path / "cut.onnx"
    for length in range(1, len(whole), len(whole) // 20):
        cut.write_bytes(whole[:length])
        with pytest.raises(LineamentError, match=r"cut\.onnx"):
            engines.load(str(cut), backend)


def test_a_graph_that_no_runtime_understands_is_refused(backend: str, tmp_path: Path) -> None:
    model = onnx.load(tint(tmp_path / "tint.onnx"))
    model.graph.node[3].op_type = "Bewitch"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(LineamentError, match=r"cannot run .*odd\.onnx"):
        engines.load(str(tmp_path / "odd.onnx"), backend)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = tint(tmp_path_factory.mktemp("fuzz") / "fuzz.onnx")
    return path, path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_a_damaged_file_gives_a_card_or_one_kind_of_error(
    whole_file: tuple[Path, bytes], changes: Sequence[tuple[int, int]], at_the_end: bool
) -> None:
    path, whole = whole_file
    data = bytearray(whole)
    for place, byte in changes:
        # the card lies at the end, the other fields of the file at its beginning
        data[-1 - place % 400 if at_the_end else place % 60] = byte
    _read(path, bytes(data))


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=1, max_size=80))
@example(b"\xff" * 40)
@example(b"\x3a\x00\x72\x02\x0a\xff")
@example(b"\x3a\x00\x72\x03\x0a\x01\xff")
def test_random_bytes_give_a_card_or_one_kind_of_error(whole_file: tuple[Path, bytes], data: bytes) -> None:
    _read(whole_file[0], data)


def _read(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        card = read_card(path)
    except LineamentError as error:
        assert str(path) in str(error)
    else:
        assert card.schema in ("wflw98", "ibug68") and len(card.input_hw) == 2


def test_the_card_is_found_wherever_it_stands_and_whatever_else_is_there(tmp_path: Path) -> None:
    path = tint(tmp_path / "tint.onnx", card=None)
    graph_first = path.read_bytes()
    model = onnx.ModelProto()
    helper.set_model_props(model, {"author": "", "card": CARD.to_json(), "ä": "ö"})
    metadata = model.SerializeToString()
    for data in (metadata + graph_first, graph_first + metadata):
        path.write_bytes(data)
        assert read_card(path) == CARD


# ---- which backend


def test_auto_and_cpu_take_openvino(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tint(tmp_path / "tint.onnx")
    for device in ("auto", "cpu"):
        with engines.load(str(path), device) as landmarker:
            assert type(landmarker).__name__ == "OpenVinoLandmarker"


def test_without_openvino_auto_takes_onnx_runtime_and_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    path = tint(tmp_path / "tint.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.WARNING), engines.load(str(path)) as landmarker:
        np.testing.assert_allclose(landmarker(crops(2)).points_unit, answer(crops(2)), atol=1e-5)
    (record,) = caplog.records
    assert "tint.onnx runs in ONNX Runtime" in record.message and "OpenVINO" in record.message


@pytest.mark.parametrize("name", BACKENDS)
def test_a_named_backend_never_falls_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LineamentError, match=r"cannot be imported.*pip install"):
        engines.load(str(tint(tmp_path / "tint.onnx")), name)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_that_onnx_runtime_cannot_use_is_one_clear_error(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path / "built")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = str(tint(tmp_path / "tint.onnx"))
    names = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(LineamentError, match=rf"cannot run on {device}.*{names[device]}.*onnxruntime-gpu"):
        engines.load(path, device)

    class Silent:
        """As ONNX Runtime does where a provider's libraries do not load: it takes the next, with no error."""

        def __init__(self, graph: object, options: object, providers: list[Any], enable_fallback: int) -> None:
            assert names[device] in (providers[0], providers[0][0]) and not enable_fallback

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names.values(), "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Silent)
    with pytest.raises(LineamentError, match=rf"could not start {names[device]} and used CPUExecutionProvider"):
        engines.load(path, device)


@pytest.mark.parametrize("tensorrt", [True, False])
def test_libraries_that_pip_installed_are_loaded_before_a_session_on_a_gpu(
    tensorrt: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path / "built")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, done = str(tint(tmp_path / "tint.onnx")), list[str]()
    session, names = (
        onnxruntime.InferenceSession,
        {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"},
    )

    class OnGpu:
        def __init__(self, graph: object, options: object, providers: list[Any], enable_fallback: int) -> None:
            done.append("session")
            self._session = session(graph, options, providers=["CPUExecutionProvider"])
            self._providers = [one if isinstance(one, str) else one[0] for one in providers]

        def get_providers(self) -> list[str]:
            return self._providers

        def __getattr__(self, name: str) -> Any:
            return getattr(self._session, name)

    def preload() -> None:
        done.append("CUDA")
        print("Failed to load libcudnn.so")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names.values(), "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", OnGpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(onnxruntime, "done", done, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]  # as if it were not installed
    if tensorrt:
        (tmp_path / "tensorrt.py").write_text("import onnxruntime\nonnxruntime.done.append('tensorrt')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "tensorrt")
    for device in ("onnxruntime", "cuda", "tensorrt"):
        with engines.load(path, device):
            done.append(device)
    first = ["tensorrt"] * tensorrt
    assert done == ["session", "onnxruntime", "CUDA", "session", "cuda", *first, "CUDA", "session", "tensorrt"]
    said = capsys.readouterr()
    assert said.out == "" and "libcudnn" in said.err


def test_auto_tries_the_gpu_that_onnx_runtime_has_and_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for backend in BACKENDS:
        pytest.importorskip(backend)
    monkeypatch.setattr(engines, "_installed", lambda package: package == "onnxruntime-gpu")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with engines.load(str(tint(tmp_path / "tint.onnx"))) as landmarker:
        assert type(landmarker).__name__ == "OpenVinoLandmarker"
    (record,) = caplog.records
    assert "tint.onnx runs on the CPU because the GPU is unavailable" in record.message


def test_threads_must_be_a_number_of_threads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        engines.load(str(tint(tmp_path / "tint.onnx")), threads=0)


def test_an_engine_runs_on_a_gpu_alone(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"b5\.engine runs only on an NVIDIA GPU.*'cpu'"):
        engines.load(str(tmp_path / "b5.engine"), "cpu")


def test_an_unknown_device_or_kind_of_file_is_refused_with_the_choice_there_is(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="'quantum'; choose one of auto, cpu, openvino, openvino-thr"):
        engines.load(str(tint(tmp_path / "tint.onnx")), "quantum")
    with pytest.raises(LineamentError, match=r"ends in \.pth.*\.onnx"):
        engines.load(str(tmp_path / "b5.pth"))


def test_importing_the_backends_imports_no_runtime() -> None:
    code = (
        "import sys; from lineament.engines import (model_file, openvino_backend, onnxruntime_backend, import_onnx, "
        "torch_backend, openvino_build, labelled); "
        "assert not {'openvino', 'onnxruntime', 'onnx', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_a_graph_that_breaks_its_word_is_found_out(tmp_path: Path) -> None:
    """Sizes that a runtime cannot foresee are checked when they come."""
    from lineament.landmarks.types import Landmarks

    class Odd(FileLandmarker):
        def _run(self, rgb_NHWC: U8) -> Landmarks:
            return Landmarks(np.zeros((1, 97, 2), np.float32), np.ones(1, np.float32))

        def _release(self) -> None: ...

    with pytest.raises(LineamentError, match=r"\(1, 97, 2\).*expected \(1, 98, 2\)"):
        Odd(tmp_path / "odd.onnx", CARD)(crops(1))
