"""Formats of labelled faces: WFLW's lists, CSV, JSONL, .pts and packs. Readers yield one Row or Problem per face."""

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

from lineament.landmarks.geometry import FARTHEST_PX, bounds
from lineament.landmarks.schema import WFLW98, Schema, convert
from lineament.landmarks.types import F32, F64, LineamentError
from lineament.train.sample import ATTRIBUTES, PACKED_LIST, Problem, Sample, in_pack, opened, stamp_ns

Split = Literal["train", "test"]

LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"
HOW_TO_GET = (
    "WFLW is at https://wywu.github.io/projects/LAB/WFLW.html: unpack WFLW_images.tar.gz and WFLW_annotations.tar.gz "
    "into one folder and pass that folder"
)
OUTSIDE = 0.3
"""points may lie outside the picture by this share of the face, as for a cut-off chin; farther, the label is wrong"""
_N_WFLW = 2 * len(WFLW98) + 4 + len(ATTRIBUTES)
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_TEST_FOLDERS = {"test", "testset", "ibug", "01_indoor", "02_outdoor"}
_BOX = ("left", "top", "right", "bottom")


class Row(NamedTuple):
    """A sample, and where it was read from."""

    file: str
    line: int
    sample: Sample


def expanded(root: Path) -> Path:
    """root with ~ expanded; unchanged if there is no such user."""
    return Path(os.path.expanduser(root))


def rows_of(root: Path, split: Split, schema: Schema) -> Iterator[Row | Problem]:
    # os.path: Path's methods raise on some names and permissions
    if os.path.isfile(root) and root.suffix.lower() in (".jsonl", ".csv"):
        return (_jsonl if root.suffix.lower() == ".jsonl" else _csv)(root, schema)
    if os.path.isfile(root) and root.suffix.lower() == ".zip":
        return _jsonl(root / PACKED_LIST, schema)
    if os.path.isfile(path := root / LISTS.format(split=split)):
        if not os.path.isdir(root / "WFLW_images"):
            raise LineamentError(f"{root} has WFLW's lists but no WFLW_images; {HOW_TO_GET}")
        return _wflw(path, root, schema)
    if os.path.isdir(root / "WFLW_annotations"):
        raise LineamentError(f"no list at {path}; {HOW_TO_GET}")
    both = [path for suffix in (".jsonl", ".csv") if os.path.isfile(path := root / f"{split}{suffix}")]
    if len(both) > 1:
        raise LineamentError(f"{root} has both {both[0].name} and {both[1].name}; pass one of them")
    if both:
        return (_jsonl if both[0].suffix == ".jsonl" else _csv)(both[0], schema)
    if os.path.isdir(root) and (packs := sorted(path for path in root.glob("*.zip") if os.path.isfile(path))):
        if split == "test":
            raise LineamentError(f"no test data at {root}: packs are for training; to test on one, pass its .zip")
        return chain.from_iterable(_jsonl(pack / PACKED_LIST, schema) for pack in packs)
    if os.path.isdir(root):
        # isfile, because reading a pipe would block
        listed = (path for path in root.rglob("*.pts") if os.path.isfile(path))
        found = sorted(path for path in listed if _split_of(path, root) == split)
        if found:
            return _pts(found, root, schema)
        inner = [root / name for name in sorted(os.listdir(root)) if os.path.isdir(root / name / "WFLW_annotations")]
        if inner:
            raise LineamentError(f"{root} is not the data set itself; pass the folder within it: {inner[0]}")
    there = "" if os.path.exists(root) else ", which does not exist"
    packs_too = ", packs of `python -m train.pack`" if split == "train" else ""
    raise LineamentError(
        f"no {split} data at {root}{there}: wanted WFLW's {LISTS.format(split=split)}, {split}.jsonl, "
        f"{split}.csv{packs_too} or .pts files; {HOW_TO_GET}"
    )


def _split_of(path: Path, root: Path) -> Split:
    """The split of a .pts file, from its folders, root included."""
    folders = {root.resolve().name.lower(), *(part.lower() for part in path.relative_to(root).parts[:-1])}
    return "test" if folders & _TEST_FOLDERS else "train"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank."""
    # str.splitlines would also split at separators that a name may contain
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


def _text(path: Path) -> str:
    pack, member = in_pack(path)
    try:
        data = opened(pack).read(member) if pack else path.read_bytes()
    except (KeyError, BadZipFile) as error:
        raise LineamentError(f"{pack} is not a pack: {error}; write one with `python -m train.pack`") from error
    except OSError as error:
        raise LineamentError(f"cannot read the list {path}: {error.strerror}; check its permissions") from error
    # TextIOWrapper accepts the line endings of any system
    return TextIOWrapper(BytesIO(data), "utf-8-sig", "replace").read()


def _wflw(path: Path, root: Path, schema: Schema) -> Iterator[Row | Problem]:
    restore = "restore the line from WFLW_annotations.tar.gz"
    for number, line in _lines(path):
        # a name may contain spaces: it is everything after the numbers
        *fields, name = line.strip().split(None, _N_WFLW)
        if len(fields) != _N_WFLW:
            what = f"{len(fields)} numbers before the name, expected {_N_WFLW}"
            yield Problem(path.name, number, "wrong count", what, restore)
            continue
        values = _numbers(fields)
        if values is None:
            what = f"not {_N_WFLW} numbers and a name: {_odd(fields)!r} is not a number"
            yield Problem(path.name, number, "bad number", what, restore)
            continue
        points, rect, flags = np.split(values, [2 * len(WFLW98), 2 * len(WFLW98) + 4])
        points = convert(points.reshape(-1, 2), WFLW98, schema)
        attributes = frozenset(attribute for attribute, flag in zip(ATTRIBUTES, flags) if flag)
        yield _checked(Sample(name, points, rect, attributes, root / "WFLW_images" / name), path.name, number)


class _Refused(Exception):  # noqa: N818 - becomes a Problem
    """A row's kind of problem, what is wrong, and what to do."""


def _jsonl(path: Path, schema: Schema) -> Iterator[Row | Problem]:
    for number, line in _lines(path):
        try:
            sample = _jsonl_sample(line, path.parent, schema)
        except _Refused as refused:
            yield Problem(path.name, number, *refused.args)
        else:
            yield _checked(sample, path.name, number)


def _jsonl_sample(line: str, folder: Path, schema: Schema) -> Sample:
    k = len(schema)
    try:
        row = json.loads(line)
        name, given, box, each = row["image"], row["points"], row.get("box_xyxy"), row.get("point_weights")
        attributes, group = frozenset(row.get("attributes") or ()), row.get("group") or ""
        weight = float(1.0 if row.get("weight") is None else row["weight"])
        if not isinstance(name, str) or not isinstance(group, str):
            raise TypeError(f"image is {name!r} and group {group!r}, wanted a path and a name")
        if given is None and box is None:
            raise KeyError("box_xyxy")
        points = np.full((k, 2), np.nan) if given is None else np.array(given, np.float64)
        point_weights = None if each is None or given is None else np.array(each, np.float64)
        visible = None if row.get("visible") is None else np.array(row["visible"], np.float32)  # null becomes nan
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        what = f"not a labelled face: {type(error).__name__}: {str(error)[:200]}"
        raise _Refused("malformed", what, 'write {"image": ..., "points": [[x, y], ...]}') from error
    if points.shape != (k, 2):
        what = f"points of shape {points.shape}, expected ({k}, 2)"
        raise _Refused("wrong count", what, f"give the points of {schema.name}")
    if point_weights is not None and (point_weights.shape != (k,) or not (point_weights >= 0).all()):
        what = f"point_weights of shape {point_weights.shape}, expected {k} numbers of at least 0"
        raise _Refused("wrong count", what, "give one per point, or omit them")
    if visible is not None and (visible.shape != (k,) or (np.abs(visible - 0.5) > 0.5).any()):
        what = f"visible has shape {visible.shape} and values like {visible.ravel()[:3]}, expected {k} of 1, 0 and null"
        raise _Refused("wrong count", what, "give one per point, or omit them")
    box_xyxy = np.zeros(4) if box is None else _box(box)
    numbers = (box_xyxy, [weight], () if point_weights is None else point_weights, () if given is None else points)
    if not _are_finite(*numbers):
        raise _Refused("bad number", "a number is not finite, or too large for a picture", "correct or delete the row")
    rect = bounds(points) if box is None else box_xyxy.astype(np.float32)
    weights_K = None if point_weights is None else point_weights.astype(np.float32)
    points_K2 = points.astype(np.float32)
    return Sample(name, points_K2, rect, attributes, folder / name, weight, weights_K, visible, group)


def _box(box: Any) -> F64:
    try:
        rect = np.array(box, np.float64)
    except (ValueError, TypeError, OverflowError):
        rect = np.zeros(0)
    if rect.shape != (4,):
        what = f"box_xyxy is {str(box)[:60]}, expected 4 numbers"
        raise _Refused("wrong count", what, "give left, top, right, bottom, or omit it")
    return rect


def _csv(path: Path, schema: Schema) -> Iterator[Row | Problem]:
    reader = csv.DictReader(_text(path).split("\n"), skipinitialspace=True)
    try:
        yield from _csv_rows(path, reader, schema)
    except csv.Error as error:
        next_ = "correct or delete the row; the rows below it were not read"
        yield Problem(path.name, reader.line_num, "malformed", f"invalid CSV: {error}", next_)


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
            what = f"{_odd(fields)!r} is not a number"
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
            what = f"{_odd(fields)!r} is not a number"
            yield Problem(file, 0, "bad number", what, "correct or delete the file")
            continue
        # MATLAB counts pixels from 1
        points = values.reshape(-1, 2) - 1
        name = picture.relative_to(root).as_posix()
        yield _checked(Sample(name, points, bounds(points), frozenset(), picture), file, 0)


def _checked(sample: Sample, file: str, line: int) -> Row | Problem:
    """The row, unless training cannot use it."""
    faceless = np.isnan(sample.points).all()
    if not faceless and not np.ptp(sample.points, axis=0).max() > 0:
        return Problem(file, line, "flat", f"{sample.name}: all points coincide", "label it again")
    width, height = sample.rect_xyxy[2:] - sample.rect_xyxy[:2]
    if min(width, height) < 0 or max(width, height) <= 0:
        what = f"{sample.name}: the box {sample.rect_xyxy.tolist()} is empty"
        return Problem(file, line, "empty box", what, "give left, top, right, bottom, left < right and top < bottom")
    if unknown := sorted(map(str, sample.attributes.difference(ATTRIBUTES))):
        what = f"{sample.name}: unknown attribute {', '.join(unknown)}"
        return Problem(file, line, "attribute", what, f"choose from {', '.join(ATTRIBUTES)}")
    if sample.weight < 0:
        what = f"{sample.name}: weight {sample.weight:g} is below 0"
        return Problem(file, line, "weight", what, "give 0 to 1: how far to trust the label")
    if stamp_ns(sample.image_path) is None:
        what = f"{sample.image_path} does not exist"
        return Problem(file, line, "missing picture", what, "unpack the pictures, or delete the row")
    return Row(file, line, sample)


def _numbers(fields: Sequence[str]) -> F32 | None:
    """None if one is not a finite number."""
    try:
        values = np.array(fields, np.float64)
    except ValueError:
        return None
    return values.astype(np.float32) if _are_finite(values) else None


def _are_finite(*values: Iterable[Any]) -> bool:
    return all(bool((np.abs(np.asarray(some, np.float64)) < FARTHEST_PX).all()) for some in values)


def _odd(fields: Sequence[str]) -> str:
    """The first field that is not a number."""
    return next((field for field in fields if _numbers([field]) is None), "")
