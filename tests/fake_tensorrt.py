"""Fakes of TensorRT and CUDA that run the graph with ONNX Runtime on numpy memory: same calls, same order, same
failures.

`real` is the class of TensorRT that a fake stands for, empty for the module; tests.test_tensorrt_api compares them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest

from lineament.engines import tensorrt_backend
from lineament.engines.engine_file import ANY_RTX, CROP_PLAN, POINTS_PLAN, Gpu, PlanKey, write_engine
from lineament.engines.frame_graph import crop_graph
from lineament.engines.tensorrt_build import Profile, crop_profile, points_profile
from lineament.engines.tensorrt_library import Library
from lineament.landmarks.types import U8, LineamentError
from tests.tint import CARD as TINT
from tests.tint import tint

CARD = replace(TINT, precision="fp16")
H200 = Gpu("NVIDIA H200", (9, 0))
KEY = PlanKey("a" * 64, "b" * 64, "tensorrt", "11.4.0", H200.name, H200.compute_capability, (1, 1, 6), "fp16")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0))
RTX_KEY = replace(KEY, library="tensorrt-rtx", gpu=ANY_RTX, compute_capability=(8, 0))


def play_tensorrt(monkeypatch: pytest.MonkeyPatch, gpu: Gpu = H200) -> FakeTrt:
    """Makes the backend see that GPU, and TensorRT or TensorRT-RTX 11.4.0."""
    fake = FakeTrt()
    monkeypatch.setattr(tensorrt_backend, "Cuda", FakeCuda)
    monkeypatch.setattr(tensorrt_backend, "first_gpu", lambda: gpu)
    monkeypatch.setattr(tensorrt_backend, "library", lambda name: Library(name, fake))
    return fake


def engine_file(path: Path, key: PlanKey = KEY, judges: bool = False, hw: tuple[int, int] = (12, 16)) -> Path:
    graph = onnx.load(tint(path.with_suffix(".onnx"), judges=judges, hw=hw))
    plans = {
        POINTS_PLAN: plan(graph, points_profile(hw, key.batches)),
        CROP_PLAN: plan(crop_graph(hw), crop_profile(key.batches)),
    }
    write_engine(path, replace(CARD, input_hw=hw), key, "runs/b5/best.safetensors", plans)
    return path


def plan(graph: onnx.ModelProto, profile: Profile) -> bytes:
    """A plan of the fake TensorRT: the graph and the shapes it was built for."""
    onnx.helper.set_model_props(graph, {"profile": json.dumps(profile)})
    return graph.SerializeToString()


class FakeCuda:
    """engines.cuda.Cuda on numpy memory."""

    made: ClassVar[list[FakeCuda]] = []

    def __init__(self) -> None:
        self.memories: dict[int, U8] = {}
        self.captures = self.launches = self.uploaded = 0
        self.capturing = self.closed = False
        self.breaks_captures = False
        self.most_bytes = 1 << 40
        FakeCuda.made.append(self)

    def stream(self) -> int:
        return 7

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return np.zeros(shape, dtype)

    def memory(self, n_bytes: int) -> int:
        if n_bytes > self.most_bytes:
            raise LineamentError("the GPU has no memory left (cudaMalloc)")
        address = 1000 + len(self.memories)
        self.memories[address] = np.full(n_bytes, 85, np.uint8)
        return address

    def upload(self, to: int, array: Any, stream: int) -> None:
        self.uploaded += array.nbytes
        self.memories[to][: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)

    def download(self, array: Any, source: int, stream: int) -> None:
        assert array.flags.c_contiguous
        array.view(np.uint8).reshape(-1)[:] = self.memories[source][: array.nbytes]

    def wait(self, stream: int) -> None:
        assert not self.capturing, "waiting breaks a capture"

    def captured(self, stream: int, work: Callable[[], None]) -> Any:
        self.captures += 1
        self.capturing = True
        try:
            work()
        finally:
            self.capturing = False
        if self.breaks_captures:
            raise LineamentError("CUDA failed at capturing a CUDA graph: operation not permitted (error 900)")
        return work

    def launch(self, graph: Any, stream: int) -> None:
        self.launches += 1
        graph()

    def close(self) -> None:
        self.closed = True


class FakeContext:
    real = "IExecutionContext"
    nvtx_verbosity: Any = "DETAILED"

    def __init__(self, engine: FakeEngine, strategy: object) -> None:
        self.engine, self.strategy = engine, strategy
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.n_memory = 0

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == {port.name for port in self.engine.session.get_inputs()}, "all shapes come first"
        return self.engine._working_bytes(self.shapes)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert len(FakeCuda.made[-1].memories[memory]) >= size
        self.n_memory = size

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fewest, _, most = self.engine.get_tensor_profile_shape(name, 0)
        if not all(a <= n <= b for a, n, b in zip(fewest, shape, most, strict=True)):
            self.engine.logger.log(
                "ERROR",
                "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition: "
                f"satisfyProfile. Set dimension of tensor {name} does not satisfy any optimization profiles.)",
            )
            return False
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        memories = FakeCuda.made[-1].memories
        assert self.n_memory >= self.engine._working_bytes(self.shapes), "it would write beyond its memory"
        if self.engine.breaks:
            self.engine.logger.log("ERROR", "Error Code 1: Cuda Runtime (out of memory)")
            return False
        inputs = {}
        for port in self.engine.session.get_inputs():
            dtype = np.uint8 if "uint8" in port.type else np.float32
            shape = self.shapes[port.name]
            data = memories[self.addresses[port.name]].view(dtype)
            inputs[port.name] = data[: int(np.prod(shape))].reshape(shape)
        for port, found in zip(self.engine.session.get_outputs(), self.engine.session.run(None, inputs)):
            flat = found.view(np.uint8).reshape(-1)
            memories[self.addresses[port.name]][: len(flat)] = flat
        return True


class FakeRuntimeConfig:
    """Of TensorRT-RTX."""

    real = "IRuntimeConfig"
    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self) -> None:
        self.strategy: object = None

    def set_execution_context_allocation_strategy(self, strategy: object) -> None:
        self.strategy = strategy


class FakeEngine:
    real = "ICudaEngine"

    def __init__(self, plan: bytes, logger: Any) -> None:
        self.session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
        self.logger, self.breaks, self.capturable = logger, False, True
        self.contexts: list[FakeContext] = []
        self.profile = json.loads(self.session.get_modelmeta().custom_metadata_map["profile"])
        self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.ports)

    def _port(self, name: str) -> Any:
        return next(port for port in self.ports if port.name == name)

    def get_tensor_name(self, index: int) -> str:
        return str(self.ports[index].name)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if any(port.name == name for port in self.session.get_inputs()) else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else -1 for size in self._port(name).shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0, "it was built with one profile"
        return [tuple(bound) for bound in self.profile[name]]

    def get_tensor_dtype(self, name: str) -> str:
        return "uint8" if "uint8" in self._port(name).type else "float32"

    @property
    def device_memory_size_v2(self) -> int:
        return self._working_bytes({name: tuple(bounds[2]) for name, bounds in self.profile.items()})

    def _working_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Single precision for each byte or number of its inputs."""
        return 4 * sum(math.prod(shape) for shape in shapes.values())

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_execution_context(self, strategy: object) -> FakeContext:
        self.contexts.append(FakeContext(self, strategy))
        return self.contexts[-1]


class FakeLogger:
    real = "ILogger"
    Severity = SimpleNamespace(**{name: name for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")})

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError("an abstract method of the real class")


class FakeRuntime:
    real = "Runtime"

    def __init__(self, logger: FakeLogger, trt: FakeTrt) -> None:
        self._logger, self._trt = logger, trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeEngine | None:
        if serialized_engine.startswith(b"old"):
            self._logger.log("ERROR", "IRuntime::deserializeCudaEngine: Serialization assertion stdVersionRead failed")
            return None
        self._trt.opened.append(FakeEngine(serialized_engine, self._logger))
        return self._trt.opened[-1]


class FakeTrt:
    real = ""
    __version__ = "11.4.0"
    ILogger = FakeLogger
    TensorIOMode = SimpleNamespace(INPUT="in")
    ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED", NONE="NONE")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="mine")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager", NONE="none")

    def __init__(self) -> None:
        self.opened: list[FakeEngine] = []

    @staticmethod
    def nptype(trt_type: str) -> Any:
        return np.dtype(trt_type).type

    def Runtime(self, logger: FakeLogger) -> FakeRuntime:  # noqa: N802 - TensorRT's name
        return FakeRuntime(logger, self)
