"""The page: its tabs, its controls, and what happens when they are used.

Live views talk to demo.live by their own sockets. Pictures and clips go through Gradio's queue, so that at most a few
are worked on at a time and the rest wait for their turn, or are told that too many do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from demo import page_parts
from demo.about import about
from demo.analyst import as_json
from demo.clip import ANGLES, OPENNESS, Cancelled, Row, annotate
from demo.config import DemoConfig
from demo.models import Models
from demo.picture import compare, find
from demo.sample_clip import SampleClip
from demo.settings import MAX_FACES, SHOWN, Settings
from demo.uploads import read_picture
from demo.visitors import Door, Tabs
from landmarks.schema import IBUG68, WFLW98
from landmarks.types import U8, LineamentError
from stream.sample import Sample

RESULTS_URL = "lineament/result"
"""where demo.server hands out what was made of a clip; relative, so that it holds behind any address"""
SAMPLE_URL = "lineament/sample.mp4"
_FILE = "file"
_SAMPLES = {"One face": Sample(), "Three faces": Sample(size_hw=(540, 960), faces=3)}
_SAMPLE_FRAME = 60
"""of the sample, as a picture: every face is in sight"""
_PLOTTED = 600
"""points of one line in a plot: more than a screen shows"""

Values = Mapping[Any, Any]
"""component to value, as Gradio hands over a set of inputs"""


@dataclass(frozen=True, slots=True)
class Page:
    """What the page works with. One for all visitors: what belongs to one of them is found by their session."""

    cfg: DemoConfig
    models: Models
    door: Door
    tabs: Tabs
    sample: SampleClip

    def build(self) -> gr.Blocks:
        keep_s = self.cfg.limits.keep_s
        with gr.Blocks(title="Lineament", analytics_enabled=False, delete_cache=(60, keep_s)) as blocks:
            gr.Markdown("# Lineament\n98 landmarks on every face. Nothing is kept, and nothing leaves this machine.")
            with gr.Row():
                with gr.Column(scale=4, min_width=300):
                    # made before the tabs that use them, shown after
                    controls = _Controls.make(self.models.names)
                    with gr.Tabs():
                        with gr.Tab("Live"):
                            self._live()
                        with gr.Tab("Video"):
                            self._video(controls)
                        with gr.Tab("Image"):
                            self._image(controls)
                        with gr.Tab("Camera"):
                            self._camera()
                        with gr.Tab("Compare"):
                            self._compare(controls)
                        with gr.Tab("About"):
                            gr.Markdown(about(self.cfg, self.models))
                with gr.Column(scale=1, min_width=240), gr.Accordion("Settings", open=True):
                    controls.render()
            self._interface()
            told = "(model, max_faces, confidence, smooth, schema, shown, mirror) => {"
            told += "Lineament.set({ model, max_faces, confidence, smooth, schema, shown }, { mirror, shown }); }"
            every = [blocks.load, *(control.change for control in controls.all)]
            gr.on(every, fn=None, inputs=controls.all, js=told, api_visibility="private", show_progress="hidden")
            blocks.unload(self._gone)
        blocks.queue(max_size=self.cfg.limits.waiting, default_concurrency_limit=1)
        built: gr.Blocks = blocks  # what `with` gives is not typed
        return built

    def _gone(self, request: gr.Request) -> None:
        self.tabs.close(_session(request))

    # ---- live ------------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        gr.HTML(
            html_template=page_parts.view("live"),
            js_on_load=f'Lineament.webcam(element, server, "{SAMPLE_URL}")',
            server_functions=[self._ticket_function()],
            elem_id="live",
        )

    def _camera(self) -> None:
        if not self.cfg.camera_tab:
            gr.Markdown(
                "Network cameras are switched off, because others can reach this demo and would make this machine "
                "open addresses for them. Whoever runs it can allow them with `--camera`."
            )
            return
        told = "RTSP, or video over HTTP." + (
            "" if self.cfg.allow_private else " Cameras in private networks need `--allow-private` at the start."
        )
        gr.Markdown(told)
        gr.HTML(
            html_template=page_parts.view("camera"),
            js_on_load="Lineament.camera(element, server)",
            server_functions=[self._ticket_function()],
            elem_id="camera",
        )

    def _ticket_function(self) -> Callable[[object], str]:
        def ticket(_: object) -> str:
            return self.door.ticket()

        return ticket

    # ---- picture ---------------------------------------------------------------------------------------------------

    def _image(self, controls: _Controls) -> None:
        chosen = gr.State("")
        with gr.Row():
            file = gr.File(label="A picture", height=120, elem_id="image-file")
            samples = {name: gr.Button(name, scale=0, min_width=160) for name in _SAMPLES}
        shown = gr.HTML(
            page_parts.empty("Drop a picture above, or take a sample."),
            js_on_load="Lineament.zoomable(element, watch)",
            elem_id="image-result",
        )

        def show(values: Values, request: gr.Request) -> str:
            source = values[chosen]
            if not source:
                return page_parts.empty("Drop a picture above, or take a sample.")
            try:
                settings = controls.settings(values)
                return page_parts.picture(
                    find(self._picture(source, values[file], request), settings, self.models), settings
                )
            except LineamentError as error:
                return page_parts.error(error)

        work = {
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

    def _picture(self, source: str, path: str | None, request: gr.Request) -> U8:
        """(H, W, 3) BGR of what the visitor chose: a sample by name, or the file that they sent."""
        if source != _FILE:
            return _SAMPLES[source].render(_SAMPLE_FRAME)
        self.tabs.uploaded(_session(request), path)
        if path is None:
            raise LineamentError("the picture is no longer here; send it again")
        return read_picture(Path(path), self.cfg.limits)

    # ---- compare ---------------------------------------------------------------------------------------------------

    def _compare(self, controls: _Controls) -> None:
        names = self.models.names
        chosen = gr.State("")
        with gr.Row():
            left = gr.Dropdown(names, value=names[0], label="Left model")
            right = gr.Dropdown(names, value=names[1], label="Right model")
        with gr.Row():
            file = gr.File(label="A picture", height=120, elem_id="compare-file")
            samples = {name: gr.Button(name, scale=0, min_width=160) for name in _SAMPLES}
        table = gr.HTML(page_parts.empty("Drop a picture above, or take a sample."), elem_id="compare-table")
        with gr.Row():
            drawings = [
                gr.HTML(js_on_load="Lineament.zoomable(element, watch)", min_width=280, elem_id=f"compare-{side}")
                for side in ("left", "right")
            ]

        def show(values: Values, request: gr.Request) -> tuple[str, str, str]:
            source = values[chosen]
            if not source:
                return "", "", page_parts.empty("Drop a picture above, or take a sample.")
            try:
                settings = controls.settings(values)
                bgr = self._picture(source, values[file], request)
                return page_parts.compared(
                    *compare(bgr, (values[left], values[right]), settings, self.models), settings
                )
            except LineamentError as error:
                return "", "", page_parts.error(error)

        work = {
            "fn": show,
            "inputs": {chosen, file, left, right, *controls.of_pictures},
            "outputs": [*drawings, table],
            "api_visibility": "private",
            # alone, for what it measures is time
            "concurrency_id": "clip",
        }
        file.upload(lambda: _FILE, None, chosen, queue=False, api_visibility="private").then(**work)
        for name, button in samples.items():
            button.click(_always(name), None, chosen, queue=False, api_visibility="private").then(**work)
        gr.on([left.change, right.change], trigger_mode="always_last", **work)

    # ---- clip ------------------------------------------------------------------------------------------------------

    def _video(self, controls: _Controls) -> None:
        limits = self.cfg.limits
        rows = gr.State(list[Row]())
        file = gr.File(
            label=f"A clip of at most {limits.clip_s:g} s and {limits.upload_mb} MB",
            height=120,
            elem_id="video-file",
        )
        with gr.Row():
            start = gr.Button("Annotate", variant="primary", min_width=120)
            sample = gr.Button("Use the sample", min_width=120)
            cancel = gr.Button("Cancel", min_width=120)
        shown = gr.HTML(page_parts.empty("Drop a clip above, or take the sample."), elem_id="video-result")
        signals = gr.CheckboxGroup(
            [*OPENNESS, *ANGLES], value=[*OPENNESS, "yaw"], label="Signals", elem_id="video-signals"
        )
        plots = [
            gr.LinePlot(x="s", y=y, color="signal", height=220, visible=False, show_label=False, elem_id=f"plot-{name}")
            for name, y in (("openness", "height / width"), ("angles", "degrees"))
        ]

        def work(path: str | None, values: Values, request: gr.Request, progress: gr.Progress) -> tuple[Any, ...]:
            session = _session(request)
            cancelled, folder = self.tabs.begin(session)

            def told(done: int, total: int | None) -> None:
                progress((done, max(done, total)) if total else None, desc="frames", unit="frames")

            try:
                if path is None:
                    raise LineamentError("no clip is chosen; drop one above, or use the sample")
                settings = controls.settings(values)
                made = annotate(Path(path), folder, settings, self.models, limits, cancelled, told)
            except Cancelled:
                return [], page_parts.note("Cancelled.")
            except LineamentError as error:
                return [], page_parts.error(error)
            finally:
                self.tabs.end(session, cancelled)
            return made.rows, page_parts.clip(made, f"{RESULTS_URL}/{folder.name}")

        def of_upload(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008 - how Gradio is asked for one
            self.tabs.uploaded(_session(request), values[file])
            return work(values[file], values, request, progress)

        def of_sample(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> tuple[Any, ...]:  # noqa: B008
            return work(str(self.sample.path()), values, request, progress)

        def stop(request: gr.Request) -> str:
            under_way = self.tabs.cancel(_session(request))
            return page_parts.note("Cancelled." if under_way else "Nothing was under way.")

        def plot(rows: list[Row], signals: list[str]) -> list[Any]:
            kinds = ((OPENNESS, "height / width"), (ANGLES, "degrees"))
            return [_plot(rows, [s for s in kind if s in signals], y) for kind, y in kinds]

        runs = [
            button.click(
                fn,
                {file, *controls.of_pictures},
                [rows, shown],
                concurrency_id="clip",
                concurrency_limit=1,
                show_progress_on=shown,
                api_visibility="private",
            )
            for button, fn in ((start, of_upload), (sample, of_sample))
        ]
        for run in runs:
            run.then(plot, [rows, signals], plots, api_visibility="private", show_progress="hidden")
        signals.change(
            plot, [rows, signals], plots, api_visibility="private", show_progress="hidden", trigger_mode="always_last"
        )
        cancel.click(stop, None, shown, cancels=[*runs], queue=False, api_visibility="private")

    # ---- programming interface -------------------------------------------------------------------------------------

    def _interface(self) -> None:
        """What gradio_client and curl may call."""

        def landmarks(
            picture: str, model: str, max_faces: float, confidence: float, schema: str, request: gr.Request
        ) -> dict[str, object]:
            """Every face of a picture with its points. picture: a file. schema: wflw98 (98 points) or ibug68 (68)."""
            self.tabs.uploaded(_session(request), picture)
            try:
                settings = Settings().changed(
                    {"model": model, "max_faces": max_faces, "confidence": confidence, "schema": schema}
                )
                if not picture:
                    raise LineamentError("no picture came; send one as handle_file('photo.jpg')")
                return as_json(find(read_picture(Path(picture), self.cfg.limits), settings, self.models), schema)
            except LineamentError as error:
                raise gr.Error(str(error), print_exception=False) from None

        usual = Settings()
        with gr.Group(visible=False):
            inputs = [
                gr.File(label="picture"),
                gr.Textbox(usual.model, label="model"),
                gr.Number(usual.max_faces, label="max_faces"),
                gr.Number(usual.confidence, label="confidence"),
                gr.Textbox(usual.schema, label="schema"),
            ]
            found = gr.JSON(label="landmarks")
            gr.Button().click(
                landmarks, inputs, found, api_name="landmarks", concurrency_id="picture", concurrency_limit=2
            )


@dataclass(frozen=True, slots=True)
class _Controls:
    """What all tabs share. Each change holds at once."""

    by_name: dict[str, Any]
    """setting to component; the order is that of the page's script"""
    mirror: Any

    @classmethod
    def make(cls, models: list[str]) -> _Controls:
        usual = Settings()
        return cls(
            {
                "model": gr.Dropdown(models, value=usual.model, label="Model", filterable=False, render=False),
                "max_faces": gr.Slider(1, MAX_FACES, usual.max_faces, step=1, label="Max faces", render=False),
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
    def of_pictures(self) -> list[Any]:
        return list(self.by_name.values())

    @property
    def all(self) -> list[Any]:
        return [*self.of_pictures, self.mirror]

    def settings(self, values: Values) -> Settings:
        return Settings().changed({name: values[control] for name, control in self.by_name.items()})


def _plot(rows: list[Row], signals: list[str], y: str) -> Any:
    """One line a face and signal; a plot without any is not shown."""
    faces = sorted({face for face, _, _ in rows})
    lines = [
        (seconds, value, signal if len(faces) < 2 else f"{face} {signal}")
        for face in faces
        for signal in signals
        for seconds, value in _thinned([(s, values[signal]) for f, s, values in rows if f == face])
    ]
    return gr.LinePlot(pd.DataFrame(lines, columns=["s", y, "signal"]), visible=bool(lines))


def _thinned(points: list[tuple[float, float | None]]) -> list[tuple[float, float]]:
    step = math.ceil(len(points) / _PLOTTED) or 1
    return [(seconds, value) for seconds, value in points[::step] if value is not None]


def _always(value: str) -> Callable[[], str]:
    return lambda: value


def _session(request: gr.Request) -> str:
    if not request.session_hash:
        raise LineamentError("the request belongs to no session; load the page again, or use gradio_client")
    return request.session_hash
