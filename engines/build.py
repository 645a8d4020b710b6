"""From a trained model to the fastest engine that this machine can run, proven and timed.

    make engine                                     # the models that ship: student, student-fast and b5
    make engine MODEL=runs/train/best.safetensors
    python -m engines.build --model best.safetensors --target tensorrt-rtx

An NVIDIA GPU with `tensorrt` gets an engine for that GPU. Where `tensorrt-rtx` is installed, one for RTX GPUs from the
30 series on is built, without needing any. A machine without a GPU gets the best file for its CPU: f32, bf16 or INT8.
Each is held against PyTorch on real crops, and a table says what came of it.
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
from lineament.engines.engine_file import ANY_RTX, RTX_RUNS_ON, LibraryName, runs_rtx
from lineament.engines.export import export, real_crops, run_onnx, run_torch
from lineament.engines.tensorrt_build import BATCHES, build
from lineament.engines.tensorrt_library import installed
from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line, install, program
from lineament.landmarks.types import F32, U8, Landmarker, LineamentError

log = logging.getLogger(__name__)

Target = Literal["auto", "tensorrt", "tensorrt-rtx", "cpu"]
UNTRAINED = Path("b5-untrained")
MAX_P99_PX = 0.5
"""how far an engine in half precision may put 99 of 100 points from PyTorch's, px of a 256-px crop"""
CALIBRATION = 300
"""faces to find INT8's ranges on"""
_CROPS = 16
"""to prove on: the usual largest batch"""
ROUNDS = 25
"""runs of each engine, in turn, to time it"""


@dataclass(frozen=True)
class BuildConfig:
    """Builds the fastest engine for this machine, checks it against PyTorch and says how fast it is."""

    model: Path | None = None
    """A .safetensors of `make train`, an .onnx with a model card, or one that ships: 'student', 'student-fast', 'b5';
    by default all of these. 'b5-untrained': an EfficientNet-B5 of random weights."""
    out: Path | None = None
    """Folder for the engines; beside the model if not said, out/engines for those that ship."""
    target: Target = "auto"
    """auto takes the best of what is here. tensorrt: this GPU. tensorrt-rtx: RTX 30, 40 and 50. cpu: OpenVINO."""
    batches: tuple[int, int, int] = BATCHES
    """Fewest, usual and most crops at once that a TensorRT engine takes."""
    data: Path | None = None
    """A labelled folder, such as WFLW: its training faces set INT8's ranges, its test faces judge the outcome."""
    label_shift_px: float = 0.0
    """Taken off every label: 0.5 for sets that count from a pixel's corner."""


class Row(NamedTuple):
    """One engine, in the table."""

    path: Path
    by: str
    """what runs it"""
    precision: str
    build_s: float
    """0 for a file that was there"""
    error_px: float
    """largest, of any point from PyTorch's, px of a 256-px crop"""
    note: str = ""
    ms: float | None = None
    """median of one crop; None where it cannot run here"""


@ends_in_a_line
def main(args: Sequence[str] | None = None) -> int:
    import tyro

    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    # not the root: PyTorch's exporter tells of every step
    for name in (__name__, "engines"):
        logging.getLogger(name).setLevel(logging.INFO)
    cfg = tyro.cli(BuildConfig, args=args, prog=program("engine", "engines.build"))
    for model in [cfg.model] if cfg.model else map(Path, engines.CHECKPOINTS):
        rows = run(replace(cfg, model=model))
        print(table(rows))
        print(f"\nfastest here: make stream {_how_to_stream(str(model), rows, cfg.data is not None)}\n")
    return 0


def _how_to_stream(model: str, rows: Sequence[Row], of_faces: bool) -> str:
    """What to say to `make stream`. The b5 that ships is known by its name from now on.

    of_faces: INT8 has its ranges from labelled faces. Those of one portrait cost the b5 0.06 to 0.13 of NME, for a
    tenth of the time.
    """
    here = [row for row in rows if row.ms is not None]
    # the first row is there to compare with
    named = [row for row in here[1:] if of_faces or row.precision != "int8"]
    if model == "b5" and rows[0].path.parent == engines.BUILT and named:
        engines.note_fastest(model, min(named, key=lambda row: row.ms or 0).path)
        return f"MODEL={model}"
    best = min(here, key=lambda row: row.ms or 0)
    return f"MODEL={best.path}" + ' ARGS="--device onnxruntime"' * (best is rows[0])


def run(cfg: BuildConfig) -> list[Row]:
    """What was built; first the graph as ONNX Runtime runs it on the CPU, to compare with. Raises LineamentError."""
    names = targets(cfg.target)
    model, out = _chosen(cfg)
    onnx_path = out / f"{model.stem}.onnx"
    began_s = time.perf_counter()
    reference, card = _exported(model, onnx_path)
    export_s = time.perf_counter() - began_s
    crops = real_crops(card, _CROPS)
    wanted = reference(crops)
    with ExitStack() as stack:
        by_ort = stack.enter_context(_loaded(onnx_path, "onnxruntime"))
        most_px, _ = _error_px(by_ort(crops).points_unit, wanted)
        made: list[tuple[Row, Landmarker | None]] = [
            (Row(onnx_path, "ONNX Runtime", card.precision, export_s, most_px, "to compare with"), by_ort)
        ]
        for name in names:
            if name == "cpu":
                made += _for_cpu(cfg, onnx_path, card, crops, wanted, stack)
            else:
                made.append(_for_gpu(cfg, name, onnx_path, model, crops, wanted, stack))
        calls = [partial(landmarker, crops[:1]) for _, landmarker in made if landmarker]
        times_ms = iter(np.median(in_turns(calls, ROUNDS), axis=1).tolist())
        return [row._replace(ms=next(times_ms)) if landmarker else row for row, landmarker in made]


def targets(target: Target) -> list[LibraryName | Literal["cpu"]]:
    """What is built, the best last. Only auto looks at what is here."""
    if target != "auto":
        return [target]
    try:
        from lineament.engines.cuda import first_gpu

        gpu = first_gpu()
    except LineamentError as error:
        log.info("no engine for a GPU here: %s", str(error).partition(";")[0])
        # an engine for other machines is no reason to leave this one without
        return ["tensorrt-rtx", "cpu"] if installed("tensorrt-rtx") else ["cpu"]
    if installed("tensorrt"):
        return ["tensorrt"]
    if installed("tensorrt-rtx") and runs_rtx(gpu):
        return ["tensorrt-rtx"]
    log.warning("%s is not used, for TensorRT is not installed; run %s", gpu.name, install("gpu"))
    return ["cpu"]


def table(rows: Sequence[Row]) -> str:
    """rows as text, one a line, times beside that of the first; below, what there is to say of each."""
    lines = [("engine", "run by", "precision", "MB", "built in", "max error", "ms a crop", "of ONNX Runtime's")]
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

        # its own arithmetic, by another runtime
        found = run_onnx(half_precision(onnx.load(onnx_path)).SerializeToString(), crops)
        note = f"for {gpus}, none of which is here: its error is that of its graph by ONNX Runtime"
    else:
        landmarker = stack.enter_context(_loaded(path, "auto"))
        found, note = landmarker(crops).points_unit, f"for {gpus}"
    most_px, p99_px = _error_px(found, wanted)
    if not p99_px <= MAX_P99_PX:
        path.unlink()
        raise LineamentError(
            f"{path.name} puts 1 of 100 points {p99_px:.2f} px of a 256-px crop from PyTorch's, allowed are "
            f"{MAX_P99_PX}, so it was not kept; a net whose values leave half precision's range does that: "
            "take `--target cpu`, or train with weight decay"
        )
    by = "TensorRT-RTX" if name == "tensorrt-rtx" else "TensorRT"
    return Row(path, by, "fp16", report.build_s, most_px, f"{note}; in half precision: {report.checked}"), landmarker


def _has_rtx() -> bool:
    """Whether a plan of TensorRT-RTX can run here."""
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
        most_px, _ = _error_px(landmarker(crops).points_unit, wanted)
        made.append((Row(built.path, "OpenVINO", built.precision, built.build_s, most_px, built.note), landmarker))
    return made


def _chosen(cfg: BuildConfig) -> tuple[Path, Path]:
    """The model to build from, and the folder to build in."""
    out, name = cfg.out or engines.BUILT, str(cfg.model or engines.DEFAULT)
    if name in engines.CHECKPOINTS:
        log.info("building %s, a trained model that ships", name)
        return engines.CHECKPOINTS[name], out
    if cfg.model == UNTRAINED:
        model = out / "b5-untrained.safetensors"
        log.warning(
            "building a B5 that has learnt NOTHING, to show size and speed; its points mean nothing. "
            "The trained one is `make engine MODEL=b5`"
        )
        if not os.path.isfile(model):
            _save_untrained(model)
        return model, out
    assert cfg.model is not None, "of no model the default was taken"
    if not os.path.isfile(cfg.model):
        raise LineamentError(f"no model at {cfg.model}; give a .safetensors of `make train` or an .onnx")
    if cfg.model.suffix not in (".safetensors", ".onnx"):
        raise LineamentError(f"{cfg.model} is neither a .safetensors of `make train` nor an .onnx")
    return cfg.model, cfg.out or cfg.model.parent


def _save_untrained(path: Path) -> None:
    """A B5 of seeded random weights, whose points move with the picture, so that there is something to compare."""
    import torch

    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec())
    with torch.no_grad():
        # a fresh one says the middle of the crop whatever it sees
        net.get_parameter("head.linear.weight").mul_(1000)
    save(net, new_card(net, "b5-untrained", 1.3), path)


def _exported(model: Path, onnx_path: Path) -> tuple[Callable[[U8], F32], ModelCard]:
    """model as ONNX at onnx_path, proven; and what any engine of it must say: PyTorch's points, or those of an .onnx
    that came without a checkpoint."""
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


def _error_px(found: F32, wanted: F32) -> tuple[float, float]:
    """The largest and the 99th of 100, px of a 256-px crop."""
    away_px = np.linalg.norm(found - wanted, axis=-1) * 256
    return float(away_px.max()), float(np.percentile(away_px, 99))


if __name__ == "__main__":
    sys.exit(main())
