"""Head pose, and aspect ratios of eyes and mouth. numpy and cv2.

Angles are in degrees, and zero for a face that looks into the camera:

    yaw > 0    turned to the right of the image
    pitch > 0  looking up
    roll > 0   tilted clockwise on the screen

Rotating the image changes only roll. Angles are relative to the line of sight: a face at the edge of the image that
looks into the lens has yaw 0.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.schema import WFLW98, Schema
from lineament.landmarks.types import F64, Floats

SEEN = 0.5
"""a part of the face whose points are less visible, on average, is hidden"""
NEAREST = 3.0
"""smallest distance of a camera, in extents of the face; a cropped photo would imply a smaller one"""

STEEPEST = 0.35
"""cosine of the angle, about 70 degrees, up to which the points of a turned face can be turned to the front"""

_NO_DISTORTION = np.zeros(4)


class HeadPose(NamedTuple):
    """Degrees; the module's docstring defines the signs."""

    yaw_deg: float
    pitch_deg: float
    roll_deg: float


class AspectRatios(NamedTuple):
    """Height over width, 0 when closed."""

    left_eye: float
    right_eye: float
    mouth: float
    """of the inner lips"""


class Fit(NamedTuple):
    """The mean face as seen by the camera: x_camera = turn @ x_face + moved. All nan if no pose fits."""

    turn: F64
    """(3, 3) rotation"""
    moved: F64
    """(3,) in units of the mean face"""
    center: F64
    """(2,) frame px, where the optical axis is assumed: in the middle of the face"""
    focal_px: float

    @property
    def pose(self) -> HeadPose:
        return _angles(self.turn) if math.isfinite(self.focal_px) else HeadPose(math.nan, math.nan, math.nan)

    def frontal(self, points: Floats) -> F64:
        """points: (98, 2) frame px -> (98, 3) in the space of the mean face, x right, y down, z away: turned to the
        front, with the depths of the mean face. Nan if no pose fits."""
        rays = np.ones((len(points), 3))
        rays[:, :2] = (points - self.center) / self.focal_px
        rays = rays @ self.turn
        lens = -self.moved @ self.turn
        # each ray goes as deep as the mean face has its point; in a profile it would go far beyond
        away = (mean_shape()[:, 2] - lens[2]) / np.maximum(rays[:, 2], STEEPEST)
        return np.asarray(lens + away[:, None] * rays)


def head_pose(points: Floats, frame_hw: tuple[int, int]) -> HeadPose:
    """points: (98, 2) of WFLW98, frame px. All nan if no pose fits: coincident, nearly coincident, collinear or
    non-finite points.

    frame_hw gives the focal length: a camera's is about the longer side of its image.
    """
    # the optical axis, moved to the face, is the line of sight
    return fit(points, frame_hw).pose


def fit(points: Floats, frame_hw: tuple[int, int], axis_px: tuple[float, float] | None = None) -> Fit:
    """The same as rotation and translation of the mean face, for expression and gaze too.

    axis_px: where the optical axis passes through the frame; None for the middle of the face.
    """
    if points.shape != (len(WFLW98), 2):
        raise ValueError(f"head pose needs {len(WFLW98)} points (98, 2) of {WFLW98.name}, got shape {points.shape}")
    none = Fit(np.full((3, 3), math.nan), np.full(3, math.nan), np.full(2, math.nan), math.nan)
    if not np.isfinite(points).all():
        return none
    extent = float(np.ptp(points.astype(np.float64), axis=0).max())
    if not extent > 0:
        return none
    rigid, shape = _rigid()
    seen = points[rigid].astype(np.float64)
    center = seen.mean(0) if axis_px is None else np.array(axis_px)
    seen -= center
    focal = max(*frame_hw, NEAREST * extent)
    camera = np.array([[focal, 0.0, 0.0], [0.0, focal, 0.0], [0.0, 0.0, 1.0]])
    try:
        found, turn, moved = cv2.solvePnP(shape, seen, camera, _NO_DISTORTION, flags=cv2.SOLVEPNP_SQPNP)
    except cv2.error:  # nearly coincident points
        return none
    if not found or not np.isfinite(turn).all() or not np.isfinite(moved).all():
        return none
    return Fit(np.asarray(cv2.Rodrigues(turn)[0], np.float64), np.asarray(moved, np.float64)[:, 0], center, focal)


def camera_angles(points: Floats, frame_hw: tuple[int, int]) -> tuple[float, float, float]:
    """Rotation about the camera's axes x (right), y (down) and z (forward), R = Rx Ry Rz, in radians.

    OpenFace's pose_Rx, pose_Ry and pose_Rz: positive are down, to the left of the image, and clockwise; relative to the
    camera's axis, which passes through the middle of the image. points, frame_hw, nan: as for head_pose.
    """
    height, width = frame_hw
    found = fit(points, frame_hw, ((width - 1) / 2, (height - 1) / 2))
    if not math.isfinite(found.focal_px):
        return math.nan, math.nan, math.nan
    (xx, xy, xz), (_, _, yz), (_, _, zz) = found.turn.tolist()
    return math.atan2(-yz, zz), math.asin(max(-1.0, min(1.0, xz))), math.atan2(-xy, xx)


def aspect_ratios(points: Floats, schema: Schema = WFLW98, visibility: Floats | None = None) -> AspectRatios:
    """points: (K, 2) of schema, any unit. visibility: (K,) of the points, if known.

    nan for a part that is hidden, or has coincident corners or non-finite points.
    """
    parts = ("left_eye", "right_eye", "inner_lips")
    hidden = [visibility is not None and visibility[list(schema.parts[name])].mean() < SEEN for name in parts]
    return AspectRatios(
        *(math.nan if gone else _openness(schema.part(name, points)) for name, gone in zip(parts, hidden))
    )


def _openness(ring: Floats) -> float:
    """ring: (n, 2) from one corner along the top to the other and back along the bottom."""
    half = len(ring) // 2
    top, bottom = ring[1:half], ring[:half:-1]
    heights = [math.dist(a, b) for a, b in zip(top.tolist(), bottom.tolist(), strict=True)]
    width = math.dist(ring[0], ring[half])
    ratio = sum(heights) / len(heights) / width if 0 < width < math.inf else math.nan
    return ratio if math.isfinite(ratio) else math.nan


def _angles(turn: F64) -> HeadPose:
    """turn: (3, 3) rotation of the mean face into the camera, read as roll after yaw after pitch."""
    (xx, _, _), (yx, _, _), (zx, zy, zz) = turn.tolist()
    yaw, pitch, roll = math.asin(max(-1.0, min(1.0, zx))), -math.atan2(zy, zz), math.atan2(yx, xx)
    return HeadPose(math.degrees(yaw), math.degrees(pitch), math.degrees(roll))


@cache
def _rigid() -> tuple[list[int], F64]:
    """Indices of the points that are rigid on the skull, and their mean shape (n, 3). Not contour, lids and lips."""
    corners = [WFLW98.parts[eye][i] for eye in ("left_eye", "right_eye") for i in (0, 4)]
    brow_ends = [WFLW98.parts[brow][i] for brow in ("left_brow", "right_brow") for i in (0, 4)]
    mouth = [WFLW98.parts["outer_lips"][i] for i in (0, 6)]
    rigid = [*WFLW98.parts["nose_ridge"], *WFLW98.parts["nose_base"], *corners, *brow_ends, *mouth]
    return rigid, np.ascontiguousarray(mean_shape()[rigid])
