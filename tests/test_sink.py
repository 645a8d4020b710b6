"""What is written can be read back: frames, times, points; and a sink that cannot write says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import pytest

from lineament.landmarks.schema import IBUG68, ibug68_from_wflw98
from lineament.landmarks.types import F32, U8, Face, Frame, LineamentError, Result, Track
from lineament.stream.read.open import open_source
from lineament.stream.read.sample import Sample
from lineament.stream.write.files import HlsSink, ImageSink, JsonlSink, VideoSink
from lineament.stream.write.open import open_sink
from lineament.stream.write.window import WindowSink, has_display
from tests.waiting import WAIT_S, started

ROOT = Path(__file__).resolve().parent.parent


def result_of(bgr: U8, index: int = 0, time_s: float | None = None, source: str = "clip.mp4") -> Result:
    return Result(Frame(bgr, source, index, index / 30 if time_s is None else time_s, 0.0), ())


def clip(size_hw: tuple[int, int] = (120, 160), frames: int = 12) -> list[Result]:
    sample = Sample(size_hw, noise=0.0)
    return [result_of(sample.render(i), i) for i in range(frames)]


def write_all(path: Path, results: list[Result], fps: float | None = 30.0) -> None:
    with open_sink(str(path), fps) as sink:
        for result in results:
            sink.write(result, result.frame.bgr)


def read_raw(path: Path) -> list[Frame]:
    """With the container's own times, whatever they are."""
    with av.open(str(path)) as container:
        return [Frame(BGR, str(path), i, float(p.time or 0), 0.0) for i, p in enumerate(container.decode(video=0))]


def read_all(path: Path) -> list[Frame]:
    with open_source(str(path)) as source:
        return list(iter(source.read, None))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".webm"])
def test_a_video_reads_back_with_its_frames_and_their_times(tmp_path: Path, suffix: str) -> None:
    path, written = tmp_path / f"new folder/ünïcode: 1{suffix}", clip()
    write_all(path, written)
    back = read_all(path)
    assert len(back) == len(written)
    for result, frame in zip(written, back, strict=True):
        assert frame.bgr.shape == (120, 160, 3)
        assert abs(frame.time_s - result.frame.time_s) < 0.002
        assert np.abs(frame.bgr.astype(int) - result.frame.bgr).mean() < 6


def test_a_closed_mp4_tells_every_reader_its_length_and_rate(tmp_path: Path) -> None:
    write_all(tmp_path / "a.mp4", clip(frames=60))
    capture = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 60
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(30)
    capture.release()
    with open_source(str(tmp_path / "a.mp4")) as source:
        assert (source.frame_count, source.fps) == (60, pytest.approx(30))


def test_uneven_times_are_kept_and_always_grow(tmp_path: Path) -> None:
    times_s = [5.0, 5.04, 5.5, 5.5, 5.4, 6.75]  # late start, gap, repeat, step back
    bgr = np.zeros((64, 64, 3), np.uint8)
    write_all(tmp_path / "a.mp4", [result_of(bgr, i, t) for i, t in enumerate(times_s)], fps=None)
    back_s = [frame.time_s for frame in read_all(tmp_path / "a.mp4")]
    assert back_s == sorted(set(back_s))
    assert back_s == pytest.approx([0.0, 0.04, 0.5, 0.5, 0.5, 1.75], abs=0.002)


def test_the_mp4_of_a_camera_keeps_its_times_over_a_night_and_no_index_in_memory(
    tmp_path: Path,
) -> None:
    bgr = np.zeros((64, 64, 3), np.uint8)
    times_s = [0.0, 0.04, 0.08, 40_000.0, 40_000.04, 40_001.5]
    with open_sink(str(tmp_path / "a.mp4"), 25.0, live=True) as sink:
        for index, time_s in enumerate(times_s):
            sink.write(result_of(bgr, index, time_s), bgr)
    back_s = [frame.time_s for frame in read_raw(tmp_path / "a.mp4")]
    assert back_s == pytest.approx(times_s, abs=0.002)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.count(b"moof") == 3, "a fragment a second, each with an index of its own"


def test_an_odd_size_gains_an_edge_and_another_size_is_letterboxed(tmp_path: Path) -> None:
    first, tall = np.full((61, 81, 3), 200, np.uint8), np.full((200, 50, 3), 200, np.uint8)
    write_all(tmp_path / "a.mp4", [result_of(first, 0), result_of(tall, 1)])
    even, boxed = (frame.bgr for frame in read_all(tmp_path / "a.mp4"))
    assert even.shape == boxed.shape == (62, 82, 3)
    assert even.min() > 190
    assert boxed[:, 41].min() > 190 and boxed[:, :30].max() < 20 and boxed[:, -30:].max() < 20


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.zeros((64, 96, 3), np.uint8)
    colours[:, :32], colours[:, 32:64], colours[:, 64:] = (220, 40, 40), (40, 220, 40), (40, 40, 220)
    write_all(tmp_path / "a.mp4", [result_of(colours)])
    (back,) = read_all(tmp_path / "a.mp4")
    for x in (16, 48, 80):
        assert np.abs(back.bgr[32, x].astype(int) - colours[32, x]).max() < 12


def test_a_killed_process_leaves_a_playable_video_and_whole_lines(tmp_path: Path) -> None:
    code = """
import os, signal
from lineament.stream.read.sample import Sample
from lineament.stream.write.open import open_sink
from lineament.landmarks.types import Frame, Result
sample = Sample((120, 160))
with open_sink("killed.mp4", 30) as video, open_sink("killed.jsonl") as lines:
    for i in range(100):
        result = Result(Frame(sample.render(i), "sample", i, i / 30, 0.0), ())
        video.write(result, result.frame.bgr)
        lines.write(result, result.frame.bgr)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert len(read_all(tmp_path / "killed.mp4")) >= 60
    lines = (tmp_path / "killed.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == list(range(100))


@pytest.mark.parametrize("fault", range(2))
def test_a_process_killed_in_the_middle_of_writing_leaves_a_playable_video_and_whole_lines(
    tmp_path: Path, fault: int
) -> None:
    code = """
import numpy as np
from lineament.stream.read.sample import Sample
from lineament.stream.write.open import open_sink
from lineament.landmarks.types import Face, Frame, Result, Track
bgr, points = Sample((240, 320)).render(0), np.full((98, 2), 123.456, np.float32)
face = Face(points.min(0).repeat(2), 0.9)
crowd = tuple(Track(i, face, points, 0.9) for i in range(40))  # 60 kB a line
with open_sink("a.mp4", 30) as video, open_sink("a.jsonl") as lines:
    for i in range(10**9):
        result = Result(Frame(np.roll(bgr, i, 1), "sample", i, i / 30, 0.0), crowd)
        video.write(result, result.frame.bgr)
        lines.write(result, result.frame.bgr)
        print(i, flush=True)
"""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", code]
    with started(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 70 + fault:
            pass
        process.kill()
    assert len(read_all(tmp_path / "a.mp4")) >= 30
    text = (tmp_path / "a.jsonl").read_text()
    indices = [json.loads(line)["index"] for line in text.splitlines()]
    assert text.endswith("\n") and indices == list(range(len(indices))) and len(indices) > 70


def test_a_disk_that_fills_up_keeps_whole_lines(tmp_path: Path) -> None:
    code = """
import resource, signal
import numpy as np
from lineament.stream.write.open import open_sink
from lineament.landmarks.types import Frame, LineamentError, Result
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a file over the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with open_sink("a.jsonl") as lines:
        for i in range(99):
            lines.write(Result(Frame(np.zeros((4, 4, 3), np.uint8), "sample", i, i / 30, 0.0), ()), None)
except LineamentError as error:
    print(error)
"""
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "cannot write a.jsonl" in done.stdout, done.stderr
    text = (tmp_path / "a.jsonl").read_text()
    assert text.endswith("}\n") and len([json.loads(line) for line in text.splitlines()]) >= 3


def playlist_files(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def read_playlist(path: Path) -> list[Frame]:
    """What is there now; a reader of the playlist itself would wait for more."""
    now = path.with_name("now.m3u8")
    now.write_text(f"{path.read_text()}#EXT-X-ENDLIST\n")
    return read_all(now)


def test_a_playlist_plays_while_it_is_written_and_keeps_a_bounded_number_of_segments(tmp_path: Path) -> None:
    path, results = tmp_path / "100% live/door.m3u8", clip((64, 64), frames=4)
    (tmp_path / "100% live").mkdir()
    stale, other = tmp_path / "100% live/door-17.ts", tmp_path / "100% live/door-open.ts"
    for file in (stale, other):
        file.write_text("of an earlier run")
    with open_sink(str(path), 10.0) as sink:
        assert isinstance(sink, HlsSink) and not path.exists() and not stale.exists() and other.exists()
        most = 0
        for index in range(300):  # 30 s
            bgr = results[index % 4].frame.bgr
            sink.write(result_of(bgr, index, index / 10), bgr)
            most = max(most, len(list(path.parent.glob("door-*.ts"))))
            if index in (50, 299):
                assert [frame.bgr.shape for frame in read_playlist(path)[:20]] == [(64, 64, 3)] * 20
        assert len(playlist_files(path)) == 6 and most <= 10
        numbers = [int(name.removeprefix("door-").removesuffix(".ts")) for name in playlist_files(path)]
    assert numbers == list(range(numbers[0], numbers[0] + 6)) and numbers[0] > 1e9
    assert path.read_text().endswith("#EXT-X-ENDLIST\n") and other.read_text() == "of an earlier run"
    with pytest.raises(LineamentError, match="cannot write"), HlsSink(other / "a.m3u8"):
        pass
    with pytest.raises(LineamentError, match="cannot contain '%d'"), HlsSink(tmp_path / "%03d/a.m3u8"):
        pass


def test_a_slow_cameras_segments_are_as_short_as_a_fast_ones(tmp_path: Path) -> None:
    """Whole pictures come by the clock; counted in frames at the rate that was promised, one would last for 10 s."""
    bgr = np.zeros((64, 64, 3), np.uint8)
    with open_sink(str(tmp_path / "a.m3u8"), 30.0) as sink:
        for index in range(60):
            sink.write(result_of(bgr, index, index / 3), bgr)
    lengths = [float(line[8:-1]) for line in (tmp_path / "a.m3u8").read_text().splitlines() if "EXTINF" in line]
    assert all(length < 2.5 for length in lengths)


def test_a_killed_process_leaves_a_playlist_that_plays(tmp_path: Path) -> None:
    script = f"""
import numpy as np
from lineament.stream.write.open import open_sink
from tests.test_sink import result_of
bgr = np.zeros((64, 64, 3), np.uint8)
with open_sink({str(tmp_path / "a.m3u8")!r}, 10.0) as sink:
    for index in range(75):
        sink.write(result_of(bgr, index, index / 10), bgr)
    print("written", flush=True)
    input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([sys.executable, "-c", script], cwd=ROOT, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.kill()
    assert len(read_playlist(tmp_path / "a.m3u8")) == 60  # three segments of two seconds are whole
    assert set(playlist_files(tmp_path / "a.m3u8")) <= {file.name for file in tmp_path.iterdir()}


def test_a_video_without_a_frame_leaves_no_file(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "a.mp4", 30.0) as sink:
        pass
    sink.close()
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to play a full disk")
@pytest.mark.parametrize("name", ["a.mp4", "a.jsonl", "a.png"])
def test_a_full_disk_is_said_once_and_closing_stays_quiet(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    sink = open_sink(str(tmp_path / name), 30.0)
    sink.__enter__()
    with pytest.raises(LineamentError, match=r"cannot write .*no space left"):
        for result in clip(frames=90):
            sink.write(result, result.frame.bgr)
    sink.close()
    sink.close()


def test_a_path_that_cannot_be_written_fails_on_entry(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in ("file/a.mp4", "file/a.jsonl", "file/pictures/"):
        with pytest.raises(LineamentError, match="cannot write"), open_sink(f"{tmp_path}/{path}"):
            pass
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(LineamentError, match=r"cannot write .*is a directory"), VideoSink(tmp_path / "folder.mp4"):
        pass


def test_an_unknown_ending_lists_the_known_ones() -> None:
    with pytest.raises(LineamentError, match=r"'out\.xyz'; use \.mp4, .*\.jsonl.*\.png"):
        open_sink("out.xyz")


@pytest.mark.parametrize("name", ["clip.mp4", "photo.png"])
def test_the_source_is_never_written_to(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(b"precious")
    (tmp_path / "sub").mkdir()
    with pytest.raises(LineamentError, match="is the source itself"):
        open_sink(str(tmp_path / "sub" / ".." / name), source=str(source))
    assert source.read_bytes() == b"precious"
    with pytest.raises(LineamentError, match="is the source itself"):
        open_sink(str(source), source=f"file://{tmp_path}/{name}?x#y")
    open_sink(str(source), source="rtsp://host/" + "x" * 5000)


def test_pictures_never_replace_the_pictures_they_came_from(tmp_path: Path) -> None:
    bgr = np.zeros((32, 32, 3), np.uint8)
    original = tmp_path / "face.jpg"
    original.write_bytes(b"precious")
    for source in (f"{original}", f"{original}#page=1"):
        sink = ImageSink(tmp_path, folder=True, still=True)
        with pytest.raises(LineamentError, match="is the source itself"), sink:
            sink.write(result_of(bgr, source=source), bgr)
    assert original.read_bytes() == b"precious"


def test_a_frame_that_is_due_in_hours_does_not_keep_the_window_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    waits_ms: list[int] = []
    keys = iter([-1, -1, -1, ord("q")])
    window = WindowSink(paced=True)
    monkeypatch.setattr(cv2, "waitKey", lambda ms: (waits_ms.append(ms), next(keys))[1])
    monkeypatch.setattr(cv2, "imshow", lambda *_: None)
    monkeypatch.setattr(cv2, "resizeWindow", lambda *_: None)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    window.write(result_of(BGR, 0, 0.0), BGR)
    window.write(result_of(BGR, 1, 7200.0), BGR)
    assert window.quit and len(waits_ms) == 4 and max(waits_ms) <= 200


def face_at(points: F32) -> Track:
    return Track(7, Face(np.array([1.5, 2.25, 30.126, 40], np.float32), 0.87654321), points, 0.75)


POINTS = (np.random.default_rng(0).random((98, 2)) * 100).astype(np.float32)
BGR = np.zeros((48, 64, 3), np.uint8)


def test_a_line_holds_all_of_a_result(tmp_path: Path) -> None:
    path = tmp_path / "deep/a.jsonl"
    frame = Frame(BGR, "rtsp://user:secret@host/x", 3, 0.1, 0.0)
    with open_sink(str(path)) as sink:
        sink.write(Result(frame, (face_at(POINTS),), {"detect": 1.23456}), BGR)
        sink.write(Result(frame, ()), BGR)
    first, second = map(json.loads, path.read_text().splitlines())
    assert second["faces"] == []
    (face,) = first.pop("faces")
    assert first == {
        "source": "rtsp://***@host/x",
        "index": 3,
        "time_s": 0.1,
        "width": 64,
        "height": 48,
        "schema": "wflw98",
        "ms": {"detect": 1.235},
    }
    assert np.allclose(face["points"], POINTS, atol=0.0051)
    assert (face["id"], face["score"], face["confidence"]) == (7, 0.8765, 0.75)
    assert face["box_xyxy"] == [1.5, 2.25, 30.13, 40.0]


def test_sixty_eight_points_on_request(tmp_path: Path) -> None:
    line = json.loads(JsonlSink("a.jsonl", IBUG68.name).line(Result(Frame(BGR, "x", 0, 0.0, 0.0), (face_at(POINTS),))))
    assert line["schema"] == "ibug68"
    assert np.allclose(line["faces"][0]["points"], ibug68_from_wflw98(POINTS), atol=0.0051)
    with pytest.raises(LineamentError, match=r"unknown schema 'coco'; choose from wflw98, ibug68"):
        JsonlSink("a.jsonl", "coco")


def test_pose_and_openness_are_added_and_what_is_not_finite_is_null() -> None:
    line = JsonlSink("a.jsonl").line
    face = json.loads(line(Result(Frame(BGR, "x", 0, 0.0, 0.0), (face_at(POINTS),))))["faces"][0]
    assert face["pose_deg"].keys() == {"yaw", "pitch", "roll"} and len(face["eye_aspect"]) == 2
    face = json.loads(line(Result(Frame(BGR, "x", 0, 0.0, 0.0), (face_at(POINTS * np.nan),))))["faces"][0]
    assert face["points"] == [[None, None]] * 98 and face["eye_aspect"] == [None, None] == [face["mouth_aspect"]] * 2
    assert face["pose_deg"] == {"yaw": None, "pitch": None, "roll": None}
    assert face["gaze_deg"] == {"yaw": None, "pitch": None} and set(face["expression"].values()) == {None}
    assert {"eyeBlinkLeft", "jawOpen", "mouthSmileRight", "browInnerUp", "eyeLookUpLeft"} <= face["expression"].keys()


def test_a_dash_is_standard_output_and_leaves_it_open(capsys: pytest.CaptureFixture[str]) -> None:
    with open_sink("-") as sink:
        sink.write(result_of(BGR), BGR)
    print("still open")
    line, after = capsys.readouterr().out.splitlines()
    assert json.loads(line)["index"] == 0 and after == "still open"


def test_a_folder_of_pictures_is_named_after_its_sources(tmp_path: Path) -> None:
    sources = ["in/a-2.png", "in/a.png", "in/a.heic", "in/b.tif#page=1", "in/b.tif#page=2", "in/c"]
    with open_sink(f"{tmp_path}/out/", still=True) as sink:
        for index, source in enumerate(sources):
            sink.write(result_of(BGR, index, source=source), BGR)
    names = ["a-2.jpg", "a-3.jpg", "a.jpg", "b-2.jpg", "b.jpg", "c.jpg"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names


def test_frames_of_a_video_in_a_folder_are_numbered(tmp_path: Path) -> None:
    with open_sink(f"{tmp_path}/out/") as sink:
        for index in range(2):
            sink.write(result_of(BGR, index, source="a.gif"), BGR)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.jpg", "000001.jpg"]


def test_one_picture_takes_one_frame(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "out.png")) as sink:
        sink.write(result_of(BGR + 9), BGR + 9)
        with pytest.raises(LineamentError, match="is one picture and got a second frame; use a folder/"):
            sink.write(result_of(BGR, 1), BGR)
    assert np.array_equal(cast(U8, cv2.imread(str(tmp_path / "out.png"))), BGR + 9)


def test_without_a_display_a_window_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    has_display.cache_clear()
    with pytest.raises(LineamentError, match=r"no display.*--no-window"), WindowSink():
        pass
    has_display.cache_clear()


def test_a_display_that_does_not_answer_is_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":4242")
    has_display.cache_clear()
    assert not has_display()
    has_display.cache_clear()


WINDOW = """
import sys, threading, time
from pathlib import Path
import cv2
from lineament.stream.read.sample import Sample
from lineament.stream.write.window import WindowSink
from lineament.landmarks.types import Frame, Result
sample = Sample()
results = [Result(Frame(sample.render(i), "rtsp://x/y", i, i / 30, 0.0), ()) for i in range(8)]
keys = iter([-1, ord("s"), ord(" "), -1, -1, ord(" "), -1, 27])
cv2.waitKey, real = (lambda ms: (real(ms), next(keys))[1]), cv2.waitKey
shown = 0
with WindowSink(snapshots=Path(".")) as window:
    for result in results:
        window.write(result, result.frame.bgr)
        shown += not window.quit
        if window.quit:
            break
window.close()
assert shown == 4, shown
cv2.waitKey = real
with WindowSink() as window:
    window.write(results[0], results[0].frame.bgr)
    assert not window.quit
    cv2.destroyWindow("Lineament")
    window.write(results[1], results[1].frame.bgr)
    assert window.quit
"""


@pytest.mark.skipif(
    not any(Path(p, "Xvfb").exists() for p in os.get_exec_path()), reason="needs Xvfb: apt install xvfb"
)
def test_keys_quit_pause_and_save_and_a_closed_window_quits(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "1280x1024x24"]
    with started(command, pass_fds=[write_end], stderr=subprocess.DEVNULL) as xvfb:
        os.close(write_end)
        with os.fdopen(read_end) as number:
            display = f":{number.readline().strip()}"
        root = Path(__file__).resolve().parent.parent
        env = {**os.environ, "DISPLAY": display, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-c", WINDOW], cwd=tmp_path, env=env, timeout=60, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        xvfb.terminate()  # Xvfb removes its lock file
        xvfb.wait(WAIT_S)
    assert [p.name for p in tmp_path.iterdir()] == ["lineament-y-000001.png"]
