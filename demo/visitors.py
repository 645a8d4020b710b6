"""Visitors: who may open a live view, and which files and jobs belong to which tab, so that they go with it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from lineament.landmarks.types import LineamentError

_TICKET_S = 60.0
"""a ticket is used at once by the page that asked for it"""
_MAX_TICKETS = 1000
_HASH = re.compile("[0-9a-f]{64}")


class Door:
    """Lets live views in: a page gets a ticket over its own, logged-in way, and shows it when it opens the socket.

    So a socket needs no log-in of its own, and no other web site can open one in a visitor's name.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside = 0
        self._tickets: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def inside(self) -> int:
        return self._inside

    def ticket(self) -> str:
        now_s = time.monotonic()
        with self._lock:
            self._tickets = {t: born_s for t, born_s in self._tickets.items() if now_s - born_s < _TICKET_S}
            if len(self._tickets) >= _MAX_TICKETS:
                raise LineamentError("too many pages ask for a live view at once; try again in a minute")
            ticket = secrets.token_urlsafe(24)
            self._tickets[ticket] = now_s
        return ticket

    def redeem(self, ticket: str) -> bool:
        """Whether the ticket was good; it is good once."""
        with self._lock:
            born_s = self._tickets.pop(ticket, None)
        return born_s is not None and time.monotonic() - born_s < _TICKET_S

    def enter(self) -> None:
        """Takes a place; raises LineamentError when there is none."""
        with self._lock:
            if self._inside >= self._places:
                raise LineamentError(
                    f"all {self._places} live views are taken; try again in a moment, or use the other tabs meanwhile"
                )
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1


@dataclass(slots=True)
class _Tab:
    """What one open page has here."""

    begun: threading.Event | None = None
    """what ends the last job that was begun; its turn may never come, where the queue is full"""
    running: list[threading.Event] = field(default_factory=list)
    """what ends the jobs under way"""
    folders: list[Path] = field(default_factory=list)
    uploads: set[Path] = field(default_factory=set)
    """folders; the same content lies in the same one, whatever it is called"""
    result: object = None
    """what the last job left in memory"""
    used_s: float = field(default_factory=time.monotonic)


class Tabs:
    """The jobs and files of every open page, by its session. Safe to call from any thread."""

    def __init__(self, folder: Path) -> None:
        """folder: where results are written; uploads lie in it too."""
        self._folder = folder
        self._tabs: dict[str, _Tab] = {}
        self._lock = threading.Lock()

    def begin(self, session: str) -> tuple[threading.Event, Path]:
        """A new job of this page: what is set when it must end, and an empty folder for what it makes.

        A job under way is told to end, and what the last one made is deleted: a page has one result at a time.
        """
        self._end_jobs(session)
        folder = self._folder / secrets.token_urlsafe(16)
        folder.mkdir(parents=True)
        cancelled = threading.Event()
        with self._lock:
            tab = self._tab(session)
            old, tab.folders, tab.result = tab.folders, [folder], None
            tab.begun = cancelled
        _delete(old)
        return cancelled, folder

    def turn(self, session: str, name: str) -> tuple[threading.Event, Path] | None:
        """The turn of the job has come that `begin` gave a folder of this name: what it gave. It runs until `end`.

        None where another job took its place, or the page is gone.
        """
        with self._lock:
            tab = self._tabs.get(session)
            if tab and tab.begun and tab.folders and tab.folders[-1].name == name:
                tab.running.append(tab.begun)
                return tab.begun, tab.folders[-1]
        return None

    def end(self, session: str, cancelled: threading.Event, result: object = None) -> None:
        """The job that `begin` gave this event is over. result: kept until the next job begins or the page goes."""
        with self._lock:
            tab = self._tabs.get(session)
            if tab and cancelled in tab.running:
                tab.running.remove(cancelled)
                tab.used_s = time.monotonic()
            if tab and cancelled is tab.begun:
                tab.begun, tab.result = None, result

    def result(self, session: str) -> object:
        """What the page's last job left; None where there is none."""
        with self._lock:
            tab = self._tabs.get(session)
            return tab.result if tab else None

    def uploaded(self, session: str, path: str | None) -> None:
        """Notes a file that the page sent, so that it goes with the page.

        What lies elsewhere than an upload does, each in a folder named by its hash, is not the page's to delete.
        """
        if path and Path(path).parent.parent == self._folder and _HASH.fullmatch(Path(path).parent.name):
            with self._lock:
                self._tab(session).uploads.add(Path(path).parent)

    def cancel(self, session: str) -> bool:
        """Whether there was a job to end."""
        return self._end_jobs(session)

    def close(self, session: str) -> None:
        """The page is gone: its jobs end, its files are deleted, unless another page sent the very same file."""
        self._end_jobs(session)
        with self._lock:
            tab = self._tabs.pop(session, _Tab())
            others = {folder for other in self._tabs.values() for folder in other.uploads}
        _delete(tab.folders)
        _delete(list(tab.uploads - others))

    def sweep(self, age_s: float) -> None:
        """Closes the pages that did nothing for so long: their visitors left without a word, or forgot them."""
        oldest_s = time.monotonic() - age_s
        with self._lock:
            idle = [session for session, tab in self._tabs.items() if tab.used_s < oldest_s and not tab.running]
        for session in idle:
            self.close(session)
        # empty files that the reading of uploads leaves behind
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
        """The page's, made at its first use; the lock is held."""
        tab = self._tabs.setdefault(session, _Tab())
        tab.used_s = time.monotonic()
        return tab

    def _end_jobs(self, session: str) -> bool:
        with self._lock:
            tab = self._tabs.get(session)
            jobs = [*tab.running, *([tab.begun] if tab.begun else [])] if tab else []
        for cancelled in jobs:
            cancelled.set()
        return bool(jobs)


def _delete(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
