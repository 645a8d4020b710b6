"""From a trained model to the fastest engine that this machine can run, proven and timed.

    make engine MODEL=runs/train/best.safetensors
    python -m engines.build --model best.safetensors --target tensorrt-rtx

An NVIDIA GPU with `tensorrt` gets an engine for that GPU. Where `tensorrt-rtx` is installed, one for every RTX GPU is
built, without needing any. A machine without a GPU gets the best file for its CPU: f32, bf16 or INT8. Each is held
against PyTorch on real crops, and a table says what came of it.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from engines.export import export, real_crops, run_onnx, run_torch
from engines.plan_file import ANY_RTX, LibraryName
from engines.tensorrt_build import BATCHES, build
from engines.tensorrt_library import installed
from landmarks.card import ModelCard
from landmarks.types import F32, U8, Landmarker, LineamentError

log = logging.getLogger(__name__)

Target = Literal["auto", "tensorrt", "tensorrt-rtx", "cpu"]
SHIPPED = Path(__file__).resolve().parent / "weights"
UNPLACED = Path("out/engines")
"""where engines of models go that have no folder of their own"""
MAX_P99_PX = 0.5
"""how far an engine in half precision may put 99 of 100 points from PyTorch's, px of a 256-px crop"""
CALIBRATION = 300
"""faces to find INT8's ranges on"""
_CROPS = 17
"""to prove on; one more than the usual largest batch"""
_ROUNDS = 25


@dataclass(frozen=True)
class BuildConfig:
    """Builds the fastest engine for this machine, checks it against PyTorch and says how fast it is."""

    model: Path | None = None
    """A .safetensors of `make train`, or an .onnx with a model card. Without it, the trained model that ships, or
    where none does, a B5 that has learnt nothing, to see what the machine can do."""
    out: Path | None = None
    """Folder for the engines; beside the model if not said."""
    target: Target = "auto"
    """auto takes the best of what is here. tensorrt: this GPU. tensorrt-rtx: any RTX GPU. cpu: OpenVINO."""
    batches: tuple[int, int, int] = BATCHES
    """Fewest, usual and most crops at once that a TensorRT engine takes."""
    data: Path | None = None
    """A labelled folder, such as WFLW: its training faces set INT8's ranges, its test faces judge the outcome."""


class Row(NamedTuple):
    """One engine, in the table."""

    path: Path
    precision: str
    build_s: float
    error_px: float
    """largest, of any point from PyTorch's, px of a 256-px crop"""
    ms: float | None
    """median of one crop; None where it cannot run here"""
    note: str = ""


def main(args: Sequence[str] | None = None) -> int:
    import tyro

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # not the root: PyTorch's exporter tells of every step
    for name in (__name__, "engines"):
        logging.getLogger(name).setLevel(logging.INFO)
    cfg = tyro.cli(BuildConfig, args=args, prog="python -m engines.build")
    try:
        rows, ort_ms = run(cfg)
    except LineamentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows, ort_ms))
    here = [row for row in rows if row.ms is not None]
    if here:
        best = min(here, key=lambda row: row.ms or 0)
        print(f"\nfastest here: make stream MODEL={best.path}")
    return 0


def run(cfg: BuildConfig) -> tuple[list[Row], float]:
    """What was built, and the median ms of ONNX Runtime on the CPU to compare with. Raises LineamentError."""
    names = targets(cfg.target)
    model, out = _chosen(cfg)
    onnx_path = out / f"{model.stem}.onnx"
    began_s = time.perf_counter()
    reference, card = _exported(model, onnx_path)
    export_s = time.perf_counter() - began_s
    # the last is black, on which INT8, whose ranges come from faces, owes nothing
    crops = real_crops(card, _CROPS)[:-1]
    wanted = reference(crops)
    with _loaded(onnx_path, "onnxruntime") as landmarker:
        ort_px, ort_ms = _error_px(landmarker(crops).points_unit, wanted), median_ms(landmarker, crops)
    rows = [Row(onnx_path, "fp32", export_s, ort_px[0], ort_ms, "by ONNX Runtime, to compare with")]
    for name in names:
        if name == "cpu":
            rows += _for_cpu(cfg, onnx_path, card, crops, wanted)
        else:
            rows.append(_for_gpu(cfg, name, onnx_path, model, crops, wanted))
    return rows, ort_ms


def targets(target: Target) -> list[LibraryName | Literal["cpu"]]:
    """What is built, the best last. Only auto looks at what is here."""
    if target != "auto":
        return [target]
    try:
        from engines.cuda import first_gpu

        gpu = first_gpu().name
    except LineamentError as error:
        log.info("no engine for this machine's GPU: %s", error)
        # an engine for other machines is no reason to leave this one without
        return ["tensorrt-rtx", "cpu"] if installed("tensorrt-rtx") else ["cpu"]
    for name in ("tensorrt", "tensorrt-rtx"):
        if installed(name):
            return [name]
    log.warning("%s is not used, for TensorRT is not installed; run `pip install -r requirements-gpu.txt`", gpu)
    return ["cpu"]


def table(rows: Sequence[Row], ort_ms: float) -> str:
    """rows as text, one a line, times beside that of ONNX Runtime."""
    lines = [("engine", "precision", "MB", "built in", "max error", "ms", "x ONNX Runtime", "")]
    for row in rows:
        lines.append(
            (
                str(row.path),
                row.precision,
                f"{row.path.stat().st_size / 1e6:.1f}",
                f"{row.build_s:.1f} s" if row.build_s else "before",
                f"{row.error_px:.3f} px",
                "-" if row.ms is None else f"{row.ms:.2f}",
                "-" if row.ms is None else f"{row.ms / ort_ms:.2f}",
                row.note,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = (0, 1, 7)
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def median_ms(landmarker: Landmarker, crops_NHWC: U8) -> float:
    """Of one crop at a time, after some that do not count."""
    times = []
    for i in range(_ROUNDS + 5):
        crop = crops_NHWC[i % len(crops_NHWC)][None]
        began_s = time.perf_counter()
        landmarker(crop)
        times.append((time.perf_counter() - began_s) * 1e3)
    return statistics.median(times[5:])


def _for_gpu(cfg: BuildConfig, name: LibraryName, onnx_path: Path, model: Path, crops: U8, wanted: F32) -> Row:
    path = onnx_path.with_name(f"{onnx_path.stem}-rtx.engine" if name == "tensorrt-rtx" else f"{onnx_path.stem}.engine")
    report = build(onnx_path, path, name, str(model), cfg.batches, progress=sys.stderr.isatty())
    try:
        from engines.cuda import first_gpu

        first_gpu()
    except LineamentError:
        if report.key.gpu != ANY_RTX:
            raise
        import onnx

        from engines.fp16 import half_precision

        # its own arithmetic, by another runtime
        found, ms = run_onnx(half_precision(onnx.load(onnx_path)).SerializeToString(), crops), None
        note = f"for {report.key.gpu}; error of its graph, as no GPU is here; half: {report.checked}"
    else:
        with _loaded(path, "auto") as landmarker:
            found, ms = landmarker(crops).points_unit, median_ms(landmarker, crops)
        note = f"on {report.key.gpu}; half: {report.checked}"
    most_px, p99_px = _error_px(found, wanted)
    if not p99_px <= MAX_P99_PX:
        path.unlink()
        raise LineamentError(
            f"{path.name} puts 1 of 100 points {p99_px:.2f} px of a 256-px crop from PyTorch's, allowed are "
            f"{MAX_P99_PX}, so it was not kept; a net whose values leave half precision's range does that: "
            "take `--target cpu`, or train with weight decay"
        )
    return Row(path, "fp16", report.build_s, most_px, ms, note)


def _for_cpu(cfg: BuildConfig, onnx_path: Path, card: ModelCard, crops: U8, wanted: F32) -> list[Row]:
    from engines.labelled import calibration_crops, nme_on
    from engines.openvino_build import candidates

    calibration = nme = None
    if cfg.data is not None:
        calibration = calibration_crops(cfg.data, card, CALIBRATION)
        nme = nme_on(cfg.data, card, onnx_path.parent / "crops")
    began_s = time.perf_counter()
    found = candidates(onnx_path, card, calibration, onnx_path.parent, nme)
    build_s = time.perf_counter() - began_s
    rows = []
    for built in found:
        with _loaded(built.path, "cpu") as landmarker:
            most_px, _ = _error_px(landmarker(crops).points_unit, wanted)
            ms = median_ms(landmarker, crops)
        rows.append(Row(built.path, built.precision, build_s if built is found[-1] else 0.0, most_px, ms, built.note))
    return rows


def _chosen(cfg: BuildConfig) -> tuple[Path, Path]:
    """The model to build from, and the folder to build in."""
    if cfg.model is not None:
        if not cfg.model.is_file():
            raise LineamentError(f"no model at {cfg.model}; give a .safetensors of `make train` or an .onnx")
        if cfg.model.suffix not in (".safetensors", ".onnx"):
            raise LineamentError(f"{cfg.model} is neither a .safetensors of `make train` nor an .onnx")
        model = cfg.model
    elif shipped := sorted(SHIPPED.glob("*.safetensors")):
        model = shipped[0]
        log.info("building %s, the trained model that ships; MODEL=... builds another", model.name)
    else:
        model = (cfg.out or UNPLACED) / "b5-untrained.safetensors"
        log.warning(
            "no model was given and none ships: building a B5 that has learnt NOTHING, to show size and speed; its "
            "points mean nothing. Train one with `make train`, then `make engine MODEL=runs/.../best.safetensors`"
        )
        if not model.is_file():
            _save_untrained(model)
    placed = cfg.model is not None
    return model, cfg.out or (model.parent if placed else UNPLACED)


def _save_untrained(path: Path) -> None:
    """A B5 of seeded random weights, whose points move with the picture, so that there is something to compare."""
    import torch

    from train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec())
    with torch.no_grad():
        # a fresh one says the middle of the crop whatever it sees
        net.get_parameter("head.linear.weight").mul_(1000)
    save(net, new_card(net, "b5-untrained", 1.3), path)


def _exported(model: Path, onnx_path: Path) -> tuple[Callable[[U8], F32], ModelCard]:
    """model as ONNX at onnx_path, proven; and what any engine of it must say: PyTorch's points, or those of an .onnx
    that came without a checkpoint."""
    from engines.engine_file import read_card

    if model.suffix == ".onnx":
        card, data = read_card(model), model.read_bytes()
        if model.resolve() != onnx_path.resolve():
            onnx_path.parent.mkdir(parents=True, exist_ok=True)
            onnx_path.write_bytes(data)
        return partial(run_onnx, data), card
    try:
        from train.model import load
    except ImportError as error:
        raise LineamentError(
            f"building from a checkpoint needs {error.name}; run `pip install -r requirements-train.txt`"
        ) from None
    net, card = load(model)
    card = replace(card, precision="fp32")
    log.info("exporting %s to %s", model.name, onnx_path)
    export(net, card, onnx_path)
    return partial(run_torch, net), card


def _loaded(path: Path, device: str) -> Landmarker:
    import engines

    return engines.load(str(path), device)


def _error_px(found: F32, wanted: F32) -> tuple[float, float]:
    """The largest and the 99th of 100, px of a 256-px crop."""
    away_px = np.linalg.norm(found - wanted, axis=-1) * 256
    return float(away_px.max()), float(np.percentile(away_px, 99))


if __name__ == "__main__":
    sys.exit(main())
