"""Of several video streams the best is read, and a file that is whole is never called damaged."""

from __future__ import annotations

import io
import itertools
import logging
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lineament.landmarks.types import LineamentError
from lineament.stream.read.open import open_source
from lineament.stream.read.spec import ReadConfig


def write_clip(
    path: Path,
    sizes_wh: tuple[tuple[int, int], ...] = ((64, 64),),
    times_s: list[float] | None = None,
    audio_s: float = 0,
) -> Path:
    """A clip with a video stream of each size, and audio of that length from the first frame on."""
    times_s = times_s or [i / 30 for i in range(60)]
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        streams = []
        for width, height in sizes_wh:
            stream = container.add_stream(
                "mpeg4" if path.suffix == ".avi" else "libx264",
                rate=30,
                options={"g": "10"} if path.suffix == ".avi" else {"g": "10", "preset": "ultrafast"},
            )
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 30) if path.suffix == ".avi" else Fraction(1, 1000)
            streams.append(stream)
        sound = container.add_stream("libmp3lame" if path.suffix == ".flv" else "aac", rate=44100) if audio_s else None
        for time_s in times_s:
            for stream in streams:
                noise = rng.integers(0, 255, (stream.height, stream.width, 3), np.uint8)
                picture = av.VideoFrame.from_ndarray(noise, format="bgr24")
                base = stream.codec_context.time_base
                picture.pts, picture.time_base = round(time_s / base), base
                container.mux(stream.encode(picture))
        for stream in streams:
            container.mux(stream.encode())
        if sound is not None:
            first = round(times_s[0] * 44100)
            for start in range(first, first + round(audio_s * 44100), 1024):
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                silence.sample_rate, silence.pts, silence.time_base = 44100, start, Fraction(1, 44100)
                container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def frames_of(path: Path, cfg: ReadConfig | None = None) -> int:
    with open_source(str(path), cfg) as source:
        return sum(1 for _ in iter(source.read, None))


def shape_of(path: Path, cfg: ReadConfig | None = None) -> tuple[int, ...]:
    with open_source(str(path), cfg) as source:
        frame = source.read()
    assert frame is not None
    return frame.bgr.shape[:2]


# ---- which stream


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts"])
def test_the_largest_video_stream_is_read_and_the_log_lists_them(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = write_clip(tmp_path / name, ((64, 48), (128, 96), (32, 32)), [0, 0.04, 0.08])
    assert shape_of(path) == (96, 128) and frames_of(path) == 3
    assert "has 3 video streams: 0 (64x48 h264" in caplog.text and "reading 1; --stream N" in caplog.text


def test_a_stream_can_be_chosen_by_the_number_that_the_log_lists(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", ((64, 48), (128, 96)), [0, 0.04, 0.08])
    assert [shape_of(path, ReadConfig(stream=number)) for number in (0, 1)] == [(48, 64), (96, 128)]
    with pytest.raises(LineamentError, match=r"has no video stream 2; choose from 0 \(64x48 h264.*1 \(128x96 h264"):
        shape_of(path, ReadConfig(stream=2))


def test_a_file_of_one_stream_says_nothing_of_streams(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert shape_of(write_clip(tmp_path / "a.mkv", times_s=[0, 0.04])) == (64, 64) and "stream" not in caplog.text


def test_a_cover_is_no_stream_however_large(tmp_path: Path) -> None:
    path, cover = tmp_path / "a.mp4", cv2.imencode(".jpg", np.zeros((400, 400, 3), np.uint8))[1].tobytes()
    with av.open(str(path), "w") as container:
        with av.open(io.BytesIO(cover)) as picture:
            image = container.add_stream_from_template(picture.streams.video[0])
            image.disposition = av.stream.Disposition.attached_pic
            (packet,) = [packet for packet in picture.demux() if packet.size]
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.start_encoding()
            packet.stream = image
            container.mux(packet)
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert shape_of(path) == (48, 64) and frames_of(path) == 5


# ---- whether it is whole


CASES = {
    "plain": {},
    "audio longer": {"audio_s": 6.0},
    "starts at an hour": {"times_s": [3600 + i / 30 for i in range(60)]},
    "starts at ten seconds": {"times_s": [10 + i / 30 for i in range(60)], "audio_s": 2.0},
    "variable rate": {"times_s": [0, 0.03, 0.06, 0.1, *(1.0 + 2 * i for i in range(12))]},
}


@pytest.mark.parametrize(
    ("name", "kind"), [*itertools.product(["a.mkv", "a.mp4", "a.ts", "a.flv"], CASES), ("a.avi", "plain")]
)
def test_a_whole_file_is_not_called_damaged(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[kind]
    path = write_clip(tmp_path / name, **case)  # type: ignore[arg-type]
    assert frames_of(path) == len(case.get("times_s", range(60)))  # type: ignore[arg-type]
    assert "damaged or ends early" not in caplog.text


@pytest.mark.parametrize(("name", "kind"), [*itertools.product(["a.mkv", "a.flv"], CASES), ("a.avi", "plain")])
def test_a_file_that_is_cut_short_is_called_so(
    tmp_path: Path, name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / name, **CASES[kind])  # type: ignore[arg-type]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = frames_of(path)
    assert f"damaged or ends early: {frames} frames" in caplog.text


def test_audio_that_goes_on_is_no_damage_where_the_file_does_not_say_how_long_its_video_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_clip(tmp_path / "a.mkv", audio_s=6.0)
    data = path.read_bytes().replace(b"DURATION", b"DURATIXN")  # not every program writes this tag
    path.write_bytes(data)
    assert frames_of(path) == 60 and "damaged" not in caplog.text
    path.write_bytes(data[: len(data) // 2])
    assert frames_of(path) < 60 and "damaged or ends early" in caplog.text


def test_a_clip_trimmed_by_its_edit_list_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_clip(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    for box, at in ((b"elst", 12), (b"mvhd", 20), (b"tkhd", 24)):  # a phone keeps what was trimmed away
        start = data.index(box) + at
        data[start : start + 4] = struct.pack(">I", struct.unpack(">I", data[start : start + 4])[0] // 3)
    path.write_bytes(data)
    assert 15 <= frames_of(path) <= 25 and "damaged" not in caplog.text
