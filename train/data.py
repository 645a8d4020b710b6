"""Labelled faces: what a sample is, and the readers of WFLW, CSV, JSONL and .pts. Checking them. No torch.

    python -m train.data check /path/to/WFLW

What is read:

    WFLW     the official folder: WFLW_images/ and WFLW_annotations/list_98pt_rect_attr_train_test/
    JSONL    a line a face: {"image": "a.jpg", "points": [[x, y], ...]}, and if there: "box_xyxy": [4 numbers],
             "attributes": ["pose", ...], "weight": 0..1. Points null: no face is there, in the box.
    CSV      image,x0,y0,x1,y1,... and if there: left,top,right,bottom,weight
    .pts     as of 300W: beside each picture a file of the same name; its numbers count from 1

Paths of pictures start at the list's own folder. A folder that holds train.jsonl or train.csv (and test.jsonl, ...) is
read too. Points are in pixels, an integer is a pixel's centre.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import numpy as np
import tyro

from landmarks.schema import SCHEMAS, WFLW98, Schema
from landmarks.types import F32, U8, LineamentError
from train.sheet import Tile, sheet

Split = Literal["train", "test"]

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"
HOW_TO_GET = (
    "WFLW is at https://wywu.github.io/projects/LAB/WFLW.html: unpack WFLW_images.tar.gz and WFLW_annotations.tar.gz "
    "into one folder and give that folder"
)

_N_WFLW = 2 * len(WFLW98) + 4 + len(ATTRIBUTES)
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled face."""

    name: str
    """the picture's path in its data set; several faces may share it"""
    points: F32
    """(K, 2) px of the picture; all nan where there is no face"""
    rect_xyxy: F32
    """(4,) px, the box that came with the points, or their bounds"""
    attributes: frozenset[str]
    """those of ATTRIBUTES that hold"""
    image_path: Path
    weight: float = 1.0
    """multiplies this face's loss: how far a pseudo-label is trusted, how far a label is doubted"""

    def bgr(self) -> U8:
        """(H, W, 3) uint8, read from disk."""
        image = cv2.imread(str(self.image_path))
        if image is None:
            raise LineamentError(
                f"cannot read the picture {self.image_path}; is WFLW_images unpacked beside the lists? "
                "`python -m train.data check` names all that is missing"
            )
        return np.asarray(image, np.uint8)


class Problem(NamedTuple):
    """What is wrong with one row, and what to do."""

    file: str
    line: int
    """0 for the whole file"""
    kind: str
    """a word for counting"""
    what: str
    next: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.what}; {self.next}"


def read(root: Path, split: Split, schema: Schema = WFLW98, problems: list[Problem] | None = None) -> list[Sample]:
    """The samples of one split of the data set at root, in its order.

    Raises LineamentError at the first row that is no good, or, given `problems`, adds it there and goes on.
    """
    samples: list[Sample] = []
    for row in _rows(Path(root).expanduser(), split, schema):
        if isinstance(row, Sample):
            samples.append(row)
        elif problems is None:
            raise LineamentError(f"{row}; `python -m train.data check {root}` lists all that is wrong")
        else:
            problems.append(row)
    return samples


def hold_out(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(kept, held out): about `share` of the samples go, whole groups at a time, so that no face is on both sides."""
    groups = np.unique([group_of(sample) for sample in samples])
    wanted, held = share * len(samples), set[str]()
    sizes = Counter(group_of(sample) for sample in samples)
    count = 0
    for group in np.random.default_rng(seed).permutation(groups):
        if count + sizes[group] / 2 > wanted:
            break
        held.add(str(group))
        count += sizes[group]
    out = [group_of(sample) in held for sample in samples]
    return [s for s, o in zip(samples, out) if not o], [s for s, o in zip(samples, out) if o]


def group_of(sample: Sample) -> str:
    """What must stay together: a picture, and pictures that are numbered versions of one (a_0.png ... a_9.png)."""
    return re.sub(r"_\d$", "", str(Path(sample.name).with_suffix("")))


# ---- readers: each yields a Sample or a Problem a row


def _rows(root: Path, split: Split, schema: Schema) -> Iterator[Sample | Problem]:
    if root.is_file() and root.suffix.lower() in (".jsonl", ".csv"):
        return (_jsonl if root.suffix.lower() == ".jsonl" else _csv)(root, schema)
    if (path := root / LISTS.format(split=split)).is_file():
        if schema is not WFLW98:
            raise LineamentError(f"{root} is WFLW, whose schema is {WFLW98.name}, wanted {schema.name}")
        return _wflw(path, root)
    for suffix, reader in ((".jsonl", _jsonl), (".csv", _csv)):
        if (path := root / f"{split}{suffix}").is_file():
            return reader(path, schema)
    folder = root / split if (root / split).is_dir() else root
    if folder.is_dir() and (found := sorted(folder.rglob("*.pts"))) and (folder != root or split == "train"):
        return _pts(found, root, schema)
    if (root / "WFLW_annotations").is_dir():
        raise LineamentError(f"no list at {root / LISTS.format(split=split)}; {HOW_TO_GET}")
    raise LineamentError(
        f"no {split} data at {root}: neither WFLW's lists, nor {split}.jsonl, {split}.csv, nor .pts; {HOW_TO_GET}"
    )


def _wflw(path: Path, root: Path) -> Iterator[Sample | Problem]:
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        # a name may hold spaces: it is all that follows the numbers
        *fields, name = line.strip().split(" ", _N_WFLW)
        if len(fields) != _N_WFLW:
            what = f"{len(fields)} numbers before the name, expected {_N_WFLW}"
            yield Problem(path.name, number, "wrong count", what, "restore the line from WFLW_annotations.tar.gz")
            continue
        values = _numbers(fields)
        if values is None:
            what = f"holds something other than {_N_WFLW} numbers and a name: {_odd(fields)!r}"
            yield Problem(path.name, number, "bad number", what, "restore the line from WFLW_annotations.tar.gz")
            continue
        points, rect, flags = np.split(values, [2 * len(WFLW98), 2 * len(WFLW98) + 4])
        held = frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags) if flag)
        picture = root / "WFLW_images" / name
        yield _checked(Sample(name, points.reshape(-1, 2), rect, held, picture), path.name, number)


def _jsonl(path: Path, schema: Schema) -> Iterator[Sample | Problem]:
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name = row["image"]
            given = row["points"]
            box = row.get("box_xyxy")
            attributes = frozenset(row.get("attributes") or ())
            weight = float(row.get("weight", 1.0))
            if not isinstance(name, str):
                raise TypeError(f"image is {name!r}, wanted a path")
            if given is None and box is None:
                raise KeyError("box_xyxy")
            points = np.full((len(schema), 2), np.nan) if given is None else np.array(given, np.float64)
            rect = _bounds(points) if box is None else np.array(box, np.float64)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"is no row of a face: {type(error).__name__}: {error}"
            yield Problem(path.name, number, "malformed", what, 'write {"image": ..., "points": [[x, y], ...]}')
            continue
        if points.shape != (len(schema), 2) or rect.shape != (4,):
            what = f"points of shape {points.shape} and box {rect.shape}, expected ({len(schema)}, 2) and (4,)"
            yield Problem(path.name, number, "wrong count", what, f"give the points of {schema.name}")
            continue
        if not np.isfinite(rect).all() or not np.isfinite(weight) or (given and not np.isfinite(points).all()):
            yield Problem(
                path.name, number, "bad number", "holds a number that is not finite", "correct or delete the row"
            )
            continue
        sample = Sample(
            name, points.astype(np.float32), rect.astype(np.float32), attributes, path.parent / name, weight
        )
        yield _checked(sample, path.name, number)


def _csv(path: Path, schema: Schema) -> Iterator[Sample | Problem]:
    k = len(schema)
    with path.open(newline="", errors="replace") as file:
        reader = csv.DictReader(file)
        wanted = ["image", *(f"{axis}{i}" for i in range(k) for axis in "xy")]
        if missing := [name for name in wanted if name not in (reader.fieldnames or ())]:
            what = f"the header lacks {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
            yield Problem(
                path.name,
                1,
                "header",
                what,
                f"write image,x0,y0,...,x{k - 1},y{k - 1}[,left,top,right,bottom][,weight]",
            )
            return
        for number, row in enumerate(reader, 2):
            values = _numbers([row[name] or "" for name in wanted[1:]])
            extra = [row.get(name) for name in ("left", "top", "right", "bottom")]
            rect = _numbers([value or "" for value in extra]) if all(extra) else None
            weight = _numbers([row.get("weight") or "1"])
            if values is None or (all(extra) and rect is None) or weight is None:
                what = f"holds something other than numbers: {_odd([row[name] or '' for name in wanted[1:]])!r}"
                yield Problem(path.name, number, "bad number", what, "correct or delete the row")
                continue
            points = values.reshape(k, 2)
            box = _bounds(points) if rect is None else rect
            name = row["image"] or ""
            sample = Sample(
                name, points, np.asarray(box, np.float32), frozenset(), path.parent / name, float(weight[0])
            )
            yield _checked(sample, path.name, number)


def _pts(files: Sequence[Path], root: Path, schema: Schema) -> Iterator[Sample | Problem]:
    for path in files:
        picture = next((p for s in _PICTURES if (p := path.with_suffix(s)).is_file()), path.with_suffix(".jpg"))
        file = str(path.relative_to(root))
        body = re.search(r"\{(.*?)\}", path.read_text(errors="replace"), re.DOTALL)
        fields = body[1].split() if body else []
        values = _numbers(fields)
        if values is None or len(values) != 2 * len(schema):
            what = f"{len(fields)} numbers between the braces, expected {2 * len(schema)}"
            yield Problem(file, 0, "wrong count", what, f"give the {len(schema)} points of {schema.name}")
            continue
        # MATLAB counts pixels from 1
        points = values.reshape(-1, 2) - 1
        name = str(picture.relative_to(root))
        yield _checked(Sample(name, points, _bounds(points).astype(np.float32), frozenset(), picture), file, 0)


def _checked(sample: Sample, file: str, line: int) -> Sample | Problem:
    if sample.image_path.is_file():
        return sample
    return Problem(
        file, line, "missing picture", f"there is no {sample.image_path}", "unpack the pictures, or delete the row"
    )


def _numbers(fields: Sequence[str]) -> F32 | None:
    """None where one is no finite number."""
    try:
        values = np.array(fields, np.float32)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None


def _odd(fields: Sequence[str]) -> str:
    """The first field that is no number."""
    return next((field for field in fields if _numbers([field]) is None), "")


def _bounds(points: Any) -> Any:
    """(K, 2) -> (4,) xyxy."""
    return np.concatenate([points.min(0), points.max(0)])


# ---- checking


def check(root: Path, split: Split, schema: Schema = WFLW98) -> tuple[list[Sample], list[Problem]]:
    """All samples that load, and all that is wrong: what read() finds, and what only the pictures tell."""
    problems: list[Problem] = []
    samples = read(root, split, schema, problems)
    seen: dict[tuple[str, bytes], int] = {}
    sizes: dict[Path, tuple[int, int] | None] = {}
    for i, sample in enumerate(samples):
        where = (split, i + 1)
        if (key := (sample.name, sample.points.tobytes())) in seen:
            what = f"{sample.name} has the points of sample {seen[key] + 1} again"
            problems.append(Problem(*where, "duplicate", what, "delete one"))
        seen.setdefault(key, i)
        if sample.image_path not in sizes:
            image = cv2.imread(str(sample.image_path))
            sizes[sample.image_path] = None if image is None else (image.shape[1], image.shape[0])
        size = sizes[sample.image_path]
        if size is None:
            problems.append(Problem(*where, "unreadable", f"{sample.image_path} is no picture", "copy it again"))
            continue
        if not np.isfinite(sample.points).all():
            continue
        extent = float(np.ptp(sample.points, axis=0).max())
        if not extent > 0:
            problems.append(Problem(*where, "flat", f"{sample.name}: all points are one", "label it again"))
        outside = float(max(-sample.points.min(), *(sample.points.max(0) - size)))
        if outside > max(1.0, OUTSIDE * extent):
            what = f"{sample.name}: a point lies {outside:.0f} px outside the picture, {size[0]}x{size[1]}"
            problems.append(Problem(*where, "outside", what, "correct the point, or delete the row"))
    return samples, problems


OUTSIDE = 0.3
"""points may leave the picture by this share of the face, as a cut-off chin does; beyond, the label is wrong"""


@dataclass(frozen=True)
class CheckConfig:
    """Looks at every row of a data set, says what is wrong, and shows some faces."""

    root: Annotated[Path, tyro.conf.Positional]
    """The data set."""
    splits: tuple[Split, ...] = ("train", "test")
    """Which lists to look at."""
    schema: Literal["wflw98", "ibug68"] = "wflw98"
    """Which points it has."""
    sheet: Path = Path("check.jpg")
    """Where the contact sheet goes."""
    most: int = 50
    """Print at most this many problems of a list."""


def main(args: list[str] | None = None) -> int:
    return run_check(tyro.cli(CheckConfig, prog="python -m train.data check", args=_after_check(args)))


def run_check(cfg: CheckConfig) -> int:
    """Prints what check() finds; 0 when all is well."""
    bad, shown, read_any = 0, list[Sample](), False
    for split in cfg.splits:
        try:
            samples, problems = check(cfg.root, split, SCHEMAS[cfg.schema])
        except LineamentError as error:
            if split == "train" or not read_any:
                print(f"error: {error}", file=sys.stderr)
                return 1
            print(f"{split}: none")
            continue
        read_any = True
        kinds = Counter(problem.kind for problem in problems)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "no problem"
        print(f"{split}: {len(samples)} faces in {len({s.name for s in samples})} pictures, {counted}")
        for problem in problems[: cfg.most]:
            print(f"  {problem}")
        if len(problems) > cfg.most:
            print(f"  ... and {len(problems) - cfg.most} more")
        bad += len(problems)
        order = np.random.default_rng(0).permutation(len(samples))[: 48 // len(cfg.splits)]
        shown += [samples[i] for i in order]
    tiles = [tile for sample in shown if (tile := _tile(sample)) is not None]
    if tiles:
        sheet(tiles, cfg.sheet, columns=8)
        print(f"wrote {cfg.sheet}: look whether the points lie on the faces")
    return 1 if bad else 0


def _tile(sample: Sample) -> Tile | None:
    """The face with some of what is round it."""
    image = cv2.imread(str(sample.image_path))
    if image is None or not np.isfinite(sample.points).all():
        return None
    low, high = sample.points.min(0), sample.points.max(0)
    margin = 0.2 * float((high - low).max())
    x0, y0 = (int(v) for v in np.clip(np.floor(low - margin), 0, None))
    x1, y1 = (int(v) for v in np.ceil(high + margin) + 1)
    cut = image[y0:y1, x0:x1]
    if not cut.size:
        return None
    rgb = np.ascontiguousarray(cut[..., ::-1], np.uint8)
    return Tile(rgb, sample.points - np.array([x0, y0], np.float32), Path(sample.name).stem[-28:])


def _after_check(args: list[str] | None) -> list[str]:
    given = sys.argv[1:] if args is None else args
    if given[:1] != ["check"]:
        if given and given[0] not in ("-h", "--help"):
            raise SystemExit(f"python -m train.data has one command, check; got {given[0]!r}")
        return ["--help"]
    return given[1:]


if __name__ == "__main__":
    sys.exit(main())
