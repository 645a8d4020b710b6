"""Fits the linear map from MediaPipe's mesh to WFLW98, and the mean 3-D face, on a WFLW train list.

    python -m engines.mesh_fit --data ../shared/data/wflw-mini

A point starts as the mean of the nearest mesh points; a ridge regression, in which distant mesh points are penalised
more, then corrects it. Each part of the face gets its own reach and ridge by cross-validation grouped by face:
augmentations of one face (same name up to the last _k) are never on both sides. The test list is read once, after the
fit.

Suffixes: N crops, V mesh points, K = 98 points.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lineament.engines.mesh import CARD_PATH, CROP_SCALE, INPUT_HW, MeshModels
from lineament.landmarks.adapter import MAP_PATH, N_MESH, Adapter, frame_of_mesh
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.geometry import apply, crop_from_frame, invert, warp
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, Floats
from lineament.train import data, metrics
from lineament.train.sample import Sample

NEAR = 8
"""number of mesh points in a point's initial mean"""
FOLDS = 10
JITTER_LOG_SCALE, JITTER_SHIFT, JITTER_ROLL_RAD = 0.04, 0.015, math.radians(2)
"""standard deviations of the fit's crops; the shift is relative to the points' extent"""
MIN_CONFIDENCE = 0.5
"""crops with a lower confidence are left out: one face of the train list"""
LABEL_SHIFT_PX = 0.5
"""wflw-mini's points are unit coordinates times 112, half a pixel more than in pixel centres. The data agrees: a map
fitted on images and their mirror images leaves 0.43 +- 0.11 px in x on both"""
FRONTAL_PITCH_DEG = 6.3
"""downward pitch of the train list's mean face: the median pitch of 366 frontal studio portraits relative to it"""

CARD = ModelCard("mesh", WFLW98.name, INPUT_HW, CROP_SCALE, head="mesh")


class Choice(NamedTuple):
    """Hyperparameters of a part of the face."""

    reach: float
    """distance, in RMS radii of the mesh, beyond which mesh points are penalised"""
    ridge: float


CHOICES = tuple(Choice(reach, ridge) for reach in (0.15, 0.3) for ridge in (1.0, 4.0, 16.0))
FIRST_CHOICE = Choice(0.3, 4.0)
"""for the intermediate maps, which only place crops"""


@dataclass(frozen=True)
class View:
    """A labelled image or its mirror image."""

    rgb: U8
    """(H, W, 3)"""
    points: F32
    """(98, 2) px, pixel centres"""
    face: str
    """the same for all augmentations of a face"""
    mirrored: bool


@dataclass(frozen=True)
class Problem:
    """Features and targets of N crops, centred and scaled by the mesh."""

    features: F64
    """(N, V, 2) the face mesh, followed by each eye's points"""
    depth: F64
    """(N, 468) of the face mesh"""
    truth: F64
    """(N, 98, 2)"""
    faces: NDArray[np.str_]
    """(N,) the face that each crop shows"""

    def with_features(self, n_features: int) -> Problem:
        """A copy with only the first n_features points."""
        return replace(self, features=self.features[:, :n_features])


@ends_in_a_line
def main() -> int:
    parser = argparse.ArgumentParser(description="fit the mesh's map to WFLW98")
    parser.add_argument("--data", type=Path, required=True, help="folder in the official WFLW layout")
    parser.add_argument("--out", type=Path, help="folder for the fitted files; by default they replace those that ship")
    args = parser.parse_args()
    map_path, card_path = (args.out / path.name if args.out else path for path in (MAP_PATH, CARD_PATH))

    models = MeshModels(iris=True)
    views = views_of(data.read(args.data, "train"))
    problem = fit_crops(models, views)
    arrays: dict[str, Any] = {"shape": mean_shape(problem).astype(np.float32)}
    report = [f"# mesh-wflw98, {date.today()}", "", __doc__.partition("\n\n    ")[0], ""]
    fitted: dict[str, Adapter] = {}
    for name, part_of_features in (("iris", problem), ("mesh", problem.with_features(N_MESH))):
        errors = cross_validate(part_of_features)
        choices = {part: min(tried, key=lambda c: tried[c].mean()) for part, tried in errors.items()}
        fitted[name] = fit(part_of_features, choices)
        arrays[f"{name}_weights"] = fitted[name].weights.astype(np.float16)
        arrays[f"{name}_offset"] = fitted[name].offset
        report += [f"## {name}: cross-validated by face, NME in percent", "", *cv_table(errors, choices), ""]
    map_path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(map_path, **arrays)
    print("\n".join(report))

    test = data.read(args.data, "test")
    scores: dict[str, float] = {}
    for name in fitted:
        for passes in (2, 5):
            lines, score = evaluate(MeshModels(iris=name == "iris"), fitted[name], test, passes)
            scores[f"wflw-mini test, rect, {passes} passes, {name}"] = round(score, 2)
            print("\n".join(lines))
            report += [f"## {name}: wflw-mini test", "", *lines, ""]
    card = replace(
        CARD,
        nme=scores,
        weights_sha256=hashlib.sha256(map_path.read_bytes()).hexdigest(),
        built_with={package: version(package) for package in ("mediapipe", "openvino", "numpy")},
    )
    card_path.write_text(card.to_json() + "\n")
    card_path.with_suffix(".md").write_text("\n".join(report))
    return 0


def views_of(samples: list[Sample]) -> list[View]:
    """Every sample and its mirror image."""
    views = []
    for sample in samples:
        rgb = np.ascontiguousarray(sample.bgr()[..., ::-1])
        points = sample.points - np.float32(LABEL_SHIFT_PX)
        face = Path(sample.name).stem.rpartition("_")[0]
        views.append(View(rgb, points, face, mirrored=False))
        mirrored = np.asarray(WFLW98.flipped(points, rgb.shape[1]), np.float32)
        views.append(View(np.ascontiguousarray(rgb[:, ::-1]), mirrored, face, mirrored=True))
    return views


def fit_crops(models: MeshModels, views: list[View]) -> Problem:
    """Crops as in serving, round the points that the map itself finds; the labels only place the first."""
    problem = look(models, views, [crop_from_frame(v.points, CARD, WFLW98.roll_rad(v.points)) for v in views])
    rng = np.random.default_rng(0)
    for _ in range(2):
        points_of = fit(problem, dict.fromkeys(WFLW98.parts, FIRST_CHOICE))
        found = [find(models, points_of, view.rgb, view.points, passes=2) for view in views]
        problem = look(models, views, [jittered(points, rng) for points in found])
    return problem


def find(models: MeshModels, points_of: Adapter, rgb: U8, region: F32, passes: int) -> F32:
    """(98, 2) px. The first pass crops round region (a box or points), each later one round the previous points."""
    roll_rad = WFLW98.roll_rad(region) if region.ndim == 2 else 0.0
    for _ in range(passes):
        crop = crop_from_frame(region, CARD, roll_rad)
        mesh = models(warp(rgb, crop, INPUT_HW)[None])
        region = apply(invert(crop), points_of(mesh.features)[0])
        roll_rad = WFLW98.roll_rad(region)
    return region


def jittered(points: F32, rng: np.random.Generator) -> F64:
    """The crop round points, jittered like the crops of a moving face, which come from its previous frame."""
    extent = np.ptp(points, axis=0).max()
    card = replace(CARD, crop_scale=CROP_SCALE * math.exp(rng.normal(0, JITTER_LOG_SCALE)))
    shifted = points + rng.normal(0, JITTER_SHIFT, 2) * extent
    return crop_from_frame(shifted, card, WFLW98.roll_rad(points) + rng.normal(0, JITTER_ROLL_RAD))


def look(models: MeshModels, views: list[View], crops: list[F64]) -> Problem:
    """The models' output for each view and crop, without crops in which they see no face."""
    seen = [(view, crop, models(warp(view.rgb, crop, INPUT_HW)[None])) for view, crop in zip(views, crops, strict=True)]
    seen = [(view, crop, mesh) for view, crop, mesh in seen if mesh.confidence[0] > MIN_CONFIDENCE]
    features = np.concatenate([mesh.features for _, _, mesh in seen])
    depth = np.concatenate([mesh.depth for _, _, mesh in seen])
    truth = np.stack([apply(crop, view.points) for view, crop, _ in seen])
    center, scale = frame_of_mesh(features)
    return Problem(
        features=np.asarray((features - center) / scale, np.float64),
        depth=np.asarray((depth - depth.mean(1, keepdims=True)) / scale[:, :, 0], np.float64),
        truth=np.asarray((truth - center) / scale, np.float64),
        faces=np.array([view.face for view, _, _ in seen]),
    )


def first_guess(problem: Problem) -> F64:
    """(K, V) weights that sum to one: each point is the mean of its NEAR nearest mesh points, by mean distance."""
    distance_KV = mean_distance(problem)
    weights = np.zeros_like(distance_KV)
    np.put_along_axis(weights, np.argsort(distance_KV, axis=1)[:, :NEAR], 1 / NEAR, axis=1)
    return weights


def mean_distance(problem: Problem) -> F64:
    """(K, V) between mean positions."""
    truth_K12 = problem.truth.mean(0)[:, None]
    return np.asarray(np.linalg.norm(truth_K12 - problem.features.mean(0), axis=2), np.float64)


def ease(distance_V: F64, reach: float) -> F64:
    """(V,) scale of each mesh point before the ridge: 1 nearby, reach / distance far away."""
    return np.asarray(1 / np.sqrt((distance_V / reach) ** 2 + 1), np.float64)


def fit(problem: Problem, choices: Mapping[str, Choice]) -> Adapter:
    """The map fitted on all of problem."""
    n, v, _ = problem.features.shape
    guess_KV, distance_KV = first_guess(problem), mean_distance(problem)
    mean = problem.features.mean(0)
    weights = np.zeros((len(WFLW98), 2, v, 2))
    weights[:, 0, :, 0] = weights[:, 1, :, 1] = guess_KV
    for part, choice in choices.items():
        for k in WFLW98.parts[part]:
            easy = ease(distance_KV[k], choice.reach)[:, None]
            x = ((problem.features - mean) * easy).reshape(n, -1)
            rest = problem.truth[:, k] - np.einsum("v,nvd->nd", guess_KV[k], problem.features)
            dual = np.linalg.solve(x @ x.T + choice.ridge * np.eye(n), rest - rest.mean(0))
            weights[k] += (x.T @ dual).T.reshape(2, v, 2) * easy
    flat = weights.reshape(2 * len(WFLW98), -1)
    offset = problem.truth.mean(0).ravel() - flat @ mean.ravel()
    return Adapter(flat.astype(np.float32), offset.astype(np.float32))


def cross_validate(problem: Problem) -> dict[str, dict[Choice, F64]]:
    """Part name to choice to (n,) mean error in percent of each of the part's points, on held-out faces."""
    n = len(problem.faces)
    guess_KV, distance_KV = first_guess(problem), mean_distance(problem)
    left, right = WFLW98.eye_corners
    ocular_N = np.linalg.norm(problem.truth[:, left] - problem.truth[:, right], axis=1)
    centered = problem.features - problem.features.mean(0)
    rest = problem.truth - np.einsum("kv,nvd->nkd", guess_KV, problem.features)
    folds = held_out(problem.faces)
    errors: dict[str, dict[Choice, F64]] = {}
    for part, indices in WFLW98.parts.items():
        errors[part] = {choice: np.empty(len(indices)) for choice in CHOICES}
        for reach in {choice.reach for choice in CHOICES}:
            for i, k in enumerate(indices):
                x = (centered * ease(distance_KV[k], reach)[:, None]).reshape(n, -1)
                kernel = x @ x.T
                missed = {choice: np.empty(n) for choice in CHOICES if choice.reach == reach}
                for out in folds:
                    seen = ~out
                    # centre on the mean of the training folds, as fit does
                    mean_kernel = kernel[seen][:, seen].mean(0)
                    gram = kernel[np.ix_(seen, seen)] - mean_kernel - mean_kernel[:, None] + mean_kernel.mean()
                    cross = kernel[np.ix_(out, seen)]
                    cross = cross - cross.mean(1, keepdims=True) - mean_kernel + mean_kernel.mean()
                    mean = rest[seen, k].mean(0)
                    for choice, missed_N in missed.items():
                        dual = np.linalg.solve(gram + choice.ridge * np.eye(len(gram)), rest[seen, k] - mean)
                        guess = cross @ dual + mean
                        missed_N[out] = np.linalg.norm(guess - rest[out, k], axis=1)
                for choice, missed_N in missed.items():
                    errors[part][choice][i] = (missed_N / ocular_N).mean() * 100
    return errors


def held_out(faces: NDArray[np.str_]) -> list[NDArray[np.bool_]]:
    """faces: (N,) -> FOLDS masks (N,) that partition the faces."""
    order = np.random.default_rng(1).permutation(np.unique(faces))
    return [np.isin(faces, order[i::FOLDS]) for i in range(FOLDS)]


def cv_table(errors: Mapping[str, Mapping[Choice, F64]], choices: Mapping[str, Choice]) -> list[str]:
    """Markdown: a row per part, a column per choice, the chosen one in bold."""
    lines = ["| part | " + " | ".join(f"reach {c.reach} ridge {c.ridge:g}" for c in CHOICES) + " |"]
    lines.append("|---" * (len(CHOICES) + 1) + "|")
    for part, tried in errors.items():
        cells = (f"**{tried[c].mean():.2f}**" if c == choices[part] else f"{tried[c].mean():.2f}" for c in CHOICES)
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    chosen = np.concatenate([errors[part][choices[part]] for part in errors])
    return [*lines, "", f"all parts as chosen: {chosen.mean():.2f}"]


def mean_shape(problem: Problem) -> F64:
    """(98, 3) frontal mean face: labels with the mesh's depth, rotated as their mesh is onto the mean mesh."""
    mesh_NV3 = np.concatenate([problem.features[:, :N_MESH], problem.depth[:, :, None]], axis=2)
    depth_NK = problem.depth @ first_guess(problem.with_features(N_MESH)).T
    points_NK3 = np.concatenate([problem.truth, depth_NK[:, :, None]], axis=2)
    mean = mesh_NV3.mean(0)
    for _ in range(5):
        turns = [rotation_onto(mean, mesh) for mesh in mesh_NV3]
        mean = np.mean([mesh @ turn.T for mesh, turn in zip(mesh_NV3, turns, strict=True)], axis=0)
    shape = np.mean([points @ turn.T for points, turn in zip(points_NK3, turns, strict=True)], axis=0)
    mirrored = shape[list(WFLW98.flip)] * (-1, 1, 1)
    down = math.radians(FRONTAL_PITCH_DEG)
    up = np.array([[1, 0, 0], [0, math.cos(down), math.sin(down)], [0, -math.sin(down), math.cos(down)]])
    return np.asarray((shape + mirrored) / 2 @ up.T, np.float64)


def rotation_onto(target: F64, points: F64) -> F64:
    """(3, 3) the best rotation of points (V, 3) onto target (V, 3); both are centred."""
    u, _, vt = np.linalg.svd(target.T @ points)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return np.asarray(turn, np.float64)


def evaluate(models: MeshModels, points_of: Adapter, samples: list[Sample], passes: int) -> tuple[list[str], float]:
    """A report and the NME, on the original labels, starting from the list's rects, which are not levelled."""
    truth = np.stack([sample.points for sample in samples])
    pictures = [np.ascontiguousarray(sample.bgr()[..., ::-1]) for sample in samples]
    found = np.stack([find(models, points_of, rgb, s.rect_xyxy, passes) for rgb, s in zip(pictures, samples)])
    nme_N, shifted_N = metrics.nme(found, truth), metrics.nme(found, truth - np.float32(LABEL_SHIFT_PX))
    by_point = metrics.point_errors(found, truth).mean(0)
    return [
        f"rect, {passes} passes, labels as they stand: {score_line(nme_N)}",
        f"rect, {passes} passes, labels less {LABEL_SHIFT_PX} px: {score_line(shifted_N)}",
        ", ".join(f"{part} {by_point[list(indices)].mean():.2f}" for part, indices in WFLW98.parts.items()),
    ], float(nme_N.mean())


def score_line(nme_N: Floats) -> str:
    return (
        f"NME {nme_N.mean():.2f}, worst {nme_N.max():.1f}, FR@10 {metrics.failure_rate(nme_N):.1f} %, "
        f"AUC@10 {metrics.auc(nme_N):.3f}, {len(nme_N)} faces"
    )


if __name__ == "__main__":
    sys.exit(main())
