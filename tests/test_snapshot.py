"""A camera's snapshot address is polled as a live source: each new picture once, and healing as for any camera."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.backoff import RefusedError
from lineament.stream.read.open import open_source
from lineament.stream.read.reconnect import RetryConfig, reconnecting
from lineament.stream.read.snapshot import SnapshotSource
from lineament.stream.read.spec import ReadConfig
from lineament.stream.run.cameras import read_cameras
from tests.waiting import WAIT_S, until

POLLED = ReadConfig(poll_s=0.02)


def jpeg(grey: int) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))[1].tobytes()


class Camera:
    """A web server with one picture; what it answers can be changed while it runs."""

    def __init__(self) -> None:
        self.body, self.code, self.scheme, self.asked = jpeg(0), 200, "", 0
        self.answer = threading.Event()
        """while it is not set, nothing is answered"""
        self.answer.set()
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.asked += 1
                camera.answer.wait(WAIT_S)
                said = self.headers.get("Authorization", "")
                if camera.scheme and not said.startswith(camera.scheme):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", f'{camera.scheme} realm="camera", nonce="1", qop="auth"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if camera.code != 200:
                    self.send_error(camera.code)
                    return
                body = camera.body
                self.send_response(200)
                self.send_header("Content-Type", "image/jpeg")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://admin:p%40ss@127.0.0.1:{self.server.server_port}/snapshot.cgi?token=abc123"


@pytest.fixture
def camera() -> Iterator[Camera]:
    made = Camera()
    thread = threading.Thread(target=made.server.serve_forever, name="web server")
    thread.start()
    yield made
    made.answer.set()
    made.server.shutdown()
    made.server.server_close()
    thread.join(WAIT_S)


def grey_of(frame: Frame | None) -> int:
    assert frame is not None and frame.bgr.shape == (48, 64, 3)
    return round(float(frame.bgr.mean()))


def test_each_new_picture_is_delivered_once(camera: Camera) -> None:
    with open_source(camera.url, POLLED) as source:
        assert source.live and not source.still and source.frame_count is None
        frames = []
        for grey in (0, 80, 160):
            camera.body = jpeg(grey)
            frames.append(source.read())
    assert [grey_of(frame) for frame in frames] == pytest.approx([0, 80, 160], abs=2)
    assert [frame.index for frame in frames if frame] == [0, 1, 2]
    times_s = [frame.time_s for frame in frames if frame]
    assert times_s[0] >= 0 and times_s == sorted(set(times_s))
    assert "p%40ss" not in source.name and "abc123" not in source.name


def test_a_picture_that_stays_the_same_is_neither_repeated_nor_trouble(camera: Camera) -> None:
    frames: list[Frame | None] = []
    with reconnecting(camera.url, read=POLLED) as source:
        frames.append(source.read())
        reader = threading.Thread(target=lambda: frames.append(source.read()), name="reader")
        reader.start()
        until(lambda: camera.asked > 10)
        assert len(frames) == 1 and source.trouble is None and source.reconnects == 0
        camera.body = jpeg(200)
        reader.join(WAIT_S)
    assert grey_of(frames[1]) == pytest.approx(200, abs=2)


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_it_answers_with_the_address_s_password_as_the_camera_asks(camera: Camera, scheme: str) -> None:
    camera.scheme = scheme
    with open_source(camera.url, POLLED) as source:
        assert source.read() is not None


def test_a_wrong_password_is_a_refusal_that_shows_no_password(camera: Camera) -> None:
    for camera.code in (401, 403):
        with pytest.raises(RefusedError) as caught, open_source(camera.url, POLLED):
            pass
        assert str(camera.code) in str(caught.value)
        assert not {"p%40ss", "p@ss", "admin", "abc123"} & set(str(caught.value).replace("/", " ").split())
        assert "p%40ss" not in str(caught.value) and "abc123" not in str(caught.value)


def test_a_camera_that_fails_and_returns_is_back_by_itself(camera: Camera, caplog: pytest.LogCaptureFixture) -> None:
    with reconnecting(camera.url, read=POLLED) as source:
        assert source.read() is not None
        camera.code = 503
        frames: list[Frame | None] = []
        reader = threading.Thread(target=lambda: frames.append(source.read()), name="reader")
        reader.start()
        until(lambda: source.health.trouble is not None)
        assert "server failed (5xx)" in str(source.health.trouble)
        camera.code = 200
        reader.join(WAIT_S)
        assert len(frames) == 1 and frames[0] is not None and frames[0].index == 1
        assert source.health.trouble is None and source.reconnects == 1
    assert "is back after" in caplog.text


def test_a_lost_camera_ends_the_run_where_it_is_not_to_be_retried(camera: Camera) -> None:
    with reconnecting(camera.url, RetryConfig(0), POLLED) as source:
        assert source.read() is not None
        camera.code = 404
        with pytest.raises(LineamentError, match=r"\(404\)"):
            source.read()


@pytest.mark.parametrize("body", [b"<html>no picture</html>", b"", jpeg(0)[:300]], ids=["text", "nothing", "cut"])
def test_what_is_no_picture_says_so(camera: Camera, body: bytes) -> None:
    camera.body = body
    with pytest.raises(LineamentError, match=r"snapshot\.cgi") as caught, open_source(camera.url, POLLED) as source:
        source.read()
    assert "p%40ss" not in str(caught.value)


def test_a_silent_camera_is_a_time_out(camera: Camera) -> None:
    camera.answer.clear()
    with pytest.raises(LineamentError, match="no data for"), SnapshotSource(camera.url, 1.0, 0.5, 0.5):
        pass


@pytest.mark.parametrize("waits_for", ["the next picture", "the camera"])
def test_close_ends_a_wait_at_once(camera: Camera, waits_for: str) -> None:
    frames: list[Frame | None] = []
    with SnapshotSource(camera.url, 1000.0 if waits_for == "the next picture" else 0.01, 1000.0, 1000.0) as source:
        assert source.read() is not None
        if waits_for == "the camera":
            camera.answer.clear()
        asked = camera.asked
        reader = threading.Thread(target=lambda: frames.append(source.read()), name="reader")
        reader.start()
        if waits_for == "the camera":
            until(lambda: camera.asked > asked)
        source.close()
        reader.join(WAIT_S)
    assert frames == [None]


def test_a_picture_without_end_is_read_up_to_a_limit() -> None:
    sent = 0
    ended = threading.Event()

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            try:
                self.wfile.write(jpeg(90)[:-2])
                while sent < 1 << 30:
                    sent += self.wfile.write(b"\x11" * 65536)
            except OSError:  # it hung up
                pass
            ended.set()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    thread = threading.Thread(target=server.serve_forever, name="web server")
    thread.start()
    try:
        with SnapshotSource(f"http://127.0.0.1:{server.server_port}/", 1.0, WAIT_S, WAIT_S):
            pass
        assert ended.wait(WAIT_S) and sent < 200 << 20
    finally:
        server.shutdown()
        server.server_close()
        thread.join(WAIT_S)


def test_without_polling_a_picture_is_one_frame_and_the_log_says_how_to_go_on(
    camera: Camera, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with open_source(camera.url) as source:
        assert source.read() is not None and source.read() is None
        assert not source.live and source.still
    assert "is one picture; --poll-s 1 fetches it again" in caplog.text and "p%40ss" not in caplog.text


@pytest.mark.parametrize("spec", ["a.jpg", "0", "sample", "auto", "rtsp://x/y"])
def test_only_a_web_address_can_be_polled(spec: str) -> None:
    with pytest.raises(LineamentError, match="cannot be polled"):
        open_source(spec, POLLED)


def test_a_list_of_cameras_says_which_are_polled_and_which_stream_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(
        "cameras:\n"
        "  - {name: yard, source: 'http://10.0.0.7/snapshot.jpg', poll_s: 0.5}\n"
        "  - {name: disc, source: disc.mkv, stream: 1}\n"
        "  - {name: door, source: 'rtsp://10.0.0.5/live'}\n"
    )
    assert [camera.read for camera in read_cameras(path)] == [ReadConfig(poll_s=0.5), ReadConfig(stream=1), None]
    for wrong in ("poll_s: often", "poll_s: 0", "poll_s: .nan", "stream: one", "stream: -1", "poll_s: true"):
        path.write_text(f"cameras: [{{name: a, source: 'http://x/y', {wrong}}}]")
        with pytest.raises(LineamentError, match=f"camera 1 of .*{wrong.split(':')[0]}"):
            read_cameras(path)
