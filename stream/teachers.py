"""Teachers: landmark models that label a face together, each on its own crops, with their weighted mean.

Suffixes: N faces, T teachers, K points.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from lineament import engines
from lineament.engines import labelled
from lineament.landmarks.card import CropScale
from lineament.landmarks.geometry import FARTHEST_PX, apply, bounds, crop_from_frame, frame_from_unit, iou, warp
from lineament.landmarks.schema import SCHEMAS, Schema
from lineament.landmarks.types import F32, U8, Face, Floats, Landmarker, LineamentError

LOOKS = ((1.0,), (0.95, 1.05))
"""crops of a face, as factors of the card's crop_scale: round the detector's box, then round the points found there"""
HALF_TRUST = 8.0
"""disagreement, in percent, at which the weight is 0.5: twice the error of a good teacher on WFLW. Teachers disagree
most on profiles, and are still far better there than a student without such faces"""
ASTRAY_IOU = 0.3
"""least IoU of the detector's box and the points' bounds: below it the teachers slid onto something else"""
SMALLEST_OCULAR = 0.5
"""least inter-ocular distance, as a share of the points' extent (0.55 on a frontal face): the eye corners of a profile
coincide, which would make any disagreement huge and drop exactly the rare faces"""


@dataclass(frozen=True)
class Teacher:
    """A landmark model and its weight in the mean."""

    landmarker: Landmarker
    weight: float


@dataclass(frozen=True)
class Label:
    """The teachers' consensus on one face."""

    face: Face
    points: F32
    """(K, 2) frame px"""
    disagreement: float
    """mean distance of two predictions, percent of the inter-ocular distance"""
    disagreements: F32
    """(K,) the same for each point"""
    confidence: float
    """the lowest of the teachers', 0..1"""

    @property
    def weight(self) -> float:
        """0..1: the label's weight in training."""
        return self.confidence * float(_trust(np.float32(self.disagreement)))

    @property
    def point_weights(self) -> F32:
        """(K,) the weight of each point among the others; 1 on average."""
        trust_K = _trust(self.disagreements)
        return np.asarray(trust_K / trust_K.mean(), np.float32)

    @property
    def astray(self) -> bool:
        """Whether the points do not belong to the detector's face."""
        return not iou(self.face.box_xyxy, bounds(self.points)[None])[0] > ASTRAY_IOU


def open_teachers(specs: Sequence[str], stack: ExitStack) -> list[Teacher]:
    """Loads the teachers onto the stack. Raises LineamentError if they do not share a schema."""
    teachers = []
    for spec in specs:
        model, weight = _parsed(spec, without=1.0)
        if not 0 < weight < np.inf:
            raise LineamentError(f"teacher {spec!r} has weight {weight}, expected a number above 0")
        teachers.append(Teacher(stack.enter_context(engines.load(model)), weight))
    schemas = {teacher.landmarker.card.schema for teacher in teachers}
    if len(schemas) > 1:
        raise LineamentError(f"the teachers have schemas {', '.join(sorted(schemas))}, expected one schema for all")
    return teachers


def schema_of(teachers: Sequence[Teacher]) -> Schema:
    """Of the points that all teachers predict."""
    return SCHEMAS[teachers[0].landmarker.card.schema]


def label_faces(bgr: U8, faces: Sequence[Face], teachers: Sequence[Teacher], schema: Schema) -> list[Label]:
    """Labels each face of a picture. Raises ValueError without teachers.

    The disagreement is nan if a teacher's points are not finite, or if all points coincide.
    """
    if not teachers:
        raise ValueError("got no teachers, expected at least one teacher")
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


def checked(spec: str, teachers: Sequence[Teacher]) -> str:
    """A line with the teachers' NME on a labelled set, with each face's box taken from its true points."""
    schema = schema_of(teachers)
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


def _trust(disagreement: Floats | np.float32) -> Floats:
    """Weight, 0..1, from a disagreement in percent."""
    return np.asarray(1 / (1 + (disagreement / HALF_TRUST) ** 2))


def _guesses(rgb: U8, faces: Sequence[Face], landmarker: Landmarker, schema: Schema) -> tuple[F32, F32]:
    """One teacher's points (G, N, K, 2) in frame px, from each crop of the last look and from its mirror image; and its
    confidence (N,)."""
    card, n = landmarker.card, len(faces)
    regions: list[Floats] = [face.box_xyxy for face in faces]
    rolls_rad = [face.roll_rad for face in faces]
    for shares in LOOKS:
        cards = [replace(card, crop_scale=_times(card.crop_scale, share)) for share in shares]
        matrices = [crop_from_frame(r, c, roll_rad) for c in cards for r, roll_rad in zip(regions, rolls_rad)]
        crops = np.stack([warp(rgb, matrix, card.input_hw) for matrix in matrices])
        points_unit, confidence, _ = landmarker(np.concatenate([crops, crops[:, :, ::-1]]))
        # unit coordinates mirror as 1 - x
        both = np.concatenate([points_unit[: len(crops)], schema.flipped(points_unit[len(crops) :], 2)])
        guesses = np.stack(
            [apply(frame_from_unit(m, card.input_hw), unit) for m, unit in zip([*matrices, *matrices], both)]
        ).reshape(2 * len(shares), n, -1, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            means_NK2 = guesses.mean(0)
        for i, points in enumerate(means_NK2):
            if np.abs(points).max() < FARTHEST_PX and np.ptp(points, axis=0).max() >= 1:  # else it stays
                regions[i], rolls_rad[i] = points, schema.roll_rad(points)
    return guesses, np.asarray(confidence.reshape(-1, n).mean(0), np.float32)


def _times(scale: CropScale, share: float) -> CropScale:
    return (scale[0] * share, scale[1] * share) if isinstance(scale, tuple) else scale * share


def _ocular(points_NK2: Floats, schema: Schema) -> Floats:
    """(N,) px that disagreement is divided by; see SMALLEST_OCULAR."""
    left, right = schema.eye_corners
    ocular_N = np.linalg.norm(points_NK2[:, left] - points_NK2[:, right], axis=-1)
    return np.asarray(np.maximum(ocular_N, SMALLEST_OCULAR * np.ptp(points_NK2, axis=1).max(-1)))


def _parsed(spec: str, without: float) -> tuple[str, float]:
    """'pfld.onnx:0.3' -> ('pfld.onnx', 0.3); a colon without a number belongs to the path."""
    name, _, last = spec.rpartition(":")
    try:
        return (name, float(last)) if name else (spec, without)
    except ValueError:
        return spec, without
