"""A visitor's camera address: which are opened, by whom, and that what comes back is a live picture."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.demo.config import DemoConfig, is_loopback
from lineament.demo.network_camera import NetworkCamera
from lineament.landmarks.types import LineamentError
from lineament.stream.read.sample import Sample
from tests.demo_files import sample_clip


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "0",
        "/dev/video0",
        "sample",
        "",
        "concat:a.mp4|b.mp4",
        "udp://239.0.0.1:1234",
        "gopher://example.com/",
        "data:video/mp4;base64,AAAA",
        "crypto+http://example.com/",
        "pipe:0",
    ],
)
def test_only_camera_addresses_are_opened(url: str) -> None:
    with pytest.raises(LineamentError, match="expected one of rtsp://, rtsps://, http://, https://"):
        NetworkCamera(url)


def test_a_message_about_an_address_contains_no_password() -> None:
    with pytest.raises(LineamentError) as caught:
        NetworkCamera("ftp://ann:hunter2@camera/live")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_on_loopback_the_camera_tab_is_there(host: str) -> None:
    assert is_loopback(host) and DemoConfig(host=host).camera_tab


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "demo.lan"])
def test_where_others_can_reach_the_demo_the_camera_tab_needs_a_login(host: str) -> None:
    assert not DemoConfig(host=host).camera_tab
    assert DemoConfig(host=host, auth="ann:secret").camera_tab
    assert not DemoConfig(share=True).camera_tab
    assert DemoConfig(share=True, auth="ann:secret").camera_tab


class Web:
    """A web server whose pages a test sets: path to (status, headers, body)."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, headers, body = web.pages.get(self.path, (404, {}, b""))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(target=web.server.serve_forever, args=(0.05,))
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()
    thread.join()


def test_a_recording_on_a_web_server_plays_to_its_end_as_if_live(web: Web, tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5, size_hw=(120, 160))
    web.pages["/a.mp4?key=1"] = (200, {"Content-Type": "video/mp4"}, clip.read_bytes())
    with NetworkCamera(f"{web.url}/a.mp4?key=1") as camera:
        assert camera.live
        assert [frame.index for frame in iter(camera.read, None)] == [0, 1, 2, 3, 4]


def test_a_stream_of_jpegs_is_shown(web: Web) -> None:
    sample = Sample(size_hw=(120, 160))
    jpegs = [cv2.imencode(".jpg", sample.render(index))[1].tobytes() for index in range(8)]
    body = b"".join(b"--cut\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n" for jpeg in jpegs)
    web.pages["/video"] = (200, {"Content-Type": "multipart/x-mixed-replace; boundary=cut"}, body)
    with NetworkCamera(f"{web.url}/video") as camera:
        frame = camera.read()
        assert frame is not None and frame.bgr.shape == (120, 160, 3)


def test_frames_that_are_too_large_are_skipped_undecoded(web: Web) -> None:
    jpegs = [cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 400)]
    body = b"".join(b"--cut\r\nContent-Type: image/jpeg\r\n\r\n" + jpegs[i % 2] + b"\r\n" for i in range(8))
    web.pages["/video"] = (200, {"Content-Type": "multipart/x-mixed-replace; boundary=cut"}, body)
    with NetworkCamera(f"{web.url}/video", max_pixels=10_000) as camera:
        for _ in range(3):
            frame = camera.read()
            assert frame is not None and frame.bgr.shape == (64, 64, 3)


@pytest.mark.parametrize("body", [b"<html>no video</html>", b"", b"ffconcat version 1.0\nfile '/etc/passwd'\n"])
def test_what_is_no_video_is_one_clear_error(web: Web, body: bytes) -> None:
    web.pages["/x.mp4"] = (200, {"Content-Type": "text/html"}, body)
    with pytest.raises(LineamentError) as caught, NetworkCamera(f"{web.url}/x.mp4") as camera:
        camera.read()
    assert "\n" not in str(caught.value)


def test_a_closed_port_is_one_clear_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(LineamentError, match="refused"), NetworkCamera(f"rtsp://127.0.0.1:{port}/x"):
            pass


def test_a_camera_closed_before_it_opens_shows_nothing(web: Web, tmp_path: Path) -> None:
    web.pages["/a.mp4"] = (200, {"Content-Type": "video/mp4"}, sample_clip(tmp_path / "a.mp4", frames=5).read_bytes())
    camera = NetworkCamera(f"{web.url}/a.mp4")
    camera.close()
    with camera:
        assert camera.closed and camera.read() is None
