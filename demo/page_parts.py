"""HTML for what Gradio has no component for. All text that a visitor can influence is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any

from lineament.demo.clip import ANGLES, OPENNESS, Annotated
from lineament.demo.compare import SIDES, Measured
from lineament.demo.picture import Timed, downloads, drawn_url
from lineament.demo.settings import Settings
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import Result
from lineament.stream.write.json_line import face_json

_FOLDER = files("lineament.demo") / "page"


def css() -> str:
    return (_FOLDER / "lineament.css").read_text("utf-8")


def head() -> str:
    """The page's scripts, with the parts of each schema filled in."""
    schemas = {
        name: [
            {"name": part, "indices": list(indices), "closed": part in schema.closed}
            for part, indices in schema.parts.items()
        ]
        for name, schema in SCHEMAS.items()
    }
    script = "\n".join((_FOLDER / f"{name}.js").read_text("utf-8") for name in ("signals", "keep", "pair", "lineament"))
    # in a block, so that the page has one global of ours
    return f"<script>{{\n{script.replace('/*SCHEMAS*/ {}', json.dumps(schemas))}}}</script>"


def view(name: str) -> str:
    """A live view: "live" or "camera"."""
    parts = "".join((_FOLDER / f"{part}.html").read_text("utf-8") for part in (name, "picture"))
    return f'<div class="ln-view">{parts}</div>'


def error(text: object) -> str:
    return f'<p class="ln-error" role="alert">{escape(str(text))}</p>'


def empty(text: str) -> str:
    return f'<p class="ln-empty">{escape(text)}</p>'


def note(text: str) -> str:
    return f'<p class="ln-status" role="status">{escape(text)}</p>'


def picture(result: Result, settings: Settings, left_out: str = "") -> str:
    """A zoomable drawing, a summary, a table of all faces, and downloads. left_out: what of the file is not shown."""
    faces = len(result.tracks)
    height, width = result.frame.bgr.shape[:2]
    spent_ms = sum(result.ms.values())
    found = f"{faces} {'face' if faces == 1 else 'faces'} in {width} x {height} px, {spent_ms:.0f} ms"
    if not faces:
        found += "; try a larger or sharper face, or a lower confidence"
    named = dict(downloads(result, settings))
    links = "".join(_download(name, url, "ln-button") for name, url in named.items() if not name.endswith(".pts"))
    table = _faces(result, settings, named) if faces else ""
    return f'{_left_out(left_out)}{_zoom(drawn_url(result, settings), found)}<div class="ln-bar">{links}</div>{table}'


def _faces(result: Result, settings: Settings, named: dict[str, str]) -> str:
    """A row per face. named: file name to URL, with the .pts of each face."""
    rows = []
    for track in result.tracks:
        face: dict[str, Any] = face_json(track, result.frame, settings.schema)
        left, top, right, bottom = track.face.box_xyxy.tolist()
        box = f"{left:.0f}, {top:.0f}, {right - left:.0f} x {bottom - top:.0f}"
        angles = [_number(angle, 0) for angle in face["pose_deg"].values()]
        openness = [_number(ratio, 2) for ratio in (*face["eye_aspect"], face["mouth_aspect"])]
        name = f"face-{track.id}.pts"
        cells = (str(track.id), _number(face["confidence"], 2), box, *angles, *openness, _download(name, named[name]))
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    titles = ("face", "confidence", "x, y, size in px", *ANGLES, *OPENNESS, "points")
    return f'<div class="ln-scroll" tabindex="0" role="region" aria-label="all faces">{_table(titles, rows)}</div>'


def compared(
    first: Timed, second: Timed, apart_percent: float, settings: Settings, left_out: str = ""
) -> tuple[str, str, str]:
    """Both drawings, and a table of their times. left_out: what of the file is not shown."""
    rows = [
        f"<td>{escape(timed.model)}</td><td>{len(timed.result.tracks)}</td><td>{_number(timed.landmark_ms)}</td>"
        f"<td>{_number(sum(timed.result.ms.values()))}</td>"
        for timed in (first, second)
    ]
    table = _table(("model", "faces", "per face, ms", "whole picture, ms"), rows)
    drawings = [_zoom(drawn_url(timed.result, settings), timed.model) for timed in (first, second)]
    return drawings[0], drawings[1], _left_out(left_out) + table + note(_apart(apart_percent))


def compared_clips(first: Measured, second: Measured, apart_percent: float, url: str) -> tuple[str, str, str]:
    """Both annotated clips, which play together, and a table. url: of the folder of both."""
    rows = [
        f"<td>{escape(one.model)}</td><td>{one.made.frames}</td><td>{one.made.faces}</td>"
        f"<td>{_number(one.made.landmark_ms)}</td><td>{_number(one.frame_ms)}</td><td>{_number(one.jitter, 2)}</td>"
        for one in (first, second)
    ]
    titles = ("model", "frames", "faces", "landmarks, ms per frame", "in all, ms per frame", "jitter, ‰")
    videos = [
        note(one.model) + _video(one.made, f"{url}/{side}", f"{one.model}-", 'data-ln="pair"')
        for one, side in zip((first, second), SIDES)
    ]
    text = f"{_apart(apart_percent)} Jitter, while a head is nearly still, is in ‰ of the face size; less is steadier."
    return videos[0], videos[1], _table(titles, rows) + note(text)


def clip(made: Annotated, folder_url: str) -> str:
    """The annotated clip, playable, and downloads of it and its points."""
    faces = "1 face" if made.faces == 1 else f"{made.faces} faces"
    found = f"{made.frames} frames, {faces}, {made.landmark_ms:.1f} ms per frame for the landmarks"
    return _video(made, folder_url, "", "") + note(found)


def _video(made: Annotated, folder_url: str, prefix: str, attributes: str) -> str:
    """A player and downloads. prefix: of the downloads' names."""
    links = "".join(
        _download(prefix + path.name, f"{folder_url}/{path.name}", "ln-button") for path in (made.video, made.jsonl)
    )
    source = f"{folder_url}/{made.video.name}"
    player = f'<video class="ln-video" {attributes} controls muted autoplay loop playsinline src="{source}"></video>'
    return f'{player}<div class="ln-bar">{links}</div>'


def _apart(percent: float) -> str:
    if math.isnan(percent):
        return "No face was found by both models."
    return f"Mean distance between their points: {percent:.2f} % of the distance between the outer eye corners."


def _left_out(what: str) -> str:
    return note(f"Only a part of the file is shown: {what}.") if what else ""


def _zoom(url: str, caption: str) -> str:
    buttons = "".join(
        f'<button type="button" class="ln-button" data-ln-zoom="{step}" aria-label="{label}">{sign}</button>'
        for step, label, sign in (("in", "zoom in", "+"), ("out", "zoom out", "-"), ("all", "reset zoom", "1:1"))
    )
    return (
        f'<div class="ln-zoom" data-ln="zoom" tabindex="0" aria-label="drawing; plus and minus zoom, arrow keys pan">'
        f'<img src="{url}" alt="{escape(caption)}" draggable="false"></div>'
        f'<div class="ln-bar">{buttons}<span class="ln-status" role="status">{escape(caption)}</span></div>'
    )


def _download(name: str, url: str, kind: str = "") -> str:
    return f'<a class="{kind}" download="{escape(name)}" href="{url}">{escape(name)}</a>'


def _table(titles: Sequence[str], rows: Sequence[str]) -> str:
    """rows: of cells."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table class="ln-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _number(value: float | None, digits: int = 1) -> str:
    # + 0 makes 0 of -0
    return "-" if value is None or math.isnan(value) else f"{round(value, digits) + 0:.{digits}f}"
