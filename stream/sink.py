"""Where results go: a video, lines of JSON, pictures, a window. Each is a context manager and writes as frames come.

with open_sink("out.mp4", fps=30) as sink:
    sink.write(result, drawn_bgr)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol, Self

import av
import av.error
import cv2
import numpy as np
from av.container import OutputContainer

from landmarks.schema import IBUG68, SCHEMAS, WFLW98, ibug68_from_wflw98
from landmarks.types import F32, U8, Frame, LineamentError, Result, Track
from stream.encode import H264, VideoEncoder, even
from stream.image import IMAGE_SUFFIXES, cannot_write, write_image
from stream.source import redacted, without_file_scheme

log = logging.getLogger(__name__)

Measure = Callable[[Track, Frame], Mapping[str, object]]
"""more to say of a face than its points: pose, ratios"""

_VIDEO_CODECS = {
    ".mp4": H264,
    ".mov": H264,
    ".mkv": H264,
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "32", "b": "0"}),
}
_PLAIN_MP4 = {"movflags": "hybrid_fragmented"}
_LIVE_MP4 = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "video_track_timescale": "1000"}
"""FFmpeg's finer usual ticks would overflow in a gap of 7 hours, and all times after it be lost; these last 24 days"""
_STILL_SUFFIXES = IMAGE_SUFFIXES - {".jfif", ".pgm", ".ppm"}
_SEGMENT_S, _SEGMENTS = 2, 6
"""of a playlist: how long one is, and how many are kept"""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|virtual:")
"""how a destination begins that is no path"""


class Sink(Protocol):
    """Takes every result with its drawing. A failure raises LineamentError; after one, closing is silent."""

    @property
    def lost(self) -> int:
        """Results not passed on, because whoever listens is slow or away; 0 for what writes to a disk."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """drawn_bgr: (H, W, 3) uint8, result's frame with what was found drawn on it."""
        ...

    def close(self) -> None:
        """Finishes what was begun; may be called twice."""
        ...


def open_sink(
    path: str,
    fps: float | None = None,
    schema: str = WFLW98.name,
    measure: Measure | None = None,
    source: str = "",
    live: bool = False,
) -> Sink:
    """The sink that a path asks for by its ending, or an address by its beginning. It opens on entry.

    A folder ends in "/"; "-" is JSON lines on standard output. source: what is being read, never to be overwritten.
    live: as VideoSink takes it.
    """
    if is_address(path):
        from stream.publish import open_address

        return open_address(path, fps, JsonLine(schema, measure))
    try:
        target = Path(path).expanduser()
    except (RuntimeError, ValueError):  # no such user, or a name that is none
        raise LineamentError(f"cannot write {path!r}: it leads to no home directory; give the whole path") from None
    suffix = target.suffix.lower()
    check_not_source(target, source)
    if path == "-" or suffix == ".jsonl":
        return JsonlSink(path, schema, measure)
    if path.endswith(("/", os.sep)) or os.path.isdir(target):  # unlike Path.is_dir it bears any name
        return ImageSink(target, folder=True)
    if suffix == ".m3u8":
        return HlsSink(target, fps)
    if suffix in _VIDEO_CODECS:
        return VideoSink(target, fps, live)
    if suffix in _STILL_SUFFIXES:
        return ImageSink(target, folder=False)
    known = ", ".join([*_VIDEO_CODECS, ".m3u8", ".jsonl", *sorted(_STILL_SUFFIXES)])
    raise LineamentError(f"cannot tell what to write from the ending of {path!r}; use {known}, or a folder with a '/'")


def is_address(output: str) -> bool:
    """Whether an output is a destination like rtsp://host/name or a virtual camera, rather than a path."""
    return _ADDRESS.match(output) is not None


class _FileSink:
    """What the sinks that own a path share."""

    lost = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        """Makes the folder and checks that the path can be written, before any work is done for it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None: ...

    def _open(self) -> None: ...


class VideoSink(_FileSink):
    """H.264 (VP9 for .webm). Frames keep their times; all are fitted into the size of the first, made even.

    An MP4 is written in fragments of a second, so that a killed process leaves a playable file. close() rewrites it as
    a plain one, unless it is of a live source: its index would grow in memory for as long as the source lives.
    """

    def __init__(self, path: str | Path, fps: float | None = None, live: bool = False) -> None:
        """fps: None for unknown; it guides the encoder alone, the times are the frames' own.

        live: it may go on for weeks, with gaps of days.
        """
        super().__init__(Path(path))
        self._fps, self._live = fps, live
        self._codec = _VIDEO_CODECS.get(self.path.suffix.lower())
        self._container: OutputContainer | None = None
        self._encoder: VideoEncoder | None = None

    def _open(self) -> None:
        if self._codec is None:
            raise LineamentError(f"cannot write {self.path}: a video ends in {', '.join(_VIDEO_CODECS)}")
        with self.path.open("wb"):
            pass
        flags = (_LIVE_MP4 if self._live else _PLAIN_MP4) if self.path.suffix.lower() in (".mp4", ".mov") else {}
        self._container = av.open(f"file:{self.path}", "w", options={"flush_packets": "1", **flags})

    def write(self, result: Result, drawn_bgr: U8) -> None:
        if self._container is None:
            raise RuntimeError(f"{self.path} is not open; use it in a with block")
        try:
            self._encoder = self._encoder or self._begin(self._container, drawn_bgr)
            self._encoder.add(i420(drawn_bgr, (self._encoder.height, self._encoder.width)), result.frame.time_s)
        except (av.error.FFmpegError, OSError) as error:
            self._container = None
            raise cannot_write(self.path, error) from None

    def _begin(self, container: OutputContainer, first_bgr: U8) -> VideoEncoder:
        assert self._codec is not None
        return VideoEncoder(container, self._codec, self._fps, even(first_bgr))

    def close(self) -> None:
        container, self._container = self._container, None
        if container is None:
            return
        if self._encoder is None:
            log.warning("%s was not written: there was no frame", self.path)
            self.path.unlink(missing_ok=True)
            return
        try:
            self._encoder.finish()
        except (av.error.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from None


class HlsSink(VideoSink):
    """A playlist name.m3u8 and the newest seconds of H.264 as name-123.ts beside it, for a web server to hand out.

    Both appear whole, so that it plays while it is written and after the process was killed. What an earlier run left
    under these names goes at the start; the numbers only grow, also from run to run.
    """

    def _open(self) -> None:
        stem, folder = self.path.stem, self.path.parent
        if re.search(r"%\d*d", str(self.path)):  # FFmpeg would put numbers there
            raise LineamentError(f"cannot write {self.path}: the path of a playlist may not hold '%d'; choose another")
        for path in folder.iterdir():
            if re.fullmatch(rf"{re.escape(stem)}-\d+\.ts(\.tmp)?", path.name):
                path.unlink()
        self.path.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # an empty playlist would be a broken one
            pass
        self._codec = H264
        options = {
            "hls_time": str(_SEGMENT_S),
            "hls_list_size": str(_SEGMENTS),
            "hls_flags": "delete_segments+temp_file+independent_segments",
            "hls_start_number_source": "epoch",
            "hls_segment_filename": f"{folder}/{stem}-%d.ts",
        }
        self._container = av.open(f"file:{self.path}", "w", format="hls", options=options)


class JsonLine:
    """A result as one line of JSON, without the line's end; what is not finite is null. README.md shows one."""

    def __init__(self, schema: str = WFLW98.name, measure: Measure | None = None) -> None:
        """measure: adds fields to each face."""
        if schema not in SCHEMAS:
            raise LineamentError(f"unknown schema {schema!r}; choose from {', '.join(SCHEMAS)}")
        self._schema, self._measure = schema, measure

    def __call__(self, result: Result) -> str:
        frame = result.frame
        return json.dumps(
            {
                "source": redacted(frame.source),
                "index": frame.index,
                "time_s": round(frame.time_s, 6),
                "width": frame.bgr.shape[1],
                "height": frame.bgr.shape[0],
                "schema": self._schema,
                "faces": [self._face(track, frame) for track in result.tracks],
                "ms": {stage: round(ms, 3) for stage, ms in result.ms.items()},
            },
            allow_nan=False,
        )

    def _face(self, track: Track, frame: Frame) -> dict[str, object]:
        points = ibug68_from_wflw98(track.points) if self._schema == IBUG68.name else track.points
        more = self._measure(track, frame) if self._measure else {}
        return {
            "id": track.id,
            "score": _plain(float(track.face.score)),
            "confidence": _plain(float(track.confidence)),
            "box_xyxy": _rounded(track.face.box_xyxy),
            "points": _rounded(points),
            **{name: _plain(value) for name, value in more.items()},
        }


class JsonlSink(_FileSink):
    """One line of JSON a frame, each in one call of the system, so that a killed process leaves whole lines."""

    def __init__(self, path: str, schema: str = WFLW98.name, measure: Measure | None = None) -> None:
        """path: "-" is standard output. measure: adds fields to each face."""
        super().__init__(Path(path).expanduser())
        self.line = JsonLine(schema, measure)
        self._file: IO[Any] | None = None
        self._size = 0

    def _open(self) -> None:
        self._file = sys.stdout if str(self.path) == "-" else self.path.open("wb", buffering=0)

    def write(self, result: Result, drawn_bgr: U8) -> None:
        if self._file is None:
            raise RuntimeError(f"{self.path} is not open; use it in a with block")
        try:
            self._append(self._file, self.line(result) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries to write once more
                self.close()
            raise cannot_write(self.path, error) from None

    def _append(self, file: IO[Any], line: str) -> None:
        if file is sys.stdout:
            file.write(line)
            file.flush()
            return
        data = line.encode()
        try:
            written = file.write(data)
            if written < len(data):  # a full disk takes a part and says so when asked again
                file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None and file is not sys.stdout:
            file.close()


class ImageSink(_FileSink):
    """Pictures: into a folder, named after a still's own file or the frame's number; or one, to the path itself."""

    def __init__(self, path: str | Path, folder: bool) -> None:
        super().__init__(Path(path))
        self._folder = folder
        self._names: set[str] = set()

    def _open(self) -> None:
        if self._folder:
            self.path.mkdir(exist_ok=True)
        elif os.path.isdir(self.path):
            raise IsADirectoryError(0, "it is a folder", str(self.path))

    def write(self, result: Result, drawn_bgr: U8) -> None:
        target = self.path / self._name(result.frame) if self._folder else self.path
        if self._names and not self._folder:
            raise LineamentError(f"{self.path} holds one picture and got a second frame; give a folder/ or a video")
        self._names.add(target.name)
        check_not_source(target, result.frame.source)
        write_image(target, drawn_bgr)

    def _name(self, frame: Frame) -> str:
        source = Path(frame.source)
        if source.suffix.lower() not in IMAGE_SUFFIXES:
            return f"{frame.index:06d}.jpg"
        # a.png and a.jpg may lie in one folder
        return next(name for name in numbered(source.stem, ".jpg") if name not in self._names)


class WindowSink:
    """A window. q or Esc or its X sets `quit`, s saves a snapshot, space pauses. Belongs to the main thread."""

    def __init__(
        self, title: str = "Lineament", *, still: bool = False, paced: bool = False, snapshots: Path = Path(".")
    ) -> None:
        """still: every frame stays until a key is pressed. paced: no frame is shown before its time, for files.

        snapshots: the folder that `s` writes to.
        """
        self.quit = False
        self.lost = 0
        self._title = title
        self._still, self._paced = still, paced
        self._clock_s = 0.0
        """time.monotonic() at which the source's time 0 would have been shown"""
        self._snapshots = snapshots
        self._opened = False
        self._shown = False

    def __enter__(self) -> Self:
        if not has_display():
            raise LineamentError(
                "cannot open a window: there is no display, or this OpenCV has no GUI; use --no-window"
            )
        os.environ.setdefault("QT_LOGGING_RULES", "default.warning=false")  # it misses fonts that it does not need
        cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        self._opened = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """Shows the drawing; while paused it stays here, and the window answers."""
        # asked first, for imshow would open a closed window anew
        self.quit = self.quit or self._closed_by_user()
        if self.quit:
            return
        if not self._shown:
            height, width = drawn_bgr.shape[:2]
            fit = min(1.0, 1280 / width, 800 / height)
            cv2.resizeWindow(self._title, round(width * fit), round(height * fit))
        cv2.imshow(self._title, drawn_bgr)
        key, paused = self._key(result.frame.time_s), self._still
        self._shown = True
        while True:
            if key in (ord("q"), 27) or self._closed_by_user():
                self.quit = True
            elif key == ord("s"):
                self._snapshot(result.frame, drawn_bgr)
            elif key == ord(" "):
                paused = not paused
            elif key != -1 and self._still:
                paused = False
            if self.quit or not paused:
                self._clock_s = max(self._clock_s, time.monotonic() - result.frame.time_s)
                return
            key = cv2.waitKey(30)

    def idle(self) -> None:
        """Lets the window answer while no frame comes."""
        if self._shown:
            self.quit = self.quit or cv2.waitKey(1) in (ord("q"), 27) or self._closed_by_user()

    def _key(self, time_s: float) -> int:
        """What is pressed until the next frame is due, else -1. In short waits: during one no Ctrl-C is seen."""
        while True:
            wait_ms = self._wait_ms(time_s)
            key = cv2.waitKey(min(wait_ms, 200))
            if key != -1 or wait_ms <= 200:
                return key

    def _wait_ms(self, time_s: float) -> int:
        """How long to show a frame before the next is due; at least 1, for the window needs it to draw."""
        if not self._shown:
            self._clock_s = time.monotonic() - time_s
        return max(1, round((self._clock_s + time_s - time.monotonic()) * 1e3)) if self._paced else 1

    def _closed_by_user(self) -> bool:
        try:
            return self._shown and cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error:  # with its last window Qt's own part is gone too
            return True

    def _snapshot(self, frame: Frame, drawn_bgr: U8) -> None:
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(frame.source).stem).strip("-")
        path = self._snapshots / f"lineament-{stem}-{frame.index:06d}.png"
        write_image(path, drawn_bgr)
        log.warning("saved %s", path)

    def close(self) -> None:
        if self._opened and not self._closed_by_user():
            cv2.destroyWindow(self._title)
        self._opened = self._shown = False


@functools.cache
def has_display() -> bool:
    """Whether a window can be opened, found out by opening one.

    In a process of its own: where the display does not answer, Qt aborts the process that asks.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    probe = [sys.executable, "-c", "import cv2; cv2.namedWindow('probe')"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def numbered(stem: str, suffix: str = "", first: int = 1) -> Iterator[str]:
    """a.jpg, a-2.jpg, a-3.jpg and so on without end, from the first-th."""
    return (f"{stem}{f'-{number}' * (number > 1)}{suffix}" for number in itertools.count(first))


def check_not_source(target: Path, source: str) -> None:
    """Raises LineamentError where target is the file that a source, as open_source takes it, is read from."""
    # os.path answers False for a source that is no path, however long
    source = os.path.expanduser(without_file_scheme(source))
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
        raise LineamentError(f"{target} is the source itself; writing there would destroy it; choose another --out")


def i420(bgr: U8, size_hw: tuple[int, int]) -> U8:
    """bgr fitted into a size, in the colours that VideoEncoder takes: (H * 3 / 2, W) uint8."""
    # OpenCV's conversion takes half the time of FFmpeg's
    return np.asarray(cv2.cvtColor(letterboxed(bgr, size_hw[1], size_hw[0]), cv2.COLOR_BGR2YUV_I420), np.uint8)


def letterboxed(bgr: U8, width: int, height: int) -> U8:
    """bgr fitted into (height, width): as it is if it fits, an odd edge doubled, another size centred on black."""
    h, w = bgr.shape[:2]
    if (h, w) == (height, width):
        return bgr
    if (h + h % 2, w + w % 2) == (height, width):
        return np.asarray(cv2.copyMakeBorder(bgr, 0, height - h, 0, width - w, cv2.BORDER_REPLICATE), np.uint8)
    fit = min(height / h, width / w)
    small = cv2.resize(bgr, (max(1, round(w * fit)), max(1, round(h * fit))), interpolation=cv2.INTER_AREA)
    y, x = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    out = np.zeros((height, width, 3), np.uint8)
    out[y : y + small.shape[0], x : x + small.shape[1]] = small
    return out


def _rounded(values: F32) -> object:
    """Nested lists, in hundredths of a pixel; null for what is not finite."""
    rounded = np.round(values.astype(float), 2)
    return rounded.tolist() if np.isfinite(rounded).all() else _plain(rounded)


def _plain(value: Any) -> object:
    """value as JSON knows it: arrays as lists, floats to 4 decimals, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
