from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.run import pipeline
from lineament.stream.run.pipeline import Pipeline


class CountingSource:
    """Delivers `frame_count` small frames; live or not; may block for ever or fail at a given index."""

    name = "counting"
    still = False
    fps: float | None = 30.0

    def __init__(
        self, frame_count: int, *, live: bool = False, block_at: int = -1, fail_at: int = -1, deaf: bool = False
    ) -> None:
        self.frame_count: int | None = frame_count
        self.live = live
        self.block_at, self.fail_at, self.deaf = block_at, fail_at, deaf
        self.next = 0
        self.closed = threading.Event()

    def __enter__(self) -> CountingSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        index, self.next = self.next, self.next + 1
        if index == self.block_at:
            (threading.Event() if self.deaf else self.closed).wait(20)
            return None
        if index == self.fail_at:
            raise LineamentError("the cable is out")
        if index >= (self.frame_count or 0):
            return None
        return Frame(np.zeros((4, 4, 3), np.uint8), self.name, index, index / 30, time.monotonic())

    def close(self) -> None:
        self.closed.set()


def nothing_found(frame: Frame) -> Result:
    return Result(frame, ())


def ours() -> set[str]:
    return {thread.name for thread in threading.enumerate() if "counting" in thread.name}


@pytest.fixture(autouse=True)
def no_thread_survives() -> Iterator[None]:
    yield
    assert ours() == set()


def test_a_file_gives_every_frame_in_order_even_to_a_slow_caller() -> None:
    with Pipeline(CountingSource(200), nothing_found) as results:
        indices = []
        for result in results:
            indices.append(result.frame.index)
            if len(indices) % 50 == 0:
                time.sleep(0.01)
        assert indices == list(range(200))
        assert results.dropped == 0


def test_a_live_source_gives_the_newest_frame_and_counts_every_drop() -> None:
    seen = []

    def slow(frame: Frame) -> Result:
        time.sleep(0.002)
        return Result(frame, ())

    with Pipeline(CountingSource(3000, live=True), slow) as results:
        for result in results:
            seen.append(result.frame.index)
        assert seen == sorted(set(seen))
        assert seen[-1] == 2999, "the newest frame is never the one dropped"
        assert len(seen) + results.dropped == 3000


class Late(CountingSource):
    """Its frames are a minute old when they come; the second comes when the first has been shown."""

    def __init__(self, frame_count: int, *, live: bool = True, late_s: float = 60) -> None:
        super().__init__(frame_count, live=live)
        self.late_s, self.first_is_shown = late_s, threading.Event()

    def read(self) -> Frame | None:
        if self.next == 1:
            assert self.first_is_shown.wait(20)
        frame = super().read()
        return frame and replace(frame, captured_s=frame.captured_s - self.late_s)

    def shown(self, results: Pipeline) -> list[int]:
        indices = []
        for result in results:
            indices.append(result.frame.index)
            self.first_is_shown.set()
        return indices


def test_a_live_frame_that_is_too_old_is_neither_analysed_nor_shown_but_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_SHOWN_EVERY_S", math.inf)
    analysed = []

    def note(frame: Frame) -> Result:
        analysed.append(frame.index)
        return Result(frame, ())

    source = Late(500)
    with Pipeline(source, note, max_age_s=30) as results:
        assert source.shown(results) == [0], "the first is shown whatever its age"
    assert analysed == [0] and results.stale > 0 and results.dropped == 499


def test_a_live_frame_that_has_become_too_old_on_the_way_is_not_shown_but_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_SHOWN_EVERY_S", math.inf)

    def ages(frame: Frame) -> Result:
        return Result(replace(frame, captured_s=frame.captured_s - 60 * (frame.index > 0)), ())

    source = Late(500, late_s=0)
    with Pipeline(source, ages, max_age_s=30) as results:
        assert source.shown(results) == [0]
    assert results.stale > 0 and results.dropped == 499


def test_a_model_that_takes_longer_than_a_frame_may_be_old_still_shows_pictures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_SHOWN_EVERY_S", 0.02)

    def slow(frame: Frame) -> Result:
        time.sleep(0.005)
        return Result(frame, ())

    with Pipeline(CountingSource(10**9, live=True), slow, max_age_s=1e-9) as results:
        indices = [result.frame.index for result, _ in zip(results, range(6))]
        assert indices == sorted(set(indices)) and len(indices) == 6
        assert results.stale > 0, "and between them, those that are too old are let go"


def test_fresh_frames_and_those_of_a_file_are_never_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_SHOWN_EVERY_S", math.inf)
    source = Late(50, live=False)
    with Pipeline(source, nothing_found, max_age_s=1e-9) as results:
        assert source.shown(results) == list(range(50)) and results.dropped == 0
    with Pipeline(CountingSource(200, live=True), nothing_found, max_age_s=3600) as results:
        assert len(list(results)) + results.dropped == 200 and results.stale == 0
    source = Late(200)
    with Pipeline(source, nothing_found) as results:
        assert len(source.shown(results)) + results.dropped == 200 and results.stale == 0


def test_a_source_without_frames_gives_no_results() -> None:
    with Pipeline(CountingSource(0), nothing_found) as results:
        assert list(results) == []


def test_every_result_says_how_long_its_capture_took() -> None:
    with Pipeline(CountingSource(3), nothing_found) as results:
        assert all(result.ms["capture"] >= 0 for result in results)


def test_leaving_early_stops_everything_with_full_queues() -> None:
    source = CountingSource(10**9)
    with Pipeline(source, nothing_found) as results:
        next(iter(results))
        deadline = time.monotonic() + 5
        while len(results._results) < pipeline._FILE_QUEUE and time.monotonic() < deadline:
            time.sleep(0.001)
    assert source.closed.is_set()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("block_at", [0, 1, 20])
def test_a_blocked_source_does_not_keep_the_pipeline_from_stopping(block_at: int, live: bool) -> None:
    results = Pipeline(CountingSource(100, live=live, block_at=block_at), nothing_found)
    with results:
        threading.Timer(0.1, results.stop).start()
        for _ in results:
            pass


def test_a_blocked_model_is_waited_for() -> None:
    entered = threading.Event()

    def slow(frame: Frame) -> Result:
        entered.set()
        time.sleep(0.3)
        return Result(frame, ())

    with Pipeline(CountingSource(100), slow):
        entered.wait(5)


def test_an_error_of_the_source_reaches_the_caller_after_the_frames_before_it_or_sooner() -> None:
    with (
        Pipeline(CountingSource(100, fail_at=5), nothing_found) as results,
        pytest.raises(LineamentError, match="cable"),
    ):
        for result in results:
            assert result.frame.index < 5


def test_an_error_of_the_model_reaches_the_caller() -> None:
    def broken(frame: Frame) -> Result:
        raise RuntimeError("no memory")

    with Pipeline(CountingSource(100), broken) as results, pytest.raises(RuntimeError, match="no memory"):
        list(results)


def test_an_error_of_the_caller_passes_through() -> None:
    with pytest.raises(KeyError), Pipeline(CountingSource(10**6), nothing_found) as results:
        for _ in results:
            raise KeyError("sink")


def test_a_source_that_does_not_open_leaves_nothing_running() -> None:
    class Shut(CountingSource):
        def __enter__(self) -> CountingSource:
            raise LineamentError("no such file")

    with pytest.raises(LineamentError, match="no such file"), Pipeline(Shut(1), nothing_found):
        pass


def test_a_thread_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_JOIN_S", 0.2)
    held = threading.Event()

    def stuck(frame: Frame) -> Result:
        held.wait(20)
        return Result(frame, ())

    with pytest.raises(LineamentError, match="inference counting"), Pipeline(CountingSource(9), stuck):
        time.sleep(0.05)
    held.set()
    for thread in threading.enumerate():
        if "counting" in thread.name:
            thread.join(5)


@pytest.mark.parametrize("stop_after", [0, 1, 2, 7])
@pytest.mark.parametrize("live", [True, False])
def test_stop_at_any_moment_ends_the_iteration(stop_after: int, live: bool) -> None:
    with Pipeline(CountingSource(10**9, live=live), nothing_found) as results:
        if stop_after == 0:
            results.stop()
        for count, _ in enumerate(results, 1):
            if count == stop_after:
                results.stop()


def test_a_pipeline_runs_once() -> None:
    runner = Pipeline(CountingSource(1), nothing_found)
    with runner:
        pass
    with pytest.raises(RuntimeError, match="once"), runner:
        pass


def test_stages_overlap() -> None:
    """While the caller still holds frame 0, the model is at frame 2; while the model holds it, the source is ahead."""
    source, model_is_ahead = CountingSource(10), threading.Event()
    source_is_ahead: list[bool] = []

    def run(frame: Frame) -> Result:
        if frame.index == 0:
            deadline_s = time.monotonic() + 10
            while source.next < 2 and time.monotonic() < deadline_s:
                time.sleep(0.001)
            source_is_ahead.append(source.next >= 2)
        if frame.index == 2:
            model_is_ahead.set()
        return Result(frame, ())

    with Pipeline(source, run) as results:
        for result in results:
            if result.frame.index == 0:
                assert model_is_ahead.wait(10)
    assert source_is_ahead == [True]
