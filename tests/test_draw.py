from __future__ import annotations

import numpy as np
import pytest

from lineament.landmarks.schema import IBUG68, WFLW98
from lineament.landmarks.types import U8, Face, Frame, Result, Track
from lineament.stream.write.draw import DrawConfig, draw
from tests.blobs import template
from tests.drawn_faces import HW, looking, seen, with_eyes


def result(scale: float = 1.0) -> Result:
    side = round(400 * scale)
    points = ((template() * 200 + 100) * scale).astype(np.float32)
    box = np.concatenate([points.min(0), points.max(0)])
    frame = Frame(np.full((side, side, 3), 90, np.uint8), "test", 0, 0.0, 0.0)
    return Result(frame, (Track(1, Face(box, 0.9), points, 0.8),))


def changed(drawn: U8, before: Result) -> U8:
    """(H, W) bool: the pixels that were drawn on."""
    return (drawn != before.frame.bgr).any(-1)  # type: ignore[no-any-return]


def test_the_frame_itself_is_left_alone() -> None:
    given = result()
    before = given.frame.bgr.copy()
    draw(given, WFLW98, DrawConfig(boxes=True, pose=True), "note")
    assert (given.frame.bgr == before).all()


def test_every_landmark_is_drawn_where_it_lies() -> None:
    given = result()
    marks = changed(draw(given, WFLW98, DrawConfig(draw="points")), given)
    for x, y in given.tracks[0].points.round().astype(int):
        assert marks[y, x]


@pytest.mark.parametrize("what", ["points", "curves", "both"])
def test_each_choice_draws_something_of_its_own(what: str) -> None:
    given = result()
    assert changed(draw(given, WFLW98, DrawConfig(draw=what)), given).sum() > 300  # type: ignore[arg-type]


def test_none_draws_nothing() -> None:
    given = result()
    assert not changed(draw(given, WFLW98, DrawConfig(draw="none")), given).any()


def test_no_face_draws_nothing_but_the_note() -> None:
    empty = Result(result().frame, ())
    assert not changed(draw(empty, WFLW98, DrawConfig(boxes=True, pose=True)), empty).any()
    assert changed(draw(empty, WFLW98, DrawConfig(), "30 fps"), empty)[:60].any()


def test_lines_grow_with_the_face() -> None:
    """Drawn at four times the size, a face's lines cover about as large a share of the picture."""
    share = []
    for scale in (1.0, 4.0):
        given = result(scale)
        share.append(changed(draw(given, WFLW98, DrawConfig(draw="curves")), given).mean())
    assert 0.4 < share[1] / share[0] < 1.5


def test_the_68_points_are_drawn_from_the_98() -> None:
    given = result()
    marks = changed(draw(given, WFLW98, DrawConfig(draw="points", schema="ibug68")), given)
    fewer = changed(draw(given, WFLW98, DrawConfig(draw="points")), given)
    assert 0 < marks.sum() < fewer.sum()
    assert len(IBUG68) == 68


def test_a_face_partly_outside_is_drawn_without_complaint() -> None:
    given = result()
    far = given.tracks[0].points - np.float32(220)
    track = Track(1, Face(np.array([-120, -120, 80, 80], np.float32), 0.9), far, 0.8)
    draw(Result(given.frame, (track,)), WFLW98, DrawConfig(boxes=True))


def test_the_outline_of_a_text_ends_where_the_text_does() -> None:
    frame = Frame(np.full((480, 640, 3), 128, np.uint8), "test", 0, 0.0, 0.0)
    drawn = draw(Result(frame, ()), WFLW98, DrawConfig(), "28 fps  120 ms  30 fps  140 ms")
    letters, outline = ((drawn > 200).all(2), (drawn < 60).all(2))
    for a, b in zip(np.nonzero(letters), np.nonzero(outline)):
        assert 0 <= a.min() - b.min() <= 3 and 0 <= b.max() - a.max() <= 3


def test_the_gaze_is_drawn_from_the_eyes_towards_where_they_look() -> None:
    points = seen(looking(25, 0))
    track = Track(1, Face(np.concatenate([points.min(0), points.max(0)]), 0.9), points, 0.8, irises=points[[96, 97]])
    given = Result(Frame(np.full((*HW, 3), 90, np.uint8), "test", 0, 0.0, 0.0), (track,))
    marks = changed(draw(given, WFLW98, DrawConfig(draw="none", gaze=True)), given)
    for outer, inner in ((60, 64), (72, 68)):
        x, y = ((points[outer] + points[inner]) / 2).round().astype(int)
        width = round(abs(float(points[outer, 0] - points[inner, 0])))
        assert marks[y, x] and marks[y - 8 : y + 8, x + width // 2 : x + width].any()
        assert not marks[y - 8 : y + 8, x - width : x - width // 4].any()


def test_closed_eyes_are_drawn_without_a_gaze() -> None:
    points = seen(with_eyes(0.2))
    track = Track(1, Face(np.concatenate([points.min(0), points.max(0)]), 0.9), points, 0.8, irises=points[[96, 97]])
    given = Result(Frame(np.full((*HW, 3), 90, np.uint8), "test", 0, 0.0, 0.0), (track,))
    assert not changed(draw(given, WFLW98, DrawConfig(draw="none", gaze=True)), given).any()
