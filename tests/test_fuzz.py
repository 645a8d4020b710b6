"""Damaged and hostile files: lists, cards, models, pictures and clips are read, or refused in one way. Nothing crashes.

    LINEAMENT_FUZZ=50 pytest tests/test_fuzz.py        # 50 times the examples, and new ones
    python -m tests.test_fuzz clips 0 2000 folder      # what a test runs in a process of its own, for longer

What a native library parses (graphs, pictures, clips) is read in a process of its own with a limit on its memory, so
that a crash, a hang and a greed for memory are all seen, with the number of the example.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import register_heif_opener

from lineament import engines
from lineament.engines.engine_file import MAGIC, read_header, read_plans
from lineament.engines.model_file import parse_card
from lineament.landmarks.card import ModelCard, is_crop_scale
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import LineamentError
from lineament.stream.read.image import IMAGE_SUFFIXES, read_image
from lineament.stream.read.open import open_source
from lineament.stream.run.cameras import read_cameras
from lineament.train import suspects
from lineament.train.data import check, read
from lineament.train.sample import Problem
from tests.labelled import mean_face

ROOT = Path(__file__).resolve().parent.parent
TIMES = int(os.environ.get("LINEAMENT_FUZZ", "1"))
"""how many times the usual number of examples to try"""
WAIT_S = 60.0
"""a generous bound: whatever takes longer hangs"""
MEMORY = 6 << 30
"""bytes that a process of its own may take above what it has when all is imported"""

tried = settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32)


def mutated(whole: bytes, seed: int) -> bytes:
    """whole with one to six faults: bits, bytes, numbers, pieces cut out, doubled, moved, emptied, or the end gone."""
    rng = random.Random(seed)
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        # most of what decides stands at the beginning or the end
        span = rng.choice((16, 64, 256, len(data) + 1))
        at = min(rng.randrange(span), len(data)) if rng.random() < 0.7 else max(0, len(data) - rng.randrange(span))
        size = rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(9):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                odd = rng.choice((0, 1, 0x7F, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 60, (1 << 64) - 1))
                kind = rng.choice(("<Q", ">Q", "<I", ">I", "<H", ">H"))
                value = odd & (1 << 8 * struct.calcsize(kind)) - 1
                data[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
            case 3:
                del data[at:]
            case 4:
                del data[at : at + size]
            case 5:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 6:
                other = rng.randrange(len(data) + 1)
                data[at : at + size] = data[other : other + size]
            case 7:
                data[at : at + size] = bytes(size)
            case _:
                data[at:at] = rng.choice(TOKENS)
    return bytes(data)


TOKENS = (
    b"\0", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"'", b",", b"NaN", b"-Infinity", b"1e999",
    b"9" * 5000, b"0x" + b"f" * 5000, b"[" * 3000, b"{" * 3000, b"null", b"true", b"-1", b"1:" * 400 + b"1.5",
    b"&a [*a]", b"<<: *a", b"!!python/object/apply:os.system [true]", b"\\ud800", b"\\u0000", b"\xe2\x80\xa8", b"}",
)  # fmt: skip
"""what readers of text stumble over"""

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63, 2**64, 1 << 60, float("nan"), math.inf, -math.inf, 1e308, -0.0])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["", "\0", "x" * 5000, "\ud800", "../..", "/", ".", "~", "wflw98", "1", "é\u2028\r\n", "[31m\x1b"]
    )
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner), max_leaves=8
)


def changes(fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Other values for some of the fields, and perhaps a field that nobody knows."""
    return st.dictionaries(st.sampled_from([*fields, "other"]), anything, min_size=1, max_size=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for a whole module: examples write over each other's files."""
    folder = tmp_path_factory.mktemp("fuzz")
    cv2.imwrite(str(folder / "a.png"), np.full((100, 100, 3), 128, np.uint8))
    return folder


# ---- lists of faces


def lists(folder: Path) -> dict[str, tuple[Path, bytes]]:
    """By kind: where a list of that kind stands, and a good one."""
    points = mean_face()
    flat = [f"{value:.2f}" for value in points.ravel()]
    row = {
        "image": "a.png",
        "points": points.tolist(),
        "box_xyxy": [1, 2, 80, 90],
        "attributes": ["pose"],
        "weight": 0.5,
    }
    header = ",".join(["image", *(f"{axis}{i}" for i in range(98) for axis in "xy"), "attributes", "weight"])
    found = {
        "jsonl": (folder / "l.jsonl", f"{json.dumps(row)}\n{json.dumps({**row, 'points': None})}\n"),
        "csv": (folder / "l.csv", f"{header}\n" + ",".join(["a.png", *flat, "pose blur", "0.5\n"]) * 2),
        "pts": (
            folder / "pts" / "a.pts",
            "version: 1\nn_points: 98\n{\n" + "\n".join(f"{x:.2f} {y:.2f}" for x, y in points) + "\n}\n",
        ),
        "wflw": (
            folder / "wflw/WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt",
            " ".join([*flat, "10 20 30 40 0 1 0 0 0 0 a.png\n"]) * 2,
        ),
    }
    (folder / "wflw/WFLW_images").mkdir(parents=True, exist_ok=True)
    for path, _ in found.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    return {kind: (path, text.encode()) for kind, (path, text) in found.items()}


def roots(folder: Path) -> dict[str, Path]:
    return {
        "jsonl": folder / "l.jsonl", "csv": folder / "l.csv", "pts": folder / "pts", "wflw": folder / "wflw"
    }  # fmt: skip


def read_list(root: Path) -> None:
    """Reads as training does and as the check does; what they give can be trained on."""
    problems: list[Problem] = []
    for sample in read(root, "train", problems=problems):
        faceless = np.isnan(sample.points).all()
        assert sample.points.shape == (98, 2) and (faceless or np.isfinite(sample.points).all())
        assert np.isfinite(sample.rect_xyxy).all() and math.isfinite(sample.weight) and sample.weight >= 0
    for problem in problems:
        assert "\n" not in str(problem)
    if problems:
        with pytest.raises(LineamentError):
            read(root, "train")
    check(root, "train")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "pts", "wflw"])
@tried
@given(seed=seeds)
def test_a_damaged_list_gives_faces_and_names_bad_rows(kind: str, folder: Path, seed: int) -> None:
    path, whole = lists(folder)[kind]
    path.write_bytes(mutated(whole, seed))
    with suppress(LineamentError):
        read_list(roots(folder)[kind])


@tried
@given(changed=changes(["image", "points", "box_xyxy", "attributes", "weight"]))
def test_a_row_of_json_may_hold_anything(folder: Path, changed: dict[str, Any]) -> None:
    path, whole = lists(folder)["jsonl"]
    path.write_text(json.dumps({**json.loads(whole.split(b"\n")[0]), **changed}) + "\n")
    with suppress(LineamentError):
        read_list(path)


@tried
@given(changed=st.dictionaries(st.sampled_from([0, 1, 2, 196, 197, 198]), st.text(max_size=8), min_size=1))
def test_a_row_of_csv_may_hold_anything(folder: Path, changed: dict[int, str]) -> None:
    path, whole = lists(folder)["csv"]
    header, row = whole.decode().split("\n")[:2]
    cells = [changed.get(i, cell) for i, cell in enumerate(row.split(","))]
    path.write_bytes(f"{header}\n{','.join(cells)}\n".encode("utf-8", "surrogatepass"))
    with suppress(LineamentError):
        read_list(path)


@tried
@given(seed=seeds)
def test_a_damaged_list_of_suspects_is_read_or_refused(folder: Path, seed: int) -> None:
    pytest.importorskip("torch")
    from lineament.train import suspects

    path = folder / "suspects.csv"
    path.write_bytes(mutated(b"image,face,score,weight,reasons\na.png,0,9.1,0.25,far; crossed\nb.png,1,3,1,x\n", seed))
    with suppress(LineamentError):
        assert all(0 <= weight <= 1 for weight in suspects._read(path).values())


# ---- lists of cameras

CAMERAS = b"""# a comment
cameras:
  - name: door
    source: rtsp://viewer:${HOME}@10.0.0.5/live
    out: [door.mp4, door.jsonl]
  - {name: yard, source: 0, out: yard.jsonl}
"""


def read_camera_list(path: Path) -> None:
    try:
        cameras = read_cameras(path)
    except LineamentError as error:
        assert "\n" not in str(error)
        return
    for camera in cameras:
        assert all(Path(output).is_relative_to(path.parent.resolve()) for output in camera.outputs)
        open_source(camera.spec)


@tried
@given(seed=seeds)
def test_a_damaged_list_of_cameras_is_read_or_refused(folder: Path, seed: int) -> None:
    path = folder / "cameras.yaml"
    path.write_bytes(mutated(CAMERAS, seed))
    read_camera_list(path)


@tried
@given(changed=changes(["name", "source", "out"]))
@example({"source": "\ud800"})
@example({"source": "http://[::/x"})
@example({"source": "file://[x"})
@example({"out": "\ud800.mp4"})
def test_a_camera_may_hold_anything(folder: Path, changed: dict[str, Any]) -> None:
    path = folder / "cameras.yaml"
    path.write_text(json.dumps({"cameras": [{"name": "a", "source": "b", "out": "c.mp4", **changed}]}))
    read_camera_list(path)


def merged(depth: int) -> str:
    """Each line holds the one before ten times: depth 10 would take the memory of a large machine."""
    inner = "{cameras: [{name: a, source: b}]}"
    lines = [f"x0: &x0 {inner}"]
    lines += [f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}" for i in range(1, depth)]
    return "\n".join(lines)


def laughs(depth: int) -> str:
    return "\n".join(
        [
            "a0: &a0 [name, source]",
            *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)),
            f"cameras: [{{name: *a{depth - 1}, source: *a{depth - 1}}}]",
        ]
    )


@pytest.mark.parametrize(
    "text",
    [
        merged(12),
        laughs(12),
        "cameras: &a [*a]",
        "cameras: [{name: a, source: b, out: &a [*a]}]",
        "cameras: [{name: a, source: 0x" + "f" * 5000 + "}]",
        "cameras: [{0x" + "f" * 5000 + ": a}]",
        "cameras: " + ":".join(["1"] * 400) + ".5",
        "cameras: 0001-01-01 00:00:00 +23:59",
        "cameras: 2001-13-45",
        "cameras: [{name: a, name: b, source: c}]",
        "{[a]: b}",
        "? {a: b}\n: c",
        "cameras: !!binary é",
        "cameras: !!int ''",
        "cameras: !!float []",
        "cameras: !!timestamp x",
        "cameras: !!bool x",
        "cameras: !!set {a, b}",
        "cameras: !!omap [a]",
        "cameras: !<tag:yaml.org,2002:python/object/new:subprocess.Popen> [[true]]",
        "[" * 20_000,
        "a: " * 5_000,
        "- " * 5_000,
        "cameras: [{name: a, source: b, out: loop/c.mp4}]",
        "%YAML 9.9\n---\ncameras: []",
        "--- a\n--- b",
    ],
    ids=lambda text: text[:40],
)
@pytest.mark.timeout(60)
def test_yaml_that_is_meant_to_harm_is_refused(folder: Path, text: str) -> None:
    with suppress(FileExistsError):
        (folder / "loop").symlink_to("loop")
    (folder / "cameras.yaml").write_text(text)
    with pytest.raises(LineamentError):
        read_cameras(folder / "cameras.yaml")


# ---- cards and headers of models

CARD = ModelCard(name="tint", schema="wflw98", input_hw=(12, 16), crop_scale=1.3, nme={"a": 5.0}, built_with={"b": "1"})
KEY = {
    "weights_sha256": "a", "onnx_sha256": "b", "library": "tensorrt", "library_version": "11.4.0", "gpu": "NVIDIA H200",
    "compute_capability": [9, 0], "batches": [1, 1, 16], "precision": "fp16",
}  # fmt: skip
PLAN = b"the plan" * 40


def good_header() -> dict[str, Any]:
    import hashlib

    listed = {"name": "points", "bytes": len(PLAN), "sha256": hashlib.sha256(PLAN).hexdigest()}
    return {"card": asdict(CARD), "key": KEY, "source": "", "plans": [listed]}


def engine_of(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<IQ", 1, len(text) if length is None else length) + text + PLAN


def check_card(card: ModelCard) -> None:
    """It is what its class says, so that nobody who uses it needs to look."""
    assert isinstance(card.name, str) and card.schema in SCHEMAS and is_crop_scale(card.crop_scale)
    assert len(card.input_hw) == 2 and all(type(side) is int and 0 < side <= 4096 for side in card.input_hw)
    for three in (card.mean, card.std):
        assert len(three) == 3 and all(type(number) in (int, float) and math.isfinite(number) for number in three)
    assert all(isinstance(text, str) for text in (card.head, card.precision, card.weights_sha256))
    assert all(isinstance(k, str) and isinstance(v, int | float) for k, v in card.nme.items())
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in card.built_with.items())


@tried
@given(changed=changes(list(asdict(CARD))))
@example({"mean": [0.1, 0.2]})
@example({"weights_sha256": 7})
@example({"nme": {"a": "b"}})
@example({"crop_scale": 10**400})
@example({"input_hw": [10**9, 10**9]})
def test_a_card_is_what_it_promises_or_is_refused(changed: dict[str, Any]) -> None:
    with suppress(LineamentError):
        check_card(parse_card(Path("a.onnx"), json.dumps({**asdict(CARD), **changed})))


def read_engine(path: Path) -> None:
    header = read_header(path)
    check_card(header.card)
    key = header.key
    assert all(isinstance(text, str) for text in (key.weights_sha256, key.onnx_sha256, key.gpu, key.precision))
    assert key.library in ("tensorrt", "tensorrt-rtx") and 0 < key.batches[0] <= key.batches[1] <= key.batches[2]
    assert b"".join(read_plans(path).values()) == PLAN
    with suppress(LineamentError):
        engines.load(str(path))


@tried
@given(seed=seeds)
def test_a_damaged_engine_is_read_or_refused(folder: Path, seed: int) -> None:
    path = folder / "a.engine"
    path.write_bytes(mutated(engine_of(good_header()), seed))
    with suppress(LineamentError):
        read_engine(path)


@tried
@given(
    changed=st.fixed_dictionaries(
        {},
        optional={
            "card": anything,
            "key": changes(list(KEY)).map(lambda some: {**KEY, **some}) | anything,
            "source": anything,
            "plans": st.lists(changes(["name", "bytes", "sha256"])) | anything,
        },
    ),
    length=st.none() | st.sampled_from([0, 1 << 60, (1 << 64) - 1]),
)
@example({"plans": [{"name": "points", "bytes": math.inf, "sha256": ""}]}, None)
@example({"key": {**KEY, "library": "cat"}}, None)
@example({"key": {**KEY, "batches": [0, -1, 10**9]}}, None)
@example({"plans": []}, None)
def test_the_header_of_an_engine_may_hold_anything(folder: Path, changed: dict[str, Any], length: int | None) -> None:
    path = folder / "a.engine"
    path.write_bytes(engine_of({**good_header(), **changed}, length))
    with suppress(LineamentError):
        read_engine(path)


def safetensors_of(header: Any, length: int | None = None, tensors: bytes = b"") -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


NET = {
    "backbone": "test_efficientnet", "head": "coords", "schema": "wflw98", "input_hw": [64, 64], "stacks": 0,
    "presence": False, "drop_path": 0.0,
}  # fmt: skip


@settings(tried, max_examples=60 * TIMES)
@given(net=changes(list(NET)), card=changes(list(asdict(CARD))) | st.just({}))
@example({"stacks": 10**9, "head": "heatmap"}, {})
@example({"head": "cat"}, {})
@example({"input_hw": [64.5, 64]}, {})
@example({"input_hw": [10**9, 10**9]}, {})
@example({"drop_path": 7.0}, {})
@example({}, {"weights_sha256": 7})
@example({}, {"input_hw": [64, 96]})
def test_the_header_of_a_checkpoint_may_hold_anything(folder: Path, net: dict[str, Any], card: dict[str, Any]) -> None:
    pytest.importorskip("torch")
    path = folder / "a.safetensors"
    texts = {"net": json.dumps({**NET, **net}), "card": json.dumps({**asdict(CARD), "input_hw": [64, 64], **card})}
    path.write_bytes(safetensors_of({"__metadata__": texts}))
    with pytest.raises(LineamentError):
        engines.load(str(path))


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of("{}", 1 << 60),
        safetensors_of("{}", 0),
        safetensors_of("[" * 100_000),
        safetensors_of({"__metadata__": {"net": "[" * 100_000, "card": "{}"}}),
        safetensors_of({"__metadata__": {"net": "[]", "card": "{}"}}),
        safetensors_of({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}, "__metadata__": {
            "net": json.dumps(NET), "card": json.dumps({**asdict(CARD), "input_hw": [64, 64]})}}, None, bytes(4)),
        safetensors_of({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 4]}}, None, bytes(4)),
    ],
    ids=["header of 2**60", "header of 0", "deep", "deep net", "net a list", "bfloat16", "shape of 2**64"],
)  # fmt: skip
def test_a_checkpoint_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    pytest.importorskip("torch")
    (folder / "a.safetensors").write_bytes(content)
    with pytest.raises(LineamentError):
        engines.load(str(folder / "a.safetensors"))


# ---- what is no file

READERS: dict[str, Callable[[Path], object]] = {
    ".png": read_image,
    ".jpg": lambda path: list(iter(open_source(str(path)).__enter__().read, None)),
    ".mp4": lambda path: list(iter(open_source(str(path)).__enter__().read, None)),
    ".yaml": read_cameras,
    ".onnx": lambda path: engines.load(str(path)),
    ".engine": lambda path: engines.load(str(path)),
    ".safetensors": lambda path: engines.load(str(path)),
    ".jsonl": lambda path: read(path, "train"),
    ".csv": lambda path: read(path, "train"),
    ".suspects": lambda path: suspects._read(path),
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.timeout(60)
def test_what_is_no_file_is_an_error_and_not_a_hang(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"fifo{suffix}")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    (tmp_path / f"empty{suffix}").write_bytes(b"")
    (tmp_path / f"locked{suffix}").write_bytes(b"\0" * 100)
    (tmp_path / f"locked{suffix}").chmod(0)
    names = [
        "folder",
        "fifo",
        "loop",
        "zero",
        "empty",
        "locked",
        "x" * 5000,
        "zero\0byte",
        "\ud800",
        "gone/a",
        "folder/a",
    ]
    for name in names:
        # a list may be empty, and root may read what is locked
        fails = suppress(LineamentError) if name in ("empty", "locked") else pytest.raises(LineamentError)
        with fails:
            READERS[suffix](tmp_path / f"{name}{suffix}")


@pytest.mark.timeout(60)
def test_a_folder_of_points_that_are_no_files_is_no_hang(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pts")
    (tmp_path / "b.pts").mkdir()
    with pytest.raises(LineamentError):
        read_list(tmp_path)


# ---- what native libraries parse, in a process of its own


def pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """A name and a good picture of every kind and depth."""
    rng = np.random.default_rng(0)
    bgr = cv2.resize(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8), (40, 30))
    for suffix in sorted(IMAGE_SUFFIXES):
        for number, array in enumerate(
            (bgr, bgr[..., 0], cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA), bgr.astype("u2") * 257)
        ):
            with suppress(cv2.error):
                good, data = cv2.imencode(suffix, array)
                if good:
                    yield f"{number}{suffix}", data.tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.fromarray(np.ascontiguousarray(bgr[..., ::-1]))
    for name, options in {
        "exif.jpg": {"exif": exif}, "progressive.jpg": {"progressive": True}, "cmyk.jpg": {}, "palette.png": {},
        "lossless.webp": {"lossless": True}, "lzw.tif": {"compression": "tiff_lzw"},
        "jpeg.tif": {"compression": "jpeg"}, "interlaced.gif": {}, "palette.bmp": {},
    }.items():  # fmt: skip
        mode = {"cmyk": "CMYK", "palette": "P"}.get(name.split(".")[0], "RGB")
        picture.convert(mode).save(folder / name, **options)  # type: ignore[arg-type]
        yield name, (folder / name).read_bytes()
    register_heif_opener()
    later = [picture.transpose(Image.Transpose.ROTATE_180), picture.convert("L").convert("RGB")]
    for name, options in {
        "one.heic": {}, "several.heic": {"save_all": True, "append_images": later}, "tiled.heic": {"tile_size": 16},
        "one.avif": {}, "moving.avif": {"save_all": True, "append_images": later, "duration": 50},
        "moving.webp": {"save_all": True, "append_images": later, "duration": 50},
        "moving.png": {"save_all": True, "append_images": later, "duration": 50},
        "moving.gif": {"save_all": True, "append_images": later, "duration": 50},
        "pages.tif": {"save_all": True, "append_images": later, "compression": "tiff_lzw"},
    }.items():  # fmt: skip
        picture.save(folder / name, **options)  # type: ignore[arg-type]
        yield name, (folder / name).read_bytes()
    for name in ("light.hdr", "float.tif"):
        yield name, cv2.imencode(Path(name).suffix, bgr.astype(np.float32) / 255)[1].tobytes()


def try_picture(path: Path) -> None:
    """As one picture, and as a source of all its frames."""
    with suppress(LineamentError):
        bgr = read_image(path)
        assert bgr.ndim == 3 and bgr.dtype == np.uint8 and bgr.shape[2] == 3
    with suppress(LineamentError), open_source(str(path)) as source:
        while source.read() is not None:
            pass


def clips(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name, codec, pix_fmt in (
        ("a.mp4", "libx264", "yuv420p"), ("b.mkv", "libx264", "yuv420p"), ("c.avi", "mpeg4", "yuv420p"),
        ("d.ts", "libx264", "yuv420p"), ("e.gif", "gif", "rgb8"), ("f.webm", "libvpx", "yuv420p"),
        ("g.mov", "mjpeg", "yuvj420p"), ("h.mp4", "libx265", "yuv420p10le"), ("i.mkv", "ffv1", "gbrp"),
        ("j.mov", "png", "rgba"), ("k.flv", "libx264", "yuv420p"),
    ):  # fmt: skip
        with suppress(av.error.FFmpegError, ValueError), av.open(str(folder / name), "w") as container:
            stream = container.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
            for value in range(8):
                bgr = np.full((48, 64, 3), value * 30, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(bgr, format="bgr24")))
            container.mux(stream.encode())
        if (folder / name).is_file() and (folder / name).stat().st_size:
            yield name, (folder / name).read_bytes()
    yield "m.ffconcat", b"ffconcat version 1.0\nfile d.ts\nduration 1.0\n"


def try_clip(path: Path) -> None:
    last_s, frames = -1.0, 0
    with suppress(LineamentError), open_source(str(path)) as source:
        while (frame := source.read()) is not None and frames < 200:
            assert frame.index == frames and frame.time_s > last_s and frame.bgr.ndim == 3
            last_s, frames = frame.time_s, frames + 1


def graphs(folder: Path) -> Iterator[tuple[str, bytes]]:
    from tests.tint import CARD as TINT
    from tests.tint import tint

    yield "a.onnx", tint(folder / "a.onnx", judges=True).read_bytes()
    yield "b.onnx", tint(folder / "b.onnx", TINT.to_json(), batch=1).read_bytes()


def checkpoints(folder: Path) -> Iterator[tuple[str, bytes]]:
    import torch

    from lineament.train.model import LandmarkNet, NetSpec, new_card, save

    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=(64, 64), presence=True)).eval()
    save(net, new_card(net, "tiny", 1.3), folder / "a.safetensors")
    yield "a.safetensors", (folder / "a.safetensors").read_bytes()


def try_model(path: Path) -> None:
    """Loads it by every runtime, and what loads is run."""
    for device in ("openvino", "onnxruntime") if path.suffix == ".onnx" else ("cpu",):
        with suppress(LineamentError), engines.load(str(path), device, threads=1) as landmarker:
            check_card(landmarker.card)
            crop = np.zeros((2, *landmarker.card.input_hw, 3), np.uint8)
            with suppress(LineamentError):
                assert landmarker(crop).points_unit.shape == (2, len(SCHEMAS[landmarker.card.schema]), 2)


KINDS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, bytes]]], Callable[[Path], None]]] = {
    "pictures": (pictures, try_picture),
    "clips": (clips, try_clip),
    "graphs": (graphs, try_model),
    "checkpoints": (checkpoints, try_model),
}


def main(kind: str, first: int, count: int, folder: Path) -> None:
    """Tries the examples of one kind one after the other; the number of the one under way stands in `at`."""
    logging.disable(logging.CRITICAL)
    made, attempt = KINDS[kind]
    wholes = list(made(folder))
    for name, whole in wholes:  # and imports all there is to import
        (folder / name).write_bytes(whole)
        attempt(folder / name)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, resource.RLIM_INFINITY))
    for seed in range(first, first + count):
        name, whole = wholes[seed % len(wholes)]
        path = folder / f"fuzz-{name}"
        (folder / "at").write_text(f"{seed} {name}")
        path.write_bytes(mutated(whole, seed))
        attempt(path)
    print("all tried")


def test_a_checkpoint_whose_card_is_of_another_net_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "a.safetensors"
    ((_, whole),) = checkpoints(tmp_path)
    header = json.loads(whole[8 : 8 + struct.unpack("<Q", whole[:8])[0]])["__metadata__"]
    card = json.loads(header["card"])
    for changed in ({"input_hw": [64, 96]}, {"schema": "ibug68"}, {"crop_scale": -1.0}, {"name": 7}):
        save_file(load_file(path), tmp_path / "b.safetensors", {**header, "card": json.dumps({**card, **changed})})
        with pytest.raises(LineamentError):
            engines.load(str(tmp_path / "b.safetensors"), "cpu")


def test_a_graph_that_fails_only_when_it_runs_is_an_error_of_ours(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "a.onnx"
    (tmp_path / "made").mkdir()
    path.write_bytes(dict(graphs(tmp_path / "made"))["a.onnx"])
    model = onnx.load(path)
    (which,) = (tensor for tensor in model.graph.initializer if tensor.name == "green")
    which.CopyFrom(onnx.numpy_helper.from_array(np.int64(3191794345), "green"))
    onnx.save(model, path)
    with (
        pytest.raises(LineamentError, match=r"ONNX Runtime cannot run .*out of data bounds"),
        engines.load(str(path), "onnxruntime") as landmarker,
    ):
        landmarker(np.zeros((1, 12, 16, 3), np.uint8))


@pytest.mark.parametrize(("kind", "count"), [("pictures", 500), ("clips", 250), ("graphs", 60), ("checkpoints", 40)])
def test_no_damaged_file_crashes_hangs_or_eats_the_memory(kind: str, count: int, tmp_path: Path) -> None:
    if kind in ("graphs", "checkpoints"):
        pytest.importorskip("onnx" if kind == "graphs" else "torch")
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_fuzz", kind, "0", str(count * TIMES), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=WAIT_S + 3 * count * (TIMES - 1),
        check=False,
    )
    at = (tmp_path / "at").read_text() if (tmp_path / "at").is_file() else "nothing"
    assert "all tried" in done.stdout, f"ended with {done.returncode} at {at}: {done.stderr[-3000:]}"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
