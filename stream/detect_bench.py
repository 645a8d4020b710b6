"""How fast each detector is and how small a face it sees, all in one run, beside MediaPipe's own API.

    python -m stream.detect_bench

The picture is scikit-image's astronaut as high as the frame, its face a fifth of that; then small copies of the face
in a 1920x1080 frame. Detectors take turns, so that a busy moment of the machine hits all alike.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import date
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from landmarks.types import F64, U8
from stream.detect import BlazeFace, MediaPipeFaces, StillFaces, StreamFaces

SIZES_WH = ((640, 480), (1280, 720), (1920, 1080))
FACES_PX = (40, 48, 60, 80, 120, 160)
ROUNDS, TURN = 150, 10
"""calls of each detector, and how many in a row before it is another one's turn"""
CALLS = 8
"""a stream's detector looks at every tile of 1920x1080 once in so many"""

Make = Callable[[], BlazeFace | MediaPipeFaces | StreamFaces | StillFaces]
TIMED: Mapping[str, tuple[Make, str]] = {
    "MediaPipe short": (lambda: MediaPipeFaces("short"), "MediaPipe short"),
    "BlazeFace short": (lambda: BlazeFace("short"), "MediaPipe short"),
    "MediaPipe full": (lambda: MediaPipeFaces("full"), "MediaPipe full"),
    # MediaPipe's full range keeps to this score, whatever its caller asked for
    "BlazeFace full": (lambda: BlazeFace("full", 0.6), "MediaPipe full"),
    "StreamFaces": (StreamFaces, "MediaPipe full"),
}
"""a detector, and which of the same run it is compared with"""


def main() -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("mediapipe", "openvino", "opencv-python", "numpy"))
    print(f"{date.today()}  {platform.processor() or platform.machine()}, {os.cpu_count()} cores  {packages}")
    astronaut = portrait()
    for width, height in SIZES_WH:
        print(f"\n{width}x{height}, n = {ROUNDS}\n{'':18}median ms   p95 ms   speed")
        times_ms = timed(framed(astronaut, width, height))
        for name, (_, base) in TIMED.items():
            median, p95 = np.percentile(times_ms[name], [50, 95])
            ratio = np.median(times_ms[base]) / median
            print(f"{name:18}{median:9.2f}{p95:9.2f}{ratio:7.2f}x of {base}")
    print(f"\nfaces found of 12 in 1920x1080 (and false ones); a stream's within {CALLS} calls\n{'face px':18}", end="")
    print("".join(f"{face_px:>10}" for face_px in FACES_PX))
    for name, make in {**{name: make for name, (make, _) in TIMED.items()}, "StillFaces": StillFaces}.items():
        counts = [found(make, *scattered(astronaut, face_px)) for face_px in FACES_PX]
        print(f"{name:18}" + "".join(f"{f'{hits} ({false})':>10}" for hits, false in counts))


def timed(bgr: U8) -> dict[str, F64]:
    """Milliseconds of each call, by detector."""
    with ExitStack() as stack:
        detectors = {name: stack.enter_context(make()) for name, (make, _) in TIMED.items()}
        for detect in detectors.values():
            for _ in range(5):
                detect(bgr)
        times_ms = {name: np.zeros(ROUNDS) for name in detectors}
        for start in range(0, ROUNDS, TURN):
            for name, detect in detectors.items():
                for i in range(start, start + TURN):
                    began_s = time.perf_counter()
                    detect(bgr)
                    times_ms[name][i] = (time.perf_counter() - began_s) * 1e3
    return times_ms


def found(make: Make, bgr: U8, centers_N2: F64) -> tuple[int, int]:
    """How many of the faces at these places were found, and how many boxes hold none of them."""
    hit: set[int] = set()
    false = 0
    with make() as detect:
        for _ in range(CALLS if isinstance(detect, StreamFaces) else 1):
            for face in detect(bgr):
                inside = (face.box_xyxy[:2] < centers_N2).all(1) & (centers_N2 < face.box_xyxy[2:]).all(1)
                hit.update(np.flatnonzero(inside).tolist())
                false += not inside.any()
    return len(hit), false


def portrait() -> U8:
    """(512, 512, 3) BGR; the face is 100 px wide round (225, 122)."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SystemExit("the picture comes with scikit-image, which is not installed: pip install scikit-image")
    return np.asarray(cv2.imread(str(Path(spec.origin).parent / "data" / "astronaut.png")), np.uint8)


def framed(astronaut: U8, width: int, height: int) -> U8:
    """The portrait in the middle of a grey frame, as high as it."""
    frame = np.full((height, width, 3), 90, np.uint8)
    left = (width - height) // 2
    frame[:, left : left + height] = cv2.resize(astronaut, (height, height), interpolation=cv2.INTER_AREA)
    return frame


def scattered(astronaut: U8, face_px: int) -> tuple[U8, F64]:
    """A grey 1920x1080 frame with the face at twelve places, and their centres (12, 2) px."""
    frame = np.full((1080, 1920, 3), 90, np.uint8)
    side = 2 * face_px
    head = cv2.resize(astronaut[22:222, 125:325], (side, side), interpolation=cv2.INTER_AREA)
    rng = np.random.default_rng(face_px)
    centers = []
    for column in range(4):
        for row in range(3):
            # somewhere in its own cell of 480 x 360
            left = 480 * column + int(rng.integers(0, 480 - side + 1))
            top = 360 * row + int(rng.integers(0, 360 - side + 1))
            frame[top : top + side, left : left + side] = head
            centers.append((left + side / 2, top + side / 2))
    return frame, np.array(centers, np.float64)


if __name__ == "__main__":
    main()
