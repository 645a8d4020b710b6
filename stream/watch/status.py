"""Status: the state of each source as JSON values, and a log of it at intervals.

with StatusLog(lambda: {"door": session}):
    ...
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from typing import Self

from lineament.stream.run.session import Session

log = logging.getLogger(__name__)

_SILENT_S = 10.0
"""a source without a picture for longer is down"""
_EVERY_S = 10.0
"""between two log records of a source"""
_JOIN_S = 10.0

Value = str | int | float | None


def no_picture(session: Session) -> str | None:
    """Why a source delivers no picture; None if it does."""
    if session.fault:
        return session.fault
    if session.trouble:
        return session.trouble
    silent_s = session.stats.silent_s
    return f"no picture for {silent_s:.0f} s" if silent_s > _SILENT_S or not session.stats.frames else None


def status(session: Session) -> dict[str, Value]:
    """state: 'ok', 'down', 'failed' or 'ended' (a file's normal end); why: the reason if it is not ok.

    age_p50_ms, age_p95_ms: None for a file.
    """
    stats, why = session.stats, no_picture(session)
    state = "failed" if session.fault else "ended" if session.ended else "down" if why else "ok"
    p50_ms, p95_ms = (None if math.isnan(ms) else round(ms, 1) for ms in stats.age_ms)
    return {
        "state": state,
        "why": None if state == "ended" else why,
        "fps": round(stats.fps, 1),
        "age_p50_ms": p50_ms,
        "age_p95_ms": p95_ms,
        "frames": stats.frames,
        "dropped": session.dropped,
        "stale": session.stale,
        "faces": stats.faces,
        "reconnects": session.reconnects,
        "unsent": sum(session.lost_messages.values()),
        "lost_s": round(session.lost_s, 1),
    }


class StatusLog:
    """Logs one record per source every ten seconds, between __enter__ and __exit__, from one thread."""

    def __init__(self, sessions: Callable[[], Mapping[str, Session]]) -> None:
        """sessions: the running ones, by name."""
        self._sessions, self._over = sessions, threading.Event()
        self._thread = threading.Thread(target=self._run, name="status log", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._over.wait(_EVERY_S):
            for name, session in self._sessions().items():
                says = {"source": name, "event": "status", **status(session)}
                log.info("%s: %s", name, session.live_line(), extra=says)
