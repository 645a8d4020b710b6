"""Measures the latency of the Live tab: a real browser with a fake camera and a real server, on this machine.

python -m demo.bench                 one visitor for 30 seconds
python -m demo.bench --visitors 5

The camera plays the sample. Latency is the time from the browser delivering a frame to the page until that frame is
drawn with its points; age adds the delay of the camera and the browser. Everything runs on the same cores.
"""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray

from lineament import engines
from lineament.demo.config import Limits
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.types import LineamentError
from lineament.stream.bench import machine
from lineament.stream.read.sample import Sample

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_START_S = 60.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_RECORD = """() => {
    const view = Lineament.views.webcam, shown = view.shown.bind(view);
    window.bench = { latency: [], age: [], drawn: [], steps: { encode: [], reply: [], draw: [] }, mostInFlight: 0 };
    bench.inFlight = view.inFlight ? 1 : 0;
    view.shown = (result, ms) => {
        bench.inFlight -= 1;
        bench.latency.push(ms); bench.age.push(view.steps.age); bench.drawn.push(performance.now());
        for (const step in bench.steps) bench.steps[step].push(view.steps[step]);
        shown(result, ms);
    };
    const send = view.socket.send.bind(view.socket);
    view.socket.send = (data) => {
        if (data instanceof Blob) bench.mostInFlight = Math.max(bench.mostInFlight, (bench.inFlight += 1));
        send(data);
    };
    bench.skipped = -view.skipped;
    bench.began = performance.now();
}"""
_REPORT = """() => {
    const view = Lineament.views.webcam;
    return { ...bench, seconds: (performance.now() - bench.began) / 1e3, skipped: bench.skipped + view.skipped,
             waiting: view.mostWaiting };
}"""


@dataclass(frozen=True)
class BenchConfig:
    """Measures the Live tab in a headless browser with a fake camera."""

    seconds: float = 30.0
    """Duration of the measurement, after a second of warm-up, seconds."""
    visitors: int = 1
    """Number of pages with a live view at the same time, each with its own camera."""
    model: str = engines.DEFAULT
    """The landmark model: a name that the demo offers, or a model file."""

    def __post_init__(self) -> None:
        if not self.seconds > 0 or not 1 <= self.visitors <= Limits().visitors:
            raise LineamentError(
                f"seconds must be above 0 and visitors 1 to {Limits().visitors}, got {self.seconds} and {self.visitors}"
            )


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    measure(tyro.cli(BenchConfig, args=args, prog="python -m demo.bench"))
    return 0


def measure(cfg: BenchConfig) -> None:
    """Prints a table."""
    with TemporaryDirectory() as name:
        film = write_film(Path(name) / "camera.mjpeg")
        with _server(cfg.model) as url, browser_with_camera(film) as browser, ExitStack() as stack:
            pages = [stack.enter_context(browser.new_context()).new_page() for _ in range(cfg.visitors)]
            for page in pages:
                _start(page, url, Path(cfg.model).name)
            time.sleep(1.0)
            for page in pages:
                page.evaluate(_RECORD)
            pages[0].wait_for_timeout(cfg.seconds * 1e3)
            reports = [page.evaluate(_REPORT) for page in pages]
            _print(cfg, reports, browser.version)


def write_film(path: Path) -> Path:
    """The sample as a video that Chromium can play as a camera, 640x480; it loops seamlessly."""
    sample = Sample()
    jpegs = [cv2.imencode(".jpg", sample.render(index))[1].tobytes() for index in range(len(sample))]
    path.write_bytes(b"".join(jpegs))
    return path


def chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


@contextmanager
def browser_with_camera(film: Path) -> Iterator[Browser]:
    """A headless Chromium whose camera plays this film, without a permission prompt."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise LineamentError("playwright is not installed; run `make bench-demo`") from None
    executable = chromium()
    if executable is None:
        raise LineamentError("no Chromium found; run `sudo apt-get install chromium`")
    flags = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream", "--no-sandbox"]
    flags.append(f"--use-file-for-fake-video-capture={film}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def _server(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "demo", "--port", str(free_port())]
    if Path(model).suffix:
        command += ["--model", model]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line.startswith("open "):
                raise LineamentError("the demo did not start; run `make demo` to see why")
            yield line.removeprefix("open ").strip()
        finally:
            server.terminate()


def _start(page: Page, url: str, model: str) -> None:
    page.goto(url)
    page.set_default_timeout(_START_S * 1e3)
    page.wait_for_function("Object.keys(window.Lineament?.views.webcam?.settings ?? {}).length > 0")
    page.evaluate("model => { Lineament.views.webcam.settings.model = model; }", model)
    page.click("#live [data-ln=start]")
    page.wait_for_function("Lineament.views.webcam.meter.frames > 5")


def _print(cfg: BenchConfig, reports: list[dict[str, Any]], browser: str) -> None:
    print(machine(), end="")
    print(
        f"Chromium {browser}, gradio {version('gradio')}, {platform.system()}; {cfg.model}, camera 640x480 at 30 fps\n"
    )
    print("ms, median / p95\n")
    print("| visitor | frames | fps | between drawn frames | latency | age | encode | reply | draw |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number, report in enumerate(reports, 1):
        latency, age = np.array(report["latency"]), np.array(report["age"])
        if len(latency) < 2:
            raise LineamentError(
                f"visitor {number} got fewer than 2 frames in {cfg.seconds:g} s; check the load of the machine"
            )
        steps = " | ".join(_both(np.array(report["steps"][step])) for step in ("encode", "reply", "draw"))
        print(
            f"| {number} | {len(latency)} | {len(latency) / report['seconds']:.1f} "
            f"| {_both(np.diff(report['drawn']))} | {_both(latency)} | {_both(age)} | {steps} |"
        )
    most = max(report["mostInFlight"] for report in reports)
    waiting = max(report["waiting"] for report in reports)
    skipped = sum(report["skipped"] for report in reports)
    print(f"\nmost frames in flight: {most} per visitor; most bytes buffered in the socket: {waiting}")
    print(f"frames skipped because one was in flight: {skipped}")


def _both(ms: NDArray[np.float64]) -> str:
    return f"{np.median(ms):.1f} / {np.percentile(ms, 95):.1f}"


if __name__ == "__main__":
    sys.exit(main())
