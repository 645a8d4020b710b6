"""From an ONNX landmark graph to an .engine file, by TensorRT on this machine's GPU or by TensorRT-RTX without any.

    report = build(Path("b5.onnx"), Path("b5.engine"), "tensorrt-rtx", source="runs/b5/best.safetensors")

The two have one API, so there is one code. The graph is rewritten in half precision first (engines.fp16), for the
network is strongly typed: TensorRT takes the types as they are. That it did is checked twice: in the network that it
read, and in the engine that it built: where a GPU lets it be opened, by what its inspector shows, which may not be all;
without one, by the size of its weights.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineament.engines.engine_file import (
    ANY_RTX,
    CROP_PLAN,
    POINTS_PLAN,
    RTX_CAPABILITY,
    LibraryName,
    PlanKey,
    read_header,
    write_engine,
)
from lineament.engines.fp16 import half_precision, precisions_of_layers
from lineament.engines.frame_graph import FRAME, MATRICES, crop_graph
from lineament.engines.model_file import INPUT, read_card
from lineament.engines.tensorrt_library import Library, collecting_logger, complaint, library
from lineament.landmarks.types import LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

BATCHES = (1, 1, 16)
"""fewest, usual and most crops at once: one stream seldom has more than a face, a batch serves several streams"""
_FRAME_HW = ((16, 16), (720, 1280), (4320, 7680))
"""least, usual and largest frame"""
_SLACK = 4 << 20
"""bytes that a plan may be larger than half again its weights"""
_HEAVY = re.compile(r"conv|gemm|matmul|matrix", re.IGNORECASE)
_SINGLE = re.compile(r"FP32|Float\b")
_LOWER = re.compile(r"FP16|Half|BF16|BFloat16|Int8|FP8|INT4|FP4", re.IGNORECASE)
"""of what the inspector says of a type; anything else says nothing, such as 'N/A due to dynamic shapes'"""


@dataclass(frozen=True)
class BuildReport:
    path: Path
    key: PlanKey
    n_bytes: int
    build_s: float
    """0 when the file was there already"""
    n_half: int
    n_single: int
    """layers with weights in either precision"""
    checked: str
    """how the precision was checked, for a person"""


def build(
    onnx_path: Path,
    path: Path,
    name: LibraryName,
    source: str = "",
    batches: tuple[int, int, int] = BATCHES,
    progress: bool = True,
) -> BuildReport:
    """Writes path, unless it holds an engine of the same key. Raises LineamentError, and then writes nothing.

    source: the model as the user named it, for the words of a later refusal. progress: a bar on the terminal.
    """
    import onnx

    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise LineamentError(f"batches are {batches}, expected fewest, usual and most crops at once, such as 1 1 16")
    card = replace(read_card(onnx_path), precision="fp16")
    single = onnx.load(onnx_path)
    if single.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise LineamentError(f"{onnx_path} takes a fixed number of crops, expected any; export it again")
    half = half_precision(single)
    lib = library(name)
    if name == "tensorrt-rtx":
        gpu, capability = ANY_RTX, RTX_CAPABILITY
    else:
        from lineament.engines.cuda import first_gpu

        found = first_gpu()
        gpu, capability = found.name, found.compute_capability
    sha256 = hashlib.sha256(half.SerializeToString(deterministic=True)).hexdigest()
    key = PlanKey(card.weights_sha256, sha256, name, lib.version, gpu, capability, batches, "fp16")
    n_half, n_single = precisions_of_layers(half)
    if _is_built(path, key):
        log.info("%s is up to date", path)
        return BuildReport(path, key, path.stat().st_size, 0.0, n_half, n_single, "checked when it was built")
    began_s = time.perf_counter()
    points_plan, layers = _plan(lib, half, points_profile(card.input_hw, batches), path, progress)
    checked = f"{n_half} of {n_half + n_single} layers in the network"
    if lib.name == "tensorrt":
        checked += f", {_check_engine(layers, n_single)}"
    else:
        _check_size(points_plan, half)
        checked += ", by size in the engine"
    crop_plan, _ = _plan(lib, crop_graph(card.input_hw), crop_profile(batches), path, progress=False)
    build_s = time.perf_counter() - began_s
    card = replace(card, built_with={**card.built_with, name: lib.version})
    write_engine(path, card, key, source, {POINTS_PLAN: points_plan, CROP_PLAN: crop_plan})
    return BuildReport(path, key, path.stat().st_size, build_s, n_half, n_single, checked)


Profile = Mapping[str, Sequence[tuple[int, ...]]]
"""fewest, usual and most of each input"""


def points_profile(input_hw: tuple[int, int], batches: tuple[int, int, int]) -> Profile:
    return {INPUT: [(n, *input_hw, 3) for n in batches]}


def crop_profile(batches: tuple[int, int, int]) -> Profile:
    """As many crops are cut as there are faces, from one on: only the batch that they run in is filled up."""
    return {FRAME: [(*hw, 3) for hw in _FRAME_HW], MATRICES: [(n, 2, 3) for n in (1, *batches[1:])]}


def _is_built(path: Path, key: PlanKey) -> bool:
    if not path.exists():
        return False
    try:
        header = read_header(path)
    except LineamentError as error:
        log.info("building anew: %s", error)
        return False
    return header.key == key


def _plan(
    lib: Library,
    model: onnx.ModelProto,
    profile: Profile,
    path: Path,
    progress: bool,
) -> tuple[bytes, str]:
    """The serialised engine of model, and what the inspector says of its layers (nothing where no GPU can open it).

    path: the engine to be, for the words of errors and the cache.
    """
    trt = lib.module
    logger = collecting_logger(trt)

    def failed(what: str) -> LineamentError:
        return LineamentError(f"{lib.name} {lib.version} cannot {what} for {path}: {complaint(logger.messages)}")

    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as error:  # pybind's word for a null pointer
        logger.messages.append(str(error))
        raise failed("start") from None
    # from 10.12 to 11 the flag says it; later there is no other kind
    strong = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strong is None else 1 << int(strong))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        logger.messages[:0] = [
            f"{error.code().name} at {error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors
        ]
        raise failed("read the graph")
    _check_network(trt, network, model)

    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # what is single is meant to be exact
    config.clear_flag(trt.BuilderFlag.TF32)
    shapes = builder.create_optimization_profile()
    for name, (fewest, usual, most) in profile.items():
        shapes.set_shape(name, fewest, usual, most)
    config.add_optimization_profile(shapes)
    cache_path = path.with_name(f"{path.stem}.timing")
    # TensorRT-RTX times nothing while it builds, and would look for a GPU if it were given a cache
    times = lib.name == "tensorrt"
    if times:
        cached = cache_path.read_bytes() if cache_path.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(cached), ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    bar = _progress_bar(trt, path.name) if progress else None
    if bar is not None:
        config.progress_monitor = bar
    try:
        plan = builder.build_serialized_network(network, config)
    finally:
        if bar is not None:
            bar.close()
    if plan is None:
        raise failed("build an engine")
    layers = ""
    if times:
        cache_path.parent.mkdir(parents=True, exist_ok=True)
        cache_path.write_bytes(memoryview(config.get_timing_cache().serialize()))
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise failed("open the engine it built")
        layers = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return bytes(memoryview(plan)), layers


def _check_network(trt: Any, network: Any, model: onnx.ModelProto) -> None:
    """Raises LineamentError when TensorRT read more layers in single precision than the graph has."""
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    single = [layer.name for layer in layers if layer.type in heavy and layer.get_input(0).dtype == trt.DataType.FLOAT]
    _refuse_single(single, precisions_of_layers(model)[1])


def _check_engine(layers_json: str, n_single: int) -> str:
    """The same of an engine, by what its inspector says; returns what was seen, for a person."""
    single, lower, unknown = layers_by_precision(layers_json)
    _refuse_single(single, n_single)
    seen = f"{len(lower)} of {len(single) + len(lower) + len(unknown)} in the engine"
    return f"{seen}, whose inspector says nothing of {len(unknown)}" if unknown else seen


def layers_by_precision(layers_json: str) -> tuple[list[str], list[str], list[str]]:
    """Names of an engine's convolutions and matrix products: single, lower, and those of which the inspector does not
    say. One that TensorRT has merged into a layer of another kind it does not show at all.

    A layer is single if all that goes in and out is. Where batches may be of any size the inspector does not say that;
    then the type of its weights counts.
    """
    single: list[str] = []
    lower: list[str] = []
    unknown: list[str] = []
    for layer in json.loads(layers_json)["Layers"]:
        if not isinstance(layer, dict):
            raise LineamentError("the engine's inspector names its layers only; build with detailed verbosity")
        if not _HEAVY.search(f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"):
            continue
        ends = [str(end.get("Format/Datatype", "")) for key in ("Inputs", "Outputs") for end in layer.get(key, [])]
        if not ends or not all(_SINGLE.search(end) or _LOWER.search(end) for end in ends):
            weights = layer.get("Weights")
            ends = [str(weights["Type"])] if isinstance(weights, dict) and weights.get("Count") else []
        if any(_LOWER.search(end) for end in ends):
            found = lower
        else:
            found = single if any(_SINGLE.search(end) for end in ends) else unknown
        found.append(str(layer.get("Name")))
    return single, lower, unknown


def _refuse_single(names: Sequence[str], allowed: int) -> None:
    if len(names) > allowed:
        raise LineamentError(
            f"{len(names)} convolutions and matrix products are in single precision, {allowed} were meant to be, "
            f"so the engine would be slow: {', '.join(names[:3])}; try the release of requirements-gpu.txt"
        )


def _check_size(plan: bytes, model: onnx.ModelProto) -> None:
    """A plan of TensorRT-RTX is its weights and little more; in single precision it is twice as large."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if len(plan) > 1.5 * weights + _SLACK:
        raise LineamentError(
            f"the plan has {len(plan) / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights, so they are not in half "
            "precision; try the release of requirements-rtx.txt"
        )


def _progress_bar(trt: Any, name: str) -> Any:
    """TensorRT's phases, nested, as one bar: it grows as new phases turn up."""
    import threading

    from tqdm import tqdm

    class Bar(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._bar = tqdm(desc=name, total=0, unit="step", leave=False)
            # TensorRT calls from threads of its own
            self._turn = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._turn:
                self._bar.total += num_steps
                self._bar.set_postfix_str(phase_name[:40], refresh=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._turn:
                self._bar.update()
            return True

        def phase_finish(self, phase_name: str) -> None: ...

        def close(self) -> None:
            self._bar.close()

    return Bar()
