"""98 landmarks on every face: in an image, in a live stream, in your own frames.

    faces = lineament.find("photo.jpg")
    for frame in lineament.stream("rtsp://camera/live"):
        print(frame.faces[0].points)
    tracker = lineament.Tracker()

docs/python.md has recipes; `lineament.api` defines the return types.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lineament.api import Face as Face
    from lineament.api import Frame as Frame
    from lineament.api import Tracker as Tracker
    from lineament.api import find as find
    from lineament.api import stream as stream
    from lineament.landmarks.types import LineamentError as LineamentError

__version__ = "0.1.0"
__all__ = ["Face", "Frame", "LineamentError", "Tracker", "__version__", "find", "stream"]

_HERE = Path(__file__).resolve().parent
if not (_HERE / "landmarks").is_dir():
    # the subpackages are beside this folder in a checkout, inside it in a wheel
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> Any:
    """Imports a public name on first use, so that one subpackage does not import the others."""
    if name == "stream":  # a subpackage that is callable
        return import_module("lineament.stream")
    if name == "LineamentError":
        return import_module("lineament.landmarks.types").LineamentError
    if name in __all__:
        return getattr(import_module("lineament.api"), name)
    raise AttributeError(f"module 'lineament' has no attribute {name!r}")
