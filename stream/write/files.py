"""Files: a video, lines of JSON, pictures. A killed process leaves what was written before."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

import av
import av.error
from av.container import OutputContainer

from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import U8, Frame, LineamentError, Result
from lineament.stream.read.image import IMAGE_SUFFIXES, cannot_write, write_image
from lineament.stream.read.spec import without_file_scheme
from lineament.stream.write.encode import H264, VideoEncoder, even, i420
from lineament.stream.write.json_line import JsonLine

log = logging.getLogger(__name__)

VIDEO_CODECS = {
    ".mp4": H264,
    ".mov": H264,
    ".mkv": H264,
    ".webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "32", "b": "0"}),
}
_PLAIN_MP4 = {"movflags": "hybrid_fragmented"}
_LIVE_MP4 = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "video_track_timescale": "1000"}
"""FFmpeg's finer usual ticks would overflow in a gap of 7 hours, and all times after it be lost; these last 24 days"""
_SEGMENT_S, _SEGMENTS = 2, 6
"""of a playlist: how long one is, and how many are kept"""


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
        self._codec = VIDEO_CODECS.get(self.path.suffix.lower())
        self._container: OutputContainer | None = None
        self._encoder: VideoEncoder | None = None

    def _open(self) -> None:
        if self._codec is None:
            raise LineamentError(f"cannot write {self.path}: a video ends in {', '.join(VIDEO_CODECS)}")
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


class JsonlSink(_FileSink):
    """One line of JSON a frame, each in one call of the system, so that a killed process leaves whole lines."""

    def __init__(self, path: str, schema: str = WFLW98.name) -> None:
        """path: "-" is standard output."""
        super().__init__(Path(path).expanduser())
        self.line = JsonLine(schema)
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


def numbered(stem: str, suffix: str = "", first: int = 1) -> Iterator[str]:
    """a.jpg, a-2.jpg, a-3.jpg and so on without end, from the first-th."""
    return (f"{stem}{f'-{number}' * (number > 1)}{suffix}" for number in itertools.count(first))


def check_not_source(target: Path, source: str) -> None:
    """Raises LineamentError where target is the file that a source, as open_source takes it, is read from."""
    # os.path answers False for a source that is no path, however long
    source = os.path.expanduser(without_file_scheme(source))
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
        raise LineamentError(f"{target} is the source itself; writing there would destroy it; choose another --out")
