"""Landmark models made ready to run: the embedded mesh, and the way to ask for a model by name."""

from __future__ import annotations

from landmarks.types import Landmarker, LineamentError

MODELS = {
    "mesh": "the face mesh and iris models inside the mediapipe package, mapped to the 98 points",
    "mesh-fast": "the same without the iris model: half the time, pupils and lids less exact",
}


def load(model: str, device: str = "auto") -> Landmarker:
    """The landmarker called `model`. device: auto or cpu. Raises LineamentError for any other model or device."""
    if model not in MODELS:
        raise LineamentError(f"no model is called {model!r}; choose one of {', '.join(MODELS)}")
    if device not in ("auto", "cpu"):
        raise LineamentError(f"the mesh model runs on the CPU, device was {device!r}; ask for 'cpu' or 'auto'")
    from engines.mesh import MeshLandmarker

    return MeshLandmarker(iris=model == "mesh")
