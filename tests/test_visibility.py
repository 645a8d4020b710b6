"""Which points are seen: the targets that drawn objects give, the output that learns it, and what is done with it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.pose import aspect_ratios
from lineament.landmarks.schema import IBUG68, WFLW98
from lineament.landmarks.types import U8, Face, Frame, Landmarks, Result, Track
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from lineament.stream.write.draw import DrawConfig, draw
from lineament.stream.write.json_line import JsonLine
from tests.blobs import BlobDetector, BlobLandmarker, scene

EYES = [*WFLW98.parts["left_eye"], *WFLW98.parts["right_eye"]]
MOUTH = [*WFLW98.parts["outer_lips"], *WFLW98.parts["inner_lips"]]


def shape() -> np.ndarray:
    """(98, 2) of the mean face, 0..1."""
    points = mean_shape()[:, :2]
    return (points - points.min(0)) / np.ptp(points, axis=0).max()


def track(visibility: np.ndarray | None) -> Track:
    points = (shape() * 200 + 100).astype(np.float32)
    box = np.concatenate([points.min(0), points.max(0)])
    return Track(1, Face(box, 0.9), points, 0.8, visibility)


def hidden(*indices: int) -> np.ndarray:
    visibility = np.ones(98, np.float32)
    visibility[list(indices)] = 0.1
    return visibility


class Sunglasses(BlobLandmarker):
    """Sees every point but those of the eyes."""

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        points, confidence, _ = super().__call__(rgb_NHWC)
        return Landmarks(points, confidence, np.tile(hidden(*EYES), (len(rgb_NHWC), 1)))


class Wide(Sunglasses):
    """Its points reach beyond the blob."""

    def __call__(self, rgb_NHWC: U8) -> Landmarks:
        found = super().__call__(rgb_NHWC)
        return found._replace(points_unit=(0.5 + 1.8 * (found.points_unit - 0.5)).astype(np.float32))


def test_the_openness_of_what_is_hidden_is_unknown() -> None:
    points = track(None).points
    everything, no_eyes = aspect_ratios(points), aspect_ratios(points, visibility=hidden(*EYES))
    assert np.isnan(no_eyes.left_eye) and np.isnan(no_eyes.right_eye) and no_eyes.mouth == everything.mouth
    masked = aspect_ratios(points, visibility=hidden(*MOUTH))
    assert np.isnan(masked.mouth) and masked.left_eye == everything.left_eye


def test_json_says_how_surely_each_point_is_seen() -> None:
    frame = Frame(np.zeros((400, 400, 3), np.uint8), "test", 0, 0.0, 0.0)
    for schema in (WFLW98, IBUG68):
        (face,) = json.loads(JsonLine(schema.name)(Result(frame, (track(hidden(*EYES)),))))["faces"]
        assert len(face["visibility"]) == len(schema)
        assert all(face["visibility"][i] == 0.1 for i in schema.parts["left_eye"])
        assert all(face["visibility"][i] == 1 for i in schema.parts["contour"])
        assert face["eye_aspect"] == [None, None] and face["mouth_aspect"] is not None
    (face,) = json.loads(JsonLine()(Result(frame, (track(None),))))["faces"]
    assert face["visibility"] is None and None not in face["eye_aspect"]


@pytest.mark.parametrize("what", ["points", "curves", "both"])
def test_hidden_points_are_drawn_fainter(what: str) -> None:
    frame = Frame(np.full((400, 400, 3), 90, np.uint8), "test", 0, 0.0, 0.0)
    bright, faint = (
        draw(Result(frame, (track(seen),)), WFLW98, DrawConfig(draw=what)).astype(int)  # type: ignore[arg-type]
        for seen in (None, hidden(*EYES))
    )
    for i in EYES:
        x, y = track(None).points[i].round().astype(int)
        assert 0 < np.abs(faint[y, x] - 90).max() < 0.6 * np.abs(bright[y, x] - 90).max()
    chin_x, chin_y = track(None).points[16].round().astype(int)
    np.testing.assert_array_equal(faint[chin_y, chin_x], bright[chin_y, chin_x])


@pytest.mark.parametrize("what", ["points", "curves", "both"])
def test_a_face_of_which_nothing_is_seen_is_drawn_too(what: str) -> None:
    frame = Frame(np.full((400, 400, 3), 90, np.uint8), "test", 0, 0.0, 0.0)
    faint = draw(Result(frame, (track(hidden(*range(98))),)), WFLW98, DrawConfig(draw=what))  # type: ignore[arg-type]
    assert (faint != 90).any()


def test_the_tracker_passes_on_what_the_model_sees_and_hides_what_lies_outside_the_frame() -> None:
    tracker = Tracker(BlobDetector(), Sunglasses(), TrackConfig())
    for index in range(3):
        (seen,) = tracker(scene([(100, 80)], index)).tracks
        assert seen.visibility is not None
        np.testing.assert_allclose(seen.visibility, hidden(*EYES), atol=1e-6)
    cut_off = Tracker(BlobDetector(), Wide(), TrackConfig())
    (seen,) = cut_off(scene([(8, 80)])).tracks
    outside = seen.points[:, 0] < -0.5
    assert outside.any() and seen.visibility is not None and (seen.visibility[outside] == 0).all()
    assert (seen.visibility[~outside] > 0).all()


def test_a_model_that_does_not_say_leaves_it_open() -> None:
    (seen,) = Tracker(BlobDetector(), BlobLandmarker(), TrackConfig())(scene([(100, 80)])).tracks
    assert seen.visibility is None


def test_a_still_picture_takes_both_looks_at_it() -> None:
    """The mirrored crop's left eye is the picture's right one."""

    class LeftEyeHidden(BlobLandmarker):
        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            points, confidence, _ = super().__call__(rgb_NHWC)
            half = len(rgb_NHWC) // 2
            parts = ["left_eye"] * half + ["right_eye"] * half
            return Landmarks(points, confidence, np.stack([hidden(*WFLW98.parts[part]) for part in parts]))

    (seen,) = Tracker(BlobDetector(), LeftEyeHidden(), still=True)(scene([(100, 80)])).tracks
    assert seen.visibility is not None
    np.testing.assert_allclose(seen.visibility, hidden(*WFLW98.parts["left_eye"]), atol=1e-6)


# ---- what is drawn, and what a net learns from it


def hide_many(rgb: U8, points: np.ndarray, n: int) -> list[tuple[U8, np.ndarray]]:
    hide = pytest.importorskip("lineament.train.hide").hide
    other = np.random.default_rng(1).integers(0, 256, rgb.shape).astype(np.uint8)
    return [hide(rgb, points, other, random.Random(seed)) for seed in range(n)]


@pytest.fixture(scope="module")
def portrait() -> tuple[U8, np.ndarray]:
    """(128, 128, 3) of coarse noise as bright as skin, and a face in the middle of it."""
    import cv2

    rough = np.random.default_rng(0).integers(120, 220, (16, 16, 3)).astype(np.uint8)
    points = (shape() * 80 + 24).astype(np.float32)
    return np.asarray(cv2.resize(rough, (128, 128), interpolation=cv2.INTER_CUBIC), np.uint8), points


def test_a_point_is_seen_where_the_picture_is_unchanged_and_hidden_where_it_is_gone(
    portrait: tuple[U8, np.ndarray],
) -> None:
    rgb, points = portrait
    x, y = points.round().astype(int).T
    shown = covered = 0
    for drawn, visible in hide_many(rgb, points, 60):
        assert visible.shape == (98,) and (visible >= 0).all() and (visible <= 1).all()
        changed = np.abs(drawn.astype(int) - rgb)[y, x].max(1)
        assert (changed[visible > 0.99] < 25).all()
        shown, covered = shown + (visible > 0.99).sum(), covered + (visible < 0.1).sum()
    assert shown > 60 * 98 / 2 and covered > 60 * 98 / 20


def test_the_same_seed_hides_the_same(portrait: tuple[U8, np.ndarray]) -> None:
    for (one, seen), (other, seen_too) in zip(hide_many(*portrait, 12), hide_many(*portrait, 12)):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(seen, seen_too)


def test_a_point_outside_the_picture_is_not_seen(portrait: tuple[U8, np.ndarray]) -> None:
    rgb, points = portrait
    for _, visible in hide_many(rgb, points - (60, 0), 12):
        assert (visible[points[:, 0] - 60 < -1] == 0).all()


@pytest.mark.parametrize("kind", ["mask", "hand", "microphone"])
def test_an_object_hides_whatever_its_colour(kind: str, portrait: tuple[U8, np.ndarray]) -> None:
    """A hand has the colour of the face that it covers."""
    hide, worn = pytest.importorskip("lineament.train.hide"), pytest.importorskip("lineament.train.worn")
    points, hw = portrait[1], (128, 128)
    opaque = [
        (hide.clarity(lambda picture, seed=seed: worn.draw(picture, points, kind, random.Random(seed)), hw) < 0.1).sum()
        for seed in range(8)
    ]
    assert np.median(opaque) > 100


@pytest.mark.parametrize("presence", [True, False])
def test_a_net_learns_what_is_hidden_and_its_points_stay_the_same(tmp_path: Path, presence: bool) -> None:
    torch = pytest.importorskip("torch")
    from lineament import engines
    from lineament.engines.export import export
    from lineament.train import model, visibility
    from tests.labelled import mean_face, write_wflw

    data = write_wflw(tmp_path / "data", "train", [(f"{i}.png", mean_face(radius=20 + i)) for i in range(12)])
    torch.manual_seed(0)
    net = model.LandmarkNet(model.NetSpec("test_efficientnet", input_hw=(64, 64), presence=presence)).eval()
    card = model.save(net, model.new_card(net, "tiny", 1.3), tmp_path / "tiny.safetensors")
    cfg = visibility.VisibilityConfig(
        tmp_path / "tiny.safetensors", (data,), tmp_path / "seen.safetensors", epochs=2, batch=4, workers=0
    )
    taught = visibility.teach(cfg)
    assert replace(taught, weights_sha256="", precision="") == replace(card, weights_sha256="", precision="")
    again, _ = model.load(tmp_path / "seen.safetensors")
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8))
    with torch.inference_mode():
        before, after = net.points(rgb), again.points(rgb)
    torch.testing.assert_close(after.points_unit, before.points_unit, rtol=0, atol=0)
    assert after.visibility.shape == (3, 98) and after.presence.shape == (3,)
    likely = before.presence if presence else torch.ones(3)
    assert (after.presence <= likely).all(), "a crop that does not fit makes a face less likely, never more"
    export(again, taught, tmp_path / "seen.onnx")
    with engines.load(str(tmp_path / "seen.onnx"), "openvino") as landmarker:
        found = landmarker(rgb.numpy())
    assert found.visibility is not None
    np.testing.assert_allclose(found.visibility, after.visibility.numpy(), atol=1e-3)
    np.testing.assert_allclose(found.confidence, after.presence.numpy(), atol=1e-3)


def test_labels_may_say_which_points_are_visible(tmp_path: Path) -> None:
    pytest.importorskip("albumentations")
    from lineament.landmarks.types import LineamentError
    from lineament.train.data import read
    from tests.labelled import mean_face, write_wflw

    write_wflw(tmp_path, "train", [("a.png", mean_face())])
    row = {"image": "WFLW_images/a.png", "points": mean_face().tolist(), "visible": [1, 0, None] + [1] * 95}
    (tmp_path / "labels.jsonl").write_text(json.dumps(row) + "\n")
    (labelled,) = read(tmp_path / "labels.jsonl", "train", WFLW98)
    assert labelled.visible is not None
    np.testing.assert_array_equal(labelled.visible[:4], np.array([1, 0, np.nan, 1], np.float32))
    (tmp_path / "labels.jsonl").write_text(json.dumps({**row, "visible": [1] * 97 + [2]}) + "\n")
    with pytest.raises(LineamentError, match="expected 98 of 1, 0 and null"):
        read(tmp_path / "labels.jsonl", "train", WFLW98)
