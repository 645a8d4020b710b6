"""The tabs for one picture: Image, which shows its faces, and Compare, which shows what two models make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from lineament.demo import page_parts
from lineament.demo.context import Demo, session
from lineament.demo.controls import Controls, Values
from lineament.demo.picture import compare, find
from lineament.demo.uploads import read_picture
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.sample import Sample

_FILE = "file"
_SAMPLES = {"One face": Sample(), "Three faces": Sample(size_hw=(540, 960), faces=3)}
_SAMPLE_FRAME = 60
"""of the sample, as a picture: every face is in sight"""
_EMPTY = "Drop a picture above, or take a sample."


def image_tab(demo: Demo, controls: Controls) -> None:
    chosen = gr.State("")
    with gr.Row():
        file = gr.File(label="A picture", height=120, elem_id="image-file")
        samples = {name: gr.Button(name, scale=0, min_width=160) for name in _SAMPLES}
    shown = gr.HTML(
        page_parts.empty(_EMPTY),
        js_on_load="Lineament.zoomable(element, watch)",
        elem_id="image-result",
    )

    def show(values: Values, request: gr.Request) -> str:
        source = values[chosen]
        if not source:
            return page_parts.empty(_EMPTY)
        try:
            settings = controls.picture_settings(values)
            return page_parts.picture(
                find(_picture(demo, source, values[file], request), settings, demo.models), settings
            )
        except LineamentError as error:
            return page_parts.error(error)

    work: dict[str, Any] = {
        "fn": show,
        "inputs": {chosen, file, *controls.of_pictures},
        "outputs": shown,
        "api_visibility": "private",
        "concurrency_id": "picture",
        "concurrency_limit": 2,
    }
    file.upload(lambda: _FILE, None, chosen, queue=False, api_visibility="private").then(**work)
    file.clear(lambda: "", None, chosen, queue=False, api_visibility="private").then(**work)
    for name, button in samples.items():
        button.click(_always(name), None, chosen, queue=False, api_visibility="private").then(**work)
    gr.on([control.change for control in controls.of_pictures], trigger_mode="always_last", **work)


def compare_tab(demo: Demo, controls: Controls) -> None:
    names = demo.models.names
    chosen = gr.State("")
    with gr.Row():
        left = gr.Dropdown(names, value=names[0], label="Left model")
        right = gr.Dropdown(names, value=names[-1], label="Right model")
    with gr.Row():
        file = gr.File(label="A picture", height=120, elem_id="compare-file")
        samples = {name: gr.Button(name, scale=0, min_width=160) for name in _SAMPLES}
    table = gr.HTML(page_parts.empty(_EMPTY), elem_id="compare-table")
    with gr.Row():
        drawings = [
            gr.HTML(js_on_load="Lineament.zoomable(element, watch)", min_width=280, elem_id=f"compare-{side}")
            for side in ("left", "right")
        ]

    def show(values: Values, request: gr.Request) -> tuple[str, str, str]:
        source = values[chosen]
        if not source:
            return "", "", page_parts.empty(_EMPTY)
        try:
            settings = controls.picture_settings(values)
            bgr = _picture(demo, source, values[file], request)
            return page_parts.compared(*compare(bgr, (values[left], values[right]), settings, demo.models), settings)
        except LineamentError as error:
            return "", "", page_parts.error(error)

    work: dict[str, Any] = {
        "fn": show,
        "inputs": {chosen, file, left, right, *controls.of_pictures},
        "outputs": [*drawings, table],
        "api_visibility": "private",
        "concurrency_id": "picture",
        "concurrency_limit": 2,
    }
    file.upload(lambda: _FILE, None, chosen, queue=False, api_visibility="private").then(**work)
    for name, button in samples.items():
        button.click(_always(name), None, chosen, queue=False, api_visibility="private").then(**work)
    gr.on([left.change, right.change], trigger_mode="always_last", **work)


def _picture(demo: Demo, source: str, path: str | None, request: gr.Request) -> U8:
    """(H, W, 3) BGR of what the visitor chose: a sample by name, or the file that they sent."""
    if source != _FILE:
        return _SAMPLES[source].render(_SAMPLE_FRAME)
    demo.tabs.uploaded(session(request), path)
    if path is None:
        raise LineamentError("the picture is no longer here; send it again")
    return read_picture(Path(path), demo.cfg.limits)


def _always(value: str) -> Callable[[], str]:
    return lambda: value
