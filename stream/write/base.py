"""Sink: the protocol of everything that receives results. A context manager; writes frame by frame."""

from __future__ import annotations

from typing import Protocol, Self

from lineament.landmarks.types import U8, Result


class Sink(Protocol):
    """Receives every result with its drawing. A failure raises LineamentError; after one, closing is silent."""

    @property
    def lost(self) -> int:
        """Results not delivered because the receiver is slow or away; 0 for files."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

    def write(self, result: Result, drawn_bgr: U8) -> None:
        """drawn_bgr: (H, W, 3) uint8, the frame with its drawing."""
        ...

    def close(self) -> None:
        """Finishes all writes; may be called twice."""
        ...
