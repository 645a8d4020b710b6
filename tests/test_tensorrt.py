"""TensorRT engines: built for real where TensorRT-RTX is installed, run for real where there is a GPU.

Without a GPU, tests.fake_tensorrt stands in for TensorRT and CUDA. What all backends have in common is in
test_conformance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lineament import engines
from lineament.engines import cuda, driver, tensorrt_build
from lineament.engines.cuda import Cuda, first_gpu
from lineament.engines.engine_file import ANY_RTX, CROP_PLAN, POINTS_PLAN, read_header, read_plans, write_engine
from lineament.engines.engine_inspector import layers_by_precision
from lineament.engines.export import real_crops
from lineament.engines.frame_graph import FRAME, MATRICES, crop_graph
from lineament.engines.tensorrt_backend import MAX_PART, TensorRtLandmarker, bucket
from lineament.engines.tensorrt_build import build
from lineament.engines.tensorrt_library import complaint, installed, library
from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import crop_from_frame, invert, rgb_crops
from lineament.landmarks.types import F64, U8, FrameLandmarker, Landmarks, LineamentError
from lineament.stream.analyse.track import Tracker
from tests.blobs import BlobDetector, BlobLandmarker, scene

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.fake_tensorrt import (  # noqa: E402
    CARD,
    H200,
    KEY,
    RTX_5090,
    RTX_KEY,
    FakeContext,
    FakeCuda,
    FakeRuntimeConfig,
    FakeTrt,
    engine_file,
    plan,
    play_tensorrt,
)
from tests.tint import CARD as TINT  # noqa: E402
from tests.tint import RAMP, answer, crops, tint  # noqa: E402

# ---- the graph that cuts crops


def matrices_on(bgr: U8, card: ModelCard, n: int, half_px: tuple[float, float]) -> list[F64]:
    """crop_from_frame of rotated boxes round the astronaut's face, some partly outside the image."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        center = np.array([225.0, 122.0]) + rng.normal(0, 90 if i % 2 else 5, 2)
        half = rng.uniform(*half_px)
        found.append(crop_from_frame(np.concatenate([center - half, center + half]), card, float(rng.normal(0, 0.5))))
    return found


def cut(bgr: U8, matrices: Sequence[F64], hw: tuple[int, int]) -> U8:
    session = onnxruntime.InferenceSession(crop_graph(hw).SerializeToString(), providers=["CPUExecutionProvider"])
    frame_from_crop = np.stack([invert(matrix) for matrix in matrices]).astype(np.float32)
    return np.asarray(session.run(["rgb"], {FRAME: bgr, MATRICES: frame_from_crop})[0], np.uint8)


@pytest.mark.parametrize("hw", [(64, 64), (48, 64)])
def test_the_graph_cuts_the_same_crops_as_the_cpu(astronaut: U8, hw: tuple[int, int]) -> None:
    matrices = matrices_on(astronaut, replace(CARD, input_hw=hw), 8, (12, 45))
    got, wanted = cut(astronaut, matrices, hw), rgb_crops(astronaut, matrices, hw)
    assert got.shape == wanted.shape and (wanted == 0).all(-1).any()
    # bilinear weights of OpenCV are multiples of 1/32
    difference = np.abs(got.astype(int) - wanted)
    assert difference.mean() < 0.3 and difference.max() <= 8


def test_the_comparison_detects_a_shift_of_half_a_pixel(astronaut: U8) -> None:
    """The test above can fail: half a pixel of the frame, as from a wrong corner convention, exceeds its bounds."""
    matrix = matrices_on(astronaut, replace(CARD, input_hw=(64, 64)), 1, (20, 20))[0]
    shifted = matrix + np.column_stack([np.zeros((2, 2)), matrix[:, :2] @ (0.5, 0.5)])
    difference = np.abs(cut(astronaut, [shifted], (64, 64)).astype(int) - rgb_crops(astronaut, [matrix], (64, 64)))
    assert difference.mean() > 2


@pytest.mark.skipif(not installed("tensorrt-rtx"), reason="needs tensorrt-rtx: pip install -r requirements-rtx.txt")
def test_tensorrt_reads_that_the_graph_interpolates(tmp_path: Path) -> None:
    """With opset 20 some releases read `nearest`, and say nothing."""
    (samples,) = [node for node in crop_graph((64, 64)).graph.node if node.op_type == "GridSample"]
    assert [entry.s for entry in samples.attribute if entry.name == "mode"] == [b"bilinear"]
    lib = library("tensorrt-rtx")
    network = tensorrt_build._PlanBuild(lib, tmp_path / "crop.engine")._read(crop_graph((64, 64)))
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    (layer,) = [one for one in layers if one.type == lib.module.LayerType.GRID_SAMPLE]
    layer.__class__ = lib.module.IGridSampleLayer
    assert layer.interpolation_mode == lib.module.InterpolationMode.LINEAR and not layer.align_corners


def test_points_in_crops_of_the_graph_are_within_half_a_pixel(astronaut: U8, shared: Path, tmp_path: Path) -> None:
    from lineament.engines.import_onnx import ImportConfig, import_onnx

    peer = shared / "peers" / "pfld_ghostone_112_98pt.onnx"
    card = import_onnx(ImportConfig(peer, tmp_path / "pfld.onnx", bgr=True))
    matrices = matrices_on(astronaut, card, 6, (30, 80))[::2]
    with engines.load(str(tmp_path / "pfld.onnx"), "onnxruntime") as landmarker:
        wanted = landmarker(rgb_crops(astronaut, matrices, card.input_hw)).points_unit
        got = landmarker(cut(astronaut, matrices, card.input_hw)).points_unit
    assert np.linalg.norm(got - wanted, axis=-1).max() * 256 < 0.5


# ---- the backend, on a fake GPU


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    return play_tensorrt(monkeypatch)


@pytest.fixture
def landmarker(trt: FakeTrt, tmp_path: Path) -> Iterator[TensorRtLandmarker]:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine")) as landmarker:
        yield landmarker


def test_a_model_with_confidence_and_visibility_returns_them_for_each_crop(trt: FakeTrt, tmp_path: Path) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", judges=True)) as landmarker:
        _, green, blue = crops(9).astype(np.float64).mean((1, 2)).T / 255
        np.testing.assert_allclose(landmarker(crops(9)).confidence, green, atol=1e-5)
        np.testing.assert_allclose(landmarker(crops(9)).visibility, blue[:, None] * RAMP, atol=1e-5)


def test_each_batch_size_is_captured_once_and_then_costs_one_launch(landmarker: TensorRtLandmarker) -> None:
    gpu = FakeCuda.made[-1]
    for _ in range(3):
        for n in (1, 3, 4, 5):
            landmarker(crops(n))
    assert (gpu.captures, gpu.launches) == (3, 12)  # of 1, 4 and 6


def test_batches_are_padded_to_the_next_bucket_and_never_past_the_largest() -> None:
    assert [bucket(n, 1, 16) for n in (1, 2, 3, 4, 5, 8, 9, 16)] == [1, 2, 4, 4, 8, 8, 16, 16]
    assert [bucket(n, 1, 6) for n in (1, 3, 4, 5, 6)] == [1, 4, 4, 6, 6]
    assert [bucket(n, 1, 64) for n in (16, 17, 64)] == [16, 64, 64]
    assert [bucket(n, 3, 16) for n in (1, 3, 4, 5)] == [4, 4, 4, 8]
    assert bucket(1, 1, 1) == 1 and bucket(1, 6, 6) == 6


@pytest.mark.parametrize("batches", [(4, 8, 16), (3, 3, 3)])
def test_an_engine_of_larger_batches_takes_any_number_of_crops(
    trt: FakeTrt, tmp_path: Path, astronaut: U8, batches: tuple[int, int, int]
) -> None:
    path = engine_file(tmp_path / "tint.engine", replace(KEY, batches=batches), hw=(64, 64))
    with TensorRtLandmarker(path) as landmarker:
        for n in (1, 3, 5, 17):
            matrices = matrices_on(astronaut, landmarker.card, n, (12, 45))
            cut = rgb_crops(astronaut, matrices, (64, 64))
            np.testing.assert_allclose(landmarker(cut).points_unit, answer(cut), atol=1e-5)
            found = landmarker.on_frame(astronaut, matrices).points_unit
            np.testing.assert_allclose(found, answer(cut), atol=0.5 / 256)


@pytest.mark.parametrize("hw", [(15, 400), (400, 15), (20, 7681), (4321, 20)])
def test_crops_of_a_frame_outside_the_engines_range_are_cut_on_the_cpu(
    trt: FakeTrt, tmp_path: Path, hw: tuple[int, int]
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*hw, 3)).astype(np.uint8)
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine")) as landmarker:
        matrices = [crop_from_frame(np.array([0.0, 0, 12, 12]), landmarker.card)]
        found = landmarker.on_frame(frame, matrices).points_unit
        np.testing.assert_allclose(found, answer(rgb_crops(frame, matrices, (12, 16))), atol=1e-5)
        assert FakeCuda.made[-1].uploaded < frame.nbytes


def test_it_may_be_closed_twice_and_a_call_after_that_raises(landmarker: TensorRtLandmarker) -> None:
    landmarker(crops(1))
    landmarker.close()
    landmarker.close()
    assert FakeCuda.made[-1].closed
    with pytest.raises(LineamentError, match="closed"):
        landmarker(crops(1))
    with pytest.raises(LineamentError, match="closed"):
        landmarker.on_frame(np.zeros((40, 40, 3), np.uint8), [np.eye(2, 3)])


def test_engines_load_opens_it(trt: FakeTrt, tmp_path: Path) -> None:
    with engines.load(str(engine_file(tmp_path / "tint.engine"))) as landmarker:
        assert isinstance(landmarker, TensorRtLandmarker) and isinstance(landmarker, FrameLandmarker)


def test_a_frame_gives_the_same_points_as_its_crops(trt: FakeTrt, tmp_path: Path, astronaut: U8) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        for n, frame in ((1, astronaut), (8, astronaut), (2, astronaut[:200]), (3, astronaut[:, ::-1])):
            matrices = matrices_on(frame, landmarker.card, n, (12, 45))
            wanted = answer(rgb_crops(np.ascontiguousarray(frame), matrices, (64, 64)))
            np.testing.assert_allclose(landmarker.on_frame(frame, matrices).points_unit, wanted, atol=0.5 / 256)


def upright(card: ModelCard, *boxes_xyxy: tuple[float, float, float, float]) -> list[F64]:
    return [crop_from_frame(np.array(box), card) for box in boxes_xyxy]


def test_only_the_part_of_the_frame_round_the_crops_is_uploaded(trt: FakeTrt, tmp_path: Path, astronaut: U8) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        gpu = FakeCuda.made[-1]
        # crops of 1.3 times their boxes: from 109 to 161, from 141 to 193, and at the frame's corner
        for boxes, (width, height) in (
            ([(115, 115, 155, 155)], (128, 128)),
            ([(115, 115, 155, 155), (147, 115, 187, 155)], (192, 128)),
            ([(480, 480, 530, 530)], (512 - 448, 512 - 448)),
        ):
            before = gpu.uploaded
            matrices = upright(landmarker.card, *boxes)
            found = landmarker.on_frame(astronaut, matrices).points_unit
            assert gpu.uploaded - before == width * height * 3 + len(boxes) * 6 * 4
            np.testing.assert_allclose(found, answer(rgb_crops(astronaut, matrices, (64, 64))), atol=0.5 / 256)


def test_crops_far_apart_are_cut_on_the_cpu_which_is_faster(trt: FakeTrt, tmp_path: Path, astronaut: U8) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        gpu = FakeCuda.made[-1]
        matrices = upright(landmarker.card, (5, 5, 45, 45), (460, 460, 500, 500))
        landmarker.on_frame(astronaut, matrices)  # captures
        before = gpu.uploaded
        found = landmarker.on_frame(astronaut, matrices).points_unit
        np.testing.assert_allclose(found, answer(rgb_crops(astronaut, matrices, (64, 64))), atol=1e-5)
        assert MAX_PART * 2 * 64 * 64 < 512 * 512 and gpu.uploaded - before == 2 * 64 * 64 * 3


def test_memory_grows_with_the_part_of_the_frame_and_not_with_the_largest_frame(
    trt: FakeTrt, tmp_path: Path, astronaut: U8
) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        gpu = FakeCuda.made[-1]

        def held() -> int:
            return sum(memory.nbytes for memory in gpu.memories.values())

        opened = held()
        assert trt.opened[1].device_memory_size_v2 > 4320 * 7680 * 3 > 100 * opened
        for half_px, most in ((20, 2 * 5 * 192 * 128 * 3), (60, 5 * 5 * 192 * 256 * 3)):
            landmarker.on_frame(
                astronaut, upright(landmarker.card, (135 - half_px, 110 - half_px, 135 + half_px, 110 + half_px))
            )
            assert opened < held() < opened + most
        grown = held()
        landmarker.on_frame(astronaut, upright(landmarker.card, (115, 115, 155, 155)))
        assert held() == grown


def test_without_memory_for_the_part_crops_are_cut_on_the_cpu_from_then_on(
    trt: FakeTrt, tmp_path: Path, astronaut: U8, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        FakeCuda.made[-1].most_bytes = 10_000
        matrices = upright(landmarker.card, (115, 115, 155, 155))
        wanted = answer(rgb_crops(astronaut, matrices, (64, 64)))
        for _ in range(2):
            np.testing.assert_allclose(landmarker.on_frame(astronaut, matrices).points_unit, wanted, atol=1e-5)
    assert len(caplog.messages) == 1 and "cut on the CPU from now on: the GPU has no memory left" in caplog.text


def test_a_batch_that_cannot_be_captured_runs_without_a_graph_and_says_so_once(
    trt: FakeTrt, tmp_path: Path, astronaut: U8, caplog: pytest.LogCaptureFixture
) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        gpu = FakeCuda.made[-1]
        gpu.breaks_captures = True
        for n in (1, 1, 3, 9):
            rgb = np.resize(crops(4), (n, 64, 64, 3))
            np.testing.assert_allclose(landmarker(rgb).points_unit, answer(rgb), atol=1e-5)
            matrices = matrices_on(astronaut, landmarker.card, n, (12, 45))
            wanted = answer(rgb_crops(astronaut, matrices, (64, 64)))
            np.testing.assert_allclose(landmarker.on_frame(astronaut, matrices).points_unit, wanted, atol=0.5 / 256)
        assert (gpu.captures, gpu.launches) == (1, 0)
    (said,) = caplog.messages
    assert "tint.engine runs without CUDA graphs" in said and "operation not permitted" in said


def test_an_rtx_engine_compiles_for_the_shapes_it_captures_and_not_for_those_of_frames(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, astronaut: U8
) -> None:
    trt = play_tensorrt(monkeypatch, RTX_5090)
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", RTX_KEY, hw=(64, 64))) as landmarker:
        matrices = matrices_on(astronaut, landmarker.card, 2, (12, 45))
        landmarker.on_frame(astronaut, matrices)
        landmarker(rgb_crops(astronaut, matrices, (64, 64)))
        assert FakeCuda.made[-1].captures == 2
    for opened, strategy in zip(trt.opened, ("eager", "none")):
        assert opened.contexts
        for context in opened.contexts:
            assert isinstance(context.strategy, FakeRuntimeConfig) and context.strategy.strategy == "mine"
            assert context.strategy.dynamic_shapes_kernel_specialization_strategy == strategy


def test_an_rtx_engine_that_says_it_cannot_be_captured_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trt = play_tensorrt(monkeypatch, RTX_5090)
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", RTX_KEY)) as landmarker:
        trt.opened[0].capturable = False
        for n in (1, 3):
            np.testing.assert_allclose(landmarker(crops(n)).points_unit, answer(crops(n)), atol=1e-5)
        assert FakeCuda.made[-1].captures == 0
    (said,) = caplog.messages
    assert "runs without CUDA graphs" in said and "cannot capture it" in said


def test_a_crop_that_shrinks_the_frame_is_averaged_on_the_cpu(trt: FakeTrt, tmp_path: Path, astronaut: U8) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        gpu = FakeCuda.made[-1]
        matrices = matrices_on(astronaut, landmarker.card, 2, (100, 110))
        found = landmarker.on_frame(astronaut, matrices).points_unit
        np.testing.assert_allclose(found, answer(rgb_crops(astronaut, matrices, (64, 64))), atol=1e-5)
        assert gpu.uploaded < astronaut.nbytes


def test_the_tracker_passes_the_frame_to_a_landmarker_that_cuts_its_own_crops() -> None:
    class OnFrame(BlobLandmarker):
        frames = 0

        def on_frame(self, bgr: U8, crop_from_frame: Sequence[F64]) -> Landmarks:
            self.frames += 1
            return super().__call__(rgb_crops(bgr, crop_from_frame, self.card.input_hw))

        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            raise AssertionError("crops were cut although it cuts them itself")

    ours, plain = OnFrame(), BlobLandmarker()
    assert isinstance(ours, FrameLandmarker) and not isinstance(plain, FrameLandmarker)
    frame = scene([(100, 80), (220, 120)])
    got, wanted = Tracker(BlobDetector(), ours)(frame), Tracker(BlobDetector(), plain)(frame)
    assert ours.frames > 0 and len(got.tracks) == 2
    for a, b in zip(got.tracks, wanted.tracks):
        np.testing.assert_allclose(a.points, b.points)


def test_a_batch_that_fails_again_and_again_does_not_take_more_memory_each_time(
    trt: FakeTrt, landmarker: TensorRtLandmarker
) -> None:
    import gc
    import weakref

    trt.opened[0].breaks = True
    alive = []
    for _ in range(3):
        with pytest.raises(LineamentError):
            landmarker(crops(1))
        alive.append(weakref.ref(trt.opened[0].contexts.pop()))
    gc.collect()
    assert not any(context() for context in alive)
    trt.opened[0].breaks = False
    np.testing.assert_allclose(landmarker(crops(1)).points_unit, answer(crops(1)), atol=1e-5)


def test_both_graphs_of_a_batch_size_share_a_context(trt: FakeTrt, tmp_path: Path, astronaut: U8) -> None:
    with TensorRtLandmarker(engine_file(tmp_path / "tint.engine", hw=(64, 64))) as landmarker:
        matrices = upright(landmarker.card, (115, 115, 155, 155))
        landmarker.on_frame(astronaut, matrices)
        landmarker(rgb_crops(astronaut, matrices, (64, 64)))
        assert FakeCuda.made[-1].captures == 2 and len(trt.opened[0].contexts) == 1


def test_memory_that_could_not_be_allocated_is_not_counted_as_there(
    landmarker: TensorRtLandmarker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that needs more than TensorRT said for the largest."""
    monkeypatch.setattr(FakeContext, "update_device_memory_size_for_shapes", lambda self: 100_000)
    FakeCuda.made[-1].most_bytes = 50_000
    with pytest.raises(LineamentError, match="no memory left"):
        landmarker(crops(1))
    FakeCuda.made[-1].most_bytes = 200_000
    np.testing.assert_allclose(landmarker(crops(1)).points_unit, answer(crops(1)), atol=1e-5)


def test_matrices_that_show_nothing_give_black_crops_as_on_the_cpu(landmarker: TensorRtLandmarker) -> None:
    frame = np.full((200, 200, 3), 255, np.uint8)
    for matrix in (np.zeros((2, 3)), np.full((2, 3), np.nan)):
        black = np.zeros((1, 12, 16, 3), np.uint8)
        np.testing.assert_allclose(landmarker.on_frame(frame, [matrix]).points_unit, answer(black), atol=1e-5)


# ---- errors


def test_an_engine_of_another_gpu_or_release_is_refused(trt: FakeTrt, tmp_path: Path) -> None:
    other = engine_file(tmp_path / "other.engine", replace(KEY, gpu="NVIDIA L4", compute_capability=(8, 9)))
    with pytest.raises(LineamentError, match=r"built for NVIDIA L4.*make engine MODEL=runs/b5/best\.safetensors"):
        TensorRtLandmarker(other)
    stale = engine_file(tmp_path / "stale.engine", replace(KEY, library_version="10.13.0"))
    with pytest.raises(LineamentError, match=r"by tensorrt 10\.13\.0, but 11\.4\.0 is installed.*make engine"):
        TensorRtLandmarker(stale)


def test_a_plan_that_does_not_open_raises_one_clear_error_and_frees_everything(trt: FakeTrt, tmp_path: Path) -> None:
    write_engine(tmp_path / "old.engine", CARD, KEY, "", {POINTS_PLAN: b"old plan"})
    with pytest.raises(LineamentError, match=r"tensorrt 11\.4\.0 cannot open it.*another release.*make engine"):
        TensorRtLandmarker(tmp_path / "old.engine")
    assert FakeCuda.made[-1].closed


def test_a_plan_of_another_graph_is_refused(trt: FakeTrt, tmp_path: Path) -> None:
    graph = onnx.load(tint(tmp_path / "bad.onnx", names=("image", "points")))
    plans = {POINTS_PLAN: plan(graph, {})}
    write_engine(tmp_path / "bad.engine", CARD, KEY, "", plans)
    with pytest.raises(LineamentError, match="takes 'image'"):
        TensorRtLandmarker(tmp_path / "bad.engine")


def test_running_out_of_memory_says_what_to_do(trt: FakeTrt, landmarker: TensorRtLandmarker) -> None:
    trt.opened[0].breaks = True
    with pytest.raises(LineamentError, match=r"no memory left; close other programs.*--batches 1 1 4"):
        landmarker(crops(1))
    assert not trt.opened[0].logger.messages, "it would be given as the reason of a later failure"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("CUDA initialization failure with error: 35", "install or update the driver"),
        ("In foo (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)", "update the driver"),
        ("CUDA initialization failure with error: 100", "shows no GPU"),
        (
            "[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
            "no memory left",
        ),
        ("No importer registered for op: Bewitch. Attempting to import as plugin.", "lacks an operator.*--target cpu"),
        (
            "Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.",
            "another release, or is damaged",
        ),
        (
            "Internal Error (Could not find any implementation for node node_Conv_1. In computeCosts at /_src/a.cpp:1)",
            r"no kernel for a layer.*pip install tensorrt(-cu12)?==10\.16\.1\.11",
        ),
        ("Could not find any implementation for node c due to insufficient workspace.", "no memory left"),
        ("Version tag does not match. Note: Current Version: 0, Serialized Engine Version: 43", "make engine"),
        ("something\nnobody foresaw", "TensorRT: something nobody foresaw"),
    ],
)
def test_messages_of_tensorrt_are_explained(said: str, meant: str) -> None:
    line = complaint(["Thread context has not been set", said] if "nobody" not in said else [said])
    assert "\n" not in line
    with pytest.raises(LineamentError, match=meant):
        raise LineamentError(line)


class Status(int):
    """A cudaError_t."""


def cuda_of(**results: tuple[Any, ...]) -> SimpleNamespace:
    """The part of cuda.bindings.runtime that the tests need."""
    calls = {name: (lambda *args, result=result: (Status(result[0]), *result[1:])) for name, result in results.items()}
    return SimpleNamespace(
        cudaGetErrorString=lambda status: (Status(0), b"misaligned address"), cudaStreamNonBlocking=1, **calls
    )


@pytest.fixture
def no_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(driver, "_WSL", tmp_path / "absent")


def test_the_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=b"NVIDIA H200\0", major=9, minor=0)
    runtime = cuda_of(cudaGetDeviceCount=(0, 1), cudaGetDeviceProperties=(0, properties))
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    assert first_gpu() == H200


@pytest.mark.parametrize(
    ("version", "result", "said"),
    [
        (None, (35, 0), "no NVIDIA driver.*--target cpu"),
        (None, (100, 0), "no NVIDIA driver"),
        (
            "NVRM version: NVIDIA UNIX 450.1\nGCC",
            (35, 0),
            r"driver \(450\.1\) is too old.*update.*requirements",
        ),
        ("NVRM version: NVIDIA UNIX 580.1\nGCC", (100, 0), "shows no GPU.*nvidia-smi"),
        ("NVRM version: NVIDIA UNIX 580.1\nGCC", (0, 0), "shows no GPU"),
        ("", (0, 0), "of unknown version"),
    ],
)
def test_a_machine_without_a_gpu_is_told_why(
    version: str | None,
    result: tuple[int, int],
    said: str,
    no_nvidia_smi: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    if version is not None:
        (tmp_path / "version").write_text(version)
    monkeypatch.setattr(driver, "_KERNEL_DRIVER", tmp_path / "version")
    monkeypatch.setattr(cuda, "_runtime", lambda: cuda_of(cudaGetDeviceCount=result))
    with pytest.raises(LineamentError, match=said):
        first_gpu()


def test_cuda_errors_name_the_failed_call_and_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cuda_of(cudaMalloc=(2,), cudaStreamCreateWithFlags=(716,))
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    with Cuda() as gpu:
        with pytest.raises(LineamentError, match=r"no memory left \(cudaMalloc\)"):
            gpu.memory(1 << 40)
        with pytest.raises(LineamentError, match=r"cudaStreamCreateWithFlags: misaligned address \(error 716\)"):
            gpu.stream()


def test_a_failed_capture_ends_and_leaves_no_error_behind_and_everything_is_freed_last_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    runtime = cuda_of(cudaStreamCreateWithFlags=(0, 5), cudaMalloc=(0, 99), cudaGraphInstantiate=(0, "launchable"))
    runtime.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")
    runtime.cudaStreamBeginCapture = lambda stream, mode: (done.append(f"begin {mode}"), (Status(0),))[1]
    runtime.cudaStreamEndCapture = lambda stream: (done.append("end"), (Status(0), "graph"))[1]
    runtime.cudaGetLastError = lambda: done.append("error read")
    for name in ("cudaGraphDestroy", "cudaGraphExecDestroy", "cudaFree", "cudaStreamDestroy"):
        setattr(runtime, name, lambda handle, name=name: done.append(name))
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)

    def work() -> None:
        raise LineamentError("cannot run it")

    gpu = Cuda()
    stream = gpu.stream()
    gpu.memory(8)
    with pytest.raises(LineamentError, match="cannot run it"):
        gpu.captured(stream, work)
    gpu.captured(stream, lambda: None)
    gpu.close()
    gpu.close()
    freed = ["cudaGraphDestroy", "cudaGraphExecDestroy", "cudaFree", "cudaStreamDestroy"]
    assert done == ["begin thread", "end", "error read", "begin thread", "end", *freed]


def test_a_missing_package_is_named_with_the_command_to_install_it(
    no_nvidia_smi: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("tensorrt", "tensorrt_rtx_bindings", "tensorrt_rtx", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LineamentError, match=r"tensorrt cannot be imported.*requirements-gpu\.txt"):
        library("tensorrt")
    with pytest.raises(LineamentError, match=r"tensorrt-rtx cannot be imported.*requirements-rtx\.txt"):
        library("tensorrt-rtx")
    engine = str(engine_file(tmp_path / "tint.engine"))
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX 580.1")
    for version, said in (
        (tmp_path / "version", r"bindings cannot be.*requirements-gpu\.txt"),
        (tmp_path / "no", "no NVIDIA driver"),
    ):
        monkeypatch.setattr(driver, "_KERNEL_DRIVER", version)
        driver.installed.cache_clear()
        with pytest.raises(LineamentError, match=said):
            first_gpu()
        with pytest.raises(LineamentError, match=said):
            engines.load(engine)


def test_a_release_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))  # type: ignore[arg-type]
    with pytest.raises(LineamentError, match=r"tensorrt is 8\.6\.1, expected 10\.12 or later"):
        library("tensorrt")


def layer(kind: str, *formats: str, **more: Any) -> dict[str, Any]:
    """A layer as the inspector describes it."""
    inputs, output = formats[:-1], formats[-1]
    return {
        "Name": f"{kind} {output}",
        "LayerType": kind,
        "Inputs": [{"Name": "in", "Format/Datatype": text} for text in inputs],
        "Outputs": [{"Name": "out", "Format/Datatype": output}],
        **more,
    }


def test_the_inspectors_types_tell_single_from_half() -> None:
    layers = [
        layer("CaskConvolution", "Channel major FP16 format where channel % 8 == 0", "Row major linear FP16 format"),
        layer("CaskConvolution", "Row major linear FP32", "Row major linear FP32"),
        layer("CaskGemmConvolution", "Half", "Half"),
        layer("gemm", "Float", "Float"),
        layer("Reformat", "Row major linear FP32", "Row major linear FP32"),
        layer("Convolution", "Float", "Half"),
    ]
    single, lower, unknown = layers_by_precision(json.dumps({"Layers": layers}))
    assert single == ["CaskConvolution Row major linear FP32", "gemm Float"] and len(lower) == 3 and not unknown
    with pytest.raises(LineamentError, match="shows only the names of layers"):
        layers_by_precision(json.dumps({"Layers": ["conv1"]}))


def test_with_dynamic_shapes_the_types_of_weights_tell_single_from_half() -> None:
    """There the inspector shows no tensor types."""
    free = ("N/A due to dynamic shapes",) * 2

    def engine(*weights: str | None) -> str:
        named = [{"Weights": {"Type": kind, "Count": 864}} if kind else {} for kind in weights]
        return json.dumps({"Layers": [layer("CaskConvolution", *free, **more) for more in named]})

    assert [len(names) for names in layers_by_precision(engine(*["Float"] * 196))] == [196, 0, 0]
    assert [len(names) for names in layers_by_precision(engine("Half", "Half", "Float", None))] == [1, 2, 1]


def test_layers_whose_type_the_inspector_does_not_show_are_counted_apart() -> None:
    free = ("N/A due to dynamic shapes",) * 2
    none_at_all = {"Weights": {"Type": "Half", "Count": 0}}
    layers = [
        layer("CaskConvolution", *free, Weights={"Type": "Half", "Count": 864}),
        layer("CaskConvolution", *free),
        layer("gemm", "Row major linear FP32", free[0], **none_at_all),
    ]
    assert [len(names) for names in layers_by_precision(json.dumps({"Layers": layers}))] == [0, 1, 2]


# ---- TensorRT-RTX, for real, which builds without a GPU


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny net as ONNX."""
    torch = pytest.importorskip("torch")
    from lineament.engines.export import export
    from lineament.train.model import LandmarkNet, NetSpec, new_card

    if not installed("tensorrt-rtx"):
        pytest.skip("needs tensorrt-rtx: pip install -r requirements-rtx.txt")
    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64), presence=True)).eval()
    path = tmp_path_factory.mktemp("rtx") / "tiny.onnx"
    export(net, replace(new_card(net, "tiny", 1.3), weights_sha256="c" * 64), path)
    return path


def test_an_engine_for_rtx_is_built_without_a_gpu(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.engine"
    report = build(exported, path, "tensorrt-rtx", "runs/tiny.safetensors", progress=False)
    assert (report.n_half, report.n_single) == (18, 2) and report.build_s > 0
    header = read_header(path)
    assert header.card.precision == "fp16" and header.card.built_with["tensorrt-rtx"] == report.key.library_version
    assert header.key == report.key and header.key.gpu == ANY_RTX and header.key.weights_sha256 == "c" * 64
    plans = read_plans(path)
    assert list(plans) == [POINTS_PLAN, CROP_PLAN] and min(map(len, plans.values())) > 100_000


def test_an_engine_is_rebuilt_only_if_something_changed(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.engine"
    build(exported, path, "tensorrt-rtx", progress=False)
    assert build(exported, path, "tensorrt-rtx", progress=False).build_s == 0
    assert build(exported, path, "tensorrt-rtx", batches=(1, 2, 8), progress=False).build_s > 0
    with monkeypatch.context() as later:
        later.setattr(tensorrt_build, "_RECIPE", tensorrt_build._RECIPE + 1)
        assert build(exported, path, "tensorrt-rtx", batches=(1, 2, 8), progress=False).build_s > 0
    path.write_bytes(path.read_bytes()[:-9])
    assert build(exported, path, "tensorrt-rtx", progress=False).build_s > 0


def test_a_build_that_stays_single_is_refused(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as from a flag for half precision that the release no longer has."""
    from lineament.engines.fp16 import _cast_pixels_first

    def unchanged(model: onnx.ModelProto, keep_single: Sequence[str] = ()) -> onnx.ModelProto:
        _cast_pixels_first(model.graph)
        return model

    monkeypatch.setattr(tensorrt_build, "half_precision", unchanged)
    monkeypatch.setattr(tensorrt_build, "precisions_of_layers", lambda model: (18, 2))
    with pytest.raises(LineamentError, match="20 convolutions and matrix products are in single precision, expected 2"):
        build(exported, tmp_path / "slow.engine", "tensorrt-rtx", progress=False)
    assert not (tmp_path / "slow.engine").exists()


def test_an_operator_that_tensorrt_lacks_is_named(exported: Path, tmp_path: Path) -> None:
    path = tint(tmp_path / "odd.onnx", replace(TINT, input_hw=(12, 3)).to_json(), hw=(12, 3))
    model = onnx.load(path)
    light, mean, turned, *_ = model.graph.node[1:]
    mean.CopyFrom(onnx.helper.make_node("Det", light.output, mean.output, name="determinant"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == turned.input[1])
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ones((12, 196), np.float32), weight.name))
    onnx.save(model, path)
    with pytest.raises(LineamentError, match=r"cannot read the graph for .*odd\.engine: .*lacks an operator.*Det"):
        build(path, tmp_path / "odd.engine", "tensorrt-rtx", progress=False)


def test_a_graph_of_one_fixed_batch_is_refused(exported: Path, tmp_path: Path) -> None:
    path = tint(tmp_path / "one.onnx", batch=1)
    with pytest.raises(LineamentError, match="fixed batch size"):
        build(path, tmp_path / "one.engine", "tensorrt-rtx", progress=False)
    with pytest.raises(LineamentError, match="batches are"):
        build(exported, tmp_path / "one.engine", "tensorrt-rtx", batches=(2, 1, 4), progress=False)


def test_a_bar_shows_progress(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(exported, tmp_path / "tiny.engine", "tensorrt-rtx", progress=True)
    assert "tiny.engine" in capsys.readouterr().err


# ---- a real GPU


@pytest.mark.gpu
def test_on_a_gpu_a_captured_graph_copies_the_current_contents_of_memory_at_each_launch() -> None:
    with Cuda() as cuda:
        stream, sent, got = cuda.stream(), cuda.pinned((5,), np.float32), cuda.pinned((5,), np.float32)
        memory = cuda.memory(sent.nbytes)

        def there_and_back() -> None:
            cuda.upload(memory, sent, stream)
            cuda.download(got, memory, stream)

        graph = cuda.captured(stream, there_and_back)
        for value in (1, 2):
            sent[:] = value
            cuda.launch(graph, stream)
            cuda.wait(stream)
            assert (got == value).all()


@pytest.mark.gpu
def test_on_a_gpu_a_failed_allocation_raises_and_smaller_ones_still_work() -> None:
    with Cuda() as cuda:
        with pytest.raises(LineamentError, match="the GPU has no memory left"):
            cuda.memory(2**50)
        assert cuda.memory(64)


@pytest.mark.gpu
def test_on_a_gpu_an_engine_agrees_with_pytorch_on_crops_and_on_frames(astronaut: U8, tmp_path: Path) -> None:
    if not installed("tensorrt"):
        pytest.skip("needs tensorrt: pip install -r requirements-gpu.txt")
    import torch

    from lineament.engines.export import export, run_torch
    from lineament.train.model import LandmarkNet, NetSpec, new_card

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64))).eval()
    with torch.no_grad():
        net.get_parameter("head.linear.weight").mul_(1000)
    card = new_card(net, "tiny", 1.3)
    export(net, card, tmp_path / "tiny.onnx")
    build(tmp_path / "tiny.onnx", tmp_path / "tiny.engine", "tensorrt")
    with TensorRtLandmarker(tmp_path / "tiny.engine") as landmarker:
        for n in (1, 3, 16, 20):
            rgb = real_crops(card, n)
            error = np.linalg.norm(landmarker(rgb).points_unit - run_torch(net, rgb), axis=-1).max()
            assert error * 256 < 0.5
        matrices = matrices_on(astronaut, card, 5, (15, 50))
        wanted = run_torch(net, rgb_crops(astronaut, matrices, (64, 64)))
        found = landmarker.on_frame(astronaut, matrices).points_unit
        assert np.linalg.norm(found - wanted, axis=-1).max() * 256 < 0.5
