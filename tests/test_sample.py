"""The sample clip: its motion is known, smooth and repeatable, and the face really is where it says."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from lineament.engines.portrait import portrait
from lineament.landmarks.geometry import apply
from lineament.landmarks.types import LineamentError
from lineament.stream.read.sample import FACE_PHOTO_XYXY, Sample


def test_rendering_a_frame_twice_gives_the_same_pixels() -> None:
    assert np.array_equal(Sample().render(17), Sample().render(17))


def test_noise_differs_between_frames_and_has_the_spread_it_names() -> None:
    noisy, clean = Sample(noise=3.0), Sample(noise=0.0)
    residue = [noisy.render(i).astype(float) - clean.render(i) for i in (210, 211)]
    for field in residue:
        assert abs(field.std() - 3.0) < 0.1 and abs(field.mean()) < 0.1
    assert abs(np.corrcoef(residue[0].ravel(), residue[1].ravel())[0, 1]) < 0.01


@pytest.mark.parametrize("size_hw", [(480, 640), (720, 1280), (240, 320)])
def test_a_photo_point_lies_where_the_matrix_says(size_hw: tuple[int, int]) -> None:
    sample = Sample(size_hw, noise=0.0)
    left, top, right, bottom = (round(v) for v in FACE_PHOTO_XYXY)
    for index in (0, 30, 75, 150, 270):
        matrix = sample.frame_from_photo(index)
        frame = sample.render(index)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        photo_again = cv2.warpAffine(frame, matrix, (512, 512), flags=flags)[top:bottom, left:right]
        blur = 1 / np.sqrt(np.linalg.det(matrix[:, :2]))
        photo = portrait()[top:bottom, left:right]
        soften = (0, 0), max(1.0, blur)
        shift, _ = cv2.phaseCorrelate(
            cv2.GaussianBlur(photo_again[..., 1], *soften).astype(float),
            cv2.GaussianBlur(photo[..., 1], *soften).astype(float),
        )
        assert np.hypot(*shift) < 0.15, f"frame {index} is off by {shift} photo px"


def test_the_motion_turns_scales_leaves_and_returns_smoothly() -> None:
    sample = Sample()
    matrices = np.array([sample.frame_from_photo(i) for i in range(len(sample))])
    roll_deg = np.degrees(np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    width_px = np.hypot(matrices[:, 0, 0], matrices[:, 1, 0]) * (FACE_PHOTO_XYXY[2] - FACE_PHOTO_XYXY[0])
    assert roll_deg.min() < -34 and roll_deg.max() > 34
    assert 85 < width_px.min() < 100 and 210 < width_px.max() < 230
    inside = [sample.inside(i) for i in range(len(sample))]
    assert inside[0] == inside[-1] == 1 and inside.count(0.0) > 30
    middle = np.array([apply(m, np.array([225.0, 126.0])) for m in matrices])
    assert np.abs(np.diff(middle, axis=0)).max() < 25
    assert np.abs(np.diff(roll_deg)).max() < 3


def test_the_loop_closes() -> None:
    sample = Sample(fps=25, seconds=20)
    assert len(sample) == 500
    assert np.allclose(sample.frame_from_photo(3), sample.frame_from_photo(253))


@pytest.mark.parametrize("faces", [2, 3])
def test_faces_move_independently_and_never_meet(faces: int) -> None:
    sample = Sample((720, 1280), faces=faces)
    corners_photo = np.array([[172.0, 62.0], [278.0, 62.0], [278.0, 190.0], [172.0, 190.0]])
    for index in range(0, len(sample), 5):
        x = [apply(sample.frame_from_photo(index, face), corners_photo)[:, 0] for face in range(faces)]
        assert all(a.max() < b.min() for a, b in zip(x, x[1:]))
    at = [sample.frame_from_photo(40, face)[:, :2] for face in range(faces)]
    assert all(not np.allclose(at[0], other) for other in at[1:])


def test_every_frame_has_the_asked_size_even_a_small_or_odd_one() -> None:
    for size_hw in ((32, 32), (241, 333), (640, 360)):
        sample = Sample(size_hw, seconds=0.5)
        assert {sample.render(i).shape for i in range(len(sample))} == {(*size_hw, 3)}


def test_importing_and_rendering_leaves_scikit_image_alone() -> None:
    code = (
        "import sys; from lineament.stream.read.sample import Sample; "
        "Sample().render(0); sys.exit('skimage' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_nonsense_is_refused_with_what_it_wants() -> None:
    for nonsense in ({"faces": 4}, {"size_hw": (8, 8)}, {"fps": 0.0}, {"seconds": -1.0}):
        with pytest.raises(LineamentError, match="wants at least 32x32"):
            Sample(**nonsense)  # type: ignore[arg-type]
