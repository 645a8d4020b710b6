"""Reconnecting: reopens a lost camera or stream, with growing pauses.

with reconnecting("rtsp://10.0.0.5/live") as source:
    while (frame := source.read()) is not None:
        ...
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.backoff import Backoff
from lineament.stream.read.base import Health, Source
from lineament.stream.read.open import open_source
from lineament.stream.read.spec import ReadConfig, again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """When to give up on a lost live source."""

    retry_s: float = math.inf
    """Seconds to try to reconnect to a lost camera or stream; 0 ends the run instead. Files are never reopened."""

    def __post_init__(self) -> None:
        if not self.retry_s >= 0:
            raise ValueError(f"retry_s must be 0 or more seconds, got {self.retry_s}")


def reconnecting(
    spec: str,
    cfg: RetryConfig | None = None,
    read: ReadConfig | None = None,
    *,
    patient: bool = False,
    called: str = "",
) -> ReconnectingSource:
    """The source of open_source(spec, read), reopened if it is live and was lost."""
    return ReconnectingSource(
        open_source(spec, read), lambda: open_source(again(spec), read), cfg, patient=patient, called=called
    )


class ReconnectingSource:
    """Any source, reopened if it is live and was lost; a source that is not live passes through.

    Frame numbers and times continue over the gap; the size may change. One thread reads, any may close: that ends a
    pause, a connection attempt and a read of a URL at once.
    """

    def __init__(
        self,
        source: Source,
        again: Callable[[], Source],
        cfg: RetryConfig | None = None,
        *,
        patient: bool = False,
        called: str = "",
    ) -> None:
        """again: creates a new source, unopened. patient: a live source may be unreachable at the start, too.

        called: the `source` of its log records, if not the source's own name.
        """
        self.reconnects = 0
        """how often it was lost and came back"""
        self.name = source.name
        self._called = called or source.name
        self.live, self.still = source.live, source.still
        self.fps, self.frame_count = source.fps, source.frame_count
        self._source, self._again, self._cfg, self._patient = source, again, cfg or RetryConfig(), patient
        self._closed = threading.Event()
        self._open = False
        self._backoff = Backoff()
        """up from the first picture of a connection"""
        self._first_s: float | None = None
        """the clock at time_s 0"""
        self._next_index = self._first_index = 0
        self._gap_s = 0.0

    @property
    def health(self) -> Health:
        return Health(self.reconnects, self.trouble, self.down_s, self.lost_s)

    @property
    def trouble(self) -> str | None:
        """The error that explains why there is no picture; None while there is one."""
        return self._backoff.trouble

    @property
    def down_s(self) -> float:
        """Seconds since it was lost; 0 while it is up."""
        return self._backoff.down_s

    @property
    def lost_s(self) -> float:
        """Seconds of all outages, including this one."""
        return self._backoff.lost_s

    def __enter__(self) -> Self:
        """Raises the source's error; a patient live source is opened by the first read instead."""
        if not (self._patient and self.live):
            self._open_source()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        """The next frame, however long it takes. Raises LineamentError after retry_s, or if a file is damaged."""
        while not self._closed.is_set():
            try:
                if not self._open:
                    self._open_source()
                frame = self._source.read()
            except LineamentError as error:
                if not self.live:
                    raise
                self._lose(error)
                continue
            if frame is not None:
                return self._continued(frame)
            if not self.live or not self._cfg.retry_s:
                break
            if not self._closed.is_set():
                self._lose(LineamentError(f"lost {self.name}: the sender ended it; restart it"))
        return None

    def close(self) -> None:
        self._closed.set()
        self._source.close()

    def _open_source(self) -> None:
        if self.trouble is not None:
            self._source = self._again()
        if self._closed.is_set():  # close() may have closed the previous one
            self._source.close()
        source = self._source.__enter__()
        self._open = True
        self.live, self.still, self.fps, self.frame_count = source.live, source.still, source.fps, source.frame_count
        if self._next_index and not self.live:  # a broadcast that ended and became a recording
            self.close()

    def _lose(self, error: LineamentError) -> None:
        """Logs the loss and pauses before the next attempt. Raises error if there is none."""
        self._source.close()
        self._open = False
        loss = self._backoff.lose(error)
        if self.down_s + loss.pause_s > self._cfg.retry_s:
            if loss.first:
                raise error
            raise LineamentError(f"{error}; gave up after {self.down_s:.0f} s") from None
        if loss.news:
            event = {"source": self._called, "event": "refused" if loss.refused else "lost"}
            log.warning("%s; %s", error, loss.next_try, extra=event)
        self._closed.wait(loss.pause_s)

    def _continued(self, frame: Frame) -> Frame:
        """The frame, with number and time continued over the gap."""
        if self._first_s is None:
            self._first_s = frame.captured_s - frame.time_s
        if not self._backoff.is_up and (down_s := self._backoff.come_up()) is not None:
            self._come_back(frame, down_s)
        self._next_index += 1
        if not self._first_index:
            return frame
        return replace(frame, index=self._first_index + frame.index, time_s=self._gap_s + frame.time_s)

    def _come_back(self, frame: Frame, down_s: float) -> None:
        assert self._first_s is not None
        if self._next_index:
            self.reconnects += 1
        event = {"source": self._called, "event": "back", "down_s": round(down_s, 1)}
        log.warning("%s is back after %.1f s", self.name, down_s, extra=event)
        self._first_index = self._next_index - frame.index
        self._gap_s = frame.captured_s - self._first_s - frame.time_s
