"""Runs an .engine file on an NVIDIA GPU with the TensorRT it was built with. Imported only on demand.

    with TensorRtLandmarker(Path("b5.engine")) as landmarker:
        points_unit, confidence, visibility = landmarker(rgb_NHWC)

A call is a single launch: upload, network and download of a batch of 1, 2, 4, 8 or 16 crops are one CUDA graph,
captured at the first batch of that size. Batches of other sizes are padded to the next; larger ones are split. A batch
that cannot be captured is enqueued layer by layer, which is slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from lineament.engines.cuda import Cuda, first_gpu
from lineament.engines.engine_file import CROP_PLAN, POINTS_PLAN, read_header, read_plans, refuse_foreign, refuse_stale
from lineament.engines.frame_graph import FRAME, MATRICES
from lineament.engines.model_file import INPUT, OUTPUTS, FileLandmarker, Port, check_graph, landmarks_of
from lineament.engines.tensorrt_library import Library, collecting_logger, complaint, library
from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import compose, covered, invert, rgb_crops
from lineament.landmarks.types import F32, F64, U8, Landmarks, LineamentError

log = logging.getLogger(__name__)

BUCKETS = (1, 2, 4, 8, 16)
"""batch sizes with a CUDA graph, besides the largest of the engine"""
MAX_PART = 8
"""size of the largest part of the frame that is uploaded to cut crops from, relative to the crops. Cutting one of 256
px on the CPU takes as long as copying 16 times its bytes (0.32 ms, 2-core Xeon, OpenCV 5.0, 2026-11-30); the other half
is for the bus. `make bench-engines` shows both on the machine at hand"""
_STEP_PX = 64
"""grid of that part's sides, so that a moving face seldom changes the shape of the cutter's input"""

Window = tuple[int, int, int, int]
"""left, top, right and bottom, frame px"""


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
            net = _Net(lib, self._cuda, plans[POINTS_PLAN], path, captured=True)
            check_graph(path, self._card, *net.ports())
            self._fewest, _, self._most = header.key.batches
            net.reserve()
            height, width = self._card.input_hw
            self._rgb: U8 = self._cuda.pinned((self._most, height, width, 3), np.uint8)
            self._rgb_gpu = self._cuda.memory(self._rgb.nbytes)
            self._found = {
                name: self._cuda.pinned((self._most, *net.shape(name)[1:]), np.float32) for name in net.outputs
            }
            self._found_gpu = {name: self._cuda.memory(array.nbytes) for name, array in self._found.items()}
            self._net = net
            self._cutter = (
                _Cutter(lib, self._cuda, plans[CROP_PLAN], path, self._card, self._most) if CROP_PLAN in plans else None
            )
        except BaseException:
            self._cuda.close()
            raise
        self._contexts: dict[int, Any] = {}
        """by batch size, each for two CUDA graphs: with crops from the host, and from the GPU"""
        self._launches: dict[tuple[int, bool], Callable[[], None]] = {}
        self._capturable = True

    def on_frame(self, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
        """Points in the crops that these matrices cut out of bgr, (H, W, 3) uint8.

        They are cut on the GPU, from the part of the frame around them, unless that part is so large that cutting on
        the CPU is faster, or a face so large that its crop shrinks the frame to less than half, which needs averaging.
        """
        with self._lock:
            parts = self._parts(bgr.shape, crop_from_frame)
            try:
                if parts:
                    return _joined([self._cut_and_launch(bgr, window, matrices) for window, matrices in parts])
            except LineamentError as error:  # such as no memory left; if the net fails too, so does the call below
                log.warning("%s has its crops cut on the CPU from now on: %s", self._path.name, error)
                self._idle()
                self._close_cutter()
        return self(rgb_crops(bgr, crop_from_frame, self._card.input_hw))

    def _parts(self, frame_hw3: tuple[int, ...], crop_from_frame: Sequence[F64]) -> list[tuple[Window, Sequence[F64]]]:
        """The part of the frame for each batch of crops; none if they are better cut on the CPU."""
        if self._closed or self._cutter is None or any(map(_shrinks, crop_from_frame)):
            return []
        found = []
        for start in range(0, len(crop_from_frame), self._most):
            matrices = crop_from_frame[start : start + self._most]
            window = self._cutter.window(frame_hw3, matrices)
            if window is None:
                return []
            found.append((window, matrices))
        return found

    def _cut_and_launch(self, bgr: U8, window: Window, crop_from_frame: Sequence[F64]) -> Landmarks:
        assert self._cutter is not None
        self._cutter.cut(bgr, window, crop_from_frame, self._rgb_gpu, self._stream)
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
        if (size, upload) not in self._launches:
            self._launches[size, upload] = self._prepared(size, upload)
        self._launches[size, upload]()
        self._cuda.wait(self._stream)
        return landmarks_of({name: array[:n].copy() for name, array in self._found.items()})

    def _prepared(self, size: int, upload: bool) -> Callable[[], None]:
        """What enqueues the work of a batch: the launch of a CUDA graph, or all its calls if it cannot be captured."""
        rgb = self._rgb[:size]
        context = self._contexts.get(size)
        if context is None:
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
        self._contexts[size] = context
        if self._capturable:
            try:
                self._net.refuse_uncapturable(context, self._stream)
                graph = self._cuda.captured(self._stream, work)
            except LineamentError as error:
                log.warning("%s runs without CUDA graphs, which is slower: %s", self._path.name, error)
                self._capturable = False
            else:
                return partial(self._cuda.launch, graph, self._stream)
        return work

    def _close_cutter(self) -> None:
        if self._cutter is not None:
            self._cutter.close()
            self._cutter = None

    def _idle(self) -> None:
        """Waits for the GPU, also after an error: a context in use must not be freed."""
        with suppress(LineamentError):
            self._cuda.wait(self._stream)

    def _release(self) -> None:
        self._idle()
        # contexts before the memory that they use
        self._launches.clear()
        self._contexts.clear()
        self._close_cutter()
        del self._net, self._rgb, self._found
        self._cuda.close()


class _Net:
    """A deserialised plan. Its contexts run one at a time and share their working memory.

    captured: each context keeps one input shape, so TensorRT-RTX compiles kernels for it at the first run; by default
    it would do so in the background, and a CUDA graph captured meanwhile would keep the generic ones. Otherwise it
    compiles none, as the next frame may have another shape.
    """

    def __init__(self, lib: Library, cuda: Cuda, plan: bytes, path: Path, captured: bool) -> None:
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
        self._is_rtx = lib.name == "tensorrt-rtx"
        self._cuda = cuda
        self._working, self._n_working = 0, 0
        # kept: it must outlive the contexts
        self._runtime_config = self._rtx_runtime_config(captured) if self._is_rtx else None

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

    def reserve(self, n_bytes: int | None = None) -> None:
        """Makes the working memory at least that large; by default as large as the largest input needs."""
        wanted = int(self._engine.device_memory_size_v2) if n_bytes is None else n_bytes
        if wanted > self._n_working:
            # at least doubled, so that old memory, freed at close, never exceeds the current one
            n_working = max(wanted, 2 * self._n_working)
            self._working = self._cuda.memory(n_working)
            self._n_working = n_working

    def context(self) -> Any:
        """An execution context. CUDA graphs need their own for each input shape."""
        managed = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(self._runtime_config if self._is_rtx else managed)
        if context is None:
            raise self._failed("create a context")
        # the plan has detailed names for the inspector, which would cost time at each run
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.NONE
        return context

    def _rtx_runtime_config(self, captured: bool) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        strategies = self._trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER if captured else strategies.NONE
        return config

    def place(self, context: Any, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Sets the shapes of inputs, the GPU addresses of inputs and outputs, and the memory that these shapes need."""
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failed(f"take {name} {shape}")
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"place {name}")
        # 0: none is needed, or an error
        self.reserve(int(context.update_device_memory_size_for_shapes()) or None)
        context.set_device_memory(self._working, self._n_working)

    def refuse_uncapturable(self, context: Any, stream: int) -> None:
        """Raises LineamentError if TensorRT-RTX says that this context cannot be captured; TensorRT does not say."""
        if self._is_rtx and not context.is_stream_capturable(stream):
            raise LineamentError(f"{self._name} cannot capture it")

    def enqueue(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            raise self._failed("run it")

    def _failed(self, what: str) -> LineamentError:
        said = complaint(self._logger.messages)
        # they are not the reason of a later failure
        self._logger.messages.clear()
        return LineamentError(f"{self._name} cannot {what}: {self._path}: {said}")


class _Cutter:
    """Cuts crops out of a frame on the GPU.

    Only the part of the frame around them is uploaded, and memory grows with it: for the largest frame of the engine it
    would be most of a gigabyte.
    """

    def __init__(self, lib: Library, cuda: Cuda, plan: bytes, path: Path, card: ModelCard, most: int) -> None:
        self._cuda, self._input_hw = cuda, card.input_hw
        self._net = _Net(lib, cuda, plan, path, captured=False)
        self._context = self._net.context()
        self._matrices: F32 = cuda.pinned((most, 2, 3), np.float32)
        self._matrices_gpu = cuda.memory(self._matrices.nbytes)
        self._part: U8 = np.empty(0, np.uint8)
        self._part_gpu = 0
        self._placed: tuple[tuple[int, ...], int] | None = None
        """shape of the part and number of crops that the context is ready for"""

    def close(self) -> None:
        """Frees the context before the net, whose runtime config it uses."""
        del self._context

    def window(self, frame_hw3: tuple[int, ...], crop_from_frame: Sequence[F64]) -> Window | None:
        """The part of a frame of that shape to cut the crops from; None if they are better cut on the CPU."""
        boxes = np.array([covered(matrix, self._input_hw, frame_hw3[:2]) for matrix in crop_from_frame])
        left, top = boxes[:, :2].min(0) // _STEP_PX * _STEP_PX
        limit = frame_hw3[1::-1]
        right, bottom = np.minimum(-(-boxes[:, 2:].max(0) // _STEP_PX) * _STEP_PX, limit)
        shape = (int(bottom - top), int(right - left), 3)
        height, width = self._input_hw
        cheap = shape[0] * shape[1] <= MAX_PART * len(boxes) * height * width
        takes = cheap and self._net.takes(FRAME, shape) and self._net.takes(MATRICES, (len(boxes), 2, 3))
        return (int(left), int(top), int(right), int(bottom)) if takes else None

    def cut(self, bgr: U8, window: Window, crop_from_frame: Sequence[F64], to: int, stream: int) -> None:
        """Enqueues on stream: write the crops, RGB, to GPU memory at `to`, which is always the same."""
        left, top, right, bottom = window
        seen = bgr[top:bottom, left:right]
        if seen.size > self._part.nbytes:
            # at least doubled, as in _Net.reserve
            self._part = self._cuda.pinned((max(seen.size, 2 * self._part.nbytes),), np.uint8)
            self._part_gpu = self._cuda.memory(self._part.nbytes)
            self._placed = None
        part, matrices = self._part[: seen.size], self._matrices[: len(crop_from_frame)]
        np.copyto(part.reshape(seen.shape), seen)
        frame_from_part = np.array([[1.0, 0.0, left], [0.0, 1.0, top]])
        matrices[:] = [invert(compose(matrix, frame_from_part)) for matrix in crop_from_frame]
        if self._placed != (seen.shape, len(matrices)):
            self._net.place(
                self._context,
                {FRAME: seen.shape, MATRICES: matrices.shape},
                {FRAME: self._part_gpu, MATRICES: self._matrices_gpu, INPUT: to},
            )
            self._placed = (seen.shape, len(matrices))
        self._cuda.upload(self._part_gpu, part, stream)
        self._cuda.upload(self._matrices_gpu, matrices, stream)
        self._net.enqueue(self._context, stream)


def bucket(n: int, fewest: int, most: int) -> int:
    """The batch size for n crops, on an engine for fewest to most crops per call."""
    return next((size for size in BUCKETS if max(n, fewest) <= size < most), most)


def _shrinks(crop_from_frame: F64) -> bool:
    """Whether landmarks.geometry.warp would average the image first."""
    (a, b, _), (c, d, _) = crop_from_frame.tolist()
    return not sqrt(abs(a * d - b * c)) > 0.5  # also true for nan


def _joined(parts: Sequence[Landmarks]) -> Landmarks:
    return landmarks_of({name: np.concatenate(some) for name, some in zip(OUTPUTS, zip(*parts)) if some[0] is not None})
