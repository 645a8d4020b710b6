"""Actors: what runs in the processes of a cluster: a camera in each, or a landmark model. Ray makes actors of them.

driver.py starts them and tells them what to do; tests use them without it.
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
"""an engine that has not answered for so long is as good as lost"""
STOP_S = 65.0
"""the longest that a camera may take to end: files are finished and connections closed"""
_LAST_CALL_S = 2.0
"""a call under way may take so long when its camera ends; then it is given up"""
_REFUSED_S, _HUNG_S = 1.0, 60.0
"""so long nobody asks an engine again that could not do it, or that did not answer"""
_WAKE_S = 0.25
"""a wait for an answer looks up this often, to see whether it was closed"""


@dataclass(frozen=True, slots=True)
class Job:
    """What a camera's actor is told to do."""

    cfg: SessionConfig
    camera: Camera
    life: int
    """1, 2, ...: how many actors have had this camera"""
    card: ModelCard
    engines: tuple[Any, ...]
    first: int
    """the engine to ask first"""
    resume_s: float
    state: TrackerState
    """of the tracker before"""
    fresh_for_s: float
    """so long its faces count"""

    def __repr__(self) -> str:
        return f"Job({self.camera.name}, life {self.life})"  # a spec may hold a password


@dataclass(frozen=True, slots=True)
class CameraStatus:
    """How it goes with a camera."""

    line: str
    summary: str | None
    """once it is done"""
    frames: int
    """drawn, in this life"""
    fps: float
    state: TrackerState | None
    """None before the first frame"""
    error: str | None
    done: bool
    cpu_s: float
    """processor time of its process"""


class CameraActor:
    """One camera in a process of its own: capture, detector, tracker, smoothing, outputs.

    Several threads call it. It is empty until begin(), also after Ray has started it anew.
    """

    def __init__(self) -> None:
        cv2.setNumThreads(1)
        with VideoDetector() as find:  # the first call takes a second, in which faces would get lost
            find(np.zeros((64, 64, 3), np.uint8))
        self._worker: Worker | None = None
        self._landmarker: RemoteLandmarker | None = None
        self._told_to_stop = False
        self._beginning = threading.Lock()

    def begin(self, job: Job) -> CameraStatus | None:
        """Once: a driver that did not hear the answer tells it again."""
        with self._beginning:
            if self._worker is None:
                self._begin(job)
        return self.status()

    def _begin(self, job: Job) -> None:
        os.umask(0o077)
        logging.basicConfig(level=logging.INFO, format=f"{job.camera.name}: %(message)s", stream=sys.stderr)
        landmarker = RemoteLandmarker(job.card, job.engines, job.first, job.resume_s)
        worker = Worker(job.cfg, job.camera, landmarker, [in_run(path, job.life) for path in job.camera.outputs])
        if job.life > 1:
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
        """Ends it with its files whole."""
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
    """What a camera knows of an engine."""

    actor: Any
    away_until_s: float = 0.0
    probe: Any = None
    """the call whose answer will say that it is there again; None while nobody thinks otherwise"""


class RemoteLandmarker:
    """A Landmarker whose model is in the engines, which are asked in turn; one that is lost is passed over.

    One thread calls; any may close, which ends a call under way. A call waits for resume_s at most, for an engine
    to come back where there is none.
    """

    def __init__(self, card: ModelCard, engines: Sequence[Any], first: int, resume_s: float) -> None:
        """engines: handles of Engine's actors. first: which of them to ask first."""
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
                        f"no engine answered for {self._resume_s:g} s, the last for this reason: {reason}; "
                        "see whether their machines are there"
                    )
                self._closed.wait(_WAKE_S)
                continue
            try:
                return self._ask(engine.actor, rgb_NHWC)
            except _RefusedError as error:
                reason, engine.away_until_s = str(error), time.monotonic() + _REFUSED_S
            except self._ray.exceptions.RayTaskError:  # a fault in the model, which another would have as well
                raise
            except self._ray.exceptions.GetTimeoutError:
                reason, engine.away_until_s = f"no answer for {CALL_S:.0f} s", time.monotonic() + _HUNG_S
            except self._ray.exceptions.RayError as error:
                reason = type(error).__name__
            engine.probe = engine.actor.status.remote()

    def _next(self) -> _Known | None:
        """The next in turn of those that are there."""
        for _ in range(len(self._engines)):
            self._engines.rotate(-1)
            if self._is_there(self._engines[0]):
                return self._engines[0]
        return None

    def _is_there(self, engine: _Known) -> bool:
        """One that was lost gets crops again once it has answered a question: crops would wait for its start."""
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
    """How it goes with an engine."""

    born: str
    """unlike that of any other actor"""
    crops: int
    batches: int
    cpu_s: float
    """processor time of its process"""


class Engine:
    """One landmark model in a process of its own. Crops that come while it is busy go through it as one batch.

    Several threads call it. The model is loaded with the first call, so that what prevents it can be told to whoever
    calls.
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
        """card: of the model that the caller takes this one for."""
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
                landmarker(np.zeros((1, *landmarker.card.input_hw, 3), np.uint8))  # the first is slow
                self._shared = SharedLandmarker(landmarker)
            return self._shared


def load_ray() -> Any:
    """Ray; raises LineamentError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every run
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise LineamentError(f"Ray cannot be imported ({error}); run {install('cluster')}") from None
    return ray


def answer(ray: Any, call: Any, timeout_s: float, kind: type[Exception] = LineamentError) -> Any:
    """A call's result; a LineamentError in the actor is raised here, as `kind`. Others are Ray's."""
    try:
        return ray.get(call, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LineamentError):
            raise kind(str(error.cause)) from None
        raise


def check_same_model(ours: ModelCard, theirs: ModelCard) -> None:
    """How it was built may differ, as machines do."""
    if replace(ours, precision="", built_with={}) != replace(theirs, precision="", built_with={}):
        raise LineamentError(
            f"the engines have different models: {ours.name} {ours.weights_sha256[:8]} and {theirs.name} "
            f"{theirs.weights_sha256[:8]}; give all machines the same file and the same version of this program"
        )


class _RefusedError(Exception):
    """An engine cannot do it, and says why; another may."""
