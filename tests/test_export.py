"""An exported graph says what PyTorch says, whatever the head and however many crops; no other is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from lineament.engines import export as export_module
from lineament.engines.export import (
    HALF_MAX_ERROR_PX,
    MAX_ERROR_PX,
    export,
    largest_difference_px,
    main,
    real_crops,
    run_onnx,
    run_torch,
)
from lineament.engines.model_file import read_card
from lineament.landmarks.types import LineamentError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lineament.train.heads import HeadName  # noqa: E402 - after the check that it can
from lineament.train.model import LandmarkNet, NetSpec, new_card, save  # noqa: E402

HEADS: tuple[HeadName, ...] = get_args(HeadName)


def net_of(head: HeadName, presence: bool = False) -> LandmarkNet:
    """A small net whose points move with the picture, not so wildly that the last bits of a processor would show."""
    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", head, input_hw=(64, 64), presence=presence)).eval()
    with torch.no_grad():
        for name, weight in net.head.named_parameters():
            if weight.ndim > 1 and "batch" not in name:
                weight.mul_(10)
    return net


@pytest.mark.parametrize("head", HEADS)
def test_a_graph_says_what_pytorch_says_of_any_number_of_crops(head: HeadName, tmp_path: Path) -> None:
    net = net_of(head)
    card = new_card(net, "tiny", 1.3)
    path = tmp_path / "tiny.onnx"
    assert export(net, card, path) <= MAX_ERROR_PX
    for n in (1, 2, 7):
        crops = real_crops(card, n)
        wanted, got = run_torch(net, crops), run_onnx(path.read_bytes(), crops)
        assert got.shape == (n, 98, 2) and largest_difference_px(got, wanted) <= MAX_ERROR_PX
    assert np.ptp(wanted, axis=0).max() * 256 > 2, "points that stand still prove nothing"


def test_the_graph_takes_bytes_and_gives_points_and_whether_a_face_is_there(tmp_path: Path) -> None:
    net = net_of("coords", presence=True)
    export(net, new_card(net, "tiny", 1.3), path := tmp_path / "tiny.onnx")
    graph = onnx.load(path).graph

    def told(ports: Any) -> dict[str, tuple[int, list[int | str]]]:
        return {
            port.name: (
                port.type.tensor_type.elem_type,
                [size.dim_param or size.dim_value for size in port.type.tensor_type.shape.dim],
            )
            for port in ports
        }

    assert told(graph.input) == {"rgb": (onnx.TensorProto.UINT8, ["n", 64, 64, 3])}
    assert told(graph.output) == {
        "points": (onnx.TensorProto.FLOAT, ["n", 98, 2]),
        "confidence": (onnx.TensorProto.FLOAT, ["n"]),
    }


def test_the_card_is_in_the_file_and_says_what_wrote_it(tmp_path: Path) -> None:
    net = net_of("simcc")
    card = replace(new_card(net, "tiny", 1.3), weights_sha256="a" * 64, nme={"a set": 4.2})
    export(net, card, path := tmp_path / "tiny.onnx")
    found = read_card(path)
    assert found.built_with["onnx"] == onnx.__version__
    assert replace(found, built_with=card.built_with) == card


@pytest.mark.parametrize("off", [0.1 / 256, float("nan")])
def test_a_graph_that_differs_is_not_written_and_it_is_said_by_how_much(
    off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = net_of("coords")
    monkeypatch.setattr(export_module, "run_torch", lambda *args: run_torch(*args) + np.float32([off, 0]))
    with pytest.raises(LineamentError, match=r"is (0\.100|nan) px of a 256-px crop away from PyTorch, at most 0\.05"):
        export(net, new_card(net, "tiny", 1.3), tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_a_checkpoint_as_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of("coords")
    save(net, new_card(net, "tiny", 1.3), tmp_path / "best.safetensors")
    arguments = [str(tmp_path / "best.safetensors"), "--out", str(tmp_path / "made" / "b5.onnx")]
    monkeypatch.setattr("sys.argv", ["engines.export", *arguments])
    assert main() == 0 and read_card(tmp_path / "made" / "b5.onnx").name == "tiny"


def test_a_missing_checkpoint_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["engines.export", str(tmp_path / "no.safetensors"), "--out", "b5.onnx"])
    assert main() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "no.safetensors" in said and said.count("\n") == 1


def test_crops_to_prove_on_show_a_face_and_more_of_them_begin_alike() -> None:
    card = new_card(net_of("coords"), "tiny", 1.3)
    crops = real_crops(card, 5)
    assert crops.shape == (5, 64, 64, 3) and crops.dtype == np.uint8
    assert len(np.unique(crops.reshape(5, -1), axis=0)) == 5
    np.testing.assert_array_equal(real_crops(card, 9)[:5], crops)
    # skin is red before it is blue: a swap of channels would show
    assert (crops[:, 16:48, 16:48, 0].mean((1, 2)) > crops[:, 16:48, 16:48, 2].mean((1, 2)) + 10).all()


def test_a_graph_does_not_tell_in_whose_folder_it_was_made(tmp_path: Path) -> None:
    net = net_of("coords")
    export(net, new_card(net, "tiny", 1.3), path := tmp_path / "tiny.onnx")
    assert str(Path(export_module.__file__).parent).encode() not in path.read_bytes()


def test_weights_stored_in_half_make_a_file_of_half_the_size_and_nearly_the_same_points(tmp_path: Path) -> None:
    net = net_of("coords")
    card = new_card(net, "tiny", 1.3)
    export(net, card, full := tmp_path / "full.onnx")
    assert export(net, card, half := tmp_path / "half.onnx", half=True) <= HALF_MAX_ERROR_PX
    assert half.stat().st_size < 0.65 * full.stat().st_size
    crops = real_crops(card, 2)
    assert (
        0 < largest_difference_px(*(run_onnx(path.read_bytes(), crops) for path in (full, half))) <= HALF_MAX_ERROR_PX
    )
