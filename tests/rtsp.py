"""Real RTSP servers on loopback: Debian's GStreamer, in a process of its own that a test may freeze or kill.

One is a camera, the other takes what is published to it, as MediaMTX does. And a bad line to them: a relay that
changes, holds up and cuts what it carries.
"""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.waiting import beside

H264 = "x264enc tune=zerolatency key-int-max=30 ! rtph264pay name=pay0"
H265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=30 ! rtph265pay config-interval=1 name=pay0"

_SERVER = """
import sys
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
port, password, path, launch = sys.argv[1:]
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(port)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(launch)
if path == "/record":
    factory.set_transport_mode(GstRtspServer.RTSPTransportMode.RECORD)
auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("admin", password), token)
server.set_auth(auth)
rights = GstRtspServer.RTSPPermissions()
rights.add_role("user")
for what in ("access", "construct"):
    rights.add_permission_for_role("user", f"media.factory.{what}", True)
factory.set_permissions(rights)
server.get_mount_points().add_factory(path, factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


@contextmanager
def rtsp_server(
    port: int = 0,
    size_hw: tuple[int, int] = (240, 320),
    codec: str = H264,
    password: str = "p@ss",
    fps: int = 30,
    picture: str = "",
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The server's process and port; it shows /cam to admin with that password.

    port: 0 for a free one. picture: a .png to show instead of a test pattern.
    """
    source = "videotestsrc is-live=true"
    if picture:
        source = f"filesrc location={picture} ! pngdec ! imagefreeze is-live=true ! videoconvert ! videoscale"
    raw = f"video/x-raw,width={size_hw[1]},height={size_hw[0]},framerate={fps}/1"
    with _server(port, password, "/cam", f"( {source} ! {raw} ! {codec} )") as server:
        yield server


@contextmanager
def rtsp_recorder(target: Path, port: int = 0, password: str = "p@ss") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and port of a server that lets admin publish H.264 to /record, and writes it to target, a .ts."""
    write = f"h264parse ! mpegtsmux ! filesink location={target} buffer-mode=unbuffered"
    with _server(port, password, "/record", f"( rtph264depay name=depay0 ! {write} )") as server:
        yield server


@contextmanager
def _server(port: int, password: str, path: str, launch: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    system_python = "/usr/bin/python3"  # the bindings come with the system, not with pip
    settings = [str(port), password, path, launch]
    try:
        server = subprocess.Popen(
            [system_python, "-c", _SERVER, *settings], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except FileNotFoundError:
        pytest.skip("needs /usr/bin/python3 with GStreamer's RTSP server")
    with server:
        assert server.stdout is not None
        bound = server.stdout.readline()
        if not bound:
            pytest.skip("needs gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-{base,good,bad,ugly}")
        try:
            yield server, int(bound)
        finally:
            server.kill()


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
