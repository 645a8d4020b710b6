"""What the page's tabs work with. One for all visitors: what belongs to one of them is found by their session."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from lineament.demo.config import DemoConfig
from lineament.demo.models import Models
from lineament.demo.sample_clip import SampleClip
from lineament.demo.visitors import Door, Tabs
from lineament.landmarks.types import LineamentError

RESULTS_URL = "lineament/result"
"""where demo.server hands out what was made of a clip; relative, so that it holds behind any address"""
SAMPLE_URL = "lineament/sample.mp4"


@dataclass(frozen=True, slots=True)
class Demo:
    """Made by demo.server."""

    cfg: DemoConfig
    models: Models
    door: Door
    tabs: Tabs
    sample: SampleClip


def session(request: gr.Request) -> str:
    """Which open page asks."""
    if not request.session_hash:
        raise LineamentError("the request belongs to no session; load the page again, or use gradio_client")
    return request.session_hash
