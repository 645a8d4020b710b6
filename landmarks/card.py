"""ModelCard: what serving must know of a model, so that it can never disagree with training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Travels with the weights, from training through export into the engine file."""

    name: str
    """what a person calls it: mesh, b5, student"""
    schema: str
    """name of the landmarks.schema.Schema that the points follow, in order"""
    input_hw: tuple[int, int]
    """height and width of the crop in pixels"""
    crop_scale: float
    """side of the square crop over the longer side of the box round the points"""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB, 0..1 scale; applied inside the graph, kept here for the record"""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, 0..1 scale; applied inside the graph, kept here for the record"""
    head: str = "coords"
    """how the graph's output became points: coords, heatmap, simcc, mesh"""
    precision: str = "fp32"
    weights_sha256: str = ""
    """of the weights file that the engine was built from"""
    nme: Mapping[str, float] = field(default_factory=dict)
    """percent, by what set and what crop: {"wflw-mini test, detector crop": 5.1}"""
    built_with: Mapping[str, str] = field(default_factory=dict)
    """library to version"""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Raises ValueError when the text is not a card; unknown and missing fields are named."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a model card is a JSON object, got {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        unknown, missing = set(values) - known, {"name", "schema", "input_hw", "crop_scale"} - set(values)
        if unknown or missing:
            raise ValueError(f"model card has unknown fields {sorted(unknown)} and lacks {sorted(missing)}")
        for name in ("input_hw", "mean", "std"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)
