"""Visitors: tickets for live views, and the jobs and files of each open page, which are deleted with it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lineament.landmarks.types import LineamentError

_TICKET_S = 60.0
"""lifetime of a ticket; the page uses it at once"""
_MAX_TICKETS = 1000
_HASH = re.compile("[0-9a-f]{64}")


class Admission:
    """Admits live views. A page gets a ticket by a request that requires the login, and opens its WebSocket with it.

    So the socket itself needs no login.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside = 0
        self._tickets: dict[str, float] = {}
        self._lock = threading.Lock()

    def ticket(self) -> str:
        now_s = time.monotonic()
        with self._lock:
            self._tickets = {t: born_s for t, born_s in self._tickets.items() if now_s - born_s < _TICKET_S}
            if len(self._tickets) >= _MAX_TICKETS:
                raise LineamentError("too many pages are opening live views; try again in a minute")
            ticket = secrets.token_urlsafe(24)
            self._tickets[ticket] = now_s
        return ticket

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket is valid. A ticket is valid once."""
        with self._lock:
            born_s = self._tickets.pop(ticket, None)
        return born_s is not None and time.monotonic() - born_s < _TICKET_S

    def enter(self) -> None:
        """Takes a place; raises LineamentError if all are taken."""
        with self._lock:
            if self._inside >= self._places:
                raise LineamentError(
                    f"all {self._places} live views are in use; try again in a moment, or use the other tabs"
                )
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


@dataclass(slots=True)
class _Tab:
    """The state of one open page."""

    latest: threading.Event | None = None
    """cancels the latest job; it may never run, if the queue is full"""
    running: list[threading.Event] = field(default_factory=list)
    """cancel the running jobs"""
    folders: list[Path] = field(default_factory=list)
    uploads: set[Path] = field(default_factory=set)
    """folders; uploads of the same content share one, whatever their names"""
    result: object = None
    """what the last job returned"""
    used_s: float = field(default_factory=time.monotonic)


class Cancelled(Exception):  # noqa: N818 - not an error
    """The visitor cancelled the job."""


class Job(NamedTuple):
    """A job of a page while it runs."""

    cancelled: threading.Event
    """set to end it"""
    folder: Path
    """for its results"""
    rows: list[object]
    """kept until the next job begins or the page closes"""


class Tabs:
    """The jobs and files of every open page, by session. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """folder: for results; uploads are stored in it too."""
        self._folder = folder
        self._tabs: dict[str, _Tab] = {}
        self._lock = threading.Lock()

    def begin(self, session: str) -> tuple[threading.Event, Path]:
        """Registers a new job of this page; returns the event that cancels it, and an empty folder for its results.

        Cancels a running job and deletes the last results: a page has one result at a time.
        """
        self._end_jobs(session)
        folder = self._folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        cancelled = threading.Event()
        with self._lock:
            tab = self._tab(session)
            old, tab.folders, tab.result = tab.folders, [folder], None
            tab.latest = cancelled
        _delete(old)
        return cancelled, folder

    def start(self, session: str, name: str) -> tuple[threading.Event, Path] | None:
        """Starts the job whose folder has this name; returns what `begin` returned. It runs until `end`.

        None if another job replaced it or the page is closed.
        """
        with self._lock:
            tab = self._tabs.get(session)
            if tab and tab.latest and tab.folders and tab.folders[-1].name == name:
                tab.running.append(tab.latest)
                return tab.latest, tab.folders[-1]
        return None

    def end(self, session: str, cancelled: threading.Event, result: object = None) -> None:
        """Ends the job with this event. result: kept until the next job begins or the page closes."""
        with self._lock:
            tab = self._tabs.get(session)
            if tab and cancelled in tab.running:
                tab.running.remove(cancelled)
                tab.used_s = time.monotonic()
            if tab and cancelled is tab.latest:
                tab.latest, tab.result = None, result

    @contextlib.contextmanager
    def running(self, session: str, name: str) -> Iterator[Job]:
        """From start to end. Raises Cancelled if the job was cancelled while it waited."""
        if (started := self.start(session, name)) is None:
            raise Cancelled
        job = Job(*started, [])
        try:
            yield job
        finally:
            self.end(session, job.cancelled, job.rows)

    def result(self, session: str) -> object:
        """The result of the page's last job, or None."""
        with self._lock:
            tab = self._tabs.get(session)
            return tab.result if tab else None

    def uploaded(self, session: str, path: str | None) -> None:
        """Records an upload, so that it is deleted with the page.

        Ignores files outside the upload folders, which are named by a hash, because the page does not own those.
        """
        if path and Path(path).parent.parent == self._folder and _HASH.fullmatch(Path(path).parent.name):
            with self._lock:
                self._tab(session).uploads.add(Path(path).parent)

    def cancel(self, session: str) -> bool:
        """Cancels the page's jobs; returns whether there were any."""
        return self._end_jobs(session)

    def close(self, session: str) -> None:
        """Cancels the page's jobs and deletes its files, except uploads that another page shares."""
        self._end_jobs(session)
        with self._lock:
            tab = self._tabs.pop(session, _Tab())
            others = {folder for other in self._tabs.values() for folder in other.uploads}
        _delete(tab.folders)
        _delete(list(tab.uploads - others))

    def sweep(self, age_s: float) -> None:
        """Closes pages that have been idle this long."""
        oldest_s = time.monotonic() - age_s
        with self._lock:
            idle = [session for session, tab in self._tabs.items() if tab.used_s < oldest_s and not tab.running]
        for session in idle:
            self.close(session)
        # empty files that Gradio's upload parser leaves behind
        before = time.time() - max(age_s, 60)
        for path in self._folder.glob("tmp*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before:
                    path.unlink()

    def close_all(self) -> None:
        for session in list(self._tabs):
            self.close(session)

    def __len__(self) -> int:
        return len(self._tabs)

    def _tab(self, session: str) -> _Tab:
        """The state of the page, created on first use. The caller holds the lock."""
        tab = self._tabs.setdefault(session, _Tab())
        tab.used_s = time.monotonic()
        return tab

    def _end_jobs(self, session: str) -> bool:
        with self._lock:
            tab = self._tabs.get(session)
            jobs = [*tab.running, *([tab.latest] if tab.latest else [])] if tab else []
        for cancelled in jobs:
            cancelled.set()
        return bool(jobs)


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
