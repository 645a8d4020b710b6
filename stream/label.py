"""Labels photos by what several landmark models agree on, for training: one line of JSON a face.

    python -m stream.label photos/ --out labels.jsonl --teacher b5.onnx --teacher pfld.onnx:0.5 --sheet sheet.jpg

Each teacher sees a face on its own crop, first round the detector's box, then levelled round its points, a bit closer
and a bit wider, each time also mirrored. The label is the weighted mean of all guesses; how far they lie apart says
how much a face, and each of its points, can be trusted:

    {"image": "a.jpg", "points": [[x, y], ...], "box_xyxy": [...], "weight": 0.7, "point_weights": [1.1, ...],
     "disagreement": 3.1, "score": 0.93}
    {"image": "a.jpg", "points": null, "box_xyxy": [...]}

The second kind, with --empty, is a box without a face. --check says first how good the teachers are themselves.
image is relative to the file's folder, or absolute where it lies outside; points and box are px of that picture.
Suffixes: N faces, T teachers, K points.
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
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import cv2
import numpy as np
import tyro
from tqdm import tqdm

from lineament import engines
from lineament.engines import labelled
from lineament.landmarks.card import CropScale, ModelCard
from lineament.landmarks.command import ends_in_a_line, program
from lineament.landmarks.geometry import FARTHEST_PX, apply, bounds, crop_from_frame, frame_from_unit, iou, warp
from lineament.landmarks.schema import SCHEMAS, Schema
from lineament.landmarks.types import F32, F64, U8, Face, Floats, Frame, Landmarker, LineamentError, Result, Track
from lineament.stream.analyse.detect import ImageDetector
from lineament.stream.read.image import IMAGE_SUFFIXES, cannot_write, read_image, write_image
from lineament.stream.write.draw import DrawConfig, draw

log = logging.getLogger("lineament")

LOOKS = ((1.0,), (0.95, 1.05))
"""crops of a face, as shares of the card's crop_scale: round the detector's box, then round the points seen there"""
HALF_TRUST = 8.0
"""disagreement, in percent, at which a label weighs half: twice the error of a good teacher on WFLW, because teachers
disagree most on faces in profile, and are still far better there than a student without such faces"""
ASTRAY_IOU = 0.3
"""least overlap of the detector's box and the points' bounds: below it the teachers slid onto something else"""
SMALLEST_OCULAR = 0.5
"""the eye corners of a profile coincide, which would make any disagreement huge, and drop just the faces that are rare:
their distance counts as no less than this share of the points' extent, about 0.55 on a face seen from the front"""
_TRIES, _EMPTY_OVERLAP = 40, 0.15
"""how often to look for an empty box in a picture, and how much of a face it may touch, as intersection over union"""
_READ_AHEAD = 8
"""pictures decoded before their turn"""
_SHEET_FACES, _SHEET_COLUMNS, _CELL_PX = 24, 6, 240


@dataclass(frozen=True)
class LabelConfig:
    """Which photos, by whom, and what is kept."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Photos; folders within it are searched too. Or a labelled .jsonl: its faces are labelled again where they are,
    without a detector, and keep their group."""
    out: Path
    """The .jsonl file to write; it appears when all is done."""
    teacher: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A model, as for `python -m stream --model`; name:0.3 gives it that weight in the mean, else 1. May be given
    several times; without it the student teaches alone."""
    max_disagreement: float = 6.0
    """A face on which two guesses are on average further apart than this is dropped. Percent of the distance of the
    eyes' outer corners."""
    min_face_px: float = 40.0
    """A face whose box is smaller is left out."""
    min_score: float = 0.5
    """Of the detector, 0 to 1."""
    check: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A labelled set (WFLW's folder, CSV, JSONL): before labelling, print the teachers' NME on its test faces.
    folder:0.5 takes 0.5 px off its labels. May be given several times."""
    sheet: Path | None = None
    """Also write a picture of some labelled faces, to look at, and beside it one of those dropped: x-dropped.jpg."""
    empty: float = 0.0
    """Also write boxes in which there is no face, so that training with --presence learns to tell: 0.3 is one in three
    of the pictures that hold a face. Half of them lie beside a face, where a lost track would slide to."""
    seed: int = 0
    """Chooses the faces of the sheet and the empty boxes."""

    def __post_init__(self) -> None:
        for name, low, high in (("max_disagreement", 0, np.inf), ("min_face_px", 0, np.inf), ("min_score", 0, 1)):
            if not low < getattr(self, name) < high:
                raise LineamentError(f"{name} is {getattr(self, name)}, expected a number over {low}, under {high}")
        if self.sheet and self.sheet.suffix.lower() not in IMAGE_SUFFIXES:
            raise LineamentError(f"sheet is {self.sheet}, expected a picture; end it in .png or .jpg")


@dataclass(frozen=True)
class Teacher:
    """A landmark model, and how much it counts among the others."""

    landmarker: Landmarker
    weight: float


@dataclass(frozen=True)
class Label:
    """What the teachers say of one face."""

    face: Face
    points: F32
    """(K, 2) frame px"""
    disagreement: float
    """mean distance of two guesses, percent of the inter-ocular distance"""
    disagreements: F32
    """(K,) the same of each point"""
    confidence: float
    """the lowest of the teachers', 0..1"""

    @property
    def weight(self) -> float:
        """0..1: what the label should count in training."""
        return self.confidence * float(_trust(np.float32(self.disagreement)))

    @property
    def point_weights(self) -> F32:
        """(K,) what each point should count beside the others; 1 on average."""
        trust_K = _trust(self.disagreements)
        return np.asarray(trust_K / trust_K.mean(), np.float32)

    @property
    def astray(self) -> bool:
        """Whether the points are not those of the detector's face."""
        return not iou(self.face.box_xyxy, bounds(self.points)[None])[0] > ASTRAY_IOU


class Summary(NamedTuple):
    """How many of each."""

    images: int
    unreadable: int
    without_face: int
    faces: int
    """found by the detector, large enough or not"""
    small: int
    disputed: int
    """dropped above max_disagreement"""
    astray: int
    """dropped for points that lie elsewhere than the detector's box"""
    kept: int
    empty: int
    """boxes without a face"""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    cv2.setNumThreads(1)  # as stream's command line does
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        label_folder(tyro.cli(LabelConfig, args=args, prog=program("label", "stream.label")))
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def label_folder(cfg: LabelConfig) -> Summary:
    """Writes cfg.out, whole or not at all."""
    given = _given(cfg.folder) if cfg.folder.suffix == ".jsonl" else None
    paths = list(given) if given is not None else _images(cfg.folder)
    part = cfg.out.with_name(cfg.out.name + ".part")
    counts: Counter[str] = Counter(images=len(paths))
    disagreements: list[float] = []
    rng = np.random.default_rng(cfg.seed)
    with ExitStack() as stack:
        teachers = _teachers(cfg.teacher or (engines.DEFAULT,), stack)
        schema = SCHEMAS[teachers[0].landmarker.card.schema]
        for spec in cfg.check:
            log.info("%s", _checked(spec, teachers, schema))
        detector = stack.enter_context(ImageDetector(cfg.min_score, cfg.min_face_px))
        kept, dropped = _Sheet(schema, cfg.seed), _Sheet(schema, cfg.seed)
        try:
            cfg.out.parent.mkdir(parents=True, exist_ok=True)
            stack.callback(part.unlink, missing_ok=True)
            file = stack.enter_context(part.open("w"))
            for path, bgr in tqdm(
                _pictures(paths), total=len(paths), unit=" images", disable=None, dynamic_ncols=True, desc="label"
            ):
                if bgr is None:
                    counts["unreadable"] += 1
                    continue
                known = None if given is None else [_face(row, schema) for row in given[path]]
                faces = detector(bgr) if known is None else known
                groups = {} if given is None else {id(f): row.get("group") for f, row in zip(faces, given[path])}
                box_xyxy = _empty_box(bgr, faces, rng) if rng.random() < cfg.empty else None
                if box_xyxy is not None:
                    row = {"image": _image(path, cfg.out), "points": None, "box_xyxy": _rounded(box_xyxy)}
                    file.write(json.dumps(row) + "\n")
                    counts["empty"] += 1
                for label in _labels(bgr, faces, teachers, schema, cfg, counts):
                    if math.isfinite(label.disagreement):
                        disagreements.append(label.disagreement)
                    disputed = not label.disagreement <= cfg.max_disagreement
                    fate = "disputed" if disputed else "astray" if label.astray else "kept"
                    counts[fate] += 1
                    if fate == "kept":
                        group = groups.get(id(label.face))
                        file.write(json.dumps(_row(path, cfg.out, label) | ({"group": group} if group else {})) + "\n")
                    if cfg.sheet and math.isfinite(label.disagreement):
                        (kept if fate == "kept" else dropped).add(bgr, label)
            file.close()
            os.replace(part, cfg.out)
        except OSError as error:
            raise cannot_write(cfg.out, error) from None
    summary = Summary(**{name: counts[name] for name in Summary._fields})
    log.info(
        "wrote %s: %s", cfg.out, ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in summary._asdict().items())
    )
    if disagreements:
        shown = "  ".join(f"p{p} {np.percentile(disagreements, p):.1f}" for p in (10, 50, 90, 99))
        log.info("disagreement in percent: %s", shown)
    if cfg.sheet:
        for sheet, at in ((kept, cfg.sheet), (dropped, cfg.sheet.with_stem(f"{cfg.sheet.stem}-dropped"))):
            if sheet.seen:
                write_image(at, sheet.picture())
                log.info("wrote %s", at)
    return summary


def label_faces(bgr: U8, faces: Sequence[Face], teachers: Sequence[Teacher], schema: Schema) -> list[Label]:
    """A label for each face of a picture. Raises ValueError without teachers.

    Its disagreement is nan where a teacher's points are not finite, or all teachers' are one point.
    """
    if not teachers:
        raise ValueError("a label takes at least one teacher")
    if not faces:
        return []
    rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    guesses, weights, confidences = [], [], []
    for teacher in teachers:
        guesses_GNK2, confidence_N = _guesses(rgb, faces, teacher.landmarker, schema)
        guesses += list(guesses_GNK2)
        weights += [teacher.weight] * len(guesses_GNK2)
        confidences.append(confidence_N)
    with np.errstate(all="ignore"):
        points_NK2 = np.average(guesses, axis=0, weights=weights)
        apart_NK = np.mean([np.linalg.norm(a - b, axis=-1) for a, b in combinations(guesses, 2)], axis=0)
        disagreements_NK = 100 * apart_NK / _ocular(points_NK2, schema)[:, None]
    return [
        Label(face, points, float(disagreements.mean()), disagreements, float(confidence))
        for face, points, disagreements, confidence in zip(
            faces,
            points_NK2.astype(np.float32),
            disagreements_NK.astype(np.float32),
            np.min(confidences, axis=0),
            strict=True,
        )
    ]


def _trust(disagreement: Floats | np.float32) -> Floats:
    """0..1 of a disagreement in percent."""
    return np.asarray(1 / (1 + (disagreement / HALF_TRUST) ** 2))


def _guesses(rgb: U8, faces: Sequence[Face], landmarker: Landmarker, schema: Schema) -> tuple[F32, F32]:
    """One teacher's points (G, N, K, 2) in frame px, on each crop of the last look and on its mirror image; and its
    confidence (N,)."""
    card, n = landmarker.card, len(faces)
    regions: list[Floats] = [face.box_xyxy for face in faces]
    rolls_rad = [face.roll_rad for face in faces]
    for shares in LOOKS:
        cards = [replace(card, crop_scale=_times(card.crop_scale, share)) for share in shares]
        matrices = [crop_from_frame(r, c, roll_rad) for c in cards for r, roll_rad in zip(regions, rolls_rad)]
        crops = np.stack([warp(rgb, matrix, card.input_hw) for matrix in matrices])
        points_unit, confidence = landmarker(np.concatenate([crops, crops[:, :, ::-1]]))
        # unit coordinates mirror as 1 - x
        both = np.concatenate([points_unit[: len(crops)], schema.flipped(points_unit[len(crops) :], 2)])
        guesses = np.stack(
            [apply(frame_from_unit(m, card.input_hw), unit) for m, unit in zip([*matrices, *matrices], both)]
        ).reshape(2 * len(shares), n, -1, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            means_NK2 = guesses.mean(0)
        for i, points in enumerate(means_NK2):
            if np.abs(points).max() < FARTHEST_PX and np.ptp(points, axis=0).max() >= 1:  # else it stays where it was
                regions[i], rolls_rad[i] = points, schema.roll_rad(points)
    return guesses, np.asarray(confidence.reshape(-1, n).mean(0), np.float32)


def _times(scale: CropScale, share: float) -> CropScale:
    return (scale[0] * share, scale[1] * share) if isinstance(scale, tuple) else scale * share


def _checked(spec: str, teachers: Sequence[Teacher], schema: Schema) -> str:
    """The teachers' NME on a labelled set, each face found by the box round its true points."""
    path, shift_px = _parsed(spec, without=0.0)
    errors, poses = [], []
    for bgr, points, attributes in labelled.test_faces(Path(path), schema, shift_px):
        face = Face(bounds(points), 1.0)
        (label,) = label_faces(bgr, [face], teachers, schema)
        errors.append(labelled.nme(label.points, points, schema))
        poses.append("pose" in attributes)
    of_poses = [error for error, pose in zip(errors, poses) if pose]
    turned = f", {np.mean(of_poses):.2f} on the {len(of_poses)} of large pose" if of_poses else ""
    return f"the teachers have an NME of {np.mean(errors):.2f} on the {len(errors)} test faces of {path}{turned}"


def _ocular(points_NK2: Floats, schema: Schema) -> Floats:
    """(N,) px by which disagreement is measured; see SMALLEST_OCULAR."""
    left, right = schema.eye_corners
    ocular_N = np.linalg.norm(points_NK2[:, left] - points_NK2[:, right], axis=-1)
    return np.asarray(np.maximum(ocular_N, SMALLEST_OCULAR * np.ptp(points_NK2, axis=1).max(-1)))


def _labels(
    bgr: U8, faces: Sequence[Face], teachers: Sequence[Teacher], schema: Schema, cfg: LabelConfig, counts: Counter[str]
) -> list[Label]:
    large = [face for face in faces if (face.box_xyxy[2:] - face.box_xyxy[:2]).min() >= cfg.min_face_px]
    counts["without_face"] += not faces
    counts["faces"] += len(faces)
    counts["small"] += len(faces) - len(large)
    return label_faces(bgr, large, teachers, schema)


def _empty_box(bgr: U8, faces: Sequence[Face], rng: np.random.Generator) -> F64 | None:
    """(4,) xyxy of about a face's size that shows no face whole: beside one, or anywhere. None if there is no room."""
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


def _teachers(specs: Sequence[str], stack: ExitStack) -> list[Teacher]:
    """Opened on the stack. Raises LineamentError when they do not speak of the same points."""
    teachers = []
    for spec in specs:
        model, weight = _parsed(spec, without=1.0)
        if not 0 < weight < np.inf:
            raise LineamentError(f"teacher {spec!r} has weight {weight}, expected a number over 0")
        teachers.append(Teacher(stack.enter_context(engines.load(model)), weight))
    schemas = {teacher.landmarker.card.schema for teacher in teachers}
    if len(schemas) > 1:
        raise LineamentError(f"the teachers have schemas {', '.join(sorted(schemas))}, expected one schema for all")
    return teachers


def _parsed(spec: str, without: float) -> tuple[str, float]:
    """'pfld.onnx:0.3' -> ('pfld.onnx', 0.3); a colon that no number follows belongs to the path."""
    name, _, last = spec.rpartition(":")
    try:
        return (name, float(last)) if name else (spec, without)
    except ValueError:
        return spec, without


def _given(path: Path) -> dict[Path, list[dict[str, Any]]]:
    """The faces of a labelled list, by picture."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        listed: dict[Path, list[dict[str, Any]]] = {}
        for row in rows:
            if row["points"] is not None:
                listed.setdefault(path.parent / row["image"], []).append(row)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LineamentError(f"cannot read labels from {path}: {error}; give a .jsonl of stream.label") from None
    if not listed:
        raise LineamentError(f"{path} holds no face; give a .jsonl that has labels")
    return listed


def _face(row: dict[str, Any], schema: Schema) -> Face:
    """Where a labelled face is."""
    points = np.array(row["points"], np.float32)
    return Face(bounds(points), 1.0, schema.roll_rad(points))


def _images(folder: Path) -> list[Path]:
    if not os.path.isdir(folder):
        raise LineamentError(f"no folder at {folder}; give one that holds photos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise LineamentError(f"{folder} holds no pictures; expected some of {', '.join(sorted(IMAGE_SUFFIXES))}")
    return paths


def _pictures(paths: Sequence[Path]) -> Iterator[tuple[Path, U8 | None]]:
    """Each path with its picture, decoded ahead by a thread; None where it cannot be read, which is logged."""
    with ThreadPoolExecutor(1, "reader") as pool:
        ahead: list[Future[U8]] = []
        for i, path in enumerate(paths):
            while len(ahead) < _READ_AHEAD and i + len(ahead) < len(paths):
                ahead.append(pool.submit(read_image, paths[i + len(ahead)]))
            try:
                yield path, ahead.pop(0).result()
            except LineamentError as error:
                log.warning("skipped: %s", error)
                yield path, None


def _image(path: Path, out: Path) -> str:
    """path as a row of out has it."""
    image, home = path.resolve(), out.parent.resolve()
    return image.relative_to(home).as_posix() if image.is_relative_to(home) else str(image)


def _rounded(box_xyxy: Floats) -> list[float]:
    return [round(float(v), 2) for v in box_xyxy]


def _row(path: Path, out: Path, label: Label) -> dict[str, object]:
    return {
        "image": _image(path, out),
        "points": [[round(float(x), 2), round(float(y), 2)] for x, y in label.points],
        "box_xyxy": _rounded(label.face.box_xyxy),
        "weight": round(label.weight, 4),
        "point_weights": [round(float(w), 2) for w in label.point_weights],
        "disagreement": round(label.disagreement, 3),
        "score": round(label.face.score, 4),
    }


class _Sheet:
    """Some of the labelled faces, every face as likely as any other, drawn as they come so that no picture is kept."""

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
