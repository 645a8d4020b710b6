"""From an ONNX landmark graph to an .engine file, by TensorRT for this machine's GPU or by TensorRT-RTX without one.

    report = build(Path("b5.onnx"), Path("b5.engine"), "tensorrt-rtx", source="runs/b5/best.safetensors")

Both libraries have the same API. The graph is first rewritten in half precision (engines.fp16), because the network is
strongly typed: TensorRT uses the types of the graph. The result is checked twice, in the parsed network and in the
engine: by the engine inspector, which may not show every layer, or, if no GPU can open the engine, by its size.
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

from lineament.engines.driver import install_gpu
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
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

BATCHES = (1, 1, 16)
"""fewest, usual and most crops per call: a stream rarely has more than one face, a batch serves several streams"""
_FRAME_HW = ((16, 16), (720, 1280), (4320, 7680))
"""smallest, usual and largest frame"""
_SLACK = 4 << 20
"""bytes that a plan may have beyond 1.5 times its weights"""
_HEAVY = re.compile(r"conv|gemm|matmul|matrix", re.IGNORECASE)
_SINGLE = re.compile(r"FP32|Float\b")
_LOWER = re.compile(r"FP16|Half|BF16|BFloat16|Int8|FP8|INT4|FP4", re.IGNORECASE)
"""data types as the inspector prints them; it may print neither, such as 'N/A due to dynamic shapes'"""


@dataclass(frozen=True)
class BuildReport:
    path: Path
    key: PlanKey
    n_bytes: int
    build_s: float
    """0 if the file was up to date"""
    n_half: int
    n_single: int
    """layers with weights in either precision"""
    checked: str
    """how the precision was checked, for the user"""


def build(
    onnx_path: Path,
    path: Path,
    name: LibraryName,
    source: str = "",
    batches: tuple[int, int, int] = BATCHES,
    progress: bool = True,
) -> BuildReport:
    """Writes path, unless it is up to date. Raises LineamentError, and then writes nothing.

    source: the model as the user named it, for later error messages. progress: show a bar on the terminal.
    """
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise LineamentError(f"batches are {batches}, expected fewest, usual and most crops per call, such as 1 1 16")
    card = replace(read_card(onnx_path), precision="fp16")
    half = _half_graph(onnx_path)
    lib = library(name)
    key = _key(card, half, lib, batches)
    n_half, n_single = precisions_of_layers(half)
    if _is_built(path, key):
        log.info("%s is up to date", path)
        return BuildReport(path, key, path.stat().st_size, 0.0, n_half, n_single, "checked when it was built")
    began_s = time.perf_counter()
    points_plan, checked = _checked_plan(lib, half, points_profile(card.input_hw, batches), path, progress)
    crop_plan = _PlanBuild(lib, path).plan(crop_graph(card.input_hw), crop_profile(batches), progress=False)
    build_s = time.perf_counter() - began_s
    card = replace(card, built_with={**card.built_with, name: lib.version})
    write_engine(path, card, key, source, {POINTS_PLAN: points_plan, CROP_PLAN: crop_plan})
    return BuildReport(path, key, path.stat().st_size, build_s, n_half, n_single, checked)


Profile = Mapping[str, Sequence[tuple[int, ...]]]
"""smallest, usual and largest shape of each input"""


def points_profile(input_hw: tuple[int, int], batches: tuple[int, int, int]) -> Profile:
    return {INPUT: [(n, *input_hw, 3) for n in batches]}


def crop_profile(batches: tuple[int, int, int]) -> Profile:
    """From one crop on: exactly as many are cut as there are faces; only the batch of the landmark graph is padded."""
    return {FRAME: [(*hw, 3) for hw in _FRAME_HW], MATRICES: [(n, 2, 3) for n in (1, *batches[1:])]}


def _half_graph(onnx_path: Path) -> onnx.ModelProto:
    """The graph of onnx_path in half precision. Raises LineamentError if its batch size is fixed."""
    import onnx

    single = onnx.load(onnx_path)
    if single.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise LineamentError(f"{onnx_path} has a fixed batch size, expected a dynamic one; export it again")
    return half_precision(single)


def _key(card: ModelCard, half: onnx.ModelProto, lib: Library, batches: tuple[int, int, int]) -> PlanKey:
    if lib.name == "tensorrt-rtx":
        gpu, capability = ANY_RTX, RTX_CAPABILITY
    else:
        from lineament.engines.cuda import first_gpu

        found = first_gpu()
        gpu, capability = found.name, found.compute_capability
    sha256 = hashlib.sha256(half.SerializeToString(deterministic=True)).hexdigest()
    return PlanKey(card.weights_sha256, sha256, lib.name, lib.version, gpu, capability, batches, "fp16")


def _is_built(path: Path, key: PlanKey) -> bool:
    if not path.exists():
        return False
    try:
        header = read_header(path)
    except LineamentError as error:
        log.info("rebuilding: %s", error)
        return False
    return header.key == key


def _checked_plan(
    lib: Library, half: onnx.ModelProto, profile: Profile, path: Path, progress: bool
) -> tuple[bytes, str]:
    """The plan of half, and how its precision was checked. Raises LineamentError if it is not in half precision."""
    n_half, n_single = precisions_of_layers(half)
    building = _PlanBuild(lib, path)
    plan = building.plan(half, profile, progress)
    if lib.name == "tensorrt":
        seen = _check_engine(building.layers(plan), n_single)
    else:
        _check_size(plan, half)
        seen = "by size in the engine"
    return plan, f"{n_half} of {n_half + n_single} layers in the network, {seen}"


class _PlanBuild:
    """One build by TensorRT, from a graph to the bytes of a plan.

    path: the engine file, which names the timing cache and appears in errors.
    """

    def __init__(self, lib: Library, path: Path) -> None:
        self._trt, self._name, self._path = lib.module, f"{lib.name} {lib.version}", path
        self._logger = collecting_logger(self._trt)
        # TensorRT-RTX times nothing during a build, and would look for a GPU if it were given a cache
        self._cache_path = path.with_name(f"{path.stem}.timing") if lib.name == "tensorrt" else None
        try:
            self._builder = self._trt.Builder(self._logger)
        except (RuntimeError, TypeError) as error:  # pybind's error for a null pointer
            self._logger.messages.append(str(error))
            raise self._failed("start") from None

    def plan(self, model: onnx.ModelProto, profile: Profile, progress: bool) -> bytes:
        network = self._read(model)
        _check_network(self._trt, network, model)
        config = self._config(profile)
        bar = _progress_bar(self._trt, self._path.name) if progress else None
        if bar is not None:
            config.progress_monitor = bar
        try:
            plan = self._builder.build_serialized_network(network, config)
        finally:
            if bar is not None:
                bar.close()
        if plan is None:
            raise self._failed("build an engine")
        if self._cache_path is not None:
            self._cache_path.parent.mkdir(parents=True, exist_ok=True)
            self._cache_path.write_bytes(memoryview(config.get_timing_cache().serialize()))
        return bytes(memoryview(plan))

    def layers(self, plan: bytes) -> str:
        """JSON of the engine's layers from its inspector. Needs the GPU that the plan was built for."""
        engine = self._trt.Runtime(self._logger).deserialize_cuda_engine(plan)
        if engine is None:
            raise self._failed("open the engine it built")
        information = engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON)
        return str(information)

    def _read(self, model: onnx.ModelProto) -> Any:
        """model as a network of TensorRT."""
        # a flag from 10.12 to 11; later all networks are strongly typed
        strong = getattr(self._trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self._builder.create_network(0 if strong is None else 1 << int(strong))
        # kept, because the network refers to its weights
        self._parser = parser = self._trt.OnnxParser(network, self._logger)
        if not parser.parse(model.SerializeToString()):
            errors = [parser.get_error(i) for i in range(parser.num_errors)]
            self._logger.messages[:0] = [
                f"{error.code().name} at {error.node_operator()} {error.node_name()!r}: {error.desc()}"
                for error in errors
            ]
            raise self._failed("read the graph")
        return network

    def _config(self, profile: Profile) -> Any:
        config = self._builder.create_builder_config()
        config.profiling_verbosity = self._trt.ProfilingVerbosity.DETAILED
        # layers in single precision are meant to be exact
        config.clear_flag(self._trt.BuilderFlag.TF32)
        shapes = self._builder.create_optimization_profile()
        for name, (fewest, usual, most) in profile.items():
            shapes.set_shape(name, fewest, usual, most)
        config.add_optimization_profile(shapes)
        if self._cache_path is not None:
            cached = self._cache_path.read_bytes() if self._cache_path.is_file() else b""
            if not config.set_timing_cache(config.create_timing_cache(cached), ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return config

    def _failed(self, what: str) -> LineamentError:
        return LineamentError(f"{self._name} cannot {what} for {self._path}: {complaint(self._logger.messages)}")


def _check_network(trt: Any, network: Any, model: onnx.ModelProto) -> None:
    """Raises LineamentError if the parsed network has more single-precision layers than the graph."""
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    single = [layer.name for layer in layers if layer.type in heavy and layer.get_input(0).dtype == trt.DataType.FLOAT]
    _refuse_single(single, precisions_of_layers(model)[1])


def _check_engine(layers_json: str, n_single: int) -> str:
    """Same for an engine, by its inspector's output; returns what was checked, for the user."""
    single, lower, unknown = layers_by_precision(layers_json)
    _refuse_single(single, n_single)
    seen = f"{len(lower)} of {len(single) + len(lower) + len(unknown)} in the engine"
    return f"{seen}, whose inspector shows no type for {len(unknown)}" if unknown else seen


def layers_by_precision(layers_json: str) -> tuple[list[str], list[str], list[str]]:
    """Names of an engine's convolutions and matrix products in single precision, in a lower one, and in one that the
    inspector does not show. Layers that TensorRT has fused into one of another kind are not listed at all.

    A layer is single if all its inputs and outputs are. With dynamic batch sizes the inspector shows no types of
    tensors; then the type of its weights counts.
    """
    single: list[str] = []
    lower: list[str] = []
    unknown: list[str] = []
    for layer in json.loads(layers_json)["Layers"]:
        if not isinstance(layer, dict):
            raise LineamentError("the engine inspector shows only layer names; build with detailed profiling verbosity")
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
            f"{len(names)} convolutions and matrix products are in single precision, expected {allowed}, "
            f"so the engine would be slow: {', '.join(names[:3])}; try the pinned release ({install_gpu()})"
        )


def _check_size(plan: bytes, model: onnx.ModelProto) -> None:
    """A TensorRT-RTX plan is little more than its weights, and twice as large in single precision."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if len(plan) > 1.5 * weights + _SLACK:
        raise LineamentError(
            f"the plan has {len(plan) / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights, so they are not in half "
            "precision; try the release in requirements-rtx.txt"
        )


def _progress_bar(trt: Any, name: str) -> Any:
    """TensorRT's nested phases as one bar, whose total grows with each new phase."""
    import threading

    from tqdm import tqdm

    class Bar(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._bar = tqdm(desc=name, total=0, unit="step", leave=False)
            # TensorRT calls from its own threads
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._bar.total += num_steps
                self._bar.set_postfix_str(phase_name[:40], refresh=False)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                self._bar.update()
            return True

        def phase_finish(self, phase_name: str) -> None: ...

        def close(self) -> None:
            self._bar.close()

    return Bar()
