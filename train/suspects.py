"""Finds the training faces whose labels are probably wrong, with models that never saw them.

    python -m train.suspects --data WFLW --folds 5 --out runs/suspects
    python -m train --data WFLW --suspects runs/suspects/suspects.csv --suspect-policy drop

Look at the sheet, delete the lines of suspects.csv whose labels are correct, and pass the file to training.
train.label_errors defines what makes a label suspect.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.files import replaced
from lineament.landmarks.schema import SCHEMAS, Schema
from lineament.landmarks.types import F32, LineamentError
from lineament.train.config import TrainConfig
from lineament.train.crops import CropConfig
from lineament.train.data import group_of, hold_out, read_sets
from lineament.train.evaluate import Predict, evaluate, load_predictor, tile
from lineament.train.label_errors import Suspect, find, rank
from lineament.train.loop import fit
from lineament.train.sample import Sample
from lineament.train.sheet import sheet

log = logging.getLogger("lineament")

COLUMNS = ("image", "face", "score", "weight", "reasons")
WORST = 24
"""faces on the sheet"""
PRINTED = 10


# ---- out-of-fold predictions

Learn = Callable[[TrainConfig, list[Sample], list[Sample]], tuple[Predict, tuple[int, int]]]
"""(config, train, val) -> a model as a function of crops, and their height and width"""


def cross_validate(cfg: TrainConfig, samples: list[Sample], folds: int, learn: Learn | None = None) -> F32:
    """(N, K, 2) px of the pictures: each face predicted by a model trained without its picture.

    Trains `folds` models in subfolders of cfg.run. If interrupted, the same call resumes.
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
            log.info("fold %d: NME %.2f on %d unseen faces", number + 1, scores.total.nme, len(rows))
        # each fold caches crops of most of the data set: gigabytes, not read again after training
        shutil.rmtree(run.parent / "cache", ignore_errors=True)
    return predictions


def _by_crop(
    samples: Sequence[Sample], faces: set[int], crop: CropConfig, schema: Schema
) -> Iterator[tuple[CropConfig, list[int]]]:
    """The faces that have points, grouped by how to crop them.

    An upside-down label usually has left and right exchanged; the face itself is upright. A crop levelled by such a
    label would be upside down, which the model has never seen.
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
        raise LineamentError(f"cannot split {len(groups)} pictures into {folds} folds; wanted 2 to {len(groups)}")
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
    """suspects.csv: one line per suspect, worst first. A face is named by its picture and its index in that picture."""
    face_of = _faces(samples)
    rows = ((*face_of[s.index], s.score, f"{s.weight:.3f}", "; ".join(s.reasons)) for s in suspects)
    _write_csv(path, COLUMNS, rows)


def _write_ranking(ranking: Sequence[tuple[int, float]], samples: Sequence[Sample], path: Path) -> None:
    """ranking.csv: every face, suspect or not."""
    face_of = _faces(samples)
    _write_csv(path, ("image", "face", "percent"), ((*face_of[i], f"{percent:.2f}") for i, percent in ranking))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with replaced(path) as part:
        part.write_text(text.getvalue(), encoding="utf-8")


def apply(samples: list[Sample], path: Path, policy: Literal["drop", "down-weight"]) -> list[Sample]:
    """samples without the suspects in a suspects.csv, or with their weights lowered, in the same order.

    Deleting a line from the file keeps that face. Raises LineamentError if the file is of other samples.
    """
    weight_of = _read(path)
    faces = _faces(samples)
    if not weight_of.keys() & set(faces) and weight_of:
        image, face = next(iter(weight_of))
        raise LineamentError(
            f"none of the {len(weight_of)} suspects in {path} is in the data set, the first is face {face} of {image}; "
            "is the file from another data set? Make one with `python -m train.suspects`"
        )
    kept = [
        sample if key not in weight_of else replace(sample, weight=sample.weight * weight_of[key])
        for sample, key in zip(samples, faces)
        if policy == "down-weight" or key not in weight_of
    ]
    done = "dropped" if policy == "drop" else "down-weighted"
    log.info("%s %d of %d faces as suspects, from %s", done, len(weight_of.keys() & set(faces)), len(samples), path)
    return kept


def _faces(samples: Sequence[Sample]) -> list[tuple[str, int]]:
    """Each sample's picture, and its index among that picture's faces: 0, 1, ... in the order of the list."""
    seen: Counter[str] = Counter()
    keys = []
    for sample in samples:
        keys.append((sample.name, seen[sample.name]))
        seen[sample.name] += 1
    return keys


def _read(path: Path) -> dict[tuple[str, int], float]:
    if not os.path.isfile(path):
        raise LineamentError(f"no suspects file at {path}; make one with `python -m train.suspects`")
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if missing := [name for name in COLUMNS[:4] if name not in (reader.fieldnames or ())]:
            raise LineamentError(
                f"{path} lacks the columns {', '.join(missing)}; the first line must be {','.join(COLUMNS)}"
            )
        weight_of = {}
        for row in reader:
            face, weight = _parsed(row, f"{path} line {reader.line_num}")
            weight_of[row["image"], face] = weight
        return weight_of
    except csv.Error as error:
        raise LineamentError(f"{path} line {reader.line_num}: invalid CSV: {error}; correct the line") from error
    except (OSError, UnicodeDecodeError) as error:
        raise LineamentError(
            f"cannot read the suspects in {path}: {error}; make the file again with `python -m train.suspects`"
        ) from error


def _parsed(row: dict[str, str], where: str) -> tuple[int, float]:
    try:
        face, weight = int(row["face"]), float(row["weight"])
    except (TypeError, ValueError) as error:
        raise LineamentError(f"{where}: {error}; wanted a face index and a weight") from error
    if not 0 <= weight <= 1:
        raise LineamentError(f"{where}: weight is {weight}, wanted 0 to 1")
    return face, weight


def save_predictions(path: Path, samples: Sequence[Sample], predictions: F32) -> None:
    """predictions.npz: points (N, K, 2), and names (N,) of the pictures they are in."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, points=predictions, names=np.array([sample.name for sample in samples]))
    with replaced(path) as part:
        part.write_bytes(buffer.getvalue())


def load_predictions(path: Path, samples: Sequence[Sample]) -> F32:
    """Raises LineamentError if the file is damaged or of other samples."""
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            points, names = arrays["points"], arrays["names"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LineamentError(
            f"cannot read predictions from {path} ({error}); wanted a predictions.npz of `python -m train.suspects`"
        ) from error
    if names.tolist() != [sample.name for sample in samples]:
        raise LineamentError(
            f"the {len(names)} faces in {path} are not the data set's {len(samples)} in the same order; "
            "make the file again with `python -m train.suspects`"
        )
    return np.asarray(points, np.float32)


# ---- the command line


@dataclass(frozen=True)
class SuspectsConfig:
    """Ranks training faces by how doubtful their labels are. The training options apply to the model of each fold."""

    training: Annotated[TrainConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/suspects")
    """Folder for suspects.csv, ranking.csv (all faces), suspects.jpg, predictions.npz and the folds' runs; --run is not
    used."""
    folds: int = 5
    """How many models to train, each without one part of the pictures. More is more accurate and slower."""
    predictions: Path | None = None
    """Read this predictions.npz of an earlier run instead of training."""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(SuspectsConfig, args=args, prog="python -m train.suspects", description=SuspectsConfig.__doc__)
    for line in report(cfg):
        print(line)
    return 0


def report(cfg: SuspectsConfig, learn: Learn | None = None) -> list[str]:
    """Writes the files; returns the lines to print. Searches the first data set only."""
    training = replace(cfg.training, run=cfg.out)
    schema = SCHEMAS[training.schema]
    (samples,) = read_sets(training.data[:1], training.label_shift_px[:1], schema)
    if cfg.predictions:
        predictions = load_predictions(cfg.predictions, samples)
    else:
        predictions = cross_validate(training, samples, cfg.folds, learn)
        save_predictions(cfg.out / "predictions.npz", samples, predictions)
    suspects, ranking = find(samples, predictions, schema), rank(samples, predictions, schema)
    write(suspects, samples, cfg.out / "suspects.csv")
    _write_ranking(ranking, samples, cfg.out / "ranking.csv")
    shown = {s.index: f"{s.score:.1f} {s.reasons[0]}" for s in suspects[:WORST]}
    for index, percent in ranking[:WORST]:
        if len(shown) < WORST:
            shown.setdefault(index, f"not suspect, {percent:.1f} %")
    tiles = [tile(samples[index], predictions[index], caption, schema) for index, caption in shown.items()]
    sheet(tiles, cfg.out / "suspects.jpg", columns=6)
    lines = [f"{len(suspects)} of {len(samples)} faces are suspect; {cfg.out}/suspects.jpg shows the worst"]
    for suspect in suspects[:PRINTED]:
        sample = samples[suspect.index]
        lines.append(f"{suspect.score:6.1f}  face {suspect.index + 1}  {sample.name}: {'; '.join(suspect.reasons)}")
    if suspects:
        command = f"python -m train --data {training.data[0]} --suspects {cfg.out}/suspects.csv --suspect-policy drop"
        lines += ["delete the lines of suspects.csv whose labels are correct, then:", command]
    return lines


if __name__ == "__main__":
    sys.exit(main())
