"""Sink: what takes every result. Each kind is a context manager and writes as frames come."""

from __future__ import annotations

from typing import Protocol, Self

from lineament.landmarks.types import U8, Result


class Sink(Protocol):
    """Takes every result with its drawing. A failure raises LineamentError; after one, closing is silent."""

    @property
    def lost(self) -> int:
        """Results not passed on, because whoever listens is slow or away; 0 for what writes to a disk."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """drawn_bgr: (H, W, 3) uint8, result's frame with what was found drawn on it."""
        ...

    def close(self) -> None:
        """Finishes what was begun; may be called twice."""
        ...
