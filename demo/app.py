"""The page: its tabs, its settings, and the API.

Live views talk to demo.live over their own WebSockets. Pictures and clips go through Gradio's queue, which runs a few
at a time and refuses new ones when it is full.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gradio as gr

from lineament.demo import page_parts
from lineament.demo.about import about
from lineament.demo.compare_tab import compare_tab
from lineament.demo.context import PARTS, SAMPLE_URL, Demo, session
from lineament.demo.controls import Controls
from lineament.demo.image_tab import image_tab
from lineament.demo.picture import find
from lineament.demo.settings import Settings
from lineament.demo.uploads import read_picture
from lineament.demo.video_tab import video_tab
from lineament.landmarks.types import LineamentError
from lineament.stream.write.json_line import result_json

_UPDATE_VIEWS = """(model, max_faces, confidence, smooth, schema, shown, mirror) => {
    Lineament.set({ model, max_faces, confidence, smooth, schema, shown }, { mirror, shown });
}"""


def build(demo: Demo) -> gr.Blocks:
    """The page, not yet served."""
    keep_s = demo.cfg.limits.keep_s
    with gr.Blocks(title="Lineament", analytics_enabled=False, delete_cache=(60, keep_s)) as blocks:
        gr.Markdown("# Lineament\n98 landmarks on every face. Nothing is kept or sent elsewhere.")
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                # created before the tabs that use them, rendered after
                controls = Controls.make(demo.models)
                with gr.Tabs():
                    with gr.Tab("Live"):
                        _live_tab(demo)
                    with gr.Tab("Video"):
                        video_tab(demo, controls)
                    with gr.Tab("Image"):
                        image_tab(demo, controls)
                    if demo.cfg.camera_tab:
                        with gr.Tab("Camera"):
                            _camera_tab(demo)
                    if len(demo.models.names) > 1:
                        with gr.Tab("Compare"):
                            compare_tab(demo, controls)
                    with gr.Tab("About"):
                        gr.Markdown(about(demo.cfg, demo.models))
            with gr.Column(scale=1, min_width=240), gr.Accordion("Settings", open=True):
                controls.render()
        _interface(demo)
        every = [blocks.load, *(control.change for control in controls.all)]
        gr.on(every, fn=None, inputs=controls.all, js=_UPDATE_VIEWS, api_visibility="private", show_progress="hidden")
        blocks.unload(_close_tabs(demo))
    blocks.queue(max_size=demo.cfg.limits.waiting, default_concurrency_limit=1)
    built: gr.Blocks = blocks  # the value of `with` is untyped
    return built


def _live_tab(demo: Demo) -> None:
    gr.HTML(
        html_template=page_parts.view("live"),
        js_on_load=f'Lineament.webcam(element, server, "{SAMPLE_URL}")',
        server_functions=[_ticket(demo)],
        elem_id="live",
    )


def _camera_tab(demo: Demo) -> None:
    gr.Markdown("RTSP, or video over HTTP. The machine that runs the demo connects to the camera.")
    gr.HTML(
        html_template=page_parts.view("camera"),
        js_on_load="Lineament.camera(element, server)",
        server_functions=[_ticket(demo)],
        elem_id="camera",
    )


def _ticket(demo: Demo) -> Callable[[object], str]:
    def ticket(_: object) -> str:
        return demo.admission.ticket()

    return ticket


def _interface(demo: Demo) -> None:
    """The endpoints for gradio_client and curl."""

    def landmarks(
        picture: str, model: str, max_faces: float, confidence: float, schema: str, request: gr.Request
    ) -> dict[str, object]:
        """The faces in a picture and their points. picture: file. max_faces: 0 for all. schema: wflw98 or ibug68."""
        try:
            demo.tabs.uploaded(session(request), picture)
            settings = Settings().changed(
                {"model": model, "max_faces": max_faces, "confidence": confidence, "schema": schema}
            )
            if not picture:
                raise LineamentError("no picture was sent; pass handle_file('photo.jpg')")
            return result_json(find(read_picture(Path(picture), demo.cfg.limits), settings, demo.models), schema)
        except LineamentError as error:
            raise gr.Error(str(error), print_exception=False) from None

    usual = Settings(demo.models.usual)
    with gr.Group(visible=False):
        inputs = [
            gr.File(label="picture"),
            gr.Textbox(usual.model, label="model"),
            gr.Number(0, label="max_faces"),
            gr.Number(usual.confidence, label="confidence"),
            gr.Textbox(usual.schema, label="schema"),
        ]
        found = gr.JSON(label="landmarks")
        gr.Button().click(landmarks, inputs, found, api_name="landmarks", concurrency_id="picture", concurrency_limit=2)


def _close_tabs(demo: Demo) -> Callable[[gr.Request], None]:
    def close(request: gr.Request) -> None:
        for part in PARTS:
            demo.tabs.close(session(request, part))

    return close
