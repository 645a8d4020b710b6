"""Supervisor: several sources at once, one worker each, sharing one landmark model.

    supervisor = Supervisor(cfg, cameras, landmarker)
    with supervisor:
        while supervisor.running:
            ...  # supervisor.tiled() is the picture of all

A source that is slow, dead or wrong does not affect the others.
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
from lineament.stream.run.cameras import Camera, check_outputs, in_run
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.write.encode import letterboxed

log = logging.getLogger(__name__)

_JOIN_S = 60.0
"""timeout for all threads together to end: they finish files and close connections"""


class Worker:
    """One camera and the thread that runs it."""

    def __init__(self, cfg: SessionConfig, camera: Camera, landmarker: Landmarker, outputs: Sequence[str]) -> None:
        """outputs: the camera's, as numbered for this run of it."""
        self.name, self.camera = camera.name, camera
        self.error: BaseException | None = None
        """the error that ended it; None while it runs and after a normal end"""
        self.drawn_bgr: U8 | None = None
        """(H, W, 3) the newest frame with its drawing"""
        patient = bool(cfg.retry.retry_s)
        source = reconnecting(camera.spec, cfg.retry, camera.read or cfg.read, patient=patient, called=camera.name)
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
        except BaseException as error:  # a bug, raised by Supervisor when the others are done
            self.error, self.session.fault = error, f"internal error: {type(error).__name__}"
            log.exception("%s ended by an internal error", self.name, extra={"source": self.name, "event": "fault"})

    def stop(self) -> None:
        """Ends it soon, with every file complete."""
        self.session.source.close()
        self.session.stop()

    def live_line(self) -> str:
        """Its status in one short line."""
        session = self.session
        if self.error is not None:
            return f"{self.name} ended: {self.error}"
        if session.trouble:
            return f"{self.name} {session.trouble}"
        return f"{self.name} {session.stats.fps:.1f} fps, dropped {session.dropped}, faces {session.stats.faces}"


class Supervisor:
    """Runs cameras between __enter__ and __exit__; can be used once. landmarker: borrowed; called by all threads."""

    def __init__(self, cfg: SessionConfig, cameras: Sequence[Camera], landmarker: SharedLandmarker) -> None:
        check_outputs(cameras)
        self._cfg, self._landmarker = cfg, landmarker
        self._runs: Counter[str] = Counter()
        self.workers = [self._worker(camera) for camera in cameras]
        """never mutated, only replaced: other threads may iterate over it"""

    @property
    def running(self) -> bool:
        """Whether any camera is still running."""
        return any(worker.thread.is_alive() for worker in self.workers)

    def sessions(self) -> dict[str, Session]:
        """The sessions of now, by camera name."""
        return {worker.name: worker.session for worker in self.workers}

    def __enter__(self) -> Supervisor:
        warm_up(self._landmarker.alone, self._landmarker.card)
        for worker in self.workers:
            worker.thread.start()
        return self

    def stop(self) -> None:
        """Ends all soon, with every file complete. May be called from any thread and from a signal handler."""
        for worker in self.workers:
            worker.stop()

    def change(self, cameras: Sequence[Camera]) -> None:
        """Ends the cameras missing from the list and starts the new ones; the rest keep running.

        A camera whose source or outputs changed is restarted; so is one that failed. A restarted camera writes beside
        the files of this run, never over them.
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
        self._runs.update(camera.outputs)
        outputs = [in_run(path, self._runs[path]) for path in camera.outputs]
        return Worker(self._cfg, camera, self._landmarker, outputs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raises what is not a LineamentError in a thread, and LineamentError naming a thread that does not end."""
        self.stop()
        _join(self.workers)
        for worker in self.workers:
            if worker.error is not None and not isinstance(worker.error, LineamentError):
                raise worker.error

    def tiled(self, size_hw: tuple[int, int] = (720, 1280)) -> U8:
        """(H, W, 3) BGR: the newest frame of each camera side by side, or the reason why there is none."""
        columns = math.ceil(math.sqrt(len(self.workers)))
        rows = math.ceil(len(self.workers) / columns)
        height, width = size_hw[0] // rows, size_hw[1] // columns
        canvas = np.zeros((*size_hw, 3), np.uint8)
        for index, worker in enumerate(self.workers):
            y, x = index // columns * height, index % columns * width
            _draw_tile(canvas[y : y + height, x : x + width], worker)
        return canvas


def _draw_tile(tile_bgr: U8, worker: Worker) -> None:
    """Fills (H, W, 3) with a worker's newest frame and name; darkened and with the reason while there is no picture."""
    height, width = tile_bgr.shape[:2]
    drawn, trouble = worker.drawn_bgr, worker.session.trouble or (str(worker.error) if worker.error else None)
    if drawn is not None:
        tile_bgr[:] = letterboxed(drawn, width, height)
    if trouble:
        tile_bgr //= 3
    for row, text in enumerate([worker.name, *([trouble] if trouble else [])]):
        at = (8, height - 10 - 18 * (1 - row) if trouble else height - 10)
        for tint, thick in (((20, 20, 20), 3), ((240, 240, 240), 1)):
            cv2.putText(tile_bgr, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, tint, thick, cv2.LINE_AA)


def _join(workers: Sequence[Worker]) -> None:
    """Raises LineamentError naming the threads that do not end."""
    until_s = time.monotonic() + _JOIN_S
    for worker in workers:
        if worker.thread.ident is not None:
            worker.thread.join(max(0.0, until_s - time.monotonic()))
    survivors = [worker.thread.name for worker in workers if worker.thread.is_alive()]
    if survivors:
        raise LineamentError(f"threads {survivors} did not end within {_JOIN_S:.0f} s; end the process")
