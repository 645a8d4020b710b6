"""Landmarks on a live or recorded picture, from the command line.

python -m stream --source 0
python -m stream --source clip.mp4 --out annotated.mp4 --out points.jsonl
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import cv2
import tyro
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import engines
from landmarks.pose import aspect_ratios, head_pose
from landmarks.schema import SCHEMAS, Schema
from landmarks.types import U8, Detector, Frame, LineamentError, Result, Track
from stream.blur import Blur
from stream.detect import MediaPipeFaces, StillFaces, StreamFaces
from stream.draw import DrawConfig, draw
from stream.heal import HealingSource, RetryConfig
from stream.pipeline import Pipeline
from stream.report import Report
from stream.sink import Sink, WindowSink, has_display, open_sink
from stream.source import CameraSource, Source, open_source
from stream.track import TrackConfig, Tracker

log = logging.getLogger("lineament")


@dataclass(frozen=True)
class StreamConfig:
    """Puts 98 landmarks on every face of a video and shows or writes the result.

    In the window: q quits, s saves a snapshot, space pauses. Ctrl-C ends a run cleanly at any time.
    """

    source: Annotated[str, tyro.conf.arg(aliases=["-s"])] = "auto"
    """A camera number, file, image, folder of images, rtsp:// or http:// URL, or 'sample' (a clip made from a public
    domain portrait). 'auto' is the webcam if one opens, else the sample."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = "mesh"
    """The landmark model: 'mesh', which needs no download; 'mesh-fast', at half its time without the iris; or a file:
    a .engine or .onnx that `make engine` wrote, or a .safetensors that `make train` wrote, which needs PyTorch."""
    device: str = "auto"
    """Where the model runs: cpu, cuda, or a runtime's name (openvino, onnxruntime, tensorrt, torch). 'auto' takes the
    best there is and says so when that is not the usual; a named device never falls back."""
    out: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-o"], metavar="PATH"), tyro.conf.UseAppendAction] = ()
    """Where to write; may be given several times. The ending says what: .mp4 .mkv .mov .webm video, .jsonl points, a
    folder/ or .png .jpg pictures."""
    jsonl: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Also write one line of JSON a frame: ids, boxes, points, head pose, times. '-' is the standard output."""
    window: bool = True
    """Show a window, where there is a display."""
    blur_faces: bool = False
    """Show and write every face unrecognisable, and look for faces in every frame. Only what is found can be hidden."""
    frames: int | None = None
    """Stop after this many frames."""
    detector: Literal["auto", "mediapipe"] = "auto"
    """What finds faces. 'auto' runs MediaPipe's detector by OpenVINO, in more ways on still pictures; 'mediapipe' is
    MediaPipe's own Python API: the same boxes, slower."""
    min_score: float | None = None
    """Of the detector, 0..1: a face below it is not taken in. Each detector has a measured default."""
    retry: Annotated[RetryConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=RetryConfig)
    view: Annotated[DrawConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=DrawConfig)
    track: Annotated[TrackConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 1:
            raise ValueError(f"frames must be at least 1, got {self.frames}")
        if self.min_score is not None and not 0 < self.min_score < 1:
            raise ValueError(f"min_score must lie between 0 and 1, got {self.min_score}")


def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done or stopped by the user, 1 failed, 2 wrong arguments.

    130 interrupted before it began.
    """
    # crops are too small to share out, and OpenCV's waiting threads would take the cores from the models'
    cv2.setNumThreads(1)
    os.umask(0o077)  # what is written shows faces: it is for this user alone
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        cfg = tyro.cli(StreamConfig, args=args, prog="python -m stream")
        run(cfg)
    except (LineamentError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(cfg: StreamConfig) -> Report:
    """Streams until the source ends, the window is quit, a signal comes or cfg.frames is reached."""
    report = Report()
    with ExitStack() as stack:
        landmarker = stack.enter_context(engines.load(cfg.model, cfg.device))
        source = _source(cfg)
        stack.callback(source.close)
        detector = stack.enter_context(_detector(cfg, source))

        def idle() -> None:
            if isinstance(source, HealingSource) and source.trouble:
                bar.set_postfix_str(f"no picture for {source.down_s:.0f} s: {source.trouble}")
            for window in windows:
                window.idle()
                if window.quit:
                    results.stop()

        blur = Blur() if cfg.blur_faces else None
        tracker = Tracker(detector, landmarker, _watchful(cfg.track) if blur else cfg.track, still=source.still)
        results = stack.enter_context(Pipeline(source, tracker, idle))
        schema = SCHEMAS[landmarker.card.schema]
        paths = _outputs(cfg, source)
        sinks: list[Sink] = [open_sink(path, source.fps, cfg.view.schema, _measure, cfg.source) for path in paths]
        wanted = cfg.window and has_display()
        windows = [WindowSink(still=source.still, paced=not source.live)] if wanted else []
        sinks += windows
        for sink in sinks:
            stack.enter_context(sink)
        stack.enter_context(_stopped_by_signals(results))
        bar = stack.enter_context(_progress(source, cfg.frames))
        stack.enter_context(logging_redirect_tqdm())
        for result in results:
            result, drawn = _drawn(blur(result) if blur else result, schema, cfg.view, report)
            for sink in sinks:
                sink.write(result, drawn)
            report.add(result)
            bar.update()
            bar.set_postfix_str(report.live_line(results.dropped, *_losses(source)[:1]), refresh=False)
            if report.frames == cfg.frames or any(window.quit for window in windows):
                break
    log.info(report.summary(results.dropped, *_losses(source)))
    if paths:
        log.info("wrote %s", ", ".join(paths))
    return report


def _source(cfg: StreamConfig) -> Source:
    """What the user asked for; a camera or a stream that is lost comes back by itself."""
    source = open_source(cfg.source)
    if isinstance(source, CameraSource) or "://" in cfg.source:
        spec = "0" if cfg.source in ("", "auto") else cfg.source
        return HealingSource(source, lambda: open_source(spec), cfg.retry)
    return source


def _losses(source: Source) -> tuple[int, float]:
    """How often the source was lost and came back, and its seconds away."""
    return (source.reconnects, source.lost_s) if isinstance(source, HealingSource) else (0, 0.0)


def _detector(cfg: StreamConfig, source: Source) -> Detector:
    kind = MediaPipeFaces if cfg.detector == "mediapipe" else StillFaces if source.still else StreamFaces
    return kind() if cfg.min_score is None else kind(min_score=cfg.min_score)


def _watchful(cfg: TrackConfig) -> TrackConfig:
    """For blurring: a face that is not followed is not hidden, so all are looked for in every frame."""
    return replace(cfg, every=1, max_faces=max(32, cfg.max_faces))


def _drawn(result: Result, schema: Schema, view: DrawConfig, report: Report) -> tuple[Result, U8]:
    """The picture to show, and the result with the time that drawing took and the age that its frame has reached."""
    began_s = time.perf_counter()
    note = f"{report.fps:.0f} fps  {report.percentile_ms('age', 50):.0f} ms" if report.frames > 1 else ""
    canvas = draw(result, schema, view, note)
    draw_ms = (time.perf_counter() - began_s) * 1e3
    age_ms = (time.monotonic() - result.frame.captured_s) * 1e3
    return replace(result, ms={**result.ms, "draw": draw_ms, "age": age_ms}), canvas


def _outputs(cfg: StreamConfig, source: Source) -> tuple[str, ...]:
    """What to write; where nothing is asked for and there is no display, a video or pictures under out/."""
    paths = (*cfg.out, *([cfg.jsonl] if cfg.jsonl else ()))
    if paths or (cfg.window and has_display()):
        return paths
    stem = Path(source.name).stem or "stream"
    path = f"out/{stem}/" if source.still else f"out/{stem}.mp4"
    log.info("no window to show this in, so it goes to %s", path)
    return (path,)


def _measure(track: Track, frame: Frame) -> dict[str, object]:
    """What JSON lines say of a face beside its points."""
    height, width = frame.bgr.shape[:2]
    pose, ratios = head_pose(track.points, (height, width)), aspect_ratios(track.points)
    return {
        "pose_deg": {"yaw": pose.yaw_deg, "pitch": pose.pitch_deg, "roll": pose.roll_deg},
        "eye_aspect": [ratios.left_eye, ratios.right_eye],
        "mouth_aspect": ratios.mouth,
    }


@contextmanager
def _stopped_by_signals(results: Pipeline) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the stream as its last frame would: files are closed whole. A second Ctrl-C interrupts."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        results.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress(source: Source, frames: int | None) -> tqdm[None]:
    """A bar with an end for a file, a counter for a camera; silent where nobody watches."""
    total = min((n for n in (source.frame_count, frames) if n), default=None)
    return tqdm(total=total, unit=" frames", desc=source.name, disable=None, dynamic_ncols=True)


if __name__ == "__main__":
    sys.exit(main())
