"""Backoff: whether a connection is up or lost, and the pauses between attempts to reconnect.

Used by sources that reconnect and by outputs to other machines.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from typing import NamedTuple

from lineament.landmarks.types import LineamentError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 3.0
"""between attempts; doubled each time, and short enough to be back within 5 s of the camera's return"""
_FIRST_REFUSED_PAUSE_S, _LONGEST_REFUSED_PAUSE_S = 60.0, 600.0
"""the same after a wrong password: cameras lock an account after a few within minutes"""
_JITTER = 0.25
"""share of a pause, up or down, so that many cameras behind one switch do not reconnect at once"""
_HELD_S = 10.0
"""after a connection of this length, the pauses start over"""


class RefusedError(LineamentError):
    """User name or password was rejected. Another attempt too soon may lock the account."""


class Loss(NamedTuple):
    """What to do about a connection that was lost or could not be made."""

    pause_s: float
    """until the next attempt"""
    refused: bool
    """because of a wrong user name or password"""
    first: bool
    """the first failure of this outage"""
    news: bool
    """worth logging: the first failure, or one of another kind than the last"""

    @property
    def next_try(self) -> str:
        """For the log."""
        return f"next attempt in {self.pause_s:.0f} s, to avoid a locked account" if self.refused else "trying again"


class Backoff:
    """The state of one connection. One thread writes, any may read."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        """why it is down; None while it is up, and before the first attempt"""
        # not the error itself: its traceback would keep sockets open
        self._refused = False
        self._pauses_s = pauses_s(refused=False)
        self._up_since_s = math.inf
        self._down_since_s: float | None = None
        self._outages_s = 0.0
        """total of the past outages"""

    @property
    def is_up(self) -> bool:
        return self._up_since_s < math.inf

    @property
    def down_s(self) -> float:
        """Seconds since it was lost; 0 while it is up."""
        since_s = self._down_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    @property
    def lost_s(self) -> float:
        """Seconds of all outages, including this one."""
        return self._outages_s + self.down_s

    def lose(self, error: LineamentError) -> Loss:
        now_s, first, refused = time.monotonic(), self.trouble is None, isinstance(error, RefusedError)
        changed = refused != self._refused
        if now_s - self._up_since_s >= _HELD_S or changed:
            self._pauses_s = pauses_s(refused)
        self.trouble, self._refused, self._up_since_s = str(error), refused, math.inf
        if self._down_since_s is None:
            self._down_since_s = now_s
        return Loss(next(self._pauses_s), refused, first, first or changed)

    def come_up(self) -> float | None:
        """Marks the connection as up. Returns the length of the outage in seconds; None if there was none."""
        self._up_since_s = time.monotonic()
        if self.trouble is None:
            return None
        down_s = self.down_s
        self._outages_s += down_s
        self.trouble, self._refused, self._down_since_s = None, False, None
        return down_s


def pauses_s(refused: bool) -> Iterator[float]:
    """Seconds between attempts: doubled up to a limit, with jitter; after a refusal, never shorter."""
    first_s, longest_s = (
        (_FIRST_REFUSED_PAUSE_S, _LONGEST_REFUSED_PAUSE_S) if refused else (_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
    )
    pause_s = first_s
    while True:
        yield pause_s * random.uniform(1.0 if refused else 1 - _JITTER, 1 + _JITTER)
        pause_s = min(2 * pause_s, longest_s)
