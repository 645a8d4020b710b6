"""Audio of a video file, written beside its annotated frames: copied where the output's format takes it, else encoded.

track = open_audio(Path("clip.mkv"), ".mp4")  # None if it has no audio
track.begin(container, first_frame)
for frame in frames:
    track.before(frame)
    ...
track.finish()

The file is read a second time, for its audio alone. A frame's time_s and stamp_s together give the clock: audio is
placed where the frames with its timestamps are, also after the timestamps jump. Audio never ends a run: what is damaged
is left out, with one warning.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.error
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import Discard

from lineament.landmarks.types import Frame

log = logging.getLogger(__name__)

_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac"})
_COPIED = {
    ".mp4": _MP4 | {"opus", "flac"},
    ".mov": _MP4,
    ".webm": frozenset({"opus", "vorbis"}),
    ".m3u8": frozenset({"aac", "mp3", "ac3", "eac3"}),
}
"""codecs that players expect in a format; FFmpeg allows more. Matroska, which is absent, takes nearly all"""
_ENCODER = {".webm": "libopus"}
"""AAC for all others"""
_LEAP_S = 0.1
"""a change of the difference between a frame's timestamp and its time: the timestamps jumped"""
_BACK_S = 0.25
"""audio that is so much earlier than what was written belongs to frames after a jump"""
_WAIT_S = 10.0
"""of video, for a jump that the audio had"""
_LATE_S = 1.0
"""FFmpeg writes no fragment of an MP4 before it has audio: audio that begins later is encoded with silence before it"""
_ASTRAY_S = 1.0
"""from the timestamp before, beyond which one may be damaged"""
_GAP_S = 10.0
"""longest silence to insert where audio is missing; a longer gap stays a gap"""


class _Sound(NamedTuple):
    """A packet and when it plays, in seconds since the first frame."""

    packet: Packet[AudioStream]
    time_s: float
    duration_s: float


def open_audio(path: Path, suffix: str) -> AudioTrack | None:
    """The best audio stream of a file, for an output with that suffix; None without one, or if it cannot be read."""
    try:
        container = av.open(f"file:{path}", metadata_errors="replace")
    except (av.error.FFmpegError, UnicodeError):  # its video may yet be readable, by a reader with other options
        log.warning("the audio of %s cannot be read, and is left out", path.name)
        return None
    stream = container.streams.best("audio")
    if isinstance(stream, AudioStream) and stream.codec_context is not None and stream.codec_context.sample_rate:
        if len(container.streams.audio) > 1:
            log.info("%s has %d audio streams; the default one is written", path.name, len(container.streams.audio))
        for other in container.streams:
            if other is not stream:
                other.discard = Discard.all  # spares reading the video again
        return AudioTrack(container, stream, path.name, suffix)
    if stream is not None:
        log.warning("the audio of %s is of an unknown codec, and is left out", path.name)
    container.close()
    return None


class AudioTrack:
    """Reads the audio of one file and writes it into one container, as the frames advance."""

    def __init__(self, container: InputContainer, stream: AudioStream, name: str, suffix: str) -> None:
        self._stream, self._name, self._suffix = stream, name, suffix
        self._reader = _Reader(container, stream)
        self._writer: _Copied | _Encoded | None = None
        self._last_s = self._step_s = 0.0
        """the newest frame's time, and the time between it and the one before"""

    def begin(self, container: OutputContainer, first: Frame, fps: float | None) -> None:
        """Adds a stream to the container, before its first packet. first: it must have a stamp_s.

        Raises ValueError if the container refuses.
        """
        self._reader.follow(first)
        self._last_s, self._step_s = first.time_s, 1 / (fps or 30.0)
        if (found := self._reader.first()) is None:
            return
        first_packet, begins_s = found
        copied = _COPIED.get(self._suffix)
        codec = self._stream.codec_context.codec.canonical_name
        late = self._suffix in (".mp4", ".mov") and begins_s > _LATE_S
        if (copied is not None and codec not in copied) or late:
            self._writer = _Encoded(container, self._stream, _ENCODER.get(self._suffix, "aac"))
        else:
            try:
                self._writer = _Copied(container, self._stream, first_packet, self._suffix != ".m3u8")
            except ValueError:
                self._writer = _Encoded(container, self._stream, "aac")
        if "language" in self._stream.metadata:
            self._writer.out.metadata["language"] = self._stream.metadata["language"]

    def before(self, frame: Frame) -> None:
        """Writes the audio that plays before a frame. Raises OSError if the container cannot be written."""
        self._write(frame.time_s)
        self._reader.follow(frame)
        self._last_s, self._step_s = frame.time_s, frame.time_s - self._last_s or self._step_s

    def finish(self) -> None:
        """Writes what plays before the last frame ends."""
        self._write(self._last_s + self._step_s)
        if self._writer is not None:
            self._writer.finish(self._last_s + self._step_s - self._reader.zero_s)
        if self._reader.damaged:
            log.warning("some of the audio of %s is damaged or changes its format, and was left out", self._name)

    def close(self) -> None:
        self._reader.close()

    def _write(self, until_s: float) -> None:
        if self._writer is None:
            return
        for sound in self._reader.until(until_s - self._reader.zero_s):
            try:
                self._writer.add(sound)
            except (av.error.InvalidDataError, ValueError):
                self._reader.damaged += 1
        self._writer.advance(until_s - self._reader.zero_s)


class _Reader:
    """The audio packets of a file in order, on the clock of its frames."""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self._container, self._stream = container, stream
        self._packets: Iterator[Packet[AudioStream]] = container.demux(stream)
        self._ahead: deque[Packet[AudioStream]] = deque()
        """read, but not due: at most two"""
        self.damaged = 0
        self.zero_s = 0.0
        """time_s of the first frame"""
        self._video_offset_s: float | None = None
        """timestamp minus time of the newest frame"""
        self._offset_s = 0.0
        """the same for the audio; it follows when the audio's own timestamps jump"""
        self._stamp_s: float | None = None
        """of the packet before"""
        self._ended_s: float | None = None
        """when what was delivered ends"""
        self._waits_since_s: float | None = None

    def first(self) -> tuple[Packet[AudioStream], float] | None:
        """The first packet and when it plays; None if there is none."""
        return (self._ahead[0], self._stamp_of(self._ahead[0]) - self._offset_s) if self._fill() else None

    def follow(self, frame: Frame) -> None:
        """Takes the clock of a frame: the following ones, until the next call, have no other."""
        if frame.stamp_s is None:
            return
        if self._video_offset_s is None:
            self.zero_s = frame.time_s
            self._offset_s = self._video_offset_s = frame.stamp_s
        offset_s = frame.stamp_s - (frame.time_s - self.zero_s)
        if abs(offset_s - self._video_offset_s) > _LEAP_S:
            self._video_offset_s = offset_s

    def until(self, time_s: float) -> Iterator[_Sound]:
        """The packets that begin before that time and were not delivered yet."""
        while self._fill():
            packet = self._ahead[0]
            stamp_s, duration_s = self._stamp_of(packet), self._duration_of(packet)
            if self._is_astray(stamp_s):
                self._ahead.popleft()
                self.damaged += 1
                continue
            if self._has_jumped(stamp_s):
                assert self._video_offset_s is not None
                self._offset_s = self._video_offset_s
            begins_s = stamp_s - self._offset_s
            if begins_s >= time_s or self._waits(begins_s, time_s):
                return
            self._ahead.popleft()
            self._stamp_s = stamp_s
            # a decoder needs the packet before the first one that is heard
            too_early_s = -2 * duration_s if self._ended_s is None else self._ended_s - duration_s / 2
            if begins_s < too_early_s:
                continue
            self._ended_s, self._waits_since_s = begins_s + duration_s, None
            yield _Sound(packet, begins_s, duration_s)

    def _is_astray(self, stamp_s: float) -> bool:
        """Whether the timestamp is damaged: far from the one before, which the one after continues."""
        if self._stamp_s is None or len(self._ahead) < 2 or abs(stamp_s - self._stamp_s) < _ASTRAY_S:
            return False
        return abs(self._stamp_of(self._ahead[1]) - self._stamp_s) < abs(stamp_s - self._stamp_s) / 2

    def _has_jumped(self, stamp_s: float) -> bool:
        """Whether the audio's timestamps jump as the video's did."""
        assert self._video_offset_s is not None
        leap_s = self._video_offset_s - self._offset_s
        if abs(leap_s) <= _LEAP_S or self._stamp_s is None:
            return False
        step_s = stamp_s - self._stamp_s
        return step_s > leap_s / 2 if leap_s > 0 else step_s < 0

    def _waits(self, begins_s: float, time_s: float) -> bool:
        """Whether a packet that would play before what was delivered waits for the video's timestamps to jump."""
        if self._ended_s is None or begins_s > self._ended_s - _BACK_S:
            return False
        self._waits_since_s = time_s if self._waits_since_s is None else self._waits_since_s
        return time_s < self._waits_since_s + _WAIT_S

    def _fill(self) -> bool:
        """Reads ahead; False at the end."""
        try:
            while len(self._ahead) < 2:
                packet = next(self._packets)
                if packet.size:
                    self._ahead.append(packet)
        except (StopIteration, IndexError):  # PyAV ends with the latter after a stream was announced midway
            pass
        except av.error.FFmpegError:
            self.damaged += 1
            self._packets = iter(())
        return bool(self._ahead)

    def _stamp_of(self, packet: Packet[AudioStream]) -> float:
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None:
            return float(ticks * packet.time_base)
        return (self._ended_s or 0.0) + self._offset_s

    def _duration_of(self, packet: Packet[AudioStream]) -> float:
        codec = self._stream.codec_context
        return float((packet.duration or 0) * packet.time_base) or (codec.frame_size or 1024) / codec.sample_rate

    def close(self) -> None:
        self._packets = iter(())
        self._container.close()


class _Copied:
    """Writes packets as they are, stamped in samples."""

    def __init__(
        self, container: OutputContainer, stream: AudioStream, first: Packet[AudioStream], headless: bool
    ) -> None:
        """headless: the container describes AAC once, as MPEG-TS does in every packet. Raises ValueError if refused."""
        codec = stream.codec_context
        self._strip = None
        if headless and codec.codec.canonical_name == "aac" and not codec.extradata:
            self._strip, self._header = BitStreamFilterContext("aac_adtstoasc", stream), _adts(first)
            (described,) = self._strip.filter(Packet(bytes(first)))
            description = bytes(described.get_sidedata("new_extradata"))
        self._container = container
        self.out = container.add_stream_from_template(stream)
        if self._strip is not None:
            self.out.codec_context.extradata = description
        self._rate, self._frame_size = codec.sample_rate, codec.frame_size
        self._tolerance = 1.5 * float(stream.time_base or 0) * self._rate + 1
        """samples by which rounded timestamps differ"""
        self._next = self._last = -(1 << 62)
        """samples: when the packet before ends and begins"""

    def add(self, sound: _Sound) -> None:
        packet, begins, samples = sound.packet, round(sound.time_s * self._rate), round(sound.duration_s * self._rate)
        if self._strip is not None:
            if _adts(packet) != self._header:
                raise ValueError("its format changes")
            (packet,) = self._strip.filter(packet)
        if abs(samples - self._frame_size) <= self._tolerance:
            samples = self._frame_size
        if abs(begins - self._next) <= self._tolerance:
            begins = self._next
        begins = max(begins, self._last + 1)
        packet.stream, packet.time_base = self.out, Fraction(1, self._rate)
        packet.pts = packet.dts = begins
        packet.duration = samples
        self._last, self._next = begins, begins + samples
        self._container.mux(packet)

    def advance(self, time_s: float) -> None: ...

    def finish(self, time_s: float) -> None: ...


def _adts(packet: Packet[AudioStream]) -> int:
    """The profile, rate and channels in the header of an AAC packet of MPEG-TS."""
    return int.from_bytes(bytes(packet)[2:4]) & 0xFDC0


class _Encoded:
    """Decodes packets and encodes them as mono or stereo, with gaps filled and overlaps cut."""

    def __init__(self, container: OutputContainer, stream: AudioStream, codec_name: str) -> None:
        codec, rates = stream.codec_context, av.Codec(codec_name, "w").audio_rates or []
        self._container = container
        self._rate = codec.sample_rate if codec.sample_rate in rates else 48_000
        self._layout = "mono" if codec.layout.nb_channels == 1 else "stereo"
        channels = min(2, codec.layout.nb_channels)
        bit_rate = channels * min(64_000, 4 * self._rate)
        self.out: Any = container.add_stream(codec_name, rate=self._rate, bit_rate=bit_rate, layout=self._layout)
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None
        """format of what is decoded, which may change"""
        self._ready: deque[AudioFrame] = deque()
        """resampled, but not due"""
        self._next = 0
        """samples: when the last one in ready ends"""

    def add(self, sound: _Sound) -> None:
        try:
            frames = sound.packet.decode()
        except av.error.FFmpegError:  # which one depends on the codec
            raise ValueError("a damaged packet") from None
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            if not frame.sample_rate or not frame.layout.nb_channels:  # FFmpeg's resampler would divide by them
                raise ValueError("a damaged packet")
            delay_s = 0.0
            if frame.time is not None and sound.packet.pts is not None:
                delay_s = frame.time - float(sound.packet.pts * sound.packet.time_base)
            self._resample(frame, sound.time_s + delay_s)

    def advance(self, time_s: float) -> None:
        while self._resampler is None and self._next + self._size <= time_s * self._rate:
            self._keep([self._silence()])  # until the audio begins
        while self._ready and (self._ready[0].pts or 0) < time_s * self._rate:
            self._container.mux(self.out.encode(self._ready.popleft()))

    def finish(self, time_s: float) -> None:
        self._keep(self._resampler.resample(None) if self._resampler else [])
        self.advance(time_s)
        self._container.mux(self.out.encode())

    def _resample(self, frame: AudioFrame, begins_s: float) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind or begins_s > self._next / self._rate + _GAP_S:
            # only the very last frame of a stream may be short
            rest = self._resampler.resample(None) if self._resampler else []
            self._keep([full for full in rest if full.samples == self._size])
            begin_s = self._next / self._rate
            if begins_s > begin_s + _GAP_S:
                begin_s = begins_s
            # FFmpeg counts first_pts in samples of the input
            self._resampler, self._kind = self._new_resampler(math.ceil(begin_s * frame.sample_rate)), kind
        frame.time_base = Fraction(1, frame.sample_rate)
        frame.pts = round(begins_s * frame.sample_rate)
        self._keep(self._resampler.resample(frame))

    def _new_resampler(self, begin: int) -> AudioResampler:
        options = {"async": "1", "min_hard_comp": "0.02", "first_pts": str(begin)}
        return AudioResampler(self.out.format, self._layout, self._rate, self._size, options)

    def _silence(self) -> AudioFrame:
        frame = AudioFrame(self.out.format.name, self._layout, self._size)
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        frame.sample_rate, frame.time_base, frame.pts = self._rate, Fraction(1, self._rate), self._next
        return frame

    @property
    def _size(self) -> int:
        """Samples of a frame, known once the codec is open."""
        return self.out.codec_context.frame_size or 1024

    def _keep(self, frames: list[AudioFrame]) -> None:
        self._ready.extend(frames)
        if frames:
            self._next = (frames[-1].pts or 0) + frames[-1].samples
