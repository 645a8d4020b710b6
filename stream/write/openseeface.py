"""OpenSeeFace's packet of one face, for programs that take its tracking: VSeeFace, VTube Studio, Unity.

The layout is that of facetracker.py and Unity/OpenSee.cs in https://github.com/emilianavt/OpenSeeFace. Its tracker
takes image points as (row, column), so its camera has x down and y to the right; its face has x to the left of the
image, y up and z towards the camera, starts at the tip of the nose and is one unit wide. Of the two solutions that such
a camera has, its solver ends in the one behind the camera, and receivers expect that.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping

import cv2
import numpy as np

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.expression import expression
from lineament.landmarks.gaze import RADIUS, sight
from lineament.landmarks.iris import PUPILS
from lineament.landmarks.pose import Fit, fit
from lineament.landmarks.schema import WFLW98, ibug68_from_wflw98
from lineament.landmarks.types import F64, Floats, Track
from lineament.stream.write.udp import Moment

_UNIT = 0.33
"""of OpenSeeFace's face, per unit of the mean face: both are as wide as the contour"""
_TIP = WFLW98.parts["nose_ridge"][-1]
_OF_IBUG = [i for i in range(68) if i not in (48, 54)]
"""its 66 points: iBUG's 68 without the outer corners of the mouth"""


def packet(moment: Moment) -> list[bytes]:
    """One packet, or none without a face. Its id is always 0, the only one that receivers look for."""
    if moment.track is None:
        return []
    found = fit(moment.track.points, moment.frame_hw)
    return [_packed(moment.track, found, moment.frame_hw)] if math.isfinite(found.focal_px) else []


def _packed(track: Track, found: Fit, frame_hw: tuple[int, int]) -> bytes:
    height, width = frame_hw
    found_values = expression(track.points, found, track.irises, track.neutral, track.visibility)
    # a receiver takes a number for each; what is hidden is at rest
    values = {name: value if math.isfinite(value) else 0.0 for name, value in found_values.items()}
    seen = np.ones(98) if track.visibility is None else track.visibility
    turn = found.turn[[1, 0, 2]] * ((1,), (1,), (-1,))
    return b"".join(
        [
            struct.pack("<di2f", time.time(), 0, width, height),
            struct.pack("<2f", 1 - values["eyeBlinkRight"], 1 - values["eyeBlinkLeft"]),
            struct.pack("<Bf", 1, _error_px(track.points, found)),
            struct.pack("<4f", *_quaternion(turn)),
            struct.pack("<3f", *cv2.RQDecomp3x3(turn)[0]),
            struct.pack("<3f", *_translation(found, frame_hw)),
            (track.confidence * _chosen(seen[:, None])[:, 0]).astype("<f4").tobytes(),
            _chosen(track.points).astype("<f4").tobytes(),
            (_face_points(track, found) * (1, -1, -1)).astype("<f4").tobytes(),
            np.array(_features(values), "<f4").tobytes(),
        ]
    )


def _chosen(points: Floats) -> Floats:
    """(98, n) of WFLW98 -> (68, n): its 66 and the pupils, right eye of the person first."""
    return np.concatenate([ibug68_from_wflw98(points)[_OF_IBUG], points[PUPILS]])


def _error_px(points: Floats, found: Fit) -> float:
    """Root mean square of the distance between a point and the mean face's."""
    seen = mean_shape() @ found.turn.T + found.moved
    off = seen[:, :2] / seen[:, 2:] * found.focal_px + found.center - points
    return float(np.sqrt((off * off).sum(1).mean()))


def _quaternion(turn: F64) -> F64:
    """(4,) x, y, z, w of the inverse rotation, as its matrix_to_quaternion has it; x is never negative."""
    axis = np.asarray(cv2.Rodrigues(turn.T)[0], np.float64)[:, 0]
    angle = float(np.linalg.norm(axis))  # about half a turn
    found = np.append(axis * (math.sin(angle / 2) / max(angle, 1e-12)), math.cos(angle / 2))
    return -found if found[0] < 0 else found


def _translation(found: Fit, frame_hw: tuple[int, int]) -> F64:
    """(3,) of the tip of the nose, from the camera."""
    height, width = frame_hw
    aside = np.append((found.center - ((width - 1) / 2, (height - 1) / 2)) / found.focal_px, 0.0)
    tip = found.turn @ mean_shape()[_TIP] + found.moved + found.moved[2] * aside
    return np.asarray(-_UNIT * tip[[1, 0, 2]])


def _face_points(track: Track, found: Fit) -> F64:
    """(70, 3): the 68 turned to the front, then the eyeballs, whose direction to the pupils is the gaze."""
    chosen = _chosen(found.frontal(track.points))
    look = sight(track.points, found, track.irises, track.neutral)
    ahead = look if np.isfinite(look).all() else np.array([0.0, 0.0, -1.0])
    both = np.concatenate([chosen, chosen[-2:] - RADIUS * ahead])
    return np.asarray(_UNIT * (mean_shape()[_TIP] - both))


def _features(values: Mapping[str, float]) -> list[float]:
    """Its 14 features, from -1 to 1: eyes; steepness, height and quirk of the brows; height and width of the corners of
    the mouth, then of the mouth. Steepness and quirk are 0. A corner is positive where it is low."""
    eyes, brows, corners = [], [], []
    for side in ("Left", "Right"):
        eyes.append(values[f"eyeWide{side}"] - values[f"eyeBlink{side}"])
        raised = max(values["browInnerUp"], values[f"browOuterUp{side}"])
        brows += [0.0, raised - values[f"browDown{side}"], 0.0]
        wide = max(values[f"mouthSmile{side}"], values[f"mouthStretch{side}"])
        narrow = max(values["mouthPucker"], values["mouthFunnel"])
        corners += [values[f"mouthFrown{side}"] - values[f"mouthSmile{side}"], wide - narrow]
    return [*eyes, *brows, *corners, values["jawOpen"], (corners[1] + corners[3]) / 2]
