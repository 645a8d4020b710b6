"""Speed and accuracy of one model in every runtime on this machine, measured in one run, in turns.

    make bench-engines MODEL=runs/train/best.safetensors DATA=/path/to/WFLW

A checkpoint is exported and built for every runtime present: PyTorch, ONNX Runtime, OpenVINO in f32, bf16 and INT8, the
last in throughput mode too, and on an NVIDIA GPU TensorRT. The first row is the reference: PyTorch for a checkpoint.
Latency is that of one call, from crops in memory to points in memory, and then from a whole frame to the points of its
faces, crops included; contenders take turns (see engines.timing).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from lineament import engines
from lineament.engines.distance import NEAR_PX, recommended, within_px
from lineament.engines.portrait import frame_of_faces
from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import rgb_crops
from lineament.landmarks.types import FrameLandmarker, Landmarker, Landmarks, LineamentError

log = logging.getLogger("lineament")

PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf", "tensorrt", "tensorrt-rtx", "numpy")


@dataclass(frozen=True)
class BenchConfig:
    """Times a model in every runtime on this machine."""

    model: Annotated[Path, tyro.conf.Positional]
    """best.safetensors of a run, which is built for every runtime; a model that ships: 'student', 'student-fast', 'b5';
    or an .onnx or .engine."""
    also: tuple[Path, ...] = ()
    """More model files to compare, with the same crop size."""
    data: Path | None = None
    """WFLW, or any other folder that training reads: INT8 is calibrated on its training faces, and NME is measured on
    its test faces."""
    label_shift_px: float = 0.0
    """Subtracted from every label: 0.5 for sets whose origin is a pixel's corner."""
    out: Path = Path("out/bench-engines")
    """Folder for bench.json, bench.png and the built files."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Batch sizes: crops per call."""
    n: int = 30
    """Timed calls per contender and batch size."""
    threads: int | None = None
    """CPU threads; by default each runtime's own choice."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches must be at least 1, got {self.batches}")


@dataclass(frozen=True)
class Contender:
    """A model file in a runtime."""

    name: str
    path: Path
    open: Callable[[], Landmarker]
    build_s: float = 0.0
    """0 if nothing had to be built"""


class Latency(NamedTuple):
    """Of n calls at one batch size."""

    p50_ms: float
    p95_ms: float
    crops_per_s: float
    """at the median latency"""


@dataclass(frozen=True)
class Row:
    """Results of one contender."""

    name: str
    file: str
    size_mib: float
    build_s: float
    open_s: float
    """reading, compiling, and the first call"""
    away_px: float
    """distance from the first row's points on real crops within which 95 of 100 are, px of a 256-px crop"""
    nme: float | None
    """percent, on labelled data"""
    latency: dict[int, Latency] = field(default_factory=dict)
    """from crops to points, by batch size"""
    on_frame: dict[int, Latency] = field(default_factory=dict)
    """from a frame to the points in its crops, by number of faces"""
    cut_on_cpu: dict[int, Latency] = field(default_factory=dict)
    """the same with all crops cut on the CPU, for a runtime that may cut them on the GPU"""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # ours only: PyTorch's exporter logs every step
    for name in ("engines", "lineament"):
        logging.getLogger(name).setLevel(logging.INFO)
    cfg = tyro.cli(BenchConfig, args=args, prog="python -m engines.bench", description=BenchConfig.__doc__)
    rows = bench(cfg)
    print("\n".join(table(rows, cfg)))
    cfg.out.mkdir(parents=True, exist_ok=True)
    plot(rows, cfg.out / "bench.png")
    told = {"machine": machine(), "model": str(cfg.model), "n": cfg.n, "rows": [as_json(row) for row in rows]}
    (cfg.out / "bench.json").write_text(json.dumps(told, indent=1) + "\n")
    print(f"\n{cfg.out}: bench.json, bench.png")
    return 0


def bench(cfg: BenchConfig) -> list[Row]:
    """Builds, opens, compares and times every contender. The first is the reference."""
    from lineament.engines.export import real_crops

    cfg = replace(cfg, model=engines.CHECKPOINTS.get(str(cfg.model), cfg.model))
    cfg.out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".crops-", dir=cfg.out)))
        opened: list[tuple[Contender, Landmarker, float]] = []
        for contender in contenders(cfg):
            began_s = time.perf_counter()
            try:
                landmarker = stack.enter_context(contender.open())
                landmarker(np.zeros((1, *landmarker.card.input_hw, 3), np.uint8))
            except LineamentError as error:
                log.warning("%s is left out: %s", contender.name, error)
                continue
            opened.append((contender, landmarker, time.perf_counter() - began_s))
        if not opened:
            raise LineamentError(f"nothing here can run {cfg.model}; see the warnings above")
        card = _one_card([landmarker for _, landmarker, _ in opened], cfg)
        crops = real_crops(card, max(cfg.batches))
        landmarkers = [landmarker for _, landmarker, _ in opened]
        latency = _timed([[partial(one, crops[:n]) for one in landmarkers] for n in cfg.batches], cfg, "crops")
        on_frame, cut_on_cpu = _timed_on_frames(landmarkers, card, cfg)
        points = [landmarker(crops).points_unit for landmarker in landmarkers]
        nme = _nme(card, cache, cfg)
        return [
            Row(
                contender.name,
                contender.path.name,
                contender.path.stat().st_size / 2**20,
                contender.build_s,
                open_s,
                within_px(found, points[0]),
                nme(landmarker) if nme else None,
                latency[i],
                on_frame[i],
                cut_on_cpu.get(i, {}),
            )
            for i, ((contender, landmarker, open_s), found) in enumerate(zip(opened, points))
        ]


def contenders(cfg: BenchConfig) -> Iterator[Contender]:
    """Everything that can run cfg.model here, the reference first. Builds lazily."""
    match cfg.model.suffix.lower():
        case ".safetensors":
            yield from _of_checkpoint(cfg)
        case ".onnx":
            yield from _of_onnx(cfg.model, cfg)
        case _:
            yield _file(cfg.model, cfg)
    for path in cfg.also:
        yield _file(path, cfg)


def machine() -> str:
    """Date, processor, cores, GPU and versions, on two lines."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    told = [f"{date.today()}  {model}, {os.cpu_count()} cores{_gpu()}, Python {platform.python_version()}"]
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return "\n".join([*told, ", ".join(versions)])


def table(rows: Sequence[Row], cfg: BenchConfig) -> list[str]:
    """Lines to print: the machine, a row per contender, then the latencies."""
    first = rows[0]
    width = max(22, *(len(row.name) + len(", cut on CPU") * bool(row.cut_on_cpu) for row in rows))
    lines = [machine(), f"{cfg.model}, {cfg.n} calls per contender and batch size, in turns", ""]
    head = f"{'':{width}} {'MiB':>8} {'build s':>8} {'open s':>7} {'95% px':>8}"
    lines.append(head + (f" {'NME':>6} {'delta':>7}" if first.nme is not None else ""))
    for row in rows:
        cells = f"{row.name:{width}} {row.size_mib:8.1f} {row.build_s:8.1f} {row.open_s:7.2f} {row.away_px:8.3f}"
        if row.nme is not None and first.nme is not None:
            cells += f" {row.nme:6.2f} {row.nme - first.nme:+7.3f}"
        lines.append(cells)
    by_batch = [(row.name, row.latency) for row in rows]
    by_faces = [(row.name, row.on_frame) for row in rows]
    by_faces += [(f"{row.name}, cut on CPU", row.cut_on_cpu) for row in rows if row.cut_on_cpu]
    lines += ["", *_grid("ms per call, p50 / p95", "batch", by_batch, _p50_p95, width, cfg)]
    lines += ["", *_grid("crops/s", "batch", by_batch, lambda latency: f"{latency.crops_per_s:.0f}", width, cfg)]
    lines += ["", "frames of 1080p, crops included"]
    lines += _grid("ms per frame, p50 / p95", "faces", by_faces, _p50_p95, width, cfg)
    batch = min(cfg.batches)
    times_ms = [row.latency[batch].p50_ms for row in rows]
    lines += ["", f"fastest at batch {batch}: {_of_onnxruntime(rows, times_ms, times_ms.index(min(times_ms)))}"]
    i = recommended(times_ms, [row.away_px for row in rows])
    if i is not None:
        lines.append(f"fastest within {NEAR_PX} px of {first.name}: {_of_onnxruntime(rows, times_ms, i)}")
    return lines


def _grid(
    title: str,
    count: str,
    rows: Sequence[tuple[str, dict[int, Latency]]],
    cell: Callable[[Latency], str],
    width: int,
    cfg: BenchConfig,
) -> list[str]:
    """A line for each of rows, under a head that counts cfg.batches."""
    lines = [f"{title:{width}} " + " ".join(f"{f'{count} {n}':>17}" for n in cfg.batches)]
    for name, latency in rows:
        lines.append(f"{name:{width}}" + "".join(f" {cell(latency[n]):>17}" for n in cfg.batches))
    return lines


def _p50_p95(latency: Latency) -> str:
    return f"{latency.p50_ms:.2f} / {latency.p95_ms:.2f}"


def _of_onnxruntime(rows: Sequence[Row], times_ms: Sequence[float], i: int) -> str:
    """The name of a row and, if ONNX Runtime is another, its time relative to it."""
    ratios = [
        f", {times_ms[i] / times_ms[j]:.2f} of ONNX Runtime's time"
        for j, row in enumerate(rows)
        if row.name == "onnxruntime" and j != i
    ]
    return "".join([rows[i].name, *ratios])


def plot(rows: Sequence[Row], path: Path) -> None:
    """Latency and crops/s over batch size, a curve per contender."""
    # imported here, so that the rest works without matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row in rows:
        batches = sorted(row.latency)
        p50 = [row.latency[batch].p50_ms for batch in batches]
        p95 = [row.latency[batch].p95_ms for batch in batches]
        (line,) = left.plot(batches, p50, marker="o", label=row.name)
        left.fill_between(batches, p50, p95, color=line.get_color(), alpha=0.15)
        right.plot(batches, [row.latency[batch].crops_per_s for batch in batches], marker="o", label=row.name)
    left.set(ylabel="ms per call: p50, shaded to p95", yscale="log")
    right.set(ylabel="crops/s at p50")
    for axes in (left, right):
        axes.set(xlabel="crops per call", xscale="log")
        axes.set_xticks(sorted(rows[0].latency), [str(batch) for batch in sorted(rows[0].latency)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    right.legend(fontsize="small")
    figure.suptitle(machine().splitlines()[0], fontsize="small")
    figure.savefig(path, dpi=120)


def as_json(row: Row) -> dict[str, object]:
    told = asdict(row)
    for name in ("latency", "on_frame", "cut_on_cpu"):
        told[name] = {str(n): latency._asdict() for n, latency in getattr(row, name).items()}
    return told


# ---- contenders


def _of_checkpoint(cfg: BenchConfig) -> Iterator[Contender]:
    from lineament.engines.export import export
    from lineament.engines.torch_backend import cuda_is_there
    from lineament.train.model import load

    def by_torch(device: str) -> Contender:
        return Contender(
            f"torch {device}", cfg.model, lambda: engines.load(str(cfg.model), device, threads=cfg.threads)
        )

    yield by_torch("cpu")
    if cuda_is_there():
        yield by_torch("cuda")
    began_s = time.perf_counter()
    net, card = load(cfg.model)
    path = cfg.out / f"{cfg.model.stem}.onnx"
    export(net, card, path)
    yield from _of_onnx(path, cfg, time.perf_counter() - began_s)


def _of_onnx(path: Path, cfg: BenchConfig, build_s: float = 0.0) -> Iterator[Contender]:
    """build_s: time it took to build path."""
    from lineament.engines.labelled import calibration_crops
    from lineament.engines.model_file import read_card
    from lineament.engines.openvino_build import CALIBRATION, HELD_BACK, variants

    def by(name: str, file: Path, device: str, build_s: float) -> Contender:
        return Contender(name, file, lambda: engines.load(str(file), device, threads=cfg.threads), build_s)

    card = read_card(path)
    yield by("onnxruntime", path, "onnxruntime", build_s)
    if _onnxruntime_has("CUDAExecutionProvider"):
        yield by("onnxruntime cuda", path, "cuda", build_s)
    if card.precision in ("bf16", "int8"):
        yield by(f"openvino {card.precision}", path, "openvino", build_s)
        return
    calibration = None
    if cfg.data:
        n = CALIBRATION + HELD_BACK
        calibration = calibration_crops(cfg.data, card, n, cfg.label_shift_px)
    built = variants(path, card, calibration, cfg.out)
    for one in built:
        yield by(f"openvino {one.precision}", one.path, "openvino", build_s + one.build_s)
    # of the last, which is the smallest: several crops in parallel, each on few cores
    name = f"openvino {built[-1].precision}, throughput"
    yield by(name, built[-1].path, "openvino-throughput", build_s + built[-1].build_s)
    yield from _by_tensorrt(path, cfg, build_s)


def _by_tensorrt(path: Path, cfg: BenchConfig, build_s: float) -> Iterator[Contender]:
    from lineament.engines.cuda import first_gpu
    from lineament.engines.engine_file import RTX_RUNS_ON, runs_rtx
    from lineament.engines.tensorrt_build import build
    from lineament.engines.tensorrt_library import installed

    for name in ("tensorrt", "tensorrt-rtx"):
        if not installed(name):
            continue
        most = max(cfg.batches)
        # TensorRT-RTX compiles for each batch size when it runs
        for usual in sorted({1, most} if name == "tensorrt" else {1}):
            engine = cfg.out / f"{path.stem}-{name}-{usual}.engine"
            tuned = name if usual == 1 else f"{name}, tuned for {usual}"
            try:
                gpu = first_gpu()
                if name == "tensorrt-rtx" and not runs_rtx(gpu):
                    raise LineamentError(f"it runs on {RTX_RUNS_ON}, but this machine has {gpu.name}")
                report = build(path, engine, name, str(cfg.model), batches=(1, usual, most))
            except LineamentError as error:
                log.warning("%s is left out: %s", tuned, error)
                break
            yield _file(engine, cfg, tuned, build_s + report.build_s)


def _file(path: Path, cfg: BenchConfig, name: str = "", build_s: float = 0.0) -> Contender:
    return Contender(name or path.name, path, lambda: engines.load(str(path), threads=cfg.threads), build_s)


def _onnxruntime_has(provider: str) -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return provider in onnxruntime.get_available_providers()


def _gpu() -> str:
    from lineament.engines.cuda import first_gpu

    try:
        return f", {first_gpu().name}"
    except LineamentError:
        return ""


# ---- measurements


def _one_card(landmarkers: Sequence[Landmarker], cfg: BenchConfig) -> ModelCard:
    cards = [landmarker.card for landmarker in landmarkers]
    for card in cards[1:]:
        if (card.input_hw, card.schema) != (cards[0].input_hw, cards[0].schema):
            raise LineamentError(
                f"{card.name} takes crops of {card.input_hw} for {card.schema}, expected {cards[0].input_hw} and "
                f"{cards[0].schema} as in {cfg.model}; bench it separately"
            )
    return cards[0]


def _timed(calls: Sequence[Sequence[Callable[[], object]]], cfg: BenchConfig, what: str) -> list[dict[int, Latency]]:
    """calls: for each of cfg.batches, one of each contender. {batch: latency} of each contender."""
    found: list[dict[int, Latency]] = [{} for _ in calls[0]]
    bar = tqdm(total=len(calls) * len(found) * cfg.n, desc=f"timing {what}", leave=False, disable=None)
    for batch, turn in zip(cfg.batches, calls):
        for latency, ms in zip(found, in_turns(turn, cfg.n, bar.update)):
            p50, p95 = np.percentile(ms, (50, 95)).tolist()
            latency[batch] = Latency(p50, p95, batch / p50 * 1e3)
    bar.close()
    return found


def _timed_on_frames(
    landmarkers: Sequence[Landmarker], card: ModelCard, cfg: BenchConfig
) -> tuple[list[dict[int, Latency]], dict[int, dict[int, Latency]]]:
    """From a frame to points, of each contender; and, by index, with crops cut on the CPU by those that choose."""
    bgr, matrices = frame_of_faces(card, max(cfg.batches))

    def on_cpu(landmarker: Landmarker, n: int) -> Landmarks:
        return landmarker(rgb_crops(bgr, matrices[:n], card.input_hw))

    choosing = {i: one.on_frame for i, one in enumerate(landmarkers) if isinstance(one, FrameLandmarker)}
    calls = [
        [
            *(
                partial(choosing[i], bgr, matrices[:n]) if i in choosing else partial(on_cpu, one, n)
                for i, one in enumerate(landmarkers)
            ),
            *(partial(on_cpu, landmarkers[i], n) for i in choosing),
        ]
        for n in cfg.batches
    ]
    found = _timed(calls, cfg, "frames")
    return found[: len(landmarkers)], dict(zip(choosing, found[len(landmarkers) :]))


def _nme(card: ModelCard, cache: Path, cfg: BenchConfig) -> Callable[[Landmarker], float] | None:
    if cfg.data is None:
        return None
    from lineament.engines.labelled import nme_on

    return nme_on(cfg.data, card, cache, cfg.label_shift_px)


if __name__ == "__main__":
    sys.exit(main())
