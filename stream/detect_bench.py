"""Speed, recall and false positives of each detector, all in one run.

    python -m stream.detect_bench                       # needs requirements-mesh.txt for MediaPipe's own detector
    python -m stream.detect_bench --shared ../shared    # with the development data: hard faces, agreement, false faces

speed   ms per search in scikit-image's astronaut, as high as the frame, its face a fifth of that; detectors alternate,
        so that a busy moment of the machine affects all of them
small   recall on twelve copies of that face in a 1920x1080 frame
hard    recall on the labelled faces of wflw-hard-dev in their whole photos, upright and rotated; end-to-end NME, FR@10
agree   recall on the faces in wider that YuNet scores 0.8 or more
false   boxes in crops of wider in which neither YuNet nor MediaPipe's full range finds a face at any score, and how
        many of them the student's presence output accepts
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

import cv2
import numpy as np
import tyro

from lineament import engines
from lineament.engines.labelled import nme
from lineament.engines.portrait import portrait
from lineament.landmarks.geometry import bounds, iou
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, F64, U8, Detector, Face, Frame, Track
from lineament.stream.analyse.analyser import Analyser
from lineament.stream.analyse.detect import ImageDetector, VideoDetector
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from lineament.stream.bench import machine, mediapipe_runs

SIZES_WH = ((640, 480), (1280, 720), (1920, 1080))
FACES_PX = (24, 32, 40, 48, 60, 80, 120, 160)
ROUNDS, TURN = 100, 5
"""calls of each detector, and how many in a row before the next one"""
SEARCHES = 5
"""of the video detector: the first, and the four that together cover the whole frame"""
TURNED_SEARCHES = 17
"""the same for every rotation by 90 degrees"""
CROPS, CROP_HW = 200, (240, 320)
SAME_IOU = 0.3
VIDEO_PX = 48
"""smallest face that the video detector targets"""
YUNET_SURE = 0.8
YUNET = "peers/yunet_2026may.onnx"

Make = Callable[[], Detector]
Part = Literal["speed", "small", "hard", "agree", "false"]


@dataclass(frozen=True)
class DetectBenchConfig:
    """What to measure."""

    parts: tuple[Part, ...] = ("speed", "small", "hard", "agree", "false")
    """Which parts to run, in this order."""
    shared: Path = Path(os.environ.get("LINEAMENT_SHARED", "../shared"))
    """Folder of the development data; parts whose data is missing are skipped with a message."""
    model: str = engines.DEFAULT
    """Landmark model for the end-to-end measurement on the hard faces."""
    sheet: Path | None = None
    """Write an image of the crops without a face, with the false positives marked."""


def main() -> None:
    cfg = tyro.cli(DetectBenchConfig, prog="python -m stream.detect_bench")
    cv2.setNumThreads(1)
    # OpenCV 5 warns each time YuNet's input size changes
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    print(machine())
    detectors = _detectors(cfg.shared)
    for part in cfg.parts:
        {"speed": speed, "small": small, "hard": hard, "agree": agree, "false": false}[part](cfg, detectors)


def _detectors(shared: Path) -> Mapping[str, Make]:
    makes: dict[str, Make] = {
        "video": VideoDetector,
        "video f32": lambda: VideoDetector(precision="f32"),
        "image": ImageDetector,
        "image f32": lambda: ImageDetector(precision="f32"),
    }
    if (model := shared / YUNET).exists():
        makes["YuNet 0.6"] = lambda: YuNet(model, 0.6)
    else:
        print(f"skipping YuNet: {model} does not exist")
    if mediapipe_runs():
        makes["BlazeFace short"] = lambda: MediaPipeFaces("short")
        makes["BlazeFace full"] = lambda: MediaPipeFaces("full")
    return makes


class _Peer:
    """Makes a peer's detector a context manager."""

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MediaPipeFaces(_Peer):
    """BlazeFace, through MediaPipe's own Python API."""

    def __init__(self, range: Literal["short", "full"], min_score: float = 0.5) -> None:
        self._range, self._min_score = range, min_score

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        size = np.array([bgr.shape[1], bgr.shape[0]], np.float32)
        found = []
        for detection in self._api.process(np.ascontiguousarray(bgr[..., ::-1])).detections or ():
            box = detection.location_data.relative_bounding_box
            low = np.array([box.xmin, box.ymin]) * size - 0.5
            found.append(_face(low, low + [box.width, box.height] * size, detection.score[0]))
        return tuple(found)

    @cached_property
    def _api(self) -> Any:
        from mediapipe.python.solutions.face_detection import FaceDetection

        return FaceDetection(min_detection_confidence=self._min_score, model_selection=int(self._range == "full"))

    def close(self) -> None:
        if api := self.__dict__.pop("_api", None):
            api.close()


class YuNet(_Peer):
    """YuNet, through OpenCV, on the unscaled frame."""

    def __init__(self, model: Path, min_score: float) -> None:
        self._net = cv2.FaceDetectorYN.create(str(model), "", (320, 320), min_score, 0.3, 5000)

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        self._net.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, rows = self._net.detect(bgr)
        return tuple(_face(row[:2], row[:2] + row[2:4], row[-1]) for row in (() if rows is None else rows))


def _face(low: Any, high: Any, score: float) -> Face:
    return Face(np.concatenate([low, high]).astype(np.float32), float(score))


class _First(_Peer):
    """Runs a detector on unrelated images: the video detector starts anew for each, with its first searches."""

    def __init__(self, make: Make, searches: int = 1) -> None:
        self._make, self._detect, self._searches = make, make(), searches
        self.found = 0
        """boxes in the last call"""

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        if isinstance(self._detect, VideoDetector):
            self._detect = self._make()
            faces = tuple(face for _ in range(self._searches) for face in self._detect(bgr))
        else:
            faces = self._detect(bgr)
        self.found = len(faces)
        return faces


# ---- speed


def speed(cfg: DetectBenchConfig, detectors: Mapping[str, Make]) -> None:
    for width, height in SIZES_WH:
        print(f"\n{width}x{height}, n = {ROUNDS}\n{'':18}median ms   p95 ms   vs video")
        times_ms = _timed(framed(portrait(), width, height), detectors)
        for name, ms in times_ms.items():
            median, p95 = np.percentile(ms, [50, 95])
            print(f"{name:18}{median:9.2f}{p95:9.2f}{median / np.median(times_ms['video']):12.2f}", flush=True)


def _timed(bgr: U8, detectors: Mapping[str, Make]) -> dict[str, F64]:
    """Milliseconds per call, by detector."""
    with ExitStack() as stack:
        opened = {name: stack.enter_context(make()) for name, make in detectors.items()}
        for detect in opened.values():
            for _ in range(3):
                detect(bgr)
        times_ms = {name: np.zeros(ROUNDS) for name in opened}
        for start in range(0, ROUNDS, TURN):
            for name, detect in opened.items():
                for i in range(start, start + TURN):
                    began_s = time.perf_counter()
                    detect(bgr)
                    times_ms[name][i] = (time.perf_counter() - began_s) * 1e3
    return times_ms


# ---- small


def small(cfg: DetectBenchConfig, detectors: Mapping[str, Make]) -> None:
    print(
        f"\nfaces found of 12 in 1920x1080 (and false positives); video: within {SEARCHES} searches\n{'face px':18}",
        end="",
    )
    print("".join(f"{face_px:>9}" for face_px in FACES_PX))
    for name, make in detectors.items():
        counts = [_found(make, *scattered(portrait(), face_px)) for face_px in FACES_PX]
        print(f"{name:18}" + "".join(f"{f'{hits} ({false})':>9}" for hits, false in counts), flush=True)


def _found(make: Make, bgr: U8, centers_N2: F64) -> tuple[int, int]:
    """How many of the faces at these centres were found, and how many boxes contain none of them."""
    hit: set[int] = set()
    false = 0
    with make() as detect:
        for _ in range(SEARCHES if isinstance(detect, VideoDetector) else 1):
            for face in detect(bgr):
                inside = (face.box_xyxy[:2] < centers_N2).all(1) & (centers_N2 < face.box_xyxy[2:]).all(1)
                hit.update(np.flatnonzero(inside).tolist())
                false += not inside.any()
    return len(hit), false


# ---- hard


def hard(cfg: DetectBenchConfig, detectors: Mapping[str, Make]) -> None:
    labelled = list(_labelled(cfg.shared / "data/wflw-hard-dev"))
    if not labelled:
        return
    photos = [(bgr, [bounds(one) for one in points]) for bgr, points in labelled]
    count = sum(len(boxes) for _, boxes in photos)
    print(f"\nof {count} hard faces in {len(photos)} photos; video: in the first search, rotated in the first 17")
    print(f"{'':18}  upright    90   180  degrees")
    for name, make in detectors.items():
        upright, turned = _First(make), _First(make, TURNED_SEARCHES)
        hits = [
            sum(_recalled(turned if turns else upright, *_turned(bgr, boxes, turns)) for bgr, boxes in photos)
            for turns in (0, 1, 2)
        ]
        print(f"{name:18}{hits[0]:9}{hits[1]:6}{hits[2]:6}", flush=True)
    with engines.load(cfg.model) as landmarker, Analyser(landmarker, still=True) as follow:
        errors: list[float] = []
        for (bgr, truths), (_, boxes) in zip(labelled, photos):
            tracks = follow(Frame(bgr, "photo", 0, 0.0, 0.0)).tracks
            found = [_overlapping(box, tracks) for box in boxes]
            errors += [nme(track.points, truth, WFLW98) for track, truth in zip(found, truths) if track]
    missed, failed = count - len(errors), sum(error > 10 for error in errors)
    print(
        f"end to end, image detector and {cfg.model}: {missed} of {count} get no landmarks; NME of the others "
        f"{np.mean(errors):.2f}, FR@10 including the missed {100 * (missed + failed) / count:.1f} %"
    )


def _overlapping(box_xyxy: F32, tracks: Sequence[Track]) -> Track | None:
    """The track with the largest overlap with a labelled box; None if no overlap is large enough."""
    overlaps = [iou(box_xyxy, track.face.box_xyxy[None])[0] for track in tracks]
    best = int(np.argmax(overlaps)) if overlaps else 0
    return tracks[best] if overlaps and overlaps[best] > SAME_IOU else None


def _labelled(folder: Path) -> Iterator[tuple[U8, list[F32]]]:
    """Yields photos in WFLW's layout with the points (98, 2) of their faces."""
    lists = sorted(folder.rglob("list_98pt_rect_attr_test.txt"))
    if not lists:
        print(f"\nskipping hard faces: {folder} does not exist")
        return
    faces: dict[str, list[F32]] = {}
    for line in lists[0].read_text().splitlines():
        *numbers, name = line.split()
        points = np.array(numbers[:196], np.float32).reshape(98, 2)
        faces.setdefault(name, []).append(points)
    for name, found in faces.items():
        yield np.asarray(cv2.imread(str(folder / "WFLW_images" / name)), np.uint8), found


def _turned(bgr: U8, boxes: list[F32], turns: int) -> tuple[U8, list[F32]]:
    """Rotates clockwise by turns x 90 degrees."""
    for _ in range(turns):
        height = len(bgr)
        bgr = np.asarray(cv2.rotate(bgr, cv2.ROTATE_90_CLOCKWISE), np.uint8)
        boxes = [np.array([height - 1 - y2, x1, height - 1 - y1, x2], np.float32) for x1, y1, x2, y2 in boxes]
    return bgr, boxes


def _recalled(look: Detector, bgr: U8, boxes: list[F32]) -> int:
    found = look(bgr)
    return sum(_matches(box, found) for box in boxes)


def _matches(box_xyxy: F32, faces: Sequence[Face]) -> bool:
    return any(iou(box_xyxy, face.box_xyxy[None])[0] >= SAME_IOU for face in faces)


# ---- agree


def agree(cfg: DetectBenchConfig, detectors: Mapping[str, Make]) -> None:
    photos, model = _wider(cfg), cfg.shared / YUNET
    if not photos or not model.exists():
        return
    seen, total = {name: [0, 0] for name in detectors}, [0, 0]
    looks, yunet = {name: _First(make) for name, make in detectors.items()}, YuNet(model, YUNET_SURE)
    for path in photos:
        bgr = np.asarray(cv2.imread(str(path)), np.uint8)
        found = {name: look(bgr) for name, look in looks.items()}
        for face in yunet(bgr):
            large = float((face.box_xyxy[2:] - face.box_xyxy[:2]).max()) >= VIDEO_PX
            for kind in range(1 + large):
                total[kind] += 1
                for name, faces in found.items():
                    seen[name][kind] += _matches(face.box_xyxy, faces)
    print(
        f"\nof {total[0]} faces that YuNet scores {YUNET_SURE} or more in {len(photos)} photos, and of the {total[1]} "
        f"of {VIDEO_PX} px or more; video: in the first search"
    )
    for name, (of_all, of_large) in seen.items():
        print(f"{name:18}{100 * of_all / total[0]:8.1f} %{100 * of_large / total[1]:8.1f} %", flush=True)


def _wider(cfg: DetectBenchConfig) -> list[Path]:
    photos = sorted((cfg.shared / "data/unlabelled/wider").glob("*.jpg"))
    if not photos:
        print(f"\nskipping photos of crowds: {cfg.shared / 'data/unlabelled/wider'} does not exist")
    return photos


# ---- false


def false(cfg: DetectBenchConfig, detectors: Mapping[str, Make]) -> None:
    crops = list(islice(_without_face(cfg), CROPS))
    if not crops:
        return
    print(f"\nin {len(crops)} crops of {CROP_HW[1]}x{CROP_HW[0]} without a face\n{'':18}boxes  with points")
    cells = []
    with engines.load(engines.DEFAULT) as landmarker:
        for name, make in detectors.items():
            look, boxes, believed = _First(make), 0, 0
            follow = Tracker(look, landmarker, TrackConfig(max_faces=0), still=True)
            for bgr in crops:
                tracks = follow(Frame(bgr, "crop", 0, 0.0, 0.0)).tracks
                boxes, believed = boxes + look.found, believed + len(tracks)
                if name == "image":
                    cells.append(_marked(bgr, [track.face for track in tracks]))
            print(f"{name:18}{boxes:5}{believed:13}", flush=True)
    if cfg.sheet:
        rows = [np.hstack(cells[i : i + 20]) for i in range(0, len(cells) - len(cells) % 20, 20)]
        cv2.imwrite(str(cfg.sheet), np.vstack(rows))


def _without_face(cfg: DetectBenchConfig) -> Iterator[U8]:
    """Yields at most one crop per photo: the first in reading order in which no peer finds a face at any score."""
    model = cfg.shared / YUNET
    if not model.exists() or not mediapipe_runs():
        print("\nskipping false positives: selecting crops without a face needs YuNet and MediaPipe")
        return
    height, width = CROP_HW
    with YuNet(model, 0.02) as yunet, MediaPipeFaces("full", 0.02) as blaze:
        for path in _wider(cfg):
            bgr = np.asarray(cv2.imread(str(path)), np.uint8)
            corners = [
                (y, x) for y in range(0, len(bgr) - height, height) for x in range(0, bgr.shape[1] - width, width)
            ]
            for y, x in corners:
                crop = np.ascontiguousarray(bgr[y : y + height, x : x + width])
                if crop.std() > 20 and not yunet(crop) and not blaze(crop):
                    yield crop
                    break


def _marked(bgr: U8, faces: list[Face]) -> U8:
    small = np.asarray(cv2.resize(bgr, (160, 120), interpolation=cv2.INTER_AREA), np.uint8)
    for face in faces:
        x1, y1, x2, y2 = (round(v / 2) for v in face.box_xyxy.tolist())
        cv2.rectangle(small, (x1, y1), (x2, y2), (0, 0, 255), 2)
    return small


# ---- images


def framed(astronaut: U8, width: int, height: int) -> U8:
    """The portrait in the middle of a grey frame of the same height."""
    frame = np.full((height, width, 3), 90, np.uint8)
    left = (width - height) // 2
    frame[:, left : left + height] = cv2.resize(astronaut, (height, height), interpolation=cv2.INTER_AREA)
    return frame


def scattered(astronaut: U8, face_px: int) -> tuple[U8, F64]:
    """A grey 1920x1080 frame with twelve copies of the face, and their centres (12, 2) px."""
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    side = 2 * face_px
    head = cv2.resize(astronaut[22:222, 125:325], (side, side), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(face_px)
    centers = []
    for column in range(4):
        for row in range(3):
            # at a random place in its own cell of 480 x 360
            left = 480 * column + int(rng.integers(0, 480 - side + 1))
            top = 360 * row + int(rng.integers(0, 360 - side + 1))
            frame[top : top + side, left : left + side] = head
            centers.append((left + side / 2, top + side / 2))
    return frame, np.array(centers, np.float64)


if __name__ == "__main__":
    main()
