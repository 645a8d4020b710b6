"""Report: what a run tells while it goes and when it ends: frame rate, age of frames, time of each stage."""

from __future__ import annotations

import time
from collections import defaultdict, deque

import numpy as np

from landmarks.types import Result

_KEPT = 10_000
"""numbers kept a stage: enough for a p99, bounded over weeks"""
_RATE_OVER_S = 2.0
"""the live frame rate is of this many last seconds"""


class Report:
    """Fed every result, in order, by one thread."""

    def __init__(self) -> None:
        self.frames = 0
        self.faces = 0
        """in the last frame"""
        self.frames_with_faces = 0
        self._began_s = time.monotonic()
        self._shown_s: deque[float] = deque()
        self._ms: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def add(self, result: Result) -> None:
        now_s = time.monotonic()
        self.frames += 1
        self.faces = len(result.tracks)
        self.frames_with_faces += bool(result.tracks)
        self._shown_s.append(now_s)
        while self._shown_s[0] < now_s - _RATE_OVER_S:
            self._shown_s.popleft()
        for stage, value in result.ms.items():
            self._ms[stage].append(value)

    @property
    def fps(self) -> float:
        """Of the last two seconds; 0 before the second frame."""
        if len(self._shown_s) < 2:
            return 0.0
        return (len(self._shown_s) - 1) / max(self._shown_s[-1] - self._shown_s[0], 1e-9)

    def percentile_ms(self, stage: str, percent: float) -> float:
        """Of the last 10,000 frames in which the stage ran; nan when it never did."""
        values = self._ms.get(stage)
        return float(np.percentile(values, percent)) if values else float("nan")

    def live_line(self, dropped: int, reconnects: int = 0) -> str:
        """fps, drops, age and faces, for a camera's status line."""
        p50, p95 = self.percentile_ms("age", 50), self.percentile_ms("age", 95)
        lost = f"  lost and back {reconnects}" if reconnects else ""
        return f"{self.fps:5.1f} fps  dropped {dropped}  age p50 {p50:.1f} p95 {p95:.1f} ms  faces {self.faces}{lost}"

    def summary(self, dropped: int, reconnects: int = 0, lost_s: float = 0.0) -> str:
        """Totals, then one line a stage. reconnects, lost_s: how often the source came back, and its time away."""
        seconds = time.monotonic() - self._began_s
        lines = [
            f"{self.frames} frames in {seconds:.1f} s ({self.frames / max(seconds, 1e-9):.1f} fps), "
            f"faces in {self.frames_with_faces}, dropped {dropped}"
        ]
        if lost_s:
            lines.append(f"lost and back {reconnects} times, {lost_s:.1f} s without a picture")
        if self._ms:
            lines.append(f"{'stage':>10} {'n':>7} {'p50':>8} {'p95':>8} {'p99':>8}  ms")
        for stage, values in self._ms.items():
            p50, p95, p99 = np.percentile(values, (50, 95, 99))
            lines.append(f"{stage:>10} {len(values):>7} {p50:>8.2f} {p95:>8.2f} {p99:>8.2f}")
        return "\n".join(lines)
