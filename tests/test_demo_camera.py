"""The network camera of the demo: which addresses it accepts, and what it reads from them."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.demo.network_camera import NetworkCamera
from lineament.landmarks.types import LineamentError
from tests.demo_files import sample_clip


@pytest.mark.parametrize(
    "url",
    [
        "",
        "0",
        "sample",
        "auto",
        "camera.example/live",
        "/etc/passwd",
        "file:///etc/passwd",
        "pipe:0",
        "concat:a.mp4|b.mp4",
        "concat:rtsp://host/x",
        "udp://239.0.0.1:1234",
        "gopher://example.com/",
        "data:video/mp4;base64,AAAA",
        "crypto+http://host/x",
        "rtsp://",
        "http:///x",
        "rtsp://host/a b",
        "rtsp://host/a\r\nSETUP x",
        "http://host/\0",
    ],
)
def test_only_rtsp_and_http_addresses_are_accepted(url: str) -> None:
    with pytest.raises(LineamentError, match="use rtsp://, rtsps://, http:// or https://"):
        NetworkCamera(url)


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https", "RTSP"])
def test_the_name_of_a_camera_has_no_password(scheme: str) -> None:
    camera = NetworkCamera(f" {scheme}://ann:secret@camera.example:8554/live?x=1 ")
    assert camera.live and "camera.example" in camera.name and "secret" not in camera.name
    with pytest.raises(LineamentError) as refused:
        NetworkCamera("udp://ann:secret@camera.example/live")
    assert "secret" not in str(refused.value)


def test_an_rtsp_camera_is_read_until_it_is_closed(rtsp: tuple[subprocess.Popen[str], int]) -> None:
    _, port = rtsp
    with NetworkCamera(f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam") as camera:
        frames = [camera.read() for _ in range(3)]
        assert all(frame is not None and frame.bgr.shape == (240, 320, 3) for frame in frames)
    assert camera.closed and camera.read() is None
    with pytest.raises(LineamentError, match="401"), NetworkCamera(f"rtsp://admin:wrong@127.0.0.1:{port}/cam"):
        pass


def test_a_recording_on_a_web_server_plays_to_its_end(tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5, size_hw=(120, 160))
    with web("video/mp4", clip.read_bytes()) as url, NetworkCamera(url + "a.mp4") as camera:
        assert [frame.index for frame in iter(camera.read, None)] == [0, 1, 2, 3, 4]


def test_frames_over_the_limit_are_skipped(tmp_path: Path) -> None:
    jpegs = [cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 400)]
    body = b"".join(b"--cut\r\nContent-Type: image/jpeg\r\n\r\n" + jpegs[i % 2] + b"\r\n" for i in range(8))
    kind = "multipart/x-mixed-replace; boundary=cut"
    with web(kind, body) as url, NetworkCamera(url + "video", max_pixels=10_000) as camera:
        for _ in range(3):
            frame = camera.read()
            assert frame is not None and frame.bgr.shape == (64, 64, 3)


def test_a_playlist_cannot_name_a_file_of_this_machine(tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5, size_hw=(120, 160))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    kind = "application/vnd.apple.mpegurl"
    with web(kind, playlist.encode()) as url, pytest.raises(LineamentError), NetworkCamera(url + "a.m3u8") as camera:
        camera.read()


def test_a_closed_port_says_connection_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"rtsp://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(LineamentError, match="connection refused"), NetworkCamera(url):
            pass


@contextmanager
def web(kind: str, body: bytes) -> Iterator[str]:
    """The address of a web server that sends the same content for every path."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
