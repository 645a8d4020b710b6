"""NME, failure rate and AUC on cases that can be done by hand, and against a peer whose score is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.schema import IBUG68
from lineament.train import data, metrics


def _faces(n: int = 2) -> np.ndarray:
    points = np.random.default_rng(0).uniform(0, 100, (n, 98, 2)).astype(np.float32)
    points[:, 60], points[:, 72] = (20, 50), (70, 50)
    return points


def test_no_error_is_no_nme() -> None:
    np.testing.assert_array_equal(metrics.nme(_faces(), _faces()), 0)


def test_nme_is_in_percent_of_the_distance_of_the_outer_eye_corners() -> None:
    truth = _faces()
    np.testing.assert_allclose(metrics.nme(truth + np.float32((3, 4)), truth), 10, rtol=1e-5)


def test_a_profile_whose_corners_coincide_may_be_measured_by_its_extent() -> None:
    truth = _faces(1)
    truth[0, 72] = truth[0, 60] + np.float32((1e-3, 0))
    size = np.ptp(truth[0], axis=0).max()
    guess = truth + np.float32((3, 4))
    assert metrics.nme(guess, truth)[0] > 1e5
    assert metrics.nme(guess, truth, least_ocular=0.25)[0] == pytest.approx(100 * 5 / (0.25 * size), rel=1e-4)
    np.testing.assert_array_equal(
        metrics.nme(_faces() + 1, _faces(), least_ocular=0.1), metrics.nme(_faces() + 1, _faces())
    )


def test_nme_does_not_depend_on_the_size_of_the_picture() -> None:
    truth = _faces()
    guess = truth + np.random.default_rng(1).normal(0, 2, truth.shape).astype(np.float32)
    np.testing.assert_allclose(metrics.nme(guess * 4, truth * 4), metrics.nme(guess, truth), rtol=1e-5)


def test_a_face_fails_above_ten_percent_not_at_ten() -> None:
    assert metrics.failure_rate(np.array([2.0, 10.0, 10.1, 50.0])) == 50


def test_auc_is_one_without_error_zero_beyond_the_limit_and_linear_between() -> None:
    assert metrics.auc(np.array([0.0])) == 1
    assert metrics.auc(np.array([10.0, 99.0])) == 0
    assert metrics.auc(np.array([0.0, 5.0, 20.0])) == pytest.approx(0.5)


def test_wrong_shapes_and_faces_without_eyes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N, 68, 2\), got \(2, 98, 2\)"):
        metrics.nme(_faces(), _faces(), IBUG68)
    closed = _faces()
    closed[1, 72] = closed[1, 60]
    with pytest.raises(ValueError, match="face 1"):
        metrics.nme(closed, closed)


def test_a_peer_has_its_known_score(shared: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    samples = data.read(shared / "data" / "wflw-mini", "test")
    session = onnxruntime.InferenceSession(
        shared / "peers" / "pfld_ghostone_112_98pt.onnx", providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    found = []
    for sample in samples:
        bgr = cv2.resize(sample.bgr(), (112, 112)).astype(np.float32) / 255
        unit = session.run(None, {name: bgr.transpose(2, 0, 1)[None]})[0]
        found.append(unit.reshape(98, 2) * 112)
    nme = metrics.nme(np.stack(found), np.stack([sample.points for sample in samples]))
    assert nme.mean() == pytest.approx(3.76, abs=0.01)
