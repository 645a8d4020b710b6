from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from lineament import engines
from lineament.landmarks.schema import WFLW98
from lineament.landmarks.types import F32, U8, Face, Frame, Landmarks, Track
from lineament.stream.analyse.followed import TrackConfig, TrackerState
from lineament.stream.analyse.track import Tracker
from tests.blobs import BlobDetector, BlobLandmarker, NearBlobDetector, scene, template


def center(track: Track) -> F32:
    return (track.face.box_xyxy[:2] + track.face.box_xyxy[2:]) / 2


def tracker(**cfg: object) -> tuple[Tracker, BlobDetector, BlobLandmarker]:
    detector, landmarker = BlobDetector(), BlobLandmarker()
    return Tracker(detector, landmarker, TrackConfig(**cfg)), detector, landmarker  # type: ignore[arg-type]


def test_points_lie_on_the_face_in_frame_pixels() -> None:
    track, _, _ = tracker()
    result = track(scene([(100, 80)]))
    points = result.tracks[0].points
    assert np.abs(points - (template() * 40 + (80, 60))).max() < 1.5


@pytest.mark.parametrize(("fps", "searches"), [(5, 5), (30, 6), (120, 6)])
def test_no_face_is_an_empty_tuple_and_the_detector_looks_six_times_a_second(fps: int, searches: int) -> None:
    track, detector, landmarker = tracker()
    results = [track(scene([], i, fps=fps)) for i in range(fps)]
    assert all(result.tracks == () for result in results)
    assert detector.calls == searches
    assert landmarker.batches == []


def test_whoever_asks_for_every_frame_has_every_frame_searched() -> None:
    track, detector, _ = tracker(detect_every=1)
    for i in range(10):
        track(scene([], i))
    assert detector.calls == 10


def test_a_clock_that_goes_back_stops_no_search() -> None:
    track, detector, _ = tracker()
    for i in (1000, 0, 5, 10):
        track(scene([], i))
    assert detector.calls == 4


def test_the_detector_rests_while_a_face_is_followed_and_looks_every_k_frames() -> None:
    track, detector, _ = tracker(detect_every=10)
    for i in range(40):
        assert len(track(scene([(60 + 4 * i, 100)], i)).tracks) == 1
        if i == 9:
            settled = detector.calls
    assert detector.calls == settled + 3


def test_the_detector_rests_for_good_when_all_allowed_faces_are_followed() -> None:
    track, detector, _ = tracker(detect_every=3, max_faces=1)
    for i in range(30):
        assert len(track(scene([(60, 100), (200, 100)], i)).tracks) == 1
        if i == 9:
            settled = detector.calls
    assert detector.calls == settled


def test_the_detector_is_asked_about_a_face_that_jumped_or_is_cut_off() -> None:
    track, detector, _ = tracker(detect_every=1000, max_faces=1)
    for i in range(10):
        track(scene([(100, 100)], i))
    before = detector.calls
    track(scene([(108, 100)], 10))
    track(scene([(108, 100)], 11))
    assert detector.calls == before + 1
    for i in range(12, 16):
        track(scene([(108 - 30 * (i - 11), 100)], i))
    assert detector.calls > before + 2


def test_a_face_in_doubt_is_looked_at_where_it_is_and_takes_no_search() -> None:
    detector = NearBlobDetector()
    track = Tracker(detector, BlobLandmarker(), TrackConfig(detect_every=1000))
    for i in range(10):
        assert len(track(scene([(100, 100), (200, 100)], i)).tracks) == 2
    assert (detector.calls, detector.asked) == (1, [2, 2, 2, 2])
    track(scene([(108, 100), (200, 100)], 10))
    result = track(scene([(108, 100), (200, 100)], 11))
    assert (detector.calls, detector.asked) == (1, [2, 2, 2, 2, 1])
    assert {"check", "landmark"} <= set(result.ms)
    assert "detect" not in result.ms


def test_a_face_out_of_sight_is_looked_for_where_it_was_and_six_times_a_second_anywhere() -> None:
    detector = NearBlobDetector()
    track = Tracker(detector, BlobLandmarker(), TrackConfig(detect_every=1000))
    for i in range(10):
        track(scene([(100, 100), (200, 100)], i))
    before = detector.calls, len(detector.asked)
    for i in range(10, 25):
        track(scene([(200, 100)], i))
    assert (detector.calls - before[0], len(detector.asked) - before[1]) == (3, 4)
    for i in range(25, 30):
        back = [t.id for t in track(scene([(115, 105), (200, 100)], i)).tracks]
    assert back == [1, 2]


def test_a_newcomer_is_found_within_k_frames_and_faces_share_one_batch() -> None:
    track, _, landmarker = tracker(detect_every=5)
    for i in range(3):
        track(scene([(60, 100)], i))
    seen = [len(track(scene([(60, 100), (200, 100)], i)).tracks) for i in range(3, 9)]
    assert seen[-1] == 2
    assert landmarker.batches[-1] == 2


@pytest.mark.parametrize("apart_px", [0, 4, 10, 25])
def test_ids_survive_a_crossing(apart_px: int) -> None:
    track, _, _ = tracker(detect_every=5)
    ends = {}
    for i in range(61):
        result = track(scene([(40 + 4 * i, 90), (280 - 4 * i, 90 + apart_px)], i, size=36))
        if i == 0:
            starts = {t.id: center(t)[0] for t in result.tracks}
        ends = {t.id: center(t)[0] for t in result.tracks}
    assert set(ends) == set(starts)
    for who, began in starts.items():
        assert abs(ends[who] - began) > 150, "each went to the other side"


def test_a_face_that_arrives_in_bursts_is_one_face() -> None:
    track, _, _ = tracker(detect_every=5)
    ids = set()
    for i in range(40):
        frame = scene([(40 + 6 * i, 100)], i, size=36)
        arrived_s = i // 2 * 0.16 + i % 2 * 0.004  # pairs, as a network delivers them; 80 ms apart when they were taken
        ids |= {t.id for t in track(replace(frame, time_s=arrived_s)).tracks}
    assert ids == {1}


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_a_face_gone_for_a_few_frames_keeps_its_id(gap: int) -> None:
    track, _, _ = tracker()
    for i in range(5):
        first = track(scene([(60 + 2 * i, 100)], i)).tracks[0].id
    for i in range(5, 5 + gap):
        assert track(scene([], i)).tracks == ()
    back = track(scene([(60 + 2 * (5 + gap), 100)], 5 + gap)).tracks
    assert [t.id for t in back] == [first]


def test_a_face_gone_for_long_comes_back_as_somebody_new() -> None:
    track, _, _ = tracker(patience_s=0.2)
    first = track(scene([(60, 100)], 0)).tracks[0].id
    for i in range(1, 30):
        track(scene([], i))
    back = [t.id for i in range(30, 33) for t in track(scene([(60, 100)], i)).tracks]
    assert back
    assert first not in back


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("frames", [1, 12])
@pytest.mark.parametrize(("stall_s", "apart"), [(0.25, 0.6), (0.5, 0.6), (0.5, 1.2), (1.4, 1.2)])
def test_a_face_that_moves_while_the_camera_stalls_keeps_its_id(
    stall_s: float, apart: float, frames: int, near: bool
) -> None:
    detector = NearBlobDetector() if near else BlobDetector()
    track = Tracker(detector, BlobLandmarker(), TrackConfig())
    for i in range(frames):
        assert [t.id for t in track(scene([(80, 100), (240, 100)], i)).tracks] == [1, 2]
    moved = scene([(80 + 40 * apart, 110), (240, 100 + 40 * apart)], frames)
    tracks = track(replace(moved, time_s=frames / 30 + stall_s)).tracks
    assert [t.id for t in tracks] == [1, 2]
    assert np.abs(center(tracks[0]) - (80 + 40 * apart, 110)).max() < 2
    assert np.abs(center(tracks[1]) - (240, 100 + 40 * apart)).max() < 2


@pytest.mark.parametrize(("apart_px", "ids"), [(0, {1}), (48, {2})])
def test_after_a_stall_beyond_patience_only_who_stayed_in_place_keeps_the_id(apart_px: int, ids: set[int]) -> None:
    track, _, _ = tracker(patience_s=1.5)
    for i in range(5):
        track(scene([(100, 100)], i))
    frames = [replace(scene([(100 + apart_px, 100)], i), time_s=5 + i / 30) for i in range(10)]
    assert {t.id for frame in frames for t in track(frame).tracks} == ids


def test_a_face_keeps_its_id_over_a_resume_and_no_id_is_given_twice() -> None:
    track, _, _ = tracker()
    for i in range(5):
        track(scene([(60, 100), (200, 100)], i))
    for i in range(5, 60):
        first = track(scene([(200, 100)], i)).tracks
    assert [t.id for t in first] == [2]
    state = track.state()
    again, _, _ = tracker()
    again.resume(state)
    assert again.state().next_id == 3
    # the clock is a new one, and the face has moved by half its size meanwhile
    assert again(scene([], 0)).tracks == ()
    went_on = again(scene([(220, 110)], 1)).tracks
    assert [t.id for t in went_on] == [2]
    assert [t.id for t in again(scene([(220, 110), (80, 60)], 12)).tracks] == [2, 3]


def test_a_face_that_nobody_finds_again_after_a_resume_is_let_go() -> None:
    track, _, _ = tracker(patience_s=0.2)
    track(scene([(60, 100)], 0))
    again, _, _ = tracker(patience_s=0.2)
    again.resume(track.state())
    for i in range(30):
        assert again(scene([], i)).tracks == ()
    assert again.state() == TrackerState(2)
    assert {t.id for i in range(30, 33) for t in again(scene([(60, 100)], i)).tracks} == {2}


def test_a_tracker_that_resumes_too_late_knows_nobody_but_gives_no_id_again() -> None:
    track, _, _ = tracker()
    first = track(scene([(60, 100)], 0))
    again, _, _ = tracker()
    again.resume(track.state(), until_s=first.frame.captured_s - 1)
    assert [t.id for t in again(scene([(60, 100)], 0)).tracks] == [2]


def test_a_low_presence_score_ends_a_track_even_if_the_detector_sees_nothing() -> None:
    track, detector, _ = tracker(detect_every=100)
    assert track(scene([(60, 100)], 0)).tracks
    detector.blind = True
    assert track(scene([(60, 100)], 1)).tracks
    assert not track(scene([], 2)).tracks


def test_a_face_is_never_followed_twice() -> None:
    track, _, _ = tracker(detect_every=1)
    for i in range(20):
        assert len(track(scene([(60 + 5 * i, 100)], i)).tracks) == 1


def test_two_faces_that_merge_into_one_are_one_track() -> None:
    track, _, _ = tracker(detect_every=1)
    assert len(track(scene([(100, 100), (180, 100)], 0)).tracks) == 2
    for i in range(1, 15):
        last = track(scene([(140, 100)], i)).tracks
    assert len(last) == 1


def test_pictures_that_stand_alone_share_nothing() -> None:
    detector, landmarker = BlobDetector(), BlobLandmarker()
    track = Tracker(detector, landmarker, still=True)
    a = track(scene([(60, 100)], 0)).tracks
    b = track(scene([(70, 100)], 1)).tracks
    assert [t.id for t in a] == [t.id for t in b] == [1]
    assert abs(center(b[0])[0] - center(a[0])[0] - 10) < 1, "no smoothing between pictures"
    assert detector.calls == 2


class Known(BlobDetector):
    """Says where the one face is, however the picture looks."""

    def __init__(self, box_xyxy: tuple[float, float, float, float], roll_rad: float) -> None:
        super().__init__()
        self.face = Face(np.array(box_xyxy, np.float32), 0.9, roll_rad)

    def __call__(self, bgr: U8) -> tuple[Face, ...]:
        return (self.face,)


def test_a_picture_and_its_mirror_image_get_the_same_points(astronaut: U8) -> None:
    width = astronaut.shape[1]
    seen = []
    with engines.load("student-fast", "openvino") as landmarker:
        for bgr, box, roll_rad in (
            (astronaut, (175, 60, 275, 170), 0.1),
            (np.ascontiguousarray(astronaut[:, ::-1]), (width - 1 - 275, 60, width - 1 - 175, 170), -0.1),
        ):
            track = Tracker(Known(box, roll_rad), landmarker, still=True)
            seen.append(track(Frame(bgr, "photo", 0, 0.0, 0.0)).tracks[0].points)
    assert np.abs(WFLW98.flipped(seen[1], width) - seen[0]).max() < 0.1


def test_faces_come_in_the_order_of_their_ids_and_never_more_than_asked() -> None:
    track, _, _ = tracker(max_faces=2, detect_every=1)
    for i in range(5):
        tracks = track(scene([(40, 60), (120, 60), (220, 160)], i)).tracks
        assert len(tracks) == 2
        assert [t.id for t in tracks] == sorted(t.id for t in tracks)


def test_no_limit_follows_everybody_and_a_limit_says_whom_it_leaves_out() -> None:
    places = [(40 + 60 * i, 60) for i in range(4)]
    everybody, _, _ = tracker(max_faces=0)
    result = everybody(scene(places))
    assert (len(result.tracks), result.left_out) == (4, 0)
    two, _, _ = tracker(max_faces=2)
    result = two(scene(places))
    assert (len(result.tracks), result.left_out) == (2, 2)


def test_after_a_cut_whoever_stands_in_the_same_place_is_somebody_else(astronaut: U8) -> None:
    track, _, _ = tracker()
    street, room = (np.asarray(astronaut[:240, x : x + 320] * 0.4, np.uint8) for x in (0, 190))
    ids = []
    for i in range(10):
        bgr = (street if i < 5 else room).copy()
        bgr[80:100, 80:100] = 250
        ids += [t.id for t in track(replace(scene([], i), bgr=bgr)).tracks]
    assert ids == [1] * 5 + [2] * 5


def test_another_face_in_the_same_place_is_somebody_else_and_a_face_that_moves_is_not(astronaut: U8) -> None:
    track, _, _ = tracker()
    patterns = [np.asarray(cv2.resize(astronaut[y : y + 64, 200:264, 1], (24, 24)), np.uint8) for y in (80, 300)]
    ids = []
    for i in range(12):
        frame = scene([(100 + 4 * (i % 6), 100)], i)
        frame.bgr[88:112, 88 + 4 * (i % 6) : 112 + 4 * (i % 6)] = np.clip(patterns[i // 6], 0, 200)[..., None] // 2
        ids += [t.id for t in track(frame).tracks]
    assert len(ids) == 12
    assert ids[:6] == [1] * 6


def test_a_covered_lens_is_no_cut() -> None:
    track, _, _ = tracker()
    ids = set()
    for i in range(40):
        centers = [(100, 100)] if not 10 <= i < 35 else []
        ids |= {t.id for t in track(scene(centers, i)).tracks}
    assert ids == {1}


@pytest.mark.parametrize("count", [2, 40])
def test_many_faces_take_as_many_looks_as_there_are_faces(count: int) -> None:
    class Many(BlobDetector):
        def __call__(self, bgr: U8) -> tuple[Face, ...]:
            self.calls += 1
            return tuple(Face(np.float32([40 * i, 0, 40 * i + 30, 30]), 0.9) for i in range(count))

    class Anywhere(BlobLandmarker):
        def __call__(self, rgb_NHWC: U8) -> Landmarks:
            self.batches.append(len(rgb_NHWC))
            unit = np.float32(0.5) + (template() - np.float32(0.5)) / np.float32(1.6)
            return Landmarks(np.stack([unit] * len(rgb_NHWC)), np.ones(len(rgb_NHWC), np.float32))

    detector, landmarker = Many(), Anywhere()
    track = Tracker(detector, landmarker, TrackConfig(max_faces=0, detect_every=1000))
    frames = [Frame(np.zeros((100, 2000, 3), np.uint8), "many", i, i / 30, 0.0) for i in range(3)]
    for frame in frames:
        assert len(track(frame).tracks) == count
    assert set(landmarker.batches) == {count}


def test_every_stage_that_ran_is_timed() -> None:
    track, _, _ = tracker(detect_every=100)
    results = [track(scene([(60, 100)], i)) for i in range(10)]
    assert set(results[0].ms) == {"detect", "crop", "landmark", "track"}
    assert set(results[9].ms) == {"crop", "landmark", "track"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_faces": -1},
        {"detect_every": 0},
        {"min_confidence": 1.5},
        {"patience_s": -1.0},
        {"patience_s": float("nan")},
    ],
)
def test_a_setting_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrackConfig(**wrong)  # type: ignore[arg-type]
