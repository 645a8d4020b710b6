"""Mailbox: the only way one thread hands a value to another here."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - a state, not a fault
    """The mailbox was closed: a put is refused, or a take found it empty for good."""


class Mailbox(Generic[T]):
    """A bounded queue that is either patient or fresh, and that always lets go.

    newest_wins=False: `put` waits for room, nothing is lost (files).
    newest_wins=True: `put` never waits; the oldest item goes and is counted in `dropped` (cameras).
    """

    def __init__(self, capacity: int, *, newest_wins: bool) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox holds at least one item, got capacity {capacity}")
        self.dropped = 0
        self._capacity, self._newest_wins = capacity, newest_wins
        self._items: deque[T] = deque()
        self._closed = False
        # the default lock is re-entrant, so that a signal handler may call close() while its thread is in here
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Raises Closed, also when closed while waiting for room."""
        with self._changed:
            while not self._closed and not self._newest_wins and len(self._items) >= self._capacity:
                self._changed.wait()
            if self._closed:
                raise Closed
            if len(self._items) >= self._capacity:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()

    def take(self, timeout_s: float | None = None) -> T:
        """The oldest item. What was put before close() can still be taken; then raises Closed.

        Raises TimeoutError when nothing came within timeout_s.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._closed, timeout_s):
                raise TimeoutError(f"nothing arrived within {timeout_s} s")
            if not self._items:
                raise Closed
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Wakes everyone who waits. discard: drop what is still inside, so that takers stop at once."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
