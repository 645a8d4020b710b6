"""The .engine file format: the model card and the build key, followed by TensorRT's plans.

    header = read_header(Path("b5.engine"))
    plans = read_plans(Path("b5.engine"))

    10 bytes      "LINEAMENT" and a zero byte
    4 bytes       version of this layout; all numbers are little-endian
    8 bytes       length of the JSON
    JSON          {"card", "key", "source", "plans": [{"name", "bytes", "sha256"}, ...], "in_single": [...]}
    plans         concatenated

A plan runs only on the kind of GPU and with the release of TensorRT it was built for, and fails elsewhere with an
obscure error or none. The key is checked first. Reading a file needs no runtime. Raises LineamentError.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lineament.engines.driver import install_gpu
from lineament.engines.model_file import parse_card, read_card
from lineament.landmarks.card import ModelCard
from lineament.landmarks.files import replaced
from lineament.landmarks.types import LineamentError

MAGIC = b"LINEAMENT\0"
VERSION = 1
POINTS_PLAN, CROP_PLAN = "points", "crop"
"""names of the plans: crops to points, and frame to crops"""
LibraryName = Literal["tensorrt", "tensorrt-rtx"]
ANY_RTX = "any RTX GPU"
"""gpu of a key whose plan is compiled for the GPU at its first run"""
RTX_CAPABILITY = (8, 0)
"""lowest target of TensorRT-RTX by default: Ampere"""
RTX_RUNS_ON = "RTX GPUs of compute capability 8.6, 8.9 or 12.x (RTX 30, 40, 50 and equivalents)"
"""the ones it supports; not the data-centre GPUs A100 (8.0), H100 (9.0) and B200 (10.0)"""

_NUMBERS = struct.Struct("<IQ")
_MAX_JSON = 1 << 20
MOST_CROPS = 4096
"""per call: an engine allocates memory for all"""


@dataclass(frozen=True, slots=True)
class PlanKey:
    """Everything a plan depends on: builds with equal keys are the same, a plan with another is stale or foreign."""

    weights_sha256: str
    """of the checkpoint"""
    onnx_sha256: str
    """of the graphs passed to TensorRT and of how it builds them; it changes with the exporter"""
    library: LibraryName
    library_version: str
    gpu: str
    """its name, or ANY_RTX"""
    compute_capability: tuple[int, int]
    """of that GPU; the lowest for ANY_RTX"""
    batches: tuple[int, int, int]
    """fewest, usual and most crops per call"""
    precision: str


@dataclass(frozen=True, slots=True)
class PlanHeader:
    card: ModelCard
    key: PlanKey
    source: str
    """the model it was built from, as passed to `make engine`"""
    plans: tuple[tuple[str, int, str], ...]
    """name, bytes and SHA-256 of each"""
    in_single: tuple[str, ...] = ()
    """nodes in single precision, because the library has no half-precision kernel for them"""

    @property
    def rebuild(self) -> str:
        return f"rebuild it with `make engine{f' MODEL={self.source}' * bool(self.source)}`"


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU of this machine."""

    name: str
    compute_capability: tuple[int, int]


def runs_rtx(gpu: Gpu) -> bool:
    """Whether a TensorRT-RTX plan runs on it."""
    return gpu.compute_capability in ((8, 6), (8, 9)) or gpu.compute_capability[0] == 12


def write_engine(
    path: Path, card: ModelCard, key: PlanKey, source: str, plans: Mapping[str, bytes], in_single: Sequence[str] = ()
) -> None:
    """Writes path atomically."""
    listed = [
        {"name": name, "bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()} for name, plan in plans.items()
    ]
    header = {
        "card": asdict(card),
        "key": asdict(key),
        "source": source,
        "plans": listed,
        "in_single": list(in_single),
    }
    text = json.dumps(header, indent=1).encode()
    try:
        with replaced(path) as part, part.open("wb") as file:
            file.write(MAGIC + _NUMBERS.pack(VERSION, len(text)) + text)
            for plan in plans.values():
                file.write(plan)
    except OSError as error:
        raise LineamentError(f"cannot write {path}: {error.strerror or error}; check the path and the disk") from None


def leave_out_cutter(path: Path) -> None:
    """Writes path again without its CROP_PLAN: its crops are then cut on the CPU."""
    header, plans = read_header(path), read_plans(path)
    write_engine(path, header.card, header.key, header.source, {POINTS_PLAN: plans[POINTS_PLAN]}, header.in_single)


def read_header(path: Path) -> PlanHeader:
    """What stands before the plans; a file that is too short for them is refused here already."""
    return _read(path)[0]


def read_plans(path: Path) -> dict[str, bytes]:
    """The plans by name, after a check of their hashes."""
    header, begin = _read(path)
    found = {}
    with path.open("rb") as file:
        file.seek(begin)
        for name, length, sha256 in header.plans:
            found[name] = file.read(length)
            if hashlib.sha256(found[name]).hexdigest() != sha256:
                raise LineamentError(f"{path} is damaged: the hash of its plan does not match; {header.rebuild}")
    return found


def refuse_foreign(path: Path, header: PlanHeader, library_version: str, gpu: Gpu) -> None:
    """Raises LineamentError unless the plan was built for this release of its library and for this GPU."""
    key = header.key
    if key.library_version != library_version:
        raise LineamentError(
            f"{path} was built by {key.library} {key.library_version}, but {library_version} is installed, "
            f"which cannot run it; {header.rebuild}"
        )
    wanted = ".".join(map(str, key.compute_capability))
    got = ".".join(map(str, gpu.compute_capability))
    if key.gpu == ANY_RTX:
        if not runs_rtx(gpu):
            raise LineamentError(
                f"{path} runs on {RTX_RUNS_ON}, but the {gpu.name} has {got}; "
                f"install tensorrt ({install_gpu()}) and build an engine for this GPU with `make engine`"
            )
    elif (key.gpu, key.compute_capability) != (gpu.name, gpu.compute_capability):
        raise LineamentError(
            f"{path} was built for {key.gpu} (compute capability {wanted}), but this machine has {gpu.name} ({got}); "
            f"{header.rebuild}"
        )


def refuse_stale(path: Path, header: PlanHeader) -> None:
    """Raises LineamentError if the model that path was built from is here and its weights have changed."""
    built_from, now = header.key.weights_sha256, _weights_sha256(Path(header.source))
    if now and now != built_from:
        raise LineamentError(
            f"{path} is stale: it was built from weights {built_from[:12]}, and {header.source} now has {now[:12]}; "
            f"{header.rebuild}"
        )


def _weights_sha256(model: Path) -> str:
    """From the card of a .safetensors or .onnx; empty if it is unreadable, which is reported elsewhere."""
    try:
        if model.suffix == ".onnx":
            return read_card(model).weights_sha256
        if not os.path.isfile(model):
            return ""
        with model.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_JSON)))
        return parse_card(model, header["__metadata__"]["card"]).weights_sha256
    except (OSError, struct.error, ValueError, LookupError, TypeError, RecursionError, LineamentError):
        return ""


def _read(path: Path) -> tuple[PlanHeader, int]:
    """The header and the offset of the first plan."""
    again = "copy it again, or rebuild it with `make engine`"
    if not os.path.isfile(path):
        raise LineamentError(f"no engine file at {path}; check the spelling, or build it with `make engine`")
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC) + _NUMBERS.size)
            if not start.startswith(MAGIC):
                raise LineamentError(
                    f"{path} is not an engine of Lineament: its magic bytes are missing; if it is a bare TensorRT "
                    "plan, pass the model it was built from to `make engine`"
                )
            if len(start) < len(MAGIC) + _NUMBERS.size:
                raise LineamentError(f"{path} is truncated after {len(start)} bytes; {again}")
            version, length = _NUMBERS.unpack(start[len(MAGIC) :])
            if version != VERSION:
                raise LineamentError(
                    f"{path} has layout {version}, this Lineament reads layout {VERSION}; rebuild it with `make engine`"
                )
            text = file.read(length) if length <= _MAX_JSON else b""
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {error.strerror or error}; check its permissions") from None
    if len(text) != length:
        raise LineamentError(f"{path} is truncated in its header, or damaged; {again}")
    try:
        header = _parsed(path, json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise LineamentError(f"the header of {path} is damaged ({type(error).__name__}: {error}); {again}") from None
    begin = len(start) + length
    if size != (wanted := begin + sum(n for _, n, _ in header.plans)):
        raise LineamentError(f"{path} has {size} bytes, expected {wanted}: the copy is incomplete; {again}")
    return header, begin


def _parsed(path: Path, values: Any) -> PlanHeader:
    card = parse_card(path, json.dumps(values["card"]))
    key = dict(values["key"])
    if set(key) != (known := {field.name for field in fields(PlanKey)}):
        raise ValueError(f"its key has fields {sorted(key)}, expected {sorted(known)}")
    for name, n in (("compute_capability", 2), ("batches", 3)):
        key[name] = tuple(key[name])
        if len(key[name]) != n or not all(type(number) is int for number in key[name]):
            raise ValueError(f"its key has {name} {key[name]}, expected {n} integers")
    for name in known - {"compute_capability", "batches"}:
        if not isinstance(key[name], str):
            raise ValueError(f"its key has {name} {str(key[name])[:60]}, expected text")
    if key["library"] not in get_args(LibraryName):
        raise ValueError(f"its key has library {key['library']!r}, expected one of {', '.join(get_args(LibraryName))}")
    fewest, usual, most = key["batches"]
    if not 0 < fewest <= usual <= most <= MOST_CROPS:
        raise ValueError(f"its key has batches {key['batches']}, expected ascending numbers from 1 to {MOST_CROPS}")
    plans = tuple((str(plan["name"]), int(plan["bytes"]), str(plan["sha256"])) for plan in values["plans"])
    if any(length < 0 for _, length, _ in plans):
        raise ValueError("a plan has a negative length")
    if POINTS_PLAN not in (name for name, _, _ in plans):
        raise ValueError(f"it contains no plan called {POINTS_PLAN!r}")
    # absent from older files
    in_single = values.get("in_single", [])
    if not isinstance(in_single, list) or not all(isinstance(name, str) for name in in_single):
        raise ValueError(f"its in_single is {str(in_single)[:60]}, expected a list of names")
    return PlanHeader(card, PlanKey(**key), str(values["source"]), plans, tuple(in_single))
