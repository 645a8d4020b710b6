"""What every landmark model does, whatever runs it: one set of properties for all backends.

The model files are the tint, whose points can be worked out; the student and the mesh are held against themselves, face
by face. Those that need a GPU or mediapipe's files are skipped where there are none, and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, U8, Landmarker, LineamentError

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from lineament.engines.export import real_crops
from lineament.engines.onnxruntime_tensorrt import needs
from tests import tint
from tests.fake_tensorrt import engine_file, play_tensorrt


class Case(NamedTuple):
    landmarker: Landmarker
    wanted: Callable[[U8], F32]
    """what it should say of crops"""
    within: float
    """by how much it may be off, unit coordinates"""


def by(device: str, batch: int | str = "N", threads: int | None = None) -> Callable[[Path], Landmarker]:
    return lambda folder: engines.load(str(tint.tint(folder / "tint.onnx", batch=batch)), device, threads)


def by_torch(device: str) -> Callable[[Path], Landmarker]:
    def load(folder: Path) -> Landmarker:
        torch = pytest.importorskip("torch")
        if device == "cuda" and not torch.cuda.is_available():
            pytest.skip("needs a CUDA build of torch")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lineament.train.model.load", lambda path, device: (tint.tint_net().to(device), tint.CARD))
            return engines.load(str(folder / "tint.safetensors"), device)

    return load


def by_onnxruntime_on_a_gpu(device: str, provider: str) -> Callable[[Path], Landmarker]:
    def load(folder: Path) -> Landmarker:
        if provider not in pytest.importorskip("onnxruntime").get_available_providers():
            pytest.skip("needs onnxruntime-gpu in place of onnxruntime")
        if device == "tensorrt":
            trt, said = pytest.importorskip("tensorrt"), needs(pytest.importorskip("onnxruntime"))
            if f"needs TensorRT {trt.__version__.partition('.')[0]}:" not in said:
                pytest.skip(f"has TensorRT {trt.__version__}, and {said}")
        return by(device)(folder)

    return load


def by_tensorrt_on_a_gpu(folder: Path) -> Landmarker:
    from lineament.engines.tensorrt_build import build

    pytest.importorskip("tensorrt")
    build(tint.tint(folder / "tint.onnx"), folder / "tint.engine", "tensorrt", batches=(1, 1, 6), progress=False)
    return engines.load(str(folder / "tint.engine"))


CASES: dict[str, Callable[[Path], Landmarker]] = {
    "openvino": by("openvino"),
    "openvino, batch 1": by("openvino", batch=1),
    "openvino, one thread": by("openvino", threads=1),
    "openvino, throughput": by("openvino-throughput"),
    "onnxruntime": by("onnxruntime"),
    "onnxruntime, batch 1": by("onnxruntime", batch=1),
    "onnxruntime, one thread": by("onnxruntime", threads=1),
    "torch": by_torch("cpu"),
    "student": lambda folder: engines.load("student"),
    "student-fast": lambda folder: engines.load("student-fast"),
    "tensorrt, played by numpy": lambda folder: engines.load(str(engine_file(folder / "tint.engine"))),
}
MESHES: dict[str, Callable[[Path], Landmarker]] = {
    "mesh": lambda folder: engines.load("mesh"),
    "mesh-fast": lambda folder: engines.load("mesh-fast"),
}
ON_GPU: dict[str, Callable[[Path], Landmarker]] = {
    "torch, cuda": by_torch("cuda"),
    "onnxruntime, cuda": by_onnxruntime_on_a_gpu("cuda", "CUDAExecutionProvider"),
    "onnxruntime, tensorrt": by_onnxruntime_on_a_gpu("tensorrt", "TensorrtExecutionProvider"),
    "tensorrt": by_tensorrt_on_a_gpu,
}


def test_the_tint_runs_on_whatever_device_its_crops_are_on() -> None:
    """As it must on a GPU, which the tests of most machines do not see."""
    torch = pytest.importorskip("torch")
    rgb = torch.zeros((2, *tint.CARD.input_hw, 3), dtype=torch.uint8, device="meta")
    points = tint.tint_net().to("meta").points(rgb).points_unit
    assert points.device.type == "meta" and points.shape == (2, 98, 2)


@pytest.fixture(
    scope="module",
    params=[
        *CASES,
        *(pytest.param(name, marks=pytest.mark.mesh) for name in MESHES),
        *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_GPU),
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    name = str(request.param)
    package = name.partition(",")[0]
    if package == "openvino":
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        if name.endswith("played by numpy"):
            play_tensorrt(patch)
        with (CASES | MESHES | ON_GPU)[name](folder) as landmarker:
            wanted = one_by_one(name) if name in engines.MODELS else tint.answer
            # ONNX Runtime lets a GPU round the factors of a matrix product to ten bits
            yield Case(landmarker, wanted, 2e-3 if name in ON_GPU and package == "onnxruntime" else 1e-4)


def one_by_one(model: str) -> Callable[[U8], F32]:
    """What a model says of each crop alone, by a landmarker of its own."""

    def wanted(rgb_NHWC: U8) -> F32:
        with engines.load(model) as alone:
            return np.concatenate([alone(rgb[None]).points_unit for rgb in rgb_NHWC])

    return wanted


def crops(landmarker: Landmarker, n: int) -> U8:
    """(n, H, W, 3) of one face, each cut a little differently."""
    return real_crops(landmarker.card, n)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 17])
def test_any_number_of_crops_gives_the_right_points(case: Case, n: int) -> None:
    rgb_NHWC = crops(case.landmarker, n)
    found = case.landmarker(rgb_NHWC)
    np.testing.assert_allclose(found.points_unit, case.wanted(rgb_NHWC), atol=case.within)
    assert found.points_unit.dtype == found.confidence.dtype == np.float32
    assert found.confidence.shape == (n,) and (found.confidence >= 0).all() and (found.confidence <= 1).all()


def test_no_crops_give_no_points(case: Case) -> None:
    card = case.landmarker.card
    found = case.landmarker(np.empty((0, *card.input_hw, 3), np.uint8))
    assert found.points_unit.shape == (0, len(SCHEMAS[card.schema]), 2) and found.confidence.shape == (0,)
    assert found.points_unit.dtype == found.confidence.dtype == np.float32


def test_what_it_returned_does_not_change_with_the_next_call(case: Case) -> None:
    rgb_NHWC = crops(case.landmarker, 5)
    first = case.landmarker(rgb_NHWC[:2])
    points, confidence = first.points_unit.copy(), first.confidence.copy()
    case.landmarker(rgb_NHWC[2:])
    np.testing.assert_array_equal(first.points_unit, points)
    np.testing.assert_array_equal(first.confidence, confidence)


def test_a_batch_may_be_a_view(case: Case) -> None:
    rgb_NHWC = crops(case.landmarker, 3)
    view = np.ascontiguousarray(rgb_NHWC[..., ::-1])[..., ::-1]
    np.testing.assert_allclose(case.landmarker(view).points_unit, case.wanted(rgb_NHWC), atol=case.within)


def test_its_input_may_be_read_only_and_is_left_alone(case: Case) -> None:
    rgb_NHWC = crops(case.landmarker, 2)
    before = rgb_NHWC.copy()
    rgb_NHWC.flags.writeable = False
    case.landmarker(rgb_NHWC)
    np.testing.assert_array_equal(rgb_NHWC, before)


def test_threads_take_turns(case: Case) -> None:
    rgb_NHWC = crops(case.landmarker, 4)
    wanted = case.wanted(rgb_NHWC)
    with ThreadPoolExecutor(4) as pool:
        for n, found in zip([1, 2, 3, 4] * 5, pool.map(lambda n: case.landmarker(rgb_NHWC[:n]), [1, 2, 3, 4] * 5)):
            np.testing.assert_allclose(found.points_unit, wanted[:n], atol=case.within)


@pytest.mark.parametrize("wrong", ["float", "no batch", "another size", "channels first", "a number"])
def test_a_wrong_input_is_refused_with_what_was_got_and_wanted(case: Case, wrong: str) -> None:
    height, width = case.landmarker.card.input_hw
    array = {
        "float": np.zeros((1, height, width, 3), np.float32),
        "no batch": np.zeros((height, width, 3), np.uint8),
        "another size": np.zeros((1, height, width + 4, 3), np.uint8),
        "channels first": np.zeros((1, 3, height, width), np.uint8),
        "a number": np.zeros((), np.uint8),
    }[wrong]
    with pytest.raises(ValueError, match=rf"\(N, {height}, {width}, 3\) uint8 RGB, got \(") as caught:
        case.landmarker(array)
    assert str(array.dtype) in str(caught.value)


def test_a_closed_one_closes_again_and_says_so_when_called(case: Case) -> None:
    """The last test of this file, for the landmarker is shared by all."""
    rgb_NHWC = crops(case.landmarker, 1)
    case.landmarker.close()
    case.landmarker.close()
    with pytest.raises(LineamentError, match=r"closed.*engines\.load"):
        case.landmarker(rgb_NHWC)
