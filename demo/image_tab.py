"""The Image tab: every face in a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from lineament.demo import page_parts
from lineament.demo.chooser import Chooser, picture_of
from lineament.demo.context import Demo
from lineament.demo.controls import Controls, Values
from lineament.demo.picture import find
from lineament.landmarks.types import LineamentError

IN_TURN: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "picture", "concurrency_limit": 2}
"""how Gradio queues work on a picture"""
_EMPTY = "Drop a picture above, or use a sample."


def image_tab(demo: Demo, controls: Controls) -> None:
    chooser = Chooser.make("image-file", "A picture")
    shown = gr.HTML(page_parts.empty(_EMPTY), js_on_load="Lineament.zoomable(element, watch)", elem_id="image-result")

    def show(values: Values, request: gr.Request) -> str:
        try:
            if (chosen := chooser.chosen(demo, values, request)) is None:
                return page_parts.empty(_EMPTY)
            settings = controls.picture_settings(values)
            picture = picture_of(chosen, demo.cfg.limits)
            return page_parts.picture(find(picture.bgr, settings, demo.models), settings, picture.left_out)
        except LineamentError as error:
            return page_parts.error(error)

    inputs = {*chooser.inputs, *controls.of_pictures}
    work: dict[str, Any] = {"fn": show, "inputs": inputs, "outputs": shown, **IN_TURN}
    chooser.then(**work)
    gr.on([control.change for control in controls.of_pictures], trigger_mode="always_last", **work)
