"""The learning rate: what each schedule says at known steps."""

from __future__ import annotations

import pytest

from lineament.train.schedule import ScheduleConfig


def test_warm_up_rises_in_a_line_to_the_full_rate() -> None:
    cfg = ScheduleConfig(warmup_epochs=2)
    factors = [cfg.factor(step, steps_per_epoch=5, epochs=30) for step in range(11)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1


def test_steps_fall_by_gamma_after_the_warm_up() -> None:
    cfg = ScheduleConfig(kind="step", warmup_epochs=1, step_at=(0.25, 0.5, 0.75), gamma=0.1)
    at = {epoch: cfg.factor(epoch * 7, 7, 40) for epoch in (1, 9, 10, 19, 20, 30, 39)}
    assert at == pytest.approx({1: 1, 9: 1, 10: 0.1, 19: 0.1, 20: 0.01, 30: 0.001, 39: 0.001})


def test_by_default_a_run_of_any_length_ends_at_a_hundredth_of_the_rate() -> None:
    for epochs in (7, 60, 120):
        cfg = ScheduleConfig(warmup_epochs=1)
        assert cfg.factor(round(0.59 * epochs * 100), 100, epochs) == 1
        assert cfg.factor(epochs * 100 - 1, 100, epochs) == pytest.approx(0.01)


def test_cosine_is_half_way_down_in_the_middle_and_zero_at_the_end() -> None:
    cfg = ScheduleConfig(kind="cosine", warmup_epochs=2)
    assert cfg.factor(2 * 10, 10, 22) == pytest.approx(1)
    assert cfg.factor(12 * 10, 10, 22) == pytest.approx(0.5)
    assert cfg.factor(22 * 10, 10, 22) == pytest.approx(0, abs=1e-12)


def test_no_warm_up_starts_at_the_full_rate() -> None:
    assert ScheduleConfig(warmup_epochs=0).factor(0, 10, 10) == 1


@pytest.mark.parametrize(
    "bad",
    [{"warmup_epochs": -1}, {"step_at": (0.5, 1.0)}, {"gamma": 0}, {"gamma": 1.5}, {"warmup_epochs": float("nan")}],
)
def test_impossible_schedules_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        ScheduleConfig(**bad)  # type: ignore[arg-type]
