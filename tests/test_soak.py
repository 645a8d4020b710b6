"""The soak finds what it is there to find: what grows, what slows down, what does not come back."""

from __future__ import annotations

import pytest

from lineament.stream.soak import Sample, SoakConfig, verdict

NAMES = ["c0", "c1", "c2"]


def samples(
    grow_mb: float = 0, grow_fds: float = 0, grow_threads: float = 0, fps: float = 10, up: int = 1
) -> list[Sample]:
    """Ten minutes of two healthy cameras and one that dies. up: whether that one is there at the end."""
    run = []
    for i in range(300):
        part, time_s = i / 300, 2.0 * i
        sample = {"time": time_s, "resident_memory_bytes": 3e8 + 1e6 * grow_mb * part}
        sample |= {"open_fds": 20 + grow_fds * part, "threads": 60 + grow_threads * part}
        for name in NAMES:
            sample |= {f"frames_total {name}": 0.9 * fps * time_s, f"dropped_frames_total {name}": 0.1 * fps * time_s}
            sample |= {f"up {name}": 1, f"reconnects_total {name}": 0}
        run.append(sample | {"up c2": up if i == 299 else 1, "reconnects_total c2": 9 * part})
    return run


@pytest.mark.parametrize(
    ("run", "code", "broken"),
    [
        (samples(), 0, None),
        (samples(grow_mb=100), 0, "memory"),
        (samples(grow_fds=10), 0, "descriptors"),
        (samples(grow_threads=20), 0, "threads"),
        (samples(fps=9), 0, "healthy cameras"),
        (samples(up=0), 0, "deaths"),
        (samples(), 1, "ended with code 1"),
    ],
)
def test_each_broken_promise_is_named_and_only_it(
    run: list[Sample], code: int, broken: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verdict(SoakConfig(cameras=3, dying=1), NAMES, run, 9, code)
    said = [line for line in capsys.readouterr().out.splitlines() if "BROKEN" in line]
    assert found == (0 if broken is None else 1)
    assert len(said) == found and (broken is None or broken in said[0])
