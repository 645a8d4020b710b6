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
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lineament.landmarks.types import U8, Frame, LineamentError
from lineament.stream import MAX_PIXELS
from lineament.stream.backoff import RefusedError
from lineament.stream.read.base import OPEN_TIMEOUT_S, READ_TIMEOUT_S, BaseSource
from lineament.stream.read.image import check_file, turned
from lineament.stream.read.interrupt import Wait
from lineament.stream.read.spec import redacted_spec

log = logging.getLogger(__name__)

_PICTURE_TIMEOUT_S = 20.0
"""longest time without a picture while a live stream sends data: some cameras send a key frame only every 10 s"""
_LEAP_S, _LEAP_BACK_S = 600.0, 1.0
"""a jump of a file's timestamps, forwards and back, beyond which another recording begins"""
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
    """A video file or a stream, by FFmpeg. Rotation and mirroring are honoured, alpha is dropped."""

    def __init__(
        self,
        spec: str | Path,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        *,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """max_pixels: of a frame; larger ones are skipped undecoded, like damaged ones."""
        super().__init__(redacted_spec(str(spec)))
        self._url = spec if isinstance(spec, str) and "://" in spec else None
        # the prefix stops FFmpeg from taking "a:b.mp4" for a protocol
        self._address = self._url or f"file:{spec}"
        self._scheme, path = _scheme_and_path(self._url or "")
        self._endless = self._scheme in _LIVE_SCHEMES
        self.live = self._endless or (bool(self._url) and Path(path).suffix in ("", ".m3u8", ".mjpg", ".cgi"))
        self._timeout_s, self._max_pixels = (open_timeout_s, read_timeout_s), max_pixels
        self._wait = Wait(self._closed)
        self._container: InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        # reused, because creating one costs as much as a conversion
        self._to_bgr = VideoReformatter()
        self._broken_packets = 0
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
        pictures = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not pictures:
            kinds = " and ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            raise LineamentError(f"{self.name} contains only {kinds}; give a file with video")
        if pictures[0].disposition & Disposition.dependent:  # FFmpeg would show the first tile
            raise LineamentError(f"{self.name} is a picture in tiles (HEIC or AVIF); download it and give the file")
        self._describe(self._container, pictures[0])
        self._frames = self._decode(self._container, pictures[0])

    def _describe(self, container: InputContainer, stream: VideoStream) -> None:
        """Sets live, still, fps, frame_count and the threads to decode with."""
        duration_s = container.duration / av.time_base if container.duration else None
        self.still = container.format.name.endswith("_pipe") or container.format.name == "image2"
        self.live = self._endless or (self._url is not None and duration_s is None and not self.still)
        rate = stream.average_rate or stream.guessed_rate
        self.fps = float(rate) if rate else None
        if not self.live:
            estimate = round(duration_s * self.fps) if duration_s and self.fps else None
            self.frame_count = stream.frames or estimate
        # frame threads are faster, but each adds a frame of delay
        stream.thread_type = "SLICE" if self.live else "AUTO"
        if (
            codec := cast("av.VideoCodecContext | None", stream.codec_context)
        ) is not None:  # None if FFmpeg lacks the codec
            codec.options = {"max_pixels": str(self._max_pixels)}

    def _decode(self, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.EOFError:
                raise
            except av.error.FFmpegError:  # the error for a damaged packet depends on the codec
                self._broken_packets += 1

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
        try:
            bgr = np.asarray(self._to_bgr.reformat(picture, format="bgr24").to_ndarray(), np.uint8)
        except (av.error.FFmpegError, ValueError) as error:
            raise LineamentError(
                f"lost {self.name} after {self._index} frames: its pictures, {picture.width}x{picture.height} "
                f"{picture.format.name}, cannot be converted to BGR ({error}); check whether another player shows it"
            ) from None
        return self._frame(_upright(bgr, picture), self._time_s(picture))

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
        expected = self.frame_count or 0
        if self._broken_packets or self._index < 0.9 * expected - 2:
            of = f" of about {expected}" if expected else ""
            log.warning("%s is damaged or ends early: %d frames%s decoded", self.name, self._index, of)
        self._broken_packets, self.frame_count = 0, self._index

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
            return "not a video that can be decoded; it may be damaged, incomplete or of an unsupported format"
        case av.error.OSError() | av.error.ExitError() if is_url:
            return "no connection; check the host name and the network"
        case _:
            return f"{(error.strerror or type(error).__name__).lower()}; check whether another player opens it"


def _no_picture(took_s: float) -> str:
    return f"data but no picture for {took_s:.0f} s; check whether another player shows it, or restart the camera"


def _upright(bgr: U8, picture: av.VideoFrame) -> U8:
    """bgr rotated and mirrored as the container asks, to the nearest quarter turn; phone cameras set this."""
    matrix = _display_matrix(picture)
    if matrix is None:
        return bgr
    # (x, y) is shown at (a x + c y, b x + d y)
    a, b, c, d = matrix
    return turned(bgr, True, c < 0, b < 0) if abs(b) > abs(a) else turned(bgr, False, a < 0, d < 0)


def _display_matrix(picture: av.VideoFrame) -> tuple[float, float, float, float] | None:
    """(a, b, c, d) of FFmpeg's display matrix; None if the picture is shown as it is."""
    try:
        beside: Any = picture.side_data
    except ValueError:  # PyAV fails on a frame with side data of an unknown kind, but knows the angle
        turn_rad = math.radians(-picture.rotation)
        return (math.cos(turn_rad), math.sin(turn_rad), -math.sin(turn_rad), math.cos(turn_rad))
    if (data := beside.get(SideData.DISPLAYMATRIX)) is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
