"""Prepares a model for ONNX Runtime's TensorRT provider: a half-precision graph, and options to build its engine once.

    graph, options = for_tensorrt(Path("b5.onnx"), card, cache)
    InferenceSession(graph, providers=[("TensorrtExecutionProvider", options), "CUDAExecutionProvider"])

By default the provider builds an engine in single precision whenever a model is opened, and again for each batch that
is larger or smaller than all before. Its options:
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html

The graph is that of our own engines (engines.fp16), for two reasons. TensorRT 11 has no switch for half precision and
uses the types of the graph. And TensorRT takes this graph as a whole, while it lacks the first operator of the one in
single precision, a transpose of uint8; part of a graph would have other inputs, and profiles must name them all.

ONNX Runtime 1.31 has TensorRT 10 and builds a weakly typed network, in which TensorRT refuses half-precision tensors
unless `trt_fp16_enable` is set (NVIDIA/TensorRT issue 3277). It may then round more than the graph asks for, so an
.engine is more accurate; by how much is not measured.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from lineament.engines.fp16 import half_precision
from lineament.engines.model_file import INPUT, REMAKE
from lineament.engines.tensorrt_build import BATCHES
from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import LineamentError

MOST = BATCHES[2]
"""crops per call"""


def for_tensorrt(path: Path, card: ModelCard, cache: Path, release: str) -> tuple[bytes, dict[str, str]]:
    """The graph and the options. Raises LineamentError if path cannot be in half precision.

    cache: a folder for engines and what TensorRT timed. Each graph and release of ONNX Runtime gets its own in it:
    the provider names an engine by the names in the graph, not by its weights (microsoft/onnxruntime issue 6455), and
    opens those of other releases.
    """
    try:
        import onnx
    except ImportError:
        raise LineamentError(
            "device 'tensorrt' writes the graph in half precision and needs onnx for that; run `pip install onnx`"
        ) from None
    try:
        model = half_precision(onnx.load(path))
    except LineamentError as error:
        raise LineamentError(f"device 'tensorrt' cannot run {path}: {error}") from None
    except Exception as error:  # onnx's exceptions have no other common base
        reason = " ".join(str(error).split())[:200]
        raise LineamentError(f"{path} cannot be written in half precision: {reason}; {REMAKE}") from error
    graph = model.SerializeToString()
    folder = cache / release / hashlib.sha256(graph).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LineamentError(f"cannot keep engines in {folder}: {error.strerror}; make it writable") from None
    options = {
        "trt_fp16_enable": "True",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder.parent),
    }
    if model.graph.input[0].type.tensor_type.shape.dim[0].dim_value != 1:
        options |= profile_options(card.input_hw, BATCHES)
    return graph, options


def profile_options(input_hw: tuple[int, int], batches: tuple[int, int, int]) -> dict[str, str]:
    """The options that build one engine for all batches. batches: fewest, usual and most crops per call."""
    height, width = input_hw
    bounds = zip(("min", "opt", "max"), batches)
    return {f"trt_profile_{bound}_shapes": f"{INPUT}:{n}x{height}x{width}x3" for bound, n in bounds}


def needs(onnxruntime: Any) -> str:
    """In words, the release of TensorRT that the provider is linked with; it cannot load another major release."""
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    try:
        linked = provider.read_bytes()
    except OSError:
        linked = b""
    tensorrt, cuda = (re.search(rb"\blib%s\.so\.(\d+)" % name, linked) for name in (b"nvinfer", b"cudart"))
    if not tensorrt or not cuda:
        return "its TensorRT provider needs the TensorRT that this release of ONNX Runtime names"
    major = int(tensorrt[1])
    package = f"tensorrt-cu{int(cuda[1])}>={major},<{major + 1}"
    return (
        f"its TensorRT provider needs TensorRT {major}: `pip install '{package}'`, in an environment without another "
        "TensorRT; an .engine of `make engine` runs without ONNX Runtime"
    )
