"""The format of model files: the card in an ONNX file, the interface of its graph, and the base of all backends.

    card = read_card(Path("b5.onnx"))

The graph takes `rgb`, uint8 (N, H, W, 3), and returns `points`, float32 (N, K, 2) in unit crop coordinates, and
optionally `confidence`, (N,), and `visibility`, (N, K). The model card is JSON in the file's metadata under the key
"card". It is read here, without any runtime, so that every backend rejects the same files with the same errors.
Suffixes: N crops, H x W px, K points.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from lineament.landmarks.card import ModelCard, is_crop_scale
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, U8, Landmarks, LineamentError

CARD_KEY = "card"
"""in the file's metadata"""
INPUT, POINTS, CONFIDENCE, VISIBILITY = "rgb", "points", "confidence", "visibility"
"""names of the graph's input and outputs"""
OUTPUTS = (POINTS, CONFIDENCE, VISIBILITY)
"""in the order of landmarks.types.Landmarks; all but the points are optional"""
REMAKE = "export it again from its checkpoint, or import a foreign model with `python -m engines.import_onnx`"

LARGEST_PX = 4096
"""largest side of a crop; a damaged card with more would exhaust memory"""

_GRAPH_FIELD, _METADATA_FIELD = 7, 14
"""field numbers of ONNX's ModelProto"""
_KEY_FIELD, _VALUE_FIELD = 1, 2
"""field numbers of its StringStringEntryProto"""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""protobuf's wire types; ONNX does not use the other two, groups"""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph, as reported by a runtime."""

    name: str
    shape: tuple[int | None, ...]
    """None: dynamic"""
    dtype: str
    """name of the numpy dtype"""

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name!r} ({sizes}) {self.dtype}"


def read_card(path: Path) -> ModelCard:
    """The card of an ONNX file. Raises LineamentError if the file or the card is missing or invalid."""
    text = _metadata(path).get(CARD_KEY)
    if text is None:
        raise LineamentError(f"{path} contains no model card, so the meaning of its points is unknown; {REMAKE}")
    return parse_card(path, text)


def parse_card(path: Path, text: str) -> ModelCard:
    """The card from its JSON in path, a file of any kind. Raises LineamentError if it is invalid."""
    try:
        card = ModelCard.from_json(text)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise LineamentError(f"the model card in {path} is malformed: {error}; {REMAKE}") from None
    if not isinstance(card.schema, str) or card.schema not in SCHEMAS:
        raise LineamentError(f"{path} has schema {card.schema!r}, expected one of {', '.join(SCHEMAS)}; {REMAKE}")
    if not isinstance(card.name, str):
        raise LineamentError(f"the model card in {path} has name {card.name!r}, expected text; {REMAKE}")
    if len(card.input_hw) != 2 or not all(type(side) is int and 0 < side <= LARGEST_PX for side in card.input_hw):
        raise LineamentError(
            f"the model card in {path} has input_hw {card.input_hw!r}, expected height and width in pixels, "
            f"at most {LARGEST_PX}; {REMAKE}"
        )
    if not is_crop_scale(card.crop_scale):
        raise LineamentError(
            f"the model card in {path} has crop_scale {card.crop_scale!r}, expected one or two numbers over 0; {REMAKE}"
        )
    return card


def check_graph(path: Path, card: ModelCard, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Raises LineamentError if the graph does not match this module's interface or its card."""
    height, width = card.input_hw
    wanted = f"one input {INPUT!r} (any or 1, {height}, {width}, 3) uint8, as its card says"
    if len(inputs) != 1 or inputs[0].name != INPUT or inputs[0].dtype != "uint8":
        raise LineamentError(f"{path} takes {_listed(inputs)}, expected {wanted}; {REMAKE}")
    if len(inputs[0].shape) != 4 or not _fits(inputs[0].shape, (1, height, width, 3)):
        raise LineamentError(f"{path} takes {inputs[0]}, expected {wanted}; {REMAKE}")
    known = {output.name: output for output in outputs}
    n_points = len(SCHEMAS[card.schema])
    points = known.get(POINTS)
    if points is None or points.dtype != "float32" or not _fits(points.shape, (1, n_points, 2)):
        raise LineamentError(
            f"{path} returns {_listed(outputs)}, expected {POINTS!r} (any, {n_points}, 2) float32, "
            f"because its schema {card.schema} has {n_points} points; {REMAKE}"
        )
    for name, shape in ((CONFIDENCE, (1,)), (VISIBILITY, (1, n_points))):
        output = known.get(name)
        if output and (output.dtype != "float32" or not _fits(output.shape, shape)):
            sizes = ", ".join(["any", *map(str, shape[1:])])
            raise LineamentError(f"{path} returns {output}, expected {name!r} ({sizes}) float32; {REMAKE}")


class FileLandmarker:
    """Base of the backends, a landmarks.types.Landmarker. Thread-safe; calls run one at a time.

    A backend implements `_run`, which runs a batch, and `_release`, which frees its resources.
    """

    def __init__(self, path: Path, card: ModelCard) -> None:
        self._path = path
        self._card = card
        self._closed = False
        self._lock = threading.Lock()

    @property
    def card(self) -> ModelCard:
        return self._card

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        """rgb_NHWC: (N, H, W, 3) uint8 with H, W of card.input_hw."""
        height, width = self._card.input_hw
        n = len(rgb_NHWC) if rgb_NHWC.ndim else 0
        if rgb_NHWC.dtype != np.uint8 or rgb_NHWC.shape != (n, height, width, 3):
            raise ValueError(
                f"the model {self._card.name} takes crops (N, {height}, {width}, 3) uint8 RGB, "
                f"got {rgb_NHWC.shape} {rgb_NHWC.dtype}; cut them with landmarks.geometry.warp and the model's card"
            )
        with self._lock:
            if self._closed:
                raise LineamentError(
                    f"the landmarker {self._card.name} is closed; make a new one with engines.load({str(self._path)!r})"
                )
            found = self._run(np.ascontiguousarray(rgb_NHWC)) if n else None
        n_points = len(SCHEMAS[self._card.schema])
        if found is None:
            return Landmarks(np.empty((0, n_points, 2), np.float32), np.empty(0, np.float32))
        wanted = ((n, n_points, 2), (n,), (n, n_points))
        if any(output is not None and output.shape != shape for output, shape in zip(found, wanted)):
            shapes = " and ".join(f"{name} {some.shape}" for name, some in zip(OUTPUTS, found) if some is not None)
            raise LineamentError(
                f"{self._path} returned {shapes} for {n} crops, expected ({n}, {n_points}, 2), ({n},) and "
                f"({n}, {n_points}); {REMAKE}"
            )
        return found

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        """N is at least 1, memory is contiguous, calls are serialised. The caller owns the result."""
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Frees the graph. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def landmarks_of(found: Mapping[str, F32]) -> Landmarks:
    """found: a model's OUTPUTS by name; the first is always there."""
    points_unit = found[POINTS]
    confidence = found.get(CONFIDENCE, np.ones(len(points_unit), np.float32))
    return Landmarks(points_unit, confidence, found.get(VISIBILITY))


def _fits(shape: tuple[int | None, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(size in (None, want) for size, want in zip(shape, wanted))


def _listed(ports: Sequence[Port]) -> str:
    return ", ".join(map(str, ports)) or "nothing"


def _metadata(path: Path) -> dict[str, str]:
    """The key-value pairs of an ONNX file. Skips over other fields, so the weights are not read."""
    if not os.path.isfile(path):  # unlike Path.is_file it accepts any name
        raise LineamentError(f"no model file at {path}; check the spelling, or {REMAKE}")
    found: dict[str, str] = {}
    has_graph = False
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise LineamentError(f"{path} is empty (0 bytes); copy it again, or {REMAKE}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for number, start, end in _byte_fields(data):
                    has_graph |= number == _GRAPH_FIELD
                    if number == _METADATA_FIELD:
                        entry = data[start:end]
                        pair = {n: entry[a:b].decode() for n, a, b in _byte_fields(entry)}
                        found[pair.get(_KEY_FIELD, "")] = pair.get(_VALUE_FIELD, "")
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
    except ValueError as error:  # including UnicodeDecodeError
        raise LineamentError(f"{path} is not a valid ONNX file: {error}; copy it again, or {REMAKE}") from None
    if not has_graph:
        raise LineamentError(f"{path} is not an ONNX file: it contains no graph; copy it again, or {REMAKE}")
    return found


def _byte_fields(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of type bytes in a protobuf message.

    Raises ValueError if data is not a complete message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            length, start = _varint(data, at)
            at = start + length
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no protobuf field begins at byte {start}")
        if at > len(data):
            raise ValueError(f"it ends {at - len(data)} bytes too early")
        if kind == _BYTES:
            yield number, start, at


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """A number in seven bits per byte, lowest first, and the offset of the next byte."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"the number at byte {at} does not end")
