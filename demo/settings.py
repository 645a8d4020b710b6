"""Settings: a visitor's choices, validated wherever they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from lineament import engines
from lineament.landmarks.schema import IBUG68, WFLW98
from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.write.draw import DrawConfig

SHOWN = ("points", "curves", "boxes", "pose")
"""what can be drawn on a face"""
MAX_FACES = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one visitor."""

    model: str = engines.DEFAULT
    max_faces: int = 8
    """0 for all"""
    confidence: float = 0.5
    """0..1: faces with a lower confidence of the landmark model are hidden"""
    smooth: bool = True
    schema: str = WFLW98.name
    shown: tuple[str, ...] = ("points", "curves")

    def __post_init__(self) -> None:
        if not 0 <= self.max_faces <= MAX_FACES:
            raise LineamentError(f"max faces must be 1 to {MAX_FACES}, or 0 for all, got {self.max_faces}")
        if not 0 <= self.confidence <= 1:
            raise LineamentError(f"confidence must be 0 to 1, got {self.confidence}")
        if self.schema not in (known := (WFLW98.name, IBUG68.name)):
            raise LineamentError(f"unknown schema {self.schema!r}; choose one of {', '.join(known)}")
        if unknown := set(self.shown) - set(SHOWN):
            raise LineamentError(f"cannot draw {', '.join(sorted(unknown))}; choose from {', '.join(SHOWN)}")

    def changed(self, values: Mapping[str, object]) -> Self:
        """A copy with these values, which come from a JSON object that a browser sent."""
        known = {field.name for field in fields(self)}
        if unknown := set(values) - known:
            raise LineamentError(f"unknown setting {', '.join(sorted(map(str, unknown)))}")
        try:
            return replace(self, **{name: _CASTS[name](value) for name, value in values.items()})
        except (TypeError, ValueError, OverflowError) as error:
            raise LineamentError(f"a setting has the wrong type: {error}") from None

    @property
    def track(self) -> TrackConfig:
        return TrackConfig(max_faces=self.max_faces, min_confidence=self.confidence, smooth=self.smooth)

    @property
    def view(self) -> DrawConfig:
        points, curves = "points" in self.shown, "curves" in self.shown
        return DrawConfig(
            draw="both" if points and curves else "points" if points else "curves" if curves else "none",
            schema="wflw98" if self.schema == WFLW98.name else "ibug68",
            boxes="boxes" in self.shown,
            pose="pose" in self.shown,
        )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    return tuple(_text(item) for item in value)


_CASTS: dict[str, Callable[[object], Any]] = {
    "model": _text,
    "max_faces": lambda value: int(_number(value)),
    "confidence": _number,
    "smooth": bool,
    "schema": _text,
    "shown": _names,
}
