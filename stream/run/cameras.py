"""Cameras: the list of several sources, from the command line or from a YAML file, each with a name and its outputs.

cameras:
  - name: door
    source: rtsp://viewer:${DOOR_PASSWORD}@10.0.0.5/live
    out: [door.mp4, door.jsonl]
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lineament.landmarks.types import LineamentError
from lineament.stream.read.spec import redacted_spec
from lineament.stream.write.files import check_not_source, numbered
from lineament.stream.write.open import is_address

_DEEPEST = 20
"""lists in lists"""


@dataclass(frozen=True, slots=True)
class Camera:
    """One of several sources."""

    name: str
    """of letters, digits, dots, dashes and underscores; unlike the others'"""
    spec: str
    """as open_source takes it; it may hold a password"""
    outputs: tuple[str, ...] = ()
    """as open_sink takes them; one may hold a password"""


def named(specs: Sequence[str], outputs: Sequence[str]) -> list[Camera]:
    """A camera for each of several specs. outputs: paths with {name} in them, or '-'."""
    names: list[str] = []
    for spec in specs:
        names.append(next(name for name in numbered(_name(spec)) if name not in names))
    return [Camera(name, spec, with_name(outputs, name)) for name, spec in zip(names, specs)]


def with_name(outputs: Sequence[str], name: str) -> tuple[str, ...]:
    """The paths for one of several sources. Raises where all would write to the same one."""
    for path in outputs:
        if "{name}" not in path and path != "-":
            raise LineamentError(
                f"several sources cannot all write to {redacted_spec(path)}; put {{name}} in it: out/{{name}}.mp4"
            )
    return tuple(path.replace("{name}", name) for path in outputs)


def check_outputs(cameras: Sequence[Camera]) -> None:
    """Raises where two outputs would write to one place, or one over what a camera reads."""
    places: set[str] = set()
    for output in (output for camera in cameras for output in camera.outputs if output != "-"):
        place = output if is_address(output) else os.path.realpath(os.path.expanduser(output))
        if place in places:
            raise LineamentError(f"two outputs would write to {redacted_spec(output)}; give each a path of its own")
        places.add(place)
        if not is_address(output):
            for camera in cameras:
                check_not_source(Path(place), camera.spec)


def in_life(path: str, life: int) -> str:
    """Where an output goes that was begun before, in the life-th time: beside the earlier files, never over them."""
    if life == 1 or path == "-" or is_address(path):
        return path
    folder, file = ("/", path.rstrip("/")) if path.endswith("/") else ("", path)
    stem, suffix = (file, "") if folder else os.path.splitext(file)
    return next(other for other in numbered(stem, suffix, life) if not os.path.exists(other)) + folder


def read_cameras(path: Path) -> list[Camera]:
    """The cameras that a YAML file lists. ${NAME} in a source, or in an address, is taken from the environment.

    Outputs are addresses, or lie beside the file or deeper; a path that leads elsewhere is refused.
    """
    import yaml  # type: ignore[import-untyped]

    if os.path.exists(path) and not os.path.isfile(path):
        raise LineamentError(f"cannot read {path}: it is no file; give a YAML file that lists cameras")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_bombs(path, text)
        _refuse_doubles(path, yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError) as error:
        # the last four are how it takes a scalar that is not what its tag says
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise LineamentError(f"{path} is not YAML{where}; see docs/cameras.md for an example") from None
    entries = content.get("cameras") if isinstance(content, dict) and set(content) == {"cameras"} else None
    if not isinstance(entries, list) or not entries:
        raise LineamentError(f"{path} should hold one list, 'cameras', of name, source and out; see docs/cameras.md")
    cameras = [_camera(path, number, entry) for number, entry in enumerate(entries, 1)]
    for name in {camera.name for camera in cameras}:
        if sum(camera.name == name for camera in cameras) > 1:
            raise LineamentError(f"{path} has two cameras called {name!r}; give each a name of its own")
    return cameras


def _refuse_bombs(path: Path, text: str) -> None:
    """Raises LineamentError on what no list of cameras needs, and what can take all memory or time."""
    import yaml

    depth = 0
    for token in yaml.scan(text, yaml.SafeLoader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AliasToken):  # ten lines of them can stand for more than there is memory
            raise LineamentError(f"{path} refers to another place of itself by a '*' at line {line}; write it out")
        opens = (yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken)
        flow_opens = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
        closes = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
        depth += isinstance(token, opens + flow_opens) - isinstance(token, closes)
        if depth > _DEEPEST:
            raise LineamentError(
                f"{path} is not YAML of cameras: over {_DEEPEST} deep at line {line}; see docs/cameras.md"
            )


def _refuse_doubles(path: Path, node: Any) -> None:
    """Raises LineamentError on a key that stands twice in one place: YAML would silently take the last."""
    if node is None or isinstance(node.value, str):
        return
    inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    keys = [pair[0] for pair in node.value if isinstance(pair, tuple)]
    for i, key in enumerate(keys):
        if any(key.value == other.value for other in keys[:i]):
            raise LineamentError(
                f"{path} has {str(key.value)[:40]!r} twice at line {key.start_mark.line + 1}; keep one"
            )
    for part in inner:
        _refuse_doubles(path, part)


def _camera(path: Path, number: int, entry: Any) -> Camera:
    where = f"camera {number} of {path}"
    if not isinstance(entry, dict) or not {"name", "source"} <= set(entry) <= {"name", "source", "out"}:
        got = ", ".join(_shown(key) for key in entry) if isinstance(entry, dict) else type(entry).__name__
        raise LineamentError(f"{where} has {got or 'nothing'}, wanted name, source and perhaps out")
    if not all(isinstance(entry[key], str) or _is_number(entry[key]) for key in ("name", "source")):
        raise LineamentError(f"{where} has a name or a source that is no text")
    name, spec, out = str(entry["name"]), str(entry["source"]), entry.get("out") or []
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise LineamentError(f"{where} has a name that is no file name; use letters, digits, '.', '-' and '_'")
    outputs = [out] if isinstance(out, str) else out
    if not isinstance(outputs, list) or not all(isinstance(output, str) for output in outputs):
        raise LineamentError(f"{where} has an 'out' that is no list of paths")
    return Camera(name, _filled_in(spec, where), tuple(_confined(output, path.parent, where) for output in outputs))


def _shown(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, str) else type(key).__name__


def _is_number(value: Any) -> bool:
    """Of a camera; one of thousands of digits Python would not even write down."""
    return type(value) is int and 0 <= value < 1 << 31


def _filled_in(spec: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise LineamentError(f"{where} wants the environment variable {match[1]}, which is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, spec)


def _confined(output: str, folder: Path, where: str) -> str:
    if "\0" in output:
        raise LineamentError(f"{where} has an 'out' with a zero byte in it")
    if is_address(output):
        return _filled_in(output, where)
    try:
        target = (folder / output).resolve()
        # from Python 3.13 on, a loop of links shows only here
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            target.stat()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or an invalid character
        raise LineamentError(f"{where} writes to {output!r}, which is no path; give one below the file") from None
    if not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise LineamentError(f"{where} writes to {output!r}, outside the folder of its file; give a path below it")
    return f"{target}/" if output.endswith("/") else str(target)


def _name(spec: str) -> str:
    """A file name from what a log may show of a spec."""
    told = redacted_spec(spec).split("?")[0]
    stem = re.sub(r"^\w+://(\*\*\*@)?", "", told) if "://" in told else Path(told).stem
    stem = f"camera-{stem}" if stem.isdigit() else stem
    return re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-.")[:64] or "source"
