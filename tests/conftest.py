"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from landmarks.types import U8, LineamentError

ROOT = Path(__file__).resolve().parent.parent

RTSP_SERVER = """
import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service("0")
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=30/1"
    " ! x264enc tune=zerolatency key-int-max=30 ! rtph264pay name=pay0 )"
)
auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("admin", "p@ss"), token)
server.set_auth(auth)
rights = GstRtspServer.RTSPPermissions()
rights.add_role("user")
for what in ("access", "construct"):
    rights.add_permission_for_role("user", f"media.factory.{what}", True)
factory.set_permissions(rights)
server.get_mount_points().add_factory("/cam", factory)
server.attach(None)
print(server.get_bound_port(), flush=True)
GLib.MainLoop().run()
"""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs an NVIDIA GPU where there is none, and says why there is none."""
    if item.get_closest_marker("gpu"):
        from engines.cuda import first_gpu

        try:
            first_gpu()
        except LineamentError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data, clips and peers that a development machine has and a user's clone does not."""
    folder = Path(os.environ.get("LINEAMENT_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data, not found at {folder}; set LINEAMENT_SHARED")
    return folder


@pytest.fixture(scope="session")
def astronaut() -> U8:
    """(512, 512, 3) BGR: scikit-image's public-domain portrait, face near x 175-275, y 60-170."""
    spec = importlib.util.find_spec("skimage")
    assert spec is not None and spec.origin is not None
    image = cv2.imread(str(Path(spec.origin).parent / "data" / "astronaut.png"))
    assert image is not None
    return np.asarray(image, np.uint8)


@pytest.fixture
def rtsp() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server's process and port; it wants admin and p@ss."""
    system_python = "/usr/bin/python3"  # the bindings come with the system, not with pip
    try:
        server = subprocess.Popen(
            [system_python, "-c", RTSP_SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        pytest.skip("needs /usr/bin/python3 with GStreamer's RTSP server")
    with server:
        assert server.stdout is not None
        port = server.stdout.readline()
        if not port:
            pytest.skip("needs gir1.2-gst-rtsp-server-1.0, python3-gi, gstreamer1.0-plugins-{base,good,bad,ugly}")
        yield server, int(port)
        server.kill()
