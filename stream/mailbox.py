"""Mailbox: how threads pass values to each other."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):  # noqa: N818 - a state, not an error
    """The mailbox is closed: a put is refused, or a take finds nothing left."""


class Mailbox(Generic[T]):
    """A bounded queue that either blocks or keeps the newest, and that can always be closed.

    newest_wins=False: `put` waits for room, nothing is lost (files).
    newest_wins=True: `put` never waits; the oldest item is dropped and counted in `dropped` (cameras).
    """

    def __init__(self, capacity: int, *, newest_wins: bool) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox holds at least one item, got capacity {capacity}")
        self.dropped = 0
        self._capacity, self._newest_wins = capacity, newest_wins
        self._items: deque[T] = deque()
        self._closed = False
        # the default lock is re-entrant, so a signal handler may call close() while its thread holds it
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Raises Closed, also if closed while waiting for room."""
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
        """Returns the oldest item. Items put before close() can still be taken; after them it raises Closed.

        Raises TimeoutError if nothing arrives within timeout_s.
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
        """Wakes all waiting threads. discard: drop the remaining items, so that takers stop at once."""
        with self._changed:
            self._closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()
