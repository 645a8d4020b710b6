"""Which labels of a training set are probably wrong, found by models that never saw them.

    python -m train.suspects --data WFLW --folds 5 --out runs/suspects
    python -m train --data WFLW --suspects runs/suspects/suspects.csv --suspect-policy drop

Three signs: a label lies far from what a model says that was trained on other pictures; it fits much better with left
and right exchanged; its contour folds back on itself. Look at the sheet, delete the lines of suspects.csv that are
right as they are, and give the file to the training.

Suffixes: N faces, K points.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema
from lineament.landmarks.types import F32, F64, Floats, LineamentError
from lineament.train.config import TrainConfig
from lineament.train.crops import CropConfig
from lineament.train.data import group_of, hold_out, read, shifted
from lineament.train.evaluate import Predict, evaluate, load_predictor, tile
from lineament.train.loop import fit
from lineament.train.model import write_atomically
from lineament.train.sample import Sample
from lineament.train.sheet import sheet

log = logging.getLogger("lineament")

USUAL = 3.5
"""robust z above which a face counts as an outlier (Iglewicz and Hoaglin's cut)"""
PART_USUAL = 5.0
"""the same for a single part: a face has eleven chances to have an odd one"""
SWAPPED, FOLDED = 10.0, 6.0
"""least score of a face with that sign: a swap is hardly ever anything else, a fold may be a strange profile"""
SWAP_GAIN = 2.0
"""a swap is believed when exchanging left and right divides the error by this"""
SWAP_LEAST = 15.0
"""percent of the face's unit that the error must have been before"""
LEAST_NME, LEAST_SPREAD = 0.1, 0.1
"""percent, and of its logarithm: labels that agree better than this agree"""
EXTENT_SHARE = 0.6
"""of the face's longer side, as far as a frontal face's eye corners are apart: no unit is shorter. A profile's nearly
meet, and it would be suspect for that alone"""
FOLD_RAD = np.radians(110)
"""a contour that turns by more than this between two steps goes back"""
SHORT_STEP, LONG_STEP = 0.03, 0.1
"""of the extent: shorter steps have no direction worth asking for, and no step below the second is wild"""
WILD = 5.0
"""times the median of the steps round it"""
NEAR_STEPS = 4
COLUMNS = ("image", "face", "score", "weight", "reasons")
WORST = 24
"""faces on the sheet"""
PRINTED = 10
MOST_REASONS = 4
WHOLE = "left and right"


@dataclass(frozen=True, slots=True)
class Suspect:
    """A face whose label is in doubt."""

    index: int
    """of the sample in the list that was searched"""
    score: float
    """how far out it is: a robust z, at least SWAPPED or FOLDED where such a sign was found"""
    reasons: tuple[str, ...]
    """for a person to read; a swap or fold first, then what is farthest off"""

    @property
    def weight(self) -> float:
        """What its loss is multiplied by when it is not dropped: 1 at the usual limit, falling with the square."""
        return min(1.0, (USUAL / self.score) ** 2)


def find(samples: Sequence[Sample], predictions: Floats, schema: Schema = WFLW98) -> list[Suspect]:
    """The suspects among samples, worst first.

    predictions: (N, K, 2) px of the pictures, by models that had not seen the face. Faces without points are passed
    over.
    """
    labels = np.array([sample.points for sample in samples], np.float64)
    if predictions.shape != labels.shape:
        raise LineamentError(
            f"the predictions have shape {predictions.shape}, the labels {labels.shape}; predict this data set anew"
        )
    rows = np.flatnonzero(np.isfinite(labels).all((1, 2)) & np.isfinite(predictions).all((1, 2)))
    if not len(rows):
        raise LineamentError("no face has both a label and a prediction: there is nothing to compare")
    labels, guesses = labels[rows], predictions[rows].astype(np.float64)
    unit_N = _unit(labels, schema)
    signs: list[list[_Sign]] = [[] for _ in rows]
    # what explains the rest comes first
    far = sorted(_far(guesses, labels, unit_N, schema), key=lambda sign: -sign.score)
    for sign in (*_swaps(guesses, labels, unit_N, schema), *_folds(labels, schema), *far):
        signs[sign.face].append(sign)
    suspects = []
    for index, found in zip(rows.tolist(), signs):
        if found:
            score = max(sign.score for sign in found)
            suspects.append(Suspect(index, round(score, 2), tuple(sign.reason for sign in found[:MOST_REASONS])))
    return sorted(suspects, key=lambda suspect: -suspect.score)


def rank(samples: Sequence[Sample], predictions: Floats, schema: Schema = WFLW98) -> list[tuple[int, float]]:
    """(index, percent that label and prediction are apart) of every face that has both, the farthest first."""
    labels = np.array([sample.points for sample in samples], np.float64)
    apart_N = _error(predictions.astype(np.float64), labels, _unit(labels, schema), range(len(schema)))
    rows = np.flatnonzero(np.isfinite(apart_N))
    order = rows[np.argsort(-apart_N[rows], kind="stable")]
    return [(int(i), float(apart_N[i])) for i in order]


def robust_z(values_N: Floats) -> F64:
    """How many deviations each value's logarithm lies above the median; errors are skewed, their logarithms hardly.

    A deviation is 1.4826 times the median absolute one, which a tenth of wild values does not move.
    """
    logs = np.log(np.maximum(values_N, LEAST_NME))
    away = logs - np.median(logs)
    return np.asarray(away / max(1.4826 * float(np.median(np.abs(away))), LEAST_SPREAD), np.float64)


# ---- the signs


class _Sign(NamedTuple):
    face: int
    """row of the faces compared"""
    score: float
    reason: str


def _unit(labels: F64, schema: Schema) -> F64:
    """(N,) px that count as 100 %: the inter-ocular distance, or EXTENT_SHARE of the face if that is more."""
    left, right = schema.eye_corners
    ocular = np.linalg.norm(labels[:, left] - labels[:, right], axis=-1)
    extent = np.ptp(labels, axis=1).max(1)
    return np.maximum(np.maximum(ocular, extent * EXTENT_SHARE), 1e-6)


def _error(guesses: F64, labels: F64, unit_N: F64, points: Sequence[int]) -> F64:
    """(N,) percent of each face's unit, over some of the points."""
    away = np.linalg.norm(guesses[:, points] - labels[:, points], axis=-1)
    return np.asarray(away.mean(1) / unit_N * 100, np.float64)


def _far(guesses: F64, labels: F64, unit_N: F64, schema: Schema) -> Iterator[_Sign]:
    """Faces and parts whose error stands out among those of all faces."""
    for part, points in {"face": range(len(schema)), **schema.parts}.items():
        error_N = _error(guesses, labels, unit_N, list(points))
        usual, z_N = USUAL if part == "face" else PART_USUAL, robust_z(error_N)
        for i in np.flatnonzero(z_N > usual).tolist():
            reason = f"{part} off by {error_N[i]:.1f} % where {np.median(error_N):.1f} is usual"
            yield _Sign(i, float(z_N[i]) * USUAL / usual, reason)


def _swaps(guesses: F64, labels: F64, unit_N: F64, schema: Schema) -> Iterator[_Sign]:
    """Faces that fit much better with left and right exchanged, wholly or in one pair of parts."""
    wholly: set[int] = set()
    for name, moved in _exchanged(schema).items():
        order = np.arange(len(schema))
        order[moved] = np.array(schema.flip)[moved]
        before_N = _error(guesses, labels, unit_N, moved)
        after_N = _error(guesses, labels[:, order], unit_N, moved)
        for i in np.flatnonzero((before_N > SWAP_LEAST) & (after_N * SWAP_GAIN < before_N)).tolist():
            if i not in wholly:
                yield _Sign(i, SWAPPED, f"{name} exchanged: {before_N[i]:.1f} % so, {after_N[i]:.1f} the other way")
            if name == WHOLE:
                wholly.add(i)


def _exchanged(schema: Schema) -> dict[str, list[int]]:
    """Which points may be exchanged together: all, each pair of parts, each part that is its own mirror image."""
    flip = np.array(schema.flip)
    groups = {WHOLE: list(range(len(schema)))}
    for part, points in schema.parts.items():
        moved = sorted({*points, *flip[list(points)].tolist()})
        if moved not in groups.values() and (flip[moved] != moved).any():
            groups[f"left and right of {part.removeprefix('left_')}"] = moved
    return groups


def _folds(labels: F64, schema: Schema) -> Iterator[_Sign]:
    for i, contour in enumerate(schema.part("contour", labels)):
        for reason in folds(contour):
            yield _Sign(i, FOLDED, reason)


def folds(contour: Floats) -> list[str]:
    """What is odd about a contour (n, 2), in the order of its points; nothing for one that goes round a face."""
    steps = np.diff(contour.astype(np.float64), axis=0)
    length = np.linalg.norm(steps, axis=1)
    extent = float(np.ptp(contour, axis=0).max())
    if extent <= 0:
        return ["contour is a single place"]
    found = []
    heading = np.arctan2(steps[:, 1], steps[:, 0])
    turn = np.abs((np.diff(heading) + np.pi) % (2 * np.pi) - np.pi)
    long_enough = np.minimum(length[:-1], length[1:]) > SHORT_STEP * extent
    if (back := np.flatnonzero((turn > FOLD_RAD) & long_enough)).size:
        found.append(f"contour turns back at point {back[0] + 1}")
    if crossing := _crossing(contour.astype(np.float64), length, LONG_STEP * extent):
        found.append(f"contour crosses itself between points {crossing[0]} and {crossing[1]}")
    usual = [np.median(length[max(0, i - NEAR_STEPS) : i + NEAR_STEPS + 1]) for i in range(len(length))]
    if (wild := np.flatnonzero((length > WILD * np.array(usual)) & (length > LONG_STEP * extent))).size:
        found.append(f"contour jumps between points {wild[0]} and {wild[0] + 1}")
    return found


def _crossing(contour: F64, length: F64, shortest_loop: float) -> tuple[int, int] | None:
    """The first two steps (i, j) that cross with a loop between them worth the name."""
    start, step = contour[:-1], np.diff(contour, axis=0)
    way = np.concatenate([[0.0], np.cumsum(length)])
    i, j = np.triu_indices(len(step), 2)
    looped = way[j] - way[i + 1] > shortest_loop
    i, j = i[looped], j[looped]
    between = start[j] - start[i]
    det = _cross(step[i], step[j])
    with np.errstate(divide="ignore", invalid="ignore"):
        along_i, along_j = _cross(between, step[j]) / det, _cross(between, step[i]) / det
    hit = (det != 0) & (along_i >= 0) & (along_i <= 1) & (along_j >= 0) & (along_j <= 1)
    first = np.flatnonzero(hit)
    return (int(i[first[0]]), int(j[first[0]])) if first.size else None


def _cross(a: F64, b: F64) -> F64:
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], np.float64)


# ---- predictions by models that had not seen the face

Learn = Callable[[TrainConfig, list[Sample], list[Sample]], tuple[Predict, tuple[int, int]]]
"""(config, train, val) -> a model as a function of crops, and the height and width of these"""


def cross_validate(cfg: TrainConfig, samples: list[Sample], folds: int, learn: Learn | None = None) -> F32:
    """(N, K, 2) px of the pictures: each face by a model trained without its picture.

    Trains `folds` times, in folders of cfg.run; interrupted and called again, it goes on where it was.
    """
    schema = SCHEMAS[cfg.schema]
    predictions = np.full((len(samples), len(schema), 2), np.nan, np.float32)
    for number, out in enumerate(fold_of(samples, folds, cfg.seed)):
        rest = [sample for i, sample in enumerate(samples) if i not in out]
        training, val = hold_out(rest, cfg.hold_out, cfg.seed)
        log.info("fold %d of %d: %d faces to train on, %d to predict", number + 1, folds, len(training), len(out))
        run = cfg.run / f"fold-{number}" / "run"
        predict, input_hw = (learn or _learn)(replace(cfg, run=run, suspects=None), training, val)
        for crop, rows in _by_crop(samples, out, cfg.crop, schema):
            unseen = [samples[i] for i in rows]
            scores = evaluate(unseen, predict, input_hw, crop, schema)
            predictions[rows] = scores.predicted
            log.info("fold %d: NME %.2f on %d faces it had not seen", number + 1, scores.total.nme, len(rows))
        # each fold cuts most of the data set again: gigabytes, that nobody reads once it is trained
        shutil.rmtree(run.parent / "cache", ignore_errors=True)
    return predictions


def _by_crop(
    samples: Sequence[Sample], faces: set[int], crop: CropConfig, schema: Schema
) -> Iterator[tuple[CropConfig, list[int]]]:
    """The faces that have points, and how to cut them.

    A label that stands on its head mostly has left and right exchanged, not a face upside down: levelled by it, the
    crop would show the model what it cannot know.
    """
    left, right = schema.eye_corners
    upright, inverted = list[int](), list[int]()
    for i in sorted(faces):
        if np.isfinite(samples[i].points).all() and (samples[i].points[left] != samples[i].points[right]).any():
            (upright if abs(schema.roll_rad(samples[i].points)) <= np.pi / 2 else inverted).append(i)
    for rows, level in ((upright, crop.level), (inverted, False)):
        if rows:
            yield replace(crop, level=level), rows


def fold_of(samples: Sequence[Sample], folds: int, seed: int) -> list[set[int]]:
    """Indices of samples in `folds` parts; faces of one picture stay together."""
    groups = sorted({group_of(sample) for sample in samples})
    if not 2 <= folds <= len(groups):
        raise LineamentError(f"cannot part {len(groups)} pictures into {folds} folds; wanted 2 to {len(groups)}")
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_of_group = {groups[group]: place % folds for place, group in enumerate(order.tolist())}
    parts: list[set[int]] = [set() for _ in range(folds)]
    for i, sample in enumerate(samples):
        parts[fold_of_group[group_of(sample)]].add(i)
    return parts


def _learn(cfg: TrainConfig, training: list[Sample], val: list[Sample]) -> tuple[Predict, tuple[int, int]]:
    predict, card = load_predictor(fit(cfg, training, val).best, cfg.device)
    return predict, card.input_hw


# ---- the files


def write(suspects: Sequence[Suspect], samples: Sequence[Sample], path: Path) -> None:
    """suspects.csv: a line a suspect, worst first. A face is named by its picture and its place among those in it."""
    face_of = _ordinals(samples)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for suspect in suspects:
        image, face = face_of[suspect.index]
        writer.writerow((image, face, suspect.score, f"{suspect.weight:.3f}", "; ".join(suspect.reasons)))
    write_atomically(path, lambda temp: temp.write_text(text.getvalue(), encoding="utf-8"))


def _write_ranking(ranking: Sequence[tuple[int, float]], samples: Sequence[Sample], path: Path) -> None:
    """ranking.csv: every face, suspect or not."""
    face_of = _ordinals(samples)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "face", "percent"))
    writer.writerows((*face_of[index], f"{percent:.2f}") for index, percent in ranking)
    write_atomically(path, lambda temp: temp.write_text(text.getvalue(), encoding="utf-8"))


def apply(samples: list[Sample], path: Path, policy: Literal["drop", "down-weight"]) -> list[Sample]:
    """samples without the suspects of a suspects.csv, or with their weights lowered. The order is kept.

    A line that was deleted from the file keeps its face. Raises LineamentError on a file of other samples.
    """
    weight_of = _read(path)
    faces = _ordinals(samples)
    if not weight_of.keys() & set(faces) and weight_of:
        image, face = next(iter(weight_of))
        raise LineamentError(
            f"none of the {len(weight_of)} suspects in {path} is in the data set, the first is face {face} of {image}; "
            "is the file of another data set? make one with `python -m train.suspects`"
        )
    kept = [
        sample if key not in weight_of else replace(sample, weight=sample.weight * weight_of[key])
        for sample, key in zip(samples, faces)
        if policy == "down-weight" or key not in weight_of
    ]
    done = "dropped" if policy == "drop" else "down-weighted"
    log.info("%d of %d faces %s as suspects, by %s", len(weight_of.keys() & set(faces)), len(samples), done, path)
    return kept


def _ordinals(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """Each sample's picture, and which of the picture's faces it is: 0, 1, ... in the order of the list."""
    seen: Counter[str] = Counter()
    keys = []
    for sample in samples:
        keys.append((sample.name, seen[sample.name]))
        seen[sample.name] += 1
    return keys


def _read(path: Path) -> dict[tuple[str, int], float]:
    if not os.path.isfile(path):
        raise LineamentError(f"no list of suspects at {path}; make one with `python -m train.suspects`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LineamentError(f"cannot read the suspects in {path}: {error}; make them anew") from error
    reader = csv.DictReader(io.StringIO(text))
    try:
        if missing := [name for name in COLUMNS[:4] if name not in (reader.fieldnames or ())]:
            raise LineamentError(
                f"{path} lacks the columns {', '.join(missing)}; it must begin with {','.join(COLUMNS)}"
            )
        weight_of = {}
        for row in reader:
            try:
                face, weight = int(row["face"]), float(row["weight"])
            except (TypeError, ValueError) as error:
                raise LineamentError(
                    f"{path} line {reader.line_num}: {error}; wanted a face number and a weight"
                ) from error
            if not 0 <= weight <= 1:
                raise LineamentError(f"{path} line {reader.line_num}: weight is {weight}, wanted 0 to 1")
            weight_of[row["image"], face] = weight
    except csv.Error as error:
        raise LineamentError(f"{path} line {reader.line_num}: is no row of CSV: {error}; correct it") from error
    return weight_of


def save_predictions(path: Path, samples: Sequence[Sample], predictions: F32) -> None:
    """predictions.npz: points (N, K, 2) and the names (N,) they belong to."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, points=predictions, names=np.array([sample.name for sample in samples]))
    write_atomically(path, lambda temp: temp.write_bytes(buffer.getvalue()))


def load_predictions(path: Path, samples: Sequence[Sample]) -> F32:
    """Raises LineamentError on a file that is damaged or of other samples."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            points, names = arrays["points"], arrays["names"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LineamentError(
            f"cannot read predictions from {path} ({error}); wanted a predictions.npz of `python -m train.suspects`"
        ) from error
    if names.tolist() != [sample.name for sample in samples]:
        raise LineamentError(
            f"{path} has {len(names)} faces that are not the data set's {len(samples)}, in its order; make it anew"
        )
    return np.asarray(points, np.float32)


# ---- the command line


@dataclass(frozen=True)
class SuspectsConfig:
    """Ranks the training faces whose labels are in doubt. Training flags say what the folds are trained with."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/suspects")
    """Folder for suspects.csv, ranking.csv of all faces, suspects.jpg, predictions.npz, and the folds' runs in place of
    --run."""
    folds: int = 5
    """How many times to train, each time without one part of the pictures. More is better and slower."""
    predictions: Path | None = None
    """predictions.npz of an earlier time, instead of training."""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(SuspectsConfig, args=args, prog="python -m train.suspects", description=SuspectsConfig.__doc__)
    for line in report(cfg):
        print(line)
    return 0


def report(cfg: SuspectsConfig, learn: Learn | None = None) -> list[str]:
    """Writes the files; returns what to print. Of several data sets it is the first that is searched."""
    training = replace(cfg.training, run=cfg.out)
    schema = SCHEMAS[training.schema]
    samples = shifted(read(training.data[0], "train", schema), training.label_shift_px[0])
    if cfg.predictions:
        predictions = load_predictions(cfg.predictions, samples)
    else:
        predictions = cross_validate(training, samples, cfg.folds, learn)
        save_predictions(cfg.out / "predictions.npz", samples, predictions)
    suspects = find(samples, predictions, schema)
    write(suspects, samples, cfg.out / "suspects.csv")
    ranking = rank(samples, predictions, schema)
    _write_ranking(ranking, samples, cfg.out / "ranking.csv")
    shown = {s.index: f"{s.score:.1f} {s.reasons[0]}" for s in suspects[:WORST]}
    for index, percent in ranking[:WORST]:
        if len(shown) < WORST:
            shown.setdefault(index, f"no suspect, {percent:.1f} %")
    tiles = [tile(samples[index], predictions[index], caption, schema) for index, caption in shown.items()]
    sheet(tiles, cfg.out / "suspects.jpg", columns=6)
    lines = [f"{len(suspects)} of {len(samples)} faces are suspect; {cfg.out}/suspects.jpg shows the worst"]
    for suspect in suspects[:PRINTED]:
        sample = samples[suspect.index]
        lines.append(f"{suspect.score:6.1f}  face {suspect.index + 1}  {sample.name}: {'; '.join(suspect.reasons)}")
    if suspects:
        lines.append("delete from suspects.csv what is right as it is, and then:")
        lines.append(
            f"python -m train --data {training.data[0]} --suspects {cfg.out}/suspects.csv --suspect-policy drop"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
