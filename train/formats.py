"""Formats of labelled faces: WFLW's lists, CSV, JSONL, .pts and packs. Each reader yields a Row or a Problem a face."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np

from lineament.landmarks.schema import WFLW98, Schema, convert
from lineament.landmarks.types import F32, LineamentError
from lineament.train.sample import ATTRIBUTES, PACKED_LIST, Problem, Sample, in_pack, opened, stamp_ns

Split = Literal["train", "test"]


LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"


HOW_TO_GET = (
    "WFLW is at https://wywu.github.io/projects/LAB/WFLW.html: unpack WFLW_images.tar.gz and WFLW_annotations.tar.gz "
    "into one folder and give that folder"
)


OUTSIDE = 0.3
"""points may leave the picture by this share of the face, as a cut-off chin does; beyond, the label is wrong"""


FARTHEST_PX = 1e6
"""no picture has a coordinate beyond"""


_N_WFLW = 2 * len(WFLW98) + 4 + len(ATTRIBUTES)


_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


_TEST_FOLDERS = {"test", "testset", "ibug", "01_indoor", "02_outdoor"}


_BOX = ("left", "top", "right", "bottom")


class Row(NamedTuple):
    """A sample, and where it was read."""

    file: str
    line: int
    sample: Sample


def expanded(root: Path) -> Path:
    """root with its ~ replaced; left as it is where there is no such user."""
    return Path(os.path.expanduser(root))


def rows_of(root: Path, split: Split, schema: Schema) -> Iterator[Row | Problem]:
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
    pack, member = in_pack(path)
    try:
        data = opened(pack).read(member) if pack else path.read_bytes()
    except (KeyError, BadZipFile) as error:
        raise LineamentError(f"{pack} is no pack: {error}; write one with `python -m train.pack`") from error
    except OSError as error:
        raise LineamentError(f"cannot read the list {path}: {error.strerror}; check its rights") from error
    # whatever ends its lines: a list may come from any system
    return TextIOWrapper(BytesIO(data), "utf-8-sig", "replace").read()


def _wflw(path: Path, root: Path, schema: Schema) -> Iterator[Row | Problem]:
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
            what = f"holds something other than {_N_WFLW} numbers and a name: {odd(fields)!r}"
            yield Problem(path.name, number, "bad number", what, restore)
            continue
        points, rect, flags = np.split(values, [2 * len(WFLW98), 2 * len(WFLW98) + 4])
        points = convert(points.reshape(-1, 2), WFLW98, schema)
        held = frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags) if flag)
        yield _checked(Sample(name, points, rect, held, root / "WFLW_images" / name), path.name, number)


def _jsonl(path: Path, schema: Schema) -> Iterator[Row | Problem]:
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
            rect = bounds(points) if box is None else np.array(box, np.float64)
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


def _csv(path: Path, schema: Schema) -> Iterator[Row | Problem]:
    reader = csv.DictReader(_text(path).split("\n"), skipinitialspace=True)
    try:
        yield from _csv_rows(path, reader, schema)
    except csv.Error as error:
        next_ = "correct or delete the row; what stands below it was not read"
        yield Problem(path.name, reader.line_num, "malformed", f"is no row of CSV: {error}", next_)


def _csv_rows(path: Path, reader: csv.DictReader[str], schema: Schema) -> Iterator[Row | Problem]:
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
            what = f"holds something other than numbers: {odd(fields)!r}"
            yield Problem(path.name, number, "bad number", what, "correct or delete the row")
            continue
        points = values[: 2 * k].reshape(k, 2)
        rect = values[2 * k : 2 * k + 4] if any(box) else bounds(points)
        attributes = frozenset((row.get("attributes") or "").split())
        sample = Sample(row["image"], points, rect, attributes, path.parent / row["image"], float(values[-1]))
        yield _checked(sample, path.name, number)


def _pts(files: Sequence[Path], root: Path, schema: Schema) -> Iterator[Row | Problem]:
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
            what = f"holds something other than numbers: {odd(fields)!r}"
            yield Problem(file, 0, "bad number", what, "correct or delete the file")
            continue
        # MATLAB counts pixels from 1
        points = values.reshape(-1, 2) - 1
        name = picture.relative_to(root).as_posix()
        yield _checked(Sample(name, points, bounds(points), frozenset(), picture), file, 0)


def _checked(sample: Sample, file: str, line: int) -> Row | Problem:
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
    return Row(file, line, sample)


def _numbers(fields: Sequence[str]) -> F32 | None:
    """None where one is no finite number."""
    try:
        values = np.array(fields, np.float64)
    except ValueError:
        return None
    return values.astype(np.float32) if _are_finite(values) else None


def _are_finite(*values: Iterable[Any]) -> bool:
    return all(bool((np.abs(np.asarray(some, np.float64)) < FARTHEST_PX).all()) for some in values)


def odd(fields: Sequence[str]) -> str:
    """The first field that is no number."""
    return next((field for field in fields if _numbers([field]) is None), "")


def bounds(points: Any) -> Any:
    """(K, 2) -> (4,) xyxy."""
    return np.concatenate([points.min(0), points.max(0)])
