"""The points lie on the face: on the sample, whose true motion is known, on clips, and on labelled photos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.geometry import apply, invert
from lineament.landmarks.types import F32, Frame, Track
from lineament.stream import bench
from lineament.stream.analyse.detect import ImageDetector, VideoDetector
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from lineament.stream.read.pictures import ImageSource
from lineament.stream.read.sample import Sample
from lineament.stream.read.video import VideoSource
from lineament.train import data, metrics

SAMPLE = Sample()


MODELS = ("student", pytest.param("mesh", marks=pytest.mark.mesh))


def follow(sample: Sample, smooth: bool, model: str = engines.DEFAULT) -> dict[int, tuple[Track, ...]]:
    with VideoDetector() as detector, engines.load(model) as landmarker:
        tracker = Tracker(detector, landmarker, TrackConfig(smooth=smooth))
        frames = (Frame(sample.render(i), "sample", i, i / sample.fps, 0.0) for i in range(len(sample)))
        return {frame.index: tracker(frame).tracks for frame in frames}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def raw(model: str) -> dict[int, tuple[Track, ...]]:
    return follow(SAMPLE, smooth=False, model=model)


@pytest.fixture(scope="module")
def smoothed(model: str) -> dict[int, tuple[Track, ...]]:
    return follow(SAMPLE, smooth=True, model=model)


def errors(tracks: dict[int, tuple[Track, ...]]) -> tuple[F32, F32]:
    """(n, 98, 2) distances from the true motion over the face's size, and the (n,) frames they are of."""
    frames = np.array([i for i in tracks if SAMPLE.visible(i) and tracks[i]])
    in_photo = np.array([apply(invert(SAMPLE.frame_from_photo(i)), tracks[i][0].points) for i in frames])
    reference = np.median(in_photo, axis=0)
    true = np.array([apply(SAMPLE.frame_from_photo(int(i)), reference) for i in frames])
    size = np.ptp(true, axis=1).max(-1)[:, None, None]
    return (np.array([tracks[int(i)][0].points for i in frames]) - true) / size, frames


def test_the_whole_face_is_found_in_every_frame_that_shows_it(raw: dict[int, tuple[Track, ...]]) -> None:
    for i, tracks in raw.items():
        if SAMPLE.visible(i):
            assert len(tracks) == 1, f"frame {i}"
        elif SAMPLE.inside(i) == 0:
            assert tracks == (), f"frame {i}"


def test_points_stay_on_the_face_as_it_moves_turns_and_returns(raw: dict[int, tuple[Track, ...]]) -> None:
    error, _ = errors(raw)
    assert np.linalg.norm(error, axis=-1).mean() < 0.006
    assert np.linalg.norm(error, axis=-1).mean(-1).max() < 0.03


def test_the_face_keeps_its_id_until_it_leaves(raw: dict[int, tuple[Track, ...]]) -> None:
    ids = [tracks[0].id for tracks in raw.values() if tracks]
    assert set(ids) == {1, 2} and ids == sorted(ids)


def test_smoothing_steadies_and_does_not_lag(
    raw: dict[int, tuple[Track, ...]], smoothed: dict[int, tuple[Track, ...]]
) -> None:
    jitter, error = {}, {}
    for name, tracks in (("raw", raw), ("smoothed", smoothed)):
        error[name], frames = errors(tracks)
        jitter[name] = np.sqrt((np.diff(error[name], axis=0)[np.diff(frames) == 1] ** 2).sum(-1).mean())
    assert jitter["smoothed"] < 0.95 * jitter["raw"]
    # lag shows as an error against the motion: -velocity times the frames that it lags
    true = np.array([apply(SAMPLE.frame_from_photo(int(i)), np.zeros((1, 2)) + 256)[0] for i in frames])
    size = SAMPLE.frame_from_photo(0)[0, 0] * 120
    velocity = np.gradient(true, axis=0) / size
    lag = {name: -float((e.mean(1) * velocity).sum() / (velocity**2).sum()) for name, e in error.items()}
    assert abs(lag["smoothed"] - lag["raw"]) < 0.25
    assert np.linalg.norm(error["smoothed"], axis=-1).mean() < 0.006


def test_in_real_video_a_still_head_shimmers_half_as_much_and_blinks_as_deep(shared: Path) -> None:
    ratio, left = bench.steady_clips(sorted((shared / "clips").iterdir()))
    assert ratio < 0.5
    assert left > 0.93


@pytest.mark.mesh
def test_the_fast_model_follows_too() -> None:
    error, _ = errors(follow(SAMPLE, smooth=True, model="mesh-fast"))
    assert np.linalg.norm(error, axis=-1).mean() < 0.008


def test_three_faces_have_three_steady_ids() -> None:
    tracks = follow(Sample(size_hw=(480, 1280), seconds=4, faces=3), smooth=True)
    ids = Counter(track.id for found in tracks.values() for track in found)
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("clip", "faces"),
    [
        ("face-demographics-walking-and-pause.gif", 3),
        ("head-pose-face-detection-female-and-male.gif", 2),
        ("head-pose-face-detection-female.gif", 1),
        ("head-pose-face-detection-male.gif", 1),
        ("hungry.mkv", 1),
        ("thanks.mkv", 1),
    ],
)
def test_each_person_of_a_clip_is_one_track_from_first_to_last_frame(
    shared: Path, clip: str, faces: int, model: str
) -> None:
    with VideoDetector() as detector, engines.load(model) as landmarker, VideoSource(shared / "clips" / clip) as source:
        tracker = Tracker(detector, landmarker)
        found = [tracker(frame).tracks for frame in iter(source.read, None) if frame]
    assert {track.id for tracks in found for track in tracks} == set(range(1, faces + 1))
    assert sum(len(tracks) == faces for tracks in found) >= 0.95 * len(found)


def test_no_labelled_face_is_missed_and_the_points_are_near_the_labels(shared: Path, model: str) -> None:
    """End to end as `--source folder` does it."""
    samples = data.read(shared / "data" / "wflw-mini", "test")
    predicted = []
    with ImageDetector() as detector, engines.load(model) as landmarker:
        tracker = Tracker(detector, landmarker, still=True)
        for sample in samples:
            with ImageSource(sample.image_path) as source:
                frame = source.read()
            assert frame is not None
            tracks = tracker(frame).tracks
            assert tracks, f"no face found in {sample.name}"
            # a crop may show a neighbour's cheek: the labelled face is the one in the middle
            middle = sample.points.mean(0)
            predicted.append(
                min((track.points for track in tracks), key=lambda p: float(np.hypot(*(p.mean(0) - middle))))
            )
    nme = metrics.nme(np.array(predicted), np.array([sample.points for sample in samples]))
    print(f"{model}: NME {nme.mean():.2f}, FR@10 {metrics.failure_rate(nme):.1f}, none missed")
    assert len(nme) == 200
    assert nme.mean() <= {"student": 4.2, "mesh": 5.5}[model]
