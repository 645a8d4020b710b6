"""Makes torchvision, and so timm, importable beside a torch build that its native operators were not built for.

torchvision's wheels are built for one torch; beside another (a CPU torch and the usual CUDA wheel) its operators do not
load and `import torchvision` raises `operator torchvision::nms does not exist`. Nothing here uses those operators, so
their schemas alone are declared. Take timm from here: `from lineament.train.native import timm`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch

_SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))
_library: torch.library.Library | None = None
"""kept alive: garbage collection would remove its schemas"""


def _import_timm() -> Any:
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
    return importlib.import_module("timm")


timm = _import_timm()
