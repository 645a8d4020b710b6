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

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.types import U8, Frame, LineamentError
from stream.sample import Sample
from stream.source import (
    CameraSource,
    ImageSource,
    PacedSource,
    SampleSource,
    Source,
    VideoSource,
    open_source,
    redacted,
)

WAIT_S = 20.0
"""a generous bound: whatever takes longer hangs"""


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


@pytest.mark.parametrize("turn_deg", [90, 180, 270])
def test_a_clip_filmed_sideways_is_shown_upright(tmp_path: Path, turn_deg: int) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    upright = read_all(open_source(str(path)))[0].bgr
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn_deg]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # the track's 3x3 matrix, 16.16 and 2.30 fixed point
    data[at : at + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    turned = read_all(open_source(str(path)))[0].bgr
    assert np.array_equal(turned, np.rot90(upright, -turn_deg // 90))


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
    assert "holds audio only" in said["sound.mp4"]
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
    assert source.still and not source.live and source.frame_count == 6
    assert "skipped: cannot read" in caplog.text and "a3.png" in caplog.text


def test_a_folder_of_broken_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("broken")
    assert "no picture that can be read, of 2 there" in failure(open_source(str(tmp_path)))


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


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    for side in (10_500, 50_000):  # 110 and 2500 megapixels, in a header of 45 bytes
        fields = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + fields + struct.pack(">I", zlib.crc32(fields))
        (tmp_path / "bomb.png").write_bytes(header + b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        assert "over 100 megapixels" in failure(open_source(str(tmp_path / "bomb.png")))


def test_a_broken_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    assert "not a picture, or a damaged one" in failure(open_source(str(tmp_path / "a.jpg")))
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


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=3))
def test_no_password_survives_whatever_is_in_it(password: str) -> None:
    marked = f"secret{password}secret"
    assert "secret" not in redacted(f"rtsp://user:{marked}@host/path")


def test_nothing_that_is_printed_of_a_failure_holds_the_password() -> None:
    code = "from stream.source import open_source\nwith open_source('rtsp://admin:hunter2@127.0.0.1:9/x'): pass"
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "LineamentError" in done.stderr and "***@127.0.0.1" in done.stderr
    assert "hunter2" not in done.stderr.split("with open_source")[-1].split("\n", 1)[1]


# ---- cameras


class FakeCapture:
    """Behaves as cv2.VideoCapture does: some frames, then none."""

    def __init__(self, frames: int, opens: bool = True) -> None:
        self.frames, self.opens, self.released = frames, opens, 0

    def isOpened(self) -> bool:  # noqa: N802
        return self.opens

    def get(self, prop: int) -> float:
        return 25.0 if prop == cv2.CAP_PROP_FPS else 0.0

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


def test_a_camera_that_does_not_open_says_why_and_is_let_go() -> None:
    capture = FakeCapture(0, opens=False)
    assert "busy in another program" in failure(CameraSource(0, lambda number: capture))
    assert capture.released


@pytest.mark.skipif(sys.platform != "linux" or Path("/dev/video0").exists(), reason="needs a Linux without a camera")
def test_without_a_camera_auto_shows_the_sample_and_says_so(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "no /dev/video0; there is no camera at all" in failure(open_source("0"))
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
