"""Controls: the components for the settings that all tabs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from lineament.demo.models import Models
from lineament.demo.settings import MAX_FACES, SHOWN, Settings
from lineament.landmarks.schema import IBUG68, WFLW98

Values = Mapping[Any, Any]
"""component to value, as Gradio passes a set of inputs"""


@dataclass(frozen=True, slots=True)
class Controls:
    """The settings panel. Changes apply at once."""

    by_name: dict[str, Any]
    """setting to component, in the order that the page's script expects"""
    mirror: Any

    @classmethod
    def make(cls, models: Models) -> Controls:
        usual = Settings(models.usual)
        return cls(
            {
                "model": gr.Dropdown(models.names, value=usual.model, label="Model", filterable=False, render=False),
                "max_faces": gr.Slider(
                    1, MAX_FACES, usual.max_faces, step=1, label="Max faces in a video", render=False
                ),
                "confidence": gr.Slider(0, 1, usual.confidence, step=0.05, label="Confidence", render=False),
                "smooth": gr.Checkbox(usual.smooth, label="Smooth over time", render=False),
                "schema": gr.Radio(
                    [("98 (WFLW)", WFLW98.name), ("68 (iBUG)", IBUG68.name)],
                    value=usual.schema,
                    label="Points",
                    render=False,
                ),
                "shown": gr.CheckboxGroup(list(SHOWN), value=list(usual.shown), label="Draw", render=False),
            },
            gr.Checkbox(True, label="Mirror the webcam", render=False),
        )

    def render(self) -> None:
        for control in self.all:
            control.render()

    @property
    def of_videos(self) -> list[Any]:
        return list(self.by_name.values())

    @property
    def of_pictures(self) -> list[Any]:
        """All except max_faces, because a picture shows every face."""
        return [control for name, control in self.by_name.items() if name != "max_faces"]

    @property
    def all(self) -> list[Any]:
        return [*self.of_videos, self.mirror]

    def settings(self, values: Values) -> Settings:
        return Settings().changed({name: values[control] for name, control in self.by_name.items()})

    def picture_settings(self, values: Values) -> Settings:
        return self.settings({**values, self.by_name["max_faces"]: 0})
