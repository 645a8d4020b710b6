"""Network cameras on loopback, for `make soak`, `make cluster-demo` and tests.

RTSP by GStreamer's server, in a process that can be frozen or killed; MJPEG over HTTP by Python alone. And an RTSP
server that records what is published to it, like MediaMTX.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np

from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.sample import Sample

H264 = "x264enc tune=zerolatency key-int-max=30 ! rtph264pay name=pay0"
H265 = "x265enc tune=zerolatency speed-preset=ultrafast key-int-max=30 ! rtph265pay config-interval=1 name=pay0"

_NEEDS = (
    "an RTSP server needs GStreamer: apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
    "gstreamer1.0-plugins-{base,good,bad,ugly}"
)
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
    """The server's process and port. It serves /cam to admin with that password.

    port: 0 for a free one. picture: a .png to show instead of a test pattern. Raises LineamentError without GStreamer.
    """
    source = "videotestsrc is-live=true"
    if picture:
        source = f"filesrc location={picture} ! pngdec ! imagefreeze is-live=true ! videoconvert ! videoscale"
    raw = f"video/x-raw,width={size_hw[1]},height={size_hw[0]},framerate={fps}/1"
    with _server(port, password, "/cam", f"( {source} ! {raw} ! {codec} )") as server:
        yield server


@contextmanager
def rtsp_recorder(target: Path, port: int = 0, password: str = "p@ss") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and port of a server that accepts H.264 from admin at /record and writes it to target, a .ts."""
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
        raise LineamentError(f"no /usr/bin/python3; {_NEEDS}") from None
    with server:
        assert server.stdout is not None
        bound = server.stdout.readline()
        if not bound:
            raise LineamentError(_NEEDS)
        try:
            yield server, int(bound)
        finally:
            server.kill()


@contextmanager
def mjpeg_server(pictures: Sequence[U8], fps: float = 10.0) -> Iterator[str]:
    """The address of a camera that plays the pictures forwards and backwards. Any path is the same camera."""
    jpegs = [cv2.imencode(".jpg", bgr)[1].tobytes() for bgr in pictures]
    around = [*jpegs, *jpegs[-2:0:-1]]
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=cut")
            self.end_headers()
            began_s, sent = time.monotonic(), 0
            while not ended.wait(max(0.0, began_s + sent / fps - time.monotonic())):
                # by the clock: a client that reconnects finds the camera further on, like a real one
                jpeg = around[int(time.monotonic() * fps) % len(around)]
                head = f"--cut\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                try:
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                except OSError:  # the client has disconnected
                    return
                sent += 1

        def log_message(self, format: str, *args: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="mjpeg")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            ended.set()
            server.shutdown()
            thread.join()


def turning_head(size_hw: tuple[int, int] = (480, 640), fps: float = 10.0) -> list[U8]:
    """The part of the sample in which the face stays near, so that a tracker that resumes always finds it again."""
    sample = Sample(size_hw)
    return [np.ascontiguousarray(sample.render(round(i * sample.fps / fps))) for i in range(round(2 * fps))]
