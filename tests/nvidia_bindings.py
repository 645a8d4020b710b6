"""What NVIDIA's Python bindings have: every class, method and signature, read without a GPU.

    api = bindings("tensorrt_bindings")
    api["IExecutionContext.execute_async_v3"].signatures

Read in a process of its own, because TensorRT's bindings need libraries of 2 GB, for which empty ones stand in there.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import inspect
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_MODULES = re.compile(r"\b(?:tensorrt\w*\.|(?:nvinfer1|nvonnxparser)::(?:\w+::)?)")
_LISTS = re.compile(r"^(?:typing\.|collections\.abc\.)?(?:list|sequence|iterable)\[(.*)\]$", re.IGNORECASE)
_LINKED_AT_ONCE = (b"initLibNvInferPlugins", b"getNvOnnxParserVersion", b"getBuilderPluginRegistry")
"""functions whose addresses the bindings take, so the loader must find them; others are looked up when called"""


@dataclass(frozen=True)
class Parameter:
    name: str
    """empty if it has none, so that no keyword fits"""
    type: str
    needed: bool
    keyword_only: bool = False


@dataclass(frozen=True)
class Signature:
    """Without self."""

    parameters: tuple[Parameter, ...]
    returns: str
    any_more: bool = False
    """it ends in *args or **kwargs"""


@dataclass(frozen=True)
class Member:
    kind: str
    """class, function, property, or value, such as a member of an enum"""
    signatures: tuple[Signature, ...] = ()
    """of a function or of the constructor, one for each overload; empty if the bindings do not tell"""
    type: str = ""
    """of a property or value; 'list[X]' for several"""
    settable: bool = False
    bases: tuple[str, ...] = ()


@functools.cache
def bindings(module: str) -> dict[str, Member]:
    """Every member of a module by its dotted name, such as 'ICudaEngine.get_tensor_name'."""
    command = [sys.executable, "-P", __file__, module]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        said = done.stderr.strip() or f"exit status {done.returncode}"
        raise RuntimeError(f"{module} is installed but cannot be read: {said[-2000:]}")
    return {name: _member(fields) for name, fields in json.loads(done.stdout).items()}


def _member(fields: dict[str, Any]) -> Member:
    signatures = tuple(
        Signature(tuple(Parameter(**one) for one in given["parameters"]), given["returns"], given["any_more"])
        for given in fields["signatures"]
    )
    return Member(**{**fields, "signatures": signatures, "bases": tuple(fields["bases"])})


# ---- in the process that reads


def main(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is not None and name == "tensorrt_bindings" and importlib.util.find_spec("tensorrt_libs") is None:
        for folder in spec.submodule_search_locations or ():
            _stand_in(Path(folder) / "tensorrt.so")
    members = dict(_members(importlib.import_module(name)))
    json.dump({path: asdict(member) for path, member in members.items()}, sys.stdout)


def _stand_in(library: Path) -> None:
    """Loads an empty library for each of NVIDIA's that this one needs."""
    for name in {*re.findall(rb"lib(?:nvinfer|nvonnxparser)\w*\.so\.\d+", library.read_bytes())}:
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(_shared_library(name, _LINKED_AT_ONCE))
            file.flush()
            ctypes.CDLL(file.name, ctypes.RTLD_GLOBAL)
    sys.setdlopenflags(os.RTLD_LAZY)


def _shared_library(name: bytes, functions: tuple[bytes, ...]) -> bytes:
    """An ELF file for x86-64 Linux that has this name and these functions, which must not be called."""
    strings = b"\0" + b"\0".join((name, *functions)) + b"\0"
    symbols = bytes(24) + b"".join(  # global functions at absolute address 1
        struct.pack("<IBBHQQ", strings.index(function), 0x12, 0, 0xFFF1, 1, 0) for function in functions
    )
    n = len(functions) + 1
    hashes = struct.pack(f"<{3 + n}I", 1, n, 1, 0, *range(2, n), 0)  # one bucket, a chain of all
    dynamic_at, n_dynamic = 64 + 2 * 56, 7
    symbols_at = dynamic_at + n_dynamic * 16
    hashes_at = symbols_at + len(symbols)
    strings_at = hashes_at + len(hashes)
    end = strings_at + len(strings)
    # DT_SONAME, STRTAB, STRSZ, SYMTAB, SYMENT, HASH, NULL
    entries = (14, 1), (5, strings_at), (10, len(strings)), (6, symbols_at), (11, 24), (4, hashes_at), (0, 0)
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    header = struct.pack("<16s2HI3QI6H", b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<2I6Q", 1, 6, 0, 0, 0, end, end, 4096)
    of_dynamic = struct.pack("<2I6Q", 2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    return header + load + of_dynamic + dynamic + symbols + hashes + strings


def _members(owner: Any, path: str = "") -> Iterator[tuple[str, Member]]:
    for name in dir(owner):
        value = getattr(owner, name)
        inside = f"{path}.{name}".lstrip(".")
        if (name.startswith("_") and name != "__version__") or inspect.ismodule(value):
            continue
        if isinstance(value, type):
            bases = tuple(_name(base) for base in value.__mro__[1:-1])
            yield inside, Member("class", _signatures(value.__init__, value), bases=bases)
            if path != _name(value):  # an enum has itself as a member in some releases
                yield from _members(value, inside)
        elif isinstance(value, property) or inspect.isgetsetdescriptor(value):
            getter = _signatures(getattr(value, "fget", None))
            settable = not isinstance(value, property) or value.fset is not None
            yield inside, Member("property", type=getter[0].returns if getter else "", settable=settable)
        elif callable(value):
            yield inside, Member("function", _signatures(value))
        else:
            yield inside, Member("value", type=_name(type(value)))


def _name(kind: type) -> str:
    return kind.__qualname__


def _signatures(function: Callable[..., Any] | None, made: type | None = None) -> tuple[Signature, ...]:
    """From the docstring in which pybind11 writes them, else from Python. made: the class of a constructor."""
    found = [
        _parsed(line)
        for line in (getattr(function, "__doc__", None) or "").splitlines()
        if re.match(r"(?:\d+\. )?\w*\((?!\*args, \*\*kwargs\)$).*\) -> ", line)
    ]
    if found or function is None:
        return tuple(found)
    try:
        signature = inspect.signature(made or function)
    except (TypeError, ValueError):
        return ()
    kinds = inspect.Parameter
    parameters = [
        Parameter(
            one.name if one.kind != kinds.POSITIONAL_ONLY else "",
            "" if one.annotation is kinds.empty else _type(str(one.annotation)),
            one.default is kinds.empty,
            one.kind == kinds.KEYWORD_ONLY,
        )
        for name, one in signature.parameters.items()
        if name != "self" and one.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    ]
    more = any(one.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD) for one in signature.parameters.values())
    return (Signature(tuple(parameters), "", more),)


def _parsed(line: str) -> Signature:
    """Of a line such as '1. name(self: a.B, size: int = 0) -> a.C'."""
    inside, _, returns = line.partition("(")[2].rpartition(") -> ")
    parameters, keyword_only, any_more = [], False, False
    for text in _split(inside):
        name, _, kind = text.partition("=")[0].partition(":")
        if name.strip().startswith("*"):
            keyword_only, any_more = True, any_more or len(name.strip()) > 1
        elif name.strip() not in ("self", "/"):
            name = "" if re.fullmatch(r"arg\d+", name.strip()) else name.strip()
            parameters.append(Parameter(name, _type(kind), "=" not in text, keyword_only))
    return Signature(tuple(parameters), _type(returns), any_more)


def _split(text: str) -> list[str]:
    """At commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _type(text: str) -> str:
    """Without the names of NVIDIA's modules, and 'list[X]' for any sequence."""
    text = _MODULES.sub("", text.strip().strip("'")).removesuffix(" | None")
    many = _LISTS.match(text)
    return f"list[{many[1]}]" if many else text


if __name__ == "__main__":
    main(sys.argv[1])
