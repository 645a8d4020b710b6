"""What a run says of itself is true, bounded, and may be asked for by any thread."""

from __future__ import annotations

import math
import threading

import numpy as np

from lineament.landmarks.types import Frame, Result
from lineament.stream.run.stats import Stats

BGR = np.zeros((4, 4, 3), np.uint8)


def result_with(**ms: float) -> Result:
    return Result(Frame(BGR, "clip", 0, 0.0, 0.0), (), ms)


def test_percentiles_are_of_the_last_ten_thousand_frames() -> None:
    stats = Stats()
    for value in (1.0, 5.0):
        for _ in range(10_000):
            stats.add(result_with(age=value))
    assert stats.percentile_ms("age", 1) == stats.percentile_ms("age", 99) == 5.0
    assert stats.frames == 20_000 and len(stats.stages()["age"]) == 10_000


def test_a_stage_that_never_ran_has_no_time() -> None:
    stats = Stats()
    assert math.isnan(stats.percentile_ms("age", 50)) and stats.stages() == {} and stats.fps == 0
    stats.add(result_with(draw=2.0))
    assert math.isnan(stats.percentile_ms("age", 50)) and stats.percentile_ms("draw", 50) == 2.0


def test_losses_are_told_when_there_were_some() -> None:
    stats = Stats()
    stats.add(result_with(age=1.0))
    assert "lost" not in stats.live_line(0) + stats.summary(0)
    assert "dropped 4" in stats.live_line(4, 2) and "reconnects 2" in stats.live_line(4, 2)
    assert "reconnected 2 times, 12.3 s without a picture" in stats.summary(4, 2, 12.34)
    assert "too old" not in stats.summary(4) and "dropped 4, 3 of them too old" in stats.summary(4, stale=3)


def test_the_age_of_frames_is_told_if_they_have_one() -> None:
    file, live = Stats(), Stats()
    for _ in range(3):
        file.add(result_with(draw=2.0))
        live.add(result_with(draw=2.0, age=5.0))
    assert "age p50 5.0 p95 5.0 ms" in live.live_line(0) and " age " in live.summary(0)
    assert " age " not in file.live_line(0) + file.summary(0) and "nan" not in file.live_line(0) + file.summary(0)


def test_it_may_be_read_while_it_is_written() -> None:
    stats, done, errors = Stats(), threading.Event(), []

    def read() -> None:
        try:
            while not done.is_set():
                stats.summary(0)
                stats.live_line(0)
                stats.histograms()
        except RuntimeError as error:
            errors.append(error)

    reader = threading.Thread(target=read, name="reader")
    reader.start()
    for i in range(3000):
        stats.add(result_with(**{f"stage{i % 50}": 1.0, "age": 1.0}))
    done.set()
    reader.join(20)
    assert not errors and not reader.is_alive()
    assert sum(stats.histograms()["age"][0]) == 3000
