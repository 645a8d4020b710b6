"""Cluster demo: cameras and models as Ray actors on this machine. An engine and a camera are killed: do they come back?

    make cluster-demo
    make cluster-demo ARGS=--measure       instead: what a camera and its share of an engine cost, for docs/cluster.md

Writes each camera's video and points, and out/cluster/tiles.png. Exits with 1 if a
promise is broken: what was killed comes back, the face keeps its id, the others are unaffected, no output is lost.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import tyro

from lineament import engines
from lineament.landmarks.types import U8, Frame, LineamentError, Result
from lineament.stream.bench import machine
from lineament.stream.cluster.driver import ActorSlot, Cluster, ClusterConfig
from lineament.stream.local_cameras import mjpeg_server, turning_head
from lineament.stream.run.cameras import Camera
from lineament.stream.write.encode import letterboxed
from lineament.stream.write.files import VideoSink

log = logging.getLogger("lineament")

_PATIENCE_S = 60.0
"""timeout for anything to start or come back"""
_HEADROOM = 0.7
"""usable share of a core: above it, live frames are dropped"""


@dataclass(frozen=True)
class DemoConfig:
    """Size and length of the demo."""

    cameras: int = 3
    engines: int = 2
    seconds: float = 30.0
    """One third before the engine is killed, one before the camera is, one after."""
    fps: float = 10.0
    """Frame rate of each camera."""
    out: Path = Path("out/cluster")
    measure: bool = False
    """Measure CPU time instead, on clips of three sizes."""


def main() -> int:
    cfg = tyro.cli(DemoConfig, prog="make cluster-demo", description=__doc__)
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cv2.setNumThreads(1)
    try:
        return measure() if cfg.measure else demo(cfg)
    except LineamentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def demo(cfg: DemoConfig) -> int:
    """Prints each promise and whether it was kept; 1 when one was not."""
    cfg.out.mkdir(parents=True, exist_ok=True)
    for old in [*cfg.out.glob("c*.mp4"), *cfg.out.glob("c*.jsonl")]:
        old.unlink()
    with mjpeg_server(turning_head(fps=cfg.fps), cfg.fps) as url:
        cameras = [Camera(f"c{i}", url, (f"{cfg.out}/c{i}.mp4", f"{cfg.out}/c{i}.jsonl")) for i in range(cfg.cameras)]
        with Cluster(_small(cfg.engines), cameras) as cluster:
            demonstration = Demonstration(cluster)
            promises = demonstration.run(cfg.seconds / 3)
    rows = {path.name: _ids(path) for path in sorted(cfg.out.glob("c*.jsonl"))}
    for name, ids in rows.items():
        print(f"{name}: {len(ids)} frames, faces {sorted(set().union(*ids))}")
    lost, back = (rows.get(name, []) for name in ("c0.jsonl", "c0-2.jsonl"))
    promises["what c0 wrote before is whole, and it writes on beside it"] = bool(lost and back)
    tiles(sorted(cfg.out.glob("c*.mp4")), cfg.out / "tiles.png")
    for promise, kept in promises.items():
        print("  kept  " if kept else "  BROKEN", promise)
    return 0 if all(promises.values()) else 1


@dataclass
class Demonstration:
    """Kills an engine, then a camera, and sees what becomes of them."""

    cluster: Cluster
    told_s: float = 0.0
    promises: dict[str, bool] = field(default_factory=dict)

    def run(self, third_s: float) -> dict[str, bool]:
        import ray

        cluster, slots = self.cluster, self.cluster.slots
        self._until(lambda: all(_frames(slot) > 0 and slot.state.faces for slot in slots))
        self._for(third_s)
        engine, before = cluster.engines[0], [_frames(slot) for slot in slots]
        print("killing an engine", flush=True)
        ray.kill(engine.actor, no_restart=False)
        back_s = self._until(lambda: engine.restarts == 1 and engine.status is not None and engine.status.crops > 0)
        self.promises[f"the engine answers again, {back_s:.1f} s after it was killed"] = engine.restarts == 1
        self._for(third_s)
        went_on = all(_frames(slot) > frames for slot, frames in zip(slots, before))
        self.promises["no camera stopped for it"] = went_on and all(slot.lives == 1 for slot in slots)

        first = slots[0]
        ids, before = _ids_of(first), [_frames(slot) for slot in slots]
        print(f"killing camera {first.camera.name}, which follows face {', '.join(map(str, ids))}", flush=True)
        ray.kill(first.actor, no_restart=False)
        back_s = self._until(lambda: first.lives == 2 and _frames(first) > 0 and bool(first.state.faces))
        self.promises[f"{first.camera.name} shows pictures again, {back_s:.1f} s after it was killed"] = (
            _frames(first) > 0
        )
        kept = _ids_of(first) == ids
        self.promises[f"its face is {', '.join(map(str, ids))} as before: {', '.join(map(str, _ids_of(first)))}"] = kept
        self._for(third_s)
        others = all(_frames(slot) > frames for slot, frames in zip(slots[1:], before[1:]))
        self.promises["the others did not notice"] = others and all(slot.lives == 1 for slot in slots[1:])
        rates = ", ".join(f"{s.camera.name} {s.status.fps:.1f}" for s in slots if s.status)
        self.promises[f"all cameras run at the end: {rates} fps"] = all(s.status and s.status.fps > 0 for s in slots)
        print(cluster.live_line())
        return self.promises

    def _for(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        self._until(lambda: time.monotonic() > until_s, seconds + _PATIENCE_S)

    def _until(self, true: Callable[[], bool], patience_s: float = _PATIENCE_S) -> float:
        """Looks after the cluster until then, or for as long as patience lasts; returns how long it took."""
        began_s = time.monotonic()
        while not true() and time.monotonic() < began_s + patience_s:
            self.cluster.look()
            if time.monotonic() > self.told_s + 5:
                self.told_s = time.monotonic()
                print(self.cluster.live_line(), flush=True)
            time.sleep(0.1)
        return time.monotonic() - began_s


def tiles(videos: Sequence[Path], path: Path) -> None:
    """The last frame of each video, side by side."""
    pictures = []
    for video in videos:
        with av.open(str(video)) as container:
            frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
            pictures.append(np.asarray(frames[-1], np.uint8))
            cv2.putText(pictures[-1], video.name, (8, 470), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (240, 240, 240), 1)
    columns = math.ceil(math.sqrt(len(pictures)))
    pictures += [np.zeros((480, 640, 3), np.uint8)] * (-len(pictures) % columns)
    small = [letterboxed(picture, 640, 480) for picture in pictures]
    cv2.imwrite(str(path), np.vstack([np.hstack(small[i : i + columns]) for i in range(0, len(small), columns)]))
    print(f"wrote {path}")


def _ids(path: Path) -> list[set[int]]:
    """The faces of each frame; raises where a line is not whole."""
    return [{face["id"] for face in json.loads(line)["faces"]} for line in path.read_text().splitlines()]


def _frames(slot: ActorSlot) -> int:
    return slot.status.frames if slot.status else 0


def _ids_of(slot: ActorSlot) -> list[int]:
    return [face.id for face in slot.state.faces]


def _small(engines: int) -> ClusterConfig:
    """As many actors as one likes on a small machine: what Ray sets apart is a number, no wall."""
    return ClusterConfig(Path("unused.yaml"), engines=engines, cpus_per_engine=0.1, cpus_per_camera=0.1)


# ---- measuring


def measure() -> int:
    """Prints rows of docs/cluster.md's table: processor time of a frame with one face in it, H.264 decoded."""
    print(machine())
    print(f"the model alone: {_model_ms():.1f} ms a crop\n")
    print("| picture | camera | with .mp4 | engine | cameras a core at 10 / 15 / 30 fps | with .mp4 |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in ("640x480", "1280x720", "1920x1080"):
            width, height = map(int, size.split("x"))
            clip = Path(folder) / f"{size}.mp4"
            _write(clip, turning_head((height, width), fps=30.0))
            points_ms, engine_ms = _cost_ms(clip, f"{folder}/out.jsonl")
            video_ms, _ = _cost_ms(clip, f"{folder}/out.mp4")
            fits = [
                " / ".join(f"{_HEADROOM * 1000 / (fps * (camera_ms + engine_ms)):.1f}" for fps in (10, 15, 30))
                for camera_ms in (points_ms, video_ms)
            ]
            costs = " | ".join(f"{ms:.1f} ms" for ms in (points_ms, video_ms, engine_ms))
            print(f"| {size} | {costs} | {fits[0]} | {fits[1]} |", flush=True)
    return 0


def _cost_ms(clip: Path, output: str) -> tuple[float, float]:
    """Processor time of a frame, ms: in the camera's process, in the engine's. Starting up does not count."""
    with Cluster(_small(engines=1), [Camera("clip", str(clip), (output,))]) as cluster:
        slot, engine = cluster.slots[0], cluster.engines[0]
        samples: list[tuple[int, float, float]] = []
        until_s = time.monotonic() + 5 * _PATIENCE_S
        while not slot.done:
            cluster.look()
            if slot.status and slot.status.frames > 30 and not slot.done and engine.status:
                samples.append((slot.status.frames, slot.status.cpu_s, engine.status.cpu_s))
            if time.monotonic() > until_s:
                raise LineamentError(f"{clip.name} was not done within {5 * _PATIENCE_S:.0f} s")
            time.sleep(0.1)
    if len(samples) < 3:
        raise LineamentError(f"{clip.name} ended before it could be measured; see the log above")
    frames, camera_s, engine_s = (last - first for first, last in zip(samples[0], samples[-1]))
    return camera_s / frames * 1e3, engine_s / frames * 1e3


def _model_ms() -> float:
    """Processor time of one crop without a cluster."""
    with engines.load(engines.DEFAULT, threads=1) as landmarker:
        crop = np.zeros((1, *landmarker.card.input_hw, 3), np.uint8)
        landmarker(crop)
        began_s = time.process_time()
        for _ in range(300):
            landmarker(crop)
        return (time.process_time() - began_s) / 300 * 1e3


def _write(path: Path, pictures: Sequence[U8], fps: float = 30.0, rounds: int = 3) -> None:
    """Forth and back, so that nothing jumps."""
    around = [*pictures, *pictures[-2:0:-1]] * rounds
    with VideoSink(path, fps) as sink:
        for i, bgr in enumerate(around):
            sink.write(Result(Frame(bgr, "sample", i, i / fps, 0.0), ()), bgr)


if __name__ == "__main__":
    sys.exit(main())
