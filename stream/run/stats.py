"""Stats: frame rate, time of each stage and, if live, age of frames, for the live line and the summary."""

from __future__ import annotations

import math
import threading
import time
from bisect import bisect_left
from collections import defaultdict, deque

import numpy as np

from lineament.landmarks.types import F32, Result

_KEPT = 10_000
"""values kept per stage: enough for a p99, bounded over weeks"""
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""upper bounds of the histogram buckets; one more holds the rest"""
_RATE_OVER_S = 2.0
"""window of the live frame rate"""


class Stats:
    """One thread adds every result, in order; any thread may read."""

    def __init__(self) -> None:
        self.frames = 0
        self.faces = 0
        """in the last frame"""
        self.frames_with_faces = 0
        self.most_left_out = 0
        """faces of one frame that were found but not followed because max_faces were"""
        self._began_s = time.monotonic()
        self._shown_s: deque[float] = deque()
        self._ms: defaultdict[str, _Ring] = defaultdict(_Ring)
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0] * (len(BUCKETS_S) + 1))
        self._sums_s: defaultdict[str, float] = defaultdict(float)
        self._last_s = self._began_s
        self._changing = threading.Lock()
        self._age_ms = (float("nan"), float("nan"))
        self._age_until_s = 0.0

    def add(self, result: Result) -> None:
        now_s = time.monotonic()
        with self._changing:
            self._last_s = now_s
            self.frames += 1
            self.faces = len(result.tracks)
            self.frames_with_faces += bool(result.tracks)
            self.most_left_out = max(self.most_left_out, result.left_out)
            self._shown_s.append(now_s)
            while self._shown_s[0] < now_s - _RATE_OVER_S:
                self._shown_s.popleft()
            for stage, value in result.ms.items():
                self._ms[stage].add(value)
                self._counts[stage][bisect_left(BUCKETS_S, value / 1e3)] += 1
                self._sums_s[stage] += value / 1e3

    @property
    def fps(self) -> float:
        """Frames per second over the last two seconds; 0 before the second frame."""
        oldest_s = time.monotonic() - _RATE_OVER_S
        with self._changing:
            shown_s = [s for s in self._shown_s if s >= oldest_s]
        return (len(shown_s) - 1) / max(shown_s[-1] - shown_s[0], 1e-9) if len(shown_s) > 1 else 0.0

    @property
    def silent_s(self) -> float:
        """Seconds since the last frame."""
        return time.monotonic() - self._last_s

    def histograms(self) -> dict[str, tuple[list[int], float]]:
        """By stage, over all frames: the count in each bucket of BUCKETS_S and beyond, and the sum in seconds."""
        with self._changing:
            return {stage: (list(counts), self._sums_s[stage]) for stage, counts in self._counts.items()}

    @property
    def age_ms(self) -> tuple[float, float]:
        """p50 and p95 from capture to drawn, nan for a file; cached for a quarter of a second, because it is slow."""
        if time.monotonic() >= self._age_until_s:
            self._age_ms = (self.percentile_ms("age", 50), self.percentile_ms("age", 95))
            self._age_until_s = time.monotonic() + 0.25
        return self._age_ms

    def stages(self) -> dict[str, F32]:
        """(N,) milliseconds of the last 10,000 frames in which each stage ran, unordered."""
        with self._changing:
            return {stage: ring.kept() for stage, ring in self._ms.items()}

    def percentile_ms(self, stage: str, percent: float) -> float:
        """Over the last 10,000 frames in which the stage ran; nan if it never did."""
        with self._changing:
            values = self._ms[stage].kept() if stage in self._ms else ()
        return float(np.percentile(values, percent)) if len(values) else float("nan")

    def live_line(self, dropped: int, reconnects: int = 0) -> str:
        """fps, drops, age if live, and faces in one line."""
        p50, p95 = self.age_ms
        age = "" if math.isnan(p50) else f"  age p50 {p50:.1f} p95 {p95:.1f} ms"
        lost = f"  reconnects {reconnects}" if reconnects else ""
        return f"{self.fps:5.1f} fps  dropped {dropped}{age}  faces {self.faces}{lost}"

    def summary(self, dropped: int, reconnects: int = 0, lost_s: float = 0.0, stale: int = 0) -> str:
        """Totals, then one line per stage. reconnects, lost_s: how often the source came back, and its downtime.

        stale: the dropped frames that were too old.
        """
        seconds = time.monotonic() - self._began_s
        lines = [
            f"{self.frames} frames in {seconds:.1f} s ({self.frames / max(seconds, 1e-9):.1f} fps), "
            f"faces in {self.frames_with_faces}, dropped {dropped}{f', {stale} of them too old' if stale else ''}"
        ]
        if lost_s:
            lines.append(f"reconnected {reconnects} times, {lost_s:.1f} s without a picture")
        stages = self.stages()
        if stages:
            lines.append(f"{'stage':>10} {'n':>7} {'p50':>8} {'p95':>8} {'p99':>8}  ms")
        for stage, values in stages.items():
            p50, p95, p99 = np.percentile(values, (50, 95, 99))
            lines.append(f"{stage:>10} {len(values):>7} {p50:>8.2f} {p95:>8.2f} {p99:>8.2f}")
        return "\n".join(lines)


class _Ring:
    """The last 10,000 values, in constant memory."""

    def __init__(self) -> None:
        self._values = np.zeros(_KEPT, np.float32)
        self._count = 0

    def add(self, value: float) -> None:
        self._values[self._count % _KEPT] = value
        self._count += 1

    def kept(self) -> F32:
        return self._values[: self._count].copy()
