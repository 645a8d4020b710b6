"""Streams: which of a container's video streams is read, and when it ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import cast

import av
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from lineament.landmarks.types import LineamentError

log = logging.getLogger(__name__)

_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails
"""covers and thumbnails, which containers keep as video streams"""
_ESTIMATED = cast("int", (Flags.ts_discont | Flags.no_timestamps).value)
"""flags of formats that state no length, such as MPEG-TS; FFmpeg then guesses one"""


def video_stream(container: InputContainer, name: str, number: int | None = None) -> VideoStream:
    """The stream of that number, counted from 0; by default the largest, of equals the one marked as default.

    Covers and thumbnails do not count. Logs the choice if there is one. Raises LineamentError if there is no video, or
    no such stream.
    """
    videos = videos_of(container)
    if not videos:
        kinds = " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise LineamentError(f"{name} contains only {kinds}; give a file with video")
    if videos[0].disposition & Disposition.dependent:  # FFmpeg would show the first tile
        raise LineamentError(f"{name} is a picture in tiles (HEIC or AVIF); download it and give the file")
    listed = ", ".join(f"{i} ({_described(stream)})" for i, stream in enumerate(videos))
    if number is None:
        chosen = largest(videos)
    elif 0 <= number < len(videos):
        chosen = videos[number]
    else:
        raise LineamentError(f"{name} has no video stream {number}; choose from {listed}")
    if len(videos) > 1:
        hint = "; --stream N reads another" if number is None else ""
        log.info("%s has %d video streams: %s; reading %d%s", name, len(videos), listed, videos.index(chosen), hint)
    return chosen


def videos_of(container: InputContainer) -> list[VideoStream]:
    """Its video streams, without covers and thumbnails."""
    return [stream for stream in container.streams.video if not stream.disposition & _PICTURES]


def largest(videos: Sequence[VideoStream]) -> VideoStream:
    """Of equals, the one marked as default."""
    return max(videos, key=lambda s: (_pixels(s), bool(s.disposition & Disposition.default)))


def end_s(container: InputContainer, stream: VideoStream) -> tuple[float | None, bool]:
    """When the stream ends by what the file states, on the clock of its packets, and whether that is its own end.

    Otherwise it is the end of its longest stream. None if the file does not state it.
    """
    if container.format.flags & _ESTIMATED:
        return None, False
    start_s = start_of_s(container, stream)
    ends_s = []
    if container.format.name == "avi" and stream.frames and stream.time_base:
        # FFmpeg shortens the duration of an AVI that was cut short, but not the number of its frames, dropped ones too
        return start_s + float(stream.frames * stream.time_base), True
    if stream.duration is not None and stream.time_base:
        ends_s.append(start_s + float(stream.duration * stream.time_base))
    elif stated := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):  # Matroska
        hours, minutes, seconds = map(float, stated.groups())
        ends_s.append(_end_s(start_s, hours * 3600 + minutes * 60 + seconds))
    own = bool(ends_s)
    if container.duration:  # shorter than the stream's if it is to be cut off
        ends_s.append(_end_s((container.start_time or 0) / av.time_base, container.duration / av.time_base))
    return min(ends_s, default=None), own


def start_of_s(container: InputContainer, stream: VideoStream) -> float:
    """The time of its first packet."""
    if stream.start_time is not None and stream.time_base:
        return float(stream.start_time * stream.time_base)
    return (container.start_time or 0) / av.time_base


def _end_s(start_s: float, duration_s: float) -> float:
    """Some programs write the time of the end as the duration, so the earlier of the two possible ends."""
    return duration_s if duration_s > start_s else start_s + duration_s


def _pixels(stream: VideoStream) -> int:
    return stream.width * stream.height if _codec(stream) is not None else 0


def _described(stream: VideoStream) -> str:
    codec = _codec(stream)
    if codec is None:
        return "unknown codec"
    rate = stream.average_rate or stream.guessed_rate
    facts = [f"{codec.width}x{codec.height} {codec.name}"]
    facts += [f"{float(rate):.4g} fps"] if rate else []
    facts += [stream.language] if stream.language not in (None, "und") else []
    return " ".join(facts)


def _codec(stream: VideoStream) -> av.VideoCodecContext | None:
    """None if FFmpeg lacks the codec."""
    return cast("av.VideoCodecContext | None", stream.codec_context)
