"""What a run tells other programs: true numbers in Prometheus' format, no password, and to nobody unless asked."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lineament.demo.bench import chromium
from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.read.open import open_source
from lineament.stream.run.cameras import Camera
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.run.stats import BUCKETS_S, Stats
from lineament.stream.run.supervisor import Supervisor
from lineament.stream.watch.http import Monitor
from tests.blobs import CARD, BlobLandmarker
from tests.rtsp import rtsp_server
from tests.waiting import WAIT_S, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LINE = re.compile(r'(?P<name>[a-z_]+)(\{(?P<labels>([a-z_]+="([^"\\]|\\.)*",?)+)\})? (?P<value>[-+0-9.e]+)$')


def ask(monitor: Monitor, path: str, method: str = "GET", **headers: str) -> tuple[int, Message, str]:
    url = f"http://127.0.0.1:{monitor.port}{path}"
    request = urllib.request.Request(url, headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read().decode()


def get(monitor: Monitor, path: str) -> tuple[int, str]:
    status, _, text = ask(monitor, path)
    return status, text


def metrics(text: str) -> dict[tuple[str, str], float]:
    """(name, labels) -> value; every line must be in Prometheus' format and belong to a family that was announced."""
    values, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "gauge", "histogram") and name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = LINE.match(line)
            assert match, line
            assert match["name"] in kinds or re.sub("_(bucket|sum|count)$", "", match["name"]) in kinds
            values[match["name"], match["labels"] or ""] = float(match["value"])
    return values


@pytest.fixture(scope="module")
def run() -> Iterator[tuple[Supervisor, Monitor]]:
    """A camera that shows pictures and one that is out of reach, watched by a monitor."""
    with rtsp_server() as (_, port):
        cameras = [
            Camera("good", f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam"),
            Camera("dead", "rtsp://admin:hunter2@127.0.0.1:1/x"),
        ]
        shared = SharedLandmarker(BlobLandmarker())
        with (
            Supervisor(SessionConfig(), cameras, shared) as supervisor,
            Monitor(
                lambda: {worker.name: worker.session for worker in supervisor.workers}, CARD, 0, shared=shared
            ) as monitor,
        ):
            good, dead = supervisor.workers
            until(lambda: good.session.stats.frames > 20 and dead.session.trouble is not None)
            yield supervisor, monitor


def test_the_numbers_are_those_of_the_run(run: tuple[Supervisor, Monitor]) -> None:
    (good, _), monitor = run[0].workers, run[1]
    before = good.session.stats.frames
    status, text = get(monitor, "/metrics")
    values = metrics(text)
    assert status == 200
    assert before <= values["lineament_frames_total", 'source="good"'] <= good.session.stats.frames
    assert values["lineament_frames_total", 'source="dead"'] == 0
    assert values["lineament_up", 'source="good"'] == 1 and values["lineament_up", 'source="dead"'] == 0
    assert values["lineament_lost_seconds_total", 'source="dead"'] > 0
    assert values["lineament_fps", 'source="good"'] > 0
    assert 0 <= values["lineament_stale_frames_total", 'source="good"'] <= good.session.stale
    assert values["lineament_engine_info", f'model="{CARD.name}",precision="fp32",schema="wflw98"'] == 1
    assert values["process_open_fds", ""] > 3 and values["process_resident_memory_bytes", ""] > 1e7


def test_counters_and_histograms_only_grow_and_add_up(run: tuple[Supervisor, Monitor]) -> None:
    supervisor, monitor = run
    first = metrics(get(monitor, "/metrics")[1])
    frames = supervisor.workers[0].session.stats.frames
    until(lambda: supervisor.workers[0].session.stats.frames > frames + 5)
    then = metrics(get(monitor, "/metrics")[1])
    for (name, labels), value in first.items():
        if name.endswith(("_total", "_bucket", "_sum", "_count")):
            assert then[name, labels] >= value, name
    age = 'source="good",stage="age"'
    buckets = [v for (name, labels), v in then.items() if name.endswith("_bucket") and labels.endswith(age)]
    assert buckets == sorted(buckets) and len(buckets) == len(BUCKETS_S) + 1
    assert buckets[-1] == then["lineament_stage_seconds_count", age] > first["lineament_stage_seconds_count", age]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "text/plain;version=1.0.0;escaping=underscores",
            "text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
        (
            "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
        ("application/openmetrics-text;version=one", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_prometheus_gets_the_format_that_it_accepts(
    run: tuple[Supervisor, Monitor], accept: str | None, wanted: str
) -> None:
    status, headers, text = ask(run[1], "/metrics", **({"Accept": accept} if accept else {}))
    assert (status, headers["Content-Type"]) == (200, wanted)
    assert text.endswith("# EOF\n") == wanted.startswith("application/")
    parse = openmetrics if wanted.startswith("application/") else text_string_to_metric_families
    assert {"lineament_frames", "lineament_stage_seconds"} <= {family.name for family in parse(text)}


def test_readiness_names_the_source_that_shows_nothing_and_health_does_not_mind_it(
    run: tuple[Supervisor, Monitor],
) -> None:
    _, monitor = run
    status, text = get(monitor, "/readyz")
    assert status == 503
    assert list(json.loads(text)["why"]) == ["dead"] and "connection refused" in json.loads(text)["why"]["dead"]
    assert get(monitor, "/healthz") == (200, '{"ok": true, "ended": {}}')


def test_no_answer_holds_a_password(run: tuple[Supervisor, Monitor]) -> None:
    for path in ("/metrics", "/healthz", "/readyz", "/", "/status.json", "/metrics?x=1", "/../etc/passwd"):
        status, text = get(run[1], path)
        assert "hunter2" not in text and "p%40ss" not in text and "admin" not in text
        assert status in (200, 503, 404)


def test_the_status_says_how_the_run_and_each_source_goes(run: tuple[Supervisor, Monitor]) -> None:
    (good, _), monitor = run[0].workers, run[1]
    before = good.session.stats.frames
    status = json.loads(get(monitor, "/status.json")[1])
    first, second = status["sources"]
    assert status["engine"] == {"model": CARD.name, "schema": "wflw98", "precision": "fp32"}
    assert status["memory_bytes"] > 1e7 and status["uptime_s"] > 0 and status["batches"] == status["crops"] == 0
    assert (first["name"], first["state"], first["why"]) == ("good", "ok", None)
    assert before <= first["frames"] <= good.session.stats.frames and 0 < first["age_p50_ms"] <= first["age_p95_ms"]
    assert (second["name"], second["state"], second["age_p50_ms"]) == ("dead", "down", None)
    assert re.match(r"no picture for \d+ s: cannot open rtsp://\*\*\*@127.0.0.1:1/x: connection refused", second["why"])


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics", "/healthz", "/readyz", "/favicon.ico", "/../x"])
def test_every_answer_forbids_a_browser_all_but_the_page(run: tuple[Supervisor, Monitor], path: str) -> None:
    status, headers, text = ask(run[1], path)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"]) == ("nosniff", "DENY")
    assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    assert (status == 404) == (path in ("/favicon.ico", "/../x"))
    head_status, head, nothing = ask(run[1], path, "HEAD")
    assert (head_status, nothing, head["Content-Type"]) == (status, "", headers["Content-Type"])
    assert int(headers["Content-Length"]) == len(text.encode())


def test_what_only_tells_takes_no_orders(run: tuple[Supervisor, Monitor]) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        status, headers, _ = ask(run[1], "/", method)
        assert status == 501 and "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize("host", ["localhost", "localhost:9100", "127.0.0.1", "127.0.0.1:1", "127.1.2.3", "[::1]:80"])
def test_this_machine_may_ask_by_any_of_its_own_names(run: tuple[Supervisor, Monitor], host: str) -> None:
    assert ask(run[1], "/metrics", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9100", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::"]
)
def test_a_page_from_elsewhere_that_rebinds_its_name_to_this_machine_reads_nothing(
    run: tuple[Supervisor, Monitor], host: str
) -> None:
    for path in ("/", "/status.json", "/metrics", "/readyz", "/nowhere"):
        status, _, text = ask(run[1], path, Host=host)
        assert status == 403 and "lineament" not in text and "good" not in text


def test_two_hosts_are_both_looked_at_and_none_is_no_browser() -> None:
    here, everybody = Monitor(dict, CARD, 0), Monitor(dict, CARD, 0, "0.0.0.0")
    assert here.may_ask([]) and here.may_ask(["localhost"]) and not here.may_ask(["localhost", "evil.example"])
    assert everybody.may_ask(["any.example"]), "its names are not known where others may ask"


# ---- the page in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api")
    executable = chromium()
    if executable is None:
        pytest.skip("needs a browser; apt-get install chromium")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visit(browser: Browser, monitor: Monitor, **context: Any) -> Iterator[Page]:
    """The page; nothing on it may fail, come from elsewhere or be refused by its own policy."""
    wrong: list[str] = []
    here = f"http://127.0.0.1:{monitor.port}/"
    with browser.new_context(**context) as visitor:
        page = visitor.new_page()
        page.set_default_timeout(WAIT_S * 1e3)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: None if request.url.startswith(here) else wrong.append(request.url))
        page.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        page.goto(here)
        page.locator("tbody tr").first.wait_for()
        yield page
    assert wrong == []


def a_session(frames: int = 0) -> Session:
    """Not run, but fed."""
    session = Session(SessionConfig(), open_source("sample"), BlobLandmarker(), ())
    feed(session, frames)
    return session


def feed(session: Session, frames: int) -> None:
    for _ in range(frames):
        session.stats.add(Result(Frame(np.zeros((4, 4, 3), np.uint8), "clip", 0, 0.0, 0.0), (), {"age": 12.3}))


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_the_page_shows_every_source_and_goes_on_showing_how_it_goes(browser: Browser) -> None:
    sessions = {"door": a_session(3)}
    with Monitor(lambda: sessions, CARD, 0) as monitor, visit(browser, monitor) as page:
        door = page.get_by_role("row", name="door")
        assert "ok" in door.inner_text() and "12.3 / 12.3" in door.inner_text()
        assert page.get_by_role("status").inner_text() == "1 source, all ok"
        assert CARD.name in page.locator("#run").inner_text()
        sessions["yard"] = a_session()
        yard = page.get_by_role("row", name="yard")
        yard.wait_for()
        assert "down" in yard.inner_text() and "no picture for" in yard.inner_text()
        assert page.get_by_role("status").inner_text() == "2 sources, 1 without a picture"
        assert page.title().startswith("1 of 2 down")
        feed(sessions["yard"], 1)
        page.get_by_role("status").get_by_text("2 sources, all ok").wait_for()


def test_a_name_and_a_reason_are_shown_as_what_they_are_and_never_run(browser: Browser) -> None:
    wild = a_session()
    wild.fault = HOSTILE
    with Monitor(lambda: {HOSTILE: wild}, CARD, 0) as monitor, visit(browser, monitor) as page:
        assert page.locator("tbody th").inner_text() == HOSTILE
        assert page.locator("td.state small").inner_text() == HOSTILE
        assert page.locator("img, tbody script").count() == 0


def test_the_page_is_paused_by_keyboard_and_goes_on(browser: Browser) -> None:
    sessions = {"door": a_session(3)}
    with Monitor(lambda: sessions, CARD, 0) as monitor, visit(browser, monitor) as page:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.get_by_role("button", name="Pause", pressed=True).is_visible()
        sessions["yard"] = a_session()
        page.evaluate("ask()")
        assert page.locator("tbody tr").count() == 1
        page.keyboard.press("Enter")
        page.get_by_role("row", name="yard").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_the_page_fits_every_width_and_can_be_read_in_light_and_dark(browser: Browser, width: int, scheme: str) -> None:
    wild = a_session()
    wild.fault = "no-space-to-break-at-" * 20
    sessions = {"door": a_session(3), "a" * 64: wild}
    context = {"viewport": {"width": width, "height": 700}, "color_scheme": scheme}
    with Monitor(lambda: sessions, CARD, 0) as monitor, visit(browser, monitor, **context) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert (
            page.evaluate("document.querySelector('.panel').scrollWidth - document.querySelector('.panel').clientWidth")
            <= 0
        )
        for row in page.get_by_role("row").all()[1:]:
            assert row.get_by_role("cell").count() == 6
        colours = page.evaluate("(c => [c.color, c.backgroundColor])(getComputedStyle(document.body))")
        ink, ground = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
        assert ink > ground + 400 if scheme == "dark" else ground > ink + 400


def test_a_run_that_is_over_is_said_to_be(browser: Browser) -> None:
    with Monitor(lambda: {"door": a_session(3)}, CARD, 0) as monitor, visit(browser, monitor) as page:
        monitor.__exit__()
        page.evaluate("ask()")
        page.get_by_role("status").get_by_text("no answer").wait_for()


# ---- its edges


def test_a_caller_that_says_nothing_or_nonsense_is_let_go(run: tuple[Supervisor, Monitor]) -> None:
    _, monitor = run
    with socket.create_connection(("127.0.0.1", monitor.port)) as silent:
        with socket.create_connection(("127.0.0.1", monitor.port)) as wild:
            wild.sendall(b"\xff\x00 nonsense\r\n\r\n" * 10)
        assert get(monitor, "/healthz")[0] == 200
        silent.settimeout(WAIT_S)
        assert silent.recv(1) == b""


def test_a_caller_that_goes_on_asking_keeps_nobody_waiting(run: tuple[Supervisor, Monitor]) -> None:
    _, monitor = run
    heard, hung_up = threading.Event(), threading.Event()

    def drip() -> None:
        with socket.create_connection(("127.0.0.1", monitor.port)) as caller, suppress(OSError):
            caller.sendall(b"GET /healthz HTTP/1.0\r\nX-Slow: ")
            heard.set()
            for _ in range(int(2 * WAIT_S / 0.2)):
                caller.sendall(b"a")
                time.sleep(0.2)
            return
        hung_up.set()

    dripping = threading.Thread(target=drip, name="drips")
    dripping.start()
    assert heard.wait(WAIT_S)
    assert get(monitor, "/healthz")[0] == 200
    dripping.join()
    assert hung_up.is_set()


def test_when_every_source_has_ended_the_run_is_not_healthy() -> None:
    shared = SharedLandmarker(BlobLandmarker())
    with (
        Supervisor(SessionConfig(), [Camera("gone", "gone.mp4")], shared) as supervisor,
        Monitor(lambda: {"gone": supervisor.workers[0].session}, CARD, 0) as monitor,
    ):
        until(lambda: not supervisor.running)
        status, text = get(monitor, "/healthz")
        assert status == 503 and "no such file" in json.loads(text)["ended"]["gone"]
    assert not [thread for thread in threading.enumerate() if thread.name == f"monitor {monitor.port}"]


def test_a_port_that_is_taken_is_one_clear_error_and_only_this_machine_is_served() -> None:
    with Monitor(dict, CARD, 0) as first:
        with pytest.raises(LineamentError, match="address already in use"):
            Monitor(dict, CARD, first.port).__enter__()
        other = "127.0.0.2"  # this machine by another of its addresses
        with pytest.raises(OSError), socket.create_connection((other, first.port), timeout=2):
            pass
    for wrong in (-1, 70000):
        with pytest.raises(LineamentError, match="cannot serve"):
            Monitor(dict, CARD, wrong).__enter__()


def test_histograms_count_every_frame_though_percentiles_forget() -> None:
    stats = Stats()
    for ms in (0.5, 1.0, 1.1, 60.0, 99_999.0):
        stats.add(Result(Frame(np.zeros((4, 4, 3), np.uint8), "clip", 0, 0.0, 0.0), (), {"age": ms}))
    counts, sum_s = stats.histograms()["age"]
    assert counts == [2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1] and sum_s == pytest.approx(100.0616)
