"""Labels photos with the consensus of several landmark models, for training: one line of JSON per face.

    python -m stream.label photos/ --out labels.jsonl --teacher b5.onnx --teacher pfld.onnx:0.5 --sheet sheet.jpg

Each teacher sees a face in its own crop, first round the detector's box, then levelled round its points, a bit closer
and a bit wider, each time also mirrored. The label is the weighted mean of all predictions; their disagreement sets
the weight of the face and of each of its points:

    {"image": "a.jpg", "points": [[x, y], ...], "box_xyxy": [...], "weight": 0.7, "point_weights": [1.1, ...],
     "disagreement": 3.1, "score": 0.93}
    {"image": "a.jpg", "points": null, "box_xyxy": [...]}

The second kind, with --empty, is a box without a face. --check first measures the teachers on a labelled set.
image is relative to the file's folder, or absolute if outside it; points and box are in px of that picture.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TextIO

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from lineament import engines
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line, program
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply, bounds, crop_from_frame, iou, warp
from lineament.landmarks.schema import Schema
from lineament.landmarks.types import F64, U8, Face, Floats, Frame, LineamentError, Result, Track
from lineament.stream.analyse.detect import ImageDetector
from lineament.stream.read.image import (
    IMAGE_SUFFIXES,
    WRITTEN_SUFFIXES,
    Picture,
    UnreadableError,
    cannot_write,
    write_image,
)
from lineament.stream.teachers import Label, Teacher, checked, label_faces, open_teachers, schema_of
from lineament.stream.write.draw import DrawConfig, draw

log = logging.getLogger("lineament")

_TRIES, _EMPTY_OVERLAP = 40, 0.15
"""tries to find an empty box in a picture, and the largest IoU it may have with a face"""
_READ_AHEAD = 8
"""pictures decoded ahead"""
_SHEET_FACES, _SHEET_COLUMNS, _CELL_PX = 24, 6, 240

Row = dict[str, Any]
"""one line of the .jsonl"""


@dataclass(frozen=True)
class LabelConfig:
    """Labels photos with the consensus of several landmark models, one line of JSON per face."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of photos, searched recursively. Or a labelled .jsonl: its faces are labelled again in place, without a
    detector, and keep their group."""
    out: Path
    """The .jsonl file to write; it appears when the run is complete."""
    teacher: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A model, as for `python -m stream --model`; name:0.3 sets its weight in the mean, default 1. Can be repeated;
    without it the student is the only teacher."""
    max_disagreement: float = 6.0
    """Drop a face if two predictions are further apart than this on average, in percent of the inter-ocular distance
    (outer eye corners)."""
    min_face_px: float = 40.0
    """Skip faces with a smaller box."""
    min_score: float = 0.5
    """Least score of the detector, 0..1."""
    check: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A labelled set (WFLW folder, CSV, JSONL): before labelling, print the teachers' NME on its test faces. folder:0.5
    subtracts 0.5 px from its labels. Can be repeated."""
    sheet: Path | None = None
    """Also write a contact sheet of some labelled faces, and beside it one of dropped faces: x-dropped.jpg."""
    empty: float = 0.0
    """Also write boxes without a face, negatives for training with --presence: 0.3 adds one to 30 % of pictures with
    a face. Half of them lie beside a face, where a lost track would slide to."""
    seed: int = 0
    """Seed of the faces on the sheet and of the empty boxes."""

    def __post_init__(self) -> None:
        for name, low, high in (("max_disagreement", 0, np.inf), ("min_face_px", 0, np.inf), ("min_score", 0, 1)):
            if not low < getattr(self, name) < high:
                raise LineamentError(f"{name} is {getattr(self, name)}, expected a number over {low}, under {high}")
        if self.sheet and self.sheet.suffix.lower() not in WRITTEN_SUFFIXES:
            raise LineamentError(f"sheet is {self.sheet}, expected a picture; use .png or .jpg")


class Summary(NamedTuple):
    """Counts."""

    images: int
    unreadable: int
    without_face: int
    faces: int
    """found by the detector, large enough or not"""
    small: int
    disputed: int
    """dropped: above max_disagreement"""
    astray: int
    """dropped: points away from the detector's box"""
    kept: int
    empty: int
    """boxes without a face"""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Returns the exit code."""
    cv2.setNumThreads(1)  # as stream's command line does
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        label_folder(tyro.cli(LabelConfig, args=args, prog=program("label", "stream.label")))
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def label_folder(cfg: LabelConfig) -> Summary:
    """Writes cfg.out, complete or not at all. Raises LineamentError if it cannot be read or written."""
    given = _given(cfg.folder) if cfg.folder.suffix == ".jsonl" else None
    paths = list(given) if given is not None else _images(cfg.folder)
    with ExitStack() as stack:
        teachers = open_teachers(cfg.teacher or (engines.DEFAULT,), stack)
        for spec in cfg.check:
            log.info("%s", checked(spec, teachers))
        detector = stack.enter_context(ImageDetector(cfg.min_score, cfg.min_face_px))
        labelling = _Labelling(cfg, teachers, detector, len(paths))
        with _complete(cfg.out) as file:
            pictures = tqdm(_pictures(paths), total=len(paths), unit=" images", disable=None, dynamic_ncols=True)
            for path, bgr in pictures:
                for row in labelling.rows(path, bgr, given[path] if given is not None else None):
                    file.write(json.dumps(row) + "\n")
    return labelling.report()


class _Labelling:
    """One run: the rows of each picture, and the counts, disagreements and sheets of all."""

    def __init__(self, cfg: LabelConfig, teachers: Sequence[Teacher], detector: ImageDetector, images: int) -> None:
        self._cfg, self._teachers, self._detector = cfg, teachers, detector
        self._schema = schema_of(teachers)
        self._rng = np.random.default_rng(cfg.seed)
        self._counts: Counter[str] = Counter(images=images)
        self._disagreements: list[float] = []
        self._kept, self._dropped = _Sheet(self._schema, cfg.seed), _Sheet(self._schema, cfg.seed)

    def rows(self, path: Path, bgr: U8 | None, given: list[Row] | None) -> Iterator[Row]:
        """The rows of one picture, None if unreadable. given: its labelled faces, instead of the detector's."""
        if bgr is None:
            self._counts["unreadable"] += 1
            return
        faces = self._detector(bgr) if given is None else [_face(row, self._schema) for row in given]
        groups = {} if given is None else {id(face): row.get("group") for face, row in zip(faces, given)}
        image = _image(path, self._cfg.out)
        box_xyxy = _empty_box(bgr, faces, self._rng) if self._rng.random() < self._cfg.empty else None
        if box_xyxy is not None:
            self._counts["empty"] += 1
            yield {"image": image, "points": None, "box_xyxy": _rounded(box_xyxy)}
        for label in self._labels(bgr, faces):
            if self._is_kept(label, bgr):
                group = groups.get(id(label.face))
                yield {"image": image, **_row(label), **({"group": group} if group else {})}

    def _labels(self, bgr: U8, faces: Sequence[Face]) -> list[Label]:
        large = [face for face in faces if (face.box_xyxy[2:] - face.box_xyxy[:2]).min() >= self._cfg.min_face_px]
        self._counts["without_face"] += not faces
        self._counts["faces"] += len(faces)
        self._counts["small"] += len(faces) - len(large)
        return label_faces(bgr, large, self._teachers, self._schema)

    def _is_kept(self, label: Label, bgr: U8) -> bool:
        """Whether the label is good enough; counts it either way."""
        disputed = not label.disagreement <= self._cfg.max_disagreement
        fate = "disputed" if disputed else "astray" if label.astray else "kept"
        self._counts[fate] += 1
        if math.isfinite(label.disagreement):
            self._disagreements.append(label.disagreement)
            if self._cfg.sheet:
                (self._kept if fate == "kept" else self._dropped).add(bgr, label)
        return fate == "kept"

    def report(self) -> Summary:
        """Logs the counts and the spread of disagreement, and writes the sheets."""
        cfg, summary = self._cfg, Summary(**{name: self._counts[name] for name in Summary._fields})
        log.info(
            "wrote %s: %s", cfg.out, ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in summary._asdict().items())
        )
        if self._disagreements:
            shown = "  ".join(f"p{p} {np.percentile(self._disagreements, p):.1f}" for p in (10, 50, 90, 99))
            log.info("disagreement in percent: %s", shown)
        if cfg.sheet:
            beside = cfg.sheet.with_stem(f"{cfg.sheet.stem}-dropped")
            for sheet, path in ((self._kept, cfg.sheet), (self._dropped, beside)):
                if sheet.seen:
                    write_image(path, sheet.picture())
                    log.info("wrote %s", path)
        return summary


@contextmanager
def _complete(path: Path) -> Iterator[TextIO]:
    """A file that appears at path when the block succeeds. Raises LineamentError if it cannot be written."""
    try:
        with replaced(path) as part, part.open("w") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from None


def _empty_box(bgr: U8, faces: Sequence[Face], rng: np.random.Generator) -> F64 | None:
    """(4,) xyxy of about a face's size without a whole face in it, beside one or anywhere. None if there is no room."""
    boxes_N4 = np.array([face.box_xyxy for face in faces], np.float64).reshape(-1, 4)
    limit = np.array([bgr.shape[1], bgr.shape[0]])
    for _ in range(_TRIES if len(faces) else 0):
        near = boxes_N4[rng.integers(len(boxes_N4))]
        size = float((near[2:] - near[:2]).max())
        angle = rng.uniform(0, 2 * np.pi)
        beside = (near[:2] + near[2:]) / 2 + size * rng.uniform(0.7, 1.3) * np.array([np.cos(angle), np.sin(angle)])
        center = beside if rng.random() < 0.5 else rng.uniform((0, 0), limit)
        half = size * np.exp(rng.uniform(-0.7, 0.5)) / 2
        box_xyxy: F64 = np.concatenate([center - half, center + half])
        middles_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
        holds_a_middle = (np.abs(middles_N2 - center) < 0.6 * half).all(1).any()
        inside = bool((center >= 0).all() and (center < limit).all())
        if inside and not holds_a_middle and not (iou(box_xyxy, boxes_N4) > _EMPTY_OVERLAP).any():
            return box_xyxy
    return None


def _given(path: Path) -> dict[Path, list[Row]]:
    """Labelled faces, by picture."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        listed: dict[Path, list[Row]] = {}
        for row in rows:
            if row["points"] is not None:
                listed.setdefault(path.parent / row["image"], []).append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LineamentError(f"cannot read labels from {path}: {error}; give a .jsonl from stream.label") from None
    if not listed:
        raise LineamentError(f"{path} contains no face; give a .jsonl with labels")
    return listed


def _face(row: Row, schema: Schema) -> Face:
    """A labelled face as a detection."""
    points = np.array(row["points"], np.float32)
    return Face(bounds(points), 1.0, schema.roll_rad(points))


def _images(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        raise LineamentError(f"no folder at {folder}; give a folder of photos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise LineamentError(f"{folder} contains no pictures; expected some of {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def _pictures(paths: Sequence[Path]) -> Iterator[tuple[Path, U8 | None]]:
    """Yields each path with its picture, decoded ahead by a thread; an unreadable one is logged and None."""
    with ThreadPoolExecutor(1, "reader") as pool:
        ahead: list[Future[U8]] = []
        for i, path in enumerate(paths):
            while len(ahead) < _READ_AHEAD and i + len(ahead) < len(paths):
                ahead.append(pool.submit(_picture, paths[i + len(ahead)]))
            try:
                yield path, ahead.pop(0).result()
            except LineamentError as error:
                log.warning("skipped: %s", error)
                yield path, None


def _picture(path: Path) -> U8:
    """The first picture in a file. Raises LineamentError if training, which reads by OpenCV, could not read it."""
    with Picture(path) as picture:
        if picture.kind == "HEIF":
            raise UnreadableError(path, "training reads no HEIC", "convert it to JPEG")
        bgr = picture.read()
        if picture.cut_short:
            raise UnreadableError(path, "its end is missing", "copy it again")
        return bgr


def _image(path: Path, out: Path) -> str:
    """path as it is written in a row of out."""
    image, home = path.resolve(), out.parent.resolve()
    return image.relative_to(home).as_posix() if image.is_relative_to(home) else str(image)


def _rounded(box_xyxy: Floats) -> list[float]:
    return [round(float(v), 2) for v in box_xyxy]


def _row(label: Label) -> Row:
    return {
        "points": [[round(float(x), 2), round(float(y), 2)] for x, y in label.points],
        "box_xyxy": _rounded(label.face.box_xyxy),
        "weight": round(label.weight, 4),
        "point_weights": [round(float(w), 2) for w in label.point_weights],
        "disagreement": round(label.disagreement, 3),
        "score": round(label.face.score, 4),
    }


class _Sheet:
    """A random sample of the labelled faces (reservoir sampling), drawn as they come so that no picture is kept."""

    def __init__(self, schema: Schema, seed: int) -> None:
        self._schema = schema
        self._random = random.Random(seed)
        self._cells: list[U8] = []
        self.seen = 0

    def add(self, bgr: U8, label: Label) -> None:
        self.seen += 1
        if len(self._cells) < _SHEET_FACES:
            self._cells.append(self._drawn(bgr, label))
        elif (place := self._random.randrange(self.seen)) < _SHEET_FACES:
            self._cells[place] = self._drawn(bgr, label)

    def picture(self) -> U8:
        black = np.zeros((_CELL_PX, _CELL_PX, 3), np.uint8)
        cells = self._cells + [black] * (-len(self._cells) % _SHEET_COLUMNS)
        rows = [np.hstack(cells[i : i + _SHEET_COLUMNS]) for i in range(0, len(cells), _SHEET_COLUMNS)]
        return np.asarray(np.vstack(rows), np.uint8)

    def _drawn(self, bgr: U8, label: Label) -> U8:
        card = ModelCard("sheet", self._schema.name, (_CELL_PX, _CELL_PX), 1.3)
        cell_from_frame = crop_from_frame(label.points, card)
        points = apply(cell_from_frame, label.points)
        face = Face(bounds(points), label.face.score)
        frame = Frame(warp(bgr, cell_from_frame, card.input_hw), "sheet", 0, 0.0, 0.0)
        result = Result(frame, (Track(self.seen, face, points, label.weight),))
        return draw(result, self._schema, DrawConfig(draw="both"), f"{label.disagreement:.1f} %")


if __name__ == "__main__":
    sys.exit(main())
