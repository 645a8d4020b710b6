"""Contenders are timed in turns, and the first call of a turn never counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lineament.engines.timing import TURN, in_turns


@pytest.mark.parametrize("n", [1, TURN, 2 * TURN + 1])
def test_they_take_turns_and_each_is_timed_as_often_as_was_asked(n: int) -> None:
    called: list[str] = []
    counted: list[int] = []
    found = in_turns([lambda: called.append("a"), lambda: called.append("b")], n, lambda: counted.append(0))
    assert found.shape == (2, n) and (found >= 0).all() and len(counted) == 2 * n
    turns = [min(TURN, n - start) for start in range(0, n, TURN)]
    assert "".join(called) == "ab" + "".join("a" * (1 + turn) + "b" * (1 + turn) for turn in turns)


def test_the_first_call_of_a_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, last = 0.0, ""

    def slow_when_it_is_new(name: str) -> None:
        nonlocal now_s, last
        now_s += 0.25 if name == last else 5.0
        last = name

    monkeypatch.setattr("lineament.engines.timing.time", SimpleNamespace(perf_counter=lambda: now_s))
    found = in_turns([lambda: slow_when_it_is_new("a"), lambda: slow_when_it_is_new("b")], TURN + 2)
    assert (found == 250).all()
