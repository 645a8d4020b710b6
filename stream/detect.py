"""Where the faces are. Owns the detectors: which windows of a frame BlazeFace looks at, and how its answers are merged.

    with StreamFaces() as detect:
        faces = detect(bgr)

BlazeFace is the detector inside the mediapipe package; we run its two .tflite graphs by OpenVINO, without MediaPipe.
A graph sees one small square, so a detector here is a choice of windows (square regions of the frame, levelled by a
roll): the whole frame, a border round it, overlapping tiles for small faces, quarter turns for lying ones.

A row describes one candidate: centre x y, width, height, image-left eye x y, image-right eye x y (suffix _N8).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Iterator
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import cv2
import numpy as np

from landmarks.card import ModelCard
from landmarks.geometry import apply, crop_from_frame, invert
from landmarks.types import F32, F64, U8, Face, LineamentError

Range = Literal["short", "full"]

MERGE_IOU = 0.3
"""candidates that overlap more than this are one face; MediaPipe's own value"""
PROPOSE = 0.3
"""score from which a candidate is worth a second look"""
SURE = 0.7
"""score of the second look that tells faces from the rest: 99.9 % of faces pass, 1 % of other proposals"""
TILE_PER_FACE = 10.0
"""the full range sees a face from about a tenth of its window's side"""


class Window(NamedTuple):
    """A square region of a frame, in frame px, levelled by roll_rad before a graph looks at it."""

    x: float
    """centre"""
    y: float
    """centre"""
    side: float
    roll_rad: float = 0.0


class _Detector:
    """What every detector here shares: the check of its input, the block, and closing twice."""

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        """bgr: (H, W, 3) uint8. Best score first; no face is an empty tuple."""
        if bgr.dtype != np.uint8 or bgr.ndim != 3 or bgr.shape[2] != 3 or 0 in bgr.shape:
            raise ValueError(
                f"a detector got an array of shape {bgr.shape} and type {bgr.dtype}, wanted (H, W, 3) uint8 BGR; "
                "convert with cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR) or (255 * image).astype(np.uint8)"
            )
        return self._faces(bgr)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is held between calls unless a detector says so."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class BlazeFace(_Detector):
    """One graph on the whole frame: the boxes of MediaPipe's own API, faster."""

    def __init__(self, range: Range = "short", min_score: float = 0.5) -> None:
        self._graph = _Graph(range)
        self._min_score = _checked(min_score)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        return _merged(self._graph.look(bgr, [whole(bgr)], self._min_score))


class StreamFaces(_Detector):
    """The default for video: each call looks at the whole frame by both ranges, and at the next few tiles.

    So a call stays cheap, a face that fills a tenth of the frame is seen at once, and one of smallest_px after a few
    calls. It remembers which tiles come next: use one for each source.
    """

    def __init__(self, min_score: float = SURE, smallest_px: float = 48, tiles_per_call: int = 2) -> None:
        self._short, self._full = _Graph("short"), _Graph("full")
        self._min_score, self._smallest_px, self._tiles_per_call = _checked(min_score), smallest_px, tiles_per_call
        self._next_tile = 0

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        frame = [whole(bgr)]
        seen = [*self._short.look(bgr, frame, PROPOSE), *self._full.look(bgr, frame + self._share(bgr), PROPOSE)]
        return _confirmed(bgr, _merged(seen), self._short, self._min_score)

    def _share(self, bgr: U8) -> list[Window]:
        """This call's share of the tiles; none when the whole frame shows faces of smallest_px well enough."""
        every = tiles(bgr, self._smallest_px * TILE_PER_FACE)
        share = [every[(self._next_tile + i) % len(every)] for i in range(min(self._tiles_per_call, len(every)))]
        self._next_tile += self._tiles_per_call
        return share


class StillFaces(_Detector):
    """The default for still pictures: every window, upright and turned by quarters. Thorough, not quick."""

    def __init__(self, min_score: float = SURE, smallest_px: float = 24) -> None:
        self._short, self._full = _Graph("short"), _Graph("full")
        self._min_score, self._smallest_px = _checked(min_score), smallest_px

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        # a border lets a face that touches the picture's edges be smaller than the window
        wide = [whole(bgr, scale) for scale in (1.0, 1.5, 2.0)]
        near: list[Window] = []
        side = float(min(bgr.shape[:2]))
        while side >= self._smallest_px * TILE_PER_FACE:
            near += tiles(bgr, side)
            side /= 2
        proposed: list[Face] = []
        for roll_rad in (0.0, np.pi / 2, -np.pi / 2, np.pi):
            turned_wide, turned_near = ([w._replace(roll_rad=roll_rad) for w in windows] for windows in (wide, near))
            seen = self._full.look(bgr, turned_wide + turned_near, PROPOSE)
            proposed += _merged([*self._short.look(bgr, turned_wide, PROPOSE), *seen])
        return _confirmed(bgr, proposed, self._short, self._min_score)


class MediaPipeFaces(_Detector):
    """The same model through MediaPipe's own Python API, for comparison."""

    def __init__(self, range: Range = "short", min_score: float = 0.5) -> None:
        self._range, self._min_score = range, _checked(min_score)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        size = np.array([bgr.shape[1], bgr.shape[0]], np.float32)
        detections = self._api.process(np.ascontiguousarray(bgr[..., ::-1])).detections or ()
        return tuple(sorted((_face_of(d, size) for d in detections), key=lambda face: -face.score))

    @cached_property
    def _api(self) -> Any:
        from mediapipe.python.solutions.face_detection import FaceDetection

        return FaceDetection(min_detection_confidence=self._min_score, model_selection=int(self._range == "full"))

    def close(self) -> None:
        if api := self.__dict__.pop("_api", None):
            api.close()


def _face_of(detection: Any, size: F32) -> Face:
    """MediaPipe's Detection message, relative to the frame's edges, as a Face. size: (2,) width, height."""
    box, points = detection.location_data.relative_bounding_box, detection.location_data.relative_keypoints
    center = np.array([box.xmin + box.width / 2, box.ymin + box.height / 2]) * size - 0.5
    eyes = np.array([[p.x, p.y] for p in points[:2]]) * size - 0.5
    row = np.concatenate([center, [box.width, box.height] * size, eyes.ravel()]).astype(np.float32)
    return _face(row, detection.score[0])


def whole(bgr: U8, scale: float = 1.0) -> Window:
    """The smallest square round the frame, or one `scale` times that: black where there is no frame."""
    height, width = bgr.shape[:2]
    return Window((width - 1) / 2, (height - 1) / 2, scale * max(width, height))


def tiles(bgr: U8, side: float) -> list[Window]:
    """Windows of this side that cover the frame and overlap by a quarter; none if one would cover it all."""
    height, width = bgr.shape[:2]
    if side >= max(height, width):
        return []
    return [Window(x, y, side) for y in _centers(height, side) for x in _centers(width, side)]


def _centers(length: int, side: float) -> list[float]:
    """Where windows of this side lie along a frame of this length, both px."""
    count = 1 + max(0, math.ceil((length - side) / (0.75 * side)))
    margin = min(side, length) / 2
    return np.linspace(margin - 0.5, length - margin - 0.5, count).tolist() if count > 1 else [(length - 1) / 2]


class Candidate(NamedTuple):
    """What one anchor of a graph believes."""

    row: F32
    """(8,) frame px"""
    score: float


class _Spec(NamedTuple):
    file: str
    side: int
    """of the square input, px"""
    anchors: tuple[tuple[int, int], ...]
    """(cells along the side, anchors in each cell) of each feature map"""
    boxes: str
    """name of the output (1, anchors, 16)"""
    logits: str
    """name of the output (1, anchors, 1)"""


_SPECS: dict[Range, _Spec] = {
    "short": _Spec("face_detection_short_range.tflite", 128, ((16, 2), (8, 6)), "regressors", "classificators"),
    "full": _Spec("face_detection_full_range_sparse.tflite", 192, ((48, 1),), "Identity", "Identity_1"),
}


class _Graph:
    """One of MediaPipe's two networks. Read at the first look, not in the constructor."""

    def __init__(self, range: Range) -> None:
        if range not in _SPECS:
            raise ValueError(f"BlazeFace has no range {range!r}, wanted one of {sorted(_SPECS)}")
        self._spec = _SPECS[range]
        hw = (self._spec.side, self._spec.side)
        self._card = ModelCard(name=f"blazeface-{range}", schema="", input_hw=hw, crop_scale=1.0)
        self._anchors = _anchors(self._spec)

    def look(self, bgr: U8, windows: Iterable[Window], min_score: float) -> Iterator[Candidate]:
        """Every candidate of at least min_score in these windows, before merging."""
        for x, y, side, roll_rad in windows:
            box = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
            view_from_frame = crop_from_frame(box, self._card, roll_rad)
            rows_N8, scores_N = self._candidates(_sampled(bgr, view_from_frame, self._card.input_hw), min_score)
            frame_from_view = invert(view_from_frame)
            rows_N8[:, :2] = apply(frame_from_view, rows_N8[:, :2])
            rows_N8[:, 2:4] *= side / self._spec.side
            rows_N8[:, 4:] = apply(frame_from_view, rows_N8[:, 4:].reshape(-1, 2, 2)).reshape(-1, 4)
            yield from map(Candidate, rows_N8, scores_N.tolist())

    def _candidates(self, view: U8, min_score: float) -> tuple[F32, F32]:
        """view: (side, side, 3) BGR -> (N, 8) rows in view px and (N,) scores. Only what passes is decoded."""
        outputs = self._request.infer({0: view[None]}, share_inputs=True, share_outputs=True)
        boxes, logits = outputs[self._spec.boxes][0], outputs[self._spec.logits][0, :, 0]
        passed = np.flatnonzero(logits >= np.log(min_score / (1 - min_score)))
        rows_N8 = boxes[passed, :8].copy()
        # centre and eyes are offsets from the anchor; width and height are sizes already
        rows_N8.reshape(-1, 4, 2)[:, [0, 2, 3]] += self._anchors[passed, None]
        scores = 1 / (1 + np.exp(-np.clip(logits[passed], -100, 100)))
        sized = (rows_N8[:, 2:4] > 0).all(1)
        return rows_N8[sized], scores[sized].astype(np.float32)

    @cached_property
    def _request(self) -> Any:
        return _compiled(self._spec.file).create_infer_request()


@cache
def _compiled(file: str) -> Any:
    """One of MediaPipe's graphs, to be given uint8 BGR pixels. Compiled once; each user makes its own request."""
    import openvino as ov
    from openvino.preprocess import ColorFormat, PrePostProcessor

    graph = PrePostProcessor(ov.Core().read_model(_mediapipe_folder() / "face_detection" / file))
    graph.input().tensor().set_element_type(ov.Type.u8)
    graph.input().tensor().set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.BGR)
    graph.input().model().set_layout(ov.Layout("NHWC"))
    graph.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB)
    graph.input().preprocess().mean(127.5).scale(127.5)
    return ov.compile_model(graph.build(), "CPU", {"PERFORMANCE_HINT": "LATENCY"})


def _sampled(bgr: U8, view_from_frame: F64, view_hw: tuple[int, int]) -> U8:
    """The pixels that MediaPipe would hand to the graph, so that the same boxes come out; black outside the frame.

    It takes one bilinear sample a pixel and an integer for a pixel's corner, which moves the picture by up to half a
    view pixel; the boxes are read without that move, as MediaPipe reads them.
    """
    scale = np.sqrt(np.linalg.det(view_from_frame[:, :2]))
    moved = view_from_frame + np.array([[0.0, 0.0, (1 - scale) / 2]])
    return np.asarray(cv2.warpAffine(bgr, moved, view_hw[::-1], flags=cv2.INTER_LINEAR), np.uint8)


def _anchors(spec: _Spec) -> F32:
    """(anchors, 2) centres x y in view px, row by row, each cell's anchors together."""
    maps = []
    for cells, per_cell in spec.anchors:
        # the middle of a cell, as an edge coordinate; minus half a pixel, as a pixel coordinate
        along = (np.arange(cells, dtype=np.float32) + 0.5) * spec.side / cells - 0.5
        y, x = np.meshgrid(along, along, indexing="ij")
        maps.append(np.repeat(np.stack([x.ravel(), y.ravel()], 1), per_cell, axis=0))
    return np.concatenate(maps)


def _mediapipe_folder() -> Path:
    """Where the mediapipe package keeps its graphs, found without importing it."""
    found = importlib.util.find_spec("mediapipe")
    if found is None or found.origin is None:
        raise LineamentError(
            "BlazeFace needs the model files inside mediapipe, which is not installed; run `make stream`"
        )
    return Path(found.origin).parent / "modules"


def _merged(candidates: Iterable[Candidate]) -> tuple[Face, ...]:
    """Weighted suppression as MediaPipe does it: each group round a best candidate becomes its weighted mean."""
    found = sorted(candidates, key=lambda candidate: -candidate.score)
    if not found:
        return ()
    rows_N8, scores_N = np.stack([c.row for c in found]), np.array([c.score for c in found], np.float32)
    faces = []
    while len(rows_N8):
        same = _iou(rows_N8[0], rows_N8) > MERGE_IOU
        same[0] = True
        faces.append(_face(np.average(rows_N8[same], axis=0, weights=scores_N[same]), float(scores_N[0])))
        rows_N8, scores_N = rows_N8[~same], scores_N[~same]
    return tuple(faces)


def _confirmed(bgr: U8, proposed: Iterable[Face], short: _Graph, min_score: float) -> tuple[Face, ...]:
    """A second look, short range, at each proposal: centred, levelled, half the window wide, as that graph likes it.

    This look alone gives box, roll and score: nearly all that is no face fails it, so the first may be generous.
    """
    faces: list[Face] = []
    for face in sorted(proposed, key=lambda face: -face.score):
        row = _row(face)
        if any(_iou(row, _row(other)[None])[0] > MERGE_IOU for other in faces):
            continue
        window = Window(float(row[0]), float(row[1]), 2 * float(row[2:4].max()), face.roll_rad)
        again = _merged(short.look(bgr, [window], min_score))
        faces += [other for other in again[:1] if _iou(row, _row(other)[None])[0] > MERGE_IOU]
    return _distinct(faces)


def _distinct(faces: Iterable[Face]) -> tuple[Face, ...]:
    """Best first; of those that overlap, the best."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda face: -face.score):
        if all(_iou(_row(face), _row(other)[None])[0] <= MERGE_IOU for other in kept):
            kept.append(face)
    return tuple(kept)


def _iou(row: F32, rows_N8: F32) -> F32:
    """Intersection over union of one candidate's box with each of N."""
    low = np.maximum(row[:2] - row[2:4] / 2, rows_N8[:, :2] - rows_N8[:, 2:4] / 2)
    high = np.minimum(row[:2] + row[2:4] / 2, rows_N8[:, :2] + rows_N8[:, 2:4] / 2)
    shared = np.maximum(high - low, 0).prod(1)
    return np.asarray(shared / (row[2:4].prod() + rows_N8[:, 2:4].prod(1) - shared), np.float32)


def _face(row: F32, score: float) -> Face:
    center, half, left_eye, right_eye = row[:2], row[2:4] / 2, row[4:6], row[6:8]
    x, y = right_eye - left_eye
    return Face(np.concatenate([center - half, center + half]).astype(np.float32), score, float(np.arctan2(y, x)))


def _row(face: Face) -> F32:
    """(4,) the box of a face as a row has it: centre x y, width, height."""
    low, high = face.box_xyxy[:2], face.box_xyxy[2:]
    return np.concatenate([(low + high) / 2, high - low])


def _checked(min_score: float) -> float:
    if not 0 < min_score < 1:
        raise ValueError(f"min_score is {min_score}, wanted a number between 0 and 1, such as 0.5")
    return min_score
