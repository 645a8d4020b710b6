"""The one real face that every installation has: scikit-image's astronaut, a portrait in the public domain."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import crop_from_frame
from lineament.landmarks.types import F64, U8, LineamentError


def portrait() -> U8:
    """(512, 512, 3) BGR; the face is 100 px wide round (225, 122). Raises LineamentError without scikit-image."""
    from PIL import Image  # OpenCV warns about the file's colour profile

    with Image.open(portrait_path()) as photo:
        return np.ascontiguousarray(np.asarray(photo.convert("RGB"), np.uint8)[..., ::-1])


def frame_of_faces(card: ModelCard, n: int) -> tuple[U8, list[F64]]:
    """A frame of 1920x1080 with a face in each of 4x2 places, (1080, 1920, 3) BGR, and crop_from_frame of n of them; of
    more than eight, the crops differ a little."""
    bgr = np.tile(portrait(), (3, 4, 1))[:1080, :1920]
    rng = np.random.default_rng(0)
    matrices = []
    for i in range(n):
        center = np.array([225.0 + 512 * (i % 4), 122.0 + 512 * (i // 4 % 2)]) + rng.normal(0, 3, 2)
        matrices.append(crop_from_frame(np.concatenate([center - 65, center + 65]), card, float(rng.normal(0, 0.1))))
    return np.ascontiguousarray(bgr), matrices


def portrait_path() -> Path:
    """astronaut.png, found without importing scikit-image, which would take a second."""
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / "astronaut.png" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise LineamentError("astronaut.png of scikit-image is missing; run `pip install scikit-image`")
    return path
