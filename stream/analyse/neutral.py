"""Neutral: learns a followed face's relaxed measures, so that narrow eyes are no blink and thick brows no frown."""

from __future__ import annotations

import numpy as np

from lineament.landmarks.measures import LEAST, MOST, QUANTILES, TYPICAL, measures
from lineament.landmarks.pose import fit
from lineament.landmarks.types import F32, F64

_SAMPLES = 64
"""kept, the newest; then they cover about two minutes"""
_PRIOR = 8
"""samples that people in general are worth: the first second is half theirs"""
_OFTEN_S, _SELDOM_S = 0.1, 2.0
"""between samples: at first, and of a face that has been followed for a minute"""
_FRONTAL_DEG = 20.0
"""most yaw and pitch of a sample: beyond, the depth of the mean face may not be this person's"""


class Neutral:
    """One face's relaxed measures, by quantiles of what is seen of it."""

    def __init__(self) -> None:
        self.measures: F64 | None = None
        """(M,) within what people have, None until the first sample; never written to, so results may keep it"""
        self._seen: list[F64] = []
        self._began_s = self._next_s = -np.inf

    def see(self, points: F32, frame_hw: tuple[int, int], time_s: float, visibility: F32 | None = None) -> None:
        """Takes a sample when one is due and nothing is hidden. 0.1 ms when it does.

        points: (98, 2) of WFLW98, frame px. visibility: (98,) of the points, if known.
        """
        if time_s < self._next_s:
            return
        found = fit(points, frame_hw)
        now = measures(points, found, visibility)
        if not max(abs(found.pose.yaw_deg), abs(found.pose.pitch_deg)) < _FRONTAL_DEG or not np.isfinite(now).all():
            return
        self._began_s = self._began_s if self._seen else time_s
        self._next_s = time_s + float(np.clip((time_s - self._began_s) / 30, _OFTEN_S, _SELDOM_S))
        self._seen = [*self._seen[1 - _SAMPLES :], now]
        rows = np.sort(self._seen, axis=0)
        own = rows[np.round(QUANTILES * (len(rows) - 1)).astype(int), np.arange(len(QUANTILES))]
        trust = len(rows) / (len(rows) + _PRIOR)
        self.measures = np.clip(TYPICAL + trust * (own - TYPICAL), LEAST, MOST)
