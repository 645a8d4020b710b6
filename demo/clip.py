"""Annotates a clip: an MP4, the points as JSON lines, and signals of each face over time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lineament.demo.config import Limits
from lineament.demo.models import Models
from lineament.demo.settings import Settings
from lineament.demo.uploads import check_clip
from lineament.demo.visitors import Cancelled
from lineament.landmarks.pose import aspect_ratios, head_pose
from lineament.landmarks.types import LineamentError, Result
from lineament.stream.read.pictures import AnimationSource
from lineament.stream.read.video import VideoSource
from lineament.stream.run.session import Session, SessionConfig
from lineament.stream.write.json_line import known

OPENNESS = ("left eye", "right eye", "mouth")
"""height divided by width"""
ANGLES = ("yaw", "pitch", "roll")
"""of the head, degrees"""

Row = tuple[int, float, dict[str, float | None]]
"""face id, time in s, value per signal"""


@dataclass(frozen=True, slots=True)
class Annotated:
    """The results of a clip."""

    video: Path
    jsonl: Path
    rows: list[Row]
    frames: int
    faces: int
    """number of distinct ids"""
    landmark_ms: float
    """mean over the frames that have a face"""


def annotate(
    path: Path,
    folder: Path,
    settings: Settings,
    models: Models,
    limits: Limits,
    cancelled: threading.Event,
    on_progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Annotated:
    """Writes annotated.mp4 and points.jsonl to folder. on_progress: gets the frames done and the total, if known.

    Raises Cancelled soon after the event is set, LineamentError if the file is not a clip or exceeds a limit.
    """
    reader = AnimationSource if check_clip(path, limits) == "animation" else VideoSource
    source = reader(path, max_pixels=int(limits.clip_megapixels * 1e6))
    source.name = "clip"  # errors and results must not contain the server's path
    video, jsonl = folder / "annotated.mp4", folder / "points.jsonl"
    cfg = SessionConfig(view=settings.view, track=settings.track)
    rows: list[Row] = []
    landmark_ms: list[float] = []
    with Session(cfg, source, models[settings.model], (str(video), str(jsonl)), str(path)) as session:
        for result, _ in session:
            if cancelled.is_set():
                raise Cancelled
            frames = session.stats.frames
            if frames > limits.clip_frames or result.frame.time_s > limits.clip_s + 1:
                raise LineamentError(
                    f"the clip is longer than its header says; the limit is {limits.clip_s:g} s and "
                    f"{limits.clip_frames} frames; use a part of it"
                )
            rows += _rows(result)
            if result.tracks:
                landmark_ms.append(result.ms.get("landmark", 0.0))
            on_progress(frames, source.frame_count)
    faces = len({face for face, _, _ in rows})
    return Annotated(video, jsonl, rows, session.stats.frames, faces, sum(landmark_ms) / max(len(landmark_ms), 1))


def _rows(result: Result) -> list[Row]:
    height, width = result.frame.bgr.shape[:2]
    rows: list[Row] = []
    for track in result.tracks:
        pose = head_pose(track.points, (height, width))
        ratios = aspect_ratios(track.points, visibility=track.visibility)
        values = dict(zip((*OPENNESS, *ANGLES), (known(value) for value in (*ratios, *pose))))
        rows.append((track.id, round(result.frame.time_s, 3), values))
    return rows
