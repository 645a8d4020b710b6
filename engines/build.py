"""Builds the fastest engine of a trained model for this machine, checks and times it.

    make engine                                     # the models that ship: student, student-fast and b5
    make engine MODEL=runs/train/best.safetensors
    python -m engines.build --model best.safetensors --target tensorrt-rtx

An NVIDIA GPU with `tensorrt` gets an engine for that GPU. `tensorrt-rtx`, if installed, builds one for RTX GPUs from
the 30 series on, without needing one. A machine without a GPU gets the best file for its CPU: f32, bf16 or INT8. Each
is compared with PyTorch on real crops, and a table shows the results. Unless another target is named, a GPU without an
engine is a failure: the last line says why, and the exit code is 1.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np

from lineament import engines
from lineament.engines import driver
from lineament.engines.distance import NEAR_PX, NOISE, recommended, within_px
from lineament.engines.engine_file import ANY_RTX, RTX_RUNS_ON, LibraryName, leave_out_cutter, runs_rtx
from lineament.engines.export import export, real_crops, run_onnx, run_torch
from lineament.engines.portrait import frame_of_faces
from lineament.engines.tensorrt_build import BATCHES, build, check_batches
from lineament.engines.tensorrt_library import installed, library
from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line, install, program
from lineament.landmarks.geometry import rgb_crops
from lineament.landmarks.types import F32, U8, FrameLandmarker, Landmarker, LineamentError

log = logging.getLogger(__name__)

Target = Literal["auto", "tensorrt", "tensorrt-rtx", "cpu"]
UNTRAINED = Path("b5-untrained")
MAX_P99_PX = 0.5
"""largest 99th percentile of the distance of a half-precision engine's points from PyTorch's, px of a 256-px crop"""
CALIBRATION = 300
"""faces to calibrate INT8 on"""
_CROPS = 16
"""crops to compare on: the default largest batch"""
ROUNDS = 25
"""timed runs of each engine, taken in turns"""


@dataclass(frozen=True)
class BuildConfig:
    """Builds the fastest engine for this machine, compares it with PyTorch and times it."""

    model: Path | None = None
    """A .safetensors from `make train`, an .onnx with a model card, or a model that ships: 'student', 'student-fast',
    'b5'; by default all of those. 'b5-untrained': an EfficientNet-B5 with random weights."""
    out: Path | None = None
    """Folder for the engines; by default that of the model, or out/engines for models that ship."""
    target: Target = "auto"
    """auto: the best available. tensorrt: for this GPU. tensorrt-rtx: for RTX 30, 40 and 50. cpu: OpenVINO."""
    batches: tuple[int, int, int] = BATCHES
    """Fewest, usual and most crops per call of a TensorRT engine."""
    data: Path | None = None
    """A labelled folder, such as WFLW: INT8 is calibrated on its training faces, NME measured on its test faces."""
    label_shift_px: float = 0.0
    """Subtracted from every label: 0.5 for sets whose origin is a pixel's corner."""


class Row(NamedTuple):
    """An engine in the table."""

    path: Path
    by: str
    """the runtime"""
    precision: str
    build_s: float
    """0 for a file that existed"""
    error_px: float
    """distance from PyTorch's points within which 95 of 100 are, px of a 256-px crop"""
    note: str = ""
    ms: float | None = None
    """median for one crop; None if it cannot run here"""


class Targets(NamedTuple):
    """What to build on this machine, and for which GPU."""

    names: list[LibraryName | Literal["cpu"]]
    """the best last"""
    gpu: str = ""
    """the name of the GPU here; empty if there is none, or if the target is not auto"""
    obstacle: str = ""
    """why no engine is built for a GPU; empty if one is"""


@ends_in_a_line
def main(args: Sequence[str] | None = None) -> int:
    import tyro

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # not the root logger: PyTorch's exporter logs every step
    for name in (__name__, "lineament.engines"):
        logging.getLogger(name).setLevel(logging.INFO)
    cfg = tyro.cli(BuildConfig, args=args, prog=program("engine", "engines.build"))
    wanted = targets(cfg.target)
    if wanted.obstacle:
        log.info("no engine for a GPU: %s", wanted.obstacle if wanted.gpu else wanted.obstacle.partition(";")[0])
    kept: list[str] = []
    failed: dict[str, str] = {}
    models = [cfg.model] if cfg.model else list(map(Path, engines.CHECKPOINTS))
    for model in models:
        try:
            rows = run(replace(cfg, model=model))
        except LineamentError as error:
            if len(models) == 1:
                raise
            log.error("%s: %s", model, error)
            failed[str(model)] = str(error)
            continue
        print(table(rows))
        print("\n".join(["", *advice(str(model), rows, cfg.data is not None), ""]), flush=True)
        kept += [str(row.path) for row in rows if row.ms is not None]
    if wanted.gpu and wanted.obstacle:
        files = ", ".join(dict.fromkeys(kept)) or "nothing"
        raise LineamentError(f"no engine was built for {wanted.gpu}: {wanted.obstacle}. Kept for the CPU: {files}")
    if failed:
        reasons = set(failed.values())
        why = f": {reasons.pop()}" if len(reasons) == 1 else ", for the reasons above"
        raise LineamentError(f"{', '.join(failed)} could not be built{why}")
    return 0


def advice(model: str, rows: Sequence[Row], calibrated: bool) -> list[str]:
    """Lines that say which engine to stream, and why not a faster one. Also makes the name b5 load that engine.

    calibrated: INT8 was calibrated on labelled faces. Calibrated on one portrait it is not recommended: it costs the b5
    0.06 to 0.13 of NME, for a tenth of the time, and its error on that portrait does not show it.
    """
    here = [row for row in rows if row.ms is not None]
    ships = model == "b5" and rows[0].path.parent == engines.BUILT and len(here) > 1
    if ships:  # the first is only there for comparison: a name does not say by which runtime
        here = here[1:]
    trusted = [row for row in here if calibrated or row.precision != "int8"]
    i = recommended([row.ms or 0 for row in trusted], [row.error_px for row in trusted])
    best = rows[0] if i is None else trusted[i]
    how = f"MODEL={best.path}" + ' ARGS="--device onnxruntime"' * (best is rows[0])
    if ships:
        engines.note_fastest(model, best.path)
        how = f"MODEL={model}"
    says = f"no engine is within {NEAR_PX} px of PyTorch, so in f32" if i is None else "fastest here"
    faster = [row for row in here if (row.ms or 0) * (1 + NOISE) < (best.ms or 0)]
    return [f"{says}: make stream {how}", *map(_why_not, faster)]


def _why_not(row: Row) -> str:
    """Why a faster engine is not recommended."""
    if row.error_px <= NEAR_PX:
        return f"{row.path.name} is faster, but calibrated on one portrait; add DATA=/path/to/WFLW"
    return f"{row.path.name} is faster, but puts 1 of 20 points {row.error_px:.2f} px or more from PyTorch's"


def run(cfg: BuildConfig) -> list[Row]:
    """A row for each engine; the first is ONNX Runtime on the CPU, for comparison. Raises LineamentError."""
    names = targets(cfg.target).names
    _check_ready(names, cfg.batches)
    model, out = _chosen(cfg)
    onnx_path = out / f"{model.stem}.onnx"
    began_s = time.perf_counter()
    reference, card = _exported(model, onnx_path)
    export_s = time.perf_counter() - began_s
    crops = real_crops(card, _CROPS)
    wanted = reference(crops)
    with ExitStack() as stack:
        by_ort = stack.enter_context(_loaded(onnx_path, "onnxruntime"))
        error_px = within_px(by_ort(crops).points_unit, wanted)
        made: list[tuple[Row, Landmarker | None]] = [
            (Row(onnx_path, "ONNX Runtime", card.precision, export_s, error_px, "for comparison"), by_ort)
        ]
        for name in names:
            if name == "cpu":
                made += _for_cpu(cfg, onnx_path, card, crops, wanted, stack)
            else:
                try:
                    made.append(_for_gpu(cfg, name, onnx_path, model, crops, wanted, stack))
                except LineamentError as error:
                    raise LineamentError(f"{error}. Kept for the CPU: {onnx_path}") from error
        calls = [partial(landmarker, crops[:1]) for _, landmarker in made if landmarker]
        times_ms = iter(np.median(in_turns(calls, ROUNDS), axis=1).tolist())
        return [row._replace(ms=next(times_ms)) if landmarker else row for row, landmarker in made]


def _check_ready(names: Sequence[LibraryName | Literal["cpu"]], batches: tuple[int, int, int]) -> None:
    """Raises LineamentError for what would otherwise fail after the export, which takes minutes."""
    from lineament.engines.cuda import first_gpu

    check_batches(batches)
    if "tensorrt" in names:
        first_gpu()
    for name in names:
        if name != "cpu":
            library(name)


def targets(target: Target) -> Targets:
    """What to build here. Only auto depends on this machine."""
    from lineament.engines.cuda import first_gpu

    if target != "auto":
        return Targets([target])
    try:
        gpu = first_gpu()
    except LineamentError as error:
        here = driver.installed() or driver.Driver()
        name = (", ".join(here.gpus) or "the NVIDIA GPU here") if here.shows_gpu else ""
        # the RTX engine is for other machines; this one needs a file, too
        others: list[LibraryName] = (
            ["tensorrt-rtx"] if installed("tensorrt-rtx") and not _broken("tensorrt-rtx") else []
        )
        obstacle = here.obstacle if here.shows_gpu or here.failure else ""
        if here.gpus and driver.hidden():
            obstacle = f"CUDA_VISIBLE_DEVICES hides {', '.join(here.gpus)}"
        return Targets([*others, "cpu"], name, obstacle or str(error))
    if gpu.compute_capability < driver.OLDEST_CAPABILITY:
        return Targets(["cpu"], gpu.name, driver.unsupported(gpu.name, gpu.compute_capability))
    obstacle = f"TensorRT is not installed; run {driver.install_gpu()} and `make engine` again"
    libraries: tuple[LibraryName, ...] = ("tensorrt", "tensorrt-rtx") if runs_rtx(gpu) else ("tensorrt",)
    for library_name in filter(installed, libraries):
        if not (broken := _broken(library_name)):
            return Targets([library_name], gpu.name)
        obstacle = broken
    return Targets(["cpu"], gpu.name, obstacle)


def _broken(name: LibraryName) -> str:
    """Why a library that is installed cannot be used; empty if it can."""
    try:
        library(name)
    except LineamentError as error:
        return str(error)
    return ""


def table(rows: Sequence[Row]) -> str:
    """rows as text, one per line, times relative to the first; below, the notes."""
    lines = [("engine", "run by", "precision", "MB", "built in", "95 % within", "ms/crop", "of ONNX Runtime's")]
    for row in rows:
        lines.append(
            (
                row.path.name,
                row.by,
                row.precision,
                f"{row.path.stat().st_size / 1e6:.1f}",
                f"{row.build_s:.1f} s" if row.build_s else "-",
                f"{row.error_px:.3f} px",
                "-" if row.ms is None else f"{row.ms:.2f}",
                "-" if row.ms is None or rows[0].ms is None else f"{row.ms / rows[0].ms:.2f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    told = [
        "  ".join(cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        for line in lines
    ]
    notes = [f"{row.path.name} by {row.by}: {row.note}" for row in rows if row.note]
    return "\n".join([*told, "", *notes])


def _for_gpu(
    cfg: BuildConfig, name: LibraryName, onnx_path: Path, model: Path, crops: U8, wanted: F32, stack: ExitStack
) -> tuple[Row, Landmarker | None]:
    path = onnx_path.with_name(f"{onnx_path.stem}-rtx.engine" if name == "tensorrt-rtx" else f"{onnx_path.stem}.engine")
    report = build(onnx_path, path, name, str(model), cfg.batches, progress=sys.stderr.isatty())
    landmarker, gpus = None, RTX_RUNS_ON if report.key.gpu == ANY_RTX else report.key.gpu
    if report.key.gpu == ANY_RTX and not _has_rtx():
        import onnx

        from lineament.engines.fp16 import half_precision

        # the same arithmetic in another runtime
        found = run_onnx(half_precision(onnx.load(onnx_path), report.in_single).SerializeToString(), crops)
        note = f"for {gpus}, none of which is here: its error is that of its graph in ONNX Runtime"
    else:
        landmarker = stack.enter_context(_loaded(path, "auto"))
        found, note = landmarker(crops).points_unit, f"for {gpus}"
        if off_px := _cut_off_px(landmarker):
            landmarker.close()
            leave_out_cutter(path)
            landmarker = stack.enter_context(_loaded(path, "auto"))
            note += f"; crops are cut on the CPU, because the GPU's put 1 of 100 points {off_px:.2f} px away"
    worst_px = within_px(found, wanted, 99)
    if not worst_px <= MAX_P99_PX:
        path.unlink()
        raise LineamentError(
            f"{path.name} puts 1 of 100 points {worst_px:.2f} px of a 256-px crop from PyTorch's, at most {MAX_P99_PX} "
            "is allowed, so it was deleted; the net's values probably exceed the range of half precision: "
            "use `--target cpu`, or train with weight decay"
        )
    by = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
    note += f"; in half precision: {report.checked}"
    return Row(path, by, "fp16", report.build_s, within_px(found, wanted), note), landmarker


def _cut_off_px(landmarker: Landmarker) -> float | None:
    """How far crops that the landmarker cuts itself put 1 of 100 points from where those cut on the CPU do, px of a
    256-px crop; None if within MAX_P99_PX. A runtime may build a graph and compute another (engines.frame_graph)."""
    if not isinstance(landmarker, FrameLandmarker):
        return None
    bgr, matrices = frame_of_faces(landmarker.card, 1)
    wanted = landmarker(rgb_crops(bgr, matrices, landmarker.card.input_hw)).points_unit
    off_px = within_px(landmarker.on_frame(bgr, matrices).points_unit, wanted, 99)
    return None if off_px <= MAX_P99_PX else off_px


def _has_rtx() -> bool:
    """Whether a TensorRT-RTX plan can run here."""
    from lineament.engines.cuda import first_gpu

    try:
        return runs_rtx(first_gpu())
    except LineamentError:
        return False


def _for_cpu(
    cfg: BuildConfig, onnx_path: Path, card: ModelCard, crops: U8, wanted: F32, stack: ExitStack
) -> list[tuple[Row, Landmarker | None]]:
    from lineament.engines.labelled import calibration_crops, nme_on
    from lineament.engines.openvino_build import candidates

    calibration = nme = None
    if cfg.data is not None:
        calibration = calibration_crops(cfg.data, card, CALIBRATION, cfg.label_shift_px)
        nme = nme_on(cfg.data, card, Path(stack.enter_context(TemporaryDirectory(prefix="crops-"))), cfg.label_shift_px)
    made: list[tuple[Row, Landmarker | None]] = []
    for built in candidates(onnx_path, card, calibration, onnx_path.parent, nme):
        landmarker = stack.enter_context(_loaded(built.path, "cpu"))
        error_px = within_px(landmarker(crops).points_unit, wanted)
        made.append((Row(built.path, "OpenVINO", built.precision, built.build_s, error_px, built.note), landmarker))
    return made


def _chosen(cfg: BuildConfig) -> tuple[Path, Path]:
    """The model to build and the folder for its engines."""
    out, name = cfg.out or engines.BUILT, str(cfg.model or engines.DEFAULT)
    if name in engines.CHECKPOINTS:
        log.info("building %s, a trained model that ships", name)
        return engines.CHECKPOINTS[name], out
    if cfg.model == UNTRAINED:
        model = out / "b5-untrained.safetensors"
        log.warning(
            "building an UNTRAINED B5, to show size and speed; its points mean nothing. "
            "Build the trained one with `make engine MODEL=b5`"
        )
        if not os.path.isfile(model):
            _save_untrained(model)
        return model, out
    assert cfg.model is not None, "without a model the default is built"
    if not os.path.isfile(cfg.model):
        names = ", ".join(engines.CHECKPOINTS)
        raise LineamentError(f"no model at {cfg.model}; give {names}, a .safetensors from `make train` or an .onnx")
    if cfg.model.suffix not in (".safetensors", ".onnx"):
        raise LineamentError(f"{cfg.model} is neither a .safetensors from `make train` nor an .onnx")
    return cfg.model, cfg.out or cfg.model.parent


def _save_untrained(path: Path) -> None:
    """A B5 with seeded random weights, whose points depend on the image, so that they can be compared."""
    import torch

    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec())
    with torch.no_grad():
        # a freshly initialised head returns the middle of the crop for any image
        net.get_parameter("head.linear.weight").mul_(1000)
    save(net, new_card(net, "b5-untrained", 1.3), path)


def _exported(model: Path, onnx_path: Path) -> tuple[Callable[[U8], F32], ModelCard]:
    """Writes model as ONNX to onnx_path, checked. Returns its reference, which maps crops to points: PyTorch, or ONNX
    Runtime for an .onnx without a checkpoint."""
    from lineament.engines.model_file import read_card

    if model.suffix == ".onnx":
        card, data = read_card(model), model.read_bytes()
        if model.resolve() != onnx_path.resolve():
            onnx_path.parent.mkdir(parents=True, exist_ok=True)
            onnx_path.write_bytes(data)
        return partial(run_onnx, data), card
    try:
        from lineament.train.model import load
    except ImportError as error:
        raise LineamentError(f"building from a checkpoint needs {error.name}; run {install('train')}") from None
    net, card = load(model)
    card = replace(card, precision="fp32")
    log.info("exporting %s to %s", model.name, onnx_path)
    export(net, card, onnx_path)
    return partial(run_torch, net), card


def _loaded(path: Path, device: str) -> Landmarker:
    return engines.load(str(path), device)


if __name__ == "__main__":
    sys.exit(main())
