"""Labelled faces: reading data sets, holding faces out, checking. No torch.

    python -m train.data check /path/to/WFLW --sheet faces.png

What is read:

    WFLW     the official folder: WFLW_images/ and WFLW_annotations/list_98pt_rect_attr_train_test/
    JSONL    a line a face: {"image": "a.jpg", "points": [[x, y], ...]}, and if there: "box_xyxy": [4 numbers],
             "attributes": ["pose", ...], "weight": 0..1, "point_weights": [one a point, 1 on average],
             "group": "a person". Points null: no face is there, but a box.
    CSV      image,x0,y0,x1,y1,... and if there: left,top,right,bottom (the box), attributes ("pose blur"), weight
    .pts     as of 300W: beside each picture a file of the same name; its numbers count from 1. Folders named test,
             testset, ibug, 01_Indoor and 02_Outdoor are the test split, all others train
    packs    the .zip files that `python -m train.pack` writes: train.jsonl and its pictures, read without unpacking.
             A folder of packs is one data set

Paths of pictures start at the list's own folder. A folder that holds train.jsonl or train.csv (and test.jsonl, ...) is
read too; a .jsonl or .csv given by itself serves as either split. Points are in pixels, an integer is a pixel's centre.
Keys and columns of other names are passed over.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro
from tqdm import tqdm

from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import apply, crop_from_frame, warp
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema
from lineament.landmarks.types import F64, LineamentError
from lineament.train.formats import OUTSIDE, Row, Split, expanded, rows_of
from lineament.train.sample import Problem, Sample, picture
from lineament.train.sheet import TILE_PX, Tile, sheet

SAME = 0.01
"""two labels of one picture that nowhere differ by more than this share of the face are one label, given twice"""


def read(root: Path, split: Split, schema: Schema = WFLW98, problems: list[Problem] | None = None) -> list[Sample]:
    """The samples of one split of the data set at root, in its order.

    Raises LineamentError at the first row that is no good, or, given `problems`, adds it there and goes on.
    """
    samples: list[Sample] = []
    for row in rows_of(expanded(root), split, schema):
        if isinstance(row, Row):
            samples.append(row.sample)
        elif problems is None:
            raise LineamentError(f"{row}; `python -m train.data check {root}` lists all that is wrong")
        else:
            problems.append(row)
    return samples


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(kept, held out): about `share` of the samples go, whole groups at a time, so that no face is on both sides.

    Where share is above 0 at least one group goes, and at least one stays.
    """
    groups = np.unique([group_of(sample) for sample in samples])
    wanted, held = share * len(samples), set[str]()
    sizes = Counter(group_of(sample) for sample in samples)
    count = 0
    for group in np.random.default_rng(seed).permutation(groups):
        enough = count + sizes[group] / 2 > wanted
        if (enough and (held or share <= 0)) or count + sizes[group] == len(samples):
            break
        held.add(str(group))
        count += sizes[group]
    out = [group_of(sample) in held for sample in samples]
    return [s for s, o in zip(samples, out) if not o], [s for s, o in zip(samples, out) if o]


def read_sets(roots: Sequence[Path], label_shift_px: Sequence[float], schema: Schema) -> list[list[Sample]]:
    """The training split of each data set, less its label shift."""
    return [shifted(read(root, "train", schema), px) for root, px in zip(roots, shift_of_each(label_shift_px, roots))]


def shift_of_each(label_shift_px: Sequence[float], roots: Sequence[Path]) -> tuple[float, ...]:
    """One number serves all data sets. Raises ValueError where there is neither one nor one a set."""
    if len(label_shift_px) not in (1, len(roots)):
        raise ValueError(
            f"label_shift_px has {len(label_shift_px)} numbers for {len(roots)} data sets; give one, or one a set"
        )
    return tuple(label_shift_px) * (len(roots) if len(label_shift_px) == 1 else 1)


def shifted(samples: Sequence[Sample], px: float) -> list[Sample]:
    """The samples with px taken from every coordinate of their points: for labels that count from a pixel's corner."""
    return [replace(sample, points=sample.points - np.float32(px)) if px else sample for sample in samples]


def group_of(sample: Sample) -> str:
    """What must stay together: the sample's own group, or a picture and its numbered versions (a_0.png ... a_9.png)."""
    return sample.group or re.sub(r"_\d$", "", str(Path(sample.name).with_suffix("")))


# ---- checking


class Checked(NamedTuple):
    """What check() found."""

    samples: list[Sample]
    """those that load, the odd ones among them too"""
    problems: list[Problem]


def check(root: Path, split: Split, schema: Schema = WFLW98) -> Checked:
    """All samples that load, and all that is wrong: what read() refuses, and what only the pictures tell."""
    rows, problems = _read_all(root, split, schema)
    return Checked([row.sample for row in rows], [*problems, *_odd_rows(rows, schema)])


def _read_all(root: Path, split: Split, schema: Schema) -> tuple[list[Row], list[Problem]]:
    rows, problems = list[Row](), list[Problem]()
    for row in rows_of(expanded(root), split, schema):
        if isinstance(row, Row):
            rows.append(row)
        else:
            problems.append(row)
    return rows, problems


def _odd_rows(rows: Sequence[Row], schema: Schema) -> Iterator[Problem]:
    """What a row does not tell by itself, in the rows' order."""
    sizes = _sizes({row.sample.image_path for row in rows})
    seen: dict[Path, list[Row]] = {}
    left, right = schema.eye_corners
    for row in rows:
        file, line, sample = row
        if (size := sizes[sample.image_path]) is None:
            yield Problem(file, line, "unreadable", f"{sample.image_path} is no picture", "copy it again")
            continue
        earlier = seen.setdefault(sample.image_path, [])
        if twin := next((other for other in earlier if _is_same(other.sample, sample)), None):
            what = f"{sample.name} has the points of {twin.file} line {twin.line} again"
            yield Problem(file, line, "duplicate", what, "delete one of the two")
        earlier.append(row)
        if np.isnan(sample.points).all():
            continue
        extent = float(np.ptp(sample.points, axis=0).max())
        # an integer is a pixel's centre: the picture ends half a pixel beyond the last
        beyond = np.maximum(-0.5 - sample.points, sample.points - (np.array(size) - 0.5)).max(1)
        if (outside := float(beyond.max())) > max(1.0, OUTSIDE * extent):
            what = f"{sample.name}: point {int(beyond.argmax())} lies {outside:.0f} px outside the picture, "
            what += f"which is {size[0]}x{size[1]}"
            yield Problem(file, line, "outside", what, "correct the point, or delete the row")
        if (sample.points[left] == sample.points[right]).all():
            what = f"{sample.name}: points {left} and {right}, the eyes' outer corners, are one: it has no NME"
            yield Problem(file, line, "no eyes", what, "correct the points, or delete the row")


def _is_same(one: Sample, other: Sample) -> bool:
    a, b = (np.vstack([sample.points, sample.rect_xyxy.reshape(2, 2)]) for sample in (one, other))
    if np.isnan(a).any() or np.isnan(b).any():
        # of two places without a face, the boxes tell
        return bool(np.array_equal(a, b, equal_nan=True))
    points = len(one.points)
    return bool(np.abs(a - b)[:points].max() <= SAME * float(np.ptp(a[:points], axis=0).max()))


def _sizes(paths: set[Path]) -> dict[Path, tuple[int, int] | None]:
    """Width and height; None for what is no picture. Decodes them: a picture's head says nothing of the rest."""

    def size(path: Path) -> tuple[int, int] | None:
        image = picture(path)
        return None if image is None else (image.shape[1], image.shape[0])

    order = sorted(paths)
    with ThreadPoolExecutor() as pool:
        found = tqdm(pool.map(size, order), total=len(order), desc="reading pictures", disable=None, leave=False)
        return dict(zip(order, found))


# ---- the command line


@dataclass(frozen=True)
class CheckConfig:
    """Looks at every row of a data set and says what is wrong: file, line, what, and what to do about it."""

    root: Annotated[Path, tyro.conf.Positional]
    """The data set, as for `python -m train --data`."""
    split: Literal["both", "train", "test"] = "both"
    """Which list to look at."""
    schema: Literal["wflw98", "ibug68"] = "wflw98"
    """Which points it has."""
    sheet: Path | None = None
    """Also write a sheet of some faces with their points, .png or .jpg."""
    most: int = 50
    """Print at most this many problems."""
    seed: int = 0
    """Chooses the faces of the sheet."""


SHEET_FACES, SHEET_COLUMNS = 24, 6


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 all is well, 1 something is wrong, 2 wrong arguments."""
    app = tyro.extras.SubcommandApp()
    app.command(name="check")(run_check)
    return int(app.cli(args=args, prog="python -m train.data", use_underscores=False))


def run_check(cfg: Annotated[CheckConfig, tyro.conf.arg(name="")]) -> int:
    """Looks at every row of a data set and says what is wrong."""
    schema = SCHEMAS[cfg.schema]
    rows, problems = list[Row](), list[Problem]()
    for split in _splits(cfg):
        found, refused = _read_all(cfg.root, split, schema)
        rows += found
        problems += refused
        pictures = len({row.sample.image_path for row in found})
        name = cfg.root.name if os.path.isfile(expanded(cfg.root)) else split
        print(f"{name}: {len(found)} faces in {pictures} pictures, {len(refused)} rows refused")
    # of both lists together: a face of the one may be in the other too
    problems += _odd_rows(rows, schema)
    for problem in problems[: cfg.most]:
        print(problem)
    if len(problems) > cfg.most:
        print(f"... and {len(problems) - cfg.most} more; --most shows them")
    kinds = Counter(problem.kind for problem in problems)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{len(problems)} problems: {counted}" if problems else "no problems")
    if cfg.sheet:
        unreadable = {(p.file, p.line) for p in problems if p.kind == "unreadable"}
        shown = [row.sample for row in rows if (row.file, row.line) not in unreadable]
        order = np.random.default_rng(cfg.seed).permutation(len(shown))[:SHEET_FACES]
        if not shown:
            raise LineamentError(f"no face of {cfg.root} can be shown; correct the problems first")
        sheet([_tile(shown[i], schema) for i in order], cfg.sheet, SHEET_COLUMNS)
        print(f"wrote {cfg.sheet}: look whether the points lie on the faces")
    return 1 if problems else 0


def _splits(cfg: CheckConfig) -> list[Split]:
    """Those to look at. A list by itself is no split, and of the others a data set may lack one."""
    if cfg.split != "both":
        return [cfg.split]
    if os.path.isfile(expanded(cfg.root)):
        return ["train"]
    there: list[Split] = []
    missing: list[LineamentError] = []
    for split in ("train", "test"):
        try:
            rows_of(expanded(cfg.root), split, SCHEMAS[cfg.schema])
            there.append(split)
        except LineamentError as error:
            missing.append(error)
            absent = split
    if not there or (missing and os.path.isdir(expanded(cfg.root) / "WFLW_annotations")):
        raise missing[0]
    if missing:
        print(f"{absent}: none")
    return there


def _tile(sample: Sample, schema: Schema) -> Tile:
    """The face with some of what is round it."""
    labelled = bool(np.isfinite(sample.points).all())
    card = ModelCard("sheet", schema.name, (TILE_PX, TILE_PX), 1.4)
    crop: F64 = crop_from_frame(sample.points if labelled else sample.rect_xyxy, card)
    rgb = np.ascontiguousarray(warp(sample.bgr(), crop, card.input_hw)[..., ::-1])
    return Tile(rgb, apply(crop, sample.points) if labelled else None, Path(sample.name).stem[-28:])


if __name__ == "__main__":
    sys.exit(main())
