"""Analyst: follows the faces of one visitor's video, by the settings of the moment. And what it finds, as JSON."""

from __future__ import annotations

import math
from typing import Self

from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.landmarks.pose import aspect_ratios, head_pose
from lineament.landmarks.schema import SCHEMAS, WFLW98, convert
from lineament.landmarks.types import Frame, Result, Track
from lineament.stream.analyse.detect import VideoDetector
from lineament.stream.analyse.track import Tracker


class Analyst:
    """One visitor's detector and tracker: both remember, so nobody shares them. The models are shared and borrowed.

    Frames come from one thread at a time; settings may be set by another meanwhile and hold from the next frame on.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.settings = settings
        self._models = models
        self._detector = VideoDetector()
        self._tracker: Tracker | None = None
        self._made_for: tuple[object, ...] = ()

    def __call__(self, frame: Frame) -> Result:
        settings = self.settings
        wanted = (settings.model, settings.track)
        if self._tracker is None or wanted != self._made_for:
            self._tracker = Tracker(self._detector, self._models[settings.model], settings.track)
            self._made_for = wanted
        return self._tracker(frame)

    def close(self) -> None:
        """Lets go of the visitor's own graphs."""
        self._tracker = None
        self._detector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def measure(track: Track, frame: Frame) -> dict[str, object]:
    """What JSON says of a face beside its points; the names are those of the command line. None is not known."""
    pose, ratios = head_pose(track.points, _hw(frame)), aspect_ratios(track.points)
    return {
        "pose_deg": {"yaw": known(pose.yaw_deg), "pitch": known(pose.pitch_deg), "roll": known(pose.roll_deg)},
        "eye_aspect": [known(ratios.left_eye), known(ratios.right_eye)],
        "mouth_aspect": known(ratios.mouth),
    }


def as_json(result: Result, schema: str) -> dict[str, object]:
    """A result as the browser and the programming interface get it. schema: of the points that are wanted.

    It names no file and no address: what the source is called stays here.
    """
    height, width = _hw(result.frame)
    return {
        "index": result.frame.index,
        "width": width,
        "height": height,
        "schema": schema,
        "faces": [_face(track, result.frame, schema) for track in result.tracks],
        "ms": {stage: round(ms, 2) for stage, ms in result.ms.items()},
    }


def known(value: float, digits: int = 3) -> float | None:
    """Rounded for JSON, which has no nan."""
    return round(value, digits) if math.isfinite(value) else None


def _face(track: Track, frame: Frame, schema: str) -> dict[str, object]:
    points = convert(track.points, WFLW98, SCHEMAS[schema])
    return {
        "id": track.id,
        "score": known(float(track.face.score)),
        "confidence": known(float(track.confidence)),
        "box_xyxy": [known(v, 1) for v in track.face.box_xyxy.tolist()],
        "points": [[known(x, 2), known(y, 2)] for x, y in points.tolist()],
        **measure(track, frame),
    }


def _hw(frame: Frame) -> tuple[int, int]:
    return frame.bgr.shape[0], frame.bgr.shape[1]
