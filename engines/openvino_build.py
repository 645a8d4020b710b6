"""The files that serve a model on a CPU, from its exported graph: f32, bf16 and INT8. Each is judged before it is kept.

    best = candidates(Path("b5.onnx"), card, calibration_crops(Path("WFLW"), card, 128), Path("build"))[-1]

All are ONNX files with a card, so that engines.load opens them alike. bf16 is the same graph, which OpenVINO computes
with half the bits; INT8 is the graph quantised by NNCF after training, in ONNX's own QuantizeLinear nodes, which
OpenVINO turns into int8 convolutions (ONNX Runtime runs it too, to the same points, but slower than f32).

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

from lineament.engines.timing import in_turns
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import install
from lineament.landmarks.types import F32, F64, U8, Landmarker, LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

MAX_MEAN_PX, MAX_P99_PX = 0.75, 5.0
"""how far from f32 a file may put points, on average and 99 of 100 of them, px of a 256-px crop. On a face one such
pixel is 1.1 % of the inter-ocular distance, and WFLW's labels are four to five of them off"""
MAX_NME_LOSS = 0.1
"""percent of the inter-ocular distance, where labels are at hand"""
CALIBRATION, HELD_BACK = 128, 32
"""crops to quantise with and to compare on, where the caller gives none"""
EXACT = 3
"""layers before the points that INT8 leaves in f32: of a B5 the output layer, the squeeze before it, and the backbone's
last convolution. Quantised too, the latter two cost it 0.1 of NME, and with them in f32 it loses none"""
_OLDEST_OPSET = 13
"""that knows ranges by channel; a foreign graph may be older, and is raised to it"""
ROUNDS = 15
"""runs of each file, in turn, to time it"""


class Built(NamedTuple):
    """A file that engines.load opens."""

    path: Path
    precision: str
    """as its card says: fp32, bf16, int8"""
    note: str
    """how it was made and what it is worth, for a person"""
    build_s: float = 0.0
    """0 for a file that was there"""


@dataclass(frozen=True)
class Judged:
    """A file beside f32, in the same run."""

    built: Built
    ms: float
    """median of one crop"""
    mean_px: float
    p99_px: float
    max_px: float
    """of points from those of f32 on held-back crops, px of a 256-px crop"""
    nme: float | None = None
    """percent, where labels are at hand"""

    def refusal(self, others: Sequence[Judged]) -> str | None:
        """Why it is not kept beside others, which were: too far from f32, or not faster. None if it is."""
        if not (self.mean_px <= MAX_MEAN_PX and self.p99_px <= MAX_P99_PX):
            return (
                f"its points are {self.mean_px:.2f} px from f32 on average and {self.p99_px:.2f} px in 1 of 100, "
                f"allowed are {MAX_MEAN_PX} and {MAX_P99_PX}"
            )
        exact = others[0].nme if others else None
        if self.nme is not None and exact is not None and not self.nme <= exact + MAX_NME_LOSS:
            return f"its NME is {self.nme:.2f}, that of f32 {exact:.2f}, allowed is a loss of {MAX_NME_LOSS}"
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
    """The files worth having on this CPU: f32 first, then only such as are near enough to it and faster than those
    before. So the last is the best. What was measured, and why a file is not among them, is logged.

    calibration: (N, H, W, 3) RGB crops of many faces, the last quarter of which are held back to compare on; None
    takes crops of one public-domain portrait. nme: as engines.labelled.nme_on gives it.
    """
    kept: list[Judged] = []
    crops, _ = _crops(card, calibration)
    for judged in judge(variants(onnx_path, card, calibration, workdir), crops[-_held_back(crops) :], nme):
        reason = judged.refusal(kept)
        log.info("%s%s", judged, f" - not kept: {reason}" if reason else "")
        if reason is None:
            away = f"; points {judged.mean_px:.2f} px from f32 on those held back" if kept else ""
            note = f"{judged.built.note}{away}{judged.score}"
            kept.append(replace(judged, built=judged.built._replace(note=note)))
    return [judged.built for judged in kept]


def variants(onnx_path: Path, card: ModelCard, calibration: U8 | None, workdir: Path) -> list[Built]:
    """Every file that can be made for this CPU, f32 first, whatever it is worth. calibration: as for candidates."""
    import onnx

    found = [Built(onnx_path, "fp32", "the graph as exported")]
    model = onnx.load(onnx_path)
    if has_bf16():
        path, began_s = workdir / f"{onnx_path.stem}-bf16.onnx", time.perf_counter()
        _write(model, replace(card, precision="bf16"), path)
        took_s = time.perf_counter() - began_s
        found.append(Built(path, "bf16", "the same graph, computed by OpenVINO in bf16", took_s))
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
    """Runs all on held_back (N, H, W, 3), one crop at a time, in turns, by the runtime that engines.load takes."""
    from lineament import engines

    landmarkers = [engines.load(str(one.path), "cpu") for one in built]
    try:
        points = [np.concatenate([run(rgb[None]).points_unit for rgb in held_back]) for run in landmarkers]
        times = in_turns([partial(run, held_back[:1]) for run in landmarkers], rounds)
        scores = [nme(run) if nme else None for run in landmarkers]
    finally:
        for run in landmarkers:
            run.close()
    moves_px = _distances_px(points[0], points[0].mean(0))
    if len(held_back) > 1 and moves_px.mean() < 1:
        log.warning(
            "on %d crops f32 itself moves its points by %.2f px only: an untrained net? How near the others are to it "
            "then says nothing of their accuracy",
            len(held_back),
            moves_px.mean(),
        )
    judged = []
    for one, found, ms, score in zip(built, points, times, scores):
        away_px = _distances_px(found, points[0])
        mean_px, p99_px, max_px = float(away_px.mean()), float(np.percentile(away_px, 99)), float(away_px.max())
        judged.append(Judged(one, float(np.median(ms)), mean_px, p99_px, max_px, score))
    return judged


def has_bf16() -> bool:
    """Whether this processor computes in it; others only imitate it, slowly."""
    try:
        import openvino as ov
    except ImportError:
        return False
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def quantise(model: onnx.ModelProto, calibration: U8) -> onnx.ModelProto:
    """model in INT8, its ranges taken from calibration (N, H, W, 3). The last layers stay in f32."""
    nncf = _nncf()
    import onnx

    from lineament.engines.export import restore_weights
    from lineament.engines.model_file import INPUT

    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    restore_weights(whole)
    for number, node in enumerate(whole.graph.node):
        # a foreign graph's may lack the names by which NNCF knows them
        node.name = node.name or f"node_{number}"
    model, exact = whole, last_layers(whole)
    try:
        if max(entry.version for entry in model.opset_import if not entry.domain) < _OLDEST_OPSET:
            model = onnx.version_converter.convert_version(model, _OLDEST_OPSET)
        quantised = nncf.quantize(
            model,
            nncf.Dataset([{INPUT: rgb[None]} for rgb in calibration]),
            subset_size=len(calibration),
            target_device=nncf.TargetDevice.CPU,
            # SiLU's outputs lie to one side of zero
            preset=nncf.QuantizationPreset.MIXED,
            ignored_scope=nncf.IgnoredScope(names=exact),
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
    assert isinstance(quantised, type(model))
    return quantised


def last_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and products that are the last EXACT before the points, and the last before any other
    output: what they say are places, and a fine one is worth more there than the little time."""
    from lineament.engines.model_file import POINTS

    makers = {output: node for node in model.graph.node for output in node.output}
    names: set[str] = set()
    # a tensor, and how many layers to keep exact from it on; by each way to it
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
    """Crops to quantise with and to hold back, and what they are."""
    from lineament.engines.export import real_crops

    if calibration is None:
        return real_crops(card, CALIBRATION + HELD_BACK), "crops of one portrait, for want of a labelled folder"
    if len(calibration) < 4:
        raise LineamentError(f"there are {len(calibration)} crops to calibrate with, wanted at least 4, better 128")
    return calibration, "crops of the given faces"


def _held_back(crops: U8) -> int:
    return max(1, len(crops) // 4)


def _write(model: onnx.ModelProto, card: ModelCard, path: Path) -> None:
    import onnx

    from lineament.engines.export import put_card
    from lineament.train.model import write_atomically

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    put_card(copy, card)
    data = copy.SerializeToString()
    write_atomically(path, lambda temp: temp.write_bytes(data))


def _distances_px(a_NK2: F32, b_NK2: F32) -> F64:
    """(N, K), px of a 256-px crop."""
    return np.asarray(np.linalg.norm(np.asarray(a_NK2 - b_NK2, np.float64), axis=-1) * 256)


def _nncf() -> Any:
    """NNCF, quiet. It reports home unless told that it runs in CI."""
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
