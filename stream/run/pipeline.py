"""Pipeline: reads and analyses a source's frames in parallel; every frame of a file, the newest of a live source.

    with Pipeline(source, tracker) as results:
        for result in results:
            ...

    capture thread --frames--> inference thread --results--> caller

The three overlap. For a live source each mailbox keeps only the newest item, frames that are too old are dropped, and
drops are counted; a file loses nothing. Leaving the block closes both mailboxes and the source and joins both threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import TracebackType

from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.mailbox import Closed, Mailbox
from lineament.stream.read.base import Source

_FILE_QUEUE = 4
"""mailbox size for a file: enough to absorb a slow frame, small enough to save memory"""
_IDLE_S = 0.3
"""between two calls of idle while waiting for a result; also lets Windows deliver Ctrl-C"""
_SHOWN_EVERY_S = 1.0
"""a result is yielded this often at any age, so that a machine too slow for max_age_s shows something"""
_JOIN_S = 15.0
"""timeout for a thread to end: longer than a source's read timeout plus a slow model's frame"""


class Pipeline:
    """Owns the source and two threads between __enter__ and __exit__; can be used once.

    analyse: Frame -> Result; called by the inference thread alone.
    idle: called in the caller's thread, a few times a second, while it waits for a result.
    max_age_s: a live frame older than this is neither analysed nor yielded, unless nothing was yielded for a second.
    """

    def __init__(
        self,
        source: Source,
        analyse: Callable[[Frame], Result],
        idle: Callable[[], None] = lambda: None,
        max_age_s: float = math.inf,
    ) -> None:
        self.source = source
        self._analyse, self._idle, self._max_age_s = analyse, idle, max_age_s
        self._shown_s = -math.inf
        """when the last result was yielded"""
        # each written by one thread: inference, the caller's
        self._stale_frames = self._stale_results = 0
        self._error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._frames: Mailbox[tuple[Frame, float]]
        self._results: Mailbox[Result]

    @property
    def dropped(self) -> int:
        """Frames captured but not yielded, because newer ones came or they were too old. 0 for a file."""
        return self._frames.dropped + self._results.dropped + self.stale

    @property
    def stale(self) -> int:
        """The dropped frames that were too old."""
        return self._stale_frames + self._stale_results

    def __enter__(self) -> Pipeline:
        """Opens the source; if that raises, nothing is left running."""
        if self._threads:
            raise RuntimeError("a Pipeline runs once; make a new one")
        self.source.__enter__()
        # only an open source knows whether it is live
        capacity, live = (1 if self.source.live else _FILE_QUEUE), self.source.live
        self._frames, self._results = Mailbox(capacity, newest_wins=live), Mailbox(capacity, newest_wins=live)
        for stage, job in (("capture", self._capture), ("inference", self._infer)):
            thread = threading.Thread(target=self._run, args=(job,), name=f"{stage} {self.source.name}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __iter__(self) -> Iterator[Result]:
        """Yields results until the source ends or stop() is called; raises the first error of a thread."""
        try:
            while True:
                try:
                    result = self._results.take(timeout_s=_IDLE_S)
                except TimeoutError:
                    self._idle()
                    continue
                if self._is_stale(result.frame):
                    self._stale_results += 1
                else:
                    self._shown_s = time.monotonic()
                    yield result
        except Closed:
            pass
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the iteration soon and drops frames in flight. May be called from any thread or signal handler."""
        self._frames.close(discard=True)
        self._results.close(discard=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises LineamentError naming any thread that does not end."""
        self.stop()
        self.source.close()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        survivors = [thread.name for thread in self._threads if thread.is_alive()]
        if survivors:
            raise LineamentError(
                f"threads {survivors} did not end within {_JOIN_S:.0f} s; "
                "the source or the model hangs: kill the process"
            ) from error

    def _run(self, job: Callable[[], None]) -> None:
        """Runs a thread's job; keeps the first error for the caller and never leaves the others waiting."""
        try:
            job()
        except Closed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the caller, who raises it
            self._error = self._error or error
            self.stop()

    def _capture(self) -> None:
        while True:
            began = time.perf_counter()
            frame = self.source.read()
            if frame is None:
                self._frames.close()
                return
            self._frames.put((frame, (time.perf_counter() - began) * 1e3))

    def _infer(self) -> None:
        while True:
            try:
                frame, capture_ms = self._frames.take()
            except Closed:
                self._results.close()
                return
            if self._is_stale(frame):
                self._stale_frames += 1
                continue
            result = self._analyse(frame)
            self._results.put(replace(result, ms={"capture": capture_ms, **result.ms}))

    def _is_stale(self, frame: Frame) -> bool:
        now_s = time.monotonic()
        too_old = self.source.live and now_s - frame.captured_s > self._max_age_s
        return too_old and now_s - self._shown_s < _SHOWN_EVERY_S
