"""The audio of a file goes into the annotated video: copied or encoded, in sync, and never at the cost of a frame.

The clips flash and beep at the same moments.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lineament.landmarks.types import Result
from lineament.stream.read.open import open_source
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.write.files import VideoSink
from lineament.stream.write.open import open_sink
from tests.blobs import BlobLandmarker

ROOT = Path(__file__).resolve().parent.parent
FPS = 25
BEEPS_S = (0.4, 1.2, 2.0)
TOLERANCE_S = 1 / FPS + 1024 / 44100
"""one frame and one AAC frame"""


def make_clip(
    path: Path,
    codec: str = "aac",
    rate: int = 44100,
    layout: str = "mono",
    seconds: float = 2.6,
    beeps_s: Sequence[float] = BEEPS_S,
    sound_from_s: float = 0.0,
    shift_s: float = 0.0,
    times_s: Sequence[float] | None = None,
) -> Path:
    """A clip of dark frames, bright for 0.1 s with each beep. sound_from_s: cuts or delays the start of the audio.

    shift_s: of all timestamps. times_s: of the frames, instead of an even rate.
    """
    times_s = [i / FPS for i in range(round(seconds * FPS))] if times_s is None else times_s
    clock_s = np.arange(round(max(0.0, sound_from_s) * rate), round(seconds * rate)) / rate
    on = np.any([(clock_s >= beep) & (clock_s < beep + 0.1) for beep in beeps_s], 0)
    wave = (0.8 * on * np.sin(2 * np.pi * 1000 * clock_s)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90000)
        sound: Any = container.add_stream(codec, rate=rate, layout=layout)
        container.start_encoding()
        size, channels = sound.codec_context.frame_size or 1024, sound.layout.nb_channels
        whole = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), format="fltp", layout=layout)
        whole.sample_rate, whole.time_base = rate, Fraction(1, rate)
        whole.pts = round((clock_s[0] + shift_s) * rate)
        resampler = av.AudioResampler(sound.format, layout, rate, size)
        frames = [*resampler.resample(whole), *resampler.resample(None)]
        for time_s in times_s:
            while frames and (frames[0].time or 0.0) <= time_s + shift_s:
                container.mux(sound.encode(frames.pop(0)))
            lit = any(beep - 1e-6 <= time_s < beep + 0.1 for beep in beeps_s)
            yuv = np.full((72, 64), 128, np.uint8)
            yuv[:48] = 235 if lit else 16
            picture = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            picture.pts, picture.time_base = round((time_s + shift_s) * 90000), Fraction(1, 90000)
            container.mux(video.encode(picture))
        for frame in frames:
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
        container.mux(video.encode())
    return path


def annotate(clip: Path, out: Path, frames: int | None = None) -> Path:
    """Passes the frames of a clip on to a sink, as a session does."""
    with open_source(str(clip)) as source, open_sink(str(out), source.fps, source=str(clip)) as sink:
        for frame in itertools.islice(iter(source.read, None), frames):
            sink.write(Result(frame, ()), frame.bgr)
    return out


def flashes_and_beeps(path: Path) -> tuple[list[float], list[float]]:
    """When each begins, in seconds since the first frame."""
    with av.open(str(path)) as container:
        pictures = [(float(p.time or 0), p.to_ndarray(format="gray").mean() > 128) for p in container.decode(video=0)]
    flashes = [at for (_, before), (at, lit) in itertools.pairwise([(0.0, False), *pictures]) if lit and not before]
    loud: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            wave = np.abs(frame.to_ndarray().astype(np.float32))
            wave = wave if frame.format.is_planar else wave.reshape(-1, frame.layout.nb_channels).T
            wave = wave / (32768 if frame.format.name.startswith("s16") else 1)
            loud += (float(frame.time or 0) + np.flatnonzero(wave.max(0) > 0.3) / frame.sample_rate).tolist()
    beeps = [at for before, at in itertools.pairwise([-1.0, *loud]) if at - before > 0.3]
    return [at - pictures[0][0] for at in flashes], [at - pictures[0][0] for at in beeps]


def in_sync(path: Path, expected_s: Sequence[float] = BEEPS_S) -> bool:
    flashes, beeps = flashes_and_beeps(path)
    assert flashes == pytest.approx(list(expected_s), abs=TOLERANCE_S)
    assert beeps == pytest.approx(list(expected_s), abs=TOLERANCE_S)
    return True


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def codec(path: Path) -> str | None:
    with av.open(str(path)) as container:
        return container.streams.audio[0].codec_context.codec.canonical_name if container.streams.audio else None


def length_s(path: Path, kind: str) -> float:
    with av.open(str(path)) as container:
        stream = container.streams.best(kind)  # type: ignore[arg-type]
        assert stream is not None
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        return float(max(ends) * stream.time_base)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("clip", "kind", "rate", "out"),
    [
        ("a.mp4", "aac", 44100, "b.mp4"),
        ("a.mp4", "aac", 44100, "b.mov"),
        ("a.mp4", "aac", 44100, "b.mkv"),
        ("a.mp4", "libmp3lame", 44100, "b.mp4"),
        ("a.mkv", "ac3", 48000, "b.mp4"),
        ("a.mkv", "libopus", 48000, "b.mp4"),
        ("a.mov", "pcm_s16le", 44100, "b.mkv"),
        ("a.webm", "libopus", 48000, "b.webm"),
    ],
)
def test_audio_that_the_format_takes_is_copied_packet_by_packet(
    tmp_path: Path, clip: str, kind: str, rate: int, out: str
) -> None:
    source = make_clip(tmp_path / clip, kind, rate)
    written = annotate(source, tmp_path / out)
    assert in_sync(written)
    copied, original = packets(written), packets(source)
    assert copied == original[: len(copied)] and len(copied) >= len(original) - 2


@pytest.mark.parametrize(
    ("clip", "kind", "rate", "layout", "out", "encoded"),
    [
        ("a.mkv", "pcm_s16le", 44100, "stereo", "b.mp4", "aac"),
        ("a.mov", "pcm_mulaw", 8000, "mono", "b.mp4", "aac"),
        ("a.mkv", "ac3", 48000, "5.1(side)", "b.webm", "opus"),
        ("a.mp4", "aac", 44100, "mono", "b.webm", "opus"),
    ],
)
def test_audio_that_the_format_does_not_take_is_encoded(
    tmp_path: Path, clip: str, kind: str, rate: int, layout: str, out: str, encoded: str
) -> None:
    written = annotate(make_clip(tmp_path / clip, kind, rate, layout), tmp_path / out)
    assert in_sync(written) and codec(written) == encoded


def test_audio_of_mpeg_ts_is_copied_without_its_headers(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.ts")
    written = annotate(source, tmp_path / "b.mp4")
    assert in_sync(written)
    assert packets(written) == [packet[7:] for packet in packets(source)][: len(packets(written))]


def test_a_playlist_has_the_audio_too(tmp_path: Path) -> None:
    annotate(make_clip(tmp_path / "a.mp4"), tmp_path / "live.m3u8")
    (segment,) = sorted(tmp_path.glob("live-*.ts"))[:1]
    flashes, beeps = flashes_and_beeps(segment)
    assert beeps[:2] == pytest.approx(flashes[:2], abs=TOLERANCE_S) and codec(segment) == "aac"


@pytest.mark.parametrize("out", ["b.mp4", "b.webm"])
def test_a_variable_frame_rate_stays_in_sync(tmp_path: Path, out: str) -> None:
    times_s = [*np.arange(0, 1.0, 1 / 30), *np.arange(1.0, 2.6, 0.1)]
    assert in_sync(annotate(make_clip(tmp_path / "a.mkv", times_s=times_s), tmp_path / out))


@pytest.mark.parametrize("out", ["b.mp4", "b.mkv", "b.webm"])
def test_a_recording_that_starts_at_an_hour_stays_in_sync(tmp_path: Path, out: str) -> None:
    assert in_sync(annotate(make_clip(tmp_path / "a.mkv", shift_s=3600.0), tmp_path / out))


@pytest.mark.parametrize("out", ["b.mp4", "b.mkv", "b.webm"])
@pytest.mark.parametrize("sound_from_s", [0.3, 1.1])
def test_audio_that_begins_after_the_video_stays_in_sync(tmp_path: Path, sound_from_s: float, out: str) -> None:
    written = annotate(make_clip(tmp_path / "a.mkv", sound_from_s=sound_from_s), tmp_path / out)
    flashes, beeps = flashes_and_beeps(written)
    assert beeps == pytest.approx([at for at in flashes if at > sound_from_s], abs=TOLERANCE_S) and beeps


@pytest.mark.parametrize("out", ["b.mp4", "b.mkv", "b.webm"])
def test_audio_before_the_first_picture_is_cut(tmp_path: Path, out: str) -> None:
    times_s = [i / FPS for i in range(round(0.8 * FPS), round(2.6 * FPS))]
    written = annotate(make_clip(tmp_path / "a.mkv", times_s=times_s), tmp_path / out)
    assert in_sync(written, [0.4, 1.2])
    assert length_s(written, "audio") == pytest.approx(1.8, abs=0.1)


@pytest.mark.parametrize("later_s", [0.0, 3000.0])
@pytest.mark.parametrize("out", ["b.mp4", "b.webm"])
def test_recordings_joined_with_a_jump_of_the_timestamps_stay_in_sync(tmp_path: Path, later_s: float, out: str) -> None:
    first, second = make_clip(tmp_path / "1.ts"), make_clip(tmp_path / "2.ts", shift_s=later_s, beeps_s=(0.6, 1.4))
    (tmp_path / "both.ts").write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    expected_s = [*BEEPS_S, 3.2, 4.0, *(5.2 + beep for beep in BEEPS_S)]
    assert in_sync(annotate(tmp_path / "both.ts", tmp_path / out), expected_s)


@pytest.mark.parametrize("kind", ["aac", "pcm_s16le"])
def test_audio_ends_with_a_video_that_is_stopped_early(tmp_path: Path, kind: str) -> None:
    written = annotate(make_clip(tmp_path / "a.mkv", kind), tmp_path / "b.mp4", frames=35)
    assert in_sync(written, BEEPS_S[:2])
    assert length_s(written, "video") == pytest.approx(1.4, abs=0.01)
    assert 0 <= length_s(written, "audio") - 1.4 < 2 * 1024 / 44100


def test_a_format_that_changes_midway_is_encoded_throughout(tmp_path: Path) -> None:
    parts = [make_clip(tmp_path / "1.ts", "mp2", 48000, "stereo"), make_clip(tmp_path / "2.ts", "mp2", 32000, "mono")]
    (tmp_path / "both.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert in_sync(annotate(tmp_path / "both.ts", tmp_path / "b.mp4"), [*BEEPS_S, *(2.6 + at for at in BEEPS_S)])


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mov"])
@pytest.mark.parametrize("out", ["b.mp4", "b.webm"])
def test_damaged_audio_costs_no_frame_and_one_line(
    tmp_path: Path, name: str, out: str, caplog: pytest.LogCaptureFixture
) -> None:
    clip = make_clip(tmp_path / name, "pcm_s16le" if name == "a.mov" else "aac")
    with av.open(str(clip)) as container:
        places = [(packet.pos or 0, packet.size) for packet in container.demux(audio=0) if packet.size]
    data, dice = bytearray(clip.read_bytes()), random.Random(1)
    skipped = 40 if name == "a.ts" else 0  # headers of MPEG-TS, which carries the video too
    for at, size in places[10::7]:
        data[at + skipped : at + size] = dice.randbytes(max(0, size - skipped))
    clip.write_bytes(data)
    with caplog.at_level(logging.WARNING, "lineament.stream.write"):
        written = annotate(clip, tmp_path / out)
    assert [record.levelname for record in caplog.records] in ([], ["WARNING"])
    with av.open(str(written)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= round(2.6 * FPS) - 1
    assert length_s(written, "audio") == pytest.approx(2.6, abs=0.1)


def test_a_file_without_audio_gets_none_and_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with VideoSink(tmp_path / "silent.mp4", FPS) as sink, open_source("sample") as source:
        for frame in itertools.islice(iter(source.read, None), 5):
            sink.write(Result(frame, ()), frame.bgr)
    with caplog.at_level(logging.INFO):
        assert codec(annotate(tmp_path / "silent.mp4", tmp_path / "b.mp4")) is None
    assert not caplog.records


def test_a_sink_takes_no_audio_for_frames_that_are_not_of_its_source(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4")
    with open_source("sample") as source, open_sink(str(tmp_path / "b.mp4"), 30, source=str(clip)) as sink:
        for frame in itertools.islice(iter(source.read, None), 5):
            sink.write(Result(frame, ()), frame.bgr)
    assert codec(tmp_path / "b.mp4") is None


def test_the_audio_of_a_url_is_said_to_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        open_sink(str(tmp_path / "b.mp4"), source="http://user:secret@host/a.mp4")
        open_sink(str(tmp_path / "c.mp4"), source="rtsp://host/door", live=True)
    assert caplog.messages == ["the audio of http://***@host/a.mp4, if any, is not written; download it first"]


@pytest.mark.parametrize(("audio", "expected"), [(True, "aac"), (False, None)])
def test_a_session_writes_audio_unless_told_not_to(tmp_path: Path, audio: bool, expected: str | None) -> None:
    clip, out = str(make_clip(tmp_path / "a.mp4")), tmp_path / "b.mp4"
    cfg = SessionConfig(audio=audio, blur_faces=True, frames=20)
    with Session(cfg, open_source(clip), BlobLandmarker(), [str(out)], f"file://{clip}") as session:
        for _ in session:
            pass
    assert codec(out) == expected


@pytest.mark.parametrize("kind", ["aac", "pcm_s16le"])
def test_a_killed_process_leaves_a_video_that_plays_with_its_audio(tmp_path: Path, kind: str) -> None:
    clip = make_clip(tmp_path / "a.mkv", kind)
    script = f"""
import os, signal
from pathlib import Path
import tests.test_audio as audio
from lineament.stream.write.files import VideoSink
VideoSink.close = lambda self: os.kill(os.getpid(), signal.SIGKILL)
audio.annotate(Path({str(clip)!r}), Path({str(tmp_path / "b.mp4")!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ}, timeout=120)
    assert done.returncode == -9
    flashes, beeps = flashes_and_beeps(tmp_path / "b.mp4")
    assert flashes[:2] == pytest.approx(BEEPS_S[:2], abs=TOLERANCE_S)
    assert beeps[:2] == pytest.approx(BEEPS_S[:2], abs=TOLERANCE_S)
