"""Supervisor: several sources at once, a worker each, with one landmark model for all.

    supervisor = Supervisor(cfg, cameras, landmarker)
    with supervisor:
        while supervisor.running:
            ...  # supervisor.tiled() is the picture of all

A source that is slow, dead or wrong is its own affair: the others go on.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

import cv2
import numpy as np

from lineament.landmarks.types import U8, Landmarker, LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.analyse.warm import warm_up
from lineament.stream.read.reconnect import reconnecting
from lineament.stream.run.cameras import Camera, check_outputs, in_life
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.write.encode import letterboxed

log = logging.getLogger(__name__)

_JOIN_S = 60.0
"""the longest that all threads together may take to end: files are finished and connections closed"""


class Worker:
    """One camera and the thread that watches it."""

    def __init__(self, cfg: SessionConfig, camera: Camera, landmarker: Landmarker, outputs: Sequence[str]) -> None:
        """outputs: where the camera's go in this life of it."""
        self.name, self.camera = camera.name, camera
        self.error: BaseException | None = None
        """what ended it; None while it runs and after a good end"""
        self.drawn_bgr: U8 | None = None
        """(H, W, 3) the newest picture, with what was found drawn on it"""
        source = reconnecting(camera.spec, cfg.retry, patient=bool(cfg.retry.retry_s), called=camera.name)
        self.session = Session(cfg, source, landmarker, outputs, camera.spec)
        self.thread = threading.Thread(target=self._run, name=f"watch {camera.name}", daemon=True)

    def _run(self) -> None:
        try:
            with self.session:
                for _, drawn_bgr in self.session:
                    self.drawn_bgr = drawn_bgr
        except LineamentError as error:
            self.error, self.session.fault = error, str(error)
            log.error("%s ended: %s", self.name, error, extra={"source": self.name, "event": "ended"})
        except BaseException as error:  # a fault of ours, raised by Supervisor when the others are done
            self.error, self.session.fault = error, f"a fault: {type(error).__name__}"
            log.exception("%s ended by a fault", self.name, extra={"source": self.name, "event": "fault"})

    def stop(self) -> None:
        """Ends it soon, with every file whole."""
        self.session.source.close()
        self.session.stop()

    def live_line(self) -> str:
        """One short line on how it goes."""
        session = self.session
        if self.error is not None:
            return f"{self.name} ended: {self.error}"
        if session.trouble:
            return f"{self.name} {session.trouble}"
        return f"{self.name} {session.stats.fps:.1f} fps, dropped {session.dropped}, faces {session.stats.faces}"


class Supervisor:
    """Runs the cameras between __enter__ and __exit__; may be used once. landmarker: borrowed; all threads call it."""

    def __init__(self, cfg: SessionConfig, cameras: Sequence[Camera], landmarker: SharedLandmarker) -> None:
        check_outputs(cameras)
        self._cfg, self._landmarker = cfg, landmarker
        self._begun: Counter[str] = Counter()
        self.workers = [self._worker(camera) for camera in cameras]
        """never changed, but replaced: other threads may look through it"""

    @property
    def running(self) -> bool:
        """Whether any camera still is."""
        return any(worker.thread.is_alive() for worker in self.workers)

    def __enter__(self) -> Supervisor:
        warm_up(self._landmarker.alone, self._landmarker.card)
        for worker in self.workers:
            worker.thread.start()
        return self

    def stop(self) -> None:
        """Ends all soon, with every file whole. May be called from any thread and from a signal handler."""
        for worker in self.workers:
            worker.stop()

    def change(self, cameras: Sequence[Camera]) -> None:
        """Ends the cameras that are not in the list any more, starts those that are new in it; the rest go on.

        One whose source or outputs are different is ended and started; so is one that had ended by a failure. What is
        started writes beside the files of this run, never over them.
        """
        check_outputs(cameras)
        well = [worker for worker in self.workers if worker.thread.is_alive() or worker.error is None]
        going_on = {worker.camera: worker for worker in well if worker.camera in cameras}
        leaving = [worker for worker in self.workers if worker not in going_on.values()]
        for worker in leaving:
            worker.stop()
        _join(leaving)
        workers = [going_on.get(camera) or self._worker(camera) for camera in cameras]
        started, self.workers = [worker for worker in workers if worker.camera not in going_on], workers
        for worker in started:
            worker.thread.start()
        changes = {"ended": [worker.name for worker in leaving], "started": [worker.name for worker in started]}
        names = [", ".join(some) or "none" for some in changes.values()]
        extra = {"event": "cameras_changed", **changes}
        log.warning("the list of cameras changed: ended %s; started %s", *names, extra=extra)

    def _worker(self, camera: Camera) -> Worker:
        self._begun.update(camera.outputs)
        outputs = [in_life(path, self._begun[path]) for path in camera.outputs]
        return Worker(self._cfg, camera, self._landmarker, outputs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises what was no LineamentError in a thread, and LineamentError naming a thread that does not end."""
        self.stop()
        _join(self.workers)
        for worker in self.workers:
            if worker.error is not None and not isinstance(worker.error, LineamentError):
                raise worker.error

    def tiled(self, size_hw: tuple[int, int] = (720, 1280)) -> U8:
        """(H, W, 3) BGR: the newest picture of each camera side by side, or why there is none."""
        columns = math.ceil(math.sqrt(len(self.workers)))
        rows = math.ceil(len(self.workers) / columns)
        height, width = size_hw[0] // rows, size_hw[1] // columns
        canvas = np.zeros((*size_hw, 3), np.uint8)
        for index, worker in enumerate(self.workers):
            y, x = index // columns * height, index % columns * width
            tile = canvas[y : y + height, x : x + width]
            drawn, trouble = worker.drawn_bgr, worker.session.trouble or (str(worker.error) if worker.error else None)
            if drawn is not None:
                tile[:] = letterboxed(drawn, width, height)
            if trouble:
                tile //= 3
            for row, text in enumerate([worker.name, *([trouble] if trouble else [])]):
                at = (8, height - 10 - 18 * (1 - row) if trouble else height - 10)
                for tint, thick in (((20, 20, 20), 3), ((240, 240, 240), 1)):
                    cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, tint, thick, cv2.LINE_AA)
        return canvas


def _join(workers: Sequence[Worker]) -> None:
    """Raises LineamentError naming the threads that do not end."""
    until_s = time.monotonic() + _JOIN_S
    for worker in workers:
        if worker.thread.ident is not None:
            worker.thread.join(max(0.0, until_s - time.monotonic()))
    survivors = [worker.thread.name for worker in workers if worker.thread.is_alive()]
    if survivors:
        raise LineamentError(f"threads {survivors} did not end within {_JOIN_S:.0f} s; end the process")
