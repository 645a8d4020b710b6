"""How a source goes, as values: true in every state it may be in, and said in the log while it runs."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

from lineament.landmarks.types import Frame, Result
from lineament.stream.read.open import open_source
from lineament.stream.read.pictures import PacedSource, SampleSource
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.watch import status as status_module
from lineament.stream.watch.status import StatusLog, no_picture, status
from tests.blobs import BlobLandmarker
from tests.waiting import until


def a_session(frames: int = 0) -> Session:
    """Not run, but fed."""
    session = Session(SessionConfig(), open_source("sample"), BlobLandmarker(), ())
    for _ in range(frames):
        session.stats.add(Result(Frame(np.zeros((4, 4, 3), np.uint8), "clip", 0, 0.0, 0.0), (), {"age": 12.34}))
    return session


def test_a_source_that_shows_pictures_is_ok_and_one_that_shows_none_is_down() -> None:
    good, silent = status(a_session(3)), status(a_session())
    assert (good["state"], good["why"], good["frames"], good["age_p50_ms"]) == ("ok", None, 3, 12.3)
    assert silent["state"] == "down" and str(silent["why"]).startswith("no picture for")
    assert good["dropped"] == good["stale"] == good["reconnects"] == good["unsent"] == 0
    assert silent["age_p50_ms"] is silent["age_p95_ms"] is None
    json.dumps([good, silent], allow_nan=False)


def test_a_source_that_was_shown_to_its_end_has_ended_and_one_that_broke_off_has_failed() -> None:
    with Session(SessionConfig(frames=2), open_source("sample"), BlobLandmarker(), ()) as session:
        assert not session.ended and len(list(session)) == 2
    assert status(session)["state"] == "ended" and status(session)["why"] is None
    broken = a_session(3)
    broken.fault = "the disk is full"
    assert (status(broken)["state"], status(broken)["why"]) == ("failed", "the disk is full")
    assert no_picture(broken) == "the disk is full"


def test_only_a_live_source_has_frames_with_an_age() -> None:
    for source in (SampleSource(), PacedSource(SampleSource())):
        with Session(SessionConfig(frames=3), source, BlobLandmarker(), ()) as session:
            assert {"age" in result.ms for result, _ in session} == {source.live}
        said = status(session)
        ages = [said["age_p50_ms"] is not None, "age" in session.stats.histograms(), " age " in session.summary()]
        assert {*ages, " age " in session.live_line()} == {source.live}, said


def test_the_log_tells_of_every_source_again_and_again_until_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(status_module, "_EVERY_S", 0.01)
    sessions = {"door": a_session(3), "yard": a_session()}
    with StatusLog(lambda: sessions):
        until(lambda: len(caplog.records) > 6)
    count = len(caplog.records)
    said = [vars(record) for record in caplog.records]
    assert {record["source"]: record["state"] for record in said} == {"door": "ok", "yard": "down"}
    assert {record["event"] for record in said} == {"status"} and said[0]["frames"] == 3
    assert said[0]["message"].startswith("door: ") and "fps" in said[0]["message"]
    assert "status log" not in [thread.name for thread in threading.enumerate()] and len(caplog.records) == count
