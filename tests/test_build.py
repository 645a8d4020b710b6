"""`make engine` ends with an engine that was held against PyTorch, on any machine, and says what it is worth."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lineament import engines
from lineament.engines import build, driver, openvino_build
from lineament.engines.build import BuildConfig, Row, advice, main, run, table, targets
from lineament.engines.engine_file import ANY_RTX, CROP_PLAN, Gpu, read_header, read_plans
from lineament.engines.model_file import read_card
from lineament.engines.openvino_build import Built
from lineament.engines.tensorrt_library import installed
from lineament.landmarks.types import LineamentError

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")

from lineament.train.model import LandmarkNet, NetSpec, new_card, save  # noqa: E402 - after the check that it can


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose points move with the picture."""
    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64)))
    with torch.no_grad():
        net.get_parameter("head.linear.weight").mul_(1000)
    path = tmp_path_factory.mktemp("run") / "tiny.safetensors"
    save(net, new_card(net, "tiny", 1.3), path)
    return path


@pytest.fixture
def no_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph as it is, for tests that are not about what else a CPU can do: that takes its time."""
    monkeypatch.setattr(
        openvino_build, "candidates", lambda path, card, *others: [Built(path, "fp32", "the graph as exported")]
    )


H200, RTX_4090 = Gpu("NVIDIA H200", (9, 0)), Gpu("NVIDIA GeForce RTX 4090", (8, 9))


def no_gpu() -> Gpu:
    raise LineamentError("this machine has no NVIDIA driver")


@pytest.fixture
def no_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", no_gpu)
    monkeypatch.setattr(driver, "installed", lambda: None)


@pytest.mark.usefixtures("no_int8")
def test_a_checkpoint_becomes_a_file_for_this_cpu_and_a_table(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(model), "--out", str(tmp_path), "--target", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "of ONNX Runtime's" in said and f"make stream MODEL={tmp_path / 'tiny.onnx'}" in said
    assert read_card(tmp_path / "tiny.onnx").name == "tiny"


def test_what_the_cpu_gets_is_proven_and_ready_to_stream(model: Path, tmp_path: Path) -> None:
    rows = run(BuildConfig(model, tmp_path, "cpu"))
    assert rows[0].path == tmp_path / "tiny.onnx" and rows[0].error_px < 0.05
    assert all(row.ms and row.ms > 0 and row.path.is_file() for row in rows)
    assert [row.by for row in rows[:2]] == ["ONNX Runtime", "OpenVINO"]
    assert [row.precision for row in rows[:2]] == ["fp32", "fp32"]


@pytest.mark.usefixtures("no_int8")
def test_an_engine_for_rtx_is_built_once_and_its_graph_proven_where_none_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", no_gpu)
    if not installed("tensorrt-rtx"):
        pytest.skip("needs tensorrt-rtx: pip install -r requirements-rtx.txt")
    row = run(BuildConfig(model, tmp_path, "tensorrt-rtx"))[-1]
    assert row.path.name == "tiny-rtx.engine" and row.precision == "fp16"
    assert 0 < row.error_px < 0.5 and row.ms is None
    header = read_header(row.path)
    assert header.key.gpu == ANY_RTX and header.source == str(model)
    assert header.key.weights_sha256 == read_card(tmp_path / "tiny.onnx").weights_sha256 != ""
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", lambda: H200)
    again = run(BuildConfig(model, tmp_path, "tensorrt-rtx"))[-1]
    assert again.build_s == 0, "the same engine was built twice"
    assert (again.error_px, again.ms) == (row.error_px, None), "an H200 does not run it"


@pytest.mark.usefixtures("no_int8")
def test_an_engine_far_from_pytorch_is_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(path: Path, out: Path, *others: object) -> object:
        out.write_bytes(b"an engine")
        key = SimpleNamespace(gpu=ANY_RTX)
        return SimpleNamespace(build_s=1.0, checked="", in_single=(), key=key)

    monkeypatch.setattr(build, "library", lambda name: None)
    monkeypatch.setattr(build, "build", lambda path, out, *others, **more: wrong(path, out))
    real = build.run_onnx
    monkeypatch.setattr(build, "run_onnx", lambda data, rgb: real(data, rgb) + np.float32(0.01))
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", no_gpu)
    with pytest.raises(LineamentError, match=r"3\.6\d px of a 256-px crop from PyTorch's, at most 0\.5") as refused:
        run(BuildConfig(model, tmp_path, "tensorrt-rtx"))
    kept = tmp_path / "tiny.onnx"
    assert kept.is_file() and str(refused.value).endswith(f". Kept for the CPU: {kept}")
    assert not (tmp_path / "tiny-rtx.engine").exists()


@pytest.mark.usefixtures("no_int8")
def test_an_onnx_file_is_its_own_reference(model: Path, tmp_path: Path) -> None:
    run(BuildConfig(model, tmp_path / "first", "cpu"))
    rows = run(BuildConfig(tmp_path / "first" / "tiny.onnx", tmp_path / "second", "cpu"))
    assert rows[0].path == tmp_path / "second" / "tiny.onnx" and rows[0].error_px == 0


@pytest.mark.parametrize(
    ("gpu", "packages", "wanted"),
    [
        (H200, {"tensorrt", "tensorrt-rtx"}, ["tensorrt"]),
        (H200, {"tensorrt-rtx"}, ["cpu"]),  # which does not run there
        (RTX_4090, {"tensorrt", "tensorrt-rtx"}, ["tensorrt"]),
        (RTX_4090, {"tensorrt-rtx"}, ["tensorrt-rtx"]),
        (RTX_4090, set(), ["cpu"]),
        (None, {"tensorrt", "tensorrt-rtx"}, ["tensorrt-rtx", "cpu"]),
        (None, {"tensorrt"}, ["cpu"]),
        (None, set(), ["cpu"]),
    ],
)
def test_auto_takes_the_best_that_is_here(
    gpu: Gpu | None, packages: set[str], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", (lambda: gpu) if gpu else no_gpu)
    monkeypatch.setattr(build, "installed", lambda name: name in packages)
    monkeypatch.setattr(build, "library", lambda name: None)
    assert targets("auto").names == wanted


def test_a_target_that_is_named_is_taken_and_never_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "installed", lambda name: False)
    for target in ("tensorrt", "tensorrt-rtx", "cpu"):
        assert targets(target) == ([target], "", "")  # type: ignore[arg-type]


def test_what_is_no_model_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path / "absent.safetensors")]) == 1
    (tmp_path / "b5.pth").write_bytes(b"x")
    assert main(["--model", str(tmp_path / "b5.pth")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert "no model at" in said[0] and "neither a .safetensors" in said[1] and len(said) == 2


def rows_of(cfg: BuildConfig, folder: Path) -> list[Row]:
    """What `run` returns for a machine with a CPU only; the file is written to folder."""
    path = folder / f"{cfg.model}.onnx"
    path.write_bytes(b"x")
    return [Row(path, "ONNX Runtime", "fp32", 0, 0.0, ms=3.0), Row(path, "OpenVINO", "fp32", 0, 0.0, ms=2.0)]


@pytest.mark.usefixtures("no_nvidia")
def test_without_a_model_all_that_ship_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[tuple[Path, Path]] = []

    def noted(cfg: BuildConfig) -> list[Row]:
        built.append(build._chosen(cfg))
        return rows_of(cfg, tmp_path)

    monkeypatch.setattr(build, "run", noted)
    monkeypatch.setattr(engines, "BUILT", tmp_path)
    assert main([]) == 0
    assert built == [(path, tmp_path) for path in engines.CHECKPOINTS.values()]
    assert all(path.is_file() for path in engines.CHECKPOINTS.values())
    said = capsys.readouterr().out
    assert f"make stream MODEL={tmp_path / 'student.onnx'}\n" in said and "make stream MODEL=b5\n" in said


@pytest.mark.parametrize("wrong", [False, True])
def test_an_engine_that_cuts_other_crops_than_the_cpu_is_left_without_them(
    wrong: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a release that reads the graph of crops differently."""
    fake = pytest.importorskip("tests.fake_tensorrt")
    from tests.tint import answer, crops

    fake.play_tensorrt(monkeypatch)
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", lambda: fake.H200)
    right = fake.crop_graph
    if wrong:
        monkeypatch.setattr(fake, "crop_graph", lambda hw: swapped(right(hw)))
    engine = fake.engine_file(tmp_path / "tint.engine", hw=(128, 128))
    report = SimpleNamespace(build_s=1.0, checked="all", in_single=(), key=fake.KEY)
    monkeypatch.setattr(build, "build", lambda *args, **more: report)
    rgb = np.resize(crops(3), (3, 128, 128, 3))
    onnx_path = engine.with_suffix(".onnx")
    with ExitStack() as stack:
        row, landmarker = build._for_gpu(BuildConfig(), "tensorrt", onnx_path, engine, rgb, answer(rgb), stack)
        assert landmarker is not None and row.error_px < 0.01
    assert ("crops are cut on the CPU" in row.note) == wrong
    assert (CROP_PLAN in read_plans(engine)) == (not wrong)
    assert read_header(engine).key == fake.KEY


def swapped(graph: Any) -> Any:
    """A crop graph that takes blue for red."""
    import onnx

    (channels,) = [tensor for tensor in graph.graph.initializer if tensor.name == "channels"]
    channels.CopyFrom(onnx.numpy_helper.from_array(np.array([0, 1, 2]), "channels"))
    return graph


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (BuildConfig(Path("student"), target="tensorrt"), "no NVIDIA driver"),
        (BuildConfig(Path("student"), batches=(4, 1, 16)), r"batches are \(4, 1, 16\), expected"),
        (BuildConfig(Path("student"), batches=(1, 1, 5000)), "at most 4096"),
    ],
)
def test_what_cannot_be_built_is_said_before_the_model_is_exported(
    cfg: BuildConfig, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", no_gpu)
    monkeypatch.setattr(build, "_exported", lambda *args: pytest.fail("it was exported"))
    with pytest.raises(LineamentError, match=said):
        run(cfg)


@pytest.mark.usefixtures("no_nvidia")
def test_a_model_that_cannot_be_built_does_not_stop_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def run_but_student(cfg: BuildConfig) -> list[Row]:
        if str(cfg.model) == "student":
            raise LineamentError("there is no kernel")
        return rows_of(cfg, tmp_path)

    monkeypatch.setattr(build, "run", run_but_student)
    monkeypatch.setattr(engines, "BUILT", tmp_path)
    assert main([]) == 1
    told = capsys.readouterr()
    assert "student: there is no kernel" in caplog.text
    assert "student-fast.onnx" in told.out and "make stream MODEL=b5\n" in told.out
    assert told.err.splitlines()[-1] == "error: student could not be built: there is no kernel"


def test_b5_streams_by_its_name_from_the_file_that_was_fastest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path)
    rows = [
        Row(tmp_path / name, by, precision, 0, 0.0, ms=ms)
        for name, by, precision, ms in (
            ("b5.onnx", "ONNX Runtime", "fp32", 1.0),
            ("b5.onnx", "OpenVINO", "fp32", 9.0),
            ("b5-bf16.onnx", "OpenVINO", "bf16", 5.0),
            ("b5-int8.onnx", "OpenVINO", "int8", 4.0),
        )
    ]
    for row in rows:
        row.path.write_bytes(b"x")
    # ranges of one portrait do not make it the B5 of its name
    assert advice("b5", rows, calibrated=False) == [
        "fastest here: make stream MODEL=b5",
        "b5-int8.onnx is faster, but calibrated on one portrait; add DATA=/path/to/WFLW",
    ]
    assert engines.fastest_built("b5") == tmp_path / "b5-bf16.onnx"
    assert advice("b5", rows, calibrated=True) == ["fastest here: make stream MODEL=b5"]
    assert engines.fastest_built("b5") == tmp_path / "b5-int8.onnx" and "b5" in engines.ready()
    # what was built of other weights, or is gone, does not count
    (tmp_path / "b5-int8.onnx").unlink()
    assert engines.fastest_built("b5") is None and "b5" not in engines.ready()
    (tmp_path / "b5.json").write_text('{"file": "b5.onnx", "weights_sha256": "of others"}')
    assert engines.fastest_built("b5") is None
    (tmp_path / "b5.json").write_text("half a li")
    assert engines.fastest_built("b5") is None


def recommended_of(folder: Path, *figures: tuple[str, float, float], calibrated: bool = True) -> list[str]:
    """figures: a runtime or precision, px from PyTorch, ms; the first is ONNX Runtime's."""
    rows = [
        Row(folder / f"{name}.onnx", "ONNX Runtime" if i == 0 else "OpenVINO", name, 0, px, ms=ms)
        for i, (name, px, ms) in enumerate(figures)
    ]
    return advice(str(folder / "own.safetensors"), rows, calibrated)


def test_the_fastest_engine_within_half_a_pixel_is_recommended_and_a_faster_one_is_named(tmp_path: Path) -> None:
    found = recommended_of(tmp_path, ("ort", 0.0, 9.0), ("fp32", 0.0, 8.0), ("bf16", 0.5, 5.0), ("int8", 2.5, 4.0))
    assert found == [
        f"fastest here: make stream MODEL={tmp_path}/bf16.onnx",
        "int8.onnx is faster, but puts 1 of 20 points 2.50 px or more from PyTorch's",
    ]
    by_ort = recommended_of(tmp_path, ("ort", 0.0, 7.0), ("fp32", 0.0, 8.0), ("bf16", 0.51, 6.9))
    assert by_ort == [f'fastest here: make stream MODEL={tmp_path}/ort.onnx ARGS="--device onnxruntime"']


def test_of_engines_that_take_the_same_time_the_more_accurate_is_recommended(tmp_path: Path) -> None:
    found = recommended_of(tmp_path, ("ort", 0.0, 9.0), ("bf16", 0.08, 5.04), ("int8", 0.4, 5.0))
    assert found == [f"fastest here: make stream MODEL={tmp_path}/bf16.onnx"]
    same = recommended_of(tmp_path, ("ort", 0.0001, 5.01), ("fp32", 0.0002, 5.0))
    assert same == [f"fastest here: make stream MODEL={tmp_path}/fp32.onnx"], "both compute in f32"


@pytest.mark.parametrize("px", [0.7, float("nan")])
def test_without_an_engine_within_half_a_pixel_f32_is_recommended_and_a_line_says_so(px: float, tmp_path: Path) -> None:
    said, why = recommended_of(tmp_path, ("ort", px, 9.0), ("bf16", px, 5.0))
    assert said.startswith("no engine is within 0.5 px of PyTorch, so in f32: make stream MODEL=")
    assert said.endswith('ort.onnx ARGS="--device onnxruntime"') and f"{px:.2f} px" in why


def test_int8_of_one_portrait_is_not_recommended(tmp_path: Path) -> None:
    figures = (("ort", 0.0, 9.0), ("bf16", 0.1, 5.0), ("int8", 0.4, 4.0))
    said, why = recommended_of(tmp_path, *figures, calibrated=False)
    assert said.endswith("bf16.onnx") and "one portrait" in why
    assert recommended_of(tmp_path, *figures)[0].endswith("int8.onnx")


def test_a_b5_that_is_not_built_says_how_to_build_it_where_pytorch_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUILT", tmp_path)
    monkeypatch.setattr(engines, "_import_error", lambda package: "absent")
    with pytest.raises(LineamentError, match=r"b5 is not built for this machine yet; run `make engine MODEL=b5`"):
        engines.load("b5")


def test_an_untrained_b5_says_that_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(build, "_save_untrained", made.append)
    with caplog.at_level(logging.WARNING):
        chosen, out = build._chosen(BuildConfig(Path("b5-untrained"), out=tmp_path / "out"))
    assert made == [chosen] == [tmp_path / "out" / "b5-untrained.safetensors"] and out == tmp_path / "out"
    assert "UNTRAINED" in caplog.text and len(caplog.records) == 1


def test_the_table_has_a_line_and_a_note_for_each_engine(tmp_path: Path) -> None:
    (onnx := tmp_path / "b5.onnx").write_bytes(bytes(5_000_000))
    (engine := tmp_path / "b5.engine").write_bytes(bytes(2_500_000))
    lines = table(
        [
            Row(onnx, "ONNX Runtime", "fp32", 0, 0.0, ms=20.0),
            Row(engine, "TensorRT", "fp16", 1.5, 0.04, "for a GPU", 1.0),
            Row(engine, "TensorRT-RTX", "fp16", 1.5, 0.1),
        ]
    ).splitlines()
    assert lines[0].split()[:3] == ["engine", "run", "by"]
    assert lines[1].split()[4:] == ["5.0", "-", "0.000", "px", "20.00", "1.00"]
    assert lines[2].split() == ["b5.engine", "TensorRT", "fp16", "2.5", "1.5", "s", "0.040", "px", "1.00", "0.05"]
    assert lines[3].split()[-2:] == ["-", "-"]
    assert lines[4:] == ["", "b5.engine by TensorRT: for a GPU"]


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="needs tensorrt-rtx: pip install -r requirements-rtx.txt")
def test_the_b5_becomes_a_real_engine_in_half_precision(tmp_path: Path) -> None:
    """The model that this project is about, by NVIDIA's own compiler: no GPU is needed to build."""
    from lineament.engines.export import graph_of, put_card
    from lineament.engines.tensorrt_build import build as build_engine

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec()).eval()
    graph = graph_of(net)
    put_card(graph, new_card(net, "b5", 1.3))
    n_bytes = (tmp_path / "b5.onnx").write_bytes(graph.SerializeToString())
    report = build_engine(tmp_path / "b5.onnx", tmp_path / "b5.engine", "tensorrt-rtx", progress=False)
    assert (report.n_half, report.n_single) == (195, 1)
    assert report.n_bytes < 0.6 * n_bytes
