"""Runs an .engine file on an NVIDIA GPU with the TensorRT it was built with. Imported only on demand.

    with TensorRtLandmarker(Path("b5.engine")) as landmarker:
        points_unit, confidence, visibility = landmarker(rgb_NHWC)

A call is a single launch: upload, network and download of a batch of 1, 2, 4, 8 or 16 crops are one CUDA graph,
captured at the first batch of that size. Batches of other sizes are padded to the next; larger ones are split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from lineament.engines.cuda import Cuda, first_gpu
from lineament.engines.engine_file import CROP_PLAN, POINTS_PLAN, read_header, read_plans, refuse_foreign, refuse_stale
from lineament.engines.frame_graph import FRAME, MATRICES
from lineament.engines.model_file import INPUT, OUTPUTS, FileLandmarker, Port, check_graph, landmarks_of
from lineament.engines.tensorrt_library import Library, collecting_logger, complaint, library
from lineament.landmarks.geometry import invert, warp
from lineament.landmarks.types import F32, F64, U8, Landmarks, LineamentError

BUCKETS = (1, 2, 4, 8, 16)
"""batch sizes with a CUDA graph, besides the largest of the engine"""


class TensorRtLandmarker(FileLandmarker):
    """A landmarks.types.FrameLandmarker. Opens in the constructor, so a bad file fails before a stream starts."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        super().__init__(path, header.card)
        refuse_stale(path, header)
        gpu = first_gpu()
        lib = library(header.key.library)
        refuse_foreign(path, header, lib.version, gpu)
        plans = read_plans(path)
        self._cuda = Cuda()
        try:
            self._stream = self._cuda.stream()
            net = _Net(lib, self._cuda, plans[POINTS_PLAN], path)
            check_graph(path, self._card, *net.ports())
            self._fewest, _, self._most = header.key.batches
            height, width = self._card.input_hw
            self._rgb: U8 = self._cuda.pinned((self._most, height, width, 3), np.uint8)
            self._rgb_gpu = self._cuda.memory(self._rgb.nbytes)
            self._found = {
                name: self._cuda.pinned((self._most, *net.shape(name)[1:]), np.float32) for name in net.outputs
            }
            self._found_gpu = {name: self._cuda.memory(array.nbytes) for name, array in self._found.items()}
            self._net = net
            self._cutter = _Cutter(lib, self._cuda, plans[CROP_PLAN], path, self._most) if CROP_PLAN in plans else None
        except BaseException:
            self._cuda.close()
            raise
        self._graphs: dict[tuple[int, bool], Any] = {}

    def on_frame(self, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
        """Points in the crops that these matrices cut out of bgr, (H, W, 3) uint8, on the GPU.

        If a face is so large that its crop shrinks the frame to less than half, or the frame is outside the engine's
        range of sizes, all crops are cut on the CPU, which averages.
        """
        with self._lock:
            cutter = None if self._closed else self._cutter
            parts = [
                crop_from_frame[start : start + self._most] for start in range(0, len(crop_from_frame), self._most)
            ]
            if (
                cutter is not None
                and parts
                and all(cutter.takes(bgr, len(part)) for part in parts)
                and not any(map(_shrinks, crop_from_frame))
            ):
                return _joined([self._on_frame(cutter, bgr, part) for part in parts])
        crops = [warp(bgr, matrix, self._card.input_hw) for matrix in crop_from_frame]
        rgb = [cv2.cvtColor(crop, cv2.COLOR_BGR2RGB) for crop in crops]
        height, width = self._card.input_hw
        return self(np.asarray(rgb, np.uint8).reshape(-1, height, width, 3))

    def _on_frame(self, cutter: _Cutter, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
        cutter.cut(bgr, crop_from_frame, self._rgb_gpu, self._stream)
        return self._launch(len(crop_from_frame), upload=False)

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        parts = []
        for start in range(0, len(rgb_NHWC), self._most):
            part = rgb_NHWC[start : start + self._most]
            self._rgb[: len(part)] = part
            parts.append(self._launch(len(part), upload=True))
        return _joined(parts)

    def _launch(self, n: int, upload: bool) -> Landmarks:
        """The points of the first n crops in host memory, or in GPU memory if not upload."""
        size = bucket(n, self._fewest, self._most)
        if (size, upload) not in self._graphs:
            self._graphs[size, upload] = self._captured(size, upload)
        self._cuda.launch(self._graphs[size, upload], self._stream)
        self._cuda.wait(self._stream)
        return landmarks_of({name: array[:n].copy() for name, array in self._found.items()})

    def _captured(self, size: int, upload: bool) -> Any:
        rgb = self._rgb[:size]
        context = self._net.context()
        self._net.place(context, {INPUT: rgb.shape}, {INPUT: self._rgb_gpu, **self._found_gpu})

        def work() -> None:
            if upload:
                self._cuda.upload(self._rgb_gpu, rgb, self._stream)
            self._net.enqueue(context, self._stream)
            for name, array in self._found.items():
                self._cuda.download(array[:size], self._found_gpu[name], self._stream)

        # once before: TensorRT finishes its set-up in the first run, which must not be captured
        work()
        self._cuda.wait(self._stream)
        return self._cuda.captured(self._stream, work)

    def _release(self) -> None:
        # contexts before the memory that they use
        del self._net, self._cutter, self._rgb, self._found
        self._graphs.clear()
        self._cuda.close()


class _Net:
    """A deserialised plan. Its contexts run one at a time and share their working memory."""

    def __init__(self, lib: Library, cuda: Cuda, plan: bytes, path: Path) -> None:
        trt = lib.module
        self._trt, self._path, self._name = trt, path, f"{lib.name} {lib.version}"
        self._logger = collecting_logger(trt)
        try:
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        except (RuntimeError, TypeError) as error:  # pybind's error for a null pointer
            self._logger.messages.append(str(error))
            self._engine = None
        if self._engine is None:
            raise self._failed("open it")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.outputs = [name for name in names if name not in self.inputs]
        self._n_working = int(self._engine.device_memory_size_v2)
        self._working = cuda.memory(self._n_working)
        self._contexts: list[Any] = []

    def shape(self, name: str) -> tuple[int, ...]:
        """-1 for a size that depends on the input."""
        return tuple(self._engine.get_tensor_shape(name))

    def takes(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether the engine accepts an input of that shape."""
        fewest, _, most = (tuple(bound) for bound in self._engine.get_tensor_profile_shape(name, 0))
        return len(shape) == len(most) and all(a <= n <= b for a, n, b in zip(fewest, shape, most))

    def ports(self) -> tuple[list[Port], list[Port]]:
        inputs, outputs = (
            [
                Port(
                    name,
                    tuple(None if size < 0 else size for size in self.shape(name)),
                    str(np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))),
                )
                for name in names
            ]
            for names in (self.inputs, self.outputs)
        )
        return inputs, outputs

    def context(self) -> Any:
        """An execution context; a CUDA graph needs its own for each input shape."""
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise self._failed("create a context")
        context.set_device_memory(self._working, self._n_working)
        self._contexts.append(context)
        return context

    def place(self, context: Any, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Sets the shapes of inputs, and the GPU addresses of inputs and outputs."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failed(f"take {name} {shape}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"place {name}")

    def enqueue(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise self._failed("run it")

    def _failed(self, what: str) -> LineamentError:
        said = complaint(self._logger.messages)
        return LineamentError(f"{self._name} cannot {what}: {self._path}: {said}")


class _Cutter:
    """Cuts crops out of a frame on the GPU. Its buffers grow with the largest frame."""

    def __init__(self, lib: Library, cuda: Cuda, plan: bytes, path: Path, most: int) -> None:
        self._cuda = cuda
        self._net = _Net(lib, cuda, plan, path)
        self._context = self._net.context()
        self._matrices: F32 = cuda.pinned((most, 2, 3), np.float32)
        self._matrices_gpu = cuda.memory(self._matrices.nbytes)
        self._frame: U8 = np.empty(0, np.uint8)
        self._frame_gpu = 0

    def takes(self, bgr: U8, n: int) -> bool:
        """Whether the engine accepts that frame and n crops of it."""
        return self._net.takes(FRAME, bgr.shape) and self._net.takes(MATRICES, (n, 2, 3))

    def cut(self, bgr: U8, crop_from_frame: Sequence[F64], to: int, stream: int) -> None:
        """Enqueues on stream: write the crops, RGB, to GPU memory at `to`."""
        if bgr.nbytes > self._frame.nbytes:
            # at least doubled, so that old buffers, freed at close, never exceed the current one
            self._frame = self._cuda.pinned((max(bgr.nbytes, 2 * self._frame.nbytes),), np.uint8)
            self._frame_gpu = self._cuda.memory(self._frame.nbytes)
        frame, matrices = self._frame[: bgr.nbytes], self._matrices[: len(crop_from_frame)]
        np.copyto(frame.reshape(bgr.shape), bgr)
        matrices[:] = [invert(matrix) for matrix in crop_from_frame]
        self._net.place(
            self._context,
            {FRAME: bgr.shape, MATRICES: matrices.shape},
            {FRAME: self._frame_gpu, MATRICES: self._matrices_gpu, INPUT: to},
        )
        self._cuda.upload(self._frame_gpu, frame, stream)
        self._cuda.upload(self._matrices_gpu, matrices, stream)
        self._net.enqueue(self._context, stream)


def bucket(n: int, fewest: int, most: int) -> int:
    """The batch size for n crops, on an engine for fewest to most crops per call."""
    return next((size for size in BUCKETS if max(n, fewest) <= size < most), most)


def _shrinks(crop_from_frame: F64) -> bool:
    """Whether landmarks.geometry.warp would average the image first."""
    (a, b, _), (c, d, _) = crop_from_frame.tolist()
    return int(1 / sqrt(abs(a * d - b * c))) >= 2


def _joined(parts: Sequence[Landmarks]) -> Landmarks:
    return landmarks_of({name: np.concatenate(some) for name, some in zip(OUTPUTS, zip(*parts)) if some[0] is not None})
