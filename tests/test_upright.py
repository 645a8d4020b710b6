"""Which way up a face is: its points follow it at every angle, and one face has one track."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import U8, Face, Frame, Landmarker, Landmarks
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from tests.blobs import BlobDetector, BlobLandmarker, scene

FPS = 25


class UpsideDown(BlobDetector):
    """Takes every chin for a forehead."""

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        return tuple(replace(face, roll_rad=math.pi) for face in super().__call__(bgr))


class KnowsUp(BlobLandmarker):
    """Sees a face only the right way up: the upper half of a square is green."""

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        points, confidence, _ = super().__call__(rgb_NHWC)
        upper, lower = np.split(rgb_NHWC[..., 1].astype(float), 2, axis=1)
        upright = upper.mean((1, 2)) > lower.mean((1, 2))
        return Landmarks(points, np.where(upright, confidence, np.float32(0.02)))


def green_above(frame: Frame) -> Frame:
    bgr = frame.bgr.copy()
    ys, _ = np.nonzero(bgr[..., 0])
    bgr[round((ys.min() + ys.max()) / 2) :, :, 1] = 0
    return replace(frame, bgr=bgr)


@pytest.mark.parametrize("still", [False, True])
def test_a_face_that_the_detector_takes_for_upside_down_is_looked_at_the_other_way_up(still: bool) -> None:
    tracker = Tracker(UpsideDown(), KnowsUp(), TrackConfig(), still=still)
    (track,) = tracker(green_above(scene([(100, 80)]))).tracks
    assert abs(WFLW98.roll_rad(track.points)) < 0.2


@pytest.fixture(scope="module")
def student() -> Iterator[Landmarker]:
    with engines.load("student", "openvino") as landmarker:
        yield landmarker


@pytest.fixture(scope="module")
def portrait_256() -> U8:
    """(256, 256, 3) the portrait's head with room to turn in."""
    from lineament.engines.portrait import portrait

    return np.ascontiguousarray(portrait()[0:256, 96:352])


def rolled(bgr: U8, degrees: float) -> U8:
    """bgr turned clockwise about the middle of its face."""
    matrix = cv2.getRotationMatrix2D((129, 120), -degrees, 1.0)
    return np.asarray(cv2.warpAffine(bgr, matrix, (256, 256), borderMode=cv2.BORDER_REFLECT), np.uint8)


def off_by(landmarker: Landmarker, bgr: U8, rolls_deg: Sequence[float]) -> list[float]:
    """By how many degrees the points lean the wrong way in each frame; 180 without exactly one face."""
    found = []
    with Analyser(landmarker) as analyse:
        for index, degrees in enumerate(rolls_deg):
            tracks = analyse(Frame(rolled(bgr, degrees), "roll", index, index / FPS, index / FPS)).tracks
            if len(tracks) != 1:
                found.append(180.0)
                continue
            lean = math.degrees(WFLW98.roll_rad(tracks[0].points)) - degrees
            found.append(abs((lean + 180) % 360 - 180))
    return found


@pytest.mark.parametrize("degrees", range(0, 360, 30))
def test_a_face_at_any_angle_from_the_start_has_its_points_the_right_way_up(
    degrees: int, student: Landmarker, portrait_256: U8
) -> None:
    assert max(off_by(student, portrait_256, [degrees] * 12)[4:]) < 25


@pytest.mark.parametrize("step", [-9, 5])
def test_a_face_that_rolls_over_is_followed_all_the_way_round(step: int, student: Landmarker, portrait_256: U8) -> None:
    rolls = [step * i for i in range(abs(360 // step) + 1)] + [0] * FPS
    wrong = [away > 60 for away in off_by(student, portrait_256, rolls)]
    assert sum(wrong) < len(rolls) / 10 and not any(wrong[-FPS:])


@pytest.mark.parametrize(("before", "after"), [(0, 180), (180, 0), (90, 270), (20, 170)])
def test_a_face_that_turns_over_between_two_frames_is_right_again_within_a_second(
    before: int, after: int, student: Landmarker, portrait_256: U8
) -> None:
    rolls = [before] * 15 + [after] * (2 * FPS)
    assert max(off_by(student, portrait_256, rolls)[-FPS:]) < 25
