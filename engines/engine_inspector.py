"""Reads the precision of an engine's layers from the JSON of TensorRT's engine inspector.

The inspector may describe only some of the layers, show no types, or return nothing that can be read. Its JSON differs
between releases.
"""

from __future__ import annotations

import json
import re
from typing import Any

from lineament.landmarks.types import LineamentError

_HEAVY = re.compile(r"conv|gemm|matmul|matrix|correlation", re.IGNORECASE)
_SINGLE = re.compile(r"FP32|Float\b")
_LOWER = re.compile(r"FP16|Half|BF16|BFloat16|Int8|FP8|INT4|FP4", re.IGNORECASE)
"""data types as the inspector prints them; it may print neither, such as 'N/A due to dynamic shapes'"""
_TYPE_KEYS = ("Format/Datatype", "Datatype", "DataType", "Format")
"""of a tensor in the inspector's JSON: the first up to TensorRT 10, the others since 11"""


def layers_by_precision(said: str | None) -> tuple[list[str], list[str], list[str]]:
    """Names of an engine's convolutions and matrix products in single precision, in a lower one, and in one that the
    inspector does not show. Layers that TensorRT has fused into one of another kind are not listed at all.

    said: the inspector's JSON. Raises LineamentError if it shows no such layer.
    """
    names: dict[str, list[str]] = {"single": [], "lower": [], "unknown": []}
    for layer in _layers_in(said):
        if _HEAVY.search(f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}"):
            names[_precision(layer)].append(str(layer.get("Name")))
    if not any(names.values()):
        raise LineamentError("the inspector shows no convolution and no matrix product")
    return names["single"], names["lower"], names["unknown"]


def _precision(layer: dict[str, Any]) -> str:
    """A layer is single if all its inputs and outputs are. With dynamic batch sizes the inspector may show no types of
    tensors; then the type of its weights counts."""
    ends = [end for key in ("Inputs", "Outputs") for end in layer.get(key) or [] if isinstance(end, dict)]
    types = [" ".join(str(end[key]) for key in _TYPE_KEYS if key in end) for end in ends]
    if not types or not all(_SINGLE.search(text) or _LOWER.search(text) for text in types):
        weights = layer.get("Weights")
        types = [str(weights.get("Type"))] if isinstance(weights, dict) and weights.get("Count") else []
    if any(map(_LOWER.search, types)):
        return "lower"
    return "single" if any(map(_SINGLE.search, types)) else "unknown"


def _layers_in(said: str | None) -> list[dict[str, Any]]:
    """The layers that the inspector describes. Raises LineamentError if there are none.

    Control characters separate names in its metadata, and text may follow the JSON.
    """
    try:
        layers = json.JSONDecoder(strict=False).raw_decode((said or "").lstrip())[0]["Layers"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise LineamentError(f"the inspector returned {said!r:.60}, expected JSON with layers ({error})") from None
    described = [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []
    if not described:
        raise LineamentError(f"the inspector shows only the names of layers, such as {layers!r:.60}")
    return described
