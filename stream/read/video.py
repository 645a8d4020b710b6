"""Video files and streams, through FFmpeg."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import av
import av.error
from av.container import InputContainer
from av.stream import Discard
from av.video.stream import VideoStream

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.backoff import RefusedError
from lineament.stream.read.base import OPEN_TIMEOUT_S, READ_TIMEOUT_S, BaseSource
from lineament.stream.read.display import Display
from lineament.stream.read.image import check_file
from lineament.stream.read.interrupt import Wait
from lineament.stream.read.spec import redacted_spec
from lineament.stream.read.streams import end_s, start_of_s, video_stream

log = logging.getLogger(__name__)

_PICTURE_TIMEOUT_S = 20.0
"""longest time without a picture while a live stream sends data: some cameras send a key frame only every 10 s"""
_LEAP_S, _LEAP_BACK_S = 600.0, 1.0
"""a jump of a file's timestamps, forwards and back, beyond which another recording begins"""
_MISSING_SHARE, _MISSING_S = 0.1, 5.0
"""a file that ends before its stated end by more than this share of its length, or by so many seconds, is cut short"""
_LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt", "tcp"})
_SCHEMES = _LIVE_SCHEMES | {"http", "https", "ftp", "mmsh", "mmst"}
_CARRIERS = frozenset({"tls", "srtp", "crypto", "data", "hls", "httpproxy", "ffrtmphttp", "rtmpt", "rtmpts"})
"""protocols below those. FFmpeg is limited to both: a remote playlist must not name files of this machine"""
_INDEX_AT_END = (
    "its index is at the end, and the server does not support range requests; download it, "
    "or move the index to the front with `ffmpeg -i in.mp4 -c copy -movflags +faststart out.mp4`"
)
_UNKNOWN_PROTOCOL = "unknown protocol; use rtsp://, rtsps://, rtmp://, srt://, udp://, http:// or https://"


class VideoSource(BaseSource):
    """A video file or a stream, by FFmpeg, shown as its metadata asks; alpha is dropped."""

    def __init__(
        self,
        spec: str | Path,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        *,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int | None = None,
        stream: int | None = None,
    ) -> None:
        """max_pixels: of a frame; larger ones are skipped undecoded, like damaged ones. max_bytes: to read at
        most of an http:// URL. stream: the number of the video stream to read; by default the largest.
        """
        super().__init__(redacted_spec(str(spec)))
        self._url = spec if isinstance(spec, str) and "://" in spec else None
        # the prefix stops FFmpeg from taking "a:b.mp4" for a protocol
        self._address = self._url or f"file:{spec}"
        self._scheme, path = _scheme_and_path(self._url or "")
        self._endless = self._scheme in _LIVE_SCHEMES
        self.live = self._endless or (bool(self._url) and Path(path).suffix in ("", ".m3u8", ".mjpg", ".cgi"))
        self._timeout_s, self._max_pixels = (open_timeout_s, read_timeout_s), max_pixels
        self._stream, self._max_bytes = stream, max_bytes
        if max_bytes:
            self._address = f"subfile,,start,0,end,{max_bytes},,:{self._url}"
        self._wait = Wait(self._closed)
        self._container: InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._display: Display | None = None
        self._broken_packets = 0
        self._end_s: float | None = None
        """when the file states that it ends; as _reached_s, on the clock of its packets"""
        self._own_end = True
        self._start_s = self._reached_s = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0

    def _open(self) -> None:
        if not self._url:
            check_file(Path(self._address.removeprefix("file:")))
        elif self._scheme not in _SCHEMES:
            raise LineamentError(f"cannot open {self.name}: {_UNKNOWN_PROTOCOL}")
        options = {"rtsp_transport": "tcp"} if self._scheme in ("rtsp", "rtsps") else {}
        if self._url:
            options["protocol_whitelist"] = ",".join(sorted(_SCHEMES | _CARRIERS))
        if self._max_bytes:
            options["protocol_whitelist"] += ",subfile"
        if self._endless:
            options |= {"fflags": "nobuffer", "analyzeduration": "1000000"}
        started = time.monotonic()
        try:
            with self._wait.at_most(self._timeout_s[0]):
                self._container = av.open(
                    self._address, options=options, timeout=self._timeout_s, metadata_errors="replace"
                )
        except av.error.FFmpegError as error:
            raise self._failure("cannot open", error, time.monotonic() - started) from None
        except UnicodeError:
            raise LineamentError(
                f"cannot open {self.name}: it contains an invalid character; check the address"
            ) from None
        stream = video_stream(self._container, self.name, self._stream)
        self._describe(self._container, stream)
        self._display = Display(stream, self.name, self._max_pixels)
        self._frames = self._display.filtered(self._decode(self._container, stream))

    def _describe(self, container: InputContainer, stream: VideoStream) -> None:
        """Sets live, still, fps, frame_count and the threads to decode with."""
        duration_s = container.duration / av.time_base if container.duration else None
        self.still = container.format.name.endswith("_pipe") or container.format.name == "image2"
        self.live = self._endless or (self._url is not None and duration_s is None and not self.still)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else None
        if self._url:
            for other in container.streams.video:  # spares the network the other variants of a playlist
                other.discard = Discard.default if other is stream else Discard.all
        if not self.live:
            self._end_s, self._own_end = end_s(container, stream)
            self._start_s = self._reached_s = start_of_s(container, stream)
            length_s = self._end_s - self._start_s if self._end_s is not None else duration_s
            self.frame_count = stream.frames or (round(length_s * self.fps) if length_s and self.fps else None)
        # frame threads are faster, but each adds a frame of delay
        stream.thread_type = "SLICE" if self.live else "AUTO"
        if (
            codec := cast("av.VideoCodecContext | None", stream.codec_context)
        ) is not None:  # None if FFmpeg lacks the codec
            codec.options = {"max_pixels": str(self._max_pixels)}

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        # without an end of its own, the stream may end before another one does
        alone = self._own_end or self._end_s is None
        for packet in self._packets(container, stream if alone else None):
            self._reach(packet)
            if packet.stream.index != stream.index:  # not packet.stream_index: the last, empty one has 0 there
                continue
            try:
                yield from packet.decode()
            except av.error.EOFError:
                raise
            except av.error.FFmpegError:  # the error for a damaged packet depends on the codec
                self._broken_packets += 1

    def _packets(self, container: InputContainer, stream: VideoStream | None) -> Iterator[av.Packet[Any]]:
        """Of a stream, or of all."""
        try:
            yield from container.demux(stream) if stream else container.demux()
        except IndexError:  # PyAV's, after a stream was announced midway
            self._broken_packets += 1

    def _reach(self, packet: av.Packet[Any]) -> None:
        begins = packet.dts if packet.pts is None else packet.pts
        if begins is not None:
            self._reached_s = max(self._reached_s, float((begins + (packet.duration or 0)) * packet.time_base))

    def _next(self) -> Frame | None:
        started = time.monotonic()
        try:
            with self._wait.at_most(_PICTURE_TIMEOUT_S if self.live else math.inf):
                picture = next(self._frames, None)
        except (av.error.InvalidDataError, av.error.EOFError) as error:
            if self.live:
                raise self._failure("lost", error, time.monotonic() - started) from None
            self._broken_packets += 1
            picture = None
        except av.error.FFmpegError as error:
            raise self._failure("lost", error, time.monotonic() - started) from None
        if picture is None:
            self._end(time.monotonic() - started)
            return None
        assert self._display is not None
        try:
            bgr = self._display.bgr(picture)
        except (av.error.FFmpegError, ValueError) as error:
            raise LineamentError(
                f"lost {self.name} after {self._index} frames: its pictures, {picture.width}x{picture.height} "
                f"{picture.format.name}, cannot be converted to BGR ({error}); check whether another player shows it"
            ) from None
        stamp_s = None if self.live else picture.time
        return self._frame(bgr, self._time_s(picture), stamp_s=stamp_s)

    def _time_s(self, picture: av.VideoFrame) -> float:
        """Seconds since the first frame, increasing: from the clock if live, else from the container."""
        step = 1 / (self.fps or 30.0)
        stamp = time.monotonic() if self.live else picture.time
        if self._first_s is None:
            self._first_s = stamp or 0.0
            return 0.0
        time_s = self._last_s if stamp is None else stamp - self._first_s
        if stamp is not None and not self.live and not -_LEAP_BACK_S < time_s - self._last_s < _LEAP_S:
            # concatenated recordings: each part has its own timestamps
            time_s = self._last_s + step
            self._first_s = stamp - time_s
        self._last_s = time_s if time_s > self._last_s else self._last_s + step
        return self._last_s

    def _end(self, took_s: float) -> None:
        """Nothing more to decode: an error if live or if nothing was decoded, a warning if frames are missing."""
        if self._wait.over:
            raise LineamentError(f"lost {self.name} after {self._index} frames: {_no_picture(took_s)}")
        if self._endless:
            raise LineamentError(f"lost {self.name} after {self._index} frames: the sender ended it; restart it")
        if not self._index:
            raise LineamentError(f"{self.name} contains no frame that can be decoded; it may be damaged or encrypted")
        if self.still and self._url:
            log.info("%s is one picture; --poll-s 1 fetches it again and again", self.name)
        if self._broken_packets or self._is_short:
            of = f" of about {self.frame_count}" if self.frame_count else ""
            log.warning("%s is damaged or ends early: %d frames%s decoded", self.name, self._index, of)
        self._broken_packets, self.frame_count = 0, self._index

    @property
    def _is_short(self) -> bool:
        """Whether the file ends well before its stated end. Frames are not counted: their number is an estimate."""
        if self._end_s is None:
            return False
        slack_s = min(_MISSING_SHARE * (self._end_s - self._start_s), _MISSING_S) + 2 / (self.fps or 30.0)
        return self._reached_s < self._end_s - slack_s

    def _release(self) -> None:
        self._frames = iter(())
        if self._container is not None:
            self._container.close()

    def _failure(self, verb: str, error: av.error.FFmpegError, took_s: float) -> LineamentError:
        """A clear error for FFmpeg's, whose own text contains the URL with its password."""
        timed_out = took_s >= 0.9 * self._timeout_s[verb == "lost"]
        after = f" after {self._index} frames" if self._index else ""
        undecoded = verb == "lost" and self._wait.over
        broke = verb == "lost" and self._url and not timed_out and type(error) is av.error.OSError
        if undecoded:
            why = _no_picture(took_s)
        elif broke and not self._index and self._container and "mp4" in self._container.format.name:
            # its pictures precede its index, and seeking back to them takes range requests
            why = _INDEX_AT_END
        elif broke:
            why = "the connection broke" if self.live else "the connection broke, or the file ended unannounced"
            why += "; check the network" if self.live else "; download it first, or try again"
        else:
            why = _reason(error, self._url is not None, timed_out, took_s)
        refused = isinstance(error, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError)
        return (RefusedError if refused else LineamentError)(f"{verb} {self.name}{after}: {why}")


def _scheme_and_path(url: str) -> tuple[str, str]:
    """Unlike urlsplit, accepts any text; both empty if there is no scheme."""
    scheme, _, rest = url.partition("://")
    return scheme.lower(), re.split(r"[?#]", rest)[0].partition("/")[2]


def _reason(error: av.error.FFmpegError, is_url: bool, timed_out: bool, took_s: float) -> str:
    """The reason and the next step."""
    match error:
        case _ if timed_out and is_url:
            return f"no data for {took_s:.0f} s; check that the device is on, and the address, port and firewall"
        case av.error.ConnectionRefusedError():
            return "connection refused; check the port, and that the server is running"
        case av.error.HTTPUnauthorizedError():
            return "wrong user name or password (401); use scheme://user:password@host, with %40 for @ in the password"
        case av.error.HTTPForbiddenError():
            return "the server forbids it (403); check the account's rights"
        case av.error.HTTPNotFoundError():
            return "the server has no such stream (404); check the path after the host"
        case av.error.HTTPServerError():
            return "the server failed (5xx); try again later"
        case av.error.ProtocolNotFoundError():
            return _UNKNOWN_PROTOCOL
        case av.error.InvalidDataError():
            what = "video or picture" if is_url else "video"
            return f"not a {what} that can be decoded; it may be damaged, incomplete or of an unsupported format"
        case av.error.OSError() | av.error.ExitError() if is_url:
            return "no connection; check the host name and the network"
        case _:
            return f"{(error.strerror or type(error).__name__).lower()}; check whether another player opens it"


def _no_picture(took_s: float) -> str:
    return f"data but no picture for {took_s:.0f} s; check whether another player shows it, or restart the camera"
