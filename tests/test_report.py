"""What a run says of itself is true, bounded, and may be asked for by any thread."""

from __future__ import annotations

import math
import threading

import numpy as np

from landmarks.types import Frame, Result
from stream.report import Report

BGR = np.zeros((4, 4, 3), np.uint8)


def result_with(**ms: float) -> Result:
    return Result(Frame(BGR, "clip", 0, 0.0, 0.0), (), ms)


def test_percentiles_are_of_the_last_ten_thousand_frames() -> None:
    report = Report()
    for value in (1.0, 5.0):
        for _ in range(10_000):
            report.add(result_with(age=value))
    assert report.percentile_ms("age", 1) == report.percentile_ms("age", 99) == 5.0
    assert report.frames == 20_000 and len(report.stages()["age"]) == 10_000


def test_a_stage_that_never_ran_has_no_time() -> None:
    report = Report()
    assert math.isnan(report.percentile_ms("age", 50)) and report.stages() == {} and report.fps == 0
    report.add(result_with(draw=2.0))
    assert math.isnan(report.percentile_ms("age", 50)) and report.percentile_ms("draw", 50) == 2.0


def test_losses_are_told_when_there_were_some() -> None:
    report = Report()
    report.add(result_with(age=1.0))
    assert "lost" not in report.live_line(0) + report.summary(0)
    assert "dropped 4" in report.live_line(4, 2) and "lost and back 2" in report.live_line(4, 2)
    assert "lost and back 2 times, 12.3 s without a picture" in report.summary(4, 2, 12.34)
    assert "too old" not in report.summary(4) and "dropped 4, 3 of them too old" in report.summary(4, stale=3)


def test_it_may_be_read_while_it_is_written() -> None:
    report, done, errors = Report(), threading.Event(), []

    def read() -> None:
        try:
            while not done.is_set():
                report.summary(0)
                report.live_line(0)
                report.histograms()
        except RuntimeError as error:
            errors.append(error)

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    for i in range(3000):
        report.add(result_with(**{f"stage{i % 50}": 1.0, "age": 1.0}))
    done.set()
    reader.join(20)
    assert not errors and not reader.is_alive()
    assert sum(report.histograms()["age"][0]) == 3000
