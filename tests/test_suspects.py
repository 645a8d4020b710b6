"""Wrong labels are found, correct ones are not, and the list of suspects drops or down-weights them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.schema import IBUG68, WFLW98
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train import suspects
from lineament.train.config import TrainConfig
from lineament.train.crops import CropConfig
from lineament.train.data import group_of, read
from lineament.train.evaluate import Predict, evaluate
from lineament.train.label_errors import Suspect, find, folds, rank, robust_z
from lineament.train.sample import Sample
from lineament.train.suspects import SuspectsConfig, cross_validate, fold_of
from tests.labelled import exchanged, mean_face, sample, write_wflw

CONTOUR = list(WFLW98.parts["contour"])


def ocular() -> float:
    face = mean_face()
    return float(np.linalg.norm(face[60] - face[72]))


def found(labels: list[F32], percent: float = 2.0) -> list[Suspect]:
    """The suspects among labels when every prediction is the mean face, moved `percent` to the right."""
    guess = mean_face() + np.float32((percent / 100 * ocular(), 0))
    return find([sample(label) for label in labels], np.stack([guess] * len(labels)))


# ---- disagreement


def test_a_robust_z_counts_in_deviations_of_the_logarithm() -> None:
    # logarithms 0 1 2 3 10: the median is 2, the absolute deviations 2 1 0 1 8, their median 1
    z = robust_z(np.exp(np.array([0.0, 1, 2, 3, 10])))
    np.testing.assert_allclose(z * 1.4826, [-2, -1, 0, 1, 8], rtol=1e-6)


def test_labels_that_agree_are_no_suspects() -> None:
    assert found([mean_face()] * 20) == []


def test_one_label_ten_times_as_far_off_as_all_others_is_the_suspect() -> None:
    label = mean_face() - np.float32((0.18 * ocular(), 0))
    (suspect,) = found([*[mean_face()] * 10, label, *[mean_face()] * 9])
    assert suspect.index == 10
    # all others agree exactly, so the least spread of 0.1 counts
    assert suspect.score == pytest.approx(math.log(10) / 0.1, abs=0.02)
    assert suspect.weight == pytest.approx((3.5 / suspect.score) ** 2)
    assert suspect.reasons[0].startswith("face off by 20.0 %, median 2.0 %")


def test_one_part_that_is_off_is_named() -> None:
    label = mean_face()
    label[96] += np.float32((0.3 * ocular(), 0))
    (suspect,) = found([*[mean_face()] * 20, label])
    assert suspect.index == 20
    assert suspect.reasons[0].startswith("left_pupil off by 28.0 %, median 2.0 %")


def test_the_ranking_has_every_face_that_can_be_compared_largest_error_first() -> None:
    labels = [mean_face() + np.float32((shift * ocular(), 0)) for shift in (0.0, 0.3, 0.1)]
    labels.append(np.full_like(mean_face(), np.nan))
    ranking = rank([sample(label) for label in labels], np.stack([mean_face()] * 4))
    assert [index for index, _ in ranking] == [1, 2, 0]
    assert [percent for _, percent in ranking] == pytest.approx([30, 10, 0], abs=1e-3)


def test_suspects_come_worst_first() -> None:
    shifts = [0.0] * 20 + [0.2, 0.6, 0.4]
    suspects_ = found([mean_face() - np.float32((shift * ocular(), 0)) for shift in shifts])
    assert [s.index for s in suspects_] == [21, 22, 20]


def test_a_profile_whose_eye_corners_meet_is_not_suspect_for_that() -> None:
    profile = mean_face()
    profile[72] = profile[60]
    samples = [sample(p) for p in [*[mean_face()] * 20, profile]]
    # every face is predicted 1 px off
    assert find(samples, np.stack([s.points + np.float32((1, 0)) for s in samples])) == []


def test_faces_without_points_or_prediction_are_skipped_and_keep_their_indices() -> None:
    nothing = np.full_like(mean_face(), np.nan)
    wrong = mean_face() - np.float32((0.5 * ocular(), 0))
    suspects_ = found([nothing, *[mean_face()] * 20, wrong])
    assert [s.index for s in suspects_] == [21]


def test_predictions_of_another_count_are_refused() -> None:
    with pytest.raises(LineamentError, match=r"\(3, 98, 2\), the labels \(2, 98, 2\)"):
        find([sample(mean_face())] * 2, np.zeros((3, 98, 2)))


# ---- left and right


def test_exchanged_eyes_are_found_and_named() -> None:
    label = exchanged(mean_face(), "left_eye", "right_eye")
    (suspect,) = [s for s in found([*[mean_face()] * 20, label]) if s.index == 20]
    assert suspect.score >= 10
    swaps = [reason for reason in suspect.reasons if "exchanged" in reason]
    face, flip = mean_face(), np.array(WFLW98.flip)
    eyes = [*WFLW98.parts["left_eye"], *WFLW98.parts["right_eye"]]
    guess = face + np.float32((0.02 * ocular(), 0))
    before = np.linalg.norm(guess[eyes] - face[flip[eyes]], axis=1).mean() / ocular() * 100
    assert swaps == [f"left and right of eye exchanged: error {before:.1f} % as labelled, 2.0 % exchanged"]
    assert before > 50


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("left_brow", "right_brow"), "brow"),
        (("left_pupil", "right_pupil"), "pupil"),
        (("contour",), "contour"),
        (("outer_lips",), "outer_lips"),
    ],
)
def test_any_pair_of_parts_may_be_exchanged(parts: tuple[str, ...], name: str) -> None:
    label = exchanged(mean_face(), *parts)
    (suspect,) = found([*[mean_face()] * 20, label])
    assert any(reason.startswith(f"left and right of {name} exchanged") for reason in suspect.reasons)


def test_a_face_exchanged_as_a_whole_is_reported_once() -> None:
    label = exchanged(mean_face(), *WFLW98.parts)
    (suspect,) = found([*[mean_face()] * 20, label])
    assert sum("exchanged" in reason for reason in suspect.reasons) == 1
    assert any(reason.startswith("left and right exchanged") for reason in suspect.reasons)


def test_a_bad_prediction_is_not_called_a_swap() -> None:
    label = mean_face() - np.float32((0, 0.4 * ocular()))
    (suspect,) = found([*[mean_face()] * 20, label])
    assert not any("exchanged" in reason for reason in suspect.reasons)


# ---- the contour


def test_a_contour_that_goes_round_a_face_is_not_suspect() -> None:
    assert folds(mean_face()[CONTOUR]) == []


def test_a_contour_whose_end_runs_backwards_turns_back() -> None:
    contour = mean_face()[CONTOUR]
    contour[20:] = contour[20:][::-1]
    assert "contour jumps between points 19 and 20" in folds(contour)
    back_and_forth = np.array([(x, 0.0) for x in [*range(20), *range(18, 6, -1)]], np.float32)
    assert folds(back_and_forth)[0] == "contour turns back at point 19"


def test_a_contour_with_a_loop_crosses_itself() -> None:
    angle = np.linspace(0, np.pi, 25)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1) * 50
    loop = np.linspace(0, 2 * np.pi, 9)
    ring = np.stack([np.cos(loop), np.sin(loop)], 1) * 12 + (0, 38)
    contour = np.concatenate([arc[:12], ring[::-1], arc[13:]])
    assert any("crosses itself" in reason for reason in folds(contour))


def test_a_point_out_of_place_is_a_jump() -> None:
    contour = mean_face()[CONTOUR]
    contour[10] += (30, -30)
    assert any(reason.startswith("contour jumps between points 9 and 10") for reason in folds(contour))


def test_a_folded_contour_makes_a_suspect_even_where_the_model_folds_it_too() -> None:
    label = mean_face()
    label[10] += (30, -30)
    predictions = np.stack([mean_face()] * 20 + [label])
    (suspect,) = find([sample(p) for p in predictions], predictions)
    assert (suspect.index, suspect.score) == (20, 6.0)


def test_no_contour_of_real_labels_is_suspect(shared: Path) -> None:
    samples = [s for split in ("train", "test") for s in read(shared / "data" / "wflw-mini", split)]
    assert [s.name for s in samples if folds(s.points[CONTOUR])] == []


def test_another_schema_has_its_own_contour_and_mirror_image() -> None:
    rng = np.random.default_rng(0)
    label = rng.uniform(20, 80, (68, 2)).astype(np.float32)
    label[list(IBUG68.parts["contour"])] = [(x, 60 - (x - 50) ** 2 / 50) for x in np.linspace(10, 90, 17)]
    wrong = label.copy()
    eyes = [*IBUG68.parts["left_eye"], *IBUG68.parts["right_eye"]]
    wrong[eyes] = label[np.array(IBUG68.flip)[eyes]]
    samples = [sample(p) for p in [*[label] * 20, wrong]]
    (suspect,) = find(samples, np.stack([label] * 21), IBUG68)
    assert any("left and right of eye exchanged" in reason for reason in suspect.reasons)


# ---- the list


def samples_of(*names: str) -> list[Sample]:
    return [sample(mean_face() + np.float32((i, 0)), name) for i, name in enumerate(names)]


def test_suspects_are_dropped_or_down_weighted_by_picture_and_place_in_it(tmp_path: Path) -> None:
    samples = samples_of("a.png", "b.png", "a.png", "c.png")
    path = tmp_path / "suspects.csv"
    suspects.write([Suspect(2, 7.0, ("odd, very",)), Suspect(3, 14.0, ("odder",))], samples, path)
    assert suspects.apply(samples, path, "drop") == samples[:2]
    halved = [replace(samples[1], weight=0.5), *samples[2:], samples[0]]
    lowered = suspects.apply(halved, path, "down-weight")
    # the second a.png is now the last one, and 7 is twice the usual limit, 14 four times
    assert [round(s.weight, 3) for s in lowered] == [0.5, 1, 0.062, 0.25]
    assert all(a.points is b.points for a, b in zip(lowered, halved))


def test_a_line_that_was_deleted_keeps_its_face(tmp_path: Path) -> None:
    samples = samples_of("a.png", "b.png")
    path = tmp_path / "suspects.csv"
    suspects.write([Suspect(0, 7.0, ("x",)), Suspect(1, 5.0, ("y",))], samples, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    assert suspects.apply(samples, path, "drop") == samples[:1]
    path.write_text(lines[0] + "\n")
    assert suspects.apply(samples, path, "drop") == samples


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("image,face,score,weight\na.png,0,9,much\n", r"line 2: .*'much'"),
        ("image,face,score,weight\na.png,0,9,1.5\n", r"line 2: weight is 1\.5"),
        ("image,face,score,weight\na.png\n", r"line 2"),
        ("name,x\n", r"lacks the columns image, face, score, weight"),
        ("image,face,score,weight\nother.png,3,9,0.5\n", r"none of the 1 suspects .* face 3 of other\.png"),
    ],
)
def test_an_invalid_list_is_refused(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text(text)
    with pytest.raises(LineamentError, match=match):
        suspects.apply(samples_of("a.png"), path, "drop")


def test_a_missing_list_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"no suspects file at .*python -m train\.suspects"):
        suspects.apply(samples_of("a.png"), tmp_path / "suspects.csv", "drop")


def test_predictions_are_read_back_for_the_same_samples_only(tmp_path: Path) -> None:
    path, samples = tmp_path / "predictions.npz", samples_of("a.png", "b.png")
    predictions = np.stack([s.points for s in samples])
    suspects.save_predictions(path, samples, predictions)
    np.testing.assert_array_equal(suspects.load_predictions(path, samples), predictions)
    with pytest.raises(LineamentError, match=r"the 2 faces in .* are not the data set's 2"):
        suspects.load_predictions(path, samples[::-1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LineamentError, match="cannot read predictions"):
        suspects.load_predictions(path, samples)


# ---- cross-validation


def test_folds_share_the_faces_and_keep_those_of_one_picture_together() -> None:
    samples = samples_of(*[f"{i // 3}.png" for i in range(30)])
    parts = fold_of(samples, 4, seed=0)
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert [len(part) for part in parts] == [9, 9, 6, 6]
    for part in parts:
        inside = {group_of(samples[i]) for i in part}
        assert not inside & {group_of(samples[i]) for i in range(30) if i not in part}


def test_more_folds_than_pictures_are_refused() -> None:
    with pytest.raises(LineamentError, match="3 pictures into 4 folds"):
        fold_of(samples_of("a.png", "b.png", "c.png"), 4, seed=0)


INPUT_HW = (64, 64)


class MeanFace:
    """Stands in for training: knows the mean face as its crop shows it, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[set[str], set[str], Path]] = []

    def __call__(self, cfg: TrainConfig, train: list[Sample], val: list[Sample]) -> tuple[Predict, tuple[int, int]]:
        self.seen.append(({s.name for s in train}, {s.name for s in val}, cfg.run))
        # levelled, for the mean face's eyes are level
        face = mean_face(0, 0, 1)
        low, high = face.min(0), face.max(0)
        unit = (face - (low + high) / 2) / (max(high - low) * cfg.crop.scale) + 0.5

        def predict(rgb_NHWC: U8) -> F32:
            return np.repeat(unit[None], len(rgb_NHWC), 0).astype(np.float32)

        return predict, INPUT_HW


def test_each_face_is_predicted_by_a_model_that_saw_neither_it_nor_its_picture(tmp_path: Path) -> None:
    # one group a picture, whatever numbers their names end in
    faces = [(f"p{i // 2}x.png", mean_face(35 + 3 * i, 50, 20)) for i in range(10)]
    samples = read(write_wflw(tmp_path, "train", faces), "train")
    learn = MeanFace()
    cfg = TrainConfig(data=(tmp_path,), run=tmp_path / "runs", hold_out=0.25)
    predictions = cross_validate(cfg, samples, 5, learn)
    np.testing.assert_allclose(predictions, np.stack([s.points for s in samples]), atol=0.01)
    everything = {s.name for s in samples}
    for train, val, _ in learn.seen:
        assert val and not train & val and len(everything - train - val) == 1
    assert len({run for _, _, run in learn.seen}) == 5


def test_the_report_puts_the_wrong_label_first_and_can_be_repeated_without_training(tmp_path: Path) -> None:
    faces = [(f"p{i}x.png", mean_face(40 + i, 50, 20)) for i in range(12)]
    faces[7] = ("p7x.png", exchanged(mean_face(47, 50, 20), "left_eye", "right_eye"))
    root, out = write_wflw(tmp_path / "set", "train", faces), tmp_path / "out"
    cfg = SuspectsConfig(TrainConfig(data=(root,)), out, folds=3)
    lines = suspects.report(cfg, MeanFace())
    assert lines[0].startswith("1 of 12 faces are suspect") and "face 8  p7x.png" in lines[1]
    ranking = (out / "ranking.csv").read_text().splitlines()
    assert len(ranking) == 13 and ranking[1].startswith("p7x.png,0,")
    text = (out / "suspects.csv").read_text()
    assert text.splitlines()[1].startswith("p7x.png,0,")
    assert cv2.imread(str(out / "suspects.jpg")) is not None
    (out / "suspects.csv").unlink()
    again = suspects.report(replace(cfg, predictions=out / "predictions.npz"))
    assert again == lines and (out / "suspects.csv").read_text() == text
    kept = suspects.apply(read(root, "train"), out / "suspects.csv", "drop")
    assert len(kept) == 11 and "p7x.png" not in {s.name for s in kept}


def test_evaluation_of_the_stand_in_is_exact(tmp_path: Path) -> None:
    samples = read(write_wflw(tmp_path, "train", [("p0x.png", mean_face())]), "train")
    predict, input_hw = MeanFace()(TrainConfig(data=(tmp_path,)), samples, [])
    assert evaluate(samples, predict, input_hw, CropConfig()).total.nme < 0.01
