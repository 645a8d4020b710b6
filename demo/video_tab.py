"""The Video tab: a clip becomes an annotated one, lines of JSON and plots."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from lineament.demo import page_parts
from lineament.demo.clip import ANGLES, OPENNESS, Cancelled, Row, annotate
from lineament.demo.context import RESULTS_URL, Demo, session
from lineament.demo.controls import Controls, Values
from lineament.landmarks.types import LineamentError

_PLOTTED = 600
"""points of one line in a plot: more than a screen shows"""


def video_tab(demo: Demo, controls: Controls) -> None:
    limits = demo.cfg.limits
    file = gr.File(
        label=f"A clip of at most {limits.clip_s:g} s and {limits.upload_mb} MB",
        height=120,
        elem_id="video-file",
    )
    job = gr.Textbox(visible=False)
    with gr.Row():
        start = gr.Button("Annotate", variant="primary", min_width=120)
        sample = gr.Button("Use the sample", min_width=120)
        cancel = gr.Button("Cancel", min_width=120)
    shown = gr.HTML(page_parts.empty("Drop a clip above, or take the sample."), elem_id="video-result")
    signals = gr.CheckboxGroup([*OPENNESS, *ANGLES], value=[*OPENNESS, "yaw"], label="Signals", elem_id="video-signals")
    plots = [
        gr.LinePlot(x="s", y=y, color="signal", height=220, visible=False, show_label=False, elem_id=f"plot-{name}")
        for name, y in (("openness", "height / width"), ("angles", "degrees"))
    ]

    def work(path: str | None, values: Values, request: gr.Request, progress: gr.Progress) -> str:
        page, rows = session(request), list[Row]()
        begun = demo.tabs.turn(page, values[job])
        if begun is None:
            return page_parts.note("Cancelled.")
        cancelled, folder = begun

        def told(done: int, total: int | None) -> None:
            progress((done, max(done, total)) if total else None, desc="frames", unit="frames")

        try:
            if path is None:
                raise LineamentError("no clip is chosen; drop one above, or use the sample")
            settings = controls.settings(values)
            made = annotate(Path(path), folder, settings, demo.models, limits, cancelled, told)
            rows = made.rows
        except Cancelled:
            return page_parts.note("Cancelled.")
        except LineamentError as error:
            return page_parts.error(error)
        finally:
            demo.tabs.end(page, cancelled, rows)
        return page_parts.clip(made, f"{RESULTS_URL}/{folder.name}")

    def sent(path: str | None, request: gr.Request) -> None:
        demo.tabs.uploaded(session(request), path)

    def of_upload(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 - how Gradio is asked for one
        return work(values[file], values, request, progress)

    def of_sample(values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        return work(str(demo.sample.path()), values, request, progress)

    def ask(request: gr.Request) -> str:
        # before its turn comes, so that it can be cancelled while it waits
        return demo.tabs.begin(session(request))[1].name

    def stop(request: gr.Request) -> None:
        demo.tabs.cancel(session(request))

    def plot(signals: list[str], request: gr.Request) -> list[Any]:
        rows = demo.tabs.result(session(request))
        kinds = ((OPENNESS, "height / width"), (ANGLES, "degrees"))
        return [_plot(rows, [s for s in kind if s in signals], y) for kind, y in kinds]

    at_once: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    in_turn: dict[str, Any] = {
        "inputs": {job, file, *controls.of_videos},
        "outputs": shown,
        "concurrency_id": "clip",
        "concurrency_limit": 1,
        "show_progress_on": shown,
        "api_visibility": "private",
    }
    file.upload(sent, file, None, **at_once)
    drawing: dict[str, Any] = {
        "fn": plot,
        "inputs": signals,
        "outputs": plots,
        "show_progress": "hidden",
        "api_visibility": "private",
    }
    for button, fn in ((start, of_upload), (sample, of_sample)):
        button.click(ask, None, job, **at_once).then(fn, **in_turn).then(**drawing)
    signals.change(**drawing, trigger_mode="always_last")
    cancel.click(stop, None, None, **at_once)


def _plot(rows: object, signals: list[str], y: str) -> Any:
    """One line a face and signal; a plot without any is not shown. rows: a list of Row, if there is any."""
    rows = rows if isinstance(rows, list) else []
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
