"""One clip: an annotated MP4, the points as JSON lines, and the signals of each face over time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lineament.demo.analyst import Analyst
from lineament.demo.config import Limits
from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.demo.uploads import check_clip
from lineament.landmarks.pose import aspect_ratios, head_pose
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import LineamentError, Result
from lineament.stream.read.video import VideoSource
from lineament.stream.run.pipeline import Pipeline
from lineament.stream.write.draw import draw
from lineament.stream.write.files import JsonlSink, VideoSink
from lineament.stream.write.json_line import known

OPENNESS = ("left eye", "right eye", "mouth")
"""height over width"""
ANGLES = ("yaw", "pitch", "roll")
"""of the head, degrees"""

Row = tuple[int, float, dict[str, float | None]]
"""face id, seconds, signal to value"""


class Cancelled(Exception):  # noqa: N818 - a state, not a fault
    """The visitor no longer wants the clip."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """What was made of a clip."""

    video: Path
    jsonl: Path
    rows: list[Row]
    frames: int
    faces: int
    """different ids seen"""
    landmark_ms: float
    """mean over the frames with a face"""


def annotate(
    path: Path,
    folder: Path,
    settings: Settings,
    models: Models,
    limits: Limits,
    cancelled: threading.Event,
    told: Callable[[int, int | None], None] = lambda done, total: None,
) -> Annotated:
    """Writes annotated.mp4 and points.jsonl into folder. told: is called with frames done and in all, if known.

    Raises Cancelled soon after the event is set, LineamentError for what is no clip or more than the limits allow.
    """
    check_clip(path, limits)
    source = VideoSource(path, max_pixels=int(limits.clip_megapixels * 1e6))
    source.name = "clip"  # the path is nobody's business
    video, jsonl = folder / "annotated.mp4", folder / "points.jsonl"
    rows: list[Row] = []
    ids: set[int] = set()
    frames, landmark_ms, with_face = 0, 0.0, 0
    with (
        Analyst(models, settings) as analyst,
        Pipeline(source, analyst) as results,
        VideoSink(video, source.fps) as pictures,
        JsonlSink(str(jsonl), settings.schema) as lines,
    ):
        for result in results:
            if cancelled.is_set():
                raise Cancelled
            if frames >= limits.clip_frames or result.frame.time_s > limits.clip_s + 1:
                raise LineamentError(
                    f"the clip is longer than it says, at most {limits.clip_s:g} s and {limits.clip_frames} frames "
                    "are taken; send a part of it"
                )
            if result.frame.bgr.shape[0] * result.frame.bgr.shape[1] > limits.clip_megapixels * 1e6:
                raise LineamentError("the clip's frames grow beyond the size that it says; send another")
            pictures.write(result, drawn := draw(result, WFLW98, settings.view))
            lines.write(result, drawn)
            rows += _rows(result)
            frames += 1
            ids |= {track.id for track in result.tracks}
            if result.tracks:
                with_face, landmark_ms = with_face + 1, landmark_ms + result.ms.get("landmark", 0.0)
            told(frames, source.frame_count)
    if not frames:
        raise LineamentError("the clip has no frame that can be decoded; does another player open it?")
    return Annotated(video, jsonl, rows, frames, len(ids), landmark_ms / max(with_face, 1))


def _rows(result: Result) -> list[Row]:
    height, width = result.frame.bgr.shape[:2]
    rows: list[Row] = []
    for track in result.tracks:
        pose, ratios = head_pose(track.points, (height, width)), aspect_ratios(track.points)
        values = dict(zip((*OPENNESS, *ANGLES), (known(value) for value in (*ratios, *pose))))
        rows.append((track.id, round(result.frame.time_s, 3), values))
    return rows
