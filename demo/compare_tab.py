"""The Compare tab: two models on the same picture or clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gradio as gr

from lineament.demo import page_parts
from lineament.demo.chooser import Chooser, picture_of
from lineament.demo.compare import compare_clip
from lineament.demo.context import COMPARE, RESULTS_URL, Demo, session
from lineament.demo.controls import Controls, Values
from lineament.demo.image_tab import IN_TURN
from lineament.demo.picture import compare
from lineament.demo.uploads import check_clip, is_clip
from lineament.demo.video_tab import AT_ONCE, ONE_BY_ONE, frames_told
from lineament.demo.visitors import Cancelled
from lineament.landmarks.types import LineamentError

_EMPTY = "Drop a picture or a clip above, or use a sample."
_CLIP = "This is a clip: one model after the other follows its faces. Press Compare the clip."


def compare_tab(demo: Demo, controls: Controls) -> None:
    view = _View.make(demo.models.names)
    jobs = _Jobs(demo, controls, view)
    models = (view.left, view.right)
    shown = [*view.drawings, view.table]
    pictures = {*view.chooser.inputs, *models, *controls.of_pictures}
    work: dict[str, Any] = {"fn": jobs.show, "inputs": pictures, "outputs": [*shown, view.clip_row], **IN_TURN}
    view.chooser.then(**work)
    gr.on([model.change for model in models], trigger_mode="always_last", **work)
    inputs = {view.job, *view.chooser.inputs, *models, *controls.of_videos}
    begun = view.start.click(jobs.begin, None, view.job, **AT_ONCE)
    begun.then(jobs.compare_clip, inputs, shown, show_progress_on=view.table, **ONE_BY_ONE)
    view.cancel.click(jobs.cancel, None, None, **AT_ONCE)


@dataclass(frozen=True, slots=True)
class _View:
    """The components of the tab."""

    left: Any
    right: Any
    chooser: Chooser
    clip_row: Any
    """visible when a clip is chosen"""
    start: Any
    cancel: Any
    job: Any
    """invisible: the name of the job's folder"""
    table: Any
    drawings: list[Any]

    @classmethod
    def make(cls, names: list[str]) -> Self:
        with gr.Row():
            left = gr.Dropdown(names, value=names[0], label="Left model")
            right = gr.Dropdown(names, value=names[-1], label="Right model")
        chooser = Chooser.make("compare-file", "A picture or a clip", COMPARE, clips=True)
        with gr.Row(visible=False) as clip_row:
            start = gr.Button("Compare the clip", variant="primary", min_width=120)
            cancel = gr.Button("Cancel", min_width=120)
        table = gr.HTML(page_parts.empty(_EMPTY), elem_id="compare-table")
        with gr.Row():
            drawings = [
                gr.HTML(js_on_load="Lineament.zoomable(element, watch)", min_width=280, elem_id=f"compare-{side}")
                for side in ("left", "right")
            ]
        return cls(left, right, chooser, clip_row, start, cancel, gr.Textbox(visible=False), table, drawings)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The callbacks of the tab; the first results are the two drawings and the table."""

    demo: Demo
    controls: Controls
    view: _View

    def show(self, values: Values, request: gr.Request) -> tuple[str, str, str, Any]:
        """A picture is compared at once; a clip waits for the button."""
        demo, is_a_clip = self.demo, False
        try:
            if (chosen := self.view.chooser.chosen(demo, values, request)) is None:
                shown = ("", "", page_parts.empty(_EMPTY))
            elif isinstance(chosen, Path) and is_clip(chosen):
                check_clip(chosen, demo.cfg.limits)
                shown, is_a_clip = ("", "", page_parts.empty(_CLIP)), True
            else:
                settings = self.controls.picture_settings(values)
                picture = picture_of(chosen, demo.cfg.limits)
                compared = compare(picture.bgr, self._models(values), settings, demo.models)
                shown = page_parts.compared(*compared, settings, picture.left_out)
        except LineamentError as error:
            shown = ("", "", page_parts.error(error))
        return *shown, gr.Row(visible=is_a_clip)

    def begin(self, request: gr.Request) -> str:
        """Registers the job before it is queued, so that it can be cancelled while it waits."""
        return self.demo.tabs.begin(session(request, COMPARE))[1].name

    def cancel(self, request: gr.Request) -> None:
        self.demo.tabs.cancel(session(request, COMPARE))

    def compare_clip(
        self,
        values: Values,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio passes one for such a default
    ) -> tuple[str, str, str]:
        demo, told = self.demo, frames_told(progress)
        try:
            with demo.tabs.running(session(request, COMPARE), values[self.view.job]) as job:
                chosen = self.view.chooser.chosen(demo, values, request)
                if not isinstance(chosen, Path):
                    raise LineamentError("no clip is chosen; drop one above, or use the sample")
                settings, models, limits = self.controls.settings(values), self._models(values), demo.cfg.limits
                both = compare_clip(chosen, job.folder, models, settings, demo.models, limits, job.cancelled, told)
        except Cancelled:
            return "", "", page_parts.note("Cancelled.")
        except LineamentError as error:
            return "", "", page_parts.error(error)
        return page_parts.compared_clips(*both, f"{RESULTS_URL}/{job.folder.name}")

    def _models(self, values: Values) -> tuple[str, str]:
        return values[self.view.left], values[self.view.right]
