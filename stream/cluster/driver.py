"""Cluster: cameras and landmark models spread over the machines of a Ray cluster, or over this machine alone.

    python -m stream.cluster --cameras cameras.yaml --engines 2
    python -m stream.cluster --cameras cameras.yaml --engines 8 --gpus-per-engine 0.25 --address auto

    driver --begin, status, stop--> camera actors --crops--> engine actors
             <--tracker's state--     capture, tracking,       one landmark model each,
                                      smoothing, outputs       micro-batches

Ray restarts a lost actor, empty. The driver notices and gives it its camera and the last state of its predecessor's
tracker, so that faces keep their ids. Only this module and actors.py import Ray.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

import tyro

from lineament import engines
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line, renamed, stopped_by_signals
from lineament.landmarks.types import LineamentError
from lineament.stream import FOUND_IN
from lineament.stream.analyse.followed import TrackerState
from lineament.stream.cluster.actors import (
    CALL_S,
    STOP_S,
    CameraActor,
    CameraStatus,
    Engine,
    EngineStatus,
    Job,
    answer,
    check_same_model,
    load_ray,
)
from lineament.stream.run.cameras import Camera, check_outputs, read_cameras
from lineament.stream.run.session import OLD_OPTIONS, SessionConfig

log = logging.getLogger("lineament")

_START_S = 120.0
"""timeout for all engines to be placed, started and loaded"""
_LOOK_EVERY_S = 0.5
"""between two polls of all actors; the state of a lost tracker is that old, plus the time of a call"""
_TELL_EVERY_S = 5.0
_SPARE_IDS = 1000
"""ids skipped at a restart: faces that appeared after the last poll of the lost camera had some of them"""
_STORE_BYTES = 128 * 2**20
"""Ray's shared memory on a local run; crops are some kB"""


@dataclass(frozen=True)
class ClusterConfig:
    """Puts 98 landmarks on every face of many cameras, on many machines. Ctrl-C ends a run cleanly at any time."""

    cameras: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """YAML file of cameras, as in docs/cameras.md. It is read on this machine; sources and outputs are opened where
    the camera runs."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = engines.DEFAULT
    """The landmark model, as for `python -m stream`; a file must exist at this path on every machine with an engine."""
    device: str = "auto"
    """Where the model runs, as for `python -m stream`."""
    address: str | None = None
    """Address of a Ray cluster that this machine belongs to: 'auto', or host:port of its head. By default, a cluster
    of this machine alone is started for the run."""
    engines: int = 1
    """Copies of the model, spread over the machines."""
    gpus_per_engine: float = 0.0
    """GPUs per engine: 0.25 puts four on one. Ray only counts; the engines have to fit into its memory together."""
    cpus_per_engine: float = 0.5
    """CPU cores that Ray reserves per engine; a model on the CPU uses as many threads, rounded up."""
    cpus_per_camera: float = 0.25
    """CPU cores that Ray reserves per camera; docs/cluster.md has measurements."""
    resume_s: float = 30.0
    """Seconds for which a face keeps its id while its camera's actor restarts, and for which a camera waits for an
    engine when all are lost."""
    session: Annotated[SessionConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        if self.engines < 1:
            raise ValueError(f"engines must be at least 1, got {self.engines}")
        for name in ("gpus_per_engine", "cpus_per_engine", "cpus_per_camera", "resume_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.gpus_per_engine > 1 and self.gpus_per_engine % 1:
            raise ValueError(f"gpus_per_engine must be a share of one GPU or whole ones, got {self.gpus_per_engine}")


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Returns the exit code, as `python -m stream` does."""
    os.umask(0o077)  # outputs show faces: only this user may read them, and Ray's token
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run(tyro.cli(ClusterConfig, args=renamed(args, OLD_OPTIONS), prog="python -m stream.cluster"))
    return 0


def run(cfg: ClusterConfig) -> None:
    """Runs until all cameras have ended or a signal arrives. Raises LineamentError if one failed."""
    cameras = read_cameras(cfg.cameras)
    if not any(camera.outputs for camera in cameras):
        log.warning("%s has no outputs: only this status line will be shown", cfg.cameras)
    with ExitStack() as last, Cluster(cfg, cameras) as cluster:
        stopped = threading.Event()
        last.enter_context(stopped_by_signals(stopped.set))  # until all have ended
        told_s = -math.inf
        while cluster.running and not stopped.wait(_LOOK_EVERY_S):
            cluster.look()
            if time.monotonic() >= told_s + _TELL_EVERY_S:
                told_s = time.monotonic()
                log.info("%s", cluster.live_line())
    for slot in cluster.slots:
        if slot.status is not None and slot.status.summary:
            log.info("%s: %s", slot.camera.name, slot.status.summary)
    log.info("%s", cluster.live_line().split(" | ")[-1])
    failed = [slot.camera.name for slot in cluster.slots if slot.error]
    if failed:
        raise LineamentError(f"{len(failed)} of {len(cameras)} cameras failed: {', '.join(failed)}; see the log above")


@dataclass(slots=True)
class ActorSlot:
    """A camera's place in the cluster, whichever actor runs it."""

    camera: Camera
    actor: Any
    lives: int = 0
    """how often it was started"""
    status: CameraStatus | None = None
    """last status of the current actor; None while it starts"""
    error: str | None = None
    """why it ended early"""
    asked: Any = None
    """the pending call"""
    state: TrackerState = field(default_factory=lambda: TrackerState(next_id=1))
    """last known state of its tracker"""
    heard_s: float = field(default_factory=time.monotonic)
    """when the state arrived"""

    @property
    def done(self) -> bool:
        return self.error is not None or (self.status is not None and self.status.done)

    def live_line(self) -> str:
        """Its status in one short line."""
        restarts = f", restarts {self.lives - 1}" if self.lives > 1 else ""
        if self.error:
            return f"{self.camera.name} ended: {self.error}"
        if self.status is None:
            return f"{self.camera.name} is starting{restarts}"
        return f"{self.status.line}{restarts}"


@dataclass(slots=True)
class EngineSlot:
    """An engine's place in the cluster, whichever actor runs it."""

    actor: Any
    status: EngineStatus | None = None
    """last status of the current actor; None while it starts"""
    last: EngineStatus | None = None
    """last status of any of its actors"""
    restarts: int = 0
    crops: int = 0
    batches: int = 0
    """total of all its actors, as far as known"""
    asked: Any = None

    def hear(self, status: EngineStatus) -> None:
        same = self.last if self.last is not None and self.last.born == status.born else None
        self.restarts += self.last is not None and same is None
        self.crops += status.crops - (same.crops if same else 0)
        self.batches += status.batches - (same.batches if same else 0)
        self.status = self.last = status


class Cluster:
    """Owns the connection to Ray and every actor between __enter__ and __exit__; can be used once.

    Call look() about every half second: it puts restarted actors back to work.
    """

    def __init__(self, cfg: ClusterConfig, cameras: Sequence[Camera]) -> None:
        _check_outputs(cameras)
        self._cfg, self._cameras = cfg, tuple(cameras)
        self.slots: list[ActorSlot] = []
        self.engines: list[EngineSlot] = []
        self._card: ModelCard | None = None
        self._ray = load_ray()
        self._stack = ExitStack()

    @property
    def running(self) -> bool:
        """Whether any camera is still running."""
        return not all(slot.done for slot in self.slots)

    def __enter__(self) -> Self:
        """Returns when every engine is loaded and every camera has its actor.

        Raises LineamentError if the cluster cannot be reached, lacks resources, or cannot load the model.
        """
        cfg, ray = self._cfg, self._ray
        with ExitStack() as stack:
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            stack.callback(ray.shutdown)
            _connect(ray, cfg.address)
            if threading.current_thread() is threading.main_thread():  # Ray's own handlers would leave files unfinished
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            self._check_room()
            options = {"max_restarts": -1, "scheduling_strategy": "SPREAD"}
            engine = ray.remote(Engine).options(
                num_cpus=cfg.cpus_per_engine,
                num_gpus=cfg.gpus_per_engine,
                max_concurrency=len(self._cameras) + 2,  # one call per camera, so that all waiting calls form one batch
                **options,
            )
            threads = max(1, math.ceil(cfg.cpus_per_engine))
            stack.callback(self._end_actors)
            self.engines = [EngineSlot(engine.remote(cfg.model, cfg.device, threads)) for _ in range(cfg.engines)]
            self._card = self._common_card()
            camera = ray.remote(CameraActor).options(num_cpus=cfg.cpus_per_camera, max_concurrency=4, **options)
            self.slots = [ActorSlot(each, camera.remote()) for each in self._cameras]
            stack.callback(self._stop_cameras)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends every camera with its files complete, then all actors and, on a local run, Ray."""
        self._stack.close()

    def look(self) -> None:
        """Polls all actors, for at most half a second, and starts the cameras of restarted ones."""
        ray = self._ray
        asked: list[ActorSlot | EngineSlot] = [*(slot for slot in self.slots if not slot.done), *self.engines]
        for slot in asked:
            if slot.asked is None:
                slot.asked = slot.actor.status.remote()
        calls = [slot.asked for slot in asked]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=_LOOK_EVERY_S)
        for slot in asked:
            if slot.asked in ready:
                call, slot.asked = slot.asked, None
                self._hear(slot, call)

    def live_line(self) -> str:
        """The status in one line: each camera, then the engines."""
        up = sum(slot.status is not None for slot in self.engines)
        restarts = sum(slot.restarts for slot in self.engines)
        crops, batches = sum(slot.crops for slot in self.engines), sum(slot.batches for slot in self.engines)
        engines_line = f"engines {up} of {len(self.engines)}, restarts {restarts}, {crops} crops in {batches} batches"
        return " | ".join([*(slot.live_line() for slot in self.slots), engines_line])

    def _hear(self, slot: ActorSlot | EngineSlot, call: Any) -> None:
        try:
            status = answer(self._ray, call, CALL_S)
            if status is None and isinstance(slot, ActorSlot):
                status = answer(self._ray, slot.actor.begin.remote(self._job(slot)), CALL_S)
        except LineamentError as error:
            if isinstance(slot, EngineSlot):  # cameras use another, and fail if there is none
                slot.status = None
                log.error("an engine failed: %s", error)
            else:
                slot.error = str(error)
                log.error("%s ended: %s", slot.camera.name, error)
        except self._ray.exceptions.RayTaskError:  # a bug
            raise
        except self._ray.exceptions.RayError:
            if slot.status is not None:
                who = f"camera {slot.camera.name}" if isinstance(slot, ActorSlot) else "an engine"
                log.warning("the actor of %s is lost; restarting it", who)
            slot.status = None
        else:
            if isinstance(slot, EngineSlot):
                slot.hear(status)
            else:
                self._note(slot, status)

    def _job(self, slot: ActorSlot) -> Job:
        """The job of a new actor."""
        slot.lives += 1
        fresh_for_s = self._cfg.resume_s - (time.monotonic() - slot.heard_s)
        if slot.lives > 1:
            slot.state = replace(slot.state, next_id=slot.state.next_id + _SPARE_IDS)
            faces = len(slot.state.faces) if fresh_for_s > 0 else 0
            log.warning("camera %s restarts with %d known faces", slot.camera.name, faces)
        assert self._card is not None
        return Job(
            self._cfg.session,
            slot.camera,
            slot.lives,
            self._card,
            tuple(engine.actor for engine in self.engines),
            self._cameras.index(slot.camera),
            self._cfg.resume_s,
            slot.state,
            fresh_for_s,
        )

    def _note(self, slot: ActorSlot, status: CameraStatus) -> None:
        slot.status = status
        if status.state is not None:
            slot.state, slot.heard_s = status.state, time.monotonic()
        if status.done and status.error and not slot.error:
            slot.error = status.error
            log.error("%s ended: %s", slot.camera.name, status.error)

    def _check_room(self) -> None:
        """Raises LineamentError if actors would wait for resources forever."""
        cfg, there = self._cfg, self._ray.available_resources()
        asked = {
            "CPU": cfg.engines * cfg.cpus_per_engine + len(self._cameras) * cfg.cpus_per_camera,
            "GPU": cfg.engines * cfg.gpus_per_engine,
        }
        if any(amount > there.get(kind, 0.0) + 1e-6 for kind, amount in asked.items()):
            wanted, free = (
                " and ".join(f"{amounts.get(kind, 0.0):g} {kind}s" for kind in asked) for amounts in (asked, there)
            )
            raise LineamentError(
                f"{cfg.engines} engines and {len(self._cameras)} cameras need {wanted}, and the cluster has {free} "
                "free; add machines, or reduce --engines, --gpus-per-engine, --cpus-per-engine and "
                "--cpus-per-camera"
            )

    def _common_card(self) -> ModelCard:
        """Loads every engine's model; all must be the same."""
        ray, calls = self._ray, [slot.actor.card.remote() for slot in self.engines]
        ready, late = ray.wait(calls, num_returns=len(calls), timeout=_START_S)
        try:
            cards: list[ModelCard] = [answer(ray, call, CALL_S) for call in ready]
        except ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise LineamentError(
                f"an engine died while loading {self._cfg.model!r} ({reason}); check that there is memory for "
                f"{len(calls)} of them; `ray status` on the head and Ray's logs have details"
            ) from None
        if late:
            raise LineamentError(
                f"{len(late)} of {len(calls)} engines were not ready within {_START_S:.0f} s: no machine has "
                f"{self._cfg.cpus_per_engine:g} CPUs and {self._cfg.gpus_per_engine:g} GPUs left for one, or loading "
                "hangs; `ray status` on the head shows what is free"
            )
        for other in cards[1:]:
            check_same_model(cards[0], other)
        return cards[0]

    def _stop_cameras(self) -> None:
        ray = self._ray
        begun = [slot for slot in self.slots if slot.status is not None and not slot.done]
        calls = [slot.actor.stop.remote() for slot in begun]
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=STOP_S + CALL_S) if calls else ([], [])
        for slot, call in zip(begun, calls):
            try:
                if call not in ready:
                    raise LineamentError(f"did not end within {STOP_S + CALL_S:.0f} s")
                if (status := answer(ray, call, CALL_S)) is not None:  # None: lost, and not restarted
                    self._note(slot, status)
            except (LineamentError, ray.exceptions.RayError) as error:
                slot.error = slot.error or str(error).split("\n")[0]
                log.error("%s: %s", slot.camera.name, slot.error)

    def _end_actors(self) -> None:
        slots: list[ActorSlot | EngineSlot] = [*self.slots, *self.engines]
        for slot in slots:
            self._ray.kill(slot.actor)


# ---- Ray


def _connect(ray: Any, address: str | None) -> None:
    """Starts a cluster of this machine alone, or joins one. Raises LineamentError if there is none."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    if address is None:
        from ray._private import ray_constants

        # Makes Ray listen on loopback, as it does on platforms without cluster support; else it listens on all
        # networks. Either way it requires a token, unless RAY_AUTH_MODE says otherwise.
        before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                _system_config={"timeout_ms_task_wait_for_death_info": 100},
                **quiet,
            )
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before
        return
    if address != "auto":
        _check_reachable(address)
    # the other machines may have been started in other folders
    code = {"env_vars": {"PYTHONPATH": str(FOUND_IN)}}
    try:
        ray.init(address=address, runtime_env=code, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise LineamentError(
            f"cannot join the Ray cluster at {address}: {reason}; start it with `ray start`, see docs/cluster.md, "
            "and run this on one of its machines"
        ) from None


def _check_reachable(address: str) -> None:
    """Fails fast; Ray itself retries for minutes."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", address)
    if match is None:
        raise LineamentError(f"address is {address!r}, expected 'auto' or host:port of the cluster's head")
    try:
        with socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=5.0):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LineamentError(
            f"cannot reach a Ray cluster at {address}: {reason.lower()}; check the head's address and port, and that "
            "`ray start --head` was run there"
        ) from None


def _check_outputs(cameras: Sequence[Camera]) -> None:
    if any("-" in camera.outputs for camera in cameras):
        raise LineamentError("a camera in a cluster cannot write to standard output; use a file")
    check_outputs(cameras)
