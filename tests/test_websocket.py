"""Whoever listens by WebSocket gets the lines of JSON; a slow listener loses some, a stranger's page gets none."""

from __future__ import annotations

import json
import logging
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from lineament.landmarks.types import LineamentError
from lineament.stream.write.files import JsonlSink
from lineament.stream.write.network import MESSAGES
from lineament.stream.write.open import open_sink
from lineament.stream.write.websocket import WebSocketSink
from tests.published import nothing_left, result
from tests.waiting import WAIT_S, until


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left():
        yield


def listening(output: str = "ws://127.0.0.1:0") -> WebSocketSink:
    return cast(WebSocketSink, open_sink(output))


@contextmanager
def client_of(sink: WebSocketSink, path: str = "", **options: Any) -> Iterator[ClientConnection]:
    """Connected, and known to the sink."""
    before = set(sink._clients)
    with connect(f"ws://127.0.0.1:{sink.port}/{path}", **options) as client:
        until(lambda: bool(set(sink._clients) - before))
        yield client


@contextmanager
def deaf_client_of(sink: WebSocketSink) -> Iterator[None]:
    """Connected, and never reads a byte."""
    with socket.create_connection(("127.0.0.1", sink.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        before = set(sink._clients)
        client.sendall((ask + key).encode())
        until(lambda: bool(set(sink._clients) - before))
        yield


def index_of(client: ClientConnection) -> int:
    return cast(int, json.loads(client.recv(WAIT_S))["index"])


def test_every_client_gets_the_lines_of_a_jsonl_file_in_order_and_then_a_good_bye() -> None:
    results, line = [result(index) for index in range(20)], JsonlSink("a.jsonl").line
    with listening() as sink, ExitStack() as stack:
        clients = [stack.enter_context(client_of(sink)) for _ in range(3)]
        for item in results:
            sink.write(item, item.frame.bgr)
        sink.close()
        for client in clients:
            assert [client.recv(WAIT_S) for _ in results] == [line(item) for item in results]
            with pytest.raises(ConnectionClosed, match="the source has ended"):
                client.recv(WAIT_S)
        assert sink.lost == 0


def test_a_slow_client_loses_messages_with_a_count_and_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    wide = [result(index, (8, 8), faces=100) for index in range(40)]  # 100 faces are some 200 KB
    with listening() as sink, client_of(sink) as quick:
        with deaf_client_of(sink):
            got = 0
            while sink.lost < 50:
                item = wide[got % len(wide)]
                sink.write(item, item.frame.bgr)
                assert index_of(quick) == item.frame.index
                got += 1
                assert all(len(client.waiting) <= MESSAGES for client in sink._clients)
                assert got < 5000
        until(lambda: len(sink._clients) == 1)
        lost = sink.lost
        assert lost >= 50  # that it left does not undo it
    assert sink.lost == lost
    assert f"lost {lost} messages" in caplog.text


def test_a_path_may_hold_any_letter_and_what_a_client_asks_beside_it_does_not_matter() -> None:
    with (
        listening("ws://127.0.0.1:0/faces/Tür%20vorn") as sink,
        client_of(sink, "faces/T%C3%BCr%20vorn?since=1") as client,
    ):
        sink.write(result(1), result(1).frame.bgr)
        assert index_of(client) == 1


def test_clients_come_and_go_and_the_writer_does_not_notice() -> None:
    with listening() as sink:
        for index in range(10):
            with client_of(sink) as client:
                sink.write(result(index), result(index).frame.bgr)
                assert index_of(client) == index
                if index % 2:
                    client.socket.shutdown(socket.SHUT_RDWR)  # without a word
            sink.write(result(99), result(99).frame.bgr)
        until(lambda: not sink._clients)


def test_a_client_that_never_reads_does_not_keep_the_run_from_ending() -> None:
    with listening() as sink, deaf_client_of(sink):
        wide = result(0, (8, 8), faces=100)
        for _ in range(MESSAGES):
            sink.write(wide, wide.frame.bgr)
        sink.close()
        assert sink.lost > 0  # what was still waiting


def test_several_sources_share_a_port_under_their_names() -> None:
    with listening("ws://127.0.0.1:0/door") as door, listening(f"ws://127.0.0.1:{door.port}/yard") as yard:
        assert len([t for t in threading.enumerate() if t.name.startswith("websocket")]) == 1
        with client_of(door, "door") as at_door, client_of(yard, "yard") as at_yard:
            door.write(result(1), result(1).frame.bgr)
            yard.write(result(2), result(2).frame.bgr)
            assert (index_of(at_door), index_of(at_yard)) == (1, 2)
            with pytest.raises(LineamentError, match="two outputs would listen"):
                listening(f"ws://127.0.0.1:{door.port}/yard").__enter__()
            yard.close()
            with pytest.raises(ConnectionClosed):
                at_yard.recv(WAIT_S)
            with pytest.raises(InvalidStatus, match="404"), connect(f"ws://127.0.0.1:{door.port}/yard"):
                pass
            door.write(result(3), result(3).frame.bgr)
            assert index_of(at_door) == 3


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "http://127.0.0.1.evil.example", "null", "http://localhost@evil"]
)
def test_a_strangers_page_may_not_listen_to_this_machine(origin: str) -> None:
    with listening() as sink, pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{sink.port}", origin=Origin(origin)).__enter__()


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://127.0.0.1", "https://[::1]:8443"])
def test_a_page_of_this_machine_may(origin: str) -> None:
    with listening() as sink, client_of(sink, origin=origin) as client:
        sink.write(result(1), result(1).frame.bgr)
        assert index_of(client) == 1


def test_everybody_may_who_reaches_an_open_address_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with listening("ws://0.0.0.0:0") as sink, client_of(sink, origin="https://dashboard.example"):
        pass
    assert "anyone who can reach 0.0.0.0" in caplog.text


def test_a_client_that_talks_is_not_heard_and_one_that_shouts_is_sent_away() -> None:
    with listening() as sink, client_of(sink) as client:
        for _ in range(50):
            client.send("hello" * 50)
        sink.write(result(7), result(7).frame.bgr)
        assert index_of(client) == 7
        client.send("x" * 5000)
        with pytest.raises(ConnectionClosed, match="1009"):
            client.recv(WAIT_S)


def test_more_clients_than_it_can_serve_are_told_so() -> None:
    with listening() as sink, ExitStack() as stack:
        for _ in range(15):
            stack.enter_context(client_of(sink))
        with (
            client_of(sink),
            connect(f"ws://127.0.0.1:{sink.port}") as one_more,
            pytest.raises(ConnectionClosed, match="limit of 16 clients reached"),
        ):
            one_more.recv(WAIT_S)
        until(lambda: len(sink._clients) == 15)
        with client_of(sink) as client:
            sink.write(result(5), result(5).frame.bgr)
            assert index_of(client) == 5


def test_what_is_no_websocket_gets_an_answer_and_makes_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with listening() as sink:
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(f"http://127.0.0.1:{sink.port}/", timeout=WAIT_S)
        answer.value.close()
        with socket.create_connection(("127.0.0.1", sink.port)) as wild:
            wild.sendall(b"\xff\x00 nonsense\r\n\r\n" * 10)
            wild.settimeout(WAIT_S)
            while wild.recv(4096):
                pass
        with client_of(sink) as client:
            sink.write(result(5), result(5).frame.bgr)
            assert index_of(client) == 5
    assert all("landmarks: ws://" in message for message in caplog.messages)


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LineamentError, match=rf"cannot serve on 127\.0\.0\.1:{port}: address already in use"):
            listening(f"ws://127.0.0.1:{port}").__enter__()
    with pytest.raises(LineamentError, match=r"cannot serve on nowhere\.invalid:1"):
        listening("ws://nowhere.invalid:1").__enter__()


def test_writing_to_what_is_not_open_is_a_fault() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        listening().write(result(0), result(0).frame.bgr)
