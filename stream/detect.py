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
from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from pathlib import Path
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
"""score of the second look that tells faces from the rest: it keeps nearly every face and one in a hundred others"""
SURE_TURNED = 0.85
"""the same for a face turned by more than 60 degrees: they are rare, so most of what looks like one is none"""
EVIDENT = 0.85
"""score of a near face that needs no second look in a video, where the landmark model judges it next"""
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

    def __exit__(self, *exc: object) -> None:
        self.close()


class BlazeFace(_Detector):
    """One graph on the whole frame: the boxes of MediaPipe's own API, faster."""

    def __init__(self, range: Range = "short", min_score: float = 0.5) -> None:
        self._graph = _Graph(range)
        self._min_score = _checked(min_score)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        return tuple(_merged(self._graph.look(bgr, [whole(bgr)], self._min_score)))


class StreamFaces(_Detector):
    """The default for video: each call looks at the whole frame by the short range, at a few windows by the full one.

    The windows take turns: the whole frame, then tiles where it is large. So a call stays cheap, a near face is seen
    at once and one of smallest_px after a few calls, or at the first, which takes them all. It remembers whose turn it
    is and whether it found anybody: use one for each source.
    """

    def __init__(self, min_score: float = SURE, smallest_px: float = 48) -> None:
        self._short, self._full = _Graph("short"), _Graph("full")
        self._min_score, self._smallest_px = _checked(min_score), _positive(smallest_px)
        self._next = 0
        self._due = 0.0
        """windows whose turn it is, a part of one among them"""
        self._found: bool | None = None
        """whether the last call found anybody; None before the first"""

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        near = self._short.look(bgr, [whole(bgr)], PROPOSE)
        evident = [face for face in _merged(near) if face.score >= max(EVIDENT, self._min_score)]
        windows = self._whose_turn(bgr)
        proposed = _merged(near, self._full.look(bgr, windows, PROPOSE)) if windows else _merged(near)
        faces = _confirmed(bgr, proposed, self._short, self._min_score, evident)
        self._found = bool(faces)
        return faces

    def _whose_turn(self, bgr: U8) -> list[Window]:
        """This call's windows: two where tiles are much nearer than the whole frame, else one in three calls.

        Half as many where the last call found nobody: as long as nobody is followed, every frame brings a call.
        """
        side = self._smallest_px * TILE_PER_FACE
        near = tiles(bgr, side) if max(bgr.shape) > 1.5 * side else []
        windows = [whole(bgr), *near]
        if self._found is None:
            return windows
        self._due += (2 if near else 1 / 3) * (1 if self._found else 0.5)
        first, self._next = self._next, self._next + int(self._due)
        self._due -= int(self._due)
        return [windows[i % len(windows)] for i in range(first, self._next)]


class StillFaces(_Detector):
    """The default for still pictures: the whole, borders and tiles of all sizes, each turned by quarters. Not quick.

    Looks for faces down to smallest_px, but not below a hundredth of the longer side.
    """

    def __init__(self, min_score: float = SURE, smallest_px: float = 24) -> None:
        self._short, self._full = _Graph("short"), _Graph("full")
        self._min_score, self._smallest_px = _checked(min_score), _positive(smallest_px)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        # within a border, a face that touches all sides of the picture is smaller than the window
        wide, near = [whole(bgr, scale) for scale in (1.0, 1.5, 2.0)], self._near(bgr)
        proposed: list[Face] = []
        for roll_rad in (0.0, np.pi / 2, -np.pi / 2, np.pi):
            wide, near = ([w._replace(roll_rad=roll_rad) for w in windows] for windows in (wide, near))
            proposed += _merged(self._short.look(bgr, wide, PROPOSE), self._full.look(bgr, wide + near, PROPOSE))
        return _confirmed(bgr, proposed, self._short, self._min_score)

    def _near(self, bgr: U8) -> list[Window]:
        windows: list[Window] = []
        side = float(min(bgr.shape[:2]))
        while side >= TILE_PER_FACE * max(self._smallest_px, max(bgr.shape[:2]) / 100):
            windows += tiles(bgr, side)
            side /= 2
        return windows


class MediaPipeFaces(_Detector):
    """The same model through MediaPipe's own Python API, for comparison."""

    def __init__(self, range: Range = "short", min_score: float = 0.5) -> None:
        self._range, self._min_score = range, _checked(min_score)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        size = np.array([bgr.shape[1], bgr.shape[0]], np.float32)
        detections = self._api.process(np.ascontiguousarray(bgr[..., ::-1])).detections or ()
        return tuple(_best_first(_face_of(d, size) for d in detections))

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


class Candidates(NamedTuple):
    """What the anchors of a graph believe: N of them."""

    rows: F32
    """(N, 8) frame px"""
    scores: F32
    """(N,)"""


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

    def look(self, bgr: U8, windows: Sequence[Window], min_score: float) -> Candidates:
        """Every candidate of at least min_score in these windows, before merging."""
        seen = [self._look(bgr, window, min_score) for window in windows]
        return Candidates(np.concatenate([c.rows for c in seen]), np.concatenate([c.scores for c in seen]))

    def _look(self, bgr: U8, window: Window, min_score: float) -> Candidates:
        x, y, side, roll_rad = window
        box_xyxy = np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])
        view_from_frame = crop_from_frame(box_xyxy, self._card, roll_rad)
        rows_N8, scores_N = self._candidates(_sampled(bgr, view_from_frame, self._card.input_hw), min_score)
        frame_from_view = invert(view_from_frame)
        rows_N8[:, :2] = apply(frame_from_view, rows_N8[:, :2])
        rows_N8[:, 2:4] *= side / self._spec.side
        rows_N8[:, 4:] = apply(frame_from_view, rows_N8[:, 4:].reshape(-1, 2, 2)).reshape(-1, 4)
        return Candidates(rows_N8, scores_N)

    def _candidates(self, view: U8, min_score: float) -> Candidates:
        """view: (side, side, 3) BGR -> candidates in view px. Only what passes is decoded."""
        outputs = self._request.infer({0: view[None]}, share_inputs=True, share_outputs=True)
        boxes, logits = outputs[self._spec.boxes][0], outputs[self._spec.logits][0, :, 0]
        passed = np.flatnonzero(logits >= np.log(min_score / (1 - min_score)))
        rows_N8 = boxes[passed, :8].copy()
        # centre and eyes are offsets from the anchor; width and height are sizes already
        rows_N8.reshape(-1, 4, 2)[:, [0, 2, 3]] += self._anchors[passed, None]
        scores = 1 / (1 + np.exp(-np.clip(logits[passed], -100, 100)))
        sized = (rows_N8[:, 2:4] > 0).all(1)
        return Candidates(rows_N8[sized], scores[sized].astype(np.float32))

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
    # float32 everywhere, or boxes would differ between processors with and without bfloat16
    config = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": True, "INFERENCE_PRECISION_HINT": "f32"}
    return ov.compile_model(graph.build(), "CPU", config)


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


def _merged(*seen: Candidates) -> list[Face]:
    """Weighted suppression as MediaPipe does it: each group round a best candidate becomes its weighted mean."""
    scores_N = np.concatenate([c.scores for c in seen])
    best_first = np.argsort(-scores_N, kind="stable")
    rows_N8, scores_N = np.concatenate([c.rows for c in seen])[best_first], scores_N[best_first]
    boxes_N4 = np.concatenate([rows_N8[:, :2] - rows_N8[:, 2:4] / 2, rows_N8[:, :2] + rows_N8[:, 2:4] / 2], 1)
    faces = []
    while len(rows_N8):
        same = _iou(boxes_N4[0], boxes_N4) > MERGE_IOU
        same[0] = True
        faces.append(_face(np.average(rows_N8[same], axis=0, weights=scores_N[same]), float(scores_N[0])))
        rows_N8, scores_N, boxes_N4 = rows_N8[~same], scores_N[~same], boxes_N4[~same]
    return faces


def _confirmed(
    bgr: U8, proposed: Iterable[Face], short: _Graph, min_score: float, evident: Sequence[Face] = ()
) -> tuple[Face, ...]:
    """A second look, short range, at each proposal: centred, levelled, half the window wide, as that graph likes it.

    This look alone gives box, roll and score: nearly all that is no face fails it, so the first may be generous.
    evident: faces that are taken as they are.
    """
    faces: list[Face] = list(evident)
    for face in _best_first(proposed):
        if _overlaps(face, faces):
            continue
        (x, y), side = (face.box_xyxy[:2] + face.box_xyxy[2:]) / 2, max(face.box_xyxy[2:] - face.box_xyxy[:2])
        needed = min_score if math.cos(face.roll_rad) > 0.5 else max(min_score, SURE_TURNED)
        again = _merged(short.look(bgr, [Window(float(x), float(y), 2 * float(side), face.roll_rad)], needed))
        faces += [other for other in again[:1] if _overlaps(other, [face])]
    # two proposals may turn out to be one face
    kept: list[Face] = []
    for face in _best_first(faces):
        if not _overlaps(face, kept):
            kept.append(face)
    return tuple(kept)


def _best_first(faces: Iterable[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: -face.score)


def _overlaps(face: Face, others: Sequence[Face]) -> bool:
    return bool(others) and bool((_iou(face.box_xyxy, np.stack([o.box_xyxy for o in others])) > MERGE_IOU).any())


def _iou(box_xyxy: F32, boxes_N4: F32) -> F32:
    """Intersection over union of one box with each of N."""
    low, high = np.maximum(box_xyxy[:2], boxes_N4[:, :2]), np.minimum(box_xyxy[2:], boxes_N4[:, 2:])
    shared = np.maximum(high - low, 0).prod(1)
    areas = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(1)
    return np.asarray(shared / ((box_xyxy[2:] - box_xyxy[:2]).prod() + areas - shared), np.float32)


def _face(row: F32, score: float) -> Face:
    center, half, left_eye, right_eye = row[:2], row[2:4] / 2, row[4:6], row[6:8]
    x, y = right_eye - left_eye
    return Face(np.concatenate([center - half, center + half]).astype(np.float32), score, float(np.arctan2(y, x)))


def _checked(min_score: float) -> float:
    if not 0 < min_score < 1:
        raise ValueError(f"min_score is {min_score}, wanted a number between 0 and 1, such as {SURE}")
    return min_score


def _positive(smallest_px: float) -> float:
    if not smallest_px > 0:
        raise ValueError(f"smallest_px is {smallest_px}, wanted the width of a face in pixels, such as 48")
    return smallest_px
