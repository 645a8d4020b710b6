"""Makes photos of profile faces from photos of frontal ones, for training sets, where profiles are rare.

    python -m engines.turn labels.jsonl --out turned/ --sheet turned.jpg

After 300W-LP (Zhu et al., "Face Alignment Across Large Poses: A 3D Solution", CVPR 2016): the face mesh gives the photo
depth, a ring round it models the sides of the head, and the result is rendered from the side. A face that is already
turned is turned further the same way, so that the side in view was visible in the photo. turned/labels.jsonl contains
the rotated points. A hidden point is where geometry puts it, not where a person would mark it, so labels for training
come from `python -m stream.label turned/labels.jsonl`, which runs the teachers.

Suffixes: V vertices, T triangles, K points.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from lineament.engines.mesh import CROP_SCALE, INPUT_HW, MeshModels
from lineament.landmarks.adapter import N_MESH
from lineament.landmarks.card import ModelCard
from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.files import replaced
from lineament.landmarks.geometry import apply, compose, crop_from_frame, invert, warp
from lineament.landmarks.pose import head_pose
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, LineamentError
from lineament.train.data import group_of, read_sets
from lineament.train.sample import Sample
from lineament.train.sheet import Tile, sheet

log = logging.getLogger("lineament")

OUT_HW = (256, 256)
"""size of an output image; the face fills half of it, which leaves room for augmentation"""
OUT_SCALE = 2.0
"""side of an output image over the longer side of the frontal face"""
HEAD = 1.25
"""radius of the head's ring over that of the face's edge"""
SIDE_DEPTH, END_DEPTH = 0.9, 0.35
"""depth of the ring behind the face's edge, in half widths of the face: at the sides, by the ears, and at top and
bottom"""
PIVOT_DEPTH = 0.7
"""depth of the rotation axis behind the front of the face, in half widths of the face"""
MIN_CONFIDENCE = 0.9
"""of the mesh model, 0..1"""
FARTHEST_YAW_DEG = 45.0
"""of a source face: beyond that, half of it is hidden"""

# MediaPipe's FACEMESH_FACE_OVAL in order, clockwise from the forehead
OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)

Triangles = NDArray[np.int32]


@dataclass(frozen=True)
class TurnConfig:
    """Makes photos of profile faces from labelled photos."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Sets with 98 labelled points, as for `python -m train --data`; their training splits are used."""
    out: Path
    """Folder for the images and labels.jsonl."""
    each: int = 1
    """Images per face."""
    yaw_deg: tuple[float, float] = (40.0, 85.0)
    """Range of the resulting yaw."""
    pitch_deg: float = 15.0
    """Largest change of pitch, up or down."""
    min_face_px: float = 60.0
    """Smallest face to turn, by its longer side."""
    min_weight: float = 0.5
    """Smallest weight of a label: faces on which the teachers disagree are skipped."""
    sheet: Path | None = None
    """Also write a contact sheet of some results."""
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = self.yaw_deg
        if not 0 < low <= high <= 90 or not 0 <= self.pitch_deg <= 45 or self.each < 1:
            raise LineamentError(
                f"got yaw_deg {self.yaw_deg}, pitch_deg {self.pitch_deg}, each {self.each}; "
                "expected 0 to 90, lower first; 0 to 45; at least 1"
            )


class Turned(NamedTuple):
    """An image of a rotated face."""

    rgb: U8
    """(H, W, 3)"""
    points: F32
    """(98, 2) px"""


class Solid(NamedTuple):
    """A photo with depth, in px of its crop: face, head and background."""

    rgb: U8
    """(H, W, 3)"""
    vertices: F64
    """(V, 3) the mesh's N_MESH, the head's ring, the background's ring; z away from the camera"""
    face: Triangles
    """(T, 3)"""
    head: Triangles
    """(T, 3) between the face's edge and the ring"""
    background: Triangles
    """(T, 3) between the head's ring and the background's, which stays in place"""
    points: F64
    """(K, 3) the labelled points with depth"""


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    turn_sets(tyro.cli(TurnConfig, args=args, prog="python -m engines.turn"))
    return 0


def turn_sets(cfg: TurnConfig) -> int:
    """Writes cfg.out; returns the number of images."""
    samples = [sample for one in read_sets(cfg.data, (0.0,), WFLW98) for sample in one]
    rng, models = np.random.default_rng(cfg.seed), MeshModels(iris=False)
    tiles: list[Tile] = []
    opened, picture, count, made = Path(), np.zeros((1, 1, 3), np.uint8), 0, 0
    with replaced(cfg.out / "labels.jsonl") as part, part.open("w") as file:
        for sample in tqdm(samples, desc="turning", disable=None, leave=False):
            if not _is_usable(sample, cfg):
                continue
            if sample.image_path != opened:
                opened, picture = sample.image_path, np.ascontiguousarray(sample.bgr()[..., ::-1])
            solid = solid_of(picture, sample.points, models)
            count += 1
            if solid is None:
                continue
            yaw_deg = head_pose(solid.points[:, :2], OUT_HW).yaw_deg
            for n in range(cfg.each):
                side = np.sign(yaw_deg) if abs(yaw_deg) > 8 else rng.choice((-1.0, 1.0))
                by_yaw_deg = side * rng.uniform(*cfg.yaw_deg) - yaw_deg
                turned = turn(solid, by_yaw_deg, rng.uniform(-cfg.pitch_deg, cfg.pitch_deg))
                name = f"{made:05}_{n}.jpg"
                cv2.imwrite(str(cfg.out / name), turned.rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                points = [[round(float(x), 2), round(float(y), 2)] for x, y in turned.points]
                file.write(json.dumps({"image": name, "points": points, "group": group_of(sample)}) + "\n")
                if len(tiles) < 48 and rng.random() < 0.1:
                    tiles.append(Tile(turned.rgb, turned.points, f"{yaw_deg:.0f} by {by_yaw_deg:.0f}"))
            made += 1
    log.info("%s: %d of %d faces turned, %d images", cfg.out, made, count, made * cfg.each)
    if cfg.sheet and tiles:
        sheet(tiles, cfg.sheet, 8)
    return made * cfg.each


def _is_usable(sample: Sample, cfg: TurnConfig) -> bool:
    """Whether a face is labelled, large enough, certain enough, and not already in profile."""
    if not np.isfinite(sample.points).all() or sample.weight < cfg.min_weight:
        return False
    if np.ptp(sample.points, axis=0).max() < cfg.min_face_px:
        return False
    return abs(head_pose(sample.points, OUT_HW).yaw_deg) < FARTHEST_YAW_DEG


def solid_of(rgb: U8, points: F32, models: MeshModels) -> Solid | None:
    """The photo round a face with its depth; None if the mesh model sees no face.

    rgb: (H, W, 3), points: (98, 2) px of it.
    """
    roll_rad = WFLW98.roll_rad(points)
    crop = crop_from_frame(points, ModelCard("turn", WFLW98.name, OUT_HW, OUT_SCALE), roll_rad)
    face_V3 = _face_vertices(rgb, points, crop, models)
    if face_V3 is None:
        return None
    points_crop = apply(crop, points)
    yaw_deg = head_pose(points_crop, OUT_HW).yaw_deg
    if not np.isfinite(yaw_deg):
        return None
    front_V3 = _rotated(face_V3, _pivot(face_V3), -yaw_deg, 0.0)
    oval, head = np.array(OVAL), N_MESH + np.arange(len(OVAL))
    face = _delaunay(front_V3[:, :2])
    # where the edge is concave, these triangles would lie beside the face
    face = face[~np.isin(face, oval).all(1)]
    solid = Solid(
        warp(rgb, crop, OUT_HW),
        np.concatenate([face_V3, *_rings(face_V3, front_V3, yaw_deg)]),
        face,
        _strip(oval, head),
        _strip(head, head + len(OVAL)),
        np.zeros((0, 3)),
    )
    return solid._replace(points=np.column_stack([points_crop, _depth_at(solid, points_crop)]))


def _face_vertices(rgb: U8, points: F32, crop: F64, models: MeshModels) -> F64 | None:
    """(N_MESH, 3) the face mesh in px of crop; None if the model sees no face."""
    close = crop_from_frame(points, ModelCard("mesh", WFLW98.name, INPUT_HW, CROP_SCALE), WFLW98.roll_rad(points))
    mesh = models(warp(rgb, close, INPUT_HW)[None])
    if mesh.confidence[0] < MIN_CONFIDENCE:
        return None
    crop_from_close = compose(crop, invert(close))
    scale = float(np.hypot(*crop_from_close[0, :2]))
    return np.column_stack([apply(crop_from_close, mesh.features[0, :N_MESH]), mesh.depth[0] * scale])


def _rings(face_V3: F64, front_V3: F64, yaw_deg: float) -> tuple[F64, F64]:
    """The rings of the head and of the background, a vertex of each for every vertex of the face's edge.

    front_V3: face_V3 seen from the front, where the head's ring is laid out.
    """
    edge = front_V3[list(OVAL)]
    middle = (edge[:, :2].min(0) + edge[:, :2].max(0)) / 2
    half = float(np.ptp(edge[:, 0])) / 2
    angles = np.arctan2(*(edge[:, :2] - middle).T[::-1])
    deeper = half * (END_DEPTH + (SIDE_DEPTH - END_DEPTH) * np.cos(angles) ** 2)
    head_V3 = np.column_stack([middle + HEAD * (edge[:, :2] - middle), edge[:, 2] + deeper])
    around = np.column_stack([np.cos(angles), np.sin(angles)]) * OUT_HW[0] + OUT_HW[0] / 2
    background_V3 = np.column_stack([around, np.full(len(OVAL), face_V3[:, 2].max() + 4 * half)])
    return _rotated(head_V3, _pivot(face_V3), yaw_deg, 0.0), background_V3


def turn(solid: Solid, yaw_deg: float, pitch_deg: float) -> Turned:
    """The photo after a rotation of the head: positive yaw to the image's right, positive pitch up."""
    center = _pivot(solid.vertices[:N_MESH])
    vertices = _rotated(solid.vertices, center, yaw_deg, pitch_deg)
    fixed = slice(N_MESH + len(OVAL), None)
    vertices[fixed] = solid.vertices[fixed]
    points = _rotated(solid.points, center, yaw_deg, pitch_deg)
    # keep the face in the middle of the image
    bounds = points[:, :2]
    shift = np.array(OUT_HW[::-1]) / 2 - (bounds.min(0) + bounds.max(0)) / 2
    vertices[: N_MESH + len(OVAL), :2] += shift
    source_of = _source_map(solid, vertices)
    rgb = cv2.remap(solid.rgb, source_of, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return Turned(np.asarray(rgb, np.uint8), np.asarray(points[:, :2] + shift, np.float32))


def _pivot(face_V3: F64) -> F64:
    """(3,) a point on the rotation axis of the head."""
    edge = face_V3[list(OVAL)]
    half = float(np.hypot(*(face_V3[454] - face_V3[234])[[0, 2]])) / 2
    return np.array([*edge[:, :2].mean(0), face_V3[:, 2].min() + (1 + PIVOT_DEPTH) * half])


def _rotated(vertices_V3: F64, center: F64, yaw_deg: float, pitch_deg: float) -> F64:
    """Vertices rotated about center; x right, y down, z away from the camera."""
    yaw, pitch = np.radians(yaw_deg), np.radians(pitch_deg)
    about_y = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    return np.asarray((vertices_V3 - center) @ (about_x @ about_y).T + center, np.float64)


def _delaunay(points_V2: F64) -> Triangles:
    """(T, 3) indices of the Delaunay triangles, each anticlockwise on the screen."""
    points = np.asarray(points_V2, np.float32)
    low, high = points.min(0) - 8, points.max(0) + 8
    division = cv2.Subdiv2D((int(low[0]), int(low[1]), int(high[0] - low[0]) + 8, int(high[1] - low[1]) + 8))
    index = {}
    for i, (x, y) in enumerate(points.tolist()):
        division.insert((x, y))
        index[x, y] = i
    corners = np.asarray(division.getTriangleList()).reshape(-1, 3, 2).tolist()
    triangles = [[index[x, y] for x, y in three] for three in corners if all((x, y) in index for x, y in three)]
    return np.array(triangles, np.int32)


def _strip(inner: NDArray[np.int_], outer: NDArray[np.int_]) -> Triangles:
    """(T, 3) triangles between two closed lines with the same number of vertices."""
    inner_next, outer_next = np.roll(inner, -1), np.roll(outer, -1)
    return np.concatenate(
        [np.stack([inner, inner_next, outer], 1), np.stack([inner_next, outer_next, outer], 1)]
    ).astype(np.int32)


def _area(corners_T32: F64) -> F64:
    """(T,) twice the signed area on the screen."""
    (ax, ay), (bx, by) = (corners_T32[:, 1] - corners_T32[:, 0]).T, (corners_T32[:, 2] - corners_T32[:, 0]).T
    return np.asarray(ax * by - ay * bx, np.float64)


def _rasterised(vertices: F64, triangles: Triangles) -> NDArray[np.int32]:
    """(H, W) index of the triangle at each pixel, later ones on top; -1 for none."""
    ids = np.full(OUT_HW, -1.0, np.float32)
    fixed = np.round(np.clip(vertices[:, :2], -4096, 4096) * 16).astype(np.int32)
    for i, triangle in enumerate(triangles):
        cv2.fillConvexPoly(ids, fixed[triangle], (float(i),), cv2.LINE_8, 4)
    return ids.astype(np.int32)


def _source_map(solid: Solid, vertices: F64) -> F32:
    """(H, W, 2) the source in the photo of each output pixel."""
    before, after = (_area(v[solid.face][..., :2]) for v in (solid.vertices, vertices))
    # back-facing triangles of the face are hidden by front-facing ones
    seen = solid.face[after * np.sign(np.median(before)) > 0]
    far_first = [part[np.argsort(-vertices[part][..., 2].mean(1))] for part in (solid.head, seen)]
    triangles = np.concatenate([solid.background, *far_first])
    ids = _rasterised(vertices, triangles)
    ys, xs = np.mgrid[: OUT_HW[0], : OUT_HW[1]]
    at = np.stack([xs, ys], -1).astype(np.float32)
    matrices = np.stack([_affine(vertices[t][:, :2], solid.vertices[t][:, :2]) for t in triangles])
    of_pixel = matrices[np.maximum(ids, 0)]
    source = np.einsum("hwij,hwj->hwi", of_pixel[..., :2], at) + of_pixel[..., 2]
    return np.where(ids[..., None] >= 0, source, at).astype(np.float32)


def _affine(source_32: F64, target_32: F64) -> F64:
    """(2, 3) from one triangle to another; if the first has no area, everything maps to the other's centroid."""
    homogeneous = np.column_stack([source_32, np.ones(3)])
    if abs(np.linalg.det(homogeneous)) < 1e-3:
        return np.column_stack([np.zeros((2, 2)), target_32.mean(0)])
    return np.asarray(np.linalg.solve(homogeneous, target_32).T, np.float64)


def _depth_at(solid: Solid, points_K2: F32) -> F64:
    """(K,) depth of the face or head at each point."""
    triangles = np.concatenate([solid.head, solid.face])
    ids = _rasterised(solid.vertices, triangles)
    x, y = np.clip(np.round(points_K2), 0, np.array(OUT_HW[::-1]) - 1).astype(int).T
    depth = []
    for at, i in zip(points_K2, ids[y, x]):
        near = np.linalg.norm(solid.vertices[: N_MESH + len(OVAL), :2] - at, axis=1).argmin()
        corners = solid.vertices[triangles[i]] if i >= 0 else solid.vertices[[near]]
        low, high = corners[:, 2].min(), corners[:, 2].max()
        if i >= 0 and abs(np.linalg.det(np.column_stack([corners[:, :2], np.ones(3)]))) > 1e-3:
            plane = np.linalg.solve(np.column_stack([corners[:, :2], np.ones(3)]), corners[:, 2])
            depth.append(float(np.clip([*at, 1.0] @ plane, low, high)))
        else:
            depth.append((low + high) / 2)
    return np.array(depth)


if __name__ == "__main__":
    sys.exit(main())
