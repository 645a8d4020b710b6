"""From an ONNX landmark graph to an .engine file, by TensorRT for this machine's GPU or by TensorRT-RTX without one.

    report = build(Path("b5.onnx"), Path("b5.engine"), "tensorrt-rtx", source="runs/b5/best.safetensors")

Both libraries have the same API. The graph is first rewritten in half precision (engines.fp16), because the network is
strongly typed: TensorRT uses the types of the graph. If it has no half-precision kernel for a node, that node goes to
single precision and the build is repeated (engines.missing_kernel).

The precision is checked in the parsed network and, if no GPU can open the engine, by the engine's size. What the engine
inspector shows (engines.engine_inspector) is only reported.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineament.engines.driver import install_gpu
from lineament.engines.engine_file import (
    ANY_RTX,
    CROP_PLAN,
    MOST_CROPS,
    POINTS_PLAN,
    RTX_CAPABILITY,
    LibraryName,
    PlanHeader,
    PlanKey,
    read_header,
    write_engine,
)
from lineament.engines.engine_inspector import layers_by_precision
from lineament.engines.fp16 import half_precision, precisions_of_layers
from lineament.engines.frame_graph import FRAME, MATRICES, crop_graph
from lineament.engines.missing_kernel import refused_nodes
from lineament.engines.model_file import INPUT, read_card
from lineament.engines.tensorrt_library import Library, collecting_logger, complaint, lacks_kernel, library
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

BATCHES = (1, 1, 16)
"""fewest, usual and most crops per call: a stream rarely has more than one face, a batch serves several streams"""
_FRAME_HW = ((16, 16), (448, 448), (4320, 7680))
"""smallest, usual and largest part of a frame to cut crops from"""
_RECIPE = 2
"""raised when _PlanBuild._config changes, so that engines of before are built again"""
_SLACK = 4 << 20
"""bytes that a plan may have beyond 1.5 times its weights"""
_MOST_BUILDS = 10
"""of one graph, each with more nodes in single precision: two for each kind of grouped convolution of the B5"""


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
    in_single: tuple[str, ...]
    """nodes in single precision for lack of a half-precision kernel, as in the file's header"""
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
    check_batches(batches)
    card = replace(read_card(onnx_path), precision="fp16")
    single = _dynamic_graph(onnx_path)
    lib = library(name)
    key = _key(card, half_precision(single), lib, batches)
    if header := _up_to_date(path, key):
        log.info("%s is up to date", path)
        n_half, n_single = precisions_of_layers(half_precision(single, header.in_single))
        checked = f"checked when it was built{_moved(header.in_single)}"
        return BuildReport(path, key, path.stat().st_size, 0.0, n_half, n_single, header.in_single, checked)
    began_s = time.perf_counter()
    building = _PlanBuild(lib, path)
    plan, half, in_single = _points_plan(building, single, points_profile(card.input_hw, batches), progress)
    n_half, n_single = precisions_of_layers(half)
    if lib.name == "tensorrt":
        seen = _seen_in_engine(building, plan, n_single)
    else:
        _check_size(plan, half)
        seen = "by size in the engine"
    plans = {POINTS_PLAN: plan, **_crop_plan(building, path, card.input_hw, batches)}
    build_s = time.perf_counter() - began_s
    card = replace(card, built_with={**card.built_with, name: lib.version})
    write_engine(path, card, key, source, plans, in_single)
    checked = f"{n_half} of {n_half + n_single} layers in the network, {seen}{_moved(in_single)}"
    return BuildReport(path, key, path.stat().st_size, build_s, n_half, n_single, in_single, checked)


def check_batches(batches: tuple[int, int, int]) -> None:
    """Raises LineamentError unless they ascend from 1 or more to at most MOST_CROPS."""
    if not 1 <= batches[0] <= batches[1] <= batches[2] <= MOST_CROPS:
        raise LineamentError(
            f"batches are {batches}, expected fewest, usual and most crops per call, such as 1 1 16, "
            f"at most {MOST_CROPS}"
        )


Profile = Mapping[str, Sequence[tuple[int, ...]]]
"""smallest, usual and largest shape of each input"""


def points_profile(input_hw: tuple[int, int], batches: tuple[int, int, int]) -> Profile:
    return {INPUT: [(n, *input_hw, 3) for n in batches]}


def crop_profile(batches: tuple[int, int, int]) -> Profile:
    """From one crop on: exactly as many are cut as there are faces; only the batch of the landmark graph is padded."""
    return {FRAME: [(*hw, 3) for hw in _FRAME_HW], MATRICES: [(n, 2, 3) for n in (1, *batches[1:])]}


def _dynamic_graph(onnx_path: Path) -> onnx.ModelProto:
    """The graph of onnx_path. Raises LineamentError if its batch size is fixed."""
    import onnx

    single = onnx.load(onnx_path)
    if single.graph.input[0].type.tensor_type.shape.dim[0].dim_value:
        raise LineamentError(f"{onnx_path} has a fixed batch size, expected a dynamic one; export it again")
    return single


def _key(card: ModelCard, half: onnx.ModelProto, lib: Library, batches: tuple[int, int, int]) -> PlanKey:
    if lib.name == "tensorrt-rtx":
        gpu, capability = ANY_RTX, RTX_CAPABILITY
    else:
        from lineament.engines.cuda import first_gpu

        found = first_gpu()
        gpu, capability = found.name, found.compute_capability
    graphs = [graph.SerializeToString(deterministic=True) for graph in (half, crop_graph(card.input_hw))]
    sha256 = hashlib.sha256(b"".join([*graphs, repr((_RECIPE, crop_profile(batches))).encode()])).hexdigest()
    return PlanKey(card.weights_sha256, sha256, lib.name, lib.version, gpu, capability, batches, "fp16")


def _up_to_date(path: Path, key: PlanKey) -> PlanHeader | None:
    """The header of path, if it was built with that key."""
    if not path.exists():
        return None
    try:
        header = read_header(path)
    except LineamentError as error:
        log.info("rebuilding: %s", error)
        return None
    return header if header.key == key else None


def _points_plan(
    building: _PlanBuild, single: onnx.ModelProto, profile: Profile, progress: bool
) -> tuple[bytes, onnx.ModelProto, tuple[str, ...]]:
    """The plan of single in half precision, the graph it was built from, and the nodes that TensorRT refused in half.

    Raises LineamentError if those would be most of the layers.
    """
    in_single: list[str] = []
    builds = 0
    while True:
        half = half_precision(single, in_single)
        builds += 1
        try:
            return building.plan(half, profile, progress), half, tuple(in_single)
        except _NoKernelError as error:
            refused = refused_nodes(half, error.messages, in_single)
            n_half, n_single = precisions_of_layers(half_precision(single, [*in_single, *refused]))
            if not refused or n_half < n_single or builds == _MOST_BUILDS:
                tried = f", even with {_listed(in_single)} in single precision" if in_single else ""
                raise LineamentError(f"{error}{tried}") from None
            log.warning(
                "no half-precision kernel for %s: building again with %s in single precision",
                _listed(refused),
                "it" if len(refused) == 1 else "them",
            )
            in_single += refused


def _moved(in_single: Sequence[str]) -> str:
    """For the user, after how the precision was checked."""
    return f"; {_listed(in_single)} in single precision, for lack of a half-precision kernel" if in_single else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} node{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more})"


def _crop_plan(
    building: _PlanBuild, path: Path, hw: tuple[int, int], batches: tuple[int, int, int]
) -> dict[str, bytes]:
    """The plan that cuts crops, by its name; none if it cannot be built: crops are then cut on the CPU."""
    try:
        return {CROP_PLAN: building.plan(crop_graph(hw), crop_profile(batches), progress=False)}
    except LineamentError as error:
        log.warning("%s will cut its crops on the CPU; delete it and build again to retry: %s", path.name, error)
        return {}


class _NoKernelError(LineamentError):
    """There is no kernel for a layer in the precision of the graph."""

    def __init__(self, line: str, messages: Sequence[str]) -> None:
        super().__init__(line)
        self.messages = tuple(messages)


class _PlanBuild:
    """Builds the plans of one engine file, from a graph to the bytes of a plan.

    path: the engine file, which names the timing cache and appears in errors.
    """

    def __init__(self, lib: Library, path: Path) -> None:
        self._trt, self._name, self._path = lib.module, f"{lib.name} {lib.version}", path
        self._logger = collecting_logger(self._trt)
        # TensorRT-RTX times nothing during a build, and would look for a GPU if it were given a cache
        self._is_rtx = lib.name == "tensorrt-rtx"
        self._cache_path = None if self._is_rtx else path.with_name(f"{path.stem}.timing")
        self._timings = self._cache_path.read_bytes() if self._cache_path and self._cache_path.is_file() else b""
        try:
            self._builder = self._trt.Builder(self._logger)
        except (RuntimeError, TypeError) as error:  # pybind's error for a null pointer
            self._logger.messages.append(str(error))
            raise self._failed("start") from None

    def plan(self, model: onnx.ModelProto, profile: Profile, progress: bool) -> bytes:
        """Starts from the timings of the calls before.

        Raises _NoKernelError if a layer has no kernel, or another LineamentError.
        """
        self._logger.messages.clear()
        network = self._read(model)
        _check_network(self._trt, network, model)
        config = self._config(profile)
        # complaints about the timing cache are not why a build fails
        self._logger.messages.clear()
        bar = _progress_bar(self._trt, self._path.name) if progress else None
        if bar is not None:
            config.progress_monitor = bar
        try:
            plan = self._builder.build_serialized_network(network, config)
        finally:
            if bar is not None:
                bar.close()
        if plan is None:
            failed = self._failed("build an engine")
            if not lacks_kernel(self._logger.messages):
                raise failed
            self._keep_timings(config)
            raise _NoKernelError(str(failed), self._logger.messages)
        self._keep_timings(config)
        if self._cache_path is not None:
            try:
                self._cache_path.parent.mkdir(parents=True, exist_ok=True)
                self._cache_path.write_bytes(self._timings)
            except OSError as error:
                log.warning("cannot keep timings for the next build in %s: %s", self._cache_path, error.strerror)
        return bytes(memoryview(plan))

    def layers(self, plan: bytes) -> str | None:
        """JSON of the engine's layers from its inspector, which may return None. Needs the GPU of the plan.

        Raises LineamentError if the engine does not open.
        """
        self._logger.messages.clear()
        try:
            engine = self._trt.Runtime(self._logger).deserialize_cuda_engine(plan)
            if engine is None:
                raise self._failed("open the engine it built")
            inspector = engine.create_engine_inspector()
            if inspector is None:
                raise self._failed("inspect the engine it built")
            said: str | None = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        except (RuntimeError, TypeError, UnicodeDecodeError) as error:  # pybind's, also for a null pointer
            self._logger.messages.append(str(error))
            raise self._failed("inspect the engine it built") from None
        return said

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
        if self._is_rtx:
            # memory that the engine allocates itself cannot be captured in a CUDA graph
            config.set_flag(self._trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        if FRAME in profile:
            # the default of TensorRT-RTX; without it TensorRT may ask for the memory of the largest frame at any size
            config.set_preview_feature(self._trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
        shapes = self._builder.create_optimization_profile()
        for name, (fewest, usual, most) in profile.items():
            shapes.set_shape(name, fewest, usual, most)
        config.add_optimization_profile(shapes)
        if self._cache_path is not None:
            kept = config.create_timing_cache(self._timings)
            if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        return config

    def _keep_timings(self, config: Any) -> None:
        if self._cache_path is not None and (timings := config.get_timing_cache().serialize()) is not None:
            self._timings = bytes(memoryview(timings))

    def _failed(self, what: str) -> LineamentError:
        return LineamentError(f"{self._name} cannot {what} for {self._path}: {complaint(self._logger.messages)}")


def _check_network(trt: Any, network: Any, model: onnx.ModelProto) -> None:
    """Raises LineamentError if the parsed network has more single-precision layers than the graph."""
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    single = [layer.name for layer in layers if layer.type in heavy and layer.get_input(0).dtype == trt.DataType.FLOAT]
    allowed = precisions_of_layers(model)[1]
    if len(single) > allowed:
        raise LineamentError(
            f"{len(single)} convolutions and matrix products are in single precision, expected {allowed}, "
            f"so the engine would be slow: {', '.join(single[:3])}; try the pinned release ({install_gpu()})"
        )


def _seen_in_engine(building: _PlanBuild, plan: bytes, n_single: int) -> str:
    """The engine's precision as its inspector shows it, for the user. This only warns: the network has been checked,
    the points will be, and a silent or wrong inspector is no reason to lose a build that took minutes."""
    try:
        single, lower, unknown = layers_by_precision(building.layers(plan))
    except LineamentError as error:
        log.warning("cannot inspect the engine, which is kept: %s", error)
        return "the engine could not be inspected"
    if len(single) > n_single:
        log.warning(
            "the inspector shows %d convolutions and matrix products in single precision, expected %d, so the engine "
            "may be slow: %s; compare its time with that of another release",
            len(single),
            n_single,
            ", ".join(single[:3]),
        )
    seen = f"{len(lower)} of {len(single) + len(lower) + len(unknown)} in the engine"
    return f"{seen}, whose inspector shows no type for {len(unknown)}" if unknown else seen


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
