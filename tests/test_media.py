"""Pictures reach a real server, come back after it does, and no server and no camera ever holds up a run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import av
import numpy as np
import pytest

from lineament.landmarks.types import U8, LineamentError
from lineament.stream import backoff
from lineament.stream.write.network import Background
from lineament.stream.write.open import open_sink
from tests.published import feed, nothing_left, result
from tests.rtsp import rtsp_recorder
from tests.waiting import WAIT_S, started, until


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left():
        yield


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What is logged; never a password."""
    caplog.set_level(logging.INFO)
    yield caplog
    assert "p%40ss" not in caplog.text and "hunter2" not in caplog.text
    assert not any("p%40ss" in thread.name for thread in threading.enumerate())


def size(path: Path) -> int:
    """Bytes of a recording; 0 before the server has created it, which is some time after the output is up."""
    return path.stat().st_size if path.exists() else 0


def recorded(path: Path) -> list[U8]:
    """The pictures of a recording that may not be over."""
    if not size(path):
        return []
    pictures = []
    try:
        with av.open(str(path)) as container:
            for picture in container.decode(video=0):
                pictures.append(np.asarray(picture.to_ndarray(format="bgr24"), np.uint8))
    except av.error.FFmpegError:
        pass
    return pictures


def opened(url: str, fps: float = 30.0) -> Background[Any]:
    sink = open_sink(url, fps)
    assert isinstance(sink, Background)
    return sink


def up(caplog: pytest.LogCaptureFixture) -> int:
    return sum(getattr(record, "event", "") == "output_up" for record in caplog.records)


def test_a_server_gets_the_pictures_and_again_after_it_was_killed(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first.ts", tmp_path / "second.ts"
    with rtsp_recorder(first) as (server, port), opened(f"rtsp://admin:p%40ss@127.0.0.1:{port}/record") as sink:
        index = feed(sink, lambda: up(said) == 1)
        index = feed(sink, lambda: size(first) > 20_000, index)
        server.kill()
        server.wait()
        index = feed(sink, lambda: "trying again" in said.text and sink.lost > 10, index)
        with rtsp_recorder(second, port):
            index = feed(sink, lambda: up(said) == 2, index)
            feed(sink, lambda: size(second) > 20_000, index)
            # here, for the sink outlives this server and may notice its end
            assert said.text.count("trying again") == 1 and said.text.count("is back after") == 1
    for path in (first, second):
        pictures = recorded(path)
        assert len(pictures) > 10 and pictures[0].shape == (240, 320, 3)
        grey = [int(np.median(picture)) for picture in pictures[:30]]
        assert grey == sorted(grey) and 35 < grey[0] < grey[-1] < 205


def test_another_size_is_fitted_in_and_odd_ones_are_made_even(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "a.ts"
    with rtsp_recorder(target) as (_, port):
        with opened(f"rtsp://admin:p%40ss@127.0.0.1:{port}/record") as sink:
            index = feed(sink, lambda: up(said) == 1, size_hw=(121, 161))
            feed(sink, lambda: size(target) > 10_000, index, size_hw=(300, 300))
        until(lambda: len(recorded(target)) > 10)
        assert {picture.shape for picture in recorded(target)} == {(122, 162, 3)}


def test_a_frozen_server_costs_pictures_until_it_goes_on_and_does_not_keep_the_run_from_ending(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    idle = threading.Event()

    def feed_noise(enough: Callable[[], bool]) -> None:
        """Pictures that fill every buffer on the way."""
        deadline_s, index = time.monotonic() + WAIT_S, 1000
        while not enough():
            assert time.monotonic() < deadline_s, "fed in vain"
            sink.write(result(index, (480, 640)), np.roll(noise, index, 0))
            assert len(sink._waiting) <= 4
            index += 1
            idle.wait(0.01)

    with rtsp_recorder(tmp_path / "a.ts") as (server, port):
        sink = opened(f"rtsp://admin:p%40ss@127.0.0.1:{port}/record")
        with sink:
            feed_noise(lambda: up(said) == 1)
            os.kill(server.pid, signal.SIGSTOP)
            feed_noise(lambda: "no data accepted for" in said.text)
            os.kill(server.pid, signal.SIGCONT)
            feed_noise(lambda: up(said) == 2)
            os.kill(server.pid, signal.SIGSTOP)
            lost = sink.lost
            feed_noise(lambda: sink.lost > lost + 50)
        assert sink.lost > lost + 50 and not sink._thread.is_alive()


def test_a_wrong_password_is_told_and_not_tried_again_soon(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_REFUSED_PAUSE_S", 3600.0)
    with (
        rtsp_recorder(tmp_path / "a.ts") as (_, port),
        opened(f"rtsp://admin:hunter2@127.0.0.1:{port}/record") as sink,
    ):
        feed(sink, lambda: "wrong user name or password (401)" in said.text)
        feed(sink, lambda: sink.lost > 20)
    assert said.text.count("to avoid a locked account") == 1


@pytest.mark.parametrize(
    ("path", "says"), [("rtsp://admin:p%40ss@127.0.0.1:{port}/nowhere", "404"), ("rtsp://127.0.0.1:1/a", "refused")]
)
def test_why_it_does_not_work_is_told_and_closing_does_not_wait(
    tmp_path: Path, said: pytest.LogCaptureFixture, path: str, says: str
) -> None:
    with rtsp_recorder(tmp_path / "a.ts") as (_, port), opened(path.format(port=port)) as sink:
        feed(sink, lambda: says in said.text)


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp"])
def test_a_server_that_accepts_and_says_nothing_does_not_keep_the_run_from_ending(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with opened(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/a/b") as sink:
            sink.write(result(0), result(0).frame.bgr)
            until(lambda: sink._transport._size_hw is not None)  # it is being sent
        assert sink.lost >= 1


def test_an_rtmp_server_gets_them_too(said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listener = """
import sys, av
with av.open(sys.argv[1], options={"listen": "1"}) as container:
    for number, picture in enumerate(container.decode(video=0)):
        if number == 10:
            print(picture.width, picture.height, flush=True)
"""
    url = f"rtmp://127.0.0.1:{port}/live/door"
    # it listens once, so a probe before would be its only guest
    told: list[str] = []
    with started([sys.executable, "-c", listener, url], stdout=subprocess.PIPE, text=True) as server:
        out = server.stdout
        assert out is not None
        reader = threading.Thread(target=lambda: told.append(out.readline()))
        reader.start()
        try:
            sink = opened(url)
            monkeypatch.setattr("lineament.stream.write.media.socket.create_connection", lambda *_: socket.socket())
            with sink:
                feed(sink, lambda: up(said) == 1)
                feed(sink, lambda: server.poll() is not None or len(told) == 1, 1)
            assert told == ["320 240\n"]
        finally:
            server.kill()
            reader.join()


def test_srt_says_what_it_lacks_or_works() -> None:
    sink = opened("srt://127.0.0.1:1?mode=caller")
    try:
        with sink:
            pass
    except LineamentError as error:
        assert "has no SRT; use rtsp://" in str(error)


class FakeCamera:
    """Takes the place of pyvirtualcam's, which needs a driver."""

    made: ClassVar[list[FakeCamera]] = []
    broken = False

    def __init__(self, width: int, height: int, fps: float, fmt: str, device: str | None) -> None:
        if FakeCamera.broken:
            raise RuntimeError("the device is busy")
        self.width, self.height, self.fps, self.fmt, self.device = width, height, fps, fmt, device
        self.sent: list[U8] = []
        self.closed = False
        FakeCamera.made.append(self)

    def send(self, bgr: U8) -> None:
        self.sent.append(bgr)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeCamera]:
    module = SimpleNamespace(Camera=FakeCamera, PixelFormat=SimpleNamespace(BGR="bgr"))
    monkeypatch.setitem(sys.modules, "pyvirtualcam", module)
    monkeypatch.setattr("lineament.stream.write.media.sys.platform", "darwin")  # where no device is looked for
    monkeypatch.setattr(FakeCamera, "made", [])
    return FakeCamera


def test_a_virtual_camera_shows_the_pictures_in_the_size_of_the_first(fake: type[FakeCamera]) -> None:
    with open_sink("virtual:/dev/video10", 25.0) as sink:
        for index, size_hw in enumerate([(121, 160), (121, 160), (60, 300)]):
            item = result(index, size_hw)
            sink.write(item, item.frame.bgr)
    (camera,) = fake.made
    assert (camera.fps, camera.fmt, camera.device, camera.closed) == (25.0, "bgr", "/dev/video10", True)
    assert [picture.shape for picture in camera.sent] == [(122, 160, 3)] * 3
    assert sink.lost == 0


def test_a_virtual_camera_that_is_busy_is_tried_again(
    fake: type[FakeCamera], said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "broken", True)
    with open_sink("virtual:") as sink:
        index = feed(sink, lambda: "the device is busy; trying again" in said.text)
        monkeypatch.setattr(fake, "broken", False)
        feed(sink, lambda: up(said) == 1, index)
    assert fake.made[0].device is None and fake.made[0].closed


def test_without_the_package_or_a_device_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "linux" and not list(Path("/sys/devices/virtual/video4linux").glob("video*")):
        pytest.importorskip("pyvirtualcam")
        with pytest.raises(LineamentError, match=r"no virtual camera on this machine.*v4l2loopback"):
            open_sink("virtual:").__enter__()
    monkeypatch.setitem(sys.modules, "pyvirtualcam", None)
    with pytest.raises(LineamentError, match=r"pip install pyvirtualcam==0\.15\.0"):
        open_sink("virtual:/dev/video10").__enter__()
