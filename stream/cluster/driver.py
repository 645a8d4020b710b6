"""Cluster: cameras and landmark models spread over the machines of a Ray cluster; this machine alone is one, too.

    python -m stream.cluster --cameras cameras.yaml --engines 2
    python -m stream.cluster --cameras cameras.yaml --engines 8 --gpus-per-engine 0.25 --address auto

    driver --begin, status, stop--> camera actors --crops--> engine actors
             <--tracker's state--     capture, tracking,       one landmark model each,
                                      smoothing, outputs       micro-batches

Ray starts an actor that was lost again, empty. The driver finds it so, hands it its camera and what the tracker before
it had last told of itself, and the faces keep their ids. Nothing but this and actors.py beside it imports Ray.
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
"""the longest that all engines may take to be placed, started and loaded"""
_LOOK_EVERY_S = 0.5
"""the driver asks all actors how it goes; the state of a tracker that is lost is that old, and a call's time more"""
_TELL_EVERY_S = 5.0
_SPARE_IDS = 1000
"""skipped with a restart: faces that came after the last word of the camera that was lost had some of these"""
_STORE_BYTES = 128 * 2**20
"""of Ray's shared memory on a local run; crops are some kB"""


@dataclass(frozen=True)
class ClusterConfig:
    """Puts 98 landmarks on every face of many cameras, on many machines. Ctrl-C ends it cleanly at any time."""

    cameras: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """The cameras: a YAML file as docs/cameras.md has it. It is read on this machine, sources and outputs are opened
    where the camera runs."""
    model: Annotated[str, tyro.conf.arg(aliases=["-m"])] = engines.DEFAULT
    """The landmark model, as for `python -m stream`; a file must lie at this path wherever an engine runs."""
    device: str = "auto"
    """Where the model runs, as for `python -m stream`."""
    address: str | None = None
    """Of a Ray cluster that this machine belongs to: 'auto', or host:port of its head. Without one, a cluster of this
    machine alone is started, and ended with the run."""
    engines: int = 1
    """So many copies of the model, spread over the machines."""
    gpus_per_engine: float = 0.0
    """GPUs of each engine: 0.25 puts four on one. Ray keeps count; the memory they must share themselves."""
    cpus_per_engine: float = 0.5
    """CPU cores that Ray sets apart for each engine; a model on the CPU runs in as many threads, rounded up."""
    cpus_per_camera: float = 0.25
    """CPU cores that Ray sets apart for each camera; docs/cluster.md says how much one needs."""
    resume_s: float = 30.0
    """Seconds that a face keeps its id while its camera's actor is restarted, and that a camera waits for an engine
    when all are lost."""
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
    """Runs the command line; returns the exit code as `python -m stream` does."""
    os.umask(0o077)  # what is written shows faces: it is for this user alone; so is Ray's token
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    run(tyro.cli(ClusterConfig, args=renamed(args, OLD_OPTIONS), prog="python -m stream.cluster"))
    return 0


def run(cfg: ClusterConfig) -> None:
    """Runs until all cameras have ended or a signal comes. Raises when one failed."""
    cameras = read_cameras(cfg.cameras)
    if not any(camera.outputs for camera in cameras):
        log.warning("%s asks for no output: only this line will tell how it goes", cfg.cameras)
    with ExitStack() as last, Cluster(cfg, cameras) as cluster:
        stopped = threading.Event()
        last.enter_context(stopped_by_signals(stopped.set))  # until all has ended
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
        raise LineamentError(f"{len(failed)} of {len(cameras)} cameras failed: {', '.join(failed)}; see above")


@dataclass(slots=True)
class ActorSlot:
    """A camera's place in the cluster, whichever actor fills it."""

    camera: Camera
    actor: Any
    lives: int = 0
    """how often it was begun"""
    status: CameraStatus | None = None
    """the last word of the actor that has it now; None while it is being started"""
    error: str | None = None
    """why it ended before its time"""
    asked: Any = None
    """the call whose answer is still to come"""
    state: TrackerState = field(default_factory=lambda: TrackerState(next_id=1))
    """of its tracker, as last heard"""
    heard_s: float = field(default_factory=time.monotonic)
    """when the state came"""

    @property
    def done(self) -> bool:
        return self.error is not None or (self.status is not None and self.status.done)

    def live_line(self) -> str:
        """One short line on how it goes."""
        restarts = f", restarts {self.lives - 1}" if self.lives > 1 else ""
        if self.error:
            return f"{self.camera.name} ended: {self.error}"
        if self.status is None:
            return f"{self.camera.name} is being started{restarts}"
        return f"{self.status.line}{restarts}"


@dataclass(slots=True)
class EngineSlot:
    """An engine's place in the cluster, whichever actor fills it."""

    actor: Any
    status: EngineStatus | None = None
    """the last word of the actor that has it now; None while it is being started"""
    last: EngineStatus | None = None
    """the last word of any that has had it"""
    restarts: int = 0
    crops: int = 0
    batches: int = 0
    """of all that have had it, as far as heard"""
    asked: Any = None

    def hear(self, status: EngineStatus) -> None:
        same = self.last if self.last is not None and self.last.born == status.born else None
        self.restarts += self.last is not None and same is None
        self.crops += status.crops - (same.crops if same else 0)
        self.batches += status.batches - (same.batches if same else 0)
        self.status = self.last = status


class Cluster:
    """Owns the connection to Ray and every actor between __enter__ and __exit__; may be used once.

    look() is to be called every half second or so: it is what brings a lost camera back to its work.
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
        """Whether any camera still is."""
        return not all(slot.done for slot in self.slots)

    def __enter__(self) -> Self:
        """Returns once every engine is loaded and every camera has its actor.

        Raises LineamentError where the cluster cannot be reached, has too little room, or cannot load the model.
        """
        cfg, ray = self._cfg, self._ray
        with ExitStack() as stack:
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            stack.callback(ray.shutdown)
            _connect(ray, cfg.address)
            if threading.current_thread() is threading.main_thread():  # Ray's own would leave files unfinished
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            self._check_room()
            options = {"max_restarts": -1, "scheduling_strategy": "SPREAD"}
            engine = ray.remote(Engine).options(
                num_cpus=cfg.cpus_per_engine,
                num_gpus=cfg.gpus_per_engine,
                max_concurrency=len(self._cameras) + 2,  # a call of each camera, so that all that wait are one batch
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
        """Ends every camera with its files whole, then all actors and, on a local run, Ray."""
        self._stack.close()

    def look(self) -> None:
        """Hears how everybody is, for half a second at most, and sets cameras to work whose actors are new."""
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
        """One line on how it goes: each camera, then the engines."""
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
            if isinstance(slot, EngineSlot):  # its cameras ask another, and say so when there is none
                slot.status = None
                log.error("an engine cannot go on: %s", error)
            else:
                slot.error = str(error)
                log.error("%s ended: %s", slot.camera.name, error)
        except self._ray.exceptions.RayTaskError:  # a fault of ours
            raise
        except self._ray.exceptions.RayError:
            if slot.status is not None:
                who = f"camera {slot.camera.name}" if isinstance(slot, ActorSlot) else "an engine"
                log.warning("the actor of %s is lost; it is started again", who)
            slot.status = None
        else:
            if isinstance(slot, EngineSlot):
                slot.hear(status)
            else:
                self._note(slot, status)

    def _job(self, slot: ActorSlot) -> Job:
        """What to tell an actor that is new."""
        slot.lives += 1
        fresh_for_s = self._cfg.resume_s - (time.monotonic() - slot.heard_s)
        if slot.lives > 1:
            slot.state = replace(slot.state, next_id=slot.state.next_id + _SPARE_IDS)
            faces = len(slot.state.faces) if fresh_for_s > 0 else 0
            log.warning("camera %s is started again, with %d faces to go on with", slot.camera.name, faces)
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
        """Raises where actors would wait for ever for a place."""
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
                f"{cfg.engines} engines and {len(self._cameras)} cameras ask for {wanted}, and the cluster has {free} "
                "free; add machines, or ask for less by --engines, --gpus-per-engine, --cpus-per-engine and "
                "--cpus-per-camera"
            )

    def _common_card(self) -> ModelCard:
        """Loads every engine's model; they must be the same."""
        ray, calls = self._ray, [slot.actor.card.remote() for slot in self.engines]
        ready, late = ray.wait(calls, num_returns=len(calls), timeout=_START_S)
        try:
            cards: list[ModelCard] = [answer(ray, call, CALL_S) for call in ready]
        except ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise LineamentError(
                f"an engine did not live to load {self._cfg.model!r} ({reason}); is there memory for "
                f"{len(calls)} of them? `ray status` on the head, and Ray's logs, say more"
            ) from None
        if late:
            raise LineamentError(
                f"{len(late)} of {len(calls)} engines were not ready within {_START_S:.0f} s: no machine has "
                f"{self._cfg.cpus_per_engine:g} CPUs and {self._cfg.gpus_per_engine:g} GPUs left for one, or loading "
                "hangs; `ray status` on the head says what is free"
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
                    raise LineamentError(f"did not end within {STOP_S + CALL_S:.0f} s of being told to")
                if (status := answer(ray, call, CALL_S)) is not None:  # None: lost, and not begun anew
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
    """Starts a cluster of this machine alone, or joins one. Raises LineamentError where there is none."""
    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    if address is None:
        from ray._private import ray_constants

        # Only so does Ray take loopback for this machine's address, as it does by itself where it supports no clusters;
        # else it listens on all networks. Either way it asks for a token, unless RAY_AUTH_MODE says otherwise.
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
    # the machines of a cluster may have been started in other folders
    code = {"env_vars": {"PYTHONPATH": str(FOUND_IN)}}
    try:
        ray.init(address=address, runtime_env=code, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise LineamentError(
            f"cannot join the Ray cluster at {address}: {reason}; start it by `ray start`, see docs/cluster.md, "
            "and run this on one of its machines"
        ) from None


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})", address)
    if match is None:
        raise LineamentError(f"address is {address!r}, wanted 'auto' or host:port of the cluster's head")
    try:
        with socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=5.0):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LineamentError(
            f"cannot reach a Ray cluster at {address}: {reason.lower()}; check the head's address and port, and that "
            "`ray start --head` runs there"
        ) from None


def _check_outputs(cameras: Sequence[Camera]) -> None:
    if any("-" in camera.outputs for camera in cameras):
        raise LineamentError("a camera in a cluster has no standard output to write to; give it a file")
    check_outputs(cameras)
