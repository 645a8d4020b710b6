"""From a camera, stream or file to landmarks on every face: source, detect, track, draw, sink."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import lineament

FOUND_IN = Path(lineament.__file__).resolve().parents[1]
"""the folder that the package is imported from; processes that are started find it there"""
MAX_PIXELS = 100_000_000
"""a larger picture or frame is refused undecoded: it would take more than 300 MB"""

# OpenCV reads it when it is first imported: it holds also where a header tells others another number
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))


class _Room(ModuleType):
    """This package, which is also the function `lineament.stream`: the two cannot have one name otherwise."""

    def __call__(self, source: str | int = "auto", **options: Any) -> Iterator[Any]:
        """As lineament.api.stream."""
        from lineament.api import stream

        return stream(source, **options)


sys.modules[__name__].__class__ = _Room
