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
from lineament.stream.read.spec import ReadConfig, redacted_spec
from lineament.stream.write.files import check_not_source, numbered
from lineament.stream.write.open import is_address, open_sink

_READ = ("stream", "poll_s")
"""keys of a camera that say how it is read"""


@dataclass(frozen=True, slots=True)
class Camera:
    """One of several sources."""

    name: str
    """unique; letters, digits, dots, dashes and underscores"""
    spec: str
    """as open_source takes it; may contain a password"""
    outputs: tuple[str, ...] = ()
    """as open_sink takes them; may contain a password"""
    read: ReadConfig | None = None
    """how it is read; None: as the session's config says"""


def named(specs: Sequence[str], outputs: Sequence[str]) -> list[Camera]:
    """A camera for each of several specs. outputs: paths that contain {name}, or '-'."""
    names: list[str] = []
    for spec in specs:
        names.append(next(name for name in numbered(_name(spec)) if name not in names))
    return [Camera(name, spec, with_name(outputs, name)) for name, spec in zip(names, specs)]


def with_name(outputs: Sequence[str], name: str) -> tuple[str, ...]:
    """The paths for one of several sources. Raises LineamentError if all would write to the same one."""
    for path in outputs:
        if "{name}" not in path and path != "-":
            raise LineamentError(
                f"several sources cannot all write to {redacted_spec(path)}; add {{name}} to it, as in out/{{name}}.mp4"
            )
    return tuple(path.replace("{name}", name) for path in outputs)


def check_outputs(cameras: Sequence[Camera]) -> None:
    """Raises LineamentError if a file has an unknown format, or one that needs a package that is not installed, if two
    outputs are the same place, or if one would overwrite what a camera reads."""
    places: set[str] = set()
    for output in (output for camera in cameras for output in camera.outputs if output != "-"):
        place = output if is_address(output) else os.path.realpath(os.path.expanduser(output))
        if place in places:
            raise LineamentError(f"two outputs would write to {redacted_spec(output)}; give each its own path")
        places.add(place)
        if not is_address(output):
            open_sink(output)
            for camera in cameras:
                check_not_source(Path(place), camera.spec)


def in_run(path: str, run: int) -> str:
    """The path of an output in its run-th run, counted from 1: beside the files of earlier runs, never over them."""
    if run == 1 or path == "-" or is_address(path):
        return path
    folder, file = ("/", path.rstrip("/")) if path.endswith("/") else ("", path)
    stem, suffix = (file, "") if folder else os.path.splitext(file)
    return next(other for other in numbered(stem, suffix, run) if not os.path.exists(other)) + folder


def read_cameras(path: Path) -> list[Camera]:
    """Reads a YAML list of cameras. ${NAME} in a source or an address is replaced by that environment variable.

    Outputs are addresses, or paths in the file's folder or below; any other path raises LineamentError.
    """
    import yaml  # type: ignore[import-untyped]

    if os.path.exists(path) and not os.path.isfile(path):
        raise LineamentError(f"cannot read {path}: not a file; give a YAML file that lists cameras")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_duplicates(path, yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except OSError as error:
        raise LineamentError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, OverflowError) as error:
        # the last four: scalars that do not match their tag
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise LineamentError(f"{path} is not valid YAML{where}; see docs/cameras.md for an example") from None
    entries = content.get("cameras") if isinstance(content, dict) and set(content) == {"cameras"} else None
    if not isinstance(entries, list) or not entries:
        raise LineamentError(f"{path} must contain one list, 'cameras', of name, source and out; see docs/cameras.md")
    cameras = [_camera(path, number, entry) for number, entry in enumerate(entries, 1)]
    for name in {camera.name for camera in cameras}:
        if sum(camera.name == name for camera in cameras) > 1:
            raise LineamentError(f"{path} has two cameras named {name!r}; give each its own name")
    return cameras


def _refuse_duplicates(path: Path, node: Any, checked: set[int] | None = None) -> None:
    """Raises LineamentError on a duplicate key, of which YAML would silently take the last. checked: ids of nodes."""
    checked = set() if checked is None else checked
    if node is None or isinstance(node.value, str) or id(node) in checked:
        return
    checked.add(id(node))  # aliases may refer to a node many times
    inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
    keys = [pair[0] for pair in node.value if isinstance(pair, tuple)]
    for i, key in enumerate(keys):
        if any(key.value == other.value for other in keys[:i]):
            raise LineamentError(
                f"{path} has {str(key.value)[:40]!r} twice at line {key.start_mark.line + 1}; keep one"
            )
    for part in inner:
        _refuse_duplicates(path, part, checked)


def _camera(path: Path, number: int, entry: Any) -> Camera:
    where = f"camera {number} of {path}"
    if not isinstance(entry, dict) or not {"name", "source"} <= set(entry) <= {"name", "source", "out", *_READ}:
        got = ", ".join(_shown(key) for key in entry) if isinstance(entry, dict) else type(entry).__name__
        raise LineamentError(
            f"{where} has {got or 'nothing'}, expected name, source and optionally out, stream, poll_s"
        )
    if not all(isinstance(entry[key], str) or _is_number(entry[key]) for key in ("name", "source")):
        raise LineamentError(f"{where} has a name or a source that is not text")
    name, spec, out = str(entry["name"]), str(entry["source"]), entry.get("out") or []
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        raise LineamentError(f"{where} has an invalid name; use letters, digits, '.', '-' and '_', 64 at most")
    outputs = [out] if isinstance(out, str) else out
    if not isinstance(outputs, list) or not all(isinstance(output, str) for output in outputs):
        raise LineamentError(f"{where} has an 'out' that is not a list of paths")
    paths = tuple(_confined(output, path.parent, where) for output in outputs)
    return Camera(name, _filled_in(spec, where), paths, _read(where, entry))


def _read(where: str, entry: dict[Any, Any]) -> ReadConfig | None:
    given = {key: entry[key] for key in _READ if key in entry}
    if not given:
        return None
    stream, poll_s = given.get("stream"), given.get("poll_s")
    if not (stream is None or _is_number(stream)):
        raise LineamentError(f"{where} has a 'stream' that is not 0, 1, 2 ...")
    if not (poll_s is None or _is_number(poll_s) or type(poll_s) is float):
        raise LineamentError(f"{where} has a 'poll_s' that is not a number of seconds")
    try:
        return ReadConfig(stream, poll_s)
    except ValueError as error:
        raise LineamentError(f"{where}: {error}") from None


def _shown(key: Any) -> str:
    return repr(key)[:40] if isinstance(key, str) else type(key).__name__


def _is_number(value: Any) -> bool:
    """Whether it is a camera number; Python refuses to print integers of thousands of digits."""
    return type(value) is int and 0 <= value < 1 << 31


def _filled_in(spec: str, where: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise LineamentError(f"{where} needs the environment variable {match[1]}, which is not set")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, spec)


def _confined(output: str, folder: Path, where: str) -> str:
    if "\0" in output:
        raise LineamentError(f"{where} has an 'out' that contains a zero byte")
    if is_address(output):
        return _filled_in(output, where)
    try:
        target = (folder / output).resolve()
        # since Python 3.13, only stat reports a loop of links
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            target.stat()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or an invalid character
        raise LineamentError(
            f"{where} writes to {output!r}, which is not a valid path; give one below the folder of its file"
        ) from None
    if not target.is_relative_to(folder.resolve()) or target == folder.resolve():
        raise LineamentError(f"{where} writes to {output!r}, outside the folder of its file; give a path below it")
    return f"{target}/" if output.endswith("/") else str(target)


def _name(spec: str) -> str:
    """A file name from the redacted spec."""
    told = redacted_spec(spec).split("?")[0]
    stem = re.sub(r"^\w+://(\*\*\*@)?", "", told) if "://" in told else Path(told).stem
    stem = f"camera-{stem}" if stem.isdigit() else stem
    return re.sub(r"[^A-Za-z0-9_.]+", "-", stem).strip("-.")[:64] or "source"
