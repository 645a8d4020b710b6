"""Draws a result: points, curves, ids, boxes, head pose and gaze on a copy of the frame."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, isnan, radians, sin, sqrt
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from lineament.landmarks.gaze import gaze
from lineament.landmarks.pose import SEEN, aspect_ratios, fit, head_pose
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema, points_of, visibility_of
from lineament.landmarks.types import F32, U8, Floats, Result, Track

_COLOURS_BGR = (
    (120, 230, 60),
    (255, 170, 50),
    (80, 160, 255),
    (230, 110, 230),
    (90, 220, 240),
    (210, 200, 70),
    (130, 130, 255),
    (180, 240, 160),
)
"""one per track, distinct on skin and on dark backgrounds; reused by id"""
_SUBPIXEL_BITS = 4
_FAINT = 0.3
"""opacity of what is hidden"""
_FARTHEST = 8
"""longer sides of the picture: a face with a point beyond is invalid, and would overflow OpenCV's integers"""

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DrawConfig:
    """What to draw."""

    draw: Literal["points", "curves", "both", "none"] = "both"
    """Landmarks as dots, as curves along the parts of the face, both or none."""
    schema: Literal["wflw98", "ibug68", "mesh468"] = "wflw98"
    """The points to draw and write: the 98 of WFLW, the 68 of iBUG among them, or the 468 of MediaPipe's face mesh. Its
    model then also runs on each face, whichever --model finds it, and needs the package mediapipe."""
    boxes: bool = False
    """Draw each face's box with its confidence."""
    pose: bool = False
    """Draw each head's direction, with its angles in degrees and the openness of eyes and mouth."""
    gaze: bool = False
    """Draw where each pair of eyes looks: a short line from each eye, none while it is closed."""


def draw(result: Result, schema: Schema, cfg: DrawConfig, note: str = "") -> U8:
    """A copy of the frame (H, W, 3) BGR with every track on it. schema: of the result's points.

    Line width and dot size scale with the face, text with the picture. note: a line for the corner. A face whose points
    or box are not finite, or absurdly far away, is skipped.
    """
    canvas = result.frame.bgr.copy()
    text_px = max(11.0, min(canvas.shape[:2]) / 32)
    farthest_px = _FARTHEST * max(canvas.shape[:2])
    tracks = [t for t in result.tracks if np.abs(np.append(t.points, t.face.box_xyxy)).max() <= farthest_px]
    shapes = [_Shape.of(track, schema, SCHEMAS[cfg.schema]) for track in tracks]
    if not all(shape.seen.all() for shape in shapes):
        faint = canvas.copy()
        for shape in shapes:
            shape.draw(faint, cfg, seen=False)
        cv2.addWeighted(faint, _FAINT, canvas, 1 - _FAINT, 0, canvas)
    for track, shape in zip(tracks, shapes):
        shape.draw(canvas, cfg, seen=True)
        colour, face_px = shape.colour, shape.face_px
        x1, y1, x2, y2 = (float(v) for v in track.face.box_xyxy)
        if cfg.boxes:
            thick = max(1, round(face_px / 150))
            cv2.rectangle(canvas, _fixed((x1, y1)), _fixed((x2, y2)), colour, thick, cv2.LINE_AA, _SUBPIXEL_BITS)
        if cfg.draw != "none" or cfg.boxes:
            label = f"{track.id}  {track.confidence:.2f}" if cfg.boxes else f"{track.id}"
            _text(canvas, label, (x1, y1 - text_px * 0.5), text_px, _light(colour))
        if cfg.pose:
            _pose(canvas, track, schema, colour, text_px)
        if cfg.gaze:
            _gaze(canvas, track, schema)
    if note:
        _text(canvas, note, (text_px * 0.5, text_px * 1.3), text_px, (255, 255, 255))
    return canvas


class _Shape(NamedTuple):
    """The curves and dots of one face."""

    schema: Schema
    points: F32
    """(K, 2) frame px"""
    seen: NDArray[np.bool_]
    """(K,) all of them if the model does not say"""
    colour: Colour

    @classmethod
    def of(cls, track: Track, source: Schema, schema: Schema) -> _Shape:
        """source: of the track's points."""
        visibility = visibility_of(track, source, schema)
        seen = np.ones(len(schema), bool) if visibility is None else np.asarray(visibility >= SEEN)
        return cls(schema, points_of(track, source, schema), seen, _COLOURS_BGR[track.id % len(_COLOURS_BGR)])

    @property
    def face_px(self) -> float:
        return float(np.ptp(self.points, axis=0).max())

    def draw(self, canvas: U8, cfg: DrawConfig, seen: bool) -> None:
        """The part that is seen, or the hidden one, to which a curve belongs as soon as one of its ends is hidden."""
        if cfg.draw in ("curves", "both"):
            edges = np.array(self.schema.edges)
            self._curves(canvas, edges[self.seen[edges].all(1) == seen])
        if cfg.draw in ("points", "both"):
            self._dots(canvas, self.points[self.seen == seen])

    def _curves(self, canvas: U8, edges: NDArray[np.intp]) -> None:
        fixed = np.round(self.points * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        thick = max(1, round(self.face_px / 200))
        cv2.polylines(canvas, list(fixed[edges]), False, self.colour, thick, cv2.LINE_AA, _SUBPIXEL_BITS)

    def _dots(self, canvas: U8, points: F32) -> None:
        # dots of a dense mesh would hide the face
        radius = max(0.7, self.face_px / 150) * min(1.0, sqrt(len(WFLW98) / len(self.schema)))
        light = _light(self.colour)
        fixed_radius = round(radius * (1 << _SUBPIXEL_BITS))
        for point in points:
            cv2.circle(canvas, _fixed(point), fixed_radius, light, cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)


def _pose(canvas: U8, track: Track, schema: Schema, colour: Colour, text_px: float) -> None:
    """A line from the nose tip in the head's direction, and the numbers under the chin."""
    height, width = canvas.shape[:2]
    pose, ratios = head_pose(track.points, (height, width)), aspect_ratios(track.points, schema, track.visibility)
    if isnan(pose.yaw_deg):
        return
    yaw, pitch, roll = (radians(angle) for angle in pose)
    right, down = sin(yaw) * cos(pitch), -sin(pitch)
    x, y = schema.part("nose_ridge", track.points)[-1]
    length = 0.7 * float(np.ptp(track.points, axis=0).max())
    tip = (x + length * (right * cos(roll) - down * sin(roll)), y + length * (right * sin(roll) + down * cos(roll)))
    thick = max(1, round(length / 40))
    cv2.line(canvas, _fixed((x, y)), _fixed(tip), (70, 70, 255), thick, cv2.LINE_AA, _SUBPIXEL_BITS)
    x1, _, _, y2 = (float(v) for v in track.face.box_xyxy)
    lines = (
        f"yaw {pose.yaw_deg:+.0f} pitch {pose.pitch_deg:+.0f} roll {pose.roll_deg:+.0f}",
        f"eyes {ratios.left_eye:.2f} {ratios.right_eye:.2f} mouth {ratios.mouth:.2f}",
    )
    for row, line in enumerate(lines):
        _text(canvas, line, (x1, y2 + text_px * (1.3 + 1.3 * row)), text_px * 0.8, _light(colour))


def _gaze(canvas: U8, track: Track, schema: Schema) -> None:
    """A line from the middle of each eye; a look into the camera is a dot."""
    look = gaze(track.points, fit(track.points, canvas.shape[:2]), track.irises, track.neutral)
    if isnan(look.yaw_deg):
        return
    yaw, pitch = radians(look.yaw_deg), radians(look.pitch_deg)
    toward = np.array([sin(yaw) * cos(pitch), -sin(pitch)])
    for eye in ("left_eye", "right_eye"):
        ring = schema.part(eye, track.points)
        start, width = (ring[0] + ring[4]) / 2, float(np.linalg.norm(ring[4] - ring[0]))
        thick = max(1, round(width / 12))
        tip = start + 2.5 * width * toward
        cv2.line(canvas, _fixed(start), _fixed(tip), (60, 220, 255), thick, cv2.LINE_AA, _SUBPIXEL_BITS)


def _text(canvas: U8, text: str, at: tuple[float, float], height_px: float, colour: Colour) -> None:
    """Text with a dark outline, the left end of its baseline at `at`, kept inside the picture."""
    scale = height_px / 25
    thick = max(1, round(scale * 1.5))
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = round(min(max(at[0], 2), canvas.shape[1] - width - 2))
    y = round(min(max(at[1], height + 2), canvas.shape[0] - 3))
    # not one thicker text below: its letters are wider, so it would not end with this one
    for dx, dy in ((-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1), (0, 0)):
        tint, at_px = (20, 20, 20) if dx or dy else colour, (x + dx * thick, y + dy * thick)
        cv2.putText(canvas, text, at_px, cv2.FONT_HERSHEY_SIMPLEX, scale, tint, thick, cv2.LINE_AA)


def _light(colour: Colour) -> Colour:
    """Nearly white with a tint of the colour: visible on skin, hair and its own lines."""
    b, g, r = (int(255 - (255 - c) * 0.35) for c in colour)
    return b, g, r


def _fixed(point: Floats | tuple[float, float]) -> tuple[int, int]:
    """Frame px as the fixed-point integers of OpenCV's sub-pixel drawing."""
    return round(float(point[0]) * (1 << _SUBPIXEL_BITS)), round(float(point[1]) * (1 << _SUBPIXEL_BITS))
