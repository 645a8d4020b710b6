"""The part of CUDA that a TensorRT engine needs, through NVIDIA's own bindings, imported on first use.

    with Cuda() as cuda:
        stream = cuda.stream()
        graph = cuda.captured(stream, work)
        cuda.launch(graph, stream)

Streams are ints, GPU memory is an int address. Every failure is a LineamentError that names the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lineament.engines.driver import install_gpu, installed
from lineament.engines.engine_file import Gpu
from lineament.landmarks.types import LineamentError

_NO_DEVICE, _OLD_DRIVER, _NO_MEMORY = 100, 35, 2
"""of cudaError_t"""


def first_gpu() -> Gpu:
    """The GPU that engines are built for and run on. Raises LineamentError with the reason if there is none."""
    runtime = _runtime()
    if not _done(runtime, runtime.cudaGetDeviceCount(), "looking for a GPU"):
        raise LineamentError(_why_none(_NO_DEVICE))
    properties = _done(runtime, runtime.cudaGetDeviceProperties(0), "reading the GPU's properties")
    name = properties.name
    name = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(name.rstrip("\0"), (int(properties.major), int(properties.minor)))


class Cuda:
    """Owns all memory, streams and graphs that it returns; `close` frees them and may be called twice."""

    def __init__(self) -> None:
        self._runtime = _runtime()
        self._frees: list[Callable[[], object]] = []

    def stream(self) -> int:
        """A non-blocking stream."""
        stream = self._do("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        self._frees.append(lambda: self._runtime.cudaStreamDestroy(stream))
        return int(stream)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Page-locked host memory, which the GPU accesses directly; zeroed."""
        import ctypes

        n_bytes = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
        address = int(self._do("cudaMallocHost", n_bytes))
        self._frees.append(lambda: self._runtime.cudaFreeHost(address))
        array: NDArray[Any] = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
        array[:] = 0
        return array[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def memory(self, n_bytes: int) -> int:
        """Allocates on the GPU; returns the address."""
        address = int(self._do("cudaMalloc", max(1, n_bytes)))
        self._frees.append(lambda: self._runtime.cudaFree(address))
        return address

    def upload(self, to: int, array: NDArray[Any], stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._do("cudaMemcpyAsync", to, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: NDArray[Any], source: int, stream: int) -> None:
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._do("cudaMemcpyAsync", array.ctypes.data, source, array.nbytes, kind, stream)

    def wait(self, stream: int) -> None:
        """Waits for all work on stream."""
        self._do("cudaStreamSynchronize", stream)

    def captured(self, stream: int, work: Callable[[], None]) -> Any:
        """The calls that work makes on stream, as one launchable graph. Other threads may use CUDA meanwhile.

        Raises LineamentError if they cannot be captured; stream is then usable as before.
        """
        try:
            graph = self._recorded(stream, work)
            try:
                launchable = self._do("cudaGraphInstantiate", graph, 0)
            finally:
                self._runtime.cudaGraphDestroy(graph)
        except LineamentError:
            # TensorRT asks for the last error after its own calls, and would take this one for its own
            self._runtime.cudaGetLastError()
            raise
        self._frees.append(lambda: self._runtime.cudaGraphExecDestroy(launchable))
        return launchable

    def _recorded(self, stream: int, work: Callable[[], None]) -> Any:
        # not the global mode, in which an allocation by another thread, such as a decoder, breaks the capture
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        finally:
            # also after a failure, or the stream stays in capture mode and is unusable
            ended = self._runtime.cudaStreamEndCapture(stream)
        return _done(self._runtime, ended, "capturing a CUDA graph")

    def launch(self, graph: Any, stream: int) -> None:
        self._do("cudaGraphLaunch", graph, stream)

    def close(self) -> None:
        while self._frees:  # last first: a graph before the memory that it uses
            self._frees.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _do(self, function: str, *args: Any) -> Any:
        return _done(self._runtime, getattr(self._runtime, function)(*args), function)


def _done(runtime: Any, result: tuple[Any, ...], doing: str) -> Any:
    """The result of a call without its status. Raises LineamentError on an error."""
    status, *given = result
    code = int(status)
    if code == 0:
        return given[0] if given else None
    if code in (_NO_DEVICE, _OLD_DRIVER):
        raise LineamentError(_why_none(code))
    if code == _NO_MEMORY:
        raise LineamentError(
            f"the GPU has no memory left ({doing}); close other programs that use it (nvidia-smi lists them), "
            "or build the engine for fewer crops at once with `make engine ARGS='--batches 1 1 4'`"
        )
    _, text = runtime.cudaGetErrorString(status)
    text = text.decode() if isinstance(text, bytes) else str(text)
    raise LineamentError(f"CUDA failed at {doing}: {text} (error {code}); look at `nvidia-smi` and restart")


def _why_none(code: int) -> str:
    on_cpu = "or use the CPU: `make engine ARGS='--target cpu'`"
    here = installed()
    if here is None:
        return f"this machine has no NVIDIA driver, so no GPU to run on; install the driver, {on_cpu}"
    named = f"the NVIDIA driver ({here.version or 'of unknown version'})"
    if code == _OLD_DRIVER:
        return f"{named} is too old for this CUDA; update the driver, install what fits it ({install_gpu()}), {on_cpu}"
    return f"{named} shows no GPU; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, {on_cpu}"


def _runtime() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        if installed() is None:
            raise LineamentError(_why_none(_NO_DEVICE)) from None
        raise LineamentError(f"NVIDIA's CUDA bindings cannot be imported ({error}); run {install_gpu()}") from None
    return runtime
