"""What the tabs share. One instance for all visitors; the state of each visitor is looked up by session."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from lineament.demo.config import DemoConfig
from lineament.demo.models import Models
from lineament.demo.sample_clip import SampleClip
from lineament.demo.visitors import Admission, Tabs
from lineament.landmarks.types import LineamentError

RESULTS_URL = "lineament/result"
"""where demo.server serves the results of clips; relative, so that it works behind a proxy"""
SAMPLE_URL = "lineament/sample.mp4"


@dataclass(frozen=True, slots=True)
class Demo:
    """Created by demo.server."""

    cfg: DemoConfig
    models: Models
    admission: Admission
    tabs: Tabs
    sample: SampleClip


COMPARE = " compare"
"""the part of a page that has jobs of its own, beside those of the Video tab"""
PARTS = ("", COMPARE)


def session(request: gr.Request, part: str = "") -> str:
    """Identifies the open page that sent the request, or a part of it."""
    if not request.session_hash:
        raise LineamentError("the request has no session; reload the page, or use gradio_client")
    return request.session_hash + part
