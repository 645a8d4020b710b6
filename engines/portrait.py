"""The one real face that every installation has: scikit-image's astronaut, a portrait in the public domain."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lineament.landmarks.types import U8, LineamentError


def portrait() -> U8:
    """(512, 512, 3) BGR; the face is 100 px wide round (225, 122). Raises LineamentError without scikit-image."""
    from PIL import Image  # OpenCV warns about the file's colour profile

    with Image.open(portrait_path()) as photo:
        return np.ascontiguousarray(np.asarray(photo.convert("RGB"), np.uint8)[..., ::-1])


def portrait_path() -> Path:
    """astronaut.png, found without importing scikit-image, which would take a second."""
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / "astronaut.png" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise LineamentError("astronaut.png of scikit-image is missing; run `pip install scikit-image`")
    return path
