"""All affine code: transforms between frame and crop. Matrices are (2, 3) float64, named destination first:

    points_crop = apply(crop_from_frame, points_frame)

landmarks.types defines the pixel convention and unit coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, hypot, sin, sqrt

import cv2
import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.card import ModelCard
from lineament.landmarks.types import F32, F64, U8, Floats

FARTHEST_PX = 1e6
"""crops further than that from the frame's origin are black, because OpenCV's coordinates are limited"""
_NARROWEST = 0.25
"""smallest ratio of sides of a stretched box; profile faces have 0.5"""
_ENDLESS_PX = 1e30
"""the size of a region with larger coordinates may overflow"""


def crop_from_frame(region: Floats, card: ModelCard, roll_rad: float = 0.0) -> F64:
    """The matrix of the crop of `region` that `card` specifies, levelled by roll_rad.

    region: (4,) box_xyxy or (K, 2) points, frame px. The bounds of points are computed after levelling, a box is used
    as it is. The crop is a square of card.crop_scale times the longer side of the bounds; if crop_scale is a pair, its
    product with width and height, stretched to the input. Raises ValueError if region is empty, or not finite in
    float32.
    """
    if not np.abs(region).max() < _ENDLESS_PX:
        raise ValueError(f"cannot crop round a region that is not finite: {region.tolist()}")
    cos_roll, sin_roll = cos(roll_rad), sin(roll_rad)
    level = np.array([[cos_roll, sin_roll], [-sin_roll, cos_roll]])
    if region.ndim == 1:
        center_level = level @ ((region[:2] + region[2:]) / 2)
        extent_wh = region[2:] - region[:2]
    else:
        points_level = region @ level.T
        low, high = points_level.min(0), points_level.max(0)
        center_level, extent_wh = (low + high) / 2, high - low
    extent = float(max(extent_wh))
    if extent <= 0:
        raise ValueError(f"cannot crop round an empty region: {region.tolist()}")
    height, width = card.input_hw
    if isinstance(card.crop_scale, tuple):
        # the bounds of collinear points have no area to stretch
        crop_wh = np.maximum(extent_wh, extent * _NARROWEST) * card.crop_scale
        scale_xy = np.array([width, height]) / crop_wh
    else:
        scale_xy = np.full(2, width / (extent * card.crop_scale))
    offset = np.array([(width - 1) / 2, (height - 1) / 2]) - scale_xy * center_level
    return np.column_stack([scale_xy[:, None] * level, offset])


def mirrored(crop_from_frame: F64, input_hw: tuple[int, int]) -> F64:
    """The (2, 3) matrix of the mirror image of that crop."""
    across = np.array([[-1.0, 0.0, input_hw[1] - 1.0], [0.0, 1.0, 0.0]])
    return compose(across, crop_from_frame)


def apply(matrix: F64, points: Floats) -> F32:
    """matrix: (2, 3), points: (..., 2) -> (..., 2) float32; not finite where points are not, or on overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(points @ matrix[:, :2].T + matrix[:, 2], np.float32)


def invert(matrix: F64) -> F64:
    """(2, 3) -> (2, 3)."""
    # plain floats are several times faster than numpy.linalg for six numbers
    (a, b, x), (c, d, y) = matrix.tolist()
    det = a * d - b * c
    a, b, c, d = d / det, -b / det, -c / det, a / det
    return np.array([[a, b, -a * x - b * y], [c, d, -c * x - d * y]])


def crop_from_unit(input_hw: tuple[int, int]) -> F64:
    """From unit coordinates to pixels of a crop of (height, width)."""
    height, width = input_hw
    return np.array([[width, 0.0, -0.5], [0.0, height, -0.5]])


def compose(a_from_b: F64, b_from_c: F64) -> F64:
    """(2, 3), (2, 3) -> the (2, 3) that applies b_from_c first."""
    linear = a_from_b[:, :2]
    return np.column_stack([linear @ b_from_c[:, :2], linear @ b_from_c[:, 2] + a_from_b[:, 2]])


def frame_from_unit(crop_from_frame: F64, input_hw: tuple[int, int]) -> F64:
    """The matrix from a model's output to the frame."""
    return compose(invert(crop_from_frame), crop_from_unit(input_hw))


def bounds(points: Floats) -> F32:
    """(K, 2) points -> their (4,) box_xyxy."""
    # ufuncs: the array methods take twice as long, and this runs for every face of every frame
    return np.asarray(np.concatenate((np.minimum.reduce(points, 0), np.maximum.reduce(points, 0))), np.float32)


def iou(box_xyxy: Floats, boxes_N4: Floats) -> Floats:
    """(N,) intersection over union of one box (4,) with each of N."""
    low, high = np.maximum(box_xyxy[:2], boxes_N4[:, :2]), np.minimum(box_xyxy[2:], boxes_N4[:, 2:])
    shared = np.maximum(high - low, 0).prod(1)
    areas = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    return np.asarray(shared / ((box_xyxy[2:] - box_xyxy[:2]).prod() + areas - shared))


def warp(image: U8, crop_from_frame: F64, input_hw: tuple[int, int]) -> U8:
    """Cuts the crop out of image (H, W, C) -> (height, width, C); black outside, and entirely black beyond FARTHEST_PX.

    If the crop shrinks the image, the image is averaged first to avoid aliasing.
    """
    height, width = input_hw
    (a, b, x), (c, d, y) = crop_from_frame.tolist()
    scale = sqrt(abs(a * d - b * c))
    if not hypot(x, y) + width + height < FARTHEST_PX * scale:  # also true for nan
        return np.zeros((height, width, *image.shape[2:]), np.uint8)
    shrink = int(1 / scale)
    if shrink >= 2:
        image, crop_from_frame = _reduced(image, crop_from_frame, input_hw, shrink)
    crop = cv2.warpAffine(image, crop_from_frame, (width, height), flags=cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def rgb_crops(bgr: U8, crop_from_frame: Sequence[F64], input_hw: tuple[int, int]) -> U8:
    """bgr: (H, W, 3). The crops of these matrices, as a landmark model takes them: (N, height, width, 3) RGB."""
    crops = [cv2.cvtColor(warp(bgr, matrix, input_hw), cv2.COLOR_BGR2RGB) for matrix in crop_from_frame]
    return np.array(crops, np.uint8).reshape(-1, *input_hw, 3)


def covered(crop_from_frame: F64, input_hw: tuple[int, int], frame_hw: tuple[int, ...]) -> NDArray[np.intp]:
    """(4,) left, top, right, bottom: the pixels of the frame that the crop is interpolated from. Empty if it lies
    outside; the last row and column do not belong to it."""
    height, width = input_hw
    corners = np.array([[-1.0, -1.0], [width, -1.0], [width, height], [-1.0, height]])
    corners_frame = apply(invert(crop_from_frame), corners)
    limit = np.array([frame_hw[1], frame_hw[0]])
    low = np.clip(np.floor(corners_frame.min(0)), 0, limit)
    high = np.clip(np.ceil(corners_frame.max(0)) + 1, 0, limit)
    return np.concatenate([low, high]).astype(np.intp)


def _reduced(image: U8, crop_from_frame: F64, input_hw: tuple[int, int], shrink: int) -> tuple[U8, F64]:
    """The part of image under the crop, averaged over shrink x shrink pixels, and the crop's matrix for it."""
    box = covered(crop_from_frame, input_hw, image.shape[:2])
    low, high = box[:2], box[2:]
    cells = (high - low) // shrink
    if (cells < 1).any():
        return image, crop_from_frame
    high = low + cells * shrink
    small = cv2.resize(image[low[1] : high[1], low[0] : high[0]], tuple(map(int, cells)), interpolation=cv2.INTER_AREA)
    # the centre of a small pixel is the middle of its shrink x shrink block
    x, y = low + (shrink - 1) / 2
    frame_from_small = np.array([[shrink, 0.0, x], [0.0, shrink, y]])
    return np.asarray(small, np.uint8), compose(crop_from_frame, frame_from_small)
