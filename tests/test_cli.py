"""The command line as a user meets it: real processes, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from lineament.landmarks.command import renamed
from lineament.landmarks.types import U8
from tests.waiting import WAIT_S, started, until

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "stream"]
NO_DISPLAY = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}


def stream(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**NO_DISPLAY, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*COMMAND, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def frames_in(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_sample_becomes_a_video_and_json_lines_at_once(tmp_path: Path) -> None:
    video, points = tmp_path / "new" / "a.mp4", tmp_path / "a.jsonl"
    done = stream("--source", "sample", "--frames", "40", "--out", video, "--out", f"{tmp_path}/f/", "--jsonl", points)
    assert done.returncode == 0, done.stderr
    assert frames_in(video) == 40
    assert len(list((tmp_path / "f").glob("*.jpg"))) == 40
    lines = lines_of(points)
    assert [line["index"] for line in lines] == list(range(40))
    assert "40 frames in" in done.stderr and str(video) in done.stderr
    assert "Traceback" not in done.stderr


def test_without_display_or_output_the_result_goes_to_a_file_that_is_named(tmp_path: Path) -> None:
    done = stream("--source", "sample", "--frames", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out/sample.mp4" in done.stderr
    assert frames_in(tmp_path / "out" / "sample.mp4") == 3


def test_json_lines_on_standard_output_are_nothing_but_json() -> None:
    done = stream("--source", "sample", "--frames", "2", "--jsonl", "-")
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == [0, 1]


def test_a_line_says_all_there_is_to_say_of_a_face(astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    done = stream("--source", tmp_path / "a.png", "--jsonl", "-")
    line = json.loads(done.stdout)
    assert (line["width"], line["height"], line["schema"]) == (512, 512, "wflw98")
    assert {"detect", "crop", "landmark", "track", "draw"} <= set(line["ms"])
    assert "age" not in line["ms"] and " age " not in done.stderr, "a file waits in a queue, and has no delay"
    (face,) = line["faces"]
    assert face["id"] == 1 and 0.5 < face["score"] <= 1 and 0.5 < face["confidence"] <= 1
    points = np.array(face["points"])
    assert points.shape == (98, 2)
    assert ((points > (160, 40)) & (points < (290, 200))).all(), "every point lies on the face"
    assert set(face["pose_deg"]) == {"yaw", "pitch", "roll"}
    assert len(face["eye_aspect"]) == 2 and face["mouth_aspect"] >= 0


def test_68_points_on_request(astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    done = stream("--source", tmp_path / "a.png", "--jsonl", "-", "--schema", "ibug68")
    line = json.loads(done.stdout)
    assert line["schema"] == "ibug68" and len(line["faces"][0]["points"]) == 68


def test_a_folder_of_pictures_gives_a_line_and_a_picture_each(astronaut: U8, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "in" / f"{i}.png"), np.roll(astronaut, 10 * i, axis=1))
    done = stream("--source", tmp_path / "in", "--out", f"{tmp_path / 'out'}/", "--jsonl", tmp_path / "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["0", "1", "2"]
    lines = lines_of(tmp_path / "p.jsonl")
    assert [Path(str(line["source"])).name for line in lines] == ["0.png", "1.png", "2.png"]


def test_a_limit_says_whom_it_leaves_out_and_a_picture_shows_everybody(astronaut: U8, tmp_path: Path) -> None:
    crowd = np.concatenate([astronaut[20:220, 125:325]] * 3, 1)
    cv2.imwrite(str(tmp_path / "crowd.png"), crowd)
    done = stream("--source", tmp_path / "crowd.png", "--max-faces", "1", "--jsonl", tmp_path / "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert [len(line["faces"]) for line in lines_of(tmp_path / "p.jsonl")] == [3]  # type: ignore[arg-type]
    with av.open(str(tmp_path / "crowd.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=30, width=600, height=200, pix_fmt="yuv420p")
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(crowd, format="bgr24")))
        container.mux(video.encode())
    clip = ("--source", tmp_path / "crowd.mp4", "--no-window", "--jsonl", tmp_path / "v.jsonl")
    done = stream(*clip, "--max-faces", "1")
    assert "--max-faces 1 left out up to 2 faces a frame; --max-faces 0 follows all" in done.stderr
    assert {len(line["faces"]) for line in lines_of(tmp_path / "v.jsonl")} == {1}  # type: ignore[arg-type]
    assert "left out" not in stream(*clip, "--max-faces", "0").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_every_file_whole(number: int, tmp_path: Path) -> None:
    video, points = tmp_path / "a.mp4", tmp_path / "a.jsonl"
    command = [*COMMAND, "--source", "sample", "--out", video, "--jsonl", points]
    options = {"env": NO_DISPLAY, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with started(command, cwd=ROOT, **options) as process:
        until(lambda: process.poll() is not None or (points.exists() and points.read_text().count("\n") >= 5))
        process.send_signal(number)
        _, stderr = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, stderr
    assert "frames in" in stderr, "the summary is shown"
    lines = lines_of(points)
    assert 5 <= len(lines) < 300
    assert frames_in(video) == len(lines)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no-such-file.mp4", "no-such-file.mp4"),
        ("999", "camera 999"),
        ("rtsp://user:secret@127.0.0.1:1/live", "127.0.0.1"),
        (".", "picture"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_clear_error(source: str, says: str) -> None:
    done = stream("--source", source, "--no-window", "--jsonl", "-")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--model", "b7"], "b7"),
        (["--out", "clip.xyz"], "clip.xyz"),
        (["--max-faces", "-1"], "max_faces"),
        (["--detect-every", "-3"], "detect_every"),
        (["--min-score", "2"], "min_score"),
        (["--max-age-s", "0"], "max_age_s"),
        (["--out", "/proc/nowhere/a.mp4"], "/proc/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(args: list[str], says: str) -> None:
    done = stream("--source", "sample", "--frames", "2", "--no-window", *args)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_an_error_and_what_was_written_elsewhere_is_whole(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    video = tmp_path / "a.mp4"
    done = stream("--source", "sample", "--frames", "9", "--out", video, "--jsonl", tmp_path / "full.jsonl")
    assert done.returncode == 1
    assert "full.jsonl" in done.stderr and "Traceback" not in done.stderr
    assert frames_in(video) >= 1


def test_the_source_is_never_written_over(astronaut: U8, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), astronaut)
    before = picture.read_bytes()
    assert stream("--source", picture, "--out", picture).returncode == 1
    assert picture.read_bytes() == before


def test_a_model_file_puts_its_points_on_the_sample(tmp_path: Path) -> None:
    """The model sees the mean face in every crop. A checkpoint is streamed in test_chain."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    from lineament.landmarks.adapter import mean_shape
    from tests.tint import tint

    model = onnx.load(path := tint(tmp_path / "mean.onnx"))
    said = {"matrix": np.zeros((3, 196)), "offset": (0.5 + 0.35 * mean_shape()[:, :2]).ravel()}
    for tensor in model.graph.initializer:
        if tensor.name in said:
            tensor.CopyFrom(onnx.numpy_helper.from_array(said[tensor.name].astype(np.float32), tensor.name))
    onnx.save(model, path)
    for device in ("auto", "openvino", "cpu"):
        done = stream("--source", "sample", "--frames", "3", "--model", path, "--device", device, "--jsonl", "-")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == 3 and len(lines[-1]["faces"][0]["points"]) == 98


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("gone.onnx", "no model file at gone.onnx"),
        ("gone.safetensors", "no model at gone.safetensors"),
        ("gone.engine", "gone.engine"),
        ("picture.png", "ends in .png"),
        ("b7", "no model is called 'b7'"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_clear_error(model: str, says: str) -> None:
    done = stream("--source", "sample", "--frames", "2", "--no-window", "--model", model)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and says in done.stderr and "Traceback" not in done.stderr


def test_help_names_every_option_with_its_reason() -> None:
    done = stream("--help")
    assert done.returncode == 0
    for option in ("--source", "--model", "--out", "--jsonl", "--no-window", "--max-faces", "--detect-every", "--draw"):
        assert option in done.stdout


def test_an_option_of_a_former_release_still_works_and_says_its_name_of_today(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {"--every": "--detect-every"}
    assert renamed(["--every", "3", "--source=--every", "--every=4"], names) == [
        "--detect-every",
        "3",
        "--source=--every",
        "--detect-every=4",
    ]
    said = capsys.readouterr().err
    assert said == "--every is now --detect-every; the old name will be removed in the next release\n"
    assert renamed(["--detect-every", "3"], names) == ["--detect-every", "3"] and not capsys.readouterr().err
