"""ModelCard: what serving needs to know about a model, so that it cannot disagree with training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

CropScale = float | tuple[float, float]
"""Size of a crop over the points' bounding box. A number: a square crop, by the box's longer side. A pair: width and
height, each by its own side, stretched to the input"""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Stored with the weights, from training through export to the engine file."""

    name: str
    """for users: mesh, b5, student"""
    schema: str
    """name of the landmarks.schema.Schema of the points"""
    input_hw: tuple[int, int]
    """height and width of the crop in pixels"""
    crop_scale: CropScale
    """size of the crop over the points' bounding box"""
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """RGB, 0..1 scale; applied inside the graph, kept here for the record"""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """RGB, 0..1 scale; applied inside the graph, kept here for the record"""
    head: str = "coords"
    """how the graph's output is decoded to points: coords, heatmap, star, simcc, mesh"""
    precision: str = "fp32"
    weights_sha256: str = ""
    """of the weights file the engine was built from"""
    nme: Mapping[str, float] = field(default_factory=dict)
    """percent, by set and crop: {"wflw-mini test, detector crop": 5.1}"""
    built_with: Mapping[str, str] = field(default_factory=dict)
    """library to version"""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """Raises ValueError or TypeError if text is not a card; names unknown, missing and invalid fields."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"a model card is a JSON object, got {type(values).__name__}")
        known = {f.name for f in fields(cls)}
        unknown, missing = set(values) - known, {"name", "schema", "input_hw", "crop_scale"} - set(values)
        if unknown or missing:
            raise ValueError(f"model card has unknown fields {sorted(unknown)} and lacks {sorted(missing)}")
        for name in ("input_hw", "mean", "std", "crop_scale"):
            if isinstance(values.get(name), list) or (name in values and name != "crop_scale"):
                values[name] = tuple(values[name])
        card = cls(**values)
        for name, (fits, wanted) in _CHECKS.items():
            if not fits(getattr(card, name)):
                raise ValueError(f"its {name} is {str(getattr(card, name))[:60]}, expected {wanted}")
        return card


def is_crop_scale(value: Any) -> bool:
    """Whether value is a CropScale: finite positive numbers."""
    pair = value if isinstance(value, tuple) else (value, value)
    return len(pair) == 2 and all(type(scale) in (int, float) and 0 < scale < 1e9 for scale in pair)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9  # and no nan


def _is_rgb(value: Any) -> bool:
    return len(value) == 3 and all(map(_is_number, value))


def _maps_to(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mean": (_is_rgb, "three numbers"),
    "std": (_is_rgb, "three numbers"),
    "head": (_is_text, "text"),
    "precision": (_is_text, "text"),
    "weights_sha256": (_is_text, "text"),
    "nme": (_maps_to(lambda value: type(value) in (int, float)), "names and numbers"),
    "built_with": (_maps_to(_is_text), "names and versions"),
}
"""of the fields that readers of a card only pass on; the others are checked where they are used"""
