"""Scores on faces that can be worked out by hand, through every crop, and against a peer whose score is known."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lineament.landmarks.card import ModelCard
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, LineamentError
from lineament.train import evaluate as evaluation
from lineament.train import model
from lineament.train.crops import CropConfig
from lineament.train.data import read
from lineament.train.evaluate import EvaluateConfig, Predict, Scores, ced, evaluate
from lineament.train.model import LandmarkNet, NetSpec
from lineament.train.sample import Sample
from lineament.train.sheet import TILE_PX
from tests.labelled import mean_face, write_wflw

INPUT_HW = (64, 64)


def face() -> F32:
    """Bounds 20..80 by 30..70, so the middle is (50, 50); outer eye corners 40 px apart and level."""
    points = np.full((98, 2), 50, np.float32)
    points[0], points[32], points[33], points[16] = (20, 50), (80, 50), (50, 30), (50, 70)
    points[list(WFLW98.parts["left_eye"])] = (30, 45)
    points[list(WFLW98.parts["right_eye"])] = (70, 45)
    return points


def sample_of(points: F32, folder: Path, name: str = "face.png", rect: tuple[int, ...] = (0, 10, 90, 80)) -> Sample:
    assert cv2.imwrite(str(folder / name), np.zeros((80, 100, 3), np.uint8))
    return Sample(name, points, np.array(rect, np.float32), frozenset(), folder / name)


def always(points_unit: F32) -> Predict:
    """A model that says the same of every crop."""
    return lambda rgb_NHWC: np.repeat(points_unit[None], len(rgb_NHWC), 0).astype(np.float32)


def unit_of(points: F32, middle: tuple[float, float] | F32, side: float) -> F32:
    """Where points lie in a square crop, by the definition of unit coordinates."""
    return np.asarray((points - middle) / side + 0.5, np.float32)


def scores_of(percents: list[float], attributes: list[set[str]] | None = None) -> Scores:
    """A face for each of percents, all its points that far off."""
    truth = np.stack([face()] * len(percents))
    predicted = truth + np.array([(0, 0.4 * percent) for percent in percents], np.float32)[:, None]
    held = [frozenset(a) for a in attributes or [set()] * len(percents)]
    return Scores("points crop", WFLW98, predicted.astype(np.float32), truth, tuple(held))


def test_a_known_offset_in_the_crop_is_the_nme_that_it_comes_to_in_the_picture(tmp_path: Path) -> None:
    # the crop is 1.3 times 60 px wide, a twentieth of it is 3.9 px, and that of 40 px is 9.75 percent
    off = unit_of(face(), (50, 50), 78) + np.float32((0.05, 0))
    scores = evaluate([sample_of(face(), tmp_path)], always(off), INPUT_HW, CropConfig(level=False))
    np.testing.assert_allclose(scores.predicted[0], face() + np.float32((3.9, 0)), atol=1e-3)
    np.testing.assert_allclose(scores.nme, 9.75, rtol=1e-4)
    assert scores.crop == "points crop" and scores.total.failures == 0
    assert scores.total.auc == pytest.approx(0.025, abs=1e-4)


def test_the_rect_crop_is_cut_round_the_rect(tmp_path: Path) -> None:
    # the rect's middle is (45, 45), its longer side 90 px
    scores = evaluate(
        [sample_of(face(), tmp_path)], always(unit_of(face(), (45, 45), 1.3 * 90)), INPUT_HW, CropConfig(source="rect")
    )
    np.testing.assert_allclose(scores.predicted[0], face(), atol=1e-3)
    assert scores.crop == "rect crop"


def test_a_leaning_face_is_levelled_only_if_the_crop_says_so_and_the_name_tells(tmp_path: Path) -> None:
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]], np.float32)
    leaning = (face() - 50) @ turn + np.float32(50)
    sample = sample_of(leaning, tmp_path)
    level = evaluate([sample], always(unit_of(face(), (50, 50), 78)), INPUT_HW, CropConfig())
    np.testing.assert_allclose(level.predicted[0], leaning, atol=1e-3)
    assert level.crop == "levelled points crop"
    low, high = leaning.min(0), leaning.max(0)
    unit = unit_of(leaning, (low + high) / 2, 1.3 * float(max(high - low)))
    as_it_is = evaluate([sample], always(unit), INPUT_HW, CropConfig(level=False))
    np.testing.assert_allclose(as_it_is.predicted[0], leaning, atol=1e-3)
    assert as_it_is.crop == "points crop"


def test_the_whole_picture_may_be_the_crop(tmp_path: Path) -> None:
    unit = np.asarray((face() + 0.5) / (100, 80), np.float32)
    scores = evaluate([sample_of(face(), tmp_path)], always(unit), INPUT_HW, CropConfig(), whole=True)
    np.testing.assert_allclose(scores.predicted[0], face(), atol=1e-4)
    assert scores.crop == "whole picture"


def test_the_labels_shift_is_taken_off_and_named(tmp_path: Path) -> None:
    unit = np.asarray((face() + 0.5) / (100, 80), np.float32)
    scores = evaluate(
        [sample_of(face() + 0.5, tmp_path)], always(unit), INPUT_HW, CropConfig(), whole=True, label_shift_px=0.5
    )
    np.testing.assert_allclose(scores.nme, 0, atol=1e-3)
    assert scores.crop == "whole picture, labels less 0.5 px"


def test_a_bias_to_one_side_cancels_over_crop_and_mirrored_crop(tmp_path: Path) -> None:
    sample = sample_of(face(), tmp_path)
    plain, biased = unit_of(face(), (50, 50), 78), np.float32((0.05, 0))
    mirrored = np.asarray(WFLW98.flipped(plain, 2.0), np.float32)
    picture = cv2.imread(str(sample.image_path))
    picture[:, :50] = 255
    assert cv2.imwrite(str(sample.image_path), picture)

    def predict(rgb_NHWC: U8) -> F32:
        """Knows a mirrored crop by its white half."""
        as_it_is = rgb_NHWC[:, :, :16].mean((1, 2, 3)) > rgb_NHWC[:, :, -16:].mean((1, 2, 3))
        return np.stack([(plain if one else mirrored) + biased for one in as_it_is]).astype(np.float32)

    np.testing.assert_allclose(evaluate([sample], predict, INPUT_HW, CropConfig()).nme, 9.75, rtol=1e-4)
    both = evaluate([sample], predict, INPUT_HW, CropConfig(level=False), flip=True)
    np.testing.assert_allclose(both.nme, 0, atol=1e-3)
    assert both.crop == "points crop, flip"


def test_faces_keep_their_order_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 2)
    samples = [sample_of(face() + np.float32((i, 0)), tmp_path) for i in range(5)]
    scores = evaluate(samples, always(unit_of(face(), (50, 50), 78)), INPUT_HW, CropConfig())
    np.testing.assert_allclose(scores.predicted, np.stack([s.points for s in samples]), atol=1e-3)


def test_totals_and_subsets_by_hand() -> None:
    scores = scores_of([2, 4, 12, 6], [{"pose"}, set(), {"pose", "blur"}, set()])
    assert scores.total == pytest.approx((4, 6, 25, 0.45))
    subsets = scores.by_subset()
    assert list(subsets) == ["pose", "blur"]
    assert subsets["pose"] == pytest.approx((2, 7, 50, 0.4))
    assert subsets["blur"] == pytest.approx((1, 12, 100, 0))


def test_a_parts_nme_is_that_of_its_points() -> None:
    predicted = np.stack([face(), face()])
    predicted[1, list(WFLW98.parts["left_eye"])] += np.float32((3, 4))
    scores = Scores("points crop", WFLW98, predicted, np.stack([face()] * 2), (frozenset(), frozenset()))
    parts = scores.by_part()
    # 5 px of 40 are 12.5 percent, in one face of two
    assert parts.pop("left_eye") == pytest.approx(6.25)
    assert set(parts.values()) == {0.0} and len(parts) == 10
    assert scores.total.nme == pytest.approx(12.5 * 8 / 98 / 2)


def test_the_curve_of_errors_counts_faces_at_or_below() -> None:
    np.testing.assert_array_equal(
        ced(np.array([2.0, 4, 12, 6]), np.array([0.0, 2, 5, 10, 12])), [0, 0.25, 0.5, 0.75, 1]
    )


def test_the_area_below_the_curve_is_the_auc() -> None:
    nme, at = scores_of([2, 4, 12, 6]).nme, np.linspace(0, 10, 100_001)
    assert ced(nme, at).mean() == pytest.approx(scores_of([2, 4, 12, 6]).total.auc, abs=1e-4)


def test_the_card_gets_every_figure_by_set_and_crop() -> None:
    figures = scores_of([2, 4, 12, 6], [{"pose"}, set(), {"pose"}, set()]).to_card("wflw test")
    assert figures["wflw test, points crop"] == 6
    assert figures["wflw test, points crop, FR@10"] == 25
    assert figures["wflw test, points crop, AUC@10"] == 0.45
    assert figures["wflw test, points crop, pose"] == 7
    assert figures["wflw test, points crop, right_pupil"] == 6
    assert len(figures) == 3 + 3 + 11


def test_the_table_shows_all_faces_and_each_subset() -> None:
    lines = scores_of([2, 4, 12, 6], [{"pose"}, set(), {"pose"}, set()]).lines()
    assert lines[0] == "points crop"
    assert lines[2].split() == ["all", "4", "6.00", "25.00", "0.450"]
    assert lines[3].split() == ["pose", "2", "7.00", "50.00", "0.400"]
    assert "left_eye 6.00" in lines[-1]


@pytest.mark.parametrize(
    ("predict", "match"),
    [
        (lambda rgb: np.zeros((len(rgb), 68, 2), np.float32), r"\(1, 68, 2\), expected \(1, 98, 2\) for wflw98"),
        (lambda rgb: np.full((len(rgb), 98, 2), np.nan, np.float32), "not finite"),
    ],
)
def test_a_model_that_gives_no_such_points_is_refused(predict: Callable[[U8], F32], match: str, tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=match):
        evaluate([sample_of(face(), tmp_path)], predict, INPUT_HW, CropConfig())


def test_no_faces_and_faces_without_eyes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="no faces"):
        evaluate([], always(face()), INPUT_HW, CropConfig())
    blind = face()
    blind[72] = blind[60]
    samples = [sample_of(face(), tmp_path), sample_of(blind, tmp_path, "blind.png")]
    with pytest.raises(LineamentError, match=r"face 2 of the list, in blind\.png"):
        evaluate(samples, always(face()), INPUT_HW, CropConfig())


class Onlooker:
    """A model that says the same of every crop, and notes how far the eyes in it lean: one is red, the other blue."""

    def __init__(self) -> None:
        self.lean_deg: list[float] = []

    def __call__(self, rgb_NHWC: U8) -> F32:
        for rgb in rgb_NHWC.astype(np.float64):
            red, blue = (_middle(rgb[..., one] - rgb[..., other]) for one, other in ((0, 2), (2, 0)))
            self.lean_deg.append(float(np.degrees(np.arctan2(*(blue - red)[::-1]))))
        return always(unit_of(face(), (50, 50), 78))(rgb_NHWC)


def _middle(weight: F64) -> F64:
    """(x, y) of what is bright."""
    ys, xs = np.nonzero(weight > 100)
    return np.array([xs.mean(), ys.mean()])


def leaning_set(root: Path, degrees: float) -> Path:
    """One face that leans in the plane, in WFLW's layout, with the eyes painted into its picture."""
    turn = cv2.getRotationMatrix2D((50, 50), -degrees, 1)
    points = np.asarray(face() @ turn[:, :2].T + turn[:, 2], np.float32)
    write_wflw(root, "test", [("leaning.png", points)])
    picture = np.zeros((100, 100, 3), np.uint8)
    for corner, bgr in zip(WFLW98.eye_corners, ((0, 0, 255), (255, 0, 0))):
        cv2.circle(picture, points[corner].round().astype(int).tolist(), 4, bgr, -1)
    assert cv2.imwrite(str(root / "WFLW_images" / "leaning.png"), picture)
    return root


def test_a_face_turned_in_the_plane_is_scored_as_it_leans_first_and_levelled_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onlooker, card = Onlooker(), ModelCard("onlooker", WFLW98.name, INPUT_HW, 1.3)
    monkeypatch.setattr(evaluation, "load_predictor", lambda path, device, batch: (onlooker, card))
    root = leaning_set(tmp_path / "set", 30)
    cfg = EvaluateConfig(tmp_path / "none.safetensors", root, out=tmp_path / "out")
    as_it_is, levelled, rect = evaluation.report(cfg)
    assert [one.crop for one in (as_it_is, levelled, rect)] == ["points crop", "levelled points crop", "rect crop"]
    np.testing.assert_allclose(onlooker.lean_deg, [30, 0, 30], atol=2)
    # it says where the points of a level face are
    np.testing.assert_allclose(levelled.nme, 0, atol=1e-3)
    assert as_it_is.nme[0] > 5 and rect.nme[0] > 5


def test_each_crop_is_reported_plain_and_with_its_mirror_image_the_published_one_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onlooker, card = Onlooker(), ModelCard("onlooker", WFLW98.name, INPUT_HW, 1.3)
    monkeypatch.setattr(evaluation, "load_predictor", lambda path, device, batch: (onlooker, card))
    root, boxes = leaning_set(tmp_path / "set", 30), tmp_path / "boxes.jsonl"
    boxes.write_text(json.dumps({"image": "leaning.png", "box_xyxy": [15, 15, 85, 85]}) + "\n")
    cfg = EvaluateConfig(tmp_path / "none.safetensors", root, out=tmp_path / "out", flip=True, boxes=boxes)
    names = ("points crop", "levelled points crop", "rect crop", "detector crop")
    assert [one.crop for one in evaluation.report(cfg)] == [name + flip for name in names for flip in ("", ", flip")]


def untrained(path: Path) -> tuple[LandmarkNet, ModelCard]:
    """A net of random weights and its card, saved at path."""
    torch.manual_seed(0)
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=INPUT_HW))
    return net, model.save(net, model.new_card(net, "tiny", 1.3), path)


def test_a_model_file_is_unchanged_by_evaluating_unless_it_is_told_to_write_the_card(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = write_wflw(tmp_path / "set", "test", [("0.png", mean_face())])
    path = tmp_path / "best.safetensors"
    untrained(path)
    before, command = path.read_bytes(), [str(path), "--data", str(root), "--device", "cpu"]
    assert evaluation.main(command) == 0
    assert path.read_bytes() == before
    assert "--write-card" in capsys.readouterr().out.splitlines()[-1]
    assert evaluation.main([*command, "--write-card"]) == 0
    assert path.read_bytes() != before
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote the figures into the card of {path}"


def test_the_command_scores_every_crop_and_fills_the_card_but_leaves_the_weights(tmp_path: Path) -> None:
    root = write_wflw(tmp_path / "set", "test", [(f"{i}.png", mean_face(45 + i)) for i in range(3)])
    path, out = tmp_path / "best.safetensors", tmp_path / "out"
    net, before = untrained(path)
    command = [str(path), "--data", str(root), "--out", str(out), "--flip", "--write-card", "--worst", "1"]
    assert evaluation.main(command) == 0
    loaded, card = model.load(path)
    assert card.weights_sha256 == before.weights_sha256
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values()))
    for crop in ("points crop", "points crop, flip", "levelled points crop", "rect crop", "rect crop, flip"):
        assert card.nme[f"set test, {crop}"] > 0 and f"set test, {crop}, AUC@10" in card.nme
    told = json.loads((out / "scores.json").read_text())
    assert told["figures"] == card.nme
    assert [row["image"] for row in told["faces"]] == ["0.png", "1.png", "2.png"]
    mean = np.mean([row["rect crop"] for row in told["faces"]])
    assert mean == pytest.approx(card.nme["set test, rect crop"], abs=0.01)
    for name in ("ced.png", "worst.jpg"):
        assert cv2.imread(str(out / name)) is not None
    sheet = cv2.imread(str(out / "worst.jpg"))
    assert sheet is not None and sheet[:, :TILE_PX].max() > 100 > sheet[:, TILE_PX + 8 :].max(), "one face, no more"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_sheet_of_no_faces_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="worst must be at least 1, got 0"):
        EvaluateConfig(Path("best.safetensors"), Path("set"), worst=0)


def test_new_figures_replace_those_of_the_same_name_alone() -> None:
    net = LandmarkNet(NetSpec("test_efficientnet", input_hw=INPUT_HW))
    card = model.new_card(net, "tiny", 1.3)
    old = evaluation.with_figures(card, [scores_of([50])], "a test")
    both = evaluation.with_figures(old, [scores_of([20])], "b test")
    assert both.nme["a test, points crop"] == 50 and both.nme["b test, points crop"] == 20
    assert evaluation.with_figures(both, [scores_of([30])], "a test").nme["a test, points crop"] == 30


def test_a_missing_model_is_said_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert evaluation.main([str(tmp_path / "gone.safetensors"), "--data", str(tmp_path)]) == 1
    assert "gone.safetensors" in capsys.readouterr().err


def test_evaluating_needs_no_torch() -> None:
    script = "import sys; import train.evaluate; assert not {'torch', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parent.parent)


def test_a_peer_has_its_known_score(shared: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    samples = read(shared / "data" / "wflw-mini", "test")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    peer = shared / "peers" / "pfld_ghostone_112_98pt.onnx"
    session = onnxruntime.InferenceSession(peer, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(rgb_NHWC: U8) -> F32:
        bgr_NCHW = rgb_NHWC[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
        return np.stack([session.run(None, {name: bgr[None]})[0].reshape(98, 2) for bgr in bgr_NCHW])

    # its unit coordinates times 112 are the labels: these count from a pixel's corner
    scores = evaluate(samples, predict, (112, 112), CropConfig(), whole=True, label_shift_px=0.5)
    assert scores.total.nme == pytest.approx(3.76, abs=0.01)
    assert scores.total.failures == pytest.approx(1.5)
