"""Coefficients follow what a known face does, on the person's own sides, whichever way the head is turned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lineament.landmarks.expression import expression
from lineament.landmarks.measures import LEAST, MEASURES, MOST, TYPICAL, measures
from lineament.landmarks.pose import fit
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64
from lineament.stream.analyse.neutral import Neutral
from tests.drawn_faces import HW, looking, mirrored, moved, seen, with_eyes, with_mouth

RELAXED = with_mouth(0.02)
"""the mean face has its lips apart"""
LIPS, INNER_LIPS = WFLW98.parts["outer_lips"], WFLW98.parts["inner_lips"]
CORNERS = LIPS[0], INNER_LIPS[0], LIPS[6], INNER_LIPS[4]
MEAN = measures(seen(RELAXED), fit(seen(RELAXED), HW))
"""of the mean face with closed lips, which is nearly the typical one"""


def of(points: F32, neutral: F64 | None = MEAN) -> dict[str, float]:
    return expression(points, fit(points, HW), points[[96, 97]], neutral)


def pulled(right: tuple[float, float], left: tuple[float, float]) -> F64:
    """(98, 3): the corners of the mouth, of the image's right and left, moved right and down."""
    shape = RELAXED.copy()
    shape[list(CORNERS[2:]), :2] += right
    shape[list(CORNERS[:2]), :2] += left
    return shape


def test_a_relaxed_face_is_at_rest() -> None:
    values = of(seen(RELAXED))
    assert max(values.values()) < 0.05
    assert max(of(seen(RELAXED), None).values()) < 0.2


@pytest.mark.parametrize("yaw", [-30, 0, 30])
@pytest.mark.parametrize("pitch", [-15, 0, 15])
def test_a_relaxed_face_stays_at_rest_while_the_head_turns(yaw: float, pitch: float) -> None:
    values = of(seen(RELAXED, yaw, pitch))
    assert max(value for name, value in values.items()) < 0.15


@pytest.mark.parametrize("head", [(0, 0, 0), (30, 0, 0), (-30, 0, 0), (0, 30, 0), (0, -30, 0), (20, 10, 60)])
def test_jaw_and_lids_are_the_same_from_every_side(head: tuple[float, float, float]) -> None:
    for gap in (0.02, 0.15, 0.4):
        turned, frontal = of(seen(with_mouth(gap), *head)), of(seen(with_mouth(gap)))
        assert turned["jawOpen"] == pytest.approx(frontal["jawOpen"], abs=0.06)
    for share in (0.3, 0.7):
        turned, frontal = of(seen(with_eyes(share), *head)), of(seen(with_eyes(share)))
        for name in ("eyeBlinkLeft", "eyeBlinkRight"):
            assert turned[name] == pytest.approx(frontal[name], abs=0.06)


def test_left_is_the_persons_left_which_is_on_the_right_of_the_image() -> None:
    values = of(seen(with_eyes(0.2, ("right_eye",))))
    assert values["eyeBlinkLeft"] == 1 and values["eyeBlinkRight"] < 0.05
    values = of(seen(pulled(right=(0.1, -0.12), left=(0, 0))))
    assert values["mouthSmileLeft"] > 0.6 > 0.2 > values["mouthSmileRight"]
    assert of(seen(pulled((0.12, 0), (0.12, 0))))["mouthLeft"] > 0.5
    values = of(seen(looking(20, 0)))  # to the right of the image
    assert values["eyeLookOutLeft"] > 0.4 < values["eyeLookInRight"] and values["eyeLookInLeft"] == 0


@pytest.mark.parametrize(
    "shape",
    [
        with_eyes(0.2, ("right_eye",)),
        pulled((0.1, -0.12), (0, 0)),
        pulled((0.12, 0), (0.12, 0)),
        pulled((0, 0.1), (0, 0)),
        looking(20, 0),
        moved((0, -0.1), *WFLW98.parts["left_brow"]),
        moved((0, 0.1), *WFLW98.parts["right_brow"]),
    ],
)
def test_the_mirror_image_swaps_left_and_right(shape: F64) -> None:
    points = seen(shape, 10, 5, 3)
    swap = str.maketrans({"<": ">", ">": "<"})
    values, twin = of(points, TYPICAL), of(mirrored(points), TYPICAL)
    assert max(values.values()) > 0.3
    for name, value in values.items():
        marked = name.replace("Left", "<").replace("Right", ">").translate(swap)
        assert twin[marked.replace("<", "Left").replace(">", "Right")] == pytest.approx(value, abs=0.02), name


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (with_eyes(0.3), {"eyeBlinkLeft", "eyeBlinkRight"}),
        (with_eyes(1.6), {"eyeWideLeft", "eyeWideRight"}),
        (with_mouth(0.45), {"jawOpen"}),
        (pulled((0.1, -0.12), (-0.1, -0.12)), {"mouthSmileLeft", "mouthSmileRight"}),
        (pulled((0, 0.12), (0, 0.12)), {"mouthFrownLeft", "mouthFrownRight"}),
        (pulled((0.17, 0), (-0.17, 0)), {"mouthStretchLeft", "mouthStretchRight"}),
        (pulled((-0.15, 0), (0.15, 0)), {"mouthPucker"}),
        (moved((0, -0.15), *range(33, 51)), {"browInnerUp", "browOuterUpLeft", "browOuterUpRight"}),
        (moved((0, 0.12), *range(33, 51)), {"browDownLeft", "browDownRight"}),
        (looking(0, 25), {"eyeLookUpLeft", "eyeLookUpRight"}),
        (looking(0, -25), {"eyeLookDownLeft", "eyeLookDownRight"}),
    ],
)
def test_what_a_face_does_has_its_own_names(shape: F64, names: set[str]) -> None:
    values = of(seen(shape))
    assert {name for name, value in values.items() if value > 0.5} == names


def test_an_open_mouth_is_a_funnel_when_it_is_narrow() -> None:
    shape = with_mouth(0.3)
    shape[list(CORNERS[2:]), 0] -= 0.1
    shape[list(CORNERS[:2]), 0] += 0.1
    values = of(seen(shape))
    assert values["mouthFunnel"] > 0.5 and values["mouthPucker"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_every_coefficient_lies_between_0_and_1_or_is_unknown(seed: int) -> None:
    random = np.random.default_rng(seed)
    for spread in (1, 10, 1000):
        points = np.asarray(seen() + random.normal(0, spread, (98, 2)), np.float32)
        assert all(np.isnan(value) or 0 <= value <= 1 for value in of(points).values())


@pytest.mark.parametrize("points", [np.full((98, 2), np.nan), np.full((98, 2), 7.0), np.full((98, 2), 1e30)])
def test_points_that_are_no_face_have_no_expression(points: F32) -> None:
    values = of(points.astype(np.float32))
    assert np.isnan([*values.values()]).all() and values.keys() == of(seen()).keys()


# ---- the relaxed face of one person


def watched(face: Callable[[int], F32], seconds: float, fps: float = 30.0) -> Neutral:
    neutral = Neutral()
    for index in range(round(seconds * fps)):
        neutral.see(face(index), HW, index / fps)
    return neutral


def blinking(share: float) -> Callable[[int], F32]:
    """A face with eyes of that share of the mean height that closes them for 0.2 s of every two."""
    opened, closed = seen(with_eyes(share)), seen(with_eyes(share * 0.3))
    return lambda index: closed if index % 60 >= 54 else opened


@pytest.mark.parametrize("share", [0.6, 0.8, 1.2])
def test_narrow_and_wide_eyes_are_open_once_they_are_known_and_blink_as_others_do(share: float) -> None:
    neutral = watched(blinking(share), 10).measures
    opened, closed = of(seen(with_eyes(share)), neutral), of(seen(with_eyes(share * 0.3)), neutral)
    assert max(opened[name] for name in ("eyeBlinkLeft", "eyeBlinkRight", "eyeWideLeft")) < 0.1
    assert min(closed["eyeBlinkLeft"], closed["eyeBlinkRight"]) > 0.9


def test_a_stranger_with_narrow_eyes_seems_to_blink_for_less_than_three_seconds() -> None:
    points = seen(with_eyes(0.65))
    assert of(points, None)["eyeBlinkLeft"] > 0.3
    assert of(points, watched(lambda _: points, 3).measures)["eyeBlinkLeft"] < 0.1


def test_a_mouth_that_speaks_half_of_the_time_is_closed_in_between() -> None:
    spoken = [seen(with_mouth(gap)) for gap in (0.02, 0.02, 0.2, 0.3)]
    neutral = watched(lambda index: spoken[index // 4 % 4], 10).measures
    assert of(spoken[0], neutral)["jawOpen"] < 0.05 and of(spoken[3], neutral)["jawOpen"] > 0.5


def test_eyes_that_stay_closed_are_never_taken_for_open() -> None:
    neutral = watched(lambda _: seen(with_eyes(0.2)), 200, 5).measures
    assert of(seen(with_eyes(0.2)), neutral)["eyeBlinkLeft"] == 1


def test_a_turned_head_teaches_nothing() -> None:
    assert watched(lambda _: seen(with_eyes(0.6), yaw_deg=40), 5).measures is None
    assert watched(lambda _: np.full((98, 2), np.nan, np.float32), 5).measures is None


def test_what_was_learnt_stays_within_what_people_have() -> None:
    random = np.random.default_rng(0)
    wild = [np.asarray(seen() + random.normal(0, 30, (98, 2)), np.float32) for _ in range(50)]
    neutral = watched(lambda index: wild[index % 50], 30).measures
    assert neutral is None or ((neutral >= LEAST) & (neutral <= MOST)).all()
    assert len(TYPICAL) == len(MEASURES) == len(MEAN)
