"""Files: video, JSON lines, pictures. What was written survives a killed process."""

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
from lineament.stream.read.image import cannot_write, write_image
from lineament.stream.read.spec import without_file_scheme, without_page
from lineament.stream.write.audio import AudioTrack, open_audio
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
_MP4_WITH_AUDIO = {"movflags": "hybrid_fragmented+delay_moov"}
"""the header waits for the first fragment: only then is known by how much audio begins before the video"""
_WITH_AUDIO = {"max_interleave_delta": "1000000"}
"""microseconds for which video waits in memory for audio, after audio has ended"""
_LIVE_MP4 = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "video_track_timescale": "1000"}
"""FFmpeg's default timescale overflows in a gap of 7 hours and loses all later times; this one lasts 24 days"""
_SEGMENT_S, _SEGMENTS = 2, 6
"""of a playlist: length of a segment, and how many are kept"""


class _FileSink:
    """Base of the sinks that own a path."""

    lost = 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        """Creates the folder and checks that the path is writable, before any work is done."""
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
    """H.264 (VP9 for .webm). Frames keep their times; all are letterboxed to the size of the first, rounded up to even.

    An MP4 is written in fragments of a second, so that a killed process leaves a playable file. close() converts it to
    a plain one, except for a live source, whose index would grow in memory without end.
    """

    def __init__(
        self, path: str | Path, fps: float | None = None, live: bool = False, audio: Path | None = None
    ) -> None:
        """fps: None if unknown; a hint for the encoder only.

        live: it may run for weeks, with gaps of days.
        audio: a file whose audio is written, too, if the frames carry its timestamps.
        """
        super().__init__(Path(path))
        self._fps, self._live, self._audio_path = fps, live, audio
        self._audio: AudioTrack | None = None
        self._codec = VIDEO_CODECS.get(self.path.suffix.lower())
        self._container: OutputContainer | None = None
        self._encoder: VideoEncoder | None = None

    def _open(self) -> None:
        self._check()
        if self._audio_path:
            self._audio = open_audio(self._audio_path, self.path.suffix.lower())
        self._container = self._new_container()

    def _check(self) -> None:
        if self._codec is None:
            raise LineamentError(f"cannot write {self.path}: expected a video suffix: {', '.join(VIDEO_CODECS)}")
        with self.path.open("wb"):
            pass

    def _new_container(self) -> OutputContainer:
        options = {"flush_packets": "1"}
        if self._audio:
            options |= _WITH_AUDIO
        if self.path.suffix.lower() in (".mp4", ".mov"):
            options |= _LIVE_MP4 if self._live else _MP4_WITH_AUDIO if self._audio else _PLAIN_MP4
        return av.open(f"file:{self.path}", "w", options=options)

    def write(self, result: Result, drawn_bgr: U8) -> None:
        if self._container is None:
            raise RuntimeError(f"{self.path} is not open; use it in a with block")
        try:
            self._encoder = self._encoder or self._begin(self._container, result.frame, drawn_bgr)
            if self._audio:
                self._audio.before(result.frame)
            self._encoder.add(i420(drawn_bgr, (self._encoder.height, self._encoder.width)), result.frame.time_s)
        except (av.error.FFmpegError, OSError) as error:
            self._container = None
            raise cannot_write(self.path, error) from None

    def _begin(self, container: OutputContainer, first: Frame, first_bgr: U8) -> VideoEncoder:
        assert self._codec is not None
        encoder = VideoEncoder(container, self._codec, self._fps, even(first_bgr))
        if self._audio is None:
            return encoder
        try:
            if first.stamp_s is not None:
                self._audio.begin(container, first, self._fps)
                container.start_encoding()
                return encoder
        except ValueError:  # FFmpeg's error for invalid arguments is one, too
            log.warning("%s cannot hold the audio of %s, which is left out", self.path, first.source)
        self._audio.close()
        self._audio = None
        self._container = self._new_container()
        return self._begin(self._container, first, first_bgr)

    def close(self) -> None:
        container, self._container = self._container, None
        audio, self._audio = self._audio, None
        try:
            if container is None:
                return
            if self._encoder is None:
                log.warning("%s was not written: no frames", self.path)
                self.path.unlink(missing_ok=True)
                return
            if audio:
                audio.finish()
            self._encoder.finish()
        except (av.error.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from None
        finally:
            if audio:
                audio.close()


class HlsSink(VideoSink):
    """HLS: a playlist name.m3u8 and the newest seconds of H.264 as name-123.ts beside it, for a web server.

    Both are replaced atomically, so it plays while it is written and after a killed process. Files of an earlier run
    under these names are deleted at the start; the numbers always increase, also from run to run.
    """

    def _check(self) -> None:
        stem, folder = self.path.stem, self.path.parent
        if re.search(r"%\d*d", str(self.path)):  # FFmpeg would replace it by numbers
            raise LineamentError(
                f"cannot write {self.path}: the path of a playlist cannot contain '%d'; choose another"
            )
        for path in folder.iterdir():
            if re.fullmatch(rf"{re.escape(stem)}-\d+\.ts(\.tmp)?", path.name):
                path.unlink()
        self.path.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # tests the folder; an empty playlist would be invalid
            pass
        self._codec = H264

    def _new_container(self) -> OutputContainer:
        options = {
            "hls_time": str(_SEGMENT_S),
            "hls_list_size": str(_SEGMENTS),
            "hls_flags": "delete_segments+temp_file+independent_segments",
            "hls_start_number_source": "epoch",
            "hls_segment_filename": f"{self.path.parent}/{self.path.stem}-%d.ts",
        }
        return av.open(f"file:{self.path}", "w", format="hls", options=options)


class AppendSink(_FileSink):
    """Base of the sinks that append to a file: each piece in one system call, so a killed process leaves whole ones."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file: IO[Any] | None = None
        self._size = 0

    def _open(self) -> None:
        self._file = self.path.open("wb", buffering=0)

    def append(self, piece: str | bytes) -> None:
        """Raises LineamentError, and closes the file, if it cannot be written."""
        if self._file is None:
            raise RuntimeError(f"{self.path} is not open; use it in a with block")
        try:
            self._append(self._file, piece.encode() if isinstance(piece, str) else piece)
        except OSError as error:
            with contextlib.suppress(OSError):  # closing writes again
                AppendSink.close(self)
            raise cannot_write(self.path, error) from None

    def _append(self, file: IO[Any], data: bytes) -> None:
        try:
            written = file.write(data)
            if written < len(data):  # a full disk writes a part and fails on the next call
                file.write(data[written:])
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class JsonlSink(AppendSink):
    """One line of JSON per frame."""

    def __init__(self, path: str, schema: str = WFLW98.name) -> None:
        """path: "-" is standard output."""
        super().__init__(Path(path).expanduser())
        self.line = JsonLine(schema)

    def _open(self) -> None:
        if str(self.path) != "-":
            super()._open()

    def write(self, result: Result, drawn_bgr: U8) -> None:
        line = self.line(result) + "\n"
        if str(self.path) != "-":
            self.append(line)
            return
        try:
            sys.stdout.write(line)
            sys.stdout.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from None


class ImageSink(_FileSink):
    """Pictures: in a folder, named after a still's file or the frame number; or one, at the path itself."""

    def __init__(self, path: str | Path, folder: bool, still: bool = False) -> None:
        """still: the frames are pictures with names of their own."""
        super().__init__(Path(path))
        self._folder, self._still = folder, still
        self._names: set[str] = set()

    def _open(self) -> None:
        if self._folder:
            self.path.mkdir(exist_ok=True)
        elif os.path.isdir(self.path):
            raise IsADirectoryError(0, "it is a folder", str(self.path))

    def write(self, result: Result, drawn_bgr: U8) -> None:
        target = self.path / self._name(result.frame) if self._folder else self.path
        if self._names and not self._folder:
            raise LineamentError(f"{self.path} is one picture and got a second frame; use a folder/ or a video")
        self._names.add(target.name)
        check_not_source(target, without_page(result.frame.source))
        write_image(target, drawn_bgr)

    def _name(self, frame: Frame) -> str:
        if not self._still:
            return f"{frame.index:06d}.jpg"
        stem = Path(without_page(frame.source)).stem
        # a.png and a.jpg may be in one folder, and a file may have several pages
        return next(name for name in numbered(stem, ".jpg") if name not in self._names)


def numbered(stem: str, suffix: str = "", first: int = 1) -> Iterator[str]:
    """a.jpg, a-2.jpg, a-3.jpg and so on, starting from number first."""
    return (f"{stem}{f'-{number}' * (number > 1)}{suffix}" for number in itertools.count(first))


def check_not_source(target: Path, source: str) -> None:
    """Raises LineamentError if target is the file of a source, as open_source takes it."""
    # os.path.exists is False for a source that is not a path, however long
    source = os.path.expanduser(without_file_scheme(source))
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(target, source):
        raise LineamentError(f"{target} is the source itself and would be overwritten; choose another --out")
