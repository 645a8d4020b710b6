"""Every kind of source delivers its frames in order, ends cleanly, and says in plain words what went wrong."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineament.landmarks.types import U8, Frame, LineamentError
from lineament.stream.read.base import Source
from lineament.stream.read.camera import CameraSource
from lineament.stream.read.open import open_source
from lineament.stream.read.pictures import ImageSource, PacedSource, SampleSource
from lineament.stream.read.sample import Sample
from lineament.stream.read.spec import redacted, redacted_spec
from lineament.stream.read.video import VideoSource

WAIT_S = 20.0
"""a generous bound: whatever takes longer hangs"""

READ = """import sys; from lineament.stream.read.open import open_source
with open_source(sys.argv[1]) as source: source.read()"""
"""a program that reads one frame"""


def write_clip(
    path: Path, frames: int = 30, size_hw: tuple[int, int] = (120, 160), times: list[int] | None = None
) -> Path:
    """An H.264 clip of the sample; times: milliseconds per frame, for an uneven rate."""
    sample = Sample(size_hw, noise=0.0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "10", "preset": "ultrafast"})
        stream.height, stream.width, stream.pix_fmt = *size_hw, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(sample.render(index), format="bgr24")
            picture.pts, picture.time_base = times[index] if times else index * 33, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def read_all(source: Source) -> list[Frame]:
    with source:
        return list(iter(source.read, None))


def failure(source: Source) -> str:
    """What a source says when it is opened and read, which must not work."""
    with pytest.raises(LineamentError) as caught:
        read_all(source)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


# ---- files


def test_a_file_gives_every_frame_in_order_with_growing_times_from_zero(tmp_path: Path) -> None:
    source = open_source(str(write_clip(tmp_path / "a: 100% ü.mp4")))
    frames = read_all(source)
    assert (source.live, source.still, source.frame_count) == (False, False, 30)
    assert source.fps == pytest.approx(30, rel=0.02)
    assert [frame.index for frame in frames] == list(range(30))
    assert [frame.time_s for frame in frames] == pytest.approx([i * 0.033 for i in range(30)], abs=1e-3)
    sample = Sample((120, 160), noise=0.0)
    for frame in frames:
        assert frame.bgr.dtype == np.uint8 and frame.bgr.flags.c_contiguous
        assert np.abs(frame.bgr.astype(int) - sample.render(frame.index)).mean() < 6


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.avi", "no_suffix"])
def test_containers_are_known_by_their_content(tmp_path: Path, name: str) -> None:
    clip = write_clip(tmp_path / (name if "." in name else "a.mp4"))
    path = clip if "." in name else clip.rename(tmp_path / name)
    assert len(read_all(open_source(str(path)))) == 30


def test_an_uneven_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 10, 200, 210, 900, 1500]
    frames = read_all(open_source(str(write_clip(tmp_path / "a.mp4", len(times), times=times))))
    assert [frame.time_s for frame in frames] == pytest.approx([t / 1000 for t in times], abs=2e-3)


def test_a_gif_is_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "rgb8"
        for value in (0, 100, 250):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), value, np.uint8), "rgb24")))
        container.mux(stream.encode())
    frames = read_all(open_source(str(tmp_path / "a.gif")))
    assert [frame.time_s for frame in frames] == pytest.approx([0.0, 0.1, 0.2])
    assert [int(frame.bgr.mean()) for frame in frames] == pytest.approx([0, 100, 250], abs=25)


@pytest.mark.parametrize("size_hw", [(122, 202), (16, 16)])
def test_any_even_size_comes_through(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    path = tmp_path / "a.mp4"
    frames = 3
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.height, stream.width = size_hw
        for value in range(frames):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.full((*size_hw, 3), value * 90, np.uint8), "bgr24"))
            )
        container.mux(stream.encode())
    assert {frame.bgr.shape for frame in read_all(open_source(str(path)))} == {(*size_hw, 3)}


def test_odd_sizes_and_alpha_come_through(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=30)
        stream.height, stream.width, stream.pix_fmt = 33, 47, "rgba"
        rgba = np.full((33, 47, 4), (10, 20, 30, 128), np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode())
    (frame,) = read_all(open_source(str(tmp_path / "a.mov")))
    assert frame.bgr.shape == (33, 47, 3) and frame.bgr[5, 5].tolist() == [30, 20, 10]


def turned(clip: Path, a: int, b: int, c: int, d: int) -> U8:
    """The first frame of an MP4 once it asks for (x, y) to be shown at (a x + c y, b x + d y)."""
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 44  # the track's 3x3 matrix, 16.16 and 2.30 fixed point
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    return read_all(open_source(str(clip)))[0].bgr


@pytest.mark.parametrize("turn_deg", [90, 180, 270])
def test_a_clip_filmed_sideways_is_shown_upright(tmp_path: Path, turn_deg: int) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    upright = read_all(open_source(str(path)))[0].bgr
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn_deg]
    assert np.array_equal(turned(path, cos, sin, -sin, cos), np.rot90(upright, -turn_deg // 90))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((-1, 0, 0, 1), lambda bgr: bgr[:, ::-1]),
        ((1, 0, 0, -1), lambda bgr: bgr[::-1]),
        ((0, 1, 1, 0), lambda bgr: bgr.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda bgr: bgr[::-1, ::-1].transpose(1, 0, 2)),
    ],
    ids=["left is right", "top is bottom", "on its side", "on its other side"],
)
def test_a_clip_of_a_front_camera_is_mirrored_as_it_asks(
    tmp_path: Path, matrix: tuple[int, int, int, int], shown: Callable[[U8], U8]
) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    upright = read_all(open_source(str(path)))[0].bgr
    assert np.array_equal(turned(path, *matrix), shown(upright))


@pytest.mark.parametrize("second_ms", [3_600_000, 0, -1], ids=["an hour on", "from the start", "wrapped"])
def test_recordings_joined_end_to_end_play_on_without_a_leap(tmp_path: Path, second_ms: int) -> None:
    first_ms = 0 if second_ms >= 0 else 7_200_000
    parts = [
        write_clip(tmp_path / f"{start}.ts", 30, times=[start + 40 * i for i in range(30)])
        for start in (first_ms, max(second_ms, 0))
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    times_s = [frame.time_s for frame in read_all(open_source(str(joined)))]
    assert len(times_s) > 55 and times_s == sorted(set(times_s)) and times_s[-1] == pytest.approx(2.4, abs=0.2)


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mjpeg"), ("a.flv", "flv")])
def test_a_packet_that_is_damaged_costs_no_more_than_its_own_frames(tmp_path: Path, name: str, codec: str) -> None:
    path, sample = tmp_path / name, Sample((120, 160), noise=0.0)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=25, options={"g": "5"})
            stream.height, stream.width = 120, 160
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for index in range(60):
                picture = av.VideoFrame.from_ndarray(sample.render(index), format="bgr24")
                for packet in stream.encode(picture.reformat(format=stream.pix_fmt)):
                    if index >= 15:
                        memoryview(packet)[rng.integers(packet.size)] ^= int(rng.integers(1, 256))
                    container.mux(packet)
            container.mux(stream.encode())
        assert len(read_all(open_source(str(path)))) > 40


def test_a_clip_whose_frames_grow_beyond_what_is_allowed_gives_those_before(tmp_path: Path) -> None:
    small, large = (cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 2000))
    path = tmp_path / "a.mjpeg"
    path.write_bytes(small * 10 + large * 3)
    with VideoSource(path, max_pixels=1_000_000) as source:
        assert {frame.bgr.shape for frame in iter(source.read, None)} == {(64, 64, 3)}


def test_the_shared_clips_are_read_whole(shared: Path) -> None:
    for path in sorted((shared / "clips").iterdir()):
        source = open_source(str(path))
        frames = read_all(source)
        assert len(frames) == source.frame_count and len(frames) > 20
        times_s = [frame.time_s for frame in frames]
        assert times_s[0] == 0 and times_s == sorted(set(times_s))


# ---- files that are wrong


def test_a_clip_cut_short_yields_what_there_is_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_clip(tmp_path / "a.mkv", 60)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    frames = read_all(open_source(str(path)))
    assert 5 < len(frames) < 60
    assert f"damaged or ends early: {len(frames)} frames" in caplog.text


def test_a_clip_damaged_in_the_middle_goes_on_after_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_clip(tmp_path / "a.mp4", 60)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    data[third : third + 2000] = bytes(2000)
    path.write_bytes(data)
    frames = read_all(open_source(str(path)))
    assert len(frames) > 15 and frames[-1].time_s > 1.5


def test_each_wrong_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "letter.txt").write_text("not a video")
    (tmp_path / "folder").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    headless = write_clip(tmp_path / "headless.mp4")
    headless.write_bytes(headless.read_bytes()[:3000])
    said = {name: failure(open_source(str(tmp_path / name))) for name in (
        "gone.mp4", "nowhere/a.mp4", "empty.mp4", "noise.mp4", "letter.txt", "folder", "sound.mp4", "headless.mp4"
    )}  # fmt: skip
    assert "no such file" in failure(open_source("x" * 5000))
    assert "no such file; check the spelling" in said["gone.mp4"]
    assert "nowhere does not exist" in said["nowhere/a.mp4"]
    assert "empty (0 bytes)" in said["empty.mp4"]
    assert "folder without pictures" in said["folder"]
    assert "contains only audio" in said["sound.mp4"]
    for name in ("noise.mp4", "letter.txt", "headless.mp4"):
        assert "not a video that can be decoded" in said[name]
    assert all(name in text for name, text in said.items())


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    path.chmod(0)
    assert "no permission" in failure(open_source(str(path)))


# ---- pictures


def test_a_folder_is_read_in_natural_order_and_each_picture_bears_its_own_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("10.png", "9.jpg", "a2.png", "A10.png", "b.PNG"):
        cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tofile(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "a3.png").write_text("not a picture, though it says so")
    (tmp_path / "deeper").mkdir()
    source = open_source(str(tmp_path))
    frames = read_all(source)
    assert [Path(frame.source).name for frame in frames] == ["9.jpg", "10.png", "a2.png", "A10.png", "b.PNG"]
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert source.still and not source.live and source.frame_count == 5
    (said,) = caplog.messages
    assert "read 5 of 7 files" in said and "1 subfolder not read" in said
    assert "notes.txt (not a picture)" in said and "a3.png (not a picture, or damaged)" in said


def test_a_folder_takes_any_digit_in_a_name(tmp_path: Path) -> None:
    for name in ("1²2.png", "①.png", "٣.png", "10.png", "9.png"):
        cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tofile(tmp_path / name)
    assert len(read_all(open_source(str(tmp_path)))) == 5


def test_a_folder_of_broken_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("broken")
    assert "contains no readable picture (2 files)" in failure(open_source(str(tmp_path)))


@pytest.mark.parametrize(
    "picture",
    [
        np.full((9, 7), 200, np.uint8),
        np.full((9, 7), 200 * 257, np.uint16),
        np.full((9, 7, 4), 200, np.uint8),
        np.full((9, 7, 3), 200 * 257, np.uint16),
    ],
    ids=["grey", "16 bit grey", "alpha", "16 bit colour"],
)
def test_every_depth_becomes_eight_bit_bgr(tmp_path: Path, picture: U8) -> None:
    path = tmp_path / "ünï.png"
    cv2.imencode(".png", picture)[1].tofile(path)
    (frame,) = read_all(open_source(str(path)))
    assert frame.bgr.shape == (9, 7, 3) and frame.bgr.dtype == np.uint8 and (frame.bgr == 200).all()
    assert frame.source == str(path)


def test_a_photo_taken_sideways_is_shown_upright(tmp_path: Path) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.jpg", exif=exif)
    assert read_all(open_source(str(tmp_path / "a.jpg")))[0].bgr.shape == (40, 20, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ".png", ".tif", ".webp"])
def test_a_photo_is_shown_as_its_notes_ask(tmp_path: Path, suffix: str, orientation: int) -> None:
    from PIL import Image, ImageOps

    x, y = np.meshgrid(np.linspace(0, 200, 64), np.linspace(0, 120, 48))
    photo = Image.fromarray(np.stack([x, y, x / 2 + y], -1).astype(np.uint8))
    exif = photo.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    photo.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))[..., ::-1]
    (frame,) = read_all(open_source(str(path)))
    assert frame.bgr.shape == wanted.shape and np.abs(frame.bgr.astype(int) - wanted).mean() < 2


def test_a_picture_too_long_for_crops_is_refused_and_the_rest_of_its_folder_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 33_000, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "b.png"), np.zeros((8, 8, 3), np.uint8))
    assert "33000x8, expected sides up to 32766" in failure(open_source(str(tmp_path / "a.png")))
    assert [frame.bgr.shape for frame in read_all(open_source(str(tmp_path)))] == [(8, 8, 3)]
    assert "skipped a.png (it is 33000x8" in caplog.text


def damaged_jpeg2000(kind: str) -> bytes:
    """A picture cut short within its header, or one that gives two sizes."""
    data = bytearray(cv2.imencode(".jp2", np.full((64, 64, 3), 90, np.uint8))[1].tobytes())
    at = data.index(b"ihdr")
    if kind == "cut":
        return bytes(data[: at + 60])
    data[at + 4 : at + 12] = struct.pack(">II", 60, 60)
    return bytes(data)


@pytest.mark.parametrize("kind", ["cut", "two sizes"])
def test_a_damaged_jpeg2000_is_an_error_and_does_not_end_the_process(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(damaged_jpeg2000(kind))
    code = READ
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "not a picture, or damaged" in done.stderr


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_jpeg2000_comes_through(tmp_path: Path, depth: type[np.unsignedinteger[Any]]) -> None:
    wide = np.arange(64 * 48, dtype=np.uint16).reshape(48, 64) * 20
    picture = wide if depth is np.uint16 else np.stack([wide >> 8, wide >> 7 & 255, wide >> 9], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.jp2"), picture)
    (frame,) = read_all(open_source(str(tmp_path / "a.jp2")))
    wanted = np.stack([picture >> 8] * 3, -1) if depth is np.uint16 else picture
    assert np.abs(frame.bgr.astype(int) - wanted).max() <= 2


def test_a_header_with_two_sizes_allocates_no_more_than_is_allowed(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (11_000, 11_000)).save(tmp_path / "a.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2])
    entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(count)]
    twice = [second for entry in entries for second in (entry, *small_again(entry))]
    data[4:8] = struct.pack("<I", len(data))
    data += struct.pack("<H", len(twice)) + b"".join(twice) + bytes(4)
    (tmp_path / "a.tif").write_bytes(data)
    code = READ
    root = Path(__file__).resolve().parent.parent
    ask = [sys.executable, "-c", code, tmp_path / "a.tif"]
    done = subprocess.run(ask, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "not a picture, or damaged" in done.stderr


def small_again(entry: bytes) -> list[bytes]:
    """A second width or height of a TIFF, which some readers take and others do not."""
    (tag,) = struct.unpack("<H", entry[:2])
    return [struct.pack("<HHIHH", tag, 3, 1, 10, 0)] if tag in (256, 257) else []


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (10_500, 50_000):  # 110 and 2500 megapixels, in a header of 45 bytes
        fields = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + fields + struct.pack(">I", zlib.crc32(fields))
        (tmp_path / "bomb.png").write_bytes(header + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        assert "over 100 megapixels" in failure(open_source(str(tmp_path / "bomb.png")))


def test_a_broken_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    assert "not a picture, or damaged" in failure(open_source(str(tmp_path / "a.jpg")))
    (tmp_path / "b.jpg").write_bytes(b"")
    assert "empty (0 bytes)" in failure(open_source(str(tmp_path / "b.jpg")))


# ---- URLs


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


class Refusing(BaseHTTPRequestHandler):
    """Answers /404 with 404, and so on."""

    def do_GET(self) -> None:
        self.send_error(int(self.path.strip("/").split("?")[0]))

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a web server with a handler; gives its address, "host:port"."""
    servers = []

    def start(handler: Callable[..., BaseHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, name="web server")
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


def test_a_file_on_a_web_server_is_a_file(tmp_path: Path, serve: Callable[..., str]) -> None:
    write_clip(tmp_path / "a.mp4")
    source = open_source(f"http://user:secret@{serve(partial(Quiet, directory=str(tmp_path)))}/a.mp4")
    assert len(read_all(source)) == 30
    assert not source.live and source.frame_count == 30 and "secret" not in source.name


def test_a_playlist_with_an_end_is_a_file(tmp_path: Path, serve: Callable[..., str]) -> None:
    with av.open(
        str(tmp_path / "a.m3u8"), "w", format="hls", options={"hls_time": "1", "hls_list_size": "0"}
    ) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "10"})
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for value in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), value * 8, np.uint8), "bgr24")))
        container.mux(stream.encode())
    source = open_source(f"http://{serve(partial(Quiet, directory=str(tmp_path)))}/a.m3u8")
    assert len(read_all(source)) == 30 and not source.live


def test_a_stream_of_jpegs_without_end_is_live(serve: Callable[..., str]) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()

    class Camera(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
            self.end_headers()
            for _ in range(40):
                self.wfile.write(b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg))
                self.wfile.write(jpeg + b"\r\n")

        def log_message(self, format: str, *args: object) -> None: ...

    source = open_source(f"http://{serve(Camera)}/video")
    with source:
        frames = [source.read() for _ in range(5)]
    assert source.live and all(frame is not None and frame.bgr.shape == (48, 64, 3) for frame in frames)


@pytest.mark.parametrize(
    ("code", "says"),
    [(401, "wrong user name or password"), (403, "forbids"), (404, "no such stream"), (500, "server failed")],
)
def test_each_refusal_is_told_apart(serve: Callable[..., str], code: int, says: str) -> None:
    text = failure(open_source(f"http://admin:hunter2@{serve(Refusing)}/{code}?token=abc123"))
    assert says in text and "hunter2" not in text and "abc123" not in text and "admin" not in text


def test_a_closed_port_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for scheme in ("rtsp", "http"):
        text = failure(open_source(f"{scheme}://admin:hunter2@127.0.0.1:{port}/live"))
        assert "connection refused" in text and "hunter2" not in text


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_never_answers_is_a_time_out_not_a_hang(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = VideoSource(f"{scheme}://a:b@127.0.0.1:{server.getsockname()[1]}/x", 1.0, 1.0)
        began = time.monotonic()
        assert "no data for 1 s" in failure(source)
        assert time.monotonic() - began < WAIT_S


@pytest.mark.parametrize("url", ["rtsp://user:secret@nosuch.invalid/x", "http://user:secret@nosuch.invalid/x.mp4"])
def test_an_unknown_host_is_no_connection(url: str) -> None:
    text = failure(open_source(url))
    assert "no connection; check the host name" in text and "secret" not in text


def test_an_unknown_protocol_lists_those_known() -> None:
    assert "unknown protocol; use rtsp://" in failure(open_source("gopher2://host/x"))


class StallingServer(SimpleHTTPRequestHandler):
    """Sends half of a file and then nothing, until `release` is set."""

    def __init__(self, data: bytes, release: threading.Event, *args: object) -> None:
        self.data, self.release = data, release
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data[: len(self.data) // 2])
        self.wfile.flush()
        self.release.wait(WAIT_S)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def stalling(tmp_path: Path, serve: Callable[..., str]) -> Iterator[str]:
    """The URL of a clip that stops arriving half-way."""
    data, release = write_clip(tmp_path / "a.mkv", 300, (240, 320)).read_bytes(), threading.Event()
    yield f"http://{serve(partial(StallingServer, data, release))}/a.mkv"
    release.set()


def test_a_stream_that_falls_silent_raises_within_its_time_out(stalling: str) -> None:
    with (
        VideoSource(stalling, 5.0, 1.0) as source,
        pytest.raises(LineamentError, match=r"lost .* after \d+ frames: no data for 1 s"),
    ):
        while source.read() is not None:
            pass


def test_close_ends_a_blocked_read_of_a_stream_within_its_time_out(stalling: str) -> None:
    source, ended = VideoSource(stalling, 5.0, 2.0), threading.Event()
    with source:
        got = source.read()

        def drain() -> None:
            while source.read() is not None:
                started.set()
            ended.set()

        started = threading.Event()
        reader = threading.Thread(target=drain, name="reader")
        reader.start()
        assert got is not None and started.wait(WAIT_S)
        source.close()
        source.close()
    assert ended.wait(WAIT_S)
    reader.join(WAIT_S)
    assert source.read() is None


# ---- a real RTSP server


def test_an_rtsp_camera_is_live_and_a_frozen_one_is_a_time_out(rtsp: tuple[subprocess.Popen[str], int]) -> None:
    server, port = rtsp
    with VideoSource(f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam", 10.0, 1.0) as source:
        frames = [source.read() for _ in range(10)]
        assert source.live and source.frame_count is None
        assert all(frame is not None and frame.bgr.shape == (240, 320, 3) for frame in frames)
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(LineamentError, match=r"lost rtsp://\*\*\*@.* after \d+ frames: no data for"):
            while source.read() is not None:
                pass
        server.send_signal(signal.SIGCONT)


def test_an_rtsp_camera_that_goes_away_or_refuses_says_so(rtsp: tuple[subprocess.Popen[str], int]) -> None:
    server, port = rtsp
    assert "wrong user name or password (401)" in failure(open_source(f"rtsp://admin:wrong@127.0.0.1:{port}/cam"))
    assert "(404)" in failure(open_source(f"rtsp://admin:p%40ss@127.0.0.1:{port}/nothing"))
    with open_source(f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam") as source:
        assert source.read() is not None
        server.kill()
        with pytest.raises(LineamentError, match="the sender ended it"):
            while source.read() is not None:
                pass


# ---- passwords


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rtsp://admin:hunter2@10.0.0.5:554/s1?x=1", "rtsp://***@10.0.0.5:554/s1?x=1"),
        ("rtsp://admin:p%40ss%3A@cam/s", "rtsp://***@cam/s"),
        ("rtsp://admin:p@ss@cam/s", "rtsp://***@cam/s"),
        ("rtsp://admin:p/ss#1?@cam/s", "rtsp://***@cam/s"),
        ("http://cam/v?user=a&password=b/c=&res=720", "http://cam/v?user=***&password=***&res=720"),
        ("http://cam/v?usr=a&pwd=b", "http://cam/v?usr=***&pwd=***"),
        ("https://x/y.m3u8?access_token=abc.def", "https://x/y.m3u8?access_token=***"),
        ("rtsp://cam/user=admin_password=abc_channel=1.sdp", "rtsp://cam/user=***"),
        ("srt://host:9000?passphrase=abc", "srt://host:9000?passphrase=***"),
        ("rtsp://10.0.0.5:554/stream", "rtsp://10.0.0.5:554/stream"),
        ("/home/me/a.mp4", "/home/me/a.mp4"),
    ],
)
def test_passwords_and_tokens_are_not_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert redacted(f"cannot open {url} today") == f"cannot open {shown} today"
    assert redacted_spec(url) == shown


def test_a_password_with_a_space_is_not_shown() -> None:
    assert "pass" not in redacted_spec("rtsp://admin:my pass@10.0.0.5/live")
    assert VideoSource("rtsp://admin:my pass@10.0.0.5/live").name == "rtsp://***@10.0.0.5/live"


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=3))
def test_no_password_survives_whatever_is_in_it(password: str) -> None:
    marked = f"secret{password}secret"
    assert "secret" not in redacted(f"rtsp://user:{marked}@host/path")


def test_nothing_that_is_printed_of_a_failure_holds_the_password() -> None:
    code = READ.replace("sys.argv[1]", "'rtsp://admin:hunter2@127.0.0.1:9/x'")
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "LineamentError" in done.stderr and "***@127.0.0.1" in done.stderr
    assert "hunter2" not in done.stderr.split("with open_source")[-1].split("\n", 1)[1]


# ---- cameras


class FakeCapture:
    """Behaves as cv2.VideoCapture does: some frames, then none."""

    def __init__(self, frames: int, opens: bool = True, fps: float = 25.0) -> None:
        self.frames, self.opens, self.fps, self.released = frames, opens, fps, 0

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def get(self, prop: int) -> float:
        return self.fps if prop == cv2.CAP_PROP_FPS else 0.0

    def read(self) -> tuple[bool, U8 | None]:
        self.frames -= 1
        return (True, np.zeros((4, 4, 3), np.uint8)) if self.frames >= 0 else (False, None)

    def release(self) -> None:
        self.released += 1


def test_a_camera_is_live_counts_its_frames_and_says_when_it_is_unplugged() -> None:
    capture = FakeCapture(2)
    source = CameraSource(3, lambda number: capture)
    with pytest.raises(LineamentError, match="lost camera 3 after 2 frames: it stopped delivering"), source:
        first, second = source.read(), source.read()
        assert first is not None and second is not None
        assert (first.index, first.time_s, second.index) == (0, 0.0, 1) and second.time_s >= 0
        assert source.live and source.fps == 25
        source.read()
    assert capture.released


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), -1.0, 0.0, 1e9])
def test_a_camera_whose_driver_does_not_know_its_rate_has_none(fps: float) -> None:
    with CameraSource(0, capture=lambda number: FakeCapture(2, fps=fps)) as source:
        assert source.fps is None and source.read() is not None


def test_a_camera_that_does_not_open_says_why_and_is_let_go() -> None:
    capture = FakeCapture(0, opens=False)
    assert "in use by another program" in failure(CameraSource(0, lambda number: capture))
    assert capture.released


@pytest.mark.skipif(sys.platform != "linux" or Path("/dev/video0").exists(), reason="needs a Linux without a camera")
def test_without_a_camera_auto_shows_the_sample_and_says_so(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no /dev/video0; no camera found" in failure(open_source("0"))
    caplog.set_level(logging.WARNING)
    for spec in ("", "auto"):
        caplog.clear()
        source = open_source(spec)
        assert source.name == "sample" and len(caplog.records) == 1
    assert capfd.readouterr().err == "", "OpenCV's own chatter is kept quiet"


def test_a_spec_names_its_kind() -> None:
    for spec, kind in {
        "0": CameraSource, "/dev/video2": CameraSource, "sample": SampleSource, "rtsp://x/y": VideoSource,
        "a.mp4": VideoSource, "a.JPG": ImageSource, "/": ImageSource, "file:///a%20b.png": ImageSource,
    }.items():  # fmt: skip
        assert type(open_source(spec)) is kind
    assert open_source("file:///a%20b.png").name == "/a b.png"
    assert open_source("rtsp://x/y").live and not open_source("http://x/a.mp4").live


# ---- the sample, and pacing


def test_the_sample_is_a_file_of_known_length() -> None:
    source = SampleSource(Sample((64, 64), fps=10, seconds=1.5))
    frames = read_all(source)
    assert (source.fps, source.frame_count, source.live, len(frames)) == (10, 15, False, 15)
    assert np.array_equal(frames[4].bgr, source.sample.render(4)) and frames[4].time_s == 0.4


def test_a_paced_source_delivers_no_frame_before_its_time() -> None:
    began = time.monotonic()
    source = PacedSource(SampleSource(Sample((64, 64), fps=20, seconds=0.5)))
    frames = read_all(source)
    assert source.live and source.frame_count is None and len(frames) == 10
    for frame in frames:
        assert frame.captured_s - frames[0].captured_s >= frame.time_s - 0.002
    assert time.monotonic() - began < WAIT_S


def test_close_wakes_a_paced_source_that_waits() -> None:
    source, ended = PacedSource(SampleSource(Sample((64, 64), fps=0.01, seconds=1000))), threading.Event()
    with source:
        assert source.read() is not None
        reader = threading.Thread(target=lambda: (source.read(), ended.set()), name="reader")
        reader.start()
        source.close()
    assert ended.wait(WAIT_S)
    reader.join(WAIT_S)


# ---- what all sources promise


def test_a_source_is_cheap_until_entered_and_may_be_closed_twice_or_unopened(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    for source in (open_source(str(path)), SampleSource(), open_source("rtsp://nosuch.invalid/x"), open_source("99")):
        source.close()
        source.close()
        assert source.read() is None
    with pytest.raises(RuntimeError, match="not open"):
        open_source(str(path)).read()


def test_after_the_end_and_after_close_reading_gives_none(tmp_path: Path) -> None:
    with open_source(str(write_clip(tmp_path / "a.mp4", 3))) as source:
        for _ in range(3):
            assert source.read() is not None
        assert source.read() is None and source.read() is None
    assert source.read() is None
    shutil.rmtree(tmp_path)  # nothing holds the file


def test_closing_while_another_thread_reads_is_safe_at_any_moment(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 60)
    for _ in range(20):
        source, some = open_source(str(path)), threading.Event()

        def drain(source: Source = source, some: threading.Event = some) -> None:
            while source.read() is not None:
                some.set()

        with source:
            reader = threading.Thread(target=drain, name="reader")
            reader.start()
            assert some.wait(WAIT_S)
        reader.join(WAIT_S)
        assert not reader.is_alive()
