"""Contenders are timed in turns, and the call that counts is never the first of its turn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engines.timing import WARM_UP, in_turns


def test_each_takes_two_calls_a_round_in_turns() -> None:
    called: list[str] = []
    found = in_turns([lambda: called.append("a"), lambda: called.append("b")], 5)
    assert found.shape == (2, 5) and (found >= 0).all()
    assert "".join(called) == "aabb" * (5 + WARM_UP)


def test_the_second_call_of_a_turn_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, now_s = 0, 0.0

    def slow_at_first() -> None:
        nonlocal calls, now_s
        calls += 1
        now_s += 5.0 if calls % 2 else 0.25

    monkeypatch.setattr("engines.timing.time", SimpleNamespace(perf_counter=lambda: now_s))
    assert in_turns([slow_at_first], 3).tolist() == [[250.0, 250.0, 250.0]]


def test_every_round_is_told() -> None:
    rounds: list[int] = []
    in_turns([lambda: None], 4, lambda: rounds.append(0))
    assert len(rounds) == 4 + WARM_UP
