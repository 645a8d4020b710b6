"""Soak test: many real RTSP cameras for a long time, some of which die and return at random.

make soak MINUTES=60

Writes out/soak.csv and out/soak.png. Exits with 1 if a promise is broken: memory, descriptors and threads stay flat,
healthy cameras keep their frame rate, dead ones come back, every frame is drawn or counted.
"""

from __future__ import annotations

import csv
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro

from lineament.engines.portrait import portrait_path
from lineament.stream.local_cameras import rtsp_server

_EVERY_S = 2.0
"""between two samples"""
_PATIENCE_S = 60.0
_A_CAMERA = 4
"""decoder threads of a connected camera"""
_LAST_DEATH_S = 35.0
"""before the end: the longest outage, plus time to come back"""


@dataclass(frozen=True)
class SoakConfig:
    """Length and load."""

    minutes: float = 10.0
    cameras: int = 8
    dying: int = 2
    """Cameras that are killed or frozen at random, and come back."""
    fps: int = 10
    """Of each camera."""
    seed: int = 0
    out: Path = Path("out")


@dataclass
class Dying:
    """A camera that is killed or frozen and brought back, at random times."""

    port: int
    chance: random.Random
    picture: str
    fps: int
    deaths: int = 0
    next_s: float = 0.0
    frozen: bool = False
    stack: ExitStack = field(default_factory=ExitStack)
    server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.server, self.port = self.stack.enter_context(rtsp_server(self.port, fps=self.fps, picture=self.picture))

    def live(self, now_s: float, until_s: float) -> None:
        """Takes the next step when its time has come; none is taken that there is no time to get over."""
        if now_s < self.next_s or (now_s > until_s - _LAST_DEATH_S and self.server and not self.frozen):
            return
        self.next_s = now_s + self.chance.uniform(3, 20)
        if self.server is None:
            self.start()
        elif self.frozen:
            self.server.send_signal(signal.SIGCONT)
            self.frozen = False
        else:
            self.deaths += 1
            if self.chance.random() < 0.5:
                self.server.send_signal(signal.SIGSTOP)
                self.frozen = True
            else:
                self.server.kill()
                self.server.wait()
                self.server = None
                self.stack.close()


Sample = dict[str, float]
"""by name of a metric and, where it has one, its source: 'up c0'"""


def main() -> int:
    cfg = tyro.cli(SoakConfig, prog="make soak", description=__doc__)
    cfg.out.mkdir(parents=True, exist_ok=True)
    picture = str(portrait_path())
    names = [f"c{i}" for i in range(cfg.cameras)]
    with ExitStack() as stack:
        cameras = [Dying(0, random.Random(cfg.seed + i), picture, cfg.fps) for i in range(cfg.cameras)]
        for camera in cameras:
            stack.callback(camera.stack.close)
            camera.start()
        listing = "".join(
            f"  - {{name: {name}, source: 'rtsp://admin:p%40ss@127.0.0.1:{camera.port}/cam'}}\n"
            for name, camera in zip(names, cameras)
        )
        (cfg.out / "soak.yaml").write_text(f"cameras:\n{listing}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "stream", "--cameras", str(cfg.out / "soak.yaml"), "--no-window"]
        command += ["--monitor", str(port), "--jsonl", "-"]
        log = stack.enter_context((cfg.out / "soak.log").open("w"))
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log) as process:
            try:
                samples = watch(cfg, cameras[len(cameras) - cfg.dying :], names, process, port)
            finally:
                process.send_signal(signal.SIGTERM)
            code = process.wait(_PATIENCE_S)
    write(cfg, samples)
    return verdict(cfg, names, samples, sum(camera.deaths for camera in cameras), code)


def watch(
    cfg: SoakConfig, dying: Sequence[Dying], names: Sequence[str], process: subprocess.Popen[bytes], port: int
) -> list[Sample]:
    """A sample every two seconds, from the time at which every camera was up."""
    until_s = time.monotonic() + _PATIENCE_S
    while not all(look(port).get(f"up {name}") for name in names):
        if time.monotonic() > until_s or process.poll() is not None:
            raise SystemExit(f"not every camera came up; see {cfg.out / 'soak.log'}")
        time.sleep(0.5)
    began_s = time.monotonic()
    until_s = began_s + cfg.minutes * 60
    for camera in dying:
        camera.next_s = began_s + camera.chance.uniform(5, 15)
    samples: list[Sample] = []
    while (now_s := time.monotonic()) < until_s:
        for camera in dying:
            camera.live(now_s, until_s)
        samples.append({"time": now_s - began_s, **look(port)})
        time.sleep(max(0.0, now_s + _EVERY_S - time.monotonic()))
    return samples


def look(port: int) -> Sample:
    """What the run says of itself; nothing while it does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    wanted = r'^(?:lineament_|process_)(\w+)(?:\{source="(\w+)"\})? (\S+)$'
    return {f"{name} {source}".strip(): float(value) for name, source, value in re.findall(wanted, text, re.MULTILINE)}


def verdict(cfg: SoakConfig, names: Sequence[str], samples: Sequence[Sample], deaths: int, code: int) -> int:
    """Prints each promise and whether it was kept; 1 when one was not."""
    healthy, dying = names[: len(names) - cfg.dying], names[len(names) - cfg.dying :]
    # the first tenth warms up: models, caches, the allocator's pools
    whole = [sample for sample in samples[len(samples) // 10 :] if "open_fds" in sample]
    early, late = whole[: len(whole) // 4], whole[-len(whole) // 4 :]

    def mean(part: Sequence[Sample], key: str) -> float:
        return float(np.mean([sample[key] for sample in part]))

    first, last = whole[0], whole[-1]
    seconds = last["time"] - first["time"]

    def rate(name: str) -> float:
        captured = [sample[f"frames_total {name}"] + sample[f"dropped_frames_total {name}"] for sample in (first, last)]
        return (captured[1] - captured[0]) / seconds

    drawn = [(last[f"frames_total {n}"] - first[f"frames_total {n}"]) / seconds for n in healthy]
    rates = [rate(name) for name in healthy]
    memory_mb = [mean(part, "resident_memory_bytes") / 1e6 for part in (early, late)]
    fds, threads = ([mean(part, key) for part in (early, late)] for key in ("open_fds", "threads"))
    back = sum(last[f"reconnects_total {name}"] for name in dying)
    kept = {
        f"memory {memory_mb[0]:.0f} MB early, {memory_mb[1]:.0f} MB late": memory_mb[1] < memory_mb[0] * 1.03 + 5,
        f"descriptors {fds[0]:.1f} early, {fds[1]:.1f} late": fds[1] <= fds[0] + len(dying),  # one connection each
        f"threads {threads[0]:.1f} early, {threads[1]:.1f} late": threads[1] <= threads[0] + _A_CAMERA * len(dying),
        f"healthy cameras {min(rates):.2f} to {max(rates):.2f} fps captured of {cfg.fps}": min(rates) > 0.95 * cfg.fps,
        f"{deaths} deaths, back {back:.0f} times, all up at the end": all(last[f"up {n}"] for n in names),
        f"it ended with code {code} when told to": code == 0,
    }
    print(f"{cfg.cameras} cameras at {cfg.fps} fps for {cfg.minutes:g} minutes, {cfg.dying} of them dying at random")
    print(f"healthy cameras drew {min(drawn):.2f} to {max(drawn):.2f} fps; the rest was dropped and counted")
    for promise, good in kept.items():
        print("  kept  " if good else "  BROKEN", promise)
    return 0 if all(kept.values()) else 1


def write(cfg: SoakConfig, samples: Sequence[Sample]) -> None:
    """The samples as they are, and a plot of what must not grow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = list(dict.fromkeys(key for sample in samples for key in sample))
    with (cfg.out / "soak.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        rows.writerows(samples)
    figure, axes = plt.subplots(4, 1, figsize=(9, 9), sharex=True)
    minutes = [sample["time"] / 60 for sample in samples]
    for axis, (title, keys, scale) in zip(
        axes,
        (
            ("memory, MB", ["resident_memory_bytes"], 1e-6),
            ("descriptors and threads", ["open_fds", "threads"], 1.0),
            ("frames/s drawn, by camera", [c for c in columns if c.startswith("fps ")], 1.0),
            ("reconnects, by camera", [c for c in columns if c.startswith("reconnects_total ")], 1.0),
        ),
    ):
        for key in keys:
            axis.plot(minutes, [sample.get(key, float("nan")) * scale for sample in samples], label=key, linewidth=1)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylim(0, 1.1 * axis.get_ylim()[1])
        axis.legend(fontsize=6, ncols=4, loc="lower right")
    axes[-1].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(cfg.out / "soak.png", dpi=110)
    print(f"wrote {cfg.out / 'soak.png'} and {cfg.out / 'soak.csv'}")


if __name__ == "__main__":
    sys.exit(main())
