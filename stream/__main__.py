"""Landmarks on a live or recorded picture, or on several at once, from the command line.

python -m stream --source 0
python -m stream --source clip.mp4 --out annotated.mp4 --out points.jsonl
python -m stream --source rtsp://10.0.0.5/live --source rtsp://10.0.0.6/live --out out/{name}.mp4
python -m stream --cameras cameras.yaml
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import cv2
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lineament import engines
from lineament.landmarks.command import ends_in_a_line, program, renamed, stopped_by_signals
from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.read.base import Source
from lineament.stream.read.reconnect import reconnecting
from lineament.stream.read.spec import redacted_spec
from lineament.stream.run.cameras import Camera, check_outputs, named, read_cameras, with_name
from lineament.stream.run.session import OLD_OPTIONS, Session, SessionConfig
from lineament.stream.run.stats import Stats
from lineament.stream.run.supervisor import Supervisor
from lineament.stream.watch.http import Monitor
from lineament.stream.watch.log import Kind, set_up
from lineament.stream.watch.status import StatusLog, status
from lineament.stream.write.base import Sink
from lineament.stream.write.files import VideoSink
from lineament.stream.write.window import WindowSink, has_display

log = logging.getLogger("lineament")

_TILES_FPS = 10.0
"""of the picture of all sources"""


@dataclass(frozen=True)
class StreamConfig:
    """Puts 98 landmarks on every face of a video, or of several, and shows or writes the result.

    In the window: q quits, s saves a snapshot, space pauses. Ctrl-C ends a run cleanly at any time.
    """

    source: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-s"], metavar="SOURCE"), tyro.conf.UseAppendAction] = ()
    """A camera number, file, image, folder of images, rtsp:// or http:// URL, or 'sample' (a clip made from a public
    domain portrait). 'auto', the default, is the webcam if one opens, else the sample. Several may be given."""
    cameras: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Several sources from a YAML file, with a name and outputs each; docs/cameras.md has an example."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = engines.DEFAULT
    """The landmark model: 'student'; 'student-fast', smaller; 'b5', large, once `make engine` has built it; 'mesh',
    MediaPipe's; 'mesh-fast', that without its iris model; or a file: a .engine or .onnx that `make engine` wrote, or a
    .safetensors that `make train` wrote, which needs PyTorch."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, or a runtime's name (openvino, onnxruntime, tensorrt, torch). 'auto' takes the
    best there is and says so when that is not the usual; a named device never falls back."""
    out: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-o"], metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """Where to write; may be given several times. The ending says what: .mp4 .mkv .mov .webm video, .m3u8 HLS, .jsonl
    points, a folder/ or .png .jpg pictures. Or where to send: pictures to rtsp:// or rtmp:// (a server that takes them)
    or virtual: (a camera of this machine), points to mqtt:// or whoever connects to ws://127.0.0.1:9200. With several
    sources, {name} in it stands for each one's name."""
    jsonl: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Also write one line of JSON a frame: ids, boxes, points, head pose, times. '-' is the standard output."""
    tiles: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Also write one video of several sources side by side."""
    window: bool = True
    """Show a window, where there is a display; several sources share it."""
    log: Kind = "text"
    """What is said on the standard error: text and a progress bar, or for a log collector a line of JSON each: what
    happens, and every 10 s how each source goes."""
    monitor: Annotated[int | None, tyro.conf.arg(metavar="PORT")] = None
    """Tell by HTTP how it goes: / is a page to look at, /metrics for Prometheus, /healthz, /readyz. Off unless a port
    is given; 0 takes a free one."""
    monitor_host: str = "127.0.0.1"
    """Who may ask: this machine alone, or with 0.0.0.0 everybody who reaches it."""
    session: Annotated[SessionConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        if self.cameras and self.source:
            raise ValueError("give either --source or --cameras, got both")


def _tell(failure: str) -> None:
    log.error("error: %s", failure, extra={"event": "failed"})


@partial(ends_in_a_line, tell=_tell)
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done or stopped by the user, 1 failed, 2 wrong arguments.

    130 interrupted before it began.
    """
    # crops are too small to share out, and OpenCV's waiting threads would take the cores from the models'
    cv2.setNumThreads(1)
    os.umask(0o077)  # what is written shows faces: it is for this user alone
    cfg = tyro.cli(StreamConfig, args=renamed(args, OLD_OPTIONS), prog=program("stream", "stream"))
    set_up(cfg.log)
    if cfg.cameras or len(cfg.source) > 1:
        run_many(cfg)
    else:
        run(cfg)
    return 0


def run(cfg: StreamConfig) -> Stats:
    """Streams one source until it ends, the window is quit, a signal comes or enough frames have come."""
    spec = cfg.source[0] if cfg.source else "auto"
    (camera,) = named([spec], [])
    with ExitStack() as stack:
        landmarker = stack.enter_context(engines.load(cfg.model, cfg.device))
        source = reconnecting(spec, cfg.session.retry, called=camera.name)
        stack.callback(source.close)
        paths = _outputs(cfg, source)
        check_outputs([replace(camera, outputs=paths)])

        def idle() -> None:
            if session.trouble:
                bar.set_postfix_str(session.trouble)
            for window in windows:
                window.idle()
                if window.quit:
                    session.stop()

        def sessions() -> dict[str, Session]:
            return {camera.name: session}

        session = stack.enter_context(Session(cfg.session, source, landmarker, paths, spec, idle))
        shown = cfg.window and has_display()
        windows = [WindowSink(still=source.still, paced=not source.live)] if shown else []
        for window in windows:
            stack.enter_context(window)
        if cfg.monitor is not None:
            stack.enter_context(Monitor(sessions, landmarker.card, cfg.monitor, cfg.monitor_host))
        if cfg.log == "json":
            stack.enter_context(StatusLog(sessions))
        stack.enter_context(stopped_by_signals(session.stop))
        bar = stack.enter_context(_progress(source, cfg))
        stack.enter_context(logging_redirect_tqdm())
        for result, drawn in session:
            for window in windows:
                window.write(result, drawn)
            bar.update()
            bar.set_postfix_str(session.live_line(), refresh=False)
            if any(window.quit for window in windows):
                break
    log.info(session.summary(), extra={"source": camera.name, "event": "summary", **status(session)})
    if paths:
        log.info("wrote %s", ", ".join(map(redacted_spec, paths)))
    return session.stats


def run_many(cfg: StreamConfig) -> None:
    """Streams several sources until all have ended, the window is quit or a signal comes. Raises when one failed."""
    changed_ns = _changed_ns(cfg.cameras) if cfg.cameras else None
    cameras = _cameras(cfg)
    stopped, began_s = threading.Event(), time.monotonic()
    with ExitStack() as stack:
        landmarker = stack.enter_context(SharedLandmarker(engines.load(cfg.model, cfg.device)))
        supervisor = Supervisor(cfg.session, cameras, landmarker)
        sinks: list[Sink] = []
        windows = [WindowSink()] if cfg.window and has_display() else []
        tiles = [VideoSink(cfg.tiles, _TILES_FPS, live=True)] if cfg.tiles else []
        sinks += [*windows, *tiles]
        for sink in sinks:
            stack.enter_context(sink)
        stack.enter_context(supervisor)

        def sessions() -> dict[str, Session]:
            return {worker.name: worker.session for worker in supervisor.workers}

        if cfg.monitor is not None:
            stack.enter_context(Monitor(sessions, landmarker.card, cfg.monitor, cfg.monitor_host, landmarker))
        if cfg.log == "json":
            stack.enter_context(StatusLog(sessions))
        stack.enter_context(stopped_by_signals(stopped.set))
        bar = stack.enter_context(tqdm(bar_format="{desc}", disable=_hidden(cfg), dynamic_ncols=True))
        stack.enter_context(logging_redirect_tqdm())
        ticks = 0
        while supervisor.running and not stopped.is_set() and not any(window.quit for window in windows):
            stopped.wait(max(0.0, began_s + ticks / _TILES_FPS - time.monotonic()) if sinks else 0.2)
            ticks += 1
            if cfg.cameras and (newer_ns := _changed_ns(cfg.cameras)) not in (None, changed_ns):
                changed_ns = newer_ns
                try:
                    supervisor.change(_cameras(cfg))
                except LineamentError as error:
                    event = {"event": "cameras_refused"}
                    log.error("the list of cameras stays as it was: %s", error, extra=event)
            if sinks:
                picture, now_s = supervisor.tiled(), time.monotonic()
                result = Result(Frame(picture, "tiles", ticks, now_s - began_s, now_s), ())
                for sink in sinks:
                    sink.write(result, picture)
            bar.set_description_str(" | ".join(worker.live_line() for worker in supervisor.workers))
    for worker in supervisor.workers:
        says = {"source": worker.name, "event": "summary", **status(worker.session)}
        log.info("%s: %s", worker.name, worker.session.summary(), extra=says)
    log.info("%d crops in %d batches", landmarker.crops, landmarker.batches)
    failed = [worker.name for worker in supervisor.workers if worker.error is not None]
    if failed:
        raise LineamentError(
            f"{len(failed)} of {len(supervisor.workers)} sources failed: {', '.join(failed)}; see above"
        )


def _cameras(cfg: StreamConfig) -> list[Camera]:
    """The several sources, with what the command line asks for in addition to the file; never without an output."""
    wanted = (*cfg.out, *([cfg.jsonl] if cfg.jsonl else ()))
    if cfg.cameras:
        cameras = [
            Camera(camera.name, camera.spec, (*camera.outputs, *with_name(wanted, camera.name)))
            for camera in read_cameras(cfg.cameras)
        ]
    else:
        cameras = named(cfg.source, wanted)
    if not any(camera.outputs for camera in cameras) and not cfg.tiles and not (cfg.window and has_display()):
        log.info("no window to show this in, so it goes to out/")
        cameras = [Camera(camera.name, camera.spec, (f"out/{camera.name}.mp4",)) for camera in cameras]
    if cfg.tiles:
        check_outputs([*cameras, Camera("tiles", "", (str(cfg.tiles),))])
    return cameras


def _changed_ns(path: Path) -> int | None:
    """When a file was last written; None while it is not there, as when an editor replaces it."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _outputs(cfg: StreamConfig, source: Source) -> tuple[str, ...]:
    """What to write; where nothing is asked for and there is no display, a video or pictures under out/."""
    stem = Path(source.name).stem or "stream"
    paths = tuple(path.replace("{name}", stem) for path in (*cfg.out, *([cfg.jsonl] if cfg.jsonl else ())))
    if paths or (cfg.window and has_display()):
        return paths
    path = f"out/{stem}/" if source.still else f"out/{stem}.mp4"
    log.info("no window to show this in, so it goes to %s", path)
    return (path,)


def _progress(source: Source, cfg: StreamConfig) -> tqdm[None]:
    """A bar with an end for a file, a counter for a camera; silent where nobody watches."""
    total = min((n for n in (source.frame_count, cfg.session.frames) if n), default=None)
    return tqdm(total=total, unit=" frames", desc=source.name, disable=_hidden(cfg), dynamic_ncols=True)


def _hidden(cfg: StreamConfig) -> bool | None:
    """Whether there is no progress bar: beside JSON never, else where nobody watches (None)."""
    return True if cfg.log == "json" else None


if __name__ == "__main__":
    sys.exit(main())
