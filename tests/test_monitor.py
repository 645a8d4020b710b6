"""What a run tells other programs: true numbers in Prometheus' format, no password, and to nobody unless asked."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from landmarks.types import Frame, LineamentError, Result
from stream.cameras import Camera
from stream.many import Watch
from stream.monitor import Monitor, _labels
from stream.report import BUCKETS_S, Report
from stream.session import SessionConfig
from stream.shared import SharedLandmarker
from tests.blobs import CARD, BlobLandmarker
from tests.rtsp import rtsp_server

WAIT_S = 20.0
LINE = re.compile(r'(?P<name>[a-z_]+)(\{(?P<labels>([a-z_]+="([^"\\]|\\.)*",?)+)\})? (?P<value>[-+0-9.e]+)$')


def until(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.01)


def get(monitor: Monitor, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{monitor.port}{path}", timeout=WAIT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


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
def run() -> Iterator[tuple[Watch, Monitor]]:
    """A camera that shows pictures and one that is out of reach, watched by a monitor."""
    with rtsp_server() as (_, port):
        cameras = [
            Camera("good", f"rtsp://admin:p%40ss@127.0.0.1:{port}/cam"),
            Camera("dead", "rtsp://admin:hunter2@127.0.0.1:1/x"),
        ]
        shared = SharedLandmarker(BlobLandmarker())
        with (
            Watch(SessionConfig(), cameras, shared) as watch,
            Monitor(lambda: {post.name: post.session for post in watch.posts}, CARD, 0, shared=shared) as monitor,
        ):
            good, dead = watch.posts
            until(lambda: good.session.report.frames > 20 and dead.session.trouble is not None)
            yield watch, monitor


def test_the_numbers_are_those_of_the_run(run: tuple[Watch, Monitor]) -> None:
    (good, _), monitor = run[0].posts, run[1]
    before = good.session.report.frames
    status, text = get(monitor, "/metrics")
    values = metrics(text)
    assert status == 200
    assert before <= values["lineament_frames_total", 'source="good"'] <= good.session.report.frames
    assert values["lineament_frames_total", 'source="dead"'] == 0
    assert values["lineament_up", 'source="good"'] == 1 and values["lineament_up", 'source="dead"'] == 0
    assert values["lineament_lost_seconds_total", 'source="dead"'] > 0
    assert values["lineament_fps", 'source="good"'] > 0
    assert values["lineament_engine_info", f'model="{CARD.name}",schema="wflw98",precision="fp32"'] == 1
    assert values["process_open_fds", ""] > 3 and values["process_resident_memory_bytes", ""] > 1e7


def test_counters_and_histograms_only_grow_and_add_up(run: tuple[Watch, Monitor]) -> None:
    watch, monitor = run
    first = metrics(get(monitor, "/metrics")[1])
    frames = watch.posts[0].session.report.frames
    until(lambda: watch.posts[0].session.report.frames > frames + 5)
    then = metrics(get(monitor, "/metrics")[1])
    for (name, labels), value in first.items():
        if name.endswith(("_total", "_bucket", "_sum", "_count")):
            assert then[name, labels] >= value, name
    age = 'source="good",stage="age"'
    buckets = [v for (name, labels), v in then.items() if name.endswith("_bucket") and labels.startswith(age)]
    assert buckets == sorted(buckets) and len(buckets) == len(BUCKETS_S) + 1
    assert buckets[-1] == then["lineament_stage_seconds_count", age] > first["lineament_stage_seconds_count", age]


def test_readiness_names_the_source_that_shows_nothing_and_health_does_not_mind_it(run: tuple[Watch, Monitor]) -> None:
    _, monitor = run
    status, text = get(monitor, "/readyz")
    assert status == 503
    assert list(json.loads(text)["why"]) == ["dead"] and "connection refused" in json.loads(text)["why"]["dead"]
    assert get(monitor, "/healthz") == (200, '{"ok": true, "ended": {}}')


def test_no_answer_holds_a_password(run: tuple[Watch, Monitor]) -> None:
    for path in ("/metrics", "/healthz", "/readyz", "/", "/metrics?x=1", "/../etc/passwd"):
        status, text = get(run[1], path)
        assert "hunter2" not in text and "p%40ss" not in text and "admin" not in text
        assert status in (200, 503, 404)


def test_a_caller_that_says_nothing_or_nonsense_is_let_go(run: tuple[Watch, Monitor]) -> None:
    _, monitor = run
    with socket.create_connection(("127.0.0.1", monitor.port)) as silent:
        with socket.create_connection(("127.0.0.1", monitor.port)) as wild:
            wild.sendall(b"\xff\x00 nonsense\r\n\r\n" * 10)
        assert get(monitor, "/healthz")[0] == 200
        silent.settimeout(WAIT_S)
        assert silent.recv(1) == b""


def test_when_every_source_has_ended_the_run_is_not_healthy() -> None:
    shared = SharedLandmarker(BlobLandmarker())
    with (
        Watch(SessionConfig(), [Camera("gone", "gone.mp4")], shared) as watch,
        Monitor(lambda: {"gone": watch.posts[0].session}, CARD, 0) as monitor,
    ):
        until(lambda: not watch.running)
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


def test_a_label_is_quoted() -> None:
    name = 'a"b\\c\nd'
    assert _labels({"source": name}) == '{source="a\\"b\\\\c\\nd"}'


def test_histograms_count_every_frame_though_percentiles_forget() -> None:
    report = Report()
    for ms in (0.5, 1.0, 1.1, 60.0, 99_999.0):
        report.add(Result(Frame(np.zeros((4, 4, 3), np.uint8), "clip", 0, 0.0, 0.0), (), {"age": ms}))
    counts, sum_s = report.histograms()["age"]
    assert counts == [2, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1] and sum_s == pytest.approx(100.0616)
