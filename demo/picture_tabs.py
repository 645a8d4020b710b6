"""The tabs for one picture: Image shows its faces, Compare the results of two models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gradio as gr

from lineament.demo import page_parts
from lineament.demo.context import Demo, session
from lineament.demo.controls import Controls, Values
from lineament.demo.picture import compare, find
from lineament.demo.uploads import is_clip, read_picture
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.sample import Sample

_FILE = "file"
_SAMPLES = {"One face": Sample(), "Three faces": Sample(size_hw=(540, 960), faces=3)}
_SAMPLE_FRAME = 60
"""index of the sample's frame; every face is visible in it"""
_EMPTY = "Drop a picture above, or use a sample."
_IN_TURN: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "picture", "concurrency_limit": 2}


def image_tab(demo: Demo, controls: Controls) -> None:
    chooser = _Chooser.make("image-file")
    shown = gr.HTML(page_parts.empty(_EMPTY), js_on_load="Lineament.zoomable(element, watch)", elem_id="image-result")

    def show(values: Values, request: gr.Request) -> str:
        try:
            if (bgr := chooser.picture(demo, values, request)) is None:
                return page_parts.empty(_EMPTY)
            settings = controls.picture_settings(values)
            return page_parts.picture(find(bgr, settings, demo.models), settings)
        except LineamentError as error:
            return page_parts.error(error)

    inputs = {*chooser.inputs, *controls.of_pictures}
    work: dict[str, Any] = {"fn": show, "inputs": inputs, "outputs": shown, **_IN_TURN}
    chooser.then(**work)
    gr.on([control.change for control in controls.of_pictures], trigger_mode="always_last", **work)


def compare_tab(demo: Demo, controls: Controls) -> None:
    names = demo.models.names
    with gr.Row():
        left = gr.Dropdown(names, value=names[0], label="Left model")
        right = gr.Dropdown(names, value=names[-1], label="Right model")
    chooser = _Chooser.make("compare-file")
    table = gr.HTML(page_parts.empty(_EMPTY), elem_id="compare-table")
    with gr.Row():
        drawings = [
            gr.HTML(js_on_load="Lineament.zoomable(element, watch)", min_width=280, elem_id=f"compare-{side}")
            for side in ("left", "right")
        ]

    def show(values: Values, request: gr.Request) -> tuple[str, str, str]:
        try:
            if (bgr := chooser.picture(demo, values, request)) is None:
                return "", "", page_parts.empty(_EMPTY)
            settings = controls.picture_settings(values)
            return page_parts.compared(*compare(bgr, (values[left], values[right]), settings, demo.models), settings)
        except LineamentError as error:
            return "", "", page_parts.error(error)

    inputs = {*chooser.inputs, left, right, *controls.of_pictures}
    work: dict[str, Any] = {"fn": show, "inputs": inputs, "outputs": [*drawings, table], **_IN_TURN}
    chooser.then(**work)
    gr.on([left.change, right.change], trigger_mode="always_last", **work)


@dataclass(frozen=True, slots=True)
class _Chooser:
    """Lets the visitor choose a picture: a file of theirs, or a sample."""

    choice: Any
    """state: _FILE, the name of a sample, or "" before anything is chosen"""
    file: Any
    samples: dict[str, Any]

    @classmethod
    def make(cls, elem_id: str) -> Self:
        choice = gr.State("")
        with gr.Row():
            file = gr.File(label="A picture", height=120, elem_id=elem_id)
            samples = {name: gr.Button(name, scale=0, min_width=160) for name in _SAMPLES}
        return cls(choice, file, samples)

    @property
    def inputs(self) -> tuple[Any, Any]:
        return self.choice, self.file

    def then(self, **work: Any) -> None:
        """Registers what runs after every choice."""
        choices = [(self.file.upload, _FILE), (self.file.clear, "")]
        choices += [(button.click, name) for name, button in self.samples.items()]
        for event, value in choices:
            event(_always(value), None, self.choice, queue=False, api_visibility="private").then(**work)

    def picture(self, demo: Demo, values: Values, request: gr.Request) -> U8 | None:
        """(H, W, 3) BGR of the chosen picture; None before anything is chosen."""
        source, path = values[self.choice], values[self.file]
        if not source:
            return None
        if source != _FILE:
            return _SAMPLES[source].render(_SAMPLE_FRAME)
        demo.tabs.uploaded(session(request), path)
        if path is None:
            raise LineamentError("the picture has been deleted; upload it again")
        try:
            return read_picture(Path(path), demo.cfg.limits)
        except LineamentError:
            if is_clip(Path(path)):
                raise LineamentError("this is a clip, not a picture; use the Video tab") from None
            raise


def _always(value: str) -> Callable[[], str]:
    return lambda: value
