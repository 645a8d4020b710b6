"""The bench of engines: every runtime takes part, numbers have the shape that they should, and nothing is made up."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest

from lineament.engines import bench as bench_module
from lineament.engines.bench import (
    BenchConfig,
    Contender,
    Latency,
    Row,
    bench,
    contenders,
    main,
    plot,
    table,
)
from lineament.engines.engine_file import Gpu
from lineament.engines.portrait import frame_of_faces
from lineament.landmarks.geometry import rgb_crops
from lineament.landmarks.types import Landmarker, LineamentError
from tests.labelled import mean_face, write_wflw

torch = pytest.importorskip("torch")
for package in ("onnx", "openvino", "onnxruntime"):
    pytest.importorskip(package)

SLOW = {1: Latency(20.0, 30.0, 50.0), 2: Latency(30.0, 40.0, 66.7)}
FAST = {1: Latency(8.0, 9.0, 125.0), 2: Latency(15.0, 16.0, 133.3)}
CUT = {1: Latency(9.0, 9.5, 111.1), 2: Latency(17.0, 18.0, 117.6)}
ROWS = [
    Row("torch cpu", "a.safetensors", 10.0, 0.0, 1.0, 0.0, 4.0, SLOW, SLOW),
    Row("onnxruntime", "a.onnx", 10.0, 9.0, 0.1, 0.01, 4.0, SLOW, SLOW),
    Row("openvino int8", "a8.onnx", 3.0, 29.0, 0.2, 1.5, 4.05, FAST, CUT, CUT),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64))).eval()
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(net, new_card(net, "tiny", 1.3), path)
    return path


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wflw")
    write_wflw(root, "train", [(f"{i}.png", mean_face(48 + i)) for i in range(5)])
    return write_wflw(root, "test", [(f"t{i}.png", mean_face()) for i in range(2)])


@pytest.fixture(scope="module")
def told(checkpoint: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints, and the folder that it leaves."""
    import contextlib
    import io

    out = tmp_path_factory.mktemp("bench")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main([str(checkpoint), "--data", str(faces), "--out", str(out), "--n", "3", "--batches", "1", "3"])
    assert code == 0
    return printed.getvalue(), out


def test_a_checkpoint_is_run_by_every_runtime_there_is(told: tuple[str, Path]) -> None:
    rows = json.loads((told[1] / "bench.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert names[0] == "torch cpu", "the first is what the others are compared with"
    assert {"onnxruntime", "openvino fp32", "openvino int8"} <= set(names)
    for row in rows:
        assert set(row["latency"]) == {"1", "3"} and row["size_mib"] > 0.1 and row["open_s"] > 0
        for measured in (row["latency"], row["on_frame"]):
            assert set(measured) == {"1", "3"}
            for batch, (p50_ms, p95_ms, crops_per_s) in ((int(b), v.values()) for b, v in measured.items()):
                assert 0 < p50_ms <= p95_ms and crops_per_s == pytest.approx(batch / p50_ms * 1000)
        assert bool(row["cut_on_cpu"]) == row["name"].startswith("tensorrt"), "others do not cut crops on a GPU"
        assert row["nme"] > 5, "an untrained net is far off"


def test_what_was_built_took_time_and_lies_near_pytorch(told: tuple[str, Path]) -> None:
    rows = {row["name"]: row for row in json.loads((told[1] / "bench.json").read_text())["rows"]}
    first = rows.pop("torch cpu")
    assert first["build_s"] == first["away_px"] == 0
    for row in rows.values():
        assert (row["build_s"] > 0 or row["name"] == "torch cuda") and row["away_px"] < 5
    assert rows["onnxruntime"]["away_px"] < 0.05 and rows["onnxruntime"]["nme"] == pytest.approx(first["nme"], abs=0.01)


def test_machine_versions_and_count_are_printed_with_the_numbers(told: tuple[str, Path]) -> None:
    printed, out = told
    for said in (
        "cores, Python",
        f"torch {version('torch')}",
        "3 calls per contender and batch size",
        "NME   delta",
        "bench.png",
    ):
        assert said in printed
    picture = cv2.imread(str(out / "bench.png"))
    assert picture is not None and picture.shape[1] > 800


def test_nothing_but_results_is_left(told: tuple[str, Path]) -> None:
    names = {path.name for path in told[1].iterdir()}
    assert {"bench.json", "bench.png", "tiny.onnx", "tiny-int8.onnx"} <= names
    assert not [name for name in names if name.startswith(".")], "crops were left behind"


def test_the_fastest_is_named_with_its_share_of_onnx_runtimes_time() -> None:
    cfg = BenchConfig(Path("a.safetensors"), batches=(1, 2))
    lines = table(ROWS, cfg)
    assert lines[-2] == "fastest at batch 1: openvino int8, 0.40 of ONNX Runtime's time"
    assert lines[-1] == "fastest within 0.5 px of torch cpu: torch cpu, 1.00 of ONNX Runtime's time"
    (int8,) = [line for line in lines if line.startswith("openvino int8") and "+0.050" in line]
    assert int8.split() == ["openvino", "int8", "3.0", "29.0", "0.20", "1.500", "4.05", "+0.050"]
    assert any(line.split() == ["openvino", "int8", "8.00", "/", "9.00", "15.00", "/", "16.00"] for line in lines)
    frames = lines[lines.index(next(line for line in lines if line.startswith("ms per frame"))) :]
    assert any(line.split() == ["openvino", "int8", "9.00", "/", "9.50", "17.00", "/", "18.00"] for line in frames)
    (cut,) = [line for line in frames if "cut on CPU" in line]
    assert cut.startswith("openvino int8, cut on CPU ") and cut.endswith("17.00 / 18.00")
    without = table([replace(row, nme=None) for row in ROWS], cfg)
    assert "NME" not in "\n".join(without)


def test_a_runtime_that_cuts_crops_itself_is_timed_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lineament.engines.tensorrt_backend import TensorRtLandmarker
    from tests.fake_tensorrt import FakeCuda, engine_file, play_tensorrt

    play_tensorrt(monkeypatch)
    path = engine_file(tmp_path / "tint.engine", hw=(128, 128))
    gpu = Contender("tensorrt", path, lambda: TensorRtLandmarker(path))
    monkeypatch.setattr(bench_module, "contenders", lambda cfg: [gpu])
    (row,) = bench(BenchConfig(path, out=tmp_path / "out", n=2, batches=(1, 2)))
    assert set(row.latency) == set(row.on_frame) == set(row.cut_on_cpu) == {1, 2}
    assert FakeCuda.made[-1].captures == 4, "each batch size with crops from the CPU and from the GPU"


def test_tensorrt_is_timed_as_tuned_for_one_crop_and_for_the_largest_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It picks its kernels for one batch size, and runs the others with them."""
    tuned: list[tuple[int, int, int]] = []

    def built(onnx: Path, path: Path, name: str, source: str, batches: tuple[int, int, int]) -> SimpleNamespace:
        tuned.append(batches)
        return SimpleNamespace(build_s=1.0)

    monkeypatch.setattr("lineament.engines.cuda.first_gpu", lambda: Gpu("NVIDIA H100", (9, 0)))
    monkeypatch.setattr("lineament.engines.tensorrt_library.installed", lambda name: name == "tensorrt")
    monkeypatch.setattr("lineament.engines.tensorrt_build.build", built)
    cfg = BenchConfig(tmp_path / "tiny.onnx", out=tmp_path, batches=(1, 8, 64))
    made = list(bench_module._by_tensorrt(tmp_path / "tiny.onnx", cfg, 0.0))
    assert [one.name for one in made] == ["tensorrt", "tensorrt, tuned for 64"]
    assert tuned == [(1, 1, 64), (1, 64, 64)] and len({one.path for one in made}) == 2


def test_the_frame_of_the_bench_has_a_face_in_every_crop() -> None:
    from lineament import engines

    with engines.load("student", "onnxruntime") as student:
        bgr, matrices = frame_of_faces(student.card, 10)
        found = student(rgb_crops(bgr, matrices, student.card.input_hw))
    assert bgr.shape == (1080, 1920, 3) and found.confidence.min() > 0.9


def test_one_batch_is_enough_for_a_plot(tmp_path: Path) -> None:
    plot([replace(row, latency={1: row.latency[1]}) for row in ROWS], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_who_cannot_run_is_left_out_and_named_and_the_others_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from lineament import engines

    def absent() -> Landmarker:
        raise LineamentError("there is no such GPU")

    def two(cfg: BenchConfig) -> list[Contender]:
        return [
            Contender("gpu", checkpoint, absent),
            Contender("torch cpu", checkpoint, lambda: engines.load(str(checkpoint), "cpu")),
        ]

    cfg = BenchConfig(checkpoint, out=tmp_path, n=1, batches=(1,))
    monkeypatch.setattr(bench_module, "contenders", two)
    (row,) = bench(cfg)
    assert row.name == "torch cpu" and row.away_px == 0 and row.nme is None
    assert "gpu is left out: there is no such GPU" in caplog.text
    monkeypatch.setattr(bench_module, "contenders", lambda cfg: two(cfg)[:1])
    with pytest.raises(LineamentError, match="nothing here can run"):
        bench(cfg)


def test_no_engine_is_built_for_a_gpu_that_cannot_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lineament.engines.cuda.first_gpu", lambda: Gpu("NVIDIA H100", (9, 0)))
    monkeypatch.setattr("lineament.engines.tensorrt_library.installed", lambda name: name == "tensorrt-rtx")
    monkeypatch.setattr("lineament.engines.tensorrt_build.build", lambda *args, **more: pytest.fail("one was built"))
    cfg = BenchConfig(tmp_path / "tiny.safetensors", out=tmp_path)
    assert list(bench_module._by_tensorrt(tmp_path / "tiny.onnx", cfg, 0.0)) == []
    (record,) = caplog.records
    assert "tensorrt-rtx is left out: it runs on RTX GPUs" in record.message and "NVIDIA H100" in record.message


def test_models_of_other_crops_are_not_compared(told: tuple[str, Path], tmp_path: Path) -> None:
    from tests.tint import tint

    cfg = BenchConfig(told[1] / "tiny.onnx", also=(tint(tmp_path / "tint.onnx"),), out=tmp_path, n=1, batches=(1,))
    with pytest.raises(LineamentError, match=r"tint takes crops of \(12, 16\).*\(64, 64\)"):
        bench(cfg)


def test_an_int8_file_is_not_quantised_again(told: tuple[str, Path], tmp_path: Path) -> None:
    cfg = BenchConfig(told[1] / "tiny-int8.onnx", out=tmp_path)
    assert [one.name for one in contenders(cfg)] == ["onnxruntime", "openvino int8"]


@pytest.mark.parametrize("model", ["no-such.safetensors", "no-such.onnx", "no-such.engine"])
def test_a_model_that_is_not_there_is_one_clear_error(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([model, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "error: " in said and model in said and "Traceback" not in said


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batches": (0,)}, {"batches": ()}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        BenchConfig(Path("a.onnx"), **wrong)  # type: ignore[arg-type]
