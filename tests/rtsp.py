"""RTSP servers for tests, which skip where they are absent, and a bad line to them: a relay that changes, delays and
cuts what it carries.
"""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from lineament.landmarks.types import LineamentError
from lineament.stream import local_cameras
from lineament.stream.local_cameras import H264, H265
from tests.waiting import beside

__all__ = ["H264", "H265", "rtsp_recorder", "rtsp_server", "tcp_relay", "tcp_server"]

Server = Iterator[tuple[subprocess.Popen[str], int]]


@contextmanager
def rtsp_server(*args: Any, **settings: Any) -> Server:
    """local_cameras.rtsp_server; skips the test where GStreamer's RTSP server is absent."""
    with _or_skip(local_cameras.rtsp_server(*args, **settings)) as server:
        yield server


@contextmanager
def rtsp_recorder(target: Path, *args: Any, **settings: Any) -> Server:
    """local_cameras.rtsp_recorder; skips the test where GStreamer's RTSP server is absent."""
    with _or_skip(local_cameras.rtsp_recorder(target, *args, **settings)) as server:
        yield server


@contextmanager
def _or_skip(server: AbstractContextManager[tuple[subprocess.Popen[str], int]]) -> Server:
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except LineamentError as error:
            pytest.skip(str(error))
        yield running


Fault = Callable[[random.Random, bytes], Iterator[bytes | float]]
"""What becomes of a piece of what a server sends: bytes to pass on, and numbers, seconds to wait."""


@contextmanager
def tcp_relay(to: int, fault: Fault) -> Iterator[int]:
    """Its port; carries connections on to a port of this machine, and what comes back as fault says, seed 0."""
    rng = random.Random(0)
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)

        def carry(source: socket.socket, target: socket.socket, changed: Fault, stopped: threading.Event) -> None:
            with suppress(OSError):
                while not stopped.is_set():
                    try:
                        data = source.recv(16384)
                    except TimeoutError:
                        continue
                    for piece in changed(rng, data):
                        if isinstance(piece, float):
                            stopped.wait(piece)
                        else:
                            target.sendall(piece)
                    if not data:
                        break
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        def accept(stopped: threading.Event) -> None:
            for caller in _callers(listening, stopped):
                server = socket.create_connection(("127.0.0.1", to))
                for one, other, changed in ((caller, server, _unchanged), (server, caller, fault)):
                    stack.callback(one.close)
                    one.settimeout(0.1)
                    thread = threading.Thread(target=carry, args=(one, other, changed, stopped), name="relay")
                    stack.callback(thread.join, 60.0)
                    thread.start()

        with beside(accept, "relay's door"):
            yield listening.getsockname()[1]


def _callers(listening: socket.socket, stopped: threading.Event) -> Iterator[socket.socket]:
    """Whoever connects, until stopped."""
    while not stopped.is_set():
        with suppress(TimeoutError):
            yield listening.accept()[0]


def _unchanged(rng: random.Random, data: bytes) -> Iterator[bytes | float]:
    yield data


@contextmanager
def tcp_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Its port; talks to one caller after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.1)

        def serve(stopped: threading.Event) -> None:
            for caller in _callers(listening, stopped):
                with caller, suppress(OSError):
                    caller.settimeout(0.5)
                    talk(caller)

        with beside(serve, "tcp server"):
            yield listening.getsockname()[1]
