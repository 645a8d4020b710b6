"""What the demo accepts and refuses from visitors, and its error messages, without a browser."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pillow_heif import register_heif_opener
from starlette.types import Message, Receive, Scope, Send

from lineament import engines
from lineament.demo import page_parts
from lineament.demo.analyst import Analyst
from lineament.demo.clip import Cancelled, annotate
from lineament.demo.compare import Measured, compare_clip
from lineament.demo.config import DemoConfig, Limits
from lineament.demo.guard import Guard
from lineament.demo.live import _changed, _encoded, _watch
from lineament.demo.models import Models
from lineament.demo.network_camera import NetworkCamera
from lineament.demo.picture import compare, downloads, drawn_url, find, pts
from lineament.demo.settings import Settings
from lineament.demo.uploads import check_clip, decode_frame, is_clip, read_picture, read_upload
from lineament.demo.visitors import Admission, Tabs
from lineament.landmarks.types import U8, Frame, LineamentError, Result
from lineament.stream.read.sample import Sample
from lineament.stream.write.files import VideoSink
from tests.demo_files import (
    CONTAINERS,
    WRONG_CLIPS,
    WRONG_PICTURES,
    audio_only,
    clip_in,
    png_header,
    raw_h264,
    sample_clip,
    tiff_of_two_sizes,
)
from tests.test_audio import make_clip
from tests.waiting import WAIT_S

register_heif_opener()

LIMITS = Limits()


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


# ---- start


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_on_loopback_the_demo_is_private_and_has_a_camera_tab(host: str) -> None:
    assert not DemoConfig(host=host).public and DemoConfig(host=host).camera_tab


@pytest.mark.parametrize("public", [{"share": True}, {"host": "0.0.0.0"}, {"host": "::"}, {"host": "demo.lan"}])
def test_a_public_demo_has_a_camera_tab_only_behind_a_login(public: dict[str, Any]) -> None:
    assert DemoConfig(**public).public and not DemoConfig(**public).camera_tab
    assert DemoConfig(**public, auth="ann:secret").camera_tab


def test_a_login_comes_from_the_command_line_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DemoConfig().login is None
    assert DemoConfig(auth="ann:a:b").login == ("ann", "a:b")
    monkeypatch.setenv("LINEAMENT_AUTH", "bob:secret")
    assert DemoConfig().login == ("bob", "secret")
    for auth in ("ann", "ann:", ":secret", ""):
        with pytest.raises(LineamentError, match="name:password"):
            DemoConfig(auth=auth)


def test_a_missing_model_file_is_reported_at_start() -> None:
    with pytest.raises(LineamentError, match="no such file"):
        DemoConfig(model=("nowhere.onnx",))


def test_limits_must_be_positive_and_ports_valid() -> None:
    with pytest.raises(LineamentError, match="upload_mb must be above 0, got 0"):
        Limits(upload_mb=0)
    with pytest.raises(LineamentError, match="port must be 1 to 65535, got 99999"):
        DemoConfig(port=99999)


# ---- settings


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"colour": "red"}, "unknown setting colour"),
        ({"max_faces": -1}, "max faces must be .* got -1"),
        ({"max_faces": 1e9}, "got 1000000000"),
        ({"max_faces": "many"}, "wrong type"),
        ({"max_faces": float("nan")}, "wrong type"),
        ({"max_faces": float("inf")}, "wrong type"),
        ({"max_faces": 10**400}, "wrong type"),
        ({"confidence": 10**400}, "wrong type"),
        ({"confidence": 2}, "confidence must be 0 to 1, got 2"),
        ({"confidence": None}, "wrong type"),
        ({"schema": "wflw99"}, "unknown schema"),
        ({"schema": ["wflw98"]}, "wrong type"),
        ({"shown": ["hats"]}, "cannot draw hats"),
        ({"shown": "points"}, "wrong type"),
    ],
)
def test_an_invalid_setting_is_refused_by_name(values: dict[str, object], says: str) -> None:
    with pytest.raises(LineamentError, match=says):
        Settings().changed(values)


def test_a_visitor_can_select_offered_models_but_no_path(models: Models) -> None:
    for name in ("/etc/passwd", "../models/b5.onnx", "", "Mesh"):
        with pytest.raises(LineamentError, match="choose one of student"):
            models[name]
    assert models["student"] is models["student"]


def test_the_demo_selects_the_model_that_it_was_started_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ready", lambda: ["student", "mesh"])
    assert (Models().usual, Models().names) == ("student", ["student", "mesh"])
    assert (Models(["mesh"]).usual, Models(["mesh"]).names) == ("mesh", ["student", "mesh"])
    # a model that is not ready is offered if requested; loading it says what is missing
    assert (Models(["b5"]).usual, Models(["b5"]).names) == ("b5", ["student", "mesh", "b5"])
    own = Models(["runs/a.onnx", "b.onnx"])
    assert (own.usual, own.names) == ("b.onnx", ["student", "mesh", "a.onnx", "b.onnx"])
    with pytest.raises(LineamentError, match=r"two models are named a\.onnx"):
        Models(["runs/a.onnx", "old/a.onnx"])
    assert DemoConfig(model=("b5",)).model == ("b5",)


# ---- pictures


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".bmp", ".tiff", ".gif", ".ppm", ".avif", ".heic", ".jp2"])
def test_common_picture_formats_are_accepted_whatever_the_file_name(tmp_path: Path, ending: str) -> None:
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:, :30] = (250, 0, 0)
    path = tmp_path / "picture"
    Image.fromarray(rgb).save(
        path, {".jpg": "JPEG", ".heic": "HEIF", ".jp2": "JPEG2000"}.get(ending, ending[1:].upper())
    )
    bgr = read_picture(path, LIMITS)
    assert bgr.shape == (40, 60, 3)
    assert bgr[20, 10, 2] > 200 and bgr[20, 50, 2] < 60


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "a", kind, exif=exif)
    assert read_picture(tmp_path / "a", LIMITS).shape == (60, 40, 3)


def test_a_picture_with_two_sizes_is_decoded_at_the_size_that_was_checked(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff_of_two_sizes(1200, 1000))
    try:
        assert read_picture(tmp_path / "a.tif", Limits(picture_megapixels=0.01)).shape == (10, 10, 3)
    except LineamentError as error:
        assert "damaged" in str(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF", "JPEG2000"])
def test_a_damaged_picture_is_decoded_or_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    held, chance = io.BytesIO(), np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 256, (20, 30, 3), np.uint8)).save(held, kind)
    for _ in range(60):
        data = bytearray(held.getvalue())
        for at in chance.integers(0, len(data), 4):
            data[at] = chance.choice((0, 1, 255))
        (tmp_path / "a").write_bytes(data)
        try:
            assert read_picture(tmp_path / "a", Limits(picture_megapixels=0.1)).shape[2] == 3
        except LineamentError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_16_bit_grey_picture_keeps_its_brightness(tmp_path: Path, kind: str) -> None:
    Image.fromarray(np.full((40, 60), 100 * 256 + 7, np.uint16)).save(tmp_path / "a", kind)
    bgr = read_picture(tmp_path / "a", LIMITS)
    assert bgr.shape == (40, 60, 3) and (bgr == 100).all()


@pytest.mark.parametrize(("kind", "left"), [("TIFF", "pages"), ("WEBP", "frames"), ("GIF", "frames")])
def test_of_several_pictures_in_a_file_the_first_is_shown_with_a_note(
    tmp_path: Path, models: Models, kind: str, left: str
) -> None:
    first, second = (Image.new("RGB", (60, 40), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a", kind, save_all=True, append_images=[second])
    upload = read_upload(tmp_path / "a", LIMITS)
    assert upload.left_out == f"the first of 2 {left}" and upload.bgr[..., 2].mean() > 200
    page = page_parts.picture(find(upload.bgr, Settings(), models), Settings(), upload.left_out)
    assert f"Only a part of the file is shown: the first of 2 {left}." in page


@pytest.mark.parametrize("name", WRONG_PICTURES)
def test_an_invalid_picture_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, says = WRONG_PICTURES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LineamentError, match=says) as failure:
        read_picture(tmp_path / name, LIMITS)
    assert "\n" not in str(failure.value) and str(tmp_path) not in str(failure.value)


def test_a_picture_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(1_000_001))
    with pytest.raises(LineamentError, match="the limit is 1 MB"):
        read_picture(tmp_path / "a.png", Limits(upload_mb=1))


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF    WEBP"])
)
def test_any_bytes_are_decoded_or_refused_in_one_sentence(tail: bytes, start: bytes) -> None:
    try:
        assert decode_frame(start + tail).dtype == np.uint8
    except LineamentError as error:
        assert "frame" in str(error)


def test_a_webcam_frame_larger_than_the_page_sends_is_refused_undecoded() -> None:
    good, jpeg = cv2.imencode(".jpg", np.zeros((1200, 2000, 3), np.uint8))
    assert good
    with pytest.raises(LineamentError, match="2000 x 1200"):
        decode_frame(jpeg.tobytes())
    with pytest.raises(LineamentError, match="not a JPEG"):
        decode_frame(png_header(10, 10))


# ---- clips


@pytest.mark.parametrize("name", WRONG_CLIPS)
def test_an_invalid_clip_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    content, says = WRONG_CLIPS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LineamentError, match=says) as failure:
        check_clip(tmp_path / name, LIMITS)
    assert "\n" not in str(failure.value) and str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize("ending", CONTAINERS)
def test_a_clip_may_have_any_common_container(tmp_path: Path, models: Models, ending: str) -> None:
    clip = clip_in(tmp_path / f"a.{ending}", frames=6)
    assert is_clip(clip)
    made = annotate(clip, tmp_path / "out", Settings(), models, LIMITS, threading.Event())
    assert (made.frames, made.faces) == (6, 1)


def test_a_recording_may_begin_at_any_time(tmp_path: Path) -> None:
    """A Matroska file states when it ends, not how long it is."""
    check_clip(clip_in(tmp_path / "a.mkv", frames=10, start_s=3600), LIMITS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_a_picture_given_as_a_clip_is_sent_to_the_image_tab(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "clip.mp4"
    Image.new("RGB", (60, 40)).save(path, kind)
    assert not is_clip(path)
    with pytest.raises(LineamentError, match="use the Image tab"):
        check_clip(path, LIMITS)


def test_a_clip_without_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="sound only"):
        check_clip(audio_only(tmp_path / "sound.mp4"), LIMITS)


def test_a_clip_over_a_limit_is_refused_with_the_limit(tmp_path: Path) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=60, size_hw=(120, 160))
    check_clip(clip, LIMITS)
    for limits, says in (
        (Limits(clip_s=1), "the limit is 1 s"),
        (Limits(clip_frames=30), "and 30 frames"),
        (Limits(clip_megapixels=0.01), "more than 0.01 million"),
    ):
        with pytest.raises(LineamentError, match=says):
            check_clip(clip, limits)


def test_a_clip_that_understates_its_length_is_stopped_at_the_limit(tmp_path: Path, models: Models) -> None:
    clip = raw_h264(tmp_path / "a.h264", frames=40)
    with pytest.raises(LineamentError, match="longer than its header says"):
        annotate(clip, tmp_path, Settings(), models, Limits(clip_frames=30), threading.Event())


def test_frames_over_the_size_limit_are_skipped_undecoded(tmp_path: Path, models: Models) -> None:
    jpegs = [cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 400)]
    (tmp_path / "a.mjpeg").write_bytes(jpegs[0] * 5 + jpegs[1] * 2)
    limits, out = Limits(clip_megapixels=0.01), tmp_path / "out"
    assert annotate(tmp_path / "a.mjpeg", out, Settings(), models, limits, threading.Event()).frames == 5


def test_a_clip_becomes_a_video_json_lines_and_signals(tmp_path: Path, models: Models) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=12)
    told: list[tuple[int, int | None]] = []
    made = annotate(
        clip, tmp_path / "out", Settings(), models, LIMITS, threading.Event(), lambda n, total: told.append((n, total))
    )
    with av.open(str(made.video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    assert len(made.jsonl.read_text().splitlines()) == made.frames == 12
    assert told[-1] == (12, 12)
    assert made.faces == 1 and len(made.rows) >= 10
    _, seconds, signals = made.rows[-1]
    assert seconds == pytest.approx(11 / 30, abs=0.01)
    assert set(signals) == {"left eye", "right eye", "mouth", "yaw", "pitch", "roll"}
    assert str(tmp_path) not in made.jsonl.read_text()


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "AVIF", "GIF"])
def test_an_animation_is_a_clip(tmp_path: Path, models: Models, kind: str) -> None:
    sample = Sample((240, 320), noise=0.0)
    first, *others = [Image.fromarray(sample.render(index)[..., ::-1]) for index in range(4)]
    first.save(tmp_path / "a", kind, save_all=True, append_images=others, duration=100)
    made = annotate(tmp_path / "a", tmp_path / "out", Settings(), models, LIMITS, threading.Event())
    assert made.frames == 4 and made.faces == 1 and str(tmp_path) not in made.jsonl.read_text()
    with pytest.raises(LineamentError, match="the animation has 4 frames; the limit is 3 frames"):
        check_clip(tmp_path / "a", Limits(clip_frames=3))
    with pytest.raises(LineamentError, match="cannot read clip: it has over"):
        annotate(tmp_path / "a", tmp_path / "out", Settings(), models, Limits(clip_megapixels=0.01), threading.Event())


def test_a_cancelled_clip_ends_at_the_next_frame(tmp_path: Path, models: Models) -> None:
    clip, cancelled = sample_clip(tmp_path / "a.mp4", frames=60, size_hw=(120, 160)), threading.Event()
    frames = []

    def told(done: int, total: int | None) -> None:
        frames.append(done)
        if done == 3:
            cancelled.set()

    with pytest.raises(Cancelled):
        annotate(clip, tmp_path / "out", Settings(), models, LIMITS, cancelled, told)
    assert frames == [1, 2, 3]
    assert not [thread for thread in threading.enumerate() if "clip" in thread.name]


def test_a_clip_keeps_its_audio(tmp_path: Path, models: Models) -> None:
    made = annotate(
        make_clip(tmp_path / "a.mp4", seconds=0.4), tmp_path / "out", Settings(), models, LIMITS, threading.Event()
    )
    with av.open(str(made.video)) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_two_models_are_compared_on_a_clip(tmp_path: Path, models: Models) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=30)
    told: list[tuple[int, int | None]] = []
    first, second, apart_percent = compare_clip(
        clip,
        tmp_path / "out",
        ("student", "student-fast"),
        Settings(),
        models,
        LIMITS,
        threading.Event(),
        lambda done, total: told.append((done, total)),
    )
    assert (first.model, second.model) == ("student", "student-fast")
    for side, one in zip(("left", "right"), (first, second)):
        assert one.made.video == tmp_path / "out" / side / "annotated.mp4" and one.made.video.is_file()
        assert (one.made.frames, one.made.faces) == (30, 1) and 0 < one.made.landmark_ms < one.frame_ms
    assert 0 < apart_percent < 10
    assert [done for done, _ in told] == list(range(1, 61)) and {total for _, total in told} == {60}
    page = "".join(page_parts.compared_clips(first, second, apart_percent, "result"))
    assert "result/left/annotated.mp4" in page and "result/right/points.jsonl" in page
    same = compare_clip(clip, tmp_path, ("student", "student"), Settings(), models, LIMITS, threading.Event())
    assert same[2] == 0 and same[0].made.faces == same[1].made.faces


def test_jitter_is_measured_while_a_head_is_still_and_only_then(tmp_path: Path, models: Models) -> None:
    """One picture, shown again and again, shakes less than the same with noise; a blank clip has no figures."""

    def figures(noise: float, bgr: U8, name: str) -> Measured:
        chance = np.random.default_rng(0)
        with VideoSink(tmp_path / name, 30.0) as sink:
            for index in range(40):
                shown = np.clip(bgr + chance.normal(0, noise, bgr.shape), 0, 255).astype(np.uint8)
                sink.write(Result(Frame(shown, "a", index, index / 30, 0.0), ()), shown)
        settings = Settings(smooth=False)
        names = ("student-fast", "student-fast")
        return compare_clip(tmp_path / name, tmp_path / "out", names, settings, models, LIMITS, threading.Event())[0]

    bgr = Sample(size_hw=(240, 320)).render(60)
    quiet, loud = figures(0, bgr, "quiet.mp4"), figures(8, bgr, "loud.mp4")
    assert 0 <= quiet.jitter < loud.jitter
    blank = figures(0, np.zeros_like(bgr), "blank.mp4")
    assert np.isnan(blank.jitter) and blank.made.faces == 0
    assert "No face was found by both models." in page_parts.compared_clips(blank, blank, float("nan"), "result")[2]


@pytest.mark.parametrize("last", [2, 8])
def test_a_comparison_can_be_cancelled_with_either_model(tmp_path: Path, models: Models, last: int) -> None:
    clip, cancelled = sample_clip(tmp_path / "a.mp4", frames=6, size_hw=(120, 160)), threading.Event()
    frames: list[int] = []

    def told(done: int, total: int | None) -> None:
        frames.append(done)
        if done == last:
            cancelled.set()

    with pytest.raises(Cancelled):
        compare_clip(clip, tmp_path, ("student", "student-fast"), Settings(), models, LIMITS, cancelled, told)
    assert frames == list(range(1, last + 1))


# ---- faces


def test_every_face_of_a_crowded_picture_is_listed(astronaut: U8, models: Models) -> None:
    crowd = np.tile(cv2.resize(astronaut[:256, 100:356], (128, 128)), (4, 6, 1))
    everyone = Settings(max_faces=0)  # as the Image tab and the API ask
    result = find(crowd, everyone, models)
    assert len(result.tracks) == 24
    assert page_parts.picture(result, everyone).count("<tr>") == 1 + 24
    files = dict(downloads(result, everyone))
    found = json.loads(base64.b64decode(files["points.json"].partition(",")[2]))
    assert len(found["faces"]) == 24 and f"face-{found['faces'][-1]['id']}.pts" in files


def test_points_are_offered_as_json_csv_and_pts(astronaut: U8, models: Models) -> None:
    result = find(astronaut, Settings(), models)
    assert len(result.tracks) == 1
    files = dict(downloads(result, Settings()))
    assert list(files) == ["points.json", "points.csv", "face-1.pts"]
    header, row = base64.b64decode(files["points.csv"].partition(",")[2]).decode().splitlines()
    cells = dict(zip(header.split(","), row.split(",")))
    np.testing.assert_allclose(float(cells["x_16"]), result.tracks[0].points[16, 0], atol=0.01)
    text = pts(result.tracks[0].points)
    assert text.startswith("version: 1\nn_points: 98\n{\n")
    points = np.array([line.split() for line in text.splitlines()[3:-1]], float)
    np.testing.assert_allclose(points - 1, result.tracks[0].points, atol=1e-3)


def test_a_picture_without_a_face_has_nothing_to_download(models: Models) -> None:
    result = find(np.zeros((200, 200, 3), np.uint8), Settings(), models)
    assert result.tracks == () and downloads(result, Settings()) == []


@pytest.mark.mesh
def test_a_model_agrees_with_itself_and_not_quite_with_another(astronaut: U8, models: Models) -> None:
    first, second, apart = compare(astronaut, ("mesh", "mesh"), Settings(), models)
    assert apart == 0 and first.landmark_ms > 0 and second.landmark_ms > 0
    assert 0 < compare(astronaut, ("student", "mesh"), Settings(), models)[2] < 10


def test_visitors_do_not_share_tracks(astronaut: U8, models: Models) -> None:
    """A new tracker starts from nothing, whatever another one has seen."""
    empty = np.zeros_like(astronaut)
    with Analyst(models, Settings()) as first, Analyst(models, Settings()) as second:
        for index in range(3):
            assert len(first(Frame(astronaut, "webcam", index, index / 30, 0.0)).tracks) == 1
        assert second(Frame(empty, "webcam", 0, 0.1, 0.0)).tracks == ()
        assert second(Frame(astronaut, "webcam", 1, 0.3, 0.0)).tracks[0].id == 1


@pytest.mark.parametrize("hw", [(1, 7000), (7000, 1), (1, 1)])
def test_a_picture_thinner_than_a_pixel_after_scaling_is_shown(models: Models, hw: tuple[int, int]) -> None:
    result = find(np.zeros((*hw, 3), np.uint8), Settings(), models)
    assert drawn_url(result, Settings()).startswith("data:image/jpeg")
    _, jpeg = _encoded(result, "wflw98", 0)
    assert decode_frame(jpeg).shape[:2] == tuple(max(1, round(side * min(1, 960 / max(hw)))) for side in hw)


# ---- live views


def test_a_deeply_nested_message_is_refused() -> None:
    with pytest.raises(LineamentError, match="not a JSON object"):
        _changed(Settings(), "[" * 9000)


class Still:
    """A network camera that shows one picture until it is closed."""

    live, still, name, fps, frame_count, closed = True, False, "camera", 30.0, None, False

    def __enter__(self) -> Still:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> Frame | None:
        time.sleep(0.01)
        return None if self.closed else Frame(np.zeros((60, 80, 3), np.uint8), "camera", 0, 0.0, time.monotonic())

    def close(self) -> None:
        self.closed = True


def test_a_camera_times_out_even_if_the_page_requests_no_frame(models: Models) -> None:
    camera, ended = Still(), list[str]()
    nothing_wanted = threading.Event()

    def watch(analyst: Analyst) -> None:
        ended.append(
            _watch(cast("NetworkCamera", camera), analyst, nothing_wanted, lambda text, jpeg: None, seconds=0.05)
        )

    with Analyst(models, Settings()) as analyst:
        thread = threading.Thread(target=watch, args=(analyst,))
        thread.start()
        thread.join(WAIT_S)
        camera.close()
        thread.join(WAIT_S)
    assert ended and "stopped after" in ended[0]


# ---- visitors


def test_a_ticket_is_valid_once_and_live_views_are_limited() -> None:
    admission = Admission(places=1)
    ticket = admission.ticket()
    assert admission.redeem(ticket) and not admission.redeem(ticket) and not admission.redeem("")
    admission.enter()
    with pytest.raises(LineamentError, match="all 1 live views are in use"):
        admission.enter()
    admission.leave()
    admission.enter()


def test_closing_a_page_ends_its_jobs_and_deletes_its_files_only(tmp_path: Path) -> None:
    tabs = Tabs(tmp_path)
    own, both, renamed = tmp_path / ("a" * 64) / "a", tmp_path / ("b" * 64) / "b", tmp_path / ("b" * 64) / "c"
    for path in (own, both, renamed):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    tabs.uploaded("ann", str(own))
    tabs.uploaded("ann", str(both))
    tabs.uploaded("bob", str(renamed))
    cancelled, folder = tabs.begin("ann")
    others, others_folder = tabs.begin("bob")
    tabs.close("ann")
    assert cancelled.is_set() and not folder.exists() and not own.exists()
    assert not others.is_set() and others_folder.exists() and renamed.exists()
    tabs.close_all()
    assert list(tmp_path.iterdir()) == [] and len(tabs) == 0


def test_a_page_has_one_result_at_a_time(tmp_path: Path) -> None:
    tabs = Tabs(tmp_path)
    first, old = tabs.begin("ann")
    second, new = tabs.begin("ann")
    assert first.is_set() and not second.is_set()
    assert not old.exists() and new.exists()
    assert tabs.start("ann", old.name) is None and tabs.start("bob", new.name) is None
    assert tabs.start("ann", new.name) == (second, new)
    assert tabs.cancel("ann") and second.is_set()
    for job, result in ((second, "new"), (first, "old")):
        tabs.end("ann", job, result)
    assert tabs.result("ann") == "new"
    assert not tabs.cancel("ann")
    assert tabs.start("ann", new.name) is None


@pytest.mark.parametrize("place", ["../kept/a.png", "sample/sample.mp4", "a.png", f"x/{'a' * 64}/a.png"])
def test_a_file_that_is_not_an_upload_is_not_deleted(tmp_path: Path, place: str) -> None:
    tabs = Tabs(tmp_path / "store")
    kept = (tmp_path / "store" / place).resolve()
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    tabs.uploaded("ann", str(kept))
    tabs.close("ann")
    assert kept.exists()


def test_idle_pages_are_swept_but_working_ones_are_not(tmp_path: Path) -> None:
    tabs = Tabs(tmp_path)
    done, finished = tabs.begin("ann")
    tabs.end("ann", done)
    _, working = tabs.begin("bob")
    tabs.start("bob", working.name)
    tabs.sweep(age_s=60)
    assert finished.exists()
    tabs.sweep(age_s=-1)
    assert not finished.exists() and working.exists()


def test_a_job_that_never_ran_keeps_no_files(tmp_path: Path) -> None:
    tabs = Tabs(tmp_path)
    tabs.begin("ann")  # the button is pressed again while the job is queued
    again, made = tabs.begin("ann")
    tabs.start("ann", made.name)
    tabs.end("ann", again)
    _, waiting = tabs.begin("bob")  # the queue is full
    tabs.sweep(age_s=-1)
    assert len(tabs) == 0 and not made.exists() and not waiting.exists()


# ---- guard


def answer(guard: Guard, path: str, headers: dict[bytes, bytes], body: bytes = b"", method: str = "POST") -> int:
    """The status of a request; 204 if it reaches the application."""
    return asyncio.run(asked(guard, path, headers, body, method))


async def asked(guard: Guard, path: str, headers: dict[bytes, bytes], body: bytes = b"", method: str = "POST") -> int:
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers.items())}
    await guard(scope, receive, send)
    return statuses[0]


async def through(scope: Scope, receive: Receive, send: Send) -> None:
    """Stands in for Gradio; accepts everything from whoever has the cookie."""
    asks = scope["path"] == "/gradio_api/login_check"
    known = (b"cookie", b"ann") in scope["headers"]
    assert (await receive())["type"] == "http.request"
    status = 204 if not asks else 200 if known else 401
    await send({"type": "http.response.start", "status": status, "headers": []})


def test_uploads_are_refused_while_the_disk_space_is_full(tmp_path: Path) -> None:
    guard, headers = Guard(through, tmp_path, Limits(store_mb=1)), {b"content-length": b"400000"}
    (tmp_path / "a").write_bytes(bytes(500_000))
    assert answer(guard, "/gradio_api/upload", headers) == 204
    (tmp_path / "b").write_bytes(bytes(200_000))
    assert answer(guard, "/gradio_api/upload", headers) == 507


def test_an_upload_succeeds_while_another_visitor_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for visitor in ("ann", "bob"):
        (tmp_path / visitor).mkdir()
        (tmp_path / visitor / "a.png").write_bytes(bytes(5))
    stat = os.stat

    def meanwhile(path: str | Path, **how: Any) -> os.stat_result:
        """When the file of one visitor is checked, the other one leaves."""
        for one, other in (("ann", "bob"), ("bob", "ann")):
            if str(path) == str(tmp_path / one / "a.png"):
                shutil.rmtree(tmp_path / other, ignore_errors=True)
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", meanwhile)
    guard = Guard(through, tmp_path, Limits(store_mb=1))
    assert answer(guard, "/gradio_api/upload", {b"content-length": b"10"}) == 204
    assert len(list(tmp_path.iterdir())) == 1


def test_uploads_in_progress_count_against_the_disk_space(tmp_path: Path) -> None:
    headers = {b"content-length": b"400000"}

    async def upload() -> list[int]:
        come = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await come.wait()
            await through(scope, receive, send)

        guard = Guard(slow, tmp_path, Limits(store_mb=1))
        first = [asyncio.create_task(asked(guard, "/gradio_api/upload", headers)) for _ in range(2)]
        await asyncio.sleep(0)  # both have started
        third = await asked(guard, "/gradio_api/upload", headers)
        come.set()
        return [*await asyncio.gather(*first), third, await asked(guard, "/gradio_api/upload", headers)]

    assert asyncio.run(upload()) == [204, 204, 507, 204]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"content-length": b"many"},
        {b"content-length": b"10", b"transfer-encoding": b"chunked"},
        {b"transfer-encoding": b"chunked"},
    ],
)
def test_an_upload_without_a_reliable_length_is_refused(tmp_path: Path, headers: dict[bytes, bytes]) -> None:
    assert answer(Guard(through, tmp_path, LIMITS), "/gradio_api/upload", headers) == 411


@pytest.mark.parametrize("address", ["http://x/a.png", " HTTPS://x", "file:///etc/passwd", "data:image/png;base64,AA"])
@pytest.mark.parametrize("wrap", [lambda file: {"data": [file]}, lambda file: {"data": [{"a": [[file]]}]}])
def test_a_file_given_by_url_is_refused_wherever_it_is_nested(
    tmp_path: Path, address: str, wrap: Callable[[object], object]
) -> None:
    guard = Guard(through, tmp_path, LIMITS)
    for path in ("queue/join", "run/landmarks", "component_server", "stream/x", "whatever/comes/next"):
        assert answer(guard, f"/gradio_api/{path}", {}, json.dumps(wrap({"path": address})).encode()) == 400
        assert answer(guard, f"/gradio_api/{path}", {}, json.dumps(wrap({"path": "/tmp/a.png"})).encode()) == 204


@pytest.mark.parametrize("way", ["file=", "file/", "proxy=", "file=/", "file= ", "FILE/"])
def test_no_route_fetches_a_url(tmp_path: Path, way: str) -> None:
    guard = Guard(through, tmp_path, LIMITS)
    assert answer(guard, f"/gradio_api/{way}http://93.184.216.34/x", {}, method="GET") == 403
    assert answer(guard, "/gradio_api/file=/tmp/a.png", {}, method="GET") == 204


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["cancel", "reset", "stream/x", "run/landmarks", "queue/join"])
def test_requests_other_than_uploads_are_limited_in_size_and_depth(tmp_path: Path, path: str, method: str) -> None:
    guard = Guard(through, tmp_path, LIMITS)
    for body, status in ((b"[" * 2_000_000, 413), (b"[" * 900_000, 400), (b"[" * 99 + b"]" * 99, 400), (b"{}", 204)):
        assert answer(guard, f"/gradio_api/{path}", {}, body, method) == status


@pytest.mark.parametrize("path", ["cancel", "reset", "stream/x", "upload", "run/landmarks", "vibe"])
def test_with_a_login_required_nothing_is_accepted_without_it(tmp_path: Path, path: str) -> None:
    guard = Guard(through, tmp_path, LIMITS, login=True)
    length = {b"content-length": b"2"}
    assert answer(guard, f"/gradio_api/{path}", length, b"{}") == 401
    assert answer(guard, f"/gradio_api/{path}", {**length, b"cookie": b"ann"}, b"{}") == 204
    assert answer(guard, "/login", length, b"{}") == 204


@pytest.mark.parametrize("path", ["process_recording", "vibe-edit/", "undo-vibe-edit", "vibe-code", "deep_link"])
def test_unused_gradio_routes_are_disabled(tmp_path: Path, path: str) -> None:
    for method in ("GET", "POST"):
        assert answer(Guard(through, tmp_path, LIMITS), f"/gradio_api/{path}", {}, method=method) == 404
