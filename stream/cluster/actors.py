"""Actors: the processes of a cluster, each with one camera or one landmark model.

driver.py turns them into Ray actors and controls them; tests use them directly.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import cv2
import numpy as np

from lineament import engines
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import install
from lineament.landmarks.types import U8, Landmarker, Landmarks, LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.analyse.detect import VideoDetector
from lineament.stream.analyse.followed import TrackerState
from lineament.stream.run.cameras import Camera, in_run
from lineament.stream.run.session import SessionConfig
from lineament.stream.run.supervisor import Worker

CALL_S = 10.0
"""timeout of a call to an engine"""
STOP_S = 65.0
"""timeout for a camera to end: it finishes files and closes connections"""
_LAST_CALL_S = 2.0
"""timeout of a pending call when its camera ends"""
_REFUSED_S, _HUNG_S = 1.0, 60.0
"""pause before an engine that refused, or did not answer, is used again"""
_WAKE_S = 0.25
"""between two checks for close() while waiting for an answer"""


@dataclass(frozen=True, slots=True)
class Job:
    """The job of a camera's actor."""

    cfg: SessionConfig
    camera: Camera
    run: int
    """1, 2, ...: how often this camera was started"""
    card: ModelCard
    engines: tuple[Any, ...]
    first: int
    """index of the engine to use first"""
    resume_s: float
    state: TrackerState
    """of the previous tracker"""
    fresh_for_s: float
    """for which its faces are valid"""

    def __repr__(self) -> str:
        return f"Job({self.camera.name}, run {self.run})"  # a spec may contain a password


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """The status of a camera."""

    line: str
    summary: str | None
    """when it is done"""
    frames: int
    """drawn, in this run"""
    fps: float
    state: TrackerState | None
    """None before the first frame"""
    error: str | None
    done: bool
    cpu_s: float
    """CPU time of its process"""


class CameraActor:
    """One camera in its own process: capture, detector, tracker, smoothing, outputs.

    Called by several threads. Empty until begin(), also after a restart by Ray.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        with VideoDetector() as find:  # the first call takes a second, during which faces would be lost
            find(np.zeros((64, 64, 3), np.uint8))
        self._worker: Worker | None = None
        self._landmarker: RemoteLandmarker | None = None
        self._told_to_stop = False
        self._beginning = threading.Lock()

    def begin(self, job: Job) -> CameraStatus | None:
        """Starts the job, once: a driver that missed the answer calls it again."""
        with self._beginning:
            if self._worker is None:
                self._begin(job)
        return self.status()

    def _begin(self, job: Job) -> None:
        os.umask(0o077)
        logging.basicConfig(level=logging.INFO, format=f"{job.camera.name}: %(message)s", stream=sys.stderr)
        landmarker = RemoteLandmarker(job.card, job.engines, job.first, job.resume_s)
        worker = Worker(job.cfg, job.camera, landmarker, [in_run(path, job.run) for path in job.camera.outputs])
        if job.run > 1:
            worker.session.before = (job.state, time.monotonic() + job.fresh_for_s)
        self._landmarker, self._worker = landmarker, worker
        worker.thread.start()

    def status(self) -> CameraStatus | None:
        """None before begin()."""
        if (worker := self._worker) is None:
            return None
        session = worker.session
        seen = session.tracker is not None and session.stats.frames > 0
        state = session.tracker.state() if session.tracker is not None and seen else None
        error = None if worker.error is None or self._told_to_stop else session.fault or str(worker.error)
        done = not worker.thread.is_alive()
        return CameraStatus(
            worker.live_line(),
            session.summary() if done else None,
            session.stats.frames,
            session.stats.fps,
            state,
            error,
            done,
            time.process_time(),
        )

    def stop(self) -> CameraStatus | None:
        """Ends it with its files complete."""
        if self._worker is None or self._landmarker is None:
            return None
        self._told_to_stop = self._worker.thread.is_alive()
        self._worker.stop()
        self._worker.thread.join(_LAST_CALL_S)
        self._landmarker.close()
        self._worker.thread.join(STOP_S - _LAST_CALL_S)
        return self.status()


@dataclass(slots=True)
class _Known:
    """A camera's view of an engine."""

    actor: Any
    away_until_s: float = 0.0
    probe: Any = None
    """pending call that tests whether it is back; None while it is believed to be up"""


class RemoteLandmarker:
    """A Landmarker that uses the engines in turn and skips lost ones.

    One thread calls; any may close, which ends a pending call. If all engines are lost, a call waits up to resume_s for
    one to come back.
    """

    def __init__(self, card: ModelCard, engines: Sequence[Any], first: int, resume_s: float) -> None:
        """engines: handles of Engine actors. first: index of the one to use first."""
        self._card, self._resume_s = card, resume_s
        self._engines = deque(_Known(actor) for actor in engines)
        self._engines.rotate(-first)
        self._closed = threading.Event()
        self._ray = load_ray()

    @property
    def card(self) -> ModelCard:
        return self._card

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        until_s, reason = time.monotonic() + self._resume_s, "all are lost"
        while True:
            if self._closed.is_set():
                raise LineamentError("the landmarker was closed")
            engine = self._next()
            if engine is None:
                if time.monotonic() > until_s:
                    raise LineamentError(
                        f"no engine answered for {self._resume_s:g} s (last reason: {reason}); "
                        "check that their machines are up"
                    )
                self._closed.wait(_WAKE_S)
                continue
            try:
                return self._ask(engine.actor, rgb_NHWC)
            except _RefusedError as error:
                reason, engine.away_until_s = str(error), time.monotonic() + _REFUSED_S
            except self._ray.exceptions.RayTaskError:  # a bug in the model, which all engines share
                raise
            except self._ray.exceptions.GetTimeoutError:
                reason, engine.away_until_s = f"no answer for {CALL_S:.0f} s", time.monotonic() + _HUNG_S
            except self._ray.exceptions.RayError as error:
                reason = type(error).__name__
            engine.probe = engine.actor.status.remote()

    def _next(self) -> _Known | None:
        """The next engine that is up; None if there is none."""
        for _ in range(len(self._engines)):
            self._engines.rotate(-1)
            if self._is_there(self._engines[0]):
                return self._engines[0]
        return None

    def _is_there(self, engine: _Known) -> bool:
        """Whether it is up. A lost engine gets crops only after a probe, because crops would wait for its start."""
        if engine.probe is not None:
            ready, _ = self._ray.wait([engine.probe], timeout=0)
            if not ready:
                return False
            probe, engine.probe = engine.probe, None
            try:
                self._ray.get(probe, timeout=CALL_S)
            except self._ray.exceptions.RayError:
                engine.probe = engine.actor.status.remote()
                return False
        return time.monotonic() >= engine.away_until_s

    def _ask(self, engine: Any, rgb_NHWC: U8) -> Landmarks:
        call, until_s = engine.landmarks.remote(rgb_NHWC, self._card), time.monotonic() + CALL_S
        while True:
            try:
                return answer(self._ray, call, _WAKE_S, _RefusedError)  # type: ignore[no-any-return]
            except self._ray.exceptions.GetTimeoutError:
                if self._closed.is_set():
                    raise LineamentError("the landmarker was closed") from None
                if time.monotonic() > until_s:
                    raise

    def close(self) -> None:
        self._closed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The status of an engine."""

    born: str
    """unique per actor"""
    crops: int
    batches: int
    cpu_s: float
    """CPU time of its process"""


class Engine:
    """One landmark model in its own process. Crops that arrive while it is busy form one batch.

    Called by several threads. The model is loaded by the first call, so that errors reach the caller.
    """

    def __init__(self, model: str, device: str, threads: int) -> None:
        cv2.setNumThreads(1)
        self._model, self._device, self._threads = model, device, threads
        self._born = uuid.uuid4().hex
        self._shared: SharedLandmarker | None = None
        self._loading = threading.Lock()

    def card(self) -> ModelCard:
        return self._loaded().card

    def landmarks(self, rgb_NHWC: U8, card: ModelCard) -> Landmarks:
        """card: of the model that the caller expects."""
        shared = self._loaded()
        check_same_model(card, shared.card)
        return shared(rgb_NHWC)

    def status(self) -> EngineStatus:
        shared = self._loaded()
        return EngineStatus(self._born, shared.crops, shared.batches, time.process_time())

    def _loaded(self) -> SharedLandmarker:
        with self._loading:
            if self._shared is None:
                landmarker: Landmarker = engines.load(self._model, self._device, self._threads)
                landmarker(np.zeros((1, *landmarker.card.input_hw, 3), np.uint8))  # the first call is slow
                self._shared = SharedLandmarker(landmarker)
            return self._shared


def load_ray() -> Any:
    """Imports Ray; raises LineamentError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage by default
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise LineamentError(f"Ray cannot be imported ({error}); run {install('cluster')}") from None
    return ray


def answer(ray: Any, call: Any, timeout_s: float, kind: type[Exception] = LineamentError) -> Any:
    """A call's result; a LineamentError in the actor is raised as `kind`, others as Ray's."""
    try:
        return ray.get(call, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LineamentError):
            raise kind(str(error.cause)) from None
        raise


def check_same_model(ours: ModelCard, theirs: ModelCard) -> None:
    """Raises LineamentError unless both are the same model; precision and build may differ."""
    if replace(ours, precision="", built_with={}) != replace(theirs, precision="", built_with={}):
        raise LineamentError(
            f"the engines have different models: {ours.name} {ours.weights_sha256[:8]} and {theirs.name} "
            f"{theirs.weights_sha256[:8]}; give all machines the same file and the same version of Lineament"
        )


class _RefusedError(Exception):
    """An engine refused a call; another may accept it."""
