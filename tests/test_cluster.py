"""Cameras and models in a cluster: the same points as on one machine, and whoever is lost comes back to his work."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import av
import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.types import Frame, LineamentError, Result
from lineament.stream.cluster.actors import Engine, EngineStatus, RemoteLandmarker
from lineament.stream.cluster.driver import ActorSlot, Cluster, ClusterConfig, EngineSlot, _check_reachable
from lineament.stream.local_cameras import mjpeg_server, turning_head
from lineament.stream.read.sample import Sample
from lineament.stream.read.video import VideoSource
from lineament.stream.run.cameras import Camera
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.write.files import VideoSink
from tests.waiting import WAIT_S, started, until

ray = pytest.importorskip("ray", reason="needs Ray: pip install -r requirements-cluster.txt")

ROOT = Path(__file__).resolve().parent.parent
CLIP_FRAMES = 30


def test_an_engine_that_dies_while_it_loads_is_one_line() -> None:
    class Dead:
        exceptions = ray.exceptions

        def wait(self, calls: list[object], **_: object) -> tuple[list[object], list[object]]:
            return calls, []

        def get(self, call: object, timeout: float) -> object:
            raise ray.exceptions.RayError("out of memory\nand a long report")

    class Seatless:
        card = SimpleNamespace(remote=lambda: "call")

    cluster = SimpleNamespace(_ray=Dead(), engines=[SimpleNamespace(actor=Seatless())], _cfg=SimpleNamespace(model="x"))
    with pytest.raises(LineamentError, match="died while loading 'x'") as caught:
        Cluster._common_card(cast(Any, cluster))
    assert "\n" not in str(caught.value)


def of_run(mark: str) -> dict[int, str]:
    """The processes that were started with that in their environment, and their command lines."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (process / "environ").read_bytes():
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended, or is another user's
            continue
    return {pid: line for pid, line in found.items() if line}


def pids(kind: str) -> set[int]:
    """The processes of the fixture's actors."""
    return {pid for pid, line in of_run(os.environ["LINEAMENT_TEST"]).items() if line.startswith(f"ray::{kind}")}


def heard_from_outside(pids: set[int]) -> list[str]:
    """The addresses that those processes listen on, as the kernel writes them, without those of loopback."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            sockets |= {os.readlink(descriptor) for descriptor in Path(f"/proc/{pid}/fd").iterdir()}
    listening = []
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = row.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                listening.append(address.split(":")[0])
    assert listening
    # 127.0.0.1, alone, as IPv6 writes it, and ::1
    loopback = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
    return [address for address in listening if address not in loopback]


@pytest.fixture(scope="module")
def camera_url() -> Iterator[str]:
    with mjpeg_server(turning_head((240, 320))) as url:
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    sample = Sample((240, 320))
    with VideoSink(folder / "clip.mp4", sample.fps) as sink:
        for i in range(CLIP_FRAMES):
            sink.write(Result(Frame(sample.render(i), "sample", i, i / sample.fps, 0.0), ()), sample.render(i))
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path, camera_url: str) -> Iterator[Cluster]:
    """Two engines, a camera that goes on for ever and one that reads a clip."""
    # a crowded machine takes long to start an actor again
    cfg = ClusterConfig(folder / "unused.yaml", engines=2, cpus_per_engine=0.1, cpus_per_camera=0.1, resume_s=600)
    cameras = [
        Camera("live", camera_url, (f"{folder}/live.jsonl",)),
        Camera("clip", f"{folder}/clip.mp4", (f"{folder}/clip.jsonl",)),
    ]
    mark = os.environ["LINEAMENT_TEST"] = uuid.uuid4().hex
    try:
        with Cluster(cfg, cameras) as cluster:
            yield cluster
    finally:
        del os.environ["LINEAMENT_TEST"]
    until(lambda: not of_run(mark))


def live(cluster: Cluster) -> ActorSlot:
    return cluster.slots[0]


def looking(cluster: Cluster, true: Callable[[], bool]) -> Callable[[], bool]:
    def looked() -> bool:
        cluster.look()
        return true()

    return looked


def is_lost(engine: Any) -> bool:
    try:
        ray.get(engine.status.remote(), timeout=WAIT_S)
    except ray.exceptions.RayActorError:
        return True
    return False


def frames(slot: ActorSlot) -> int:
    return slot.status.frames if slot.status else 0


def test_two_engines_give_a_camera_the_points_that_one_machine_gives(cluster: Cluster, folder: Path) -> None:
    until(looking(cluster, lambda: cluster.slots[1].done))
    with (
        engines.load(engines.DEFAULT, threads=1) as landmarker,
        Session(SessionConfig(), VideoSource(folder / "clip.mp4"), landmarker, (f"{folder}/alone.jsonl",)) as session,
    ):
        for _ in session:
            pass
    alone, spread = (
        [json.loads(line)["faces"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("alone", "clip")
    )
    assert len(alone) == len(spread) == CLIP_FRAMES and all(len(faces) == 1 for faces in alone)
    assert [[face["id"] for face in faces] for faces in spread] == [[face["id"] for face in faces] for faces in alone]
    apart = [np.subtract(a["points"], b["points"]) for ours, theirs in zip(alone, spread) for a, b in zip(ours, theirs)]
    assert np.abs(apart).max() < 0.1
    assert cluster.slots[1].error is None
    assert all(engine.status is not None and engine.status.crops for engine in cluster.engines), "both took their share"


def test_on_one_machine_nothing_can_be_reached_from_another(cluster: Cluster) -> None:
    assert heard_from_outside(set(of_run(os.environ["LINEAMENT_TEST"]))) == []


def test_an_engine_that_hangs_is_passed_over(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineament.stream.cluster.actors.CALL_S", 0.5)
    actors = [engine.actor for engine in cluster.engines]
    card = ray.get(actors[0].card.remote(), timeout=WAIT_S)
    crops = np.zeros((1, *card.input_hw, 3), np.uint8)
    hung = min(pids("Engine"))
    with RemoteLandmarker(card, actors, 0, resume_s=WAIT_S) as landmarker:
        os.kill(hung, signal.SIGSTOP)
        try:
            answers = [landmarker(crops) for _ in range(4)]
        finally:
            os.kill(hung, signal.SIGCONT)
    assert all(answer.points_unit.shape == (1, 98, 2) for answer in answers)


def test_the_loss_of_an_engine_ends_no_camera_and_it_comes_back(cluster: Cluster) -> None:
    slot, lost = live(cluster), cluster.engines[0]
    until(looking(cluster, lambda: frames(slot) > 3 and lost.status is not None))
    before = frames(slot)
    ray.kill(lost.actor, no_restart=False)
    until(looking(cluster, lambda: lost.restarts == 1 and lost.status is not None and lost.status.crops > 0))
    assert frames(slot) > before and slot.lives == 1 and not slot.done
    assert "engines 2 of 2, restarts 1" in cluster.live_line()


def test_a_camera_whose_actor_is_lost_comes_back_with_the_same_face_and_loses_nothing_written(
    cluster: Cluster, folder: Path
) -> None:
    slot = live(cluster)
    until(looking(cluster, lambda: frames(slot) > 10 and len(slot.state.faces) == 1))
    ids = [face.id for face in slot.state.faces]
    before = pids("CameraActor")
    ray.kill(slot.actor, no_restart=False)
    until(lambda: not before <= pids("CameraActor"))  # until then it may write
    written = (folder / "live.jsonl").read_text()
    until(looking(cluster, lambda: slot.lives == 2 and frames(slot) > 5 and len(slot.state.faces) > 0))
    assert [face.id for face in slot.state.faces] == ids
    assert slot.state.next_id > 1000, "faces that came after its last word had ids that nobody heard of"
    assert "restarts 1" in slot.live_line()
    assert (folder / "live.jsonl").read_text() == written and written.endswith("\n")
    assert json.loads((folder / "live-2.jsonl").read_text().splitlines()[-1])["faces"][0]["id"] == ids[0]


def test_crops_that_come_while_an_engine_is_busy_go_through_it_as_one_batch(cluster: Cluster) -> None:
    engine = cluster.engines[1].actor
    card = ray.get(engine.card.remote(), timeout=WAIT_S)
    crops = np.random.default_rng(0).integers(0, 255, (16, *card.input_hw, 3)).astype(np.uint8)

    def batched() -> bool:
        before = ray.get(engine.status.remote(), timeout=WAIT_S)
        answers = ray.get([engine.landmarks.remote(crops, card) for _ in range(8)], timeout=WAIT_S)
        after = ray.get(engine.status.remote(), timeout=WAIT_S)
        assert all((answer.points_unit == answers[0].points_unit).all() for answer in answers)
        return bool(after.batches - before.batches < 8 and after.crops - before.crops >= 8 * 16)

    until(batched)


def test_where_all_engines_are_lost_for_good_a_camera_says_so_in_time(cluster: Cluster) -> None:
    engine = ray.remote(Engine).options(num_cpus=0).remote("student", "auto", 1)
    card = ray.get(engine.card.remote(), timeout=WAIT_S)
    crops = np.zeros((1, *card.input_hw, 3), np.uint8)
    with RemoteLandmarker(card, [engine], 0, resume_s=0.5) as landmarker:
        assert landmarker(crops).points_unit.shape == (1, 98, 2)
        ray.kill(engine)
        until(lambda: is_lost(engine))  # until then it may answer
        with pytest.raises(LineamentError, match=r"no engine answered for 0\.5 s"):
            landmarker(crops)
    with pytest.raises(LineamentError, match="closed"):
        landmarker(crops)


def test_a_cluster_that_is_too_small_is_refused_with_what_it_has(cluster: Cluster, tmp_path: Path) -> None:
    cfg = ClusterConfig(tmp_path / "c.yaml", engines=300, gpus_per_engine=0.5)
    with pytest.raises(LineamentError, match=r"300 engines and 1 cameras need 150.25 CPUs and 150 GPUs, .* 0 GPUs"):
        Cluster(cfg, [Camera("a", "sample")])._check_room()


def test_the_command_line_ends_all_with_their_files_whole_when_it_is_told_to(folder: Path, camera_url: str) -> None:
    secret = f"hunter{uuid.uuid4().hex}"
    (folder / "cameras.yaml").write_text(f"""
cameras:
  - {{name: door, source: '{camera_url.replace("//", f"//admin:{secret}@")}', out: [door.mp4, door.jsonl]}}
  - {{name: dead, source: 'rtsp://admin:{secret}@127.0.0.1:1/x'}}
  - {{name: gone, source: 'gone.mp4'}}
""")
    command = [sys.executable, "-m", "stream.cluster", "--cameras", str(folder / "cameras.yaml")]
    mark = uuid.uuid4().hex
    environment = {**os.environ, "LINEAMENT_TEST": mark}
    with started(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        points = folder / "door.jsonl"
        until(lambda: process.poll() is not None or (points.exists() and points.read_text().count("\n") > 10))
        sessions = {part for line in of_run(mark).values() for part in line.split() if "/session_" in part}
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all at once
        _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 1 and "1 of 3 cameras failed: gone; see the log above" in stderr, stderr
    assert (
        "Traceback" not in stderr
        and "was closed" not in stderr
        and "connection refused" in stderr
        and "door: " in stderr
    )
    with av.open(str(folder / "door.mp4")) as container:
        assert container.format.name.startswith("mov") and sum(1 for _ in container.decode(video=0)) > 10
    assert all(json.loads(line) for line in points.read_text().splitlines())
    until(lambda: not of_run(mark))
    assert secret not in stderr
    logs = [path for session in sessions for path in Path(session.split("=")[-1]).rglob("*") if path.is_file()]
    assert logs and not [path for path in logs if secret.encode() in path.read_bytes()]


def test_what_cannot_be_is_one_clear_error(tmp_path: Path) -> None:
    cfg = ClusterConfig(tmp_path / "c.yaml")
    with pytest.raises(LineamentError, match=r"same\.mp4"):
        Cluster(cfg, [Camera("a", "sample", ("same.mp4",)), Camera("b", "sample", ("same.mp4",))])
    url = "rtsp://me:hunter2@10.0.0.1/x"
    with pytest.raises(LineamentError, match=r"write to rtsp://\*\*\*@10"):
        Cluster(cfg, [Camera("a", "sample", (url,)), Camera("b", "sample", (url,))])
    with pytest.raises(LineamentError, match="cannot write to standard output"):
        Cluster(cfg, [Camera("a", "sample", ("-",))])
    with pytest.raises(LineamentError, match=r"127\.0\.0\.1:1: connection refused"):
        _check_reachable("127.0.0.1:1")
    with pytest.raises(LineamentError, match="expected 'auto' or host:port"):
        _check_reachable("ray://head")


@pytest.mark.parametrize(
    "wrong", [{"engines": 0}, {"gpus_per_engine": -1.0}, {"gpus_per_engine": 1.5}, {"cpus_per_camera": float("nan")}]
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ClusterConfig(Path("c.yaml"), **wrong)  # type: ignore[arg-type]


def test_an_engine_that_was_born_again_counts_as_restarted_and_its_crops_are_added_up() -> None:
    slot = EngineSlot(None)
    for born, crops in (("a", 3), ("a", 7), ("b", 2), ("b", 5)):
        slot.hear(EngineStatus(born, crops, crops, 0.0))
    assert (slot.restarts, slot.crops, slot.batches) == (1, 12, 12)
