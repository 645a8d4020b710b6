"""An engine file gives back what was put in, and says plainly why it will not: damaged, stale, or of another GPU."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineament.engines.engine_file import (
    ANY_RTX,
    MAGIC,
    Gpu,
    PlanKey,
    read_header,
    read_plans,
    refuse_foreign,
    refuse_stale,
    write_engine,
)
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError

CARD = ModelCard(name="b5", schema="wflw98", input_hw=(256, 256), crop_scale=1.3, precision="fp16")
KEY = PlanKey("aa" * 32, "bb" * 32, "tensorrt", "11.4.0", "NVIDIA H200", (9, 0), (1, 1, 16), "fp16")
H200 = Gpu("NVIDIA H200", (9, 0))
PLANS = {"points": b"the plan" * 40, "crop": b"a small one"}


def written(path: Path, key: PlanKey = KEY, card: ModelCard = CARD) -> Path:
    write_engine(path, card, key, "runs/b5/best.safetensors", PLANS)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "new folder" / "b5.engine")
    header = read_header(path)
    assert (header.card, header.key, header.source) == (CARD, KEY, "runs/b5/best.safetensors")
    assert read_plans(path) == PLANS
    assert path.read_bytes().startswith(MAGIC) and [p.name for p in path.parent.iterdir()] == ["b5.engine"]


def test_nodes_in_single_precision_are_listed_and_an_older_file_lists_none(tmp_path: Path) -> None:
    path = tmp_path / "b5.engine"
    write_engine(path, CARD, KEY, "b5", PLANS, ["node_Conv_1", "node_silu"])
    assert read_header(path).in_single == ("node_Conv_1", "node_silu")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[len(MAGIC) + 4 : len(MAGIC) + 12])
    begin = len(MAGIC) + 12
    values = json.loads(data[begin : begin + length])
    for changed, said in (
        ({}, None),
        ({"in_single": "node"}, "expected a list of names"),
        ({"in_single": [1]}, "list"),
    ):
        text = json.dumps({key: value for key, value in values.items() if key != "in_single"} | changed).encode()
        path.write_bytes(data[: begin - 8] + struct.pack("<Q", len(text)) + text + data[begin + length :])
        if said is None:
            assert read_header(path).in_single == () and read_plans(path) == PLANS
        else:
            with pytest.raises(LineamentError, match=said):
                read_header(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "b5.engine").read_bytes()
    cut = tmp_path / "cut.engine"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with pytest.raises(LineamentError, match=r"cut\.engine.*make engine"):
            read_header(cut)


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "b5.engine")
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    with pytest.raises(LineamentError, match=r"damaged.*make engine MODEL=runs/b5/best.safetensors"):
        read_plans(path)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_gives_its_plans_or_a_lineament_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = written(tmp_path_factory.getbasetemp() / "fuzz.engine")
    data = bytearray(path.read_bytes())
    for place, byte in changes:
        data[place % len(data)] = byte
    path.write_bytes(data)
    try:
        assert list(read_plans(path).values()) == list(PLANS.values())
    except LineamentError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no engine file at"), (b"", "not an engine of Lineament"), (b"ftrt" * 30, "bare TensorRT plan")],
    ids=["absent", "empty", "bare plan"],
)
def test_a_file_that_is_not_an_engine_is_refused(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "b5.engine"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LineamentError, match=said):
        read_header(path)


def test_a_later_layout_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "b5.engine")
    data = bytearray(path.read_bytes())
    data[len(MAGIC)] = 9
    path.write_bytes(data)
    with pytest.raises(LineamentError, match=r"layout 9.*reads layout 1"):
        read_header(path)


def test_an_invalid_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"schema 'cat'.*wflw98"):
        read_header(written(tmp_path / "b5.engine", card=replace(CARD, schema="cat")))


def test_an_engine_runs_only_on_the_gpu_and_release_it_was_built_for(tmp_path: Path) -> None:
    path = written(tmp_path / "b5.engine")
    header = read_header(path)
    refuse_foreign(path, header, "11.4.0", H200)
    with pytest.raises(LineamentError, match=r"by tensorrt 11\.4\.0, but 10\.12\.0 is installed.*make engine MODEL="):
        refuse_foreign(path, header, "10.12.0", H200)
    with pytest.raises(LineamentError, match=r"for NVIDIA H200 \(.*9\.0\), but this machine has NVIDIA L4 \(8\.9\)"):
        refuse_foreign(path, header, "11.4.0", Gpu("NVIDIA L4", (8, 9)))


def test_an_rtx_engine_runs_on_the_gpus_that_its_library_supports(tmp_path: Path) -> None:
    key = replace(KEY, library="tensorrt-rtx", gpu=ANY_RTX, compute_capability=(8, 0))
    path = written(tmp_path / "b5.engine", key)
    header = read_header(path)
    for gpu in (Gpu("RTX 3060", (8, 6)), Gpu("L4", (8, 9)), Gpu("RTX 5090", (12, 0)), Gpu("GB10", (12, 1))):
        refuse_foreign(path, header, "11.4.0", gpu)
    for gpu in (Gpu("RTX 2080 Ti", (7, 5)), Gpu("A100", (8, 0)), Gpu("Orin", (8, 7)), H200, Gpu("B200", (10, 0))):
        has = ".".join(map(str, gpu.compute_capability))
        with pytest.raises(LineamentError, match=rf"8\.9 or 12\.x.*, but the {gpu.name} has {has}.*requirements-gpu"):
            refuse_foreign(path, header, "11.4.0", gpu)


def test_an_engine_is_stale_if_the_weights_of_its_model_have_changed(tmp_path: Path) -> None:
    """Where that model is not at hand, or cannot be read, nobody can tell."""
    model = tmp_path / "best.safetensors"
    write_engine(tmp_path / "b5.engine", CARD, KEY, str(model), PLANS)
    header = read_header(tmp_path / "b5.engine")
    refuse_stale(tmp_path / "b5.engine", header)
    for damaged in (b"", b"\x08" + bytes(7), b"\xff" * 400, b"\x02" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"):
        model.write_bytes(damaged)
        refuse_stale(tmp_path / "b5.engine", header)
    model.write_bytes(checkpoint(KEY.weights_sha256))
    refuse_stale(tmp_path / "b5.engine", header)
    model.write_bytes(checkpoint("cc" * 32))
    with pytest.raises(LineamentError, match=r"is stale: .*a{12}, and .*now has c{12}; rebuild.*make engine MODEL="):
        refuse_stale(tmp_path / "b5.engine", header)


def checkpoint(weights_sha256: str) -> bytes:
    """What stands at the beginning of a .safetensors file that training wrote."""
    card = replace(CARD, weights_sha256=weights_sha256).to_json()
    header = json.dumps({"__metadata__": {"card": card, "net": "{}"}}).encode()
    return struct.pack("<Q", len(header)) + header


def test_a_changed_checkpoint_makes_its_engine_stale(tmp_path: Path) -> None:
    """That the layout above is the one that training writes."""
    torch = pytest.importorskip("torch")
    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64)))
    save(net, new_card(net, "tiny", 1.3), model := tmp_path / "best.safetensors")
    write_engine(tmp_path / "b5.engine", CARD, KEY, str(model), PLANS)
    with pytest.raises(LineamentError, match="is stale"):
        refuse_stale(tmp_path / "b5.engine", read_header(tmp_path / "b5.engine"))


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LineamentError, match="cannot write"):
        written(tmp_path / "file" / "b5.engine")
