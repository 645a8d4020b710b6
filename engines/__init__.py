"""Landmark models made ready to run: the embedded mesh, and the way to ask for a model by name."""

from __future__ import annotations

from landmarks.types import Landmarker, LineamentError


def load(model: str, device: str = "auto") -> Landmarker:
    """The landmarker called `model`. device: auto or cpu. Raises LineamentError when there is none."""
    if model != "mesh":
        raise LineamentError(
            f"no model is called {model!r}; this version runs 'mesh', the one inside the mediapipe package"
        )
    if device not in ("auto", "cpu"):
        raise LineamentError(f"the mesh model runs on the CPU, device was {device!r}; ask for 'cpu' or 'auto'")
    from engines.mesh import MeshLandmarker

    return MeshLandmarker()
