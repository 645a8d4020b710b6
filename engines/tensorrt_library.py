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

from lineament.engines.driver import fitting, install_gpu
from lineament.engines.engine_file import LibraryName
from lineament.landmarks.types import LineamentError

log = logging.getLogger(__name__)

_MODULES: dict[LibraryName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    # PyPI has the bindings; NVIDIA's tensorrt_rtx package wraps them
    "tensorrt-rtx": ("tensorrt_rtx_bindings", "tensorrt_rtx"),
}
_OLDEST = {"tensorrt": (10, 12), "tensorrt-rtx": (1, 4)}

_NO_MEMORY = (
    r"[Oo]ut of memory|OutOfMemory|cudaErrorMemoryAllocation|insuff?icient (?:memory|workspace)|"
    r"memory is insufficient|Requested amount of GPU memory"
)
_NO_KERNEL = (
    "this release has no kernel for a layer of the graph on this GPU; install another, such as "
    "`pip install tensorrt{suffix}==10.16.1.11`, or run the model on the CPU with `make engine ARGS='--target cpu'`"
)
_NEXT_LAYER = "=============== Computing costs for "
"""TensorRT's log, before it looks for kernels for a layer"""

_CAUSES = (
    (
        _NO_MEMORY,
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
    # after memory: TensorRT also says so if it has kernels, but no memory to try them
    (r"[Cc]ould not find any implementation|No implementation of layer .* obeys", _NO_KERNEL),
    (r"No low-precision conv kernel", _NO_KERNEL),
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
    """A logger for TensorRT that keeps errors in `messages`, because its exceptions do not give the reason.

    Warnings that memory is short are kept, too: they are the reason if the build then fails at the same layer.
    """
    severities = trt.ILogger.Severity

    class Collecting(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if message.startswith(_NEXT_LAYER):
                # the layers before it were built after all
                self.messages.clear()
            elif severity in (severities.ERROR, severities.INTERNAL_ERROR) or (
                severity == severities.WARNING and re.search(_NO_MEMORY, message)
            ):
                self.messages.append(message)
            log.debug("%s: %s", severity, message)

    return Collecting()


def complaint(messages: Sequence[str]) -> str:
    """One line on what went wrong and what to do, from the messages of TensorRT and its parser."""
    said = [" ".join(message.split()) for message in messages]
    if found := _cause(said):
        cause, message = found
        if "{" in cause:
            cause = cause.format(install=install_gpu(), suffix=fitting())
        return f"{cause} (TensorRT: {message[:200]})"
    told = f"TensorRT: {said[0][:300]}" if said else "TensorRT gives no reason"
    return f"{told}; try the pinned release ({install_gpu()})"


def lacks_kernel(messages: Sequence[str]) -> bool:
    """Whether a build failed only because there is no kernel for a layer in the precision of the graph."""
    found = _cause([" ".join(message.split()) for message in messages])
    return found is not None and found[0] == _NO_KERNEL


def _cause(said: Sequence[str]) -> tuple[str, str] | None:
    """The explanation of the first pattern that is found, and the message in which it is."""
    for pattern, cause in _CAUSES:
        for message in said:
            if re.search(pattern, message):
                return cause, message
    return None
