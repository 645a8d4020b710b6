"""Irises are found where they are painted, whatever the model says of the pupils, and not where there are none."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from lineament import find
from lineament.landmarks.gaze import gaze
from lineament.landmarks.iris import find_irises, place_irises
from lineament.landmarks.pose import fit
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8
from tests.drawn_faces import HW, looking, seen

SKIN, WHITE, IRIS = (150, 170, 200), (215, 220, 225), (40, 50, 60)


def painted(points: F32, irises: F32 | None, white: tuple[int, int, int] = WHITE) -> U8:
    """A picture of eyes with irises at (2, 2) frame px, or none."""
    picture = np.full((*HW, 3), SKIN, np.uint8)
    for i, eye in enumerate(("left_eye", "right_eye")):
        ring = WFLW98.part(eye, points)
        opening = np.zeros(HW, np.uint8)
        cv2.fillPoly(opening, [np.round(ring).astype(np.int32)], 1)
        eyeball = np.full_like(picture, white)
        if irises is not None:
            x, y = irises[i].round().astype(int).tolist()
            cv2.circle(eyeball, (x, y), round(0.2 * float(np.linalg.norm(ring[4] - ring[0]))), IRIS, cv2.FILLED)
        picture[opening > 0] = eyeball[opening > 0]
    return cv2.GaussianBlur(picture, (0, 0), 1).astype(np.uint8)


def large(yaw_deg: float, roll_deg: float = 0) -> tuple[F32, F32]:
    """(98, 2) px of a face whose pupils lie in the middle of the eyes, and (2, 2) px of irises turned by yaw."""
    points, turned = (seen(shape, roll_deg=roll_deg, away=12.0) for shape in (None, looking(yaw_deg, 0)))
    return points, turned[[96, 97]]


@pytest.mark.parametrize("yaw", [-25, -10, 0, 10, 25])
@pytest.mark.parametrize("roll", [0, 35])
def test_an_iris_is_found_within_a_twentieth_of_the_eyes_width(yaw: float, roll: float) -> None:
    points, irises = large(yaw, roll)
    found = place_irises(points, find_irises(painted(points, irises), points))
    assert np.linalg.norm(found - irises, axis=1).max() < 0.05 * np.linalg.norm(points[64] - points[60])
    look, expected = (gaze(points, fit(points, HW), one) for one in (found, irises))
    np.testing.assert_allclose(look, expected, atol=6)


def test_eyes_without_an_iris_and_sunglasses_have_none() -> None:
    points, irises = large(0)
    assert np.isnan(find_irises(painted(points, None), points)).all()
    assert np.isnan(find_irises(painted(points, irises, white=IRIS), points)).all()


def test_small_eyes_have_none() -> None:
    points, irises = (np.asarray((one - (640, 360)) * 0.2 + (640, 360), np.float32) for one in large(0))
    assert np.isnan(find_irises(painted(points, irises), points)).all()


def test_a_real_face_and_its_mirror_image_look_in_mirrored_directions(astronaut: U8) -> None:
    (face,), (twin,) = find(astronaut), find(np.ascontiguousarray(astronaut[:, ::-1]))
    assert face.irises is not None and np.isfinite(face.irises).all()
    assert twin.gaze.yaw_deg == pytest.approx(-face.gaze.yaw_deg, abs=4)
