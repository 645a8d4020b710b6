"""Labelled faces: what a sample is, and the readers of WFLW, CSV, JSONL and .pts. Checking them. No torch.

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

import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from zipfile import BadZipFile, ZipFile

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import apply, crop_from_frame, warp
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema, convert
from lineament.landmarks.types import F32, F64, U8, LineamentError
from lineament.train.sheet import TILE_PX, Tile, sheet

Split = Literal["train", "test"]

ATTRIBUTES = ("pose", "expression", "illumination", "make-up", "occlusion", "blur")
PACKED_LIST = "train.jsonl"
"""in a pack"""
LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"
HOW_TO_GET = (
    "WFLW is at https://wywu.github.io/projects/LAB/WFLW.html: unpack WFLW_images.tar.gz and WFLW_annotations.tar.gz "
    "into one folder and give that folder"
)

OUTSIDE = 0.3
"""points may leave the picture by this share of the face, as a cut-off chin does; beyond, the label is wrong"""
SAME = 0.01
"""two labels of one picture that nowhere differ by more than this share of the face are one label, given twice"""
FARTHEST_PX = 1e6
"""no picture has a coordinate beyond"""

_N_WFLW = 2 * len(WFLW98) + 4 + len(ATTRIBUTES)
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TEST_FOLDERS = {"test", "testset", "ibug", "01_indoor", "02_outdoor"}
_BOX = ("left", "top", "right", "bottom")


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
    point_weights: F32 | None = None
    """(K,) what each point counts beside the others, 1 on average; None: all alike"""
    group: str = ""
    """faces of one group are held out together; without one, see group_of"""

    def bgr(self) -> U8:
        """(H, W, 3) uint8, read from disk or out of a pack."""
        image = _picture(self.image_path)
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
        text = f"{self.file} line {self.line}: {self.what}; {self.next}"
        # a row may hold line breaks, commands for a terminal and what is no letter
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read(root: Path, split: Split, schema: Schema = WFLW98, problems: list[Problem] | None = None) -> list[Sample]:
    """The samples of one split of the data set at root, in its order.

    Raises LineamentError at the first row that is no good, or, given `problems`, adds it there and goes on.
    """
    samples: list[Sample] = []
    for row in _rows(_expanded(root), split, schema):
        if isinstance(row, _Row):
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


# ---- pictures: files, or members of a pack, whose path goes on behind the .zip


def stamp_ns(path: Path) -> int | None:
    """When the picture, or the pack that it lies in, was last changed; None where there is none."""
    pack, member = _in_pack(path)
    if pack:
        return os.stat(pack).st_mtime_ns if os.path.isfile(pack) and member in _members(_opened(pack)) else None
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else None


def _picture(path: Path) -> U8 | None:
    """(H, W, 3) BGR; None for what is no picture."""
    pack, member = _in_pack(path)
    try:
        if pack:
            image = cv2.imdecode(np.frombuffer(_opened(pack).read(member), np.uint8), cv2.IMREAD_COLOR)
        else:
            image = cv2.imread(str(path))
    except (cv2.error, KeyError, OSError, BadZipFile):  # cv2's is of one that claims thousands of megapixels
        return None
    return None if image is None else np.asarray(image, np.uint8)


def _in_pack(path: Path) -> tuple[Path | None, str]:
    """The pack and the name in it; (None, "") for a file of its own."""
    pack = next((parent for parent in path.parents if parent.suffix.lower() == ".zip"), None)
    return (pack, path.relative_to(pack).as_posix()) if pack and os.path.isfile(pack) else (None, "")


@cache
def _opened(pack: Path) -> ZipFile:
    """Kept open: it would read its directory of thousands of pictures again for each."""
    try:
        return ZipFile(pack)
    except (OSError, BadZipFile) as error:
        raise LineamentError(f"cannot read the pack {pack}: {error}; copy it again, or write it again") from error


@cache
def _members(pack: ZipFile) -> frozenset[str]:
    return frozenset(pack.namelist())


# ---- readers: each yields a _Row or a Problem a face


class _Row(NamedTuple):
    """A sample, and where it was read."""

    file: str
    line: int
    sample: Sample


def _expanded(root: Path) -> Path:
    """root with its ~ replaced; left as it is where there is no such user."""
    return Path(os.path.expanduser(root))


def _rows(root: Path, split: Split, schema: Schema) -> Iterator[_Row | Problem]:
    # os.path's questions bear any name and any rights; Path's raise at some
    if os.path.isfile(root) and root.suffix.lower() in (".jsonl", ".csv"):
        return (_jsonl if root.suffix.lower() == ".jsonl" else _csv)(root, schema)
    if os.path.isfile(root) and root.suffix.lower() == ".zip":
        return _jsonl(root / PACKED_LIST, schema)
    if os.path.isfile(path := root / LISTS.format(split=split)):
        if not os.path.isdir(root / "WFLW_images"):
            raise LineamentError(f"{root} holds WFLW's lists but no WFLW_images; {HOW_TO_GET}")
        return _wflw(path, root, schema)
    if os.path.isdir(root / "WFLW_annotations"):
        raise LineamentError(f"no list at {path}; {HOW_TO_GET}")
    both = [path for suffix in (".jsonl", ".csv") if os.path.isfile(path := root / f"{split}{suffix}")]
    if len(both) > 1:
        raise LineamentError(f"{root} holds both {both[0].name} and {both[1].name}; give the one that is meant")
    if both:
        return (_jsonl if both[0].suffix == ".jsonl" else _csv)(both[0], schema)
    if os.path.isdir(root) and (packs := sorted(path for path in root.glob("*.zip") if os.path.isfile(path))):
        if split == "test":
            raise LineamentError(f"no test data at {root}: packs are for training; give a pack by itself to use it so")
        return chain.from_iterable(_jsonl(pack / PACKED_LIST, schema) for pack in packs)
    if os.path.isdir(root):
        # a pipe among them would be waited for
        listed = (path for path in root.rglob("*.pts") if os.path.isfile(path))
        found = sorted(path for path in listed if _split_of(path, root) == split)
        if found:
            return _pts(found, root, schema)
        inner = [root / name for name in sorted(os.listdir(root)) if os.path.isdir(root / name / "WFLW_annotations")]
        if inner:
            raise LineamentError(f"{root} is not the data set itself; give the folder within it: {inner[0]}")
    there = "" if os.path.exists(root) else "; there is nothing of that name"
    raise LineamentError(
        f"no {split} data at {root}{there}: neither WFLW's {LISTS.format(split=split)}, nor {split}.jsonl, "
        f"{split}.csv, nor .pts files; {HOW_TO_GET}"
    )


def _split_of(path: Path, root: Path) -> Split:
    """Of a .pts file, by the folders that it lies in from root on."""
    folders = {root.resolve().name.lower(), *(part.lower() for part in path.relative_to(root).parts[:-1])}
    return "test" if folders & _TEST_FOLDERS else "train"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that hold anything."""
    # str.splitlines would also break at the odd separators that a name may hold
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


def _text(path: Path) -> str:
    pack, member = _in_pack(path)
    try:
        data = _opened(pack).read(member) if pack else path.read_bytes()
    except (KeyError, BadZipFile) as error:
        raise LineamentError(f"{pack} is no pack: {error}; write one with `python -m train.pack`") from error
    except OSError as error:
        raise LineamentError(f"cannot read the list {path}: {error.strerror}; check its rights") from error
    # whatever ends its lines: a list may come from any system
    return TextIOWrapper(BytesIO(data), "utf-8-sig", "replace").read()


def _wflw(path: Path, root: Path, schema: Schema) -> Iterator[_Row | Problem]:
    restore = "restore the line from WFLW_annotations.tar.gz"
    for number, line in _lines(path):
        # a name may hold spaces: it is all that follows the numbers
        *fields, name = line.strip().split(None, _N_WFLW)
        if len(fields) != _N_WFLW:
            what = f"{len(fields)} numbers before the name, expected {_N_WFLW}"
            yield Problem(path.name, number, "wrong count", what, restore)
            continue
        values = _numbers(fields)
        if values is None:
            what = f"holds something other than {_N_WFLW} numbers and a name: {_odd(fields)!r}"
            yield Problem(path.name, number, "bad number", what, restore)
            continue
        points, rect, flags = np.split(values, [2 * len(WFLW98), 2 * len(WFLW98) + 4])
        points = convert(points.reshape(-1, 2), WFLW98, schema)
        held = frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags) if flag)
        yield _checked(Sample(name, points, rect, held, root / "WFLW_images" / name), path.name, number)


def _jsonl(path: Path, schema: Schema) -> Iterator[_Row | Problem]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
            name, given, box = row["image"], row["points"], row.get("box_xyxy")
            attributes = frozenset(row.get("attributes") or ())
            weight = float(1.0 if row.get("weight") is None else row["weight"])
            group = row.get("group") or ""
            each = row.get("point_weights")
            point_weights = None if each is None or given is None else np.array(each, np.float64)
            if not isinstance(name, str) or not isinstance(group, str):
                raise TypeError(f"image is {name!r} and group {group!r}, wanted a path and a name")
            if given is None and box is None:
                raise KeyError("box_xyxy")
            points = np.full((len(schema), 2), np.nan) if given is None else np.array(given, np.float64)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            what = f"is no row of a face: {type(error).__name__}: {str(error)[:200]}"
            yield Problem(path.name, number, "malformed", what, 'write {"image": ..., "points": [[x, y], ...]}')
            continue
        if points.shape != (len(schema), 2):
            what = f"points of shape {points.shape}, expected ({len(schema)}, 2)"
            yield Problem(path.name, number, "wrong count", what, f"give the points of {schema.name}")
            continue
        try:
            rect = _bounds(points) if box is None else np.array(box, np.float64)
        except (ValueError, TypeError, OverflowError):
            rect = np.zeros(0)
        if rect.shape != (4,):
            what = f"box_xyxy is {str(box)[:60]}, expected 4 numbers"
            yield Problem(path.name, number, "wrong count", what, "give left, top, right, bottom, or leave it out")
            continue
        if point_weights is not None and (point_weights.shape != (len(schema),) or not (point_weights >= 0).all()):
            what = f"point_weights of shape {point_weights.shape}, expected {len(schema)} numbers of at least 0"
            yield Problem(path.name, number, "wrong count", what, "give one a point, or leave them out")
            continue
        if not _are_finite(rect, [weight], () if point_weights is None else point_weights) or (
            given is not None and not _are_finite(points)
        ):
            what = "holds a number that is not finite, or too large for a picture"
            yield Problem(path.name, number, "bad number", what, "correct or delete the row")
            continue
        sample = Sample(
            name,
            points.astype(np.float32),
            rect.astype(np.float32),
            attributes,
            path.parent / name,
            weight,
            None if point_weights is None else point_weights.astype(np.float32),
            group,
        )
        yield _checked(sample, path.name, number)


def _csv(path: Path, schema: Schema) -> Iterator[_Row | Problem]:
    reader = csv.DictReader(_text(path).split("\n"), skipinitialspace=True)
    try:
        yield from _csv_rows(path, reader, schema)
    except csv.Error as error:
        next_ = "correct or delete the row; what stands below it was not read"
        yield Problem(path.name, reader.line_num, "malformed", f"is no row of CSV: {error}", next_)


def _csv_rows(path: Path, reader: csv.DictReader[str], schema: Schema) -> Iterator[_Row | Problem]:
    k = len(schema)
    wanted = ["image", *(f"{axis}{i}" for i in range(k) for axis in "xy")]
    text = f"image,x0,y0,...,x{k - 1},y{k - 1}[,{','.join(_BOX)}][,attributes][,weight]"
    header = list(reader.fieldnames or ())
    if missing := [name for name in wanted if name not in header]:
        what = f"the header lacks {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
        yield Problem(path.name, 1, "header", what, f"write {text}, the points of {schema.name}")
        return
    if f"x{k}" in header:
        what = f"the header has x{k}: more points than the {k} of {schema.name}"
        yield Problem(path.name, 1, "header", what, f"write {text}, or choose another --schema")
        return
    for row in reader:
        number = reader.line_num
        cells = [row[name] for name in header if name is not None]
        if None in row or None in cells:
            count = len(header) + len(row.get(None) or ()) - sum(cell is None for cell in cells)
            what = f"has {count} columns, the header {len(header)}"
            yield Problem(path.name, number, "wrong count", what, "correct or delete the row")
            continue
        box = [row.get(name) or "" for name in _BOX]
        fields = [*(row[name] for name in wanted[1:]), *(box if any(box) else ()), row.get("weight") or "1"]
        values = _numbers(fields)
        if values is None:
            what = f"holds something other than numbers: {_odd(fields)!r}"
            yield Problem(path.name, number, "bad number", what, "correct or delete the row")
            continue
        points = values[: 2 * k].reshape(k, 2)
        rect = values[2 * k : 2 * k + 4] if any(box) else _bounds(points)
        attributes = frozenset((row.get("attributes") or "").split())
        sample = Sample(row["image"], points, rect, attributes, path.parent / row["image"], float(values[-1]))
        yield _checked(sample, path.name, number)


def _pts(files: Sequence[Path], root: Path, schema: Schema) -> Iterator[_Row | Problem]:
    for path in files:
        file = path.relative_to(root).as_posix()
        beside = (path.with_suffix(end) for suffix in _PICTURES for end in (suffix, suffix.upper()))
        picture = next((p for p in beside if os.path.isfile(p)), path.with_suffix(_PICTURES[0]))
        body = re.search(r"\{(.*?)\}", _text(path), re.DOTALL)
        fields = body[1].split() if body else []
        if len(fields) != 2 * len(schema):
            what = f"{len(fields)} numbers between the braces, expected {2 * len(schema)}"
            yield Problem(file, 0, "wrong count", what, f"give the {len(schema)} points of {schema.name}")
            continue
        values = _numbers(fields)
        if values is None:
            what = f"holds something other than numbers: {_odd(fields)!r}"
            yield Problem(file, 0, "bad number", what, "correct or delete the file")
            continue
        # MATLAB counts pixels from 1
        points = values.reshape(-1, 2) - 1
        name = picture.relative_to(root).as_posix()
        yield _checked(Sample(name, points, _bounds(points), frozenset(), picture), file, 0)


def _checked(sample: Sample, file: str, line: int) -> _Row | Problem:
    """The row, unless something about it makes it useless for training."""
    faceless = np.isnan(sample.points).all()
    if not faceless and not np.ptp(sample.points, axis=0).max() > 0:
        return Problem(file, line, "flat", f"{sample.name}: all points are one", "label it again")
    width, height = sample.rect_xyxy[2:] - sample.rect_xyxy[:2]
    if min(width, height) < 0 or max(width, height) <= 0:
        what = f"{sample.name}: the box {sample.rect_xyxy.tolist()} is empty"
        return Problem(file, line, "empty box", what, "give left, top, right, bottom, the lower first")
    if unknown := sorted(map(str, sample.attributes.difference(ATTRIBUTES))):
        what = f"{sample.name}: unknown attribute {', '.join(unknown)}"
        return Problem(file, line, "attribute", what, f"choose from {', '.join(ATTRIBUTES)}")
    if sample.weight < 0:
        what = f"{sample.name}: weight {sample.weight:g} is below 0"
        return Problem(file, line, "weight", what, "give 0 to 1, how far the label is to be trusted")
    if stamp_ns(sample.image_path) is None:
        what = f"there is no {sample.image_path}"
        return Problem(file, line, "missing picture", what, "unpack the pictures, or delete the row")
    return _Row(file, line, sample)


def _numbers(fields: Sequence[str]) -> F32 | None:
    """None where one is no finite number."""
    try:
        values = np.array(fields, np.float64)
    except ValueError:
        return None
    return values.astype(np.float32) if _are_finite(values) else None


def _are_finite(*values: Iterable[Any]) -> bool:
    return all(bool((np.abs(np.asarray(some, np.float64)) < FARTHEST_PX).all()) for some in values)


def _odd(fields: Sequence[str]) -> str:
    """The first field that is no number."""
    return next((field for field in fields if _numbers([field]) is None), "")


def _bounds(points: Any) -> Any:
    """(K, 2) -> (4,) xyxy."""
    return np.concatenate([points.min(0), points.max(0)])


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


def _read_all(root: Path, split: Split, schema: Schema) -> tuple[list[_Row], list[Problem]]:
    rows, problems = list[_Row](), list[Problem]()
    for row in _rows(_expanded(root), split, schema):
        if isinstance(row, _Row):
            rows.append(row)
        else:
            problems.append(row)
    return rows, problems


def _odd_rows(rows: Sequence[_Row], schema: Schema) -> Iterator[Problem]:
    """What a row does not tell by itself, in the rows' order."""
    sizes = _sizes({row.sample.image_path for row in rows})
    seen: dict[Path, list[_Row]] = {}
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
        image = _picture(path)
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
    """Also write this picture of some faces with their points, .png or .jpg."""
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
    rows, problems = list[_Row](), list[Problem]()
    for split in _splits(cfg):
        found, refused = _read_all(cfg.root, split, schema)
        rows += found
        problems += refused
        pictures = len({row.sample.image_path for row in found})
        name = cfg.root.name if os.path.isfile(_expanded(cfg.root)) else split
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
    if os.path.isfile(_expanded(cfg.root)):
        return ["train"]
    there: list[Split] = []
    missing: list[LineamentError] = []
    for split in ("train", "test"):
        try:
            _rows(_expanded(cfg.root), split, SCHEMAS[cfg.schema])
            there.append(split)
        except LineamentError as error:
            missing.append(error)
            absent = split
    if not there or (missing and os.path.isdir(_expanded(cfg.root) / "WFLW_annotations")):
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
