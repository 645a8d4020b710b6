"""Command line: landmarks on a live or recorded video, or on several at once.

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
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import cv2
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from lineament import engines
from lineament.landmarks.command import ends_in_a_line, program, renamed, stopped_by_signals
from lineament.landmarks.types import Frame, Landmarker, LineamentError, Result
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
"""of the window or video that shows several sources side by side"""
_REFRESH_S = 0.2
"""between two status lines of several sources without that picture"""


@dataclass(frozen=True)
class StreamConfig:
    """Puts 98 landmarks on every face of one or more videos, and shows or writes the result.

    In the window: q quits, s saves a snapshot, space pauses. Ctrl-C ends a run cleanly at any time.
    """

    source: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-s"], metavar="SOURCE"), tyro.conf.UseAppendAction] = ()
    """A camera number, video, image, folder of images, rtsp:// or http:// URL, or 'sample' (a clip made from a public
    domain portrait). The default 'auto' is the webcam if one opens, else the sample. Can be repeated."""
    cameras: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """YAML file of several sources, each with a name and outputs; docs/cameras.md has an example."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = engines.DEFAULT
    """The landmark model: 'student'; 'student-fast', smaller; 'b5', large, after `make engine` has built it; 'mesh',
    MediaPipe's; 'mesh-fast', without its iris model; or a file: a .engine or .onnx from `make engine`, or a
    .safetensors from `make train`, which needs PyTorch."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, or a runtime (openvino, onnxruntime, tensorrt, torch). 'auto' selects the best
    one available and logs a fallback; a named device never falls back."""
    out: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-o"], metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """Output, can be repeated. Files by suffix: .mp4 .mkv .mov .webm video, .m3u8 HLS, .jsonl points, .csv or .parquet
    a table of them, .png .jpg or a folder/ for pictures. Streams: video to an rtsp:// or rtmp:// server, or to virtual:
    (a virtual camera on this machine); points to mqtt://, or to clients that connect to ws://127.0.0.1:9200; one face
    to an avatar at osc:// (VMC) or openseeface://. With several sources, {name} is replaced by each source's name."""
    jsonl: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Also write one line of JSON per frame: ids, boxes, points, head pose, gaze, expression, times. '-' is standard
    output."""
    tiles: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Also write one video that shows several sources side by side."""
    window: bool = True
    """Show a window if there is a display; several sources share it."""
    log: Kind = "text"
    """Log format on standard error: text with a progress bar, or JSON lines for a log collector, with the status of
    each source every 10 s."""
    monitor: Annotated[int | None, tyro.conf.arg(metavar="PORT")] = None
    """Port of the HTTP status server: / is a status page, /metrics for Prometheus, /healthz, /readyz. Off by
    default; 0 picks a free port."""
    monitor_host: str = "127.0.0.1"
    """Address of the status server: 127.0.0.1 for this machine alone, 0.0.0.0 for everyone who can reach it."""
    session: Annotated[SessionConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        if self.cameras and self.source:
            raise ValueError("give either --source or --cameras, got both")


def _tell(failure: str) -> None:
    log.error("error: %s", failure, extra={"event": "failed"})


@partial(ends_in_a_line, tell=_tell)
def main(args: list[str] | None = None) -> int:
    """Returns the exit code: 0 done or stopped by the user, 1 failed, 2 wrong arguments, 130 interrupted at start."""
    # crops are too small to parallelise, and OpenCV's spinning threads would take cores from the models
    cv2.setNumThreads(1)
    os.umask(0o077)  # outputs show faces: only this user may read them
    cfg = tyro.cli(StreamConfig, args=renamed(args, OLD_OPTIONS), prog=program("stream", "stream"))
    set_up(cfg.log)
    if cfg.cameras or len(cfg.source) > 1:
        run_many(cfg)
    else:
        run(cfg)
    return 0


def run(cfg: StreamConfig) -> Stats:
    """Streams one source until it ends, the window is closed, a signal arrives or the wanted frames are done."""
    spec = cfg.source[0] if cfg.source else "auto"
    (camera,) = named([spec], [])
    with ExitStack() as stack:
        landmarker = stack.enter_context(engines.load(cfg.model, cfg.device))
        source = reconnecting(spec, cfg.session.retry, cfg.session.read, called=camera.name)
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

        session = stack.enter_context(Session(cfg.session, source, landmarker, paths, spec, idle))
        shown = cfg.window and has_display()
        windows = [WindowSink(still=source.still, paced=not source.live)] if shown else []
        for window in windows:
            stack.enter_context(window)
        _watch(stack, cfg, lambda: {camera.name: session}, landmarker, session.stop)
        bar = stack.enter_context(_progress(source, cfg))
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
    """Streams several sources until all have ended, the window is closed or a signal arrives.

    Raises LineamentError when the others are done if any source failed.
    """
    changed_ns = _changed_ns(cfg.cameras)
    cameras = _cameras(cfg)
    stopped = threading.Event()
    with ExitStack() as stack:
        landmarker = stack.enter_context(SharedLandmarker(engines.load(cfg.model, cfg.device)))
        supervisor = Supervisor(cfg.session, cameras, landmarker)
        tiles = stack.enter_context(_Tiles(cfg))
        stack.enter_context(supervisor)
        _watch(stack, cfg, supervisor.sessions, landmarker, stopped.set)
        bar = stack.enter_context(tqdm(bar_format="{desc}", disable=_hidden(cfg), dynamic_ncols=True))
        while supervisor.running and not stopped.is_set() and not tiles.quit:
            stopped.wait(tiles.pause_s())
            if (newer_ns := _changed_ns(cfg.cameras)) not in (None, changed_ns):
                changed_ns = newer_ns
                _reload(cfg, supervisor)
            tiles.show(supervisor)
            bar.set_description_str(" | ".join(worker.live_line() for worker in supervisor.workers))
    _summarise(supervisor, landmarker)


def _watch(
    stack: ExitStack,
    cfg: StreamConfig,
    sessions: Callable[[], Mapping[str, Session]],
    landmarker: Landmarker,
    stop: Callable[[], None],
) -> None:
    """Enters what surrounds a run: status server, status log, signals that stop it, log lines above the bar."""
    if cfg.monitor is not None:
        shared = landmarker if isinstance(landmarker, SharedLandmarker) else None
        stack.enter_context(Monitor(sessions, landmarker.card, cfg.monitor, cfg.monitor_host, shared))
    if cfg.log == "json":
        stack.enter_context(StatusLog(sessions))
    stack.enter_context(stopped_by_signals(stop))
    stack.enter_context(logging_redirect_tqdm())


class _Tiles:
    """The picture of all sources side by side, in a window, a video, both or neither."""

    def __init__(self, cfg: StreamConfig) -> None:
        self._windows = [WindowSink()] if cfg.window and has_display() else []
        videos = [VideoSink(cfg.tiles, _TILES_FPS, live=True)] if cfg.tiles else []
        self._sinks: list[Sink] = [*self._windows, *videos]
        self._stack, self._shown, self._began_s = ExitStack(), 0, time.monotonic()

    @property
    def quit(self) -> bool:
        return any(window.quit for window in self._windows)

    def pause_s(self) -> float:
        """Seconds until the next picture is due."""
        due_s = self._began_s + self._shown / _TILES_FPS - time.monotonic()
        return max(0.0, due_s) if self._sinks else _REFRESH_S

    def show(self, supervisor: Supervisor) -> None:
        self._shown += 1
        if self._sinks:
            picture, now_s = supervisor.tiled(), time.monotonic()
            result = Result(Frame(picture, "tiles", self._shown, now_s - self._began_s, now_s), ())
            for sink in self._sinks:
                sink.write(result, picture)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.enter_context(sink)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)


def _reload(cfg: StreamConfig, supervisor: Supervisor) -> None:
    """Applies a changed list of cameras; a list with an error is logged and changes nothing."""
    try:
        supervisor.change(_cameras(cfg))
    except LineamentError as error:
        log.error("the list of cameras is unchanged: %s", error, extra={"event": "cameras_refused"})


def _summarise(supervisor: Supervisor, landmarker: SharedLandmarker) -> None:
    """Logs the totals of each source; raises LineamentError if one failed."""
    for worker in supervisor.workers:
        extra = {"source": worker.name, "event": "summary", **status(worker.session)}
        log.info("%s: %s", worker.name, worker.session.summary(), extra=extra)
    log.info("%d crops in %d batches", landmarker.crops, landmarker.batches)
    failed = [worker.name for worker in supervisor.workers if worker.error is not None]
    if failed:
        raise LineamentError(
            f"{len(failed)} of {len(supervisor.workers)} sources failed: {', '.join(failed)}; see the log above"
        )


def _cameras(cfg: StreamConfig) -> list[Camera]:
    """The sources of the command line or the file, each with its outputs; at least one has one."""
    wanted = (*cfg.out, *([cfg.jsonl] if cfg.jsonl else ()))
    if cfg.cameras:
        cameras = [
            replace(camera, outputs=(*camera.outputs, *with_name(wanted, camera.name)))
            for camera in read_cameras(cfg.cameras)
        ]
    else:
        cameras = named(cfg.source, wanted)
    if not any(camera.outputs for camera in cameras) and not cfg.tiles and not (cfg.window and has_display()):
        log.info("no display, writing to out/")
        cameras = [replace(camera, outputs=(f"out/{camera.name}.mp4",)) for camera in cameras]
    if cfg.tiles:
        check_outputs([*cameras, Camera("tiles", "", (str(cfg.tiles),))])
    return cameras


def _changed_ns(path: Path | None) -> int | None:
    """When a file was last written; None while it is missing, as when an editor replaces it."""
    try:
        return path.stat().st_mtime_ns if path else None
    except OSError:
        return None


def _outputs(cfg: StreamConfig, source: Source) -> tuple[str, ...]:
    """Output paths; without any, and without a display, a video or pictures under out/."""
    stem = Path(source.name).stem or "stream"
    paths = tuple(path.replace("{name}", stem) for path in (*cfg.out, *([cfg.jsonl] if cfg.jsonl else ())))
    if paths or (cfg.window and has_display()):
        return paths
    path = f"out/{stem}/" if source.still else f"out/{stem}.mp4"
    log.info("no display, writing to %s", path)
    return (path,)


def _progress(source: Source, cfg: StreamConfig) -> tqdm[None]:
    """A bar with a total for a file, a counter for a camera; hidden unless standard error is a terminal."""
    total = min((n for n in (source.frame_count, cfg.session.frames) if n), default=None)
    return tqdm(total=total, unit=" frames", desc=source.name, disable=_hidden(cfg), dynamic_ncols=True)


def _hidden(cfg: StreamConfig) -> bool | None:
    """tqdm's disable: True beside JSON logs, else None, which hides the bar unless standard error is a terminal."""
    return True if cfg.log == "json" else None


if __name__ == "__main__":
    sys.exit(main())
