"""Several sources at once: each is its own affair, whatever happens to the others, and all are let go together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import av
import cv2
import numpy as np
import pytest

from lineament.landmarks.types import U8, Frame, Landmarks, LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.read.camera import CameraSource
from lineament.stream.read.reconnect import RetryConfig
from lineament.stream.read.spec import ReadConfig
from lineament.stream.run import pipeline
from lineament.stream.run.cameras import Camera
from lineament.stream.run.session import SessionConfig
from lineament.stream.run.supervisor import Supervisor
from tests.blobs import BlobLandmarker, template
from tests.rtsp import rtsp_server
from tests.waiting import WAIT_S, started, until

ROOT = Path(__file__).resolve().parent.parent
GOOD_URL = "rtsp://admin:p%40ss@127.0.0.1:{}/cam"


def lines_in(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def watch(*cameras: Camera, **settings: object) -> Supervisor:
    return Supervisor(SessionConfig(**settings), cameras, SharedLandmarker(BlobLandmarker()))  # type: ignore[arg-type]


@pytest.fixture
def hole() -> Iterator[int]:
    """The port of somebody who takes a call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_dead_a_silent_and_a_wrong_source_leave_the_others_their_frames_and_all_is_let_go(
    tmp_path: Path, hole: int, caplog: pytest.LogCaptureFixture
) -> None:
    with rtsp_server() as (_, port):
        cameras = [
            Camera("good", GOOD_URL.format(port), (f"{tmp_path}/good.jsonl",)),
            Camera("refused", "rtsp://a:hunter2@127.0.0.1:1/x"),
            Camera("silent", f"rtsp://a:hunter2@127.0.0.1:{hole}/x"),
            Camera("locked", f"rtsp://admin:hunter2@127.0.0.1:{port}/cam"),
            Camera("missing", str(tmp_path / "gone.mp4")),
        ]
        with watch(*cameras) as all_of_them:
            good, refused, silent, locked, missing = all_of_them.workers
            until(lambda: good.session.stats.frames > 45)
            assert good.session.stats.fps > 0 and good.session.trouble is None and good.error is None
            until(lambda: "401" in (locked.session.trouble or ""))
            assert "connection refused" in (refused.session.trouble or "")
            assert silent.thread.is_alive() and silent.session.stats.frames == 0
            assert "no such file" in str(missing.error) and not missing.thread.is_alive()
            said = {(record.source, record.event) for record in caplog.records if "event" in vars(record)}  # type: ignore[attr-defined]
            assert said >= {("refused", "lost"), ("locked", "refused"), ("missing", "ended")}
            assert "good" in good.live_line() and "fps" in good.live_line() and "401" in locked.live_line()
            tiles = all_of_them.tiled((360, 480))
            assert tiles.shape == (360, 480, 3) and tiles[:180, :160].max() > 200 > 40 > tiles[60:120, 200:280].max()
        assert not all_of_them.running
    lines = [json.loads(line) for line in (tmp_path / "good.jsonl").read_text().splitlines()]
    indices = [line["index"] for line in lines]
    assert indices == sorted(set(indices)) and len(indices) == good.session.stats.frames
    assert "hunter2" not in caplog.text
    assert not [t.name for t in threading.enumerate() if t.name.split()[0] in ("watch", "capture", "inference")]


def test_a_camera_whose_output_blocks_does_not_hold_up_the_others(tmp_path: Path) -> None:
    fifo = tmp_path / "full.jsonl"
    os.mkfifo(fifo)
    reader, filler = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(filler, bytes(4096))
    os.close(filler)
    with rtsp_server() as (_, port):
        stuck = Camera("stuck", GOOD_URL.format(port), (str(fifo),))
        with watch(stuck, Camera("good", GOOD_URL.format(port))) as both:
            blocked, good = both.workers
            until(lambda: good.session.stats.frames > 30 and blocked.session.dropped > 10)
            assert blocked.session.stats.frames == 0 and blocked.error is None
            os.close(reader)  # the writer is told: broken pipe
            until(lambda: not blocked.thread.is_alive())
    assert "broken pipe" in str(blocked.error) and good.error is None


def test_with_more_work_than_can_be_done_all_get_a_share_and_every_drop_is_counted(
    astronaut: U8, tmp_path: Path
) -> None:
    class Slow(BlobLandmarker):
        """Needs 0.15 s a batch, however large; sees a face in the middle of every crop."""

        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            self.batches.append(len(rgb_NHWC))
            time.sleep(0.15)
            points = np.tile(0.3 + 0.4 * template(), (len(rgb_NHWC), 1, 1))
            return Landmarks(points, np.ones(len(rgb_NHWC), np.float32))

    cv2.imwrite(str(tmp_path / "face.png"), astronaut)
    model = Slow()
    with rtsp_server(size_hw=(240, 240), fps=10, picture=str(tmp_path / "face.png")) as (_, port):
        cameras = [Camera(name, GOOD_URL.format(port), (f"{tmp_path}/{name}.jsonl",)) for name in ("a", "b", "c")]
        with Supervisor(SessionConfig(), cameras, SharedLandmarker(model)) as all_of_them:
            stats = [worker.session.stats for worker in all_of_them.workers]
            until(lambda: min(one.frames_with_faces for one in stats) > 8)
            frames = [one.frames for one in stats]
            assert max(frames) < 2 * min(frames) and max(model.batches) > 1
        for worker in all_of_them.workers:
            indices = [json.loads(line)["index"] for line in Path(worker.camera.outputs[0]).read_text().splitlines()]
            missing = indices[-1] + 1 - len(indices)
            assert 0 < missing <= worker.session.dropped


def test_a_crowd_in_one_picture_leaves_the_others_their_share(astronaut: U8, tmp_path: Path) -> None:
    class ByTheFace(BlobLandmarker):
        """Needs 0.03 s a face; sees one in the middle of every crop."""

        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            time.sleep(0.03 * len(rgb_NHWC))
            points = np.tile(0.3 + 0.4 * template(), (len(rgb_NHWC), 1, 1))
            return Landmarks(points, np.ones(len(rgb_NHWC), np.float32))

    cv2.imwrite(str(tmp_path / "one.png"), astronaut)
    cv2.imwrite(str(tmp_path / "crowd.png"), np.tile(astronaut[:256, 100:356], (3, 3, 1)))
    pictures = {name: str(tmp_path / f"{name}.png") for name in ("crowd", "one")}
    with (
        rtsp_server(size_hw=(480, 480), fps=15, picture=pictures["crowd"]) as (_, crowded),
        rtsp_server(size_hw=(240, 240), fps=15, picture=pictures["one"]) as (_, quiet),
    ):
        cameras = [Camera(name, GOOD_URL.format(port)) for name, port in (("crowd", crowded), ("one", quiet))]
        track = TrackConfig(max_faces=9)
        with Supervisor(SessionConfig(track=track), cameras, SharedLandmarker(ByTheFace())) as both:
            crowd, one = (worker.session.stats for worker in both.workers)
            until(lambda: crowd.faces >= 6 and one.faces == 1)
            before = crowd.frames, one.frames
            until(lambda: crowd.frames - before[0] >= 8)
            assert one.frames - before[1] >= (crowd.frames - before[0]) / 2


def test_a_machine_too_slow_for_the_age_asked_for_shows_something_of_every_source_and_counts_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "_SHOWN_EVERY_S", 0.1)
    with rtsp_server() as (_, port):
        cameras = [Camera(name, GOOD_URL.format(port)) for name in ("a", "b")]
        with watch(*cameras, max_age_s=1e-9) as both:
            sessions = [worker.session for worker in both.workers]
            until(lambda: all(session.stats.frames > 3 and session.stale > 3 for session in sessions))
            assert all(session.stale <= session.dropped for session in sessions)
            assert "of them too old" in sessions[0].summary()


def test_the_model_makes_its_first_call_before_any_thread_can_make_it_twice() -> None:
    callers: list[threading.Thread] = []

    class Noting(BlobLandmarker):
        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            callers.append(threading.current_thread())
            return super().__call__(rgb_NHWC)

    with Supervisor(SessionConfig(frames=3), [Camera("a", "sample")], SharedLandmarker(Noting())) as one:
        until(lambda: not one.running)
    assert callers[0] is threading.main_thread()
    assert len(callers) > 1 and threading.main_thread() not in callers[1:]


def test_files_give_every_frame_and_end_by_themselves() -> None:
    cameras = [Camera(name, "sample") for name in ("a", "b", "c")]
    with watch(*cameras, frames=30) as files:
        until(lambda: not files.running)
        assert [worker.session.stats.frames for worker in files.workers] == [30] * 3
        assert [worker.session.dropped for worker in files.workers] == [0] * 3


def test_each_source_has_its_own_ids_and_outputs(tmp_path: Path) -> None:
    cameras = [Camera(name, "sample", (f"{tmp_path}/{name}.jsonl",)) for name in ("a", "b")]
    with watch(*cameras, frames=10) as files:
        until(lambda: not files.running)
    for camera in cameras:
        lines = [json.loads(line) for line in Path(camera.outputs[0]).read_text().splitlines()]
        assert [line["index"] for line in lines] == list(range(10))


def test_a_changed_list_ends_and_starts_what_differs_and_leaves_the_rest_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rtsp_server() as (_, port):
        url = GOOD_URL.format(port)
        stays, goes, comes = (Camera(name, url, (f"{tmp_path}/{name}.jsonl",)) for name in ("stays", "goes", "comes"))
        moved = Camera("stays", url, (f"{tmp_path}/elsewhere.jsonl",))
        with watch(stays, goes) as all_of_them:
            until(lambda: all(worker.session.stats.frames > 3 for worker in all_of_them.workers))
            first, ended = all_of_them.workers
            all_of_them.change([comes, stays])
            assert all_of_them.workers[1] is first and first.thread.is_alive() and not ended.thread.is_alive()
            assert ended.error is None and first.session.reconnects == 0
            (change,) = [vars(r) for r in caplog.records if vars(r).get("event") == "cameras_changed"]
            assert change["ended"] == ["goes"] and change["started"] == ["comes"]
            until(lambda: all_of_them.workers[0].session.stats.frames > 3)
            with pytest.raises(LineamentError, match="two outputs"):
                all_of_them.change([stays, stays])
            all_of_them.change([moved])
            until(lambda: all_of_them.workers[0].session.stats.frames > 3)
            assert not first.thread.is_alive() and len(all_of_them.workers) == 1
        assert not all_of_them.running
    for name in ("stays", "goes", "comes", "elsewhere"):
        assert len([json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]) > 3


def test_a_camera_that_had_ended_is_tried_again_when_the_list_changes(tmp_path: Path) -> None:
    late, sample = Camera("late", str(tmp_path / "late.png")), Camera("sample", "sample")
    with watch(late) as one:
        until(lambda: not one.running)
        assert one.workers[0].error is not None
        cv2.imwrite(late.spec, np.zeros((64, 64, 3), np.uint8))
        one.change([late, sample])
        until(lambda: not one.workers[0].thread.is_alive())
        assert one.workers[0].error is None and one.workers[0].session.stats.frames == 1


def test_a_change_of_the_list_costs_no_recording(tmp_path: Path) -> None:
    done = Camera("done", "sample", (f"{tmp_path}/done.jsonl",))
    with watch(done, frames=5) as all_of_them:
        until(lambda: not all_of_them.running)
        (first,) = all_of_them.workers
        all_of_them.change([done, Camera("new", "sample", (f"{tmp_path}/new.jsonl",))])
        assert all_of_them.workers[0] is first, "what ended well is not begun again"
        until(lambda: not all_of_them.running)
        other = Camera("done", "sample", (f"{tmp_path}/done.jsonl", f"{tmp_path}/more.jsonl"))
        all_of_them.change([other, Camera("renamed", "sample", (f"{tmp_path}/new.jsonl",))])
        until(lambda: not all_of_them.running)
    for name in ("done", "done-2", "more", "new", "new-2"):
        assert lines_in(tmp_path / f"{name}.jsonl") == 5


def test_an_auto_that_chose_the_camera_never_becomes_the_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    class Unplugged(CameraSource):
        def __enter__(self) -> Self:
            if len(opened) > 1:
                raise LineamentError("no camera")
            return super().__enter__()

        def _open(self) -> None: ...

        def _next(self) -> Frame | None:
            raise LineamentError("unplugged")

    def opens(spec: str, cfg: ReadConfig | None) -> CameraSource:
        opened.append(spec)
        return Unplugged(0)

    monkeypatch.setattr("lineament.stream.read.reconnect.open_source", opens)
    with watch(Camera("webcam", "auto"), retry=RetryConfig(0.5)) as one:
        until(lambda: not one.running)
    assert opened[0] == "auto" and set(opened[1:]) == {"0"}


def test_two_outputs_to_one_path_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"two outputs would write to a\.mp4"):
        watch(Camera("a", "sample", ("a.mp4",)), Camera("b", "sample", ("a.mp4",)))


def test_a_source_that_is_given_up_ends_alone() -> None:
    dead = Camera("dead", "rtsp://127.0.0.1:1/x")
    with watch(dead, Camera("a", "sample"), frames=20, retry=RetryConfig(0.5)) as both:
        until(lambda: not both.running)
        lost, good = both.workers
    assert "gave up after" in str(lost.error) and good.session.stats.frames == 20


def test_a_fault_of_ours_is_raised_when_all_are_done() -> None:
    class Broken(BlobLandmarker):
        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            raise RuntimeError("no memory")

    one = Supervisor(SessionConfig(), [Camera("a", "sample")], SharedLandmarker(Broken()))
    with pytest.raises(RuntimeError, match="no memory"), one:
        until(lambda: not one.running)


def test_the_command_line_watches_the_cameras_of_a_file_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with rtsp_server() as (_, port):
        (tmp_path / "cameras.yaml").write_text(f"""
cameras:
  - {{name: yard, source: '{GOOD_URL.format(port).replace("p%40ss", "${YARD_PASSWORD}")}', out: [yard.mp4, yard.jsonl]}}
  - {{name: dead, source: 'rtsp://admin:hunter2@127.0.0.1:1/x', out: dead.jsonl}}
""")
        command = [sys.executable, "-m", "stream", "--cameras", str(tmp_path / "cameras.yaml"), "--no-window"]
        environment = {**os.environ, "YARD_PASSWORD": "p%40ss"}
        with socket.create_server(("127.0.0.1", 0)) as free:
            monitor_port = free.getsockname()[1]
        command += ["--tiles", str(tmp_path / "all.mp4"), "--monitor", str(monitor_port)]
        with started(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
            points = tmp_path / "yard.jsonl"
            until(lambda: process.poll() is not None or lines_in(points) > 10)
            with urllib.request.urlopen(f"http://127.0.0.1:{monitor_port}/metrics", timeout=WAIT_S) as answer:
                assert 'lineament_up{source="yard"} 1.0' in answer.read().decode().splitlines()
            listing = tmp_path / "cameras.yaml"
            listing.write_text("cameras: [")
            until(lambda: os.stat(listing).st_mtime_ns < time.time_ns() - 10**9)  # it has been looked at
            listing.write_text("cameras:\n  - {name: more, source: sample, out: more.jsonl}\n")
            until(lambda: process.poll() is not None or lines_in(tmp_path / "more.jsonl") > 3)
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, stderr
    assert "connection refused" in stderr and "Traceback" not in stderr
    assert "is unchanged" in stderr and "not valid YAML" in stderr and "ended yard, dead; started more" in stderr
    assert "more: " in stderr
    assert "hunter2" not in stderr and "p%40ss" not in stderr and "p@ss" not in points.read_text()
    for name in ("yard.mp4", "all.mp4"):
        with av.open(str(tmp_path / name)) as container:
            last = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)][-1]
        assert np.ptp(last) > 200, "there is a picture"


def test_the_command_line_says_which_source_failed_and_finishes_the_rest(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream", "--source", "sample", "--source", "gone.mp4", "--no-window"]
    outputs = ["--frames", "5", "--jsonl", f"{tmp_path}/{{name}}.jsonl"]
    done = subprocess.run([*command, *outputs], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "1 of 2 sources failed: gone" in done.stderr and "Traceback" not in done.stderr
    assert (tmp_path / "sample.jsonl").read_text().count("\n") == 5
