"""Builds the files that serve a model on a CPU from its exported graph: f32, bf16 and INT8, if they pass a check.

    built = candidates(Path("b5.onnx"), card, calibration_crops(Path("WFLW"), card, 128), Path("build"))

All are ONNX files with a card, which engines.load opens. bf16 is the same graph, run by OpenVINO in bf16. INT8 is the
graph after post-training quantisation by NNCF, with ONNX's QuantizeLinear nodes, which OpenVINO runs as int8
convolutions (ONNX Runtime gives the same points, but slower than in f32).

Suffix: N crops.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lineament.engines.distance import distances_px
from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import install
from lineament.landmarks.files import replaced
from lineament.landmarks.types import U8, Landmarker, LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

MAX_MEAN_PX, MAX_P99_PX = 0.75, 5.0
"""largest distance of points from f32's, mean and 99th percentile, px of a 256-px crop. One such pixel is 1.1 % of a
face's inter-ocular distance, and WFLW's labels are off by four to five"""
MAX_NME_LOSS = 0.1
"""percent of the inter-ocular distance; checked on labelled data only"""
CALIBRATION, HELD_BACK = 128, 32
"""crops to calibrate on and to compare on, if the caller passes none"""
EXACT = 3
"""last layers before the points that INT8 leaves in f32: in a B5 the output layer, the squeeze before it, and the
backbone's last convolution. Quantising the latter two costs 0.1 of NME; in f32 nothing is lost"""
_OLDEST_OPSET = 13
"""the first with per-channel ranges; older graphs are converted to it"""
ROUNDS = 15
"""timed runs of each file, taken in turns"""


class Built(NamedTuple):
    """A file that engines.load opens."""

    path: Path
    precision: str
    """that of its card: fp32, bf16, int8"""
    note: str
    """how it was made and how it compares, for the user"""
    build_s: float = 0.0
    """0 for a file that existed"""


@dataclass(frozen=True)
class Judged:
    """Measurements of a file, in the same run as f32."""

    built: Built
    ms: float
    """median of one crop"""
    mean_px: float
    p99_px: float
    max_px: float
    """distance of points from f32's on held-back crops, px of a 256-px crop"""
    nme: float | None = None
    """percent, on labelled data"""

    def refusal(self, others: Sequence[Judged]) -> str | None:
        """Why it is dropped: too far from f32, or not faster than others, those kept so far. None if it is kept."""
        if not (self.mean_px <= MAX_MEAN_PX and self.p99_px <= MAX_P99_PX):
            return (
                f"its points are {self.mean_px:.2f} px from f32 on average and {self.p99_px:.2f} px in 1 of 100, "
                f"at most {MAX_MEAN_PX} and {MAX_P99_PX} are allowed"
            )
        exact = others[0].nme if others else None
        if self.nme is not None and exact is not None and not self.nme <= exact + MAX_NME_LOSS:
            return f"its NME is {self.nme:.2f}, that of f32 {exact:.2f}; a loss of {MAX_NME_LOSS} is allowed"
        if others and self.ms >= (fastest := min(others, key=lambda other: other.ms)).ms:
            return f"it takes {self.ms:.1f} ms, {fastest.built.precision} {fastest.ms:.1f} ms"
        return None

    def __str__(self) -> str:
        return (
            f"{self.built.precision}: {self.ms:.1f} ms, from f32 {self.mean_px:.3f} px on average, "
            f"{self.p99_px:.2f} in 1 of 100, {self.max_px:.2f} at most{self.score}; {self.built.note}"
        )

    @property
    def score(self) -> str:
        return "" if self.nme is None else f", NME {self.nme:.2f}"


def candidates(
    onnx_path: Path,
    card: ModelCard,
    calibration: U8 | None,
    workdir: Path,
    nme: Callable[[Landmarker], float] | None = None,
) -> list[Built]:
    """The files worth keeping on this CPU: f32, then each that is close enough to it and faster than those before it,
    so the last is the fastest. Logs the measurements of every file and why it was dropped.

    calibration: (N, H, W, 3) RGB crops of many faces, of which the last quarter is held back to compare on; by default
    crops of one public-domain portrait. nme: from engines.labelled.nme_on.
    """
    kept: list[Judged] = []
    crops, _ = _crops(card, calibration)
    for judged in judge(variants(onnx_path, card, calibration, workdir), crops[-_held_back(crops) :], nme):
        reason = judged.refusal(kept)
        log.info("%s%s", judged, f" - dropped: {reason}" if reason else "")
        if reason is None:
            away = f"; points {judged.mean_px:.2f} px from f32 on held-back crops" if kept else ""
            note = f"{judged.built.note}{away}{judged.score}"
            kept.append(replace(judged, built=judged.built._replace(note=note)))
    return [judged.built for judged in kept]


def variants(onnx_path: Path, card: ModelCard, calibration: U8 | None, workdir: Path) -> list[Built]:
    """Every file that can be built for this CPU, f32 first, without a check. calibration: as for candidates."""
    import onnx

    found = [Built(onnx_path, "fp32", "the graph as exported")]
    model = onnx.load(onnx_path)
    if has_bf16():
        path, began_s = workdir / f"{onnx_path.stem}-bf16.onnx", time.perf_counter()
        _write(model, replace(card, precision="bf16"), path)
        took_s = time.perf_counter() - began_s
        found.append(Built(path, "bf16", "the same graph, run by OpenVINO in bf16", took_s))
    crops, of = _crops(card, calibration)
    crops = crops[: -_held_back(crops)]
    path, began_s = workdir / f"{onnx_path.stem}-int8.onnx", time.perf_counter()
    try:
        quantised = quantise(model, crops)
    except LineamentError as error:
        log.warning("no INT8: %s", error)
    else:
        built_with = {**card.built_with, "nncf": version("nncf")}
        _write(quantised, replace(card, precision="int8", built_with=built_with), path)
        took_s = time.perf_counter() - began_s
        found.append(Built(path, "int8", f"quantised by NNCF on {len(crops)} {of}", took_s))
    return found


def judge(
    built: Sequence[Built], held_back: U8, nme: Callable[[Landmarker], float] | None = None, rounds: int = ROUNDS
) -> list[Judged]:
    """Measures all on held_back (N, H, W, 3), one crop at a time, in turns, in the default runtime."""
    from lineament import engines

    landmarkers = [engines.load(str(one.path), "cpu") for one in built]
    try:
        points = [np.concatenate([run(rgb[None]).points_unit for rgb in held_back]) for run in landmarkers]
        times = in_turns([partial(run, held_back[:1]) for run in landmarkers], rounds)
        scores = [nme(run) if nme else None for run in landmarkers]
    finally:
        for run in landmarkers:
            run.close()
    moves_px = distances_px(points[0], points[0].mean(0))
    if len(held_back) > 1 and moves_px.mean() < 1:
        log.warning(
            "on %d crops the points of f32 move by only %.2f px: an untrained net? Then the distance of the others "
            "from f32 says nothing about their accuracy",
            len(held_back),
            moves_px.mean(),
        )
    judged = []
    for one, found, ms, score in zip(built, points, times, scores):
        away_px = distances_px(found, points[0])
        mean_px, p99_px, max_px = float(away_px.mean()), float(np.percentile(away_px, 99)), float(away_px.max())
        judged.append(Judged(one, float(np.median(ms)), mean_px, p99_px, max_px, score))
    return judged


def has_bf16() -> bool:
    """Whether this processor has bf16 instructions; others emulate it slowly."""
    try:
        import openvino as ov
    except ImportError:
        return False
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def quantise(model: onnx.ModelProto, calibration: U8) -> onnx.ModelProto:
    """model in INT8, with the ranges of calibration (N, H, W, 3). The last layers stay in f32."""
    nncf = _nncf()
    import onnx

    from lineament.engines.model_file import INPUT

    named = _named(model)
    try:
        quantised = nncf.quantize(
            _raised_opset(named),
            nncf.Dataset([{INPUT: rgb[None]} for rgb in calibration]),
            subset_size=len(calibration),
            target_device=nncf.TargetDevice.CPU,
            # SiLU's outputs are mostly positive
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=last_layers(named)),
        )
    except (
        onnx.version_converter.ConvertError,
        nncf.ValidationError,
        nncf.InternalError,
        nncf.UnsupportedModelError,
        RuntimeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise LineamentError(f"NNCF {version('nncf')} cannot quantise the graph: {reason}; serve it in f32") from error
    assert isinstance(quantised, onnx.ModelProto)
    return quantised


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with single-precision weights and with a name for every node, by which NNCF refers to them."""
    import onnx

    from lineament.engines.export import restore_weights

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    restore_weights(copy)
    for number, node in enumerate(copy.graph.node):
        node.name = node.name or f"node_{number}"
    return copy


def _raised_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx

    if max(entry.version for entry in model.opset_import if not entry.domain) >= _OLDEST_OPSET:
        return model
    return onnx.version_converter.convert_version(model, _OLDEST_OPSET)


def last_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the last EXACT convolutions and matrix products before the points, and of the last before any other
    output. Precision matters most there, and they take little time."""
    from lineament.engines.model_file import POINTS

    makers = {output: node for node in model.graph.node for output in node.output}
    names: set[str] = set()
    # (tensor, how many more layers above it to keep exact), for each path
    waiting = [(output.name, EXACT if output.name == POINTS else 1) for output in model.graph.output]
    seen: set[tuple[str, int]] = set()
    while waiting:
        tensor, left = waiting.pop()
        node = makers.get(tensor)
        if node is None or not left or (tensor, left) in seen:
            continue
        seen.add((tensor, left))
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            names.add(node.name)
            left -= 1
        waiting += [(name, left) for name in node.input]
    return sorted(names)


def _crops(card: ModelCard, calibration: U8 | None) -> tuple[U8, str]:
    """Crops to calibrate on and to hold back, and a description of them."""
    from lineament.engines.export import real_crops

    if calibration is None:
        return real_crops(card, CALIBRATION + HELD_BACK), "crops of one portrait, as no labelled folder was given"
    if len(calibration) < 4:
        raise LineamentError(f"got {len(calibration)} crops to calibrate with, expected at least 4, better 128")
    return calibration, "crops of the given faces"


def _held_back(crops: U8) -> int:
    return max(1, len(crops) // 4)


def _write(model: onnx.ModelProto, card: ModelCard, path: Path) -> None:
    import onnx

    from lineament.engines.export import put_card

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    put_card(copy, card)
    data = copy.SerializeToString()
    with replaced(path) as part:
        part.write_bytes(data)


def _nncf() -> Any:
    """NNCF without its log and its telemetry, which it sends unless it runs in CI."""
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf
        import nncf.onnx.quantization.quantizer_parameters
    except ImportError as error:
        raise LineamentError(
            f"INT8 needs the package nncf, which cannot be imported ({error}); run {install('train')}"
        ) from error
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return nncf
