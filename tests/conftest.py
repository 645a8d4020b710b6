"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lineament.engines import driver
from lineament.engines.portrait import portrait
from lineament.landmarks.types import U8, LineamentError
from tests.rtsp import rtsp_server

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # a worker ignores Ctrl-C, and what it starts would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the same examples for everybody, so that a change is judged by what it changes; new ones are sought on purpose
# no deadline: a busy machine is no failure
settings.register_profile("same", derandomize=True, deadline=None)
if "LINEAMENT_FUZZ" not in os.environ:
    settings.load_profile("same")


@pytest.fixture(autouse=True)
def forget_the_driver() -> Iterator[None]:
    """It is cached, and some tests fake another."""
    driver.installed.cache_clear()
    yield
    driver.installed.cache_clear()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs an NVIDIA GPU, or the mesh models, where there are none, and says why there are none."""
    try:
        if item.get_closest_marker("gpu"):
            from lineament.engines.cuda import first_gpu

            first_gpu()
        if item.get_closest_marker("mesh"):
            from lineament.engines.mesh import check_installed

            check_installed()
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
    return portrait()


@pytest.fixture
def rtsp() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server's process and port; it wants admin and p@ss."""
    with rtsp_server() as (server, port):
        yield server, port
