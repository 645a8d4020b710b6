"""Whoever listens may be slow, away or wrong: the run goes on, what is lost is counted, and no thread is left."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.sync.client import connect

from lineament.landmarks.types import U8, LineamentError, Result
from lineament.stream.backoff import RefusedError
from lineament.stream.read.pictures import SampleSource
from lineament.stream.read.sample import Sample
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.watch.http import Monitor
from lineament.stream.write.network import Background, parsed
from lineament.stream.write.open import open_sink
from tests.blobs import CARD, BlobLandmarker
from tests.published import feed, nothing_left, result
from tests.waiting import WAIT_S, started, until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    with nothing_left():
        yield


# ---- addresses


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("ftp://host/a", r"'ftp://host/a': unknown protocol; use rtsp://, .*openseeface://, virtual:, or a path"),
        ("file:///etc/passwd", "unknown protocol"),
        ("http://u:hunter2@host/a", r"http://\*\*\*@host/a': unknown protocol"),
        ("ws://127.0.0.1", r"has no port; use ws://user:password@host:9200/name"),
        ("ws://u:hunter2@127.0.0.1:9200", "passwords are not supported; put a reverse proxy"),
        ("ws://127.0.0.1:9200/a?b=c", r"has a '\?'"),
        ("rtsp://host:port/a", "is not a valid address"),
        ("rtsp://host:99999/a", "is not a valid address"),
        ("rtsp://u:hun#ter2@host/a", r"is not a valid address; .*%23 for #"),
        ("rtsp://[::1/a", "is not a valid address"),
        ("rtsp:///a", "is not a valid address"),
        ("rtsp://host/a b", "is not a valid address"),
        ("rtsp://host/a\nb", "is not a valid address"),
        ("rtsp://host:8554", "no stream name"),
        ("mqtt://host", "no stream name or topic"),
        ("mqtt://host/a?qos=2", r"has a '\?'"),
        ("out.xyz", r"use \.mp4, .*\.m3u8"),
        ("~nobody-of-this-name/a.mp4", "cannot write"),
    ],
)
def test_what_is_wrong_with_an_output_is_said_without_a_password(output: str, says: str) -> None:
    with pytest.raises(LineamentError, match=says) as caught:
        open_sink(output)
    assert not re.search("hunter2|hun#ter2", str(caught.value))


def test_an_address_says_who_where_and_what() -> None:
    address = parsed("mqtts://door:p%40ss%23@broker.lan/faces/front%20door")
    assert (address.scheme, address.host, address.port) == ("mqtts", "broker.lan", 8883)
    assert (address.user, address.password, address.path) == ("door", "p@ss#", "faces/front door")
    assert parsed("RTSP://Host/a").port == 554 and parsed("ws://[::1]:9200").host == "::1"
    assert address.shown == "mqtts://***@broker.lan/faces/front%20door"


@settings(deadline=None, max_examples=300)
@given(
    st.text()
    | st.tuples(
        st.sampled_from(["rtsp", "rtmp", "srt", "ws", "mqtt", "mqtts", "virtual", "http", ""]),
        st.sampled_from(["://", ":", ":/"]),
        st.text(alphabet=st.characters(codec=None), max_size=30) | st.from_regex(r"[a-z:@\[\]%/#?.0-9]{0,30}"),
    ).map("".join)
)
@example("virtual:\0")
@example("a" * 300)
@example("~\0/a.mp4")
@example("a/\ud800.jsonl")
@example("rtsp://\u2100/a")
@example("mqtt://h/%ff%00")
def test_no_output_is_a_crash(output: str) -> None:
    try:
        open_sink(output)
    except LineamentError as error:
        assert "\n" not in str(error)


# ---- the thread and its buffer


class Peer:
    """A transport whose other side a test can take away."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.fails: Callable[[], Exception | None] = lambda: None
        self.blocks = threading.Event()
        """while set, a send waits until it is interrupted"""
        self.entered, self.interrupted = threading.Event(), threading.Event()
        self.connects = self.closes = 0

    def prepare(self) -> None: ...

    def message(self, result: Result, drawn_bgr: U8) -> int:
        return result.frame.index

    def connect(self) -> None:
        self.connects += 1
        if error := self.fails():
            raise error

    def send(self, message: int) -> None:
        if error := self.fails():
            raise error
        if self.blocks.is_set():
            self.entered.set()
            assert self.interrupted.wait(WAIT_S)
            raise LineamentError("interrupted")
        self.got.append(message)

    def idle(self) -> None: ...

    def close(self) -> None:
        self.closes += 1

    def interrupt(self) -> None:
        self.interrupted.set()


def write(sink: Background[int], index: int) -> None:
    sink.write(result(index), result(index).frame.bgr)


def test_what_waits_at_the_end_is_still_sent() -> None:
    peer = Peer()
    with Background(peer, "peer", 64) as sink:
        for index in range(64):
            write(sink, index)
    assert peer.got == list(range(64)) and sink.lost == 0 and peer.closes == 1
    sink.close()
    with pytest.raises(RuntimeError, match="not open"):
        write(sink, 0)


def test_a_slow_side_loses_the_oldest_with_a_count_and_every_result_is_sent_or_counted() -> None:
    peer = Peer()
    peer.blocks.set()
    with Background(peer, "peer", 8) as sink:
        write(sink, 0)
        assert peer.entered.wait(WAIT_S)
        for index in range(1, 101):
            write(sink, index)
            assert len(sink._waiting) <= 8
        assert sink.lost == 92  # one is under way, eight wait
        peer.blocks.clear()
    assert sink.lost == 101 and peer.got == []  # the one under way was interrupted at the end


def test_after_an_outage_the_newest_come_first_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    peer, away = Peer(), LineamentError("cannot reach peer: it is off")
    with Background(peer, "peer", 4) as sink:
        index = feed(sink, lambda: len(peer.got) > 3)
        peer.fails = lambda: away
        index = feed(sink, lambda: peer.connects > 3, index)
        seen = len(peer.got)
        peer.fails = lambda: None
        feed(sink, lambda: len(peer.got) > seen + 3, index)
    assert peer.got == sorted(set(peer.got)) and peer.got[seen] >= index - 5
    assert len(peer.got) + sink.lost == peer.got[-1] + 1
    assert [record.getMessage().split(";")[0] for record in caplog.records][:2] == [
        "sending to peer",
        "cannot reach peer: it is off",
    ]
    assert len(caplog.records) == 3 and "peer is back after" in caplog.text


def test_a_refusal_is_not_tried_again_for_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    peer.fails = lambda: RefusedError("cannot publish to peer: wrong password")
    with Background(peer, "peer", 4) as sink:
        until(lambda: "to avoid a locked account" in caplog.text)
        assert peer.connects == 1
        assert 45 <= sink._pause_s <= 75
    assert peer.connects == 1


def test_a_fault_of_ours_is_raised_by_the_next_write(caplog: pytest.LogCaptureFixture) -> None:
    peer = Peer()
    peer.fails = lambda: ZeroDivisionError("a bug")
    with Background(peer, "peer", 4) as sink:
        until(lambda: not sink._thread.is_alive())
        with pytest.raises(ZeroDivisionError):
            write(sink, 0)
    assert "ended by an internal error" in caplog.text


# ---- in a run


def test_a_session_tells_what_did_not_arrive_and_a_metric_too() -> None:
    dead = "mqtt://door:hunter2@127.0.0.1:1/a"
    source = SampleSource(Sample((120, 160)))  # of which every frame is written, however busy the machine
    with Session(SessionConfig(frames=80), source, BlobLandmarker(), [dead]) as session:
        for _ in session:
            pass
        shown = "mqtt://***@127.0.0.1:1/a"
        assert session.lost_messages == {shown: 80 - 64}
        text = Monitor(lambda: {"cam": session}, CARD, 0).answer("/metrics")[2]
        assert f'lineament_output_lost_total{{output="{shown}",source="cam"}} 16' in text
        assert "unsent 16" in session.live_line()
    assert session.lost_messages == {shown: 80}
    assert f"80 results not delivered to {shown}" in session.summary()


def test_a_file_goes_out_at_its_own_pace_and_whole_and_may_be_stopped(tmp_path: Path) -> None:
    outputs = [f"{tmp_path}/a.jsonl", "ws://127.0.0.1:0"]
    with Session(SessionConfig(frames=20), SampleSource(Sample((120, 160))), BlobLandmarker(), outputs) as session:
        began_s = time.monotonic()
        assert sum(1 for _ in session) == 20
        assert time.monotonic() - began_s >= 19 / 30 - 0.05
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 20
    slow = SampleSource(Sample((120, 160), fps=0.001))
    with Session(SessionConfig(), slow, BlobLandmarker(), outputs) as session:
        stopper = threading.Timer(0.2, session.stop)
        stopper.start()
        assert sum(1 for _ in session) <= 2
        stopper.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_the_command_line_serves_a_socket_and_a_playlist_and_says_what_was_lost(tmp_path: Path) -> None:
    port = free_port()
    outs = [f"ws://127.0.0.1:{port}/a", f"{tmp_path}/live/x.m3u8", "mqtt://door:hunter2@127.0.0.1:1/a"]
    command = [sys.executable, "-m", "stream", "--source", "sample", "--no-window"]
    for out in outs:
        command += ["--out", out]
    with started(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "landmarks: ws://" in line:
                break
        with connect(f"ws://127.0.0.1:{port}/a") as client:
            lines = [json.loads(client.recv(WAIT_S)) for _ in range(5)]
        assert all(line["source"] == "sample" and len(line["faces"][0]["points"]) == 98 for line in lines)
        run.send_signal(signal.SIGTERM)
        said = run.stderr.read()
        assert run.wait(WAIT_S) == 0
    assert "not delivered to mqtt://***@127.0.0.1:1/a" in said and "hunter2" not in said
    assert (tmp_path / "live/x.m3u8").read_text().endswith("#EXT-X-ENDLIST\n")
    assert os.stat(tmp_path / "live/x.m3u8").st_mode & 0o077 == 0
