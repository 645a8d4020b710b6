"""The chooser of the Image and Compare tabs: a file of the visitor's, or a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import gradio as gr

from lineament.demo.config import Limits
from lineament.demo.context import Demo, session
from lineament.demo.controls import Values
from lineament.demo.uploads import Upload, is_clip, read_upload
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.sample import Sample

_FILE, _CLIP = "file", "A clip"
_SAMPLES = {"One face": Sample(), "Three faces": Sample(size_hw=(540, 960), faces=3)}
_SAMPLE_FRAME = 60
"""index of the sample's frame; every face is visible in it"""


@dataclass(frozen=True, slots=True)
class Chooser:
    """What the visitor chose last."""

    part: str
    """of the page, as `session` takes it: what its uploads belong to"""
    choice: Any
    """state: _FILE, the name of a sample, or "" before anything is chosen"""
    file: Any
    samples: dict[str, Any]

    @classmethod
    def make(cls, elem_id: str, label: str, part: str = "", clips: bool = False) -> Self:
        """clips: whether to offer a clip among the samples."""
        choice = gr.State("")
        file = gr.File(label=label, height=120, elem_id=elem_id)
        with gr.Row():
            names = [*_SAMPLES, *([_CLIP] if clips else [])]
            samples = {name: gr.Button(name, min_width=120) for name in names}
        return cls(part, choice, file, samples)

    @property
    def inputs(self) -> tuple[Any, Any]:
        return self.choice, self.file

    def then(self, **work: Any) -> None:
        """Registers what runs after every choice."""
        choices = [(self.file.upload, _FILE), (self.file.clear, "")]
        choices += [(button.click, name) for name, button in self.samples.items()]
        for event, value in choices:
            event(_always(value), None, self.choice, queue=False, api_visibility="private").then(**work)

    def chosen(self, demo: Demo, values: Values, request: gr.Request) -> Path | U8 | None:
        """A file, or a sample as (H, W, 3) BGR; None before anything is chosen."""
        source, path = values[self.choice], values[self.file]
        if not source:
            return None
        if source == _CLIP:
            return demo.sample.path()
        if source != _FILE:
            return _SAMPLES[source].render(_SAMPLE_FRAME)
        demo.tabs.uploaded(session(request, self.part), path)
        if path is None:
            raise LineamentError("the file has been deleted; upload it again")
        return Path(path)


def picture_of(chosen: Path | U8, limits: Limits) -> Upload:
    """Raises LineamentError if it is a file of another kind."""
    if not isinstance(chosen, Path):
        return Upload(chosen, "")
    try:
        return read_upload(chosen, limits)
    except LineamentError:
        if is_clip(chosen):
            raise LineamentError("the file is a video, not a picture; use the Video tab") from None
        raise


def _always(value: str) -> Callable[[], str]:
    return lambda: value
