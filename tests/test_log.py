"""What the process says can be read by people, or line by line by a log collector; neither ever learns a password."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.read.reconnect import ReconnectingSource, RetryConfig
from lineament.stream.watch.log import JsonLines, TextLines

ROOT = Path(__file__).resolve().parent.parent
URL = "rtsp://admin:hunter2@10.0.0.5/live?token=hunter2"


RECONNECT = "lineament.stream.read.reconnect"


def record(message: str, *args: object, **given: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        RECONNECT,
        logging.WARNING,
        "reconnect.py",
        1,
        message,
        args,
        given.pop("exc_info", None),
    )
    vars(made).update(given)
    return made


def entry(made: logging.LogRecord) -> dict[str, Any]:
    line = JsonLines().format(made)
    assert "\n" not in line and "hunter2" not in line
    parsed: dict[str, Any] = json.loads(line, parse_constant=pytest.fail)
    return parsed


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def entries(text: str) -> list[dict[str, Any]]:
    """Every line must be a JSON object that says at least when, how bad, who and what."""
    parsed = [json.loads(line) for line in text.splitlines()]
    for line in parsed:
        assert list(line)[:4] == ["time", "level", "logger", "message"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    return parsed


def test_a_record_is_one_json_object_with_what_extra_gave() -> None:
    said = entry(record("%s is\nback after %.1f s", "door", 1.25, source="door", event="back", down_s=1.2))
    assert said["message"] == "door is\nback after 1.2 s" and said["level"] == "warning"
    assert (said["logger"], said["source"], said["event"], said["down_s"]) == (
        RECONNECT,
        "door",
        "back",
        1.2,
    )
    assert set(said) == {"time", "level", "logger", "message", "source", "event", "down_s"}


def test_what_json_cannot_hold_is_null_or_text_and_never_an_error() -> None:
    said = entry(record("x", p95=math.nan, top=math.inf, path=Path("a"), some=(1, {"in": math.nan}), no=None, yes=True))
    assert said["p95"] is said["top"] is said["no"] is None and said["yes"] is True
    assert said["path"] == "a" and said["some"] == [1, {"in": None}]


def test_no_password_is_shown_in_a_message_a_field_or_a_traceback() -> None:
    try:
        raise RuntimeError(f"cannot open {URL}")
    except RuntimeError:
        made = record("lost %s", URL, source=URL, tried=[URL], exc_info=sys.exc_info())
    said = entry(made)
    assert "RuntimeError: cannot open rtsp://***@10.0.0.5/live" in said["exception"]
    text = TextLines("%(message)s").format(made)
    assert text.startswith("lost rtsp://***@10.0.0.5/live") and "Traceback" in text and "hunter2" not in text


def test_a_source_that_is_lost_and_comes_back_is_a_record_each_under_the_name_that_it_was_given(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Camera:
        name, live, still, fps = "rtsp://10.0.0.5/live", True, False, 30.0
        frame_count: int | None = None

        def __init__(self, frames: int) -> None:
            self.left = frames

        def __enter__(self) -> Camera:
            return self

        def __exit__(self, *exc: object) -> None: ...

        def close(self) -> None: ...

        def read(self) -> Frame:
            if not self.left:
                raise LineamentError("lost it")
            self.left -= 1
            return Frame(np.zeros((4, 4, 3), np.uint8), self.name, 0, 0.0, time.monotonic())

    cameras = iter([Camera(1), Camera(1)])
    with ReconnectingSource(next(cameras), lambda: next(cameras), RetryConfig(60), called="door") as source:
        assert source.read() and source.read()
    assert [(vars(r)["source"], vars(r)["event"]) for r in caplog.records] == [("door", "lost"), ("door", "back")]


def test_a_run_says_nothing_but_json_and_ends_with_a_summary_of_numbers() -> None:
    done = run("-m", "stream", "--source", "sample", "--frames", "5", "--no-window", "--jsonl", "-", "--log", "json")
    assert done.returncode == 0, done.stderr
    (summary,) = [line for line in entries(done.stderr) if line.get("event") == "summary"]
    assert (summary["source"], summary["state"], summary["frames"], summary["faces"]) == ("sample", "ended", 5, 1)
    assert summary["dropped"] == summary["stale"] == 0 and summary["age_p95_ms"] is None
    assert "frames in" in summary["message"]


def test_several_sources_have_a_summary_each_and_a_failure_is_a_record() -> None:
    sources = ["--source", "sample", "--source", "gone.mp4"]
    done = run("-m", "stream", *sources, "--frames", "5", "--no-window", "--jsonl", "-", "--log", "json")
    assert done.returncode == 1
    said = entries(done.stderr)
    states = {line["source"]: line["state"] for line in said if line.get("event") == "summary"}
    assert states == {"sample": "ended", "gone": "failed"}
    (ended,) = [line for line in said if line.get("event") == "ended"]
    assert ended["source"] == "gone" and "no such file" in ended["message"]
    assert said[-1]["event"] == "failed" and said[-1]["level"] == "error"
    assert "1 of 2 sources failed: gone" in said[-1]["message"]


def test_what_cannot_be_opened_is_a_record_without_the_password() -> None:
    done = run("-m", "stream", "--source", "rtsp://a:hunter2@127.0.0.1:1/x", "--no-window", "--log", "json")
    assert done.returncode == 1 and "hunter2" not in done.stderr + done.stdout
    assert entries(done.stderr)[-1]["event"] == "failed"


def test_warnings_and_what_nobody_catches_are_records_too() -> None:
    script = f"""
import logging, threading, warnings
from lineament.stream.watch.log import set_up
set_up("json")
warnings.warn("old")
logging.getLogger("somebody.else").error("theirs")
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise RuntimeError("{URL}")
"""
    done = run("-c", script)
    assert done.returncode == 1 and "hunter2" not in done.stderr
    warning, theirs, of_thread, fault = entries(done.stderr)
    assert "old" in warning["message"] and theirs["logger"] == "somebody.else"
    assert of_thread["event"] == fault["event"] == "fault"
    assert "ValueError: in a thread" in of_thread["exception"] and "RuntimeError: rtsp://***@" in fault["exception"]


def test_text_is_the_message_alone() -> None:
    script = "import logging\nfrom stream.watch.log import set_up\nset_up('text')\nlogging.info('it goes')"
    assert run("-c", script).stderr == "it goes\n"
