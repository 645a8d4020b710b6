"""Serves the page: Gradio's app with the WebSockets of the live views, the results of clips, and the guard."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute

from lineament.demo import page_parts
from lineament.demo.app import build
from lineament.demo.config import DemoConfig
from lineament.demo.context import RESULTS_URL, SAMPLE_URL, Demo
from lineament.demo.guard import Guard
from lineament.demo.live import LiveViews
from lineament.demo.models import Models
from lineament.demo.sample_clip import SampleClip
from lineament.demo.visitors import Admission, Tabs
from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.warm import warm_up

log = logging.getLogger(__name__)

_FONT = ("system-ui", "sans-serif")
_RESULTS = r"((left|right)/)?(annotated\.mp4|points\.jsonl)"


@dataclass(frozen=True, slots=True)
class Address:
    """The URLs of the running demo."""

    local: str
    public: str | None
    """None if no public link was requested or available"""


@contextmanager
def serving(cfg: DemoConfig) -> Iterator[Address]:
    """Runs the demo inside the block; deletes all files of visitors after it."""
    with TemporaryDirectory(prefix="lineament-", ignore_cleanup_errors=True) as name, Models(cfg.model) as models:
        folder = Path(name).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        usual = models[models.usual]
        warm_up(usual, usual.card)
        admission, tabs = Admission(cfg.limits.visitors), Tabs(folder)
        sample = SampleClip(folder / "sample")
        live = LiveViews(models, admission, cfg, workers=os.cpu_count() or 1)
        guard = Middleware(Guard, folder=folder, limits=cfg.limits, login=cfg.login is not None)
        blocks = build(Demo(cfg, models, admission, tabs, sample))
        routes: list[BaseRoute] = [
            WebSocketRoute("/lineament/live", live.webcam),
            WebSocketRoute("/lineament/camera", live.camera),
            Route(f"/{SAMPLE_URL}", _sample_route(sample)),
            Route(f"/{RESULTS_URL}/{{folder}}/{{name:path}}", _result_route(folder)),
        ]
        with _swept(tabs, cfg.limits.keep_s), contextlib.closing(live):
            try:
                yield _launch(blocks, cfg, routes, guard)
            finally:
                tabs.close_all()
                blocks.close(verbose=False)


@contextmanager
def _swept(tabs: Tabs, age_s: float) -> Iterator[None]:
    """Runs a thread inside the block that deletes the files of idle and abandoned pages."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(min(60.0, age_s)):
            tabs.sweep(age_s)

    thread = threading.Thread(target=sweep, name="sweeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _launch(blocks: gr.Blocks, cfg: DemoConfig, routes: list[BaseRoute], guard: Middleware) -> Address:
    try:
        # Gradio prints hints about installing tools; demo.__main__ prints what matters
        with contextlib.redirect_stdout(io.StringIO()):
            _, local, public = blocks.launch(
                server_name=cfg.host,
                server_port=cfg.port,
                share=cfg.share,
                auth=cfg.login,
                root_path=cfg.root_path.rstrip("/") or None,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                show_error=False,
                ssr_mode=False,
                run_history=False,
                enable_monitoring=False,
                mcp_server=False,
                footer_links=["api", "settings"],
                state_session_capacity=1000,
                max_file_size=int(cfg.limits.upload_mb * 1_000_000),
                theme=gr.themes.Soft(font=_FONT, font_mono=("ui-monospace", "monospace")),
                css=page_parts.css(),
                head=page_parts.head(),
                app_kwargs={"routes": routes, "middleware": [guard]},
            )
    except OSError:
        ports = cfg.port or "7860 and up"
        raise LineamentError(
            f"cannot listen on {cfg.host}, port {ports}: in use, or not an address of this machine; "
            "use another --port or --host"
        ) from None
    return Address(local.rstrip("/") + "/", public or None)


def _sample_route(sample: SampleClip) -> Callable[[Request], Response]:
    def serve(_: Request) -> Response:
        return FileResponse(sample.path(), media_type="video/mp4")

    return serve


def _result_route(folder: Path) -> Callable[[Request], Response]:
    def serve(request: Request) -> Response:
        """The folder name is a secret token, which authorises the download."""
        token, name = request.path_params["folder"], request.path_params["name"]
        path = folder / token / name
        if not re.fullmatch(r"[\w-]{20,40}", token) or not re.fullmatch(_RESULTS, name) or not path.is_file():
            return PlainTextResponse("this result has been deleted; run the clip again", 404)
        return FileResponse(path, headers={"Cache-Control": "no-store"})

    return serve
