"""A fake of TensorRT that builds: same calls, same order and same failures as the real one, without its libraries.

Its plans are those of tests.fake_tensorrt, so that what it builds also runs there. `real` is the name of a class in the
bindings, which has all public names of the fake.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from lineament.engines import cuda, tensorrt_build
from lineament.engines.tensorrt_library import Library
from tests.fake_tensorrt import H200, FakeEngine, FakeLogger, FakeRuntime, FakeTrt, plan

HEAVY = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Gemm": "MATRIX_MULTIPLY",
    "MatMul": "MATRIX_MULTIPLY",
}
DTYPES = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.UINT8: "UINT8"}

Refusal = Callable[["FakeLayer"], str | None]
"""what TensorRT calls the layer in its error, or None if it has a kernel"""


def play_builder(monkeypatch: pytest.MonkeyPatch, trt: FakeBuilderTrt) -> None:
    """Makes the build see an H200 and trt."""
    monkeypatch.setattr(cuda, "first_gpu", lambda: H200)
    monkeypatch.setattr(tensorrt_build, "library", lambda name: Library(name, trt))


class FakeTensor:
    real = "ITensor"

    def __init__(self, name: str, dtype: str) -> None:
        self._name, self._dtype = name, dtype

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> str:
        return self._dtype


class FakeLayer:
    real = "ILayer"

    def __init__(self, node: onnx.NodeProto, inputs: list[FakeTensor]) -> None:
        self._node, self._inputs = node, inputs

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def type(self) -> str:
        return HEAVY.get(self._node.op_type, self._node.op_type.upper())

    def get_input(self, index: int) -> FakeTensor | None:
        return self._inputs[index] if index < len(self._inputs) else None

    def _groups(self) -> int:
        return next((entry.i for entry in self._node.attribute if entry.name == "group"), 1)


class FakeNetwork:
    real = "INetworkDefinition"

    def __init__(self) -> None:
        self._model = onnx.ModelProto()
        self._layers: list[FakeLayer] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> FakeLayer:
        return self._layers[index]


class FakeParser:
    real = "OnnxParser"

    def __init__(self, network: FakeNetwork, logger: FakeLogger) -> None:
        self._network = network

    def parse(self, model: bytes) -> bool:
        parsed = onnx.load_from_string(model)
        graph = onnx.shape_inference.infer_shapes(parsed).graph
        types = {
            port.name: port.type.tensor_type.elem_type for port in [*graph.input, *graph.output, *graph.value_info]
        }
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self._network._model = parsed
        self._network._layers = [
            FakeLayer(node, [FakeTensor(name, DTYPES.get(types.get(name, 0), "INT64")) for name in node.input])
            for node in graph.node
        ]
        return True


class FakeMemory(bytes):
    real = "IHostMemory"


class FakeTimingCache:
    real = "ITimingCache"

    def __init__(self, timings: bytes) -> None:
        self._timings = timings

    def serialize(self) -> FakeMemory:
        return FakeMemory(self._timings)


class FakeProfile:
    real = "IOptimizationProfile"

    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self._shapes[input] = [min, opt, max]


class FakeConfig:
    """Timings that begin with b"torn" cannot be read; those with b"another release" are refused."""

    real = "IBuilderConfig"
    progress_monitor: Any = None
    profiling_verbosity: Any = None

    def __init__(self, logger: FakeLogger) -> None:
        self._logger = logger
        self._profile, self._cache = FakeProfile(), FakeTimingCache(b"")
        self._flags = {"TF32"}

    def clear_flag(self, flag: str) -> None:
        self._flags.discard(flag)

    def set_flag(self, flag: str) -> None:
        self._flags.add(flag)

    def set_preview_feature(self, feature: str, enable: bool) -> None:
        self._flags.add(feature)

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self._profile = profile
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> FakeTimingCache | None:
        return None if serialized_timing_cache.startswith(b"torn") else FakeTimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        if cache._timings.startswith(b"another release"):
            self._logger.log("ERROR", "Error Code 1: Serialization (Serialization assertion magicTagRead failed)")
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> FakeTimingCache:
        return self._cache


class FakeBuilder:
    real = "Builder"

    def __init__(self, logger: FakeLogger, trt: FakeBuilderTrt) -> None:
        self._logger, self._trt = logger, trt

    def create_network(self, flags: int) -> FakeNetwork:
        assert flags == 1 << FakeBuilderTrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return FakeNetwork()

    def create_builder_config(self) -> FakeConfig:
        return FakeConfig(self._logger)

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> FakeMemory | None:
        """Looks for a kernel for each layer in turn, and stops at the first that has none."""
        self._trt.built.append(network._model)
        self._trt.timings_before.append(config._cache._timings)
        self._trt.flags.append(config._flags)
        for layer in network._layers:
            self._logger.log("VERBOSE", f"=============== Computing costs for {layer.name}")
            for severity, message in self._trt.says(layer):
                self._logger.log(severity, message)
            if (called := self._trt.refuses(layer)) is not None:
                self._logger.log(
                    "ERROR",
                    "IBuilder::buildSerializedNetworkToStream: Error Code 10: Internal Error (Could not find any "
                    f"implementation for node {called}. In computeCosts at /_src/optimizer/tactic/optimizer.cpp:4211)",
                )
                return None
            config._cache._timings += f"{layer.name} ".encode()
        return FakeMemory(plan(network._model, config._profile._shapes))


class FakeInspector:
    real = "EngineInspector"

    def __init__(self, said: str | None) -> None:
        self._said = said

    def get_engine_information(self, format: str) -> str | None:
        assert format == "JSON"
        return self._said


class FakeInspectedEngine(FakeEngine):
    def __init__(self, plan: bytes, logger: Any, said: str | None) -> None:
        super().__init__(plan, logger)
        self._said = said

    def create_engine_inspector(self) -> FakeInspector:
        return FakeInspector(self._said)


class FakeInspectedRuntime(FakeRuntime):
    def __init__(self, logger: FakeLogger, trt: FakeBuilderTrt) -> None:
        super().__init__(logger, trt)
        self._builder = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeInspectedEngine | None:
        if self._builder.opens_nothing:
            self._logger.log("ERROR", "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (out of memory)")
            return None
        said = self._builder.inspects(onnx.load_from_string(serialized_engine))
        return FakeInspectedEngine(serialized_engine, self._logger, said)


class FakeBuilderTrt(FakeTrt):
    """The module. Tests replace `refuses`, `says` and `inspects`."""

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED", NONE="NONE")
    PreviewFeature = SimpleNamespace(RUNTIME_ACTIVATION_RESIZE_10_10="RUNTIME_ACTIVATION_RESIZE")
    BuilderFlag = SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
    LayerInformationFormat = SimpleNamespace(JSON="JSON")
    LayerType = SimpleNamespace(**{kind: kind for kind in HEAVY.values()})
    DataType = SimpleNamespace(FLOAT="FLOAT", HALF="HALF")

    def __init__(self) -> None:
        super().__init__()
        self.built: list[onnx.ModelProto] = []
        """the graph of each build, of crops included"""
        self.timings_before: list[bytes] = []
        self.flags: list[set[str]] = []
        self.opens_nothing = False
        self.refuses: Refusal = lambda layer: None
        self.says: Callable[[FakeLayer], list[tuple[str, str]]] = lambda layer: []
        self.inspects: Callable[[onnx.ModelProto], str | None] = inspected

    def Builder(self, logger: FakeLogger) -> FakeBuilder:  # noqa: N802 - TensorRT's names
        return FakeBuilder(logger, self)

    def OnnxParser(self, network: FakeNetwork, logger: FakeLogger) -> FakeParser:  # noqa: N802
        return FakeParser(network, logger)

    def Runtime(self, logger: FakeLogger) -> FakeInspectedRuntime:  # noqa: N802
        return FakeInspectedRuntime(logger, self)


def inspected(model: onnx.ModelProto) -> str:
    """What TensorRT 11 says of an engine of model: as in 11.4, whose metadata are separated by control characters."""
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    layers = []
    for node in model.graph.node:
        if node.op_type in HEAVY and node.input[1] in weights:
            half = weights[node.input[1]] == TensorProto.FLOAT16
            end = {"Name": node.input[0], "Datatype": "Half" if half else "Float", "Format": "Row major (kLINEAR)"}
            layers.append(
                {
                    "Name": node.name,
                    "LayerType": "CaskConvolution",
                    "Inputs": [end],
                    "Outputs": [end],
                    "Metadata": f"\x1e[ONNX Layer: {node.name}]",
                }
            )
    text = json.dumps({"Layers": layers, "I/O Tensors": []})
    return text.replace("\\u001e", "\x1e")
