"""A served demo and a visitor's browser, for the tests of the page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from lineament.demo.bench import browser_with_camera, chromium, free_port
from lineament.landmarks.types import U8
from lineament.stream.read.sample import Sample
from tests.waiting import WAIT_S, started, until

ROOT = Path(__file__).resolve().parent.parent
WAIT_MS = 1000 * WAIT_S
expect.set_options(timeout=WAIT_MS)
SERVER = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "tensorrt", "albumentations"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from lineament.demo.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Server:
    url: str
    folder: Path
    """for everything that it writes"""
    log: Path


@contextmanager
def serving(folder: Path, *args: str, **env: str) -> Iterator[Server]:
    """A demo without the training packages."""
    port = free_port()
    with served([sys.executable, "-c", SERVER, "--port", str(port), *args], ROOT, port, folder, **env) as server:
        yield server


@contextmanager
def served(command: Sequence[str], where: Path, port: int, folder: Path, **env: str) -> Iterator[Server]:
    """A server in its own process, ended by SIGTERM. where: its working folder. folder: for what it writes."""
    log = folder / "log"
    environment = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **env}
    options = {"stderr": subprocess.STDOUT, "env": environment}
    with log.open("w") as out, started(command, cwd=where, stdout=out, **options) as process:
        try:
            until(lambda: "open http" in log.read_text() or process.poll() is not None, log.read_text)
            assert process.poll() is None, log.read_text()
            yield Server(f"http://127.0.0.1:{port}/", folder, log)
        finally:
            process.terminate()
            code = process.wait(WAIT_S)
    assert code == 0, log.read_text()
    assert not list(folder.glob("lineament-*"))


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a fake camera: the shared clip of a turning face if present, else the sample."""
    if chromium() is None:
        pytest.skip("needs a browser; apt-get install chromium")
    film = folder / "camera.mjpeg"
    film.write_bytes(b"".join(cv2.imencode(".jpg", bgr)[1].tobytes() for bgr in _film()))
    with browser_with_camera(film) as browser:
        yield browser


def _film() -> list[U8]:
    clip = ROOT.parent / "shared" / "clips" / "head-pose-face-detection-female.gif"
    if not clip.is_file():
        return [Sample().render(index) for index in range(0, 90, 2)]
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="bgr24") for _, frame in zip(range(60), container.decode(video=0))]
    height, width = frames[0].shape[:2]
    size = (640, round(height * 640 / width / 2) * 2)
    return [np.asarray(cv2.resize(frame, size), np.uint8) for frame in frames]


@contextmanager
def visit(
    browser: Browser, server: Server, init: str = "", login: tuple[str, str] | None = None, **context: Any
) -> Iterator[Page]:
    """A visitor's page. No script may fail, and nothing may be loaded from elsewhere. init: runs before its scripts."""
    wrong: list[str] = []
    with browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}) as visitor:
        page = visitor.new_page()
        page.set_default_timeout(WAIT_MS)
        page.add_init_script(init)
        page.on("pageerror", lambda error: wrong.append(f"script failed: {error}"))
        page.on("request", lambda r: None if _is_here(r.url, server) else wrong.append(f"fetched {r.url}"))
        # the content security policy kept it from being fetched
        page.on("requestfailed", lambda r: wrong.remove(f"fetched {r.url}") if r.failure == "csp" else None)
        page.goto(server.url)
        if login:
            page.get_by_label("username").fill(login[0])
            page.get_by_label("password").fill(login[1])
            page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#live [data-ln=start]")
        page.wait_for_function("Object.keys(window.Lineament?.views.webcam?.settings ?? {}).length > 1")
        yield page
    assert wrong == [], wrong


def _is_here(url: str, server: Server) -> bool:
    return url.startswith((server.url, server.url.replace("http", "ws", 1), "data:", "blob:"))


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def running(page: Page, view: str = "webcam", frames: int = 5) -> None:
    """Waits until the view has drawn this many frames, the last with a face."""
    page.wait_for_function(
        "([view, frames]) => { const v = Lineament.views[view];"
        " return v?.element.dataset.state === 'running' && v.meter.frames >= frames && v.result.faces.length > 0; }",
        arg=[view, frames],
    )


def upload(page: Page, where: str, path: Path) -> None:
    """Uploads a file and waits until the page shows it."""
    page.set_input_files(f"#{where} input[type=file]", str(path))
    page.locator(f"#{where} [aria-label=Clear]").wait_for()


def opens_an_absent_camera(page: Page) -> None:
    """The Camera tab is there, may open cameras, and says what is wrong with this one."""
    tab(page, "Camera")
    page.get_by_label("camera address").fill(f"rtsp://127.0.0.1:{free_port()}/live")
    page.click("#camera [data-ln=start]")
    expect(page.locator("#camera [data-ln=error]")).to_contain_text("connection refused")
