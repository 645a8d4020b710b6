"""A real broker gets the lines of JSON, and again after it was killed; frozen, it costs messages and nothing else."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from lineament.landmarks.types import LineamentError
from lineament.stream import backoff
from lineament.stream.write.files import JsonlSink
from lineament.stream.write.network import MESSAGES, Background
from lineament.stream.write.open import open_sink
from tests.published import feed, nothing_left, result
from tests.waiting import WAIT_S, started, until

MOSQUITTO = next((path for path in ("/usr/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto") if Path(path).exists()), "")
pytestmark = pytest.mark.skipif(not MOSQUITTO, reason="needs a broker: apt install mosquitto")


@pytest.fixture(autouse=True)
def clean(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    with nothing_left():
        yield
    assert "s3cret" not in caplog.text and "hunter2" not in caplog.text


@contextmanager
def broker(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Its process and port; it wants door and s3cret."""
    if not port:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
    passwords = folder / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", passwords, "door", "s3cret"], check=True, stderr=subprocess.DEVNULL)
    config = folder / "mosquitto.conf"
    user = "user root\n" if os.geteuid() == 0 else ""
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n{user}")
    with started([MOSQUITTO, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: answers(port))
        yield process, port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def opened(port: int, password: str = "s3cret", topic: str = "faces/door") -> Background[Any]:
    sink = open_sink(f"mqtt://door:{password}@127.0.0.1:{port}/{topic}")
    assert isinstance(sink, Background)
    return sink


@contextmanager
def subscriber(port: int, topic: str = "faces/#") -> Iterator[list[tuple[str, str]]]:
    """What it gets, as topic and payload."""
    got: list[tuple[str, str]] = []
    ready = threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.username_pw_set("door", "s3cret")
    client.on_message = lambda client, data, message: got.append((message.topic, message.payload.decode()))
    client.on_subscribe = lambda *_: ready.set()
    client.on_connect = lambda client, *_: client.subscribe(topic) and None
    client.connect("127.0.0.1", port)
    client.loop_start()
    try:
        assert ready.wait(WAIT_S)
        yield got
    finally:
        client.disconnect()
        client.loop_stop()


def indices(got: list[tuple[str, str]]) -> list[int]:
    return [json.loads(text)["index"] for topic, text in list(got) if topic == "faces/door"]


def test_a_broker_gets_the_lines_of_a_jsonl_file_in_order_and_is_told_when_they_begin_and_end(tmp_path: Path) -> None:
    results, line = [result(index) for index in range(MESSAGES)], JsonlSink("a.jsonl").line
    with broker(tmp_path) as (_, port), subscriber(port) as got:
        with opened(port) as sink:
            for item in results:
                sink.write(item, item.frame.bgr)
        until(lambda: len(got) == len(results) + 2)
        assert got[0] == ("faces/door/status", "online") and got[-1] == ("faces/door/status", "offline")
        assert got[1:-1] == [("faces/door", line(item)) for item in results]
        assert sink.lost == 0
        with subscriber(port) as later:  # the status is kept for whoever comes
            until(lambda: len(later) == 1)


def test_a_broker_that_was_killed_gets_them_again_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with broker(tmp_path) as (process, port), opened(port) as sink:
        with subscriber(port) as got:
            index = feed(sink, lambda: len(indices(got)) > 5)
        process.kill()
        process.wait()
        index = feed(sink, lambda: "trying again" in caplog.text and sink.lost > 20, index)
        assert len(sink._waiting) <= MESSAGES
        with broker(tmp_path, port), subscriber(port) as got:
            index = feed(sink, lambda: len(indices(got)) > 5, index)
            seen = indices(got)  # more may arrive meanwhile
            assert seen == sorted(set(seen))
            # here, for the sink outlives this broker and may notice its end
            assert caplog.text.count("trying again") == 1 and caplog.text.count("is back after") == 1


def test_a_frozen_broker_costs_messages_but_no_memory_and_does_not_keep_the_run_from_ending(tmp_path: Path) -> None:
    small = result(0, (8, 8))
    with broker(tmp_path) as (process, port):
        with opened(port) as sink:
            feed(sink, lambda: sink._backoff.is_up)
            os.kill(process.pid, signal.SIGSTOP)
            sink._transport._line = lambda result: "x" * 2_000_000  # fills the buffers of the system
            while sink.lost < 20:
                sink.write(small, small.frame.bgr)
                client = sink._transport._client
                assert len(sink._waiting) <= MESSAGES and (client is None or len(client._out_packet) <= 2)
        assert not sink._thread.is_alive() and sink.lost >= 20
        os.kill(process.pid, signal.SIGCONT)


def test_a_wrong_password_is_told_and_not_tried_again_soon(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff, "_FIRST_REFUSED_PAUSE_S", 3600.0)
    with broker(tmp_path) as (_, port), opened(port, "hunter2") as sink:
        feed(sink, lambda: "not authorized" in caplog.text)
        feed(sink, lambda: sink.lost > 5)
    assert caplog.text.count("to avoid a locked account") == 1


def test_what_answers_but_is_no_broker_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with opened(other.getsockname()[1]) as sink:
            guest, _ = other.accept()
            with guest:
                guest.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            feed(sink, lambda: "cannot publish to mqtt://***@" in caplog.text)
        with opened(other.getsockname()[1]):  # one that says nothing at all
            pass


@pytest.mark.parametrize("topic", ["a/+", "a/%23", "%00", "x" * 65536])
def test_a_topic_that_cannot_be_written_to_is_refused_at_once(topic: str) -> None:
    with pytest.raises(LineamentError, match="has an invalid topic"):
        open_sink(f"mqtt://127.0.0.1/{topic}")
