"""Imports TensorRT or TensorRT-RTX, which have the same Python API, and explains their errors.

Nothing is imported before `library` is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lineament.engines.driver import install_gpu
from lineament.engines.engine_file import LibraryName
from lineament.landmarks.types import LineamentError

log = logging.getLogger(__name__)

_MODULES: dict[LibraryName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    # PyPI has the bindings; NVIDIA's tensorrt_rtx package wraps them
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
_OLDEST = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 4)}

_CAUSES = (
    (
        r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient memory|Requested amount of GPU memory",
        "the GPU has no memory left; close other programs that use it (nvidia-smi lists them), or build for fewer "
        "crops per call with `make engine ARGS='--batches 1 1 4'`",
    ),
    (
        r"driver version is insufficient|cudaError 35\b|initialization failure with error: 35",
        "the NVIDIA driver is missing or too old for this release; install or update the driver "
        "(`nvidia-smi` shows it)",
    ),
    (
        r"no CUDA-capable device|cudaError 100\b|initialization failure with error: 100",
        "the NVIDIA driver shows no GPU; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES",
    ),
    (
        r"[Ss]erialization.*(?:version|assertion)|[Vv]ersion tag does not match|incompatible.*version|magicTag",
        "the plan was built by another release, or is damaged; rebuild it with `make engine`",
    ),
    (
        r"No importer registered|[Uu]nsupported operator|UNSUPPORTED_NODE|Plugin not found|INVALID_NODE|Invalid Node",
        "this release lacks an operator of the graph, or a variant; install the pinned release ({install}), or run the "
        "model on the CPU with `make engine ARGS='--target cpu'`",
    ),
)
"""patterns in TensorRT's log and their explanations; the first match counts"""


@dataclass(frozen=True, slots=True)
class Library:
    name: LibraryName
    module: Any

    @property
    def version(self) -> str:
        return str(self.module.__version__)


def installed(name: LibraryName) -> bool:
    return any(importlib.util.find_spec(module) is not None for module in _MODULES[name])


def library(name: LibraryName) -> Library:
    """Imports it. Raises LineamentError with the command to install it."""
    reasons = []
    for module in _MODULES[name]:
        try:
            found = Library(name, importlib.import_module(module))
        except (ImportError, OSError, RuntimeError) as error:  # its own shared libraries may be missing
            reasons.append(str(error))
            continue
        numbers = tuple(int(number) for number in re.findall(r"\d+", found.version)[:2])
        if numbers < _OLDEST[name]:
            oldest = ".".join(map(str, _OLDEST[name]))
            raise LineamentError(f"{name} is {found.version}, expected {oldest} or later; run {_install(name)}")
        return found
    raise LineamentError(f"{name} cannot be imported ({reasons[0]}); run {_install(name)}")


def _install(name: LibraryName) -> str:
    return install_gpu() if name == "tensorrt" else "`pip install -r requirements-rtx.txt`"


def collecting_logger(trt: Any) -> Any:
    """A logger for TensorRT that keeps errors in `messages`, because its exceptions do not give the reason."""

    class Collecting(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.messages.append(message)
            log.debug("%s: %s", severity, message)

    return Collecting()


def complaint(messages: Sequence[str]) -> str:
    """One line on what went wrong and what to do, from the messages of TensorRT and its parser."""
    said = [" ".join(message.split()) for message in messages]
    for pattern, cause in _CAUSES:
        for message in said:
            if re.search(pattern, message):
                return f"{cause.replace('{install}', install_gpu())} (TensorRT: {message[:200]})"
    told = f"TensorRT: {said[0][:300]}" if said else "TensorRT gives no reason"
    return f"{told}; try the pinned release ({install_gpu()})"
