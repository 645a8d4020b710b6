"""The Video tab: turns a clip into an annotated video, JSON lines and plots."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gradio as gr
import pandas as pd

from lineament.demo import page_parts
from lineament.demo.clip import ANGLES, OPENNESS, annotate
from lineament.demo.config import Limits
from lineament.demo.context import RESULTS_URL, Demo, session
from lineament.demo.controls import Controls, Values
from lineament.demo.visitors import Cancelled
from lineament.landmarks.types import LineamentError

AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
ONE_BY_ONE: dict[str, Any] = {"concurrency_id": "clip", "concurrency_limit": 1, "api_visibility": "private"}
"""how Gradio queues clips, of all visitors and tabs together"""
_PLOTTED = 600
"""points per line of a plot; more than a screen can show"""


def video_tab(demo: Demo, controls: Controls) -> None:
    view = _View.make(demo.cfg.limits)
    jobs = _Jobs(demo, controls, view)
    plotting: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = {view.job, view.file, *controls.of_videos}
    view.file.upload(jobs.uploaded, view.file, None, **AT_ONCE)
    for button, work in ((view.start, jobs.annotate_upload), (view.sample, jobs.annotate_sample)):
        begun = button.click(jobs.begin, None, view.job, **AT_ONCE)
        done = begun.then(work, inputs, view.result, show_progress_on=view.result, **ONE_BY_ONE)
        done.then(jobs.plot, view.signals, view.plots, **plotting)
    view.signals.change(jobs.plot, view.signals, view.plots, trigger_mode="always_last", **plotting)
    view.cancel.click(jobs.cancel, None, None, **AT_ONCE)


@dataclass(frozen=True, slots=True)
class _View:
    """The components of the tab."""

    file: Any
    job: Any
    """invisible: the name of the job's folder"""
    start: Any
    sample: Any
    cancel: Any
    result: Any
    signals: Any
    plots: list[Any]

    @classmethod
    def make(cls, limits: Limits) -> Self:
        label = f"A clip of at most {limits.clip_s:g} s and {limits.upload_mb} MB"
        file = gr.File(label=label, height=120, elem_id="video-file")
        job = gr.Textbox(visible=False)
        with gr.Row():
            start = gr.Button("Annotate", variant="primary", min_width=120)
            sample = gr.Button("Use the sample", min_width=120)
            cancel = gr.Button("Cancel", min_width=120)
        result = gr.HTML(page_parts.empty("Drop a clip above, or use the sample."), elem_id="video-result")
        signals = [*OPENNESS, *ANGLES]
        chosen = gr.CheckboxGroup(signals, value=[*OPENNESS, "yaw"], label="Signals", elem_id="video-signals")
        plots = [
            gr.LinePlot(x="s", y=y, color="signal", height=220, visible=False, show_label=False, elem_id=f"plot-{name}")
            for name, y in (("openness", "height / width"), ("angles", "degrees"))
        ]
        return cls(file, job, start, sample, cancel, result, chosen, plots)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The callbacks of the tab. The page of a visitor is identified by its session."""

    demo: Demo
    controls: Controls
    view: _View

    def uploaded(self, path: str | None, request: gr.Request) -> None:
        self.demo.tabs.uploaded(session(request), path)

    def begin(self, request: gr.Request) -> str:
        """Registers the job before it is queued, so that it can be cancelled while it waits."""
        return self.demo.tabs.begin(session(request))[1].name

    def cancel(self, request: gr.Request) -> None:
        self.demo.tabs.cancel(session(request))

    def annotate_upload(self, values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008 - Gradio passes one for such a default
        return self._annotate(values[self.view.file], values, session(request), progress)

    def annotate_sample(self, values: Values, request: gr.Request, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        return self._annotate(str(self.demo.sample.path()), values, session(request), progress)

    def _annotate(self, path: str | None, values: Values, page: str, progress: gr.Progress) -> str:
        """Runs the job and returns the HTML of its result."""
        demo, told = self.demo, frames_told(progress)
        try:
            with demo.tabs.running(page, values[self.view.job]) as job:
                if path is None:
                    raise LineamentError("no clip is chosen; drop one above, or use the sample")
                settings, limits = self.controls.settings(values), demo.cfg.limits
                made = annotate(Path(path), job.folder, settings, demo.models, limits, job.cancelled, told)
                job.rows.extend(made.rows)
        except Cancelled:
            return page_parts.note("Cancelled.")
        except LineamentError as error:
            return page_parts.error(error)
        return page_parts.clip(made, f"{RESULTS_URL}/{job.folder.name}")

    def plot(self, signals: list[str], request: gr.Request) -> list[Any]:
        rows = self.demo.tabs.result(session(request))
        kinds = ((OPENNESS, "height / width"), (ANGLES, "degrees"))
        return [_plot(rows, [s for s in kind if s in signals], y) for kind, y in kinds]


def frames_told(progress: gr.Progress) -> Callable[[int, int | None], None]:
    """Shows the frames done, of a total if it is known."""

    def told(done: int, total: int | None) -> None:
        progress((done, max(done, total)) if total else None, desc="frames", unit="frames")

    return told


def _plot(rows: object, signals: list[str], y: str) -> Any:
    """One line per face and signal; hidden if there is none. rows: a list of Row, or None."""
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
