"""A blurred face cannot be found again, whatever becomes of its track; the rest of the picture is untouched."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np

from lineament.landmarks.types import U8, Face, Frame, Result, Track
from lineament.stream.analyse.detect import ImageDetector
from lineament.stream.read.open import open_source
from lineament.stream.write.blur import Blur

ROOT = Path(__file__).resolve().parent.parent


def result_of(bgr: U8, time_s: float, *boxes_xyxy: tuple[float, float, float, float]) -> Result:
    """A face in each box, with points along its edges."""
    tracks = []
    for index, box in enumerate(boxes_xyxy):
        points = np.array([box[:2], box[2:]], np.float32).repeat(49, 0)
        tracks.append(Track(index, Face(np.array(box, np.float32), 0.9), points, 0.9))
    return Result(Frame(bgr, "clip", 0, time_s, 0.0), tuple(tracks))


FACE = (180.0, 80.0, 265.0, 170.0)
"""the points' bounds on the astronaut"""


def test_a_blurred_face_is_found_no_more_and_the_rest_is_untouched(astronaut: U8) -> None:
    before = astronaut.copy()
    blurred = Blur()(result_of(astronaut, 0.0, FACE)).frame.bgr
    with ImageDetector() as find:
        assert find(astronaut) and not find(blurred)
    assert np.array_equal(astronaut, before), "the source's picture stays as it was"
    changed = np.argwhere((blurred != astronaut).any(2))
    assert changed.min(0)[0] >= 125 - 90 and changed.max(0)[0] <= 125 + 90
    assert changed.min(0)[1] >= 222 - 90 and changed.max(0)[1] <= 222 + 90


def test_a_face_that_is_lost_stays_blurred_for_a_second_and_no_longer(astronaut: U8) -> None:
    blur = Blur()
    first = blur(result_of(astronaut, 5.0, FACE)).frame.bgr
    assert np.array_equal(blur(result_of(astronaut, 5.9)).frame.bgr, first)
    assert np.array_equal(blur(result_of(astronaut, 6.1)).frame.bgr, astronaut)


def test_a_face_that_moves_leaves_no_trail_and_another_one_does_not_uncover_it(astronaut: U8) -> None:
    blur = Blur()
    blur(result_of(astronaut, 0.0, FACE))
    moved = blur(result_of(astronaut, 0.1, (190.0, 80.0, 275.0, 170.0))).frame.bgr
    assert np.array_equal(moved, Blur()(result_of(astronaut, 0.0, (190.0, 80.0, 275.0, 170.0))).frame.bgr)
    other = blur(result_of(astronaut, 0.2, (400.0, 300.0, 480.0, 380.0))).frame.bgr
    assert np.array_equal(other[:250, :300], moved[:250, :300])


def test_a_face_at_the_edge_or_outside_is_no_error(astronaut: U8) -> None:
    for box in ((-40.0, -40.0, 20.0, 30.0), (500.0, 490.0, 900.0, 900.0), (-900.0, 0.0, -800.0, 99.0)):
        assert Blur()(result_of(astronaut, 0.0, box)).frame.bgr.shape == astronaut.shape


def test_no_face_is_left_in_what_the_command_line_writes_and_only_its_user_may_read_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stream", "--source", "sample", "--frames", "30", "--no-window", "--blur-faces"]
    outputs = ["--out", "new/a.mp4", "--out", "f/", "--jsonl", "a.jsonl", "--draw", "none"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *outputs], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open_source(str(tmp_path / "new" / "a.mp4")) as clip, ImageDetector() as find:
        frames = list(iter(clip.read, None))
        assert len(frames) == 30 and not any(find(frame.bgr) for frame in frames[::10])
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert (tmp_path / "a.jsonl").read_text().count('"points"') >= 25, "the faces were there"
