"""A camera that was lost comes back by itself: killed, frozen, silent, babbling, of another size, locked."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream import backoff
from lineament.stream.backoff import RefusedError
from lineament.stream.read import video
from lineament.stream.read.open import open_source
from lineament.stream.read.reconnect import ReconnectingSource, RetryConfig
from lineament.stream.read.video import VideoSource
from lineament.stream.run.pipeline import Pipeline
from tests.rtsp import H265, rtsp_server, tcp_server
from tests.waiting import WAIT_S, started, until

ROOT = Path(__file__).resolve().parent.parent


class Script:
    """A live source that plays a script: a number is so many frames, an error is raised, None is an end."""

    name, still, fps = "script", False, 30.0
    frame_count: int | None = None

    def __init__(self, *steps: int | Exception | None, side: int = 4, live: bool = True) -> None:
        self.steps = iter([s for step in steps for s in ([0] * step if isinstance(step, int) else [step])])
        self.live, self.side, self.index, self.closed, self.began_s = live, side, 0, threading.Event(), 0.0

    def __enter__(self) -> Script:
        self.began_s = time.monotonic()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        step = None if self.closed.is_set() else next(self.steps, None)
        if isinstance(step, Exception):
            raise step
        if step is None:
            return None
        self.index += 1
        now_s = time.monotonic()
        bgr = np.zeros((self.side, self.side, 3), np.uint8)
        return Frame(bgr, self.name, self.index - 1, now_s - self.began_s, now_s)

    def close(self) -> None:
        self.closed.set()


class Shut(Script):
    """Does not open."""

    def __init__(self, error: LineamentError) -> None:
        super().__init__()
        self.error = error

    def __enter__(self) -> Shut:
        raise self.error


def healing(*scripts: Script, retry_s: float = WAIT_S, patient: bool = False) -> ReconnectingSource:
    """Opens one script after the other."""
    left = iter(scripts)
    return ReconnectingSource(next(left), lambda: next(left), RetryConfig(retry_s), patient=patient)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no descriptor outlives a test."""
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    deadline_s = time.monotonic() + WAIT_S
    while len(os.listdir("/proc/self/fd")) > descriptors and time.monotonic() < deadline_s:
        time.sleep(0.02)  # a server's threads close theirs in their own time
    assert [thread.name for thread in threading.enumerate() if thread not in threads] == []
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.fixture(autouse=True)
def no_name_is_looked_up_twice() -> None:
    """PyAV and the resolver open what they keep before a test counts."""
    with pytest.raises(LineamentError), open_source("rtsp://127.0.0.1:1/x"):
        pass


# ---- what it promises, by scripted sources


def test_numbers_and_times_go_on_over_an_outage_and_the_outage_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    lost = LineamentError("lost script: the cable is out")
    with healing(Script(3, lost), Shut(lost), Script(2, None), Script(2, side=8)) as source:
        frames = [source.read() for _ in range(7)]
        assert source.reconnects == 2 and source.trouble is None and source.down_s == 0 < source.lost_s
    kept = [frame for frame in frames if frame is not None]
    assert [frame.index for frame in kept] == list(range(7))
    times_s = [frame.time_s for frame in kept]
    assert times_s == sorted(times_s)
    for frame in kept:  # one clock, from the first frame on
        assert frame.captured_s - frame.time_s == pytest.approx(kept[0].captured_s - kept[0].time_s, abs=1e-3)
    assert [frame.bgr.shape[0] for frame in kept] == [4] * 5 + [8] * 2
    said = [record.getMessage() for record in caplog.records]
    assert [text.split(" after ")[0] for text in said] == [
        "lost script: the cable is out; trying again",
        "script is back",
        "lost script: the sender ended it; restart it; trying again",
        "script is back",
    ]


def test_every_source_that_was_lost_is_let_go() -> None:
    scripts = [Script(1, LineamentError("lost")) for _ in range(4)]
    with healing(*scripts) as source:
        assert [source.read() is not None for _ in range(4)] == [True] * 4
    assert all(script.closed.is_set() for script in scripts)


def test_it_gives_up_when_the_time_is_over_and_says_so() -> None:
    lost = LineamentError("lost script: the cable is out")
    with (
        healing(Script(1, lost), *[Shut(lost) for _ in range(9)], retry_s=0.8) as source,
        pytest.raises(LineamentError, match="the cable is out; gave up after"),
    ):
        while source.read() is not None:
            pass


def test_with_no_time_to_retry_it_is_the_source_itself() -> None:
    lost = LineamentError("lost script: the cable is out")
    with healing(Script(1, lost), retry_s=0.0) as source, pytest.raises(LineamentError, match=r"cable is out$"):
        while source.read() is not None:
            pass
    with healing(Script(2, None), retry_s=0.0) as source:
        assert [frame.index for frame in iter(source.read, None)] == [0, 1]


def test_a_file_passes_through_with_its_end_and_its_errors() -> None:
    with healing(Script(3, None, live=False)) as source:
        assert not source.live and [frame.index for frame in iter(source.read, None)] == [0, 1, 2]
    with healing(Script(1, LineamentError("damaged"), live=False)) as source, pytest.raises(LineamentError):
        while source.read() is not None:
            pass


def test_a_broadcast_that_has_become_a_recording_is_over() -> None:
    with healing(Script(2, None), Script(5, live=False)) as source:
        assert [frame.index for frame in iter(source.read, None)] == [0, 1]


def test_what_cannot_be_opened_is_an_error_at_once_unless_patience_was_asked_for() -> None:
    shut = LineamentError("cannot open script: connection refused")
    with pytest.raises(LineamentError, match="refused"), healing(Shut(shut)):
        pass
    with healing(Shut(shut), Shut(shut), Script(1), patient=True) as source:
        frame = source.read()
        assert frame is not None and frame.index == 0 and source.reconnects == 0 and source.lost_s > 0


def test_pauses_grow_to_a_limit_that_brings_a_camera_back_within_five_seconds() -> None:
    for _ in range(50):
        pauses_s = list(itertools.islice(backoff.pauses_s(refused=False), 12))
        assert pauses_s[0] < 0.4 and max(pauses_s) < 4.0 and min(pauses_s[5:]) > 2.0
    first = {next(backoff.pauses_s(refused=False)) for _ in range(20)}
    assert len(first) == 20, "no two cameras come at the same time"
    for _ in range(50):
        assert next(backoff.pauses_s(refused=True)) >= 60.0


def test_a_wrong_password_is_not_tried_again_within_the_minute(caplog: pytest.LogCaptureFixture) -> None:
    pauses_s = list(itertools.islice(backoff.pauses_s(refused=True), 12))
    assert min(pauses_s) >= 45 and max(pauses_s) < 800
    tries = itertools.count()

    def again() -> Script:
        next(tries)
        return Shut(RefusedError("cannot open script: wrong user name or password (401)"))

    with ReconnectingSource(Script(1, LineamentError("lost")), again) as source:
        assert source.read() is not None
        reader = threading.Thread(target=source.read, name="reader")
        reader.start()
        until(lambda: "401" in (source.trouble or ""))
        source.close()  # ends the pause, too
        reader.join(WAIT_S)
        assert not reader.is_alive() and next(tries) == 1
    assert "to avoid a locked account" in caplog.text


def test_the_caller_is_told_that_there_is_no_picture() -> None:
    lost = LineamentError("lost script: the cable is out")
    source, idles = healing(Script(1, lost), *[Shut(lost) for _ in range(99)]), []

    def idle() -> None:
        idles.append((source.trouble, source.down_s))
        if len(idles) == 2:
            results.stop()

    with Pipeline(source, lambda frame: Result(frame, ()), idle) as results:
        for _ in results:
            pass
    assert [trouble for trouble, _ in idles] == [str(lost)] * 2 and idles[1][1] > idles[0][1] > 0


def test_a_negative_time_is_refused() -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="retry_s must be 0 or more"):
            RetryConfig(wrong)


# ---- a real RTSP camera


def camera(port: int, timeout_s: float = 10.0) -> ReconnectingSource:
    url = f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam"
    return ReconnectingSource(VideoSource(url, timeout_s, timeout_s), lambda: VideoSource(url, timeout_s, timeout_s))


def frame_of(source: ReconnectingSource) -> Frame:
    frame = source.read()
    assert frame is not None
    return frame


def test_a_killed_server_that_returns_with_another_size_and_codec_is_picked_up_again() -> None:
    with rtsp_server() as (server, port):
        source = camera(port)
        with source:
            before = [frame_of(source) for _ in range(5)]
            server.kill()
            server.wait()
            with rtsp_server(port, (360, 640), H265) as (second, _):
                frame = frame_of(source)
                while frame.bgr.shape == (240, 320, 3):  # what was under way
                    frame = frame_of(source)
                assert frame.bgr.shape == (360, 640, 3) and source.reconnects == 1
                assert frame.index >= 5 and frame.time_s > before[-1].time_s
                second.kill()
                second.wait()
            with rtsp_server(port):
                until(lambda: frame_of(source).bgr.shape == (240, 320, 3))
                assert source.reconnects == 2


def test_a_frozen_server_is_found_silent_and_picked_up_when_it_thaws() -> None:
    with rtsp_server() as (server, port), camera(port, 1.0) as source:
        frame_of(source)
        server.send_signal(signal.SIGSTOP)
        thaw = threading.Timer(2.5, server.send_signal, [signal.SIGCONT])
        thaw.start()
        until(lambda: frame_of(source) is not None and source.reconnects == 1)
        thaw.join()


def test_a_wrong_password_is_told_apart_from_a_server_that_is_away() -> None:
    with (
        rtsp_server(password="other") as (_, port),
        pytest.raises(RefusedError, match="wrong user name or password"),
        camera(port),
    ):
        pass
    with pytest.raises(LineamentError, match="connection refused") as caught, camera(port):
        pass
    assert not isinstance(caught.value, RefusedError)


def test_the_command_line_goes_on_after_an_outage_and_sums_it_up(tmp_path: Path) -> None:
    points = tmp_path / "a.jsonl"

    def lines() -> int:
        return points.read_text().count("\n") if points.exists() else 0

    with rtsp_server() as (server, port):
        url = f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam"
        command = [sys.executable, "-m", "stream", "--source", url, "--no-window", "--jsonl", str(points)]
        with started(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: lines() > 3 or process.poll() is not None)
            server.kill()
            server.wait()
            with rtsp_server(port):
                before = lines()
                until(lambda: lines() > before + 5 or process.poll() is not None)
                process.send_signal(signal.SIGINT)
                _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, stderr
    assert "trying again" in stderr and "is back after" in stderr and "reconnected 1 times" in stderr
    rows = [json.loads(line) for line in points.read_text().splitlines()]
    times_s = [row["time_s"] for row in rows]
    assert times_s == sorted(set(times_s))
    for text in (stderr, points.read_text()):
        assert "p%40ss" not in text and "p@ss" not in text and "admin" not in text


# ---- servers that do harm


def babble(caller: socket.socket) -> None:
    noise = np.random.default_rng(0)
    while True:
        caller.sendall(noise.bytes(4096))


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1:{}/x", "http://127.0.0.1:{}/x", "tcp://127.0.0.1:{}"])
def test_a_server_that_babbles_is_an_error_and_not_a_hang(address: str) -> None:
    with tcp_server(babble) as port, pytest.raises(LineamentError, match="cannot open"):
        VideoSource(address.format(port), 2.0, 2.0).__enter__()


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
@pytest.mark.parametrize("listens", [True, False], ids=["never answers", "drops the connection's first packet"])
def test_close_ends_a_black_holed_connection_at_once(scheme: str, listens: bool) -> None:
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(5 if listens else 0)
        fill = [socket.socket() for _ in range(0 if listens else 4)]
        for filler in fill:  # a full queue, which drops whoever comes next
            filler.setblocking(False)
            filler.connect_ex(hole.getsockname())
        url = f"{scheme}://127.0.0.1:{hole.getsockname()[1]}/x"
        source = ReconnectingSource(
            VideoSource(url, 600.0, 600.0), lambda: VideoSource(url, 600.0, 600.0), patient=True
        )
        if scheme == "http":
            source.live = True
        reader = threading.Thread(target=source.read, name="reader")
        with source:
            reader.start()
            time.sleep(0.3)  # the connection is being made
            assert reader.is_alive() and source.trouble is None
        reader.join(WAIT_S)
        for filler in fill:
            filler.close()
        assert not reader.is_alive()


def test_close_ends_the_read_of_a_stream_that_has_fallen_silent_at_once() -> None:
    with rtsp_server() as (server, port):
        with camera(port, 600.0) as source:
            frame_of(source)
            server.send_signal(signal.SIGSTOP)
            ended = threading.Event()

            def drain() -> None:
                while source.read() is not None:
                    pass
                ended.set()

            reader = threading.Thread(target=drain, name="reader")
            reader.start()
            time.sleep(0.5)  # what was under way has arrived
        assert ended.wait(WAIT_S)
        reader.join(WAIT_S)
        server.send_signal(signal.SIGCONT)


def test_a_stream_of_broken_pictures_is_lost_though_its_data_never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_PICTURE_TIMEOUT_S", 1.0)
    jpeg = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()

    def part(data: bytes) -> bytes:
        return b"--x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(data), data)

    def show(caller: socket.socket) -> None:
        caller.recv(4096)
        caller.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=x\r\n\r\n")
        for _ in range(20):
            caller.sendall(part(jpeg))
        while True:
            caller.sendall(part(b"\xff\xd8 not a picture \xff\xd9"))
            time.sleep(0.02)

    with (
        tcp_server(show) as port,
        VideoSource(f"http://127.0.0.1:{port}/x", 5.0, 5.0) as source,
        pytest.raises(LineamentError, match="data but no picture for 1 s"),
    ):
        while source.read() is not None:
            pass


def test_control_c_ends_a_wait_of_the_main_thread_at_once() -> None:
    code = """
import signal, sys
from lineament.stream.read.video import VideoSource
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
VideoSource(sys.argv[1], 600.0, 600.0).__enter__()
"""
    with socket.create_server(("127.0.0.1", 0)) as hole:
        url = f"rtsp://127.0.0.1:{hole.getsockname()[1]}/x"
        with started([sys.executable, "-c", code, url], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            caller, _ = hole.accept()
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=WAIT_S)
            caller.close()
    assert "KeyboardInterrupt" in stderr and "ignored" not in stderr


def test_a_server_that_hangs_up_again_and_again_costs_no_descriptor(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with tcp_server(lambda caller: None) as port:
        url = f"rtsp://admin:hunter2@127.0.0.1:{port}/x"
        source = ReconnectingSource(open_source(url), lambda: open_source(url), RetryConfig(2.0), patient=True)
        before = len(os.listdir("/proc/self/fd"))
        with source, pytest.raises(LineamentError, match="gave up after"):
            source.read()
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # the server's side of the last call
    assert "hunter2" not in caplog.text and len(caplog.records) == 1, "an outage is told once"
