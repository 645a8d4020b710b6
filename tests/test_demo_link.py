"""A lasting link to the demo, as docs/demo.md describes it: a Gradio Space, or a reverse proxy with TLS."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from playwright.sync_api import Browser, expect
from starlette.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from lineament.demo.bench import free_port
from lineament.demo.config import DemoConfig
from lineament.demo.guard import from_own_page
from lineament.landmarks.types import LineamentError
from tests.demo_files import sample_clip
from tests.demo_server import (
    ROOT,
    Server,
    browsing,
    opens_an_absent_camera,
    running,
    served,
    serving,
    tab,
    upload,
    visit,
)
from tests.waiting import WAIT_S, started, until

SPACE = ROOT / "demo" / "space"
DOCS = (ROOT / "docs" / "demo.md").read_text()
LOGIN = ("ann", "secret")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("camera")) as browser:
        yield browser


# ---- Gradio Space


def test_the_space_runs_the_pinned_gradio_and_names_its_files() -> None:
    front = yaml.safe_load((SPACE / "README.md").read_text().split("---\n")[1])
    pin = re.search(r"^gradio==(.*)$", (ROOT / "requirements-demo.txt").read_text(), re.M)
    assert pin is not None and front["sdk"] == "gradio" and front["sdk_version"] == pin[1]
    assert (SPACE / front["app_file"]).is_file() and front["license"] == "apache-2.0"
    assert front["title"] and front["emoji"] and len(front["short_description"]) <= 60  # the Hub refuses longer ones
    python = tuple(map(int, front["python_version"].split(".")))
    assert (3, 11) <= python <= (3, 14)
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    (required,) = [Requirement(line) for line in lines if not line.startswith("#")]
    assert required.name == "lineament" and required.extras == {"demo"}


def test_the_space_starts_from_its_folder_alone_and_shows_faces(browser: Browser, tmp_path: Path) -> None:
    """As the Hub runs it: on all addresses, behind a proxy that ends TLS, with its environment."""
    folder, port = tmp_path / "space", free_port()
    shutil.copytree(SPACE, folder)
    env = {"PYTHONPATH": str(ROOT), "GRADIO_SERVER_PORT": str(port), "SPACE_ID": "ann/lineament", "SYSTEM": "spaces"}
    env["SPACE_HOST"] = "ann-lineament.hf.space"
    with served([sys.executable, "app.py"], folder, port, tmp_path, **env) as space:
        assert "the Camera tab is disabled" in space.log.read_text()
        with visit(browser, space) as page:
            assert page.locator("#camera").count() == 0
            page.click("#live [data-ln=sample]")
            running(page)
        behind = {"Host": "ann-lineament.hf.space", "X-Forwarded-Proto": "https"}
        request = urllib.request.Request(space.url + "config", headers=behind)
        with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
            assert json.load(reply)["root"] == "https://ann-lineament.hf.space"


# ---- reverse proxy


@pytest.mark.slow
@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_behind_a_documented_proxy_everything_works_with_tls_and_a_login(
    browser: Browser, tmp_path: Path, proxy: str
) -> None:
    if shutil.which(proxy) is None:
        pytest.skip(f"needs {proxy}; apt-get install {'nginx-light' if proxy == 'nginx' else proxy}")
    port = free_port()
    address = f"https://localhost:{port}/faces"
    with (
        serving(tmp_path, "--root-path", address, LINEAMENT_AUTH=":".join(LOGIN)) as direct,
        proxied(proxy, port, direct, tmp_path),
    ):
        server = replace(direct, url=address + "/")
        assert f"everyone who can reach {address} can use this demo" in server.log.read_text()
        with visit(browser, server, login=LOGIN, ignore_https_errors=True) as page:
            page.click("#live [data-ln=start]")
            running(page)
            opens_an_absent_camera(page)
            tab(page, "Video")
            upload(page, "video-file", sample_clip(tmp_path / "a.mp4", frames=10))
            page.get_by_role("button", name="Annotate").click()
            expect(page.locator("#video-result")).to_contain_text("10 frames, 1 face")
            page.wait_for_function("document.querySelector('#video-result video').readyState >= 2")
            forged = {"Origin": "https://elsewhere.example", "X-Forwarded-Host": "elsewhere.example"}
            trusted = ssl.create_default_context(cafile=str(tmp_path / "proxy.crt"))
            for headers, says in (
                ({"Origin": f"https://localhost:{port}"}, "connection refused"),
                ({"Origin": "https://elsewhere.example"}, "from the demo's own page only"),
                (forged, "from the demo's own page only"),
            ):
                ticket = page.evaluate("Lineament.views.webcam.server.ticket(0)")
                url = f"{address.replace('https', 'wss', 1)}/lineament/camera?ticket={ticket}"
                assert says in camera_error(url, headers, trusted)
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


def camera_error(url: str, headers: dict[str, str], trusted: ssl.SSLContext) -> str:
    """The error of a camera view for an address that nobody listens on."""
    with connect(url, ssl=trusted, additional_headers=headers) as camera:
        with suppress(ConnectionClosed):  # a refused socket may be closed already
            camera.send(json.dumps({"url": f"rtsp://127.0.0.1:{free_port()}/live"}))
        error: str = json.loads(camera.recv(timeout=WAIT_S))["error"]
    return error


@contextmanager
def proxied(proxy: str, port: int, demo: Server, folder: Path) -> Iterator[None]:
    """The documented proxy, with other ports and a certificate of its own."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "proxy.key", "-out", "proxy.crt"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    (documented,) = re.findall(rf"^```{proxy}\n(.*?)^```", DOCS, re.M | re.S)
    text = documented.replace("127.0.0.1:7860", demo.url.removeprefix("http://").rstrip("/"))
    if proxy == "nginx":
        text = text.replace("443 ssl", f"127.0.0.1:{port} ssl").replace("demo.example;", "localhost;", 1)
        text = re.sub(r"/etc/letsencrypt\S*/fullchain.pem", str(folder / "proxy.crt"), text)
        text = re.sub(r"/etc/letsencrypt\S*/privkey.pem", str(folder / "proxy.key"), text)
        own = "".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        # a worker of another user could not write there
        main = f"user {getpass.getuser()}; pid {folder}/nginx.pid; daemon off; events {{}}"
        text = f"{main} http {{ access_log off; {own} {text} }}"
        command = ["nginx", "-p", str(folder), "-e", str(folder / "proxy.log"), "-c", str(folder / "proxy.conf")]
    else:
        text = text.replace("demo.example {", f"https://localhost:{port} {{\n    tls proxy.crt proxy.key", 1)
        text = f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{text}"
        command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(folder / "proxy.conf")]
    (folder / "proxy.conf").write_text(text)
    env = {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    options = {"env": env, "stderr": subprocess.STDOUT}
    with (
        (folder / "proxy.out").open("w") as out,
        started(command, cwd=folder, stdout=out, **options) as process,
    ):
        try:
            until(lambda: _listens(port) or process.poll() is not None, (folder / "proxy.out").read_text)
            assert process.poll() is None, (folder / "proxy.out").read_text()
            yield
        finally:
            process.terminate()  # nginx then ends its workers, too
            process.wait(WAIT_S)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


# ---- which page is the demo's own


@pytest.mark.parametrize(
    ("root_path", "headers", "own"),
    [
        # the proxy passes Host, rewrites it, or says where it was asked
        ("", {"host": "demo.example", "origin": "https://demo.example"}, True),
        ("", {"host": "127.0.0.1:7860", "origin": "https://demo.example"}, False),
        ("", {"host": "127.0.0.1", "x-forwarded-host": "demo.example", "origin": "https://demo.example"}, True),
        ("", {"host": "127.0.0.1", "x-forwarded-host": "demo.example, inner", "origin": "https://demo.example"}, True),
        ("/faces", {"host": "demo.example", "origin": "https://elsewhere.example"}, False),
        # a configured address holds, whatever a request says
        ("https://demo.example/faces", {"host": "127.0.0.1:7860", "origin": "https://demo.example"}, True),
        ("https://Demo.example:8443", {"host": "127.0.0.1", "origin": "https://demo.example:8443"}, True),
        ("https://demo.example", {"host": "elsewhere.example", "origin": "https://elsewhere.example"}, False),
        (
            "https://demo.example",
            {"x-forwarded-host": "elsewhere.example", "origin": "https://elsewhere.example"},
            False,
        ),
        ("https://demo.example", {"host": "demo.example", "origin": "null"}, False),
        ("https://demo.example", {"host": "demo.example", "origin": "https://demo.example.evil.example"}, False),
        # a program sends no Origin
        ("https://demo.example", {"host": "demo.example"}, True),
    ],
)
def test_only_a_page_of_the_demos_own_address_opens_cameras(root_path: str, headers: dict[str, str], own: bool) -> None:
    cfg = DemoConfig(root_path=root_path, auth="ann:secret")
    assert from_own_page(Headers(headers), login=True, own_host=cfg.own_host) is own


def test_a_demo_behind_a_proxy_is_public() -> None:
    for root_path in ("/faces", "https://demo.example"):
        assert DemoConfig(root_path=root_path).public and not DemoConfig(root_path=root_path).camera_tab
        assert DemoConfig(root_path=root_path, auth="ann:secret").camera_tab
    for wrong in ("faces", "demo.example/faces", "//demo.example", "https://", "ftp://demo.example"):
        with pytest.raises(LineamentError, match="--root-path must be a path or an address, got"):
            DemoConfig(root_path=wrong)
