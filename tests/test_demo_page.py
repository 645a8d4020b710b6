"""The demo end to end: a real server, a headless browser with a fake camera, and the Python client.

The server runs with the training packages absent and small limits. One server and one browser serve all tests.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
import pytest
from gradio_client import Client, handle_file  # type: ignore[import-untyped]
from gradio_client.exceptions import AppError  # type: ignore[import-untyped]
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, expect
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from lineament.demo.bench import free_port
from lineament.landmarks.types import U8
from lineament.stream.local_cameras import mjpeg_server, turning_head
from tests.demo_files import WRONG_CLIPS, WRONG_PICTURES, audio_only, sample_clip
from tests.demo_server import (
    ROOT,
    Server,
    browsing,
    opens_an_absent_camera,
    running,
    serving,
    tab,
    upload,
    visit,
)
from tests.waiting import WAIT_S, until

Points = NDArray[np.float64]

VISITORS = 5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ["--visitors", str(VISITORS), "--upload-mb", "2", "--clip-s", "20"]
    with serving(tmp_path_factory.mktemp("server"), *limits) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("camera")) as browser:
        yield browser


def points(page: Page) -> Points:
    """(K, 2) of the first face, px of the webcam's frame."""
    return np.array(page.wait_for_function("Lineament.views.webcam.result.faces[0]?.points").json_value(), float)


# ---- live

MOVED = """(before) => Lineament.views.webcam.result.faces[0]?.points.some(
    ([x, y], k) => Math.hypot(x - before[k][0], y - before[k][1]) > 2)"""


def test_live_draws_moving_landmarks_and_shows_the_frame_rate(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        page.click("#live [data-ln=start]")
        running(page)
        first = points(page)
        assert first.shape == (98, 2) and np.ptp(first, axis=0).min() > 20
        page.wait_for_function(MOVED, arg=first.tolist())
        expect(page.locator("#live [data-ln=status]")).to_have_text(re.compile(r"^\d+ fps · \d+ ms · 1 face$"))


CHARTED = """() => {
    const { signals } = Lineament.views.webcam, { canvas } = signals;
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const colour = signals.colour(signals.largest).split(",").map(Number);
    const rows = Array(4).fill(0);
    for (let at = 0; at < data.length; at += 4)
        if (colour.every((value, i) => Math.abs(data[at + i] - value) < 12) && data[at + 3] > 200)
            rows[Math.floor((4 * Math.floor(at / 4 / width)) / height)] += 1;
    return rows.every((pixels) => pixels > 20);  // a line in the colour of the face, in each of the four rows
}"""


def test_live_charts_eyes_mouth_and_yaw_of_each_face_in_its_colour(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        chart = page.locator("#live [data-ln=signals]")
        page.click("#live [data-ln=start]")
        running(page)
        before = chart.bounding_box()
        page.wait_for_function(CHARTED)
        value = r"(-?[\d.]+|unknown)"
        expect(chart).to_have_attribute(
            "aria-label", re.compile(rf"face \d+: left eye {value}, right eye {value}, mouth {value}, yaw {value}°?$")
        )
        assert before is not None and chart.bounding_box() == before  # nothing moved


GAP = """() => {
    const canvas = Object.assign(document.createElement("canvas"), { style: "width: 400px; height: 160px" });
    document.body.append(canvas);
    const signals = new Lineament.views.webcam.signals.constructor(canvas, () => "0,255,0");
    const face = { id: 1, box_xyxy: [0, 0, 9, 9], eye_aspect: [0.1, 0.4], mouth_aspect: null, pose_deg: { yaw: 20 } };
    const drawn = [];
    const ctx = canvas.getContext("2d");
    for (const name of ["moveTo", "lineTo"]) {
        const draw = ctx[name].bind(ctx);
        ctx[name] = (x, y) => { drawn.push(name); draw(x, y); };
    }
    signals.add({ faces: [face] }, false); signals.add({ faces: [face] }, false);
    signals.add({ faces: [] }, false); signals.add({ faces: [face] }, false);
    const seen = [0, 1, 2, 3].map((row) => signals.latest(row));
    drawn.length = 0; signals.draw();
    signals.mirror = true;
    const mirrored = [0, 1, 2, 3].map((row) => signals.latest(row));
    canvas.remove();
    return { seen, mirrored, lines: drawn.filter((name) => name === "lineTo").length };
}"""


def test_the_chart_leaves_a_gap_for_what_is_unknown_and_mirrors_with_the_picture(
    browser: Browser, server: Server
) -> None:
    with visit(browser, server) as page:
        got = page.evaluate(GAP)
    assert got["seen"] == [0.1, 0.4, None, 20] and got["mirrored"] == [0.4, 0.1, None, -20]
    # of three samples, only the first two are joined, in three rows; four more are the lines at zero
    assert got["lines"] == 3 + 4


def test_a_snapshot_is_the_picture_as_shown(browser: Browser, server: Server, tmp_path: Path) -> None:
    with visit(browser, server) as page:
        expect(page.locator("#live [data-ln=snapshot]")).to_be_disabled()
        page.click("#live [data-ln=start]")
        running(page)
        page.click("#live [data-ln=stop]")  # the last picture stays
        with page.expect_download() as download:
            page.click("#live [data-ln=snapshot]")
        assert re.fullmatch(r"lineament-\d{4}-\d\d-\d\d-\d{6}\.png", download.value.suggested_filename)
        download.value.save_as(tmp_path / "snapshot.png")
        bgr = cv2.imread(str(tmp_path / "snapshot.png"))
        shown = page.evaluate("[Lineament.views.webcam.canvas.height, Lineament.views.webcam.canvas.width]")
        assert bgr is not None and list(bgr.shape[:2]) == shown and bgr.std() > 10


@pytest.mark.parametrize("ending", ["the button", "the end of the view", "the limit"])
def test_a_recording_is_a_video_of_the_picture_as_shown(
    browser: Browser, server: Server, tmp_path: Path, ending: str
) -> None:
    with visit(browser, server) as page:
        expect(page.locator("#live [data-ln=record]")).to_be_disabled()
        page.click("#live [data-ln=start]")
        running(page)
        page.click("#live [data-ln=record]")
        expect(page.locator("#live [data-ln=record]")).to_have_text(re.compile(r"End recording 0:0[1-9]"))
        with page.expect_download() as download:
            if ending == "the limit":
                page.evaluate("Lineament.views.webcam.keep.constructor.SECONDS = 1")
            else:
                page.click(f"#live [data-ln={'record' if ending == 'the button' else 'stop'}]")
        expect(page.locator("#live [data-ln=record]")).to_have_text("Record")
        expect(page.locator("#live [data-ln=saved]")).to_contain_text("the server keeps nothing")
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        shown = page.evaluate("[Lineament.views.webcam.canvas.height, Lineament.views.webcam.canvas.width]")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    assert len(frames) > 3 and list(frames[-1].shape[:2]) == shown and frames[-1].std() > 10
    assert not _left(server)


def test_a_browser_that_cannot_record_says_so(browser: Browser, server: Server) -> None:
    with visit(browser, server, init="delete window.MediaRecorder") as page:
        page.click("#live [data-ln=start]")
        running(page)
        record = page.locator("#live [data-ln=record]")
        expect(record).to_be_disabled()
        expect(record).to_have_attribute("title", re.compile("this browser cannot record"))
        expect(page.locator("#live [data-ln=snapshot]")).to_be_enabled()


DRAWN = """() => {
    const v = Lineament.views.webcam, face = v.result.faces[0];
    if (v.inFlight || !face) return null;  // in flight, the frame sent is not the one drawn on
    const { width, height } = v.result;
    const [drawn, sent] = [v.canvas, v.grab].map((c) => c.getContext("2d").getImageData(0, 0, width, height).data);
    const differs = (x, y) => {
        const at = 4 * (y * width + x);
        return [at, at + 1, at + 2].some((i) => Math.abs(drawn[i] - sent[i]) > 30);
    };
    const steps = [-1, 0, 1];
    const near = ([px, py]) =>
        steps.some((dy) => steps.some((dx) => differs(Math.round(px) + dx, Math.round(py) + dy)));
    const [x1, y1, x2, y2] = face.box_xyxy;
    let outside = 0;
    for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++)
            outside += (x < x1 - 8 || x > x2 + 8 || y < y1 - 40 || y > y2 + 8) && differs(x, y);
    return { near: face.points.filter(near).length, outside };
}"""


def test_the_points_are_drawn_where_they_were_found_and_nothing_elsewhere(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        page.get_by_label("Mirror the webcam").uncheck()
        page.wait_for_function("!Lineament.views.webcam.view.mirror")
        page.click("#live [data-ln=start]")
        running(page)
        drawn = page.wait_for_function(DRAWN).json_value()
        assert drawn["near"] > 80 and drawn["outside"] == 0, drawn


def test_settings_apply_at_once(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        page.click("#live [data-ln=sample]")
        running(page)
        page.get_by_label("68 (iBUG)").check()
        page.wait_for_function("Lineament.views.webcam.result.faces[0]?.points.length === 68")
        page.get_by_label("Confidence").first.fill("1")
        page.wait_for_function("Lineament.views.webcam.settings.confidence === 1")
        before = page.evaluate("Lineament.views.webcam.meter.frames")
        page.wait_for_function(f"Lineament.views.webcam.meter.frames > {before + 5}")
        page.wait_for_function("Lineament.views.webcam.result.faces.length === 0")


REMEMBER_IDS = """() => {
    const [view, ids] = [Lineament.views.webcam, (window.ids = [])];
    const heard = view.heard.bind(view);
    view.heard = (text) => { ids.push(...(JSON.parse(text).faces ?? []).map((face) => face.id)); heard(text); };
}"""


def test_five_visitors_have_their_own_tracks_and_a_sixth_is_refused(browser: Browser, server: Server) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(visit(browser, server)) for _ in range(VISITORS)]
        for page in pages:
            page.evaluate(REMEMBER_IDS)
            page.click("#live [data-ln=start]")
        for page in pages:
            running(page)
            # a shared tracker would continue counting
            assert page.evaluate("ids[0]") == 1
        sixth = stack.enter_context(visit(browser, server))
        sixth.click("#live [data-ln=start]")
        expect(sixth.locator("#live [data-ln=error]")).to_contain_text("all 5 live views are in use")
        pages[0].click("#live [data-ln=stop]")
        until(lambda: _starts(sixth))


def _starts(page: Page) -> bool:
    """Tries to start; a place becomes free shortly after its visitor leaves."""
    page.click("#live [data-ln=start]")
    page.wait_for_function("['running', 'error'].includes(Lineament.views.webcam.element.dataset.state)")
    return bool(page.evaluate("Lineament.views.webcam.element.dataset.state === 'running'"))


CAMERA_LATER = """() => {
    const view = Lineament.views.webcam, open = view.open.bind(view);
    view.open = async (...asked) => { setTimeout(() => open(...asked), 500); };
}"""


def test_a_camera_that_opens_slowly_is_shown_after_a_second_start(browser: Browser, server: Server) -> None:
    """The camera requested by the first start arrives after the second: it must not capture the frame."""
    with visit(browser, server) as page:
        page.click("#live [data-ln=start]")
        running(page)
        page.evaluate(CAMERA_LATER)
        page.click("#live [data-ln=start]")
        running(page)


def test_a_lost_connection_is_restored(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        page.click("#live [data-ln=start]")
        running(page)
        page.evaluate("Lineament.views.webcam.socket.close()")
        page.wait_for_function("Lineament.views.webcam.socket === null")
        page.evaluate("Lineament.views.webcam.meter.reset()")
        running(page)


def test_a_blocked_camera_is_explained(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        page.evaluate(
            "navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError') }, null"
        )
        page.click("#live [data-ln=start]")
        expect(page.locator("#live [data-ln=error]")).to_contain_text("allow it in the address bar")


# ---- picture


def test_a_picture_is_drawn_zoomed_by_keys_and_downloaded(
    browser: Browser, server: Server, astronaut: U8, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "astronaut.png"), astronaut)
    with visit(browser, server) as page:
        tab(page, "Image")
        upload(page, "image-file", tmp_path / "astronaut.png")
        expect(page.locator("#image-result")).to_contain_text("1 face in 512 x 512 px")
        with page.expect_download() as download:
            page.get_by_role("link", name="points.json").click()
        assert len(json.loads(download.value.path().read_text())["faces"][0]["points"]) == 98
        page.locator("#image-result [data-ln=zoom]").focus()
        page.keyboard.press("+")
        expect(page.locator("#image-result [data-scale]")).to_have_attribute("data-scale", "1.40")
        drawing = page.get_attribute("#image-result img", "src")
        page.get_by_label("68 (iBUG)").check()
        expect(page.locator("#image-result img")).not_to_have_attribute("src", str(drawing))
        with page.expect_download() as download:
            page.get_by_role("link", name="face-1.pts").click()
        assert "n_points: 68" in download.value.path().read_text()
        assert "scale(1.4)" in page.evaluate("document.querySelector('#image-result img').style.transform")


def test_an_invalid_picture_gets_an_error_and_the_next_one_works(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    with visit(browser, server) as page:
        tab(page, "Image")
        for name in ("empty.png", "drawing.svg", "bomb.png", "text.jpg"):
            content, says = WRONG_PICTURES[name]
            (tmp_path / name).write_bytes(content)
            upload(page, "image-file", tmp_path / name)
            expect(page.locator("#image-result [role=alert]")).to_contain_text(says.split("|")[0])
            page.locator("#image-file [aria-label=Clear]").click()
            expect(page.locator("#image-result")).to_contain_text("Drop a picture")
        page.get_by_role("button", name="Three faces").locator("visible=true").click()
        expect(page.locator("#image-result")).to_contain_text("3 faces")


def test_a_crowd_is_listed_face_by_face(browser: Browser, server: Server, astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "crowd.png"), np.tile(cv2.resize(astronaut[:256, 100:356], (128, 128)), (3, 4, 1)))
    with visit(browser, server) as page:
        tab(page, "Image")
        upload(page, "image-file", tmp_path / "crowd.png")
        expect(page.locator("#image-result")).to_contain_text("12 faces in 512 x 384 px")
        expect(page.locator("#image-result tbody tr")).to_have_count(12)
        with page.expect_download() as download:
            page.get_by_role("link", name="points.json").click()
        assert len(json.loads(download.value.path().read_text())["faces"]) == 12


def test_a_file_in_the_wrong_tab_is_sent_to_the_right_one(
    browser: Browser, server: Server, astronaut: U8, tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    with visit(browser, server) as page:
        tab(page, "Image")
        upload(page, "image-file", sample_clip(tmp_path / "a.mp4", frames=5))
        expect(page.locator("#image-result [role=alert]")).to_contain_text("use the Video tab")
        tab(page, "Video")
        upload(page, "video-file", tmp_path / "a.png")
        page.get_by_role("button", name="Annotate").click()
        expect(page.locator("#video-result [role=alert]")).to_contain_text("use the Image tab")


def test_a_file_over_the_limit_is_refused_with_the_limit(browser: Browser, server: Server, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(3_000_000))
    with visit(browser, server) as page:
        tab(page, "Image")
        page.set_input_files("#image-file input[type=file]", str(tmp_path / "large.png"))
        expect(page.get_by_text("maximum allowed size")).to_be_visible()


@pytest.mark.mesh
def test_two_models_are_shown_side_by_side_with_their_times(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        tab(page, "Compare")
        page.get_by_role("button", name="One face").locator("visible=true").click()
        expect(page.locator("#compare-table")).to_contain_text("mesh-fast")
        expect(page.locator("#compare-table")).to_contain_text("% of the distance")
        for side in ("left", "right"):
            expect(page.locator(f"#compare-{side} img")).to_be_visible()


def test_two_models_are_shown_side_by_side_on_a_clip(browser: Browser, server: Server, tmp_path: Path) -> None:
    with visit(browser, server) as page:
        tab(page, "Compare")
        page.get_by_label("Right model").click()
        page.get_by_role("option", name="student-fast").click()
        expect(page.get_by_role("button", name="Compare the clip")).to_be_hidden()
        upload(page, "compare-file", sample_clip(tmp_path / "a.mkv", frames=30))
        expect(page.locator("#compare-table")).to_contain_text("This is a clip")
        page.get_by_role("button", name="Compare the clip").click()
        expect(page.locator("#compare-table")).to_contain_text("% of the distance")
        expect(page.locator("#compare-table tbody tr")).to_have_count(2)
        for side in ("left", "right"):
            page.wait_for_function(f"document.querySelector('#compare-{side} video').readyState >= 2")
        with page.expect_download() as download:
            page.get_by_role("link", name="student-fast-points.jsonl").click()
        assert len(download.value.path().read_text().splitlines()) == 30
        videos = "[...document.querySelectorAll('#compare-left video, #compare-right video')]"
        page.evaluate(f"{videos}[1].pause()")
        page.wait_for_function(f"{videos}.every((video) => video.paused)")
        # a quick play and pause does not make them start each other, nor does a late event undo a seek
        page.evaluate(f"{videos}[1].play().catch(() => {{}}); {videos}[1].pause()")
        page.wait_for_function(f"{videos}.every((video) => video.paused)")
        page.evaluate(f"{videos}[0].currentTime = 0.5; {videos}[1].dispatchEvent(new Event('pause'))")
        page.wait_for_function(f"{videos}.every((video) => Math.abs(video.currentTime - 0.5) < 0.01)")
        # a picture in its place
        page.get_by_role("button", name="One face").locator("visible=true").click()
        expect(page.locator("#compare-left img")).to_be_visible()
        expect(page.get_by_role("button", name="Compare the clip")).to_be_hidden()
    until(lambda: not _left(server), lambda: _left(server))


def test_the_results_of_video_and_compare_do_not_replace_each_other(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5)
    with visit(browser, server) as page:
        tab(page, "Video")
        upload(page, "video-file", clip)
        page.get_by_role("button", name="Annotate").click()
        expect(page.locator("#video-result")).to_contain_text("5 frames")
        tab(page, "Compare")
        upload(page, "compare-file", clip)
        page.get_by_role("button", name="Compare the clip").click()
        expect(page.locator("#compare-right video")).to_be_visible()
        for where in ("video-result", "compare-left", "compare-right"):
            source = page.get_attribute(f"#{where} video", "src")
            assert page.request.get(server.url + str(source)).status == 200
    until(lambda: not _left(server), lambda: _left(server))


# ---- clip


def test_a_clip_becomes_a_video_that_plays_points_and_plots(browser: Browser, server: Server, tmp_path: Path) -> None:
    with visit(browser, server) as page:
        tab(page, "Video")
        upload(page, "video-file", sample_clip(tmp_path / "a.mp4", frames=30))
        page.get_by_role("button", name="Annotate").click()
        expect(page.locator("#video-result")).to_contain_text("30 frames, 1 face")
        page.wait_for_function("document.querySelector('#video-result video').readyState >= 2")
        for plot in ("openness", "angles"):
            expect(page.locator(f"#plot-{plot} canvas, #plot-{plot} svg").first).to_be_visible()
        page.locator("#video-signals").get_by_label("yaw").uncheck()
        expect(page.locator("#plot-angles")).to_be_hidden()
        with page.expect_download() as download:
            page.get_by_role("link", name="points.jsonl").click()
        assert len(download.value.path().read_text().splitlines()) == 30


def test_a_clip_can_be_cancelled_while_running_and_while_queued(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    clip = sample_clip(tmp_path / "a.mp4", frames=5900, size_hw=(60, 80), fps=300.0)  # long enough not to finish soon
    with visit(browser, server) as first, visit(browser, server) as second:
        for page in (first, second):
            tab(page, "Video")
            upload(page, "video-file", clip)
        for page, sign in ((first, "/5.9k"), (second, "queue")):
            page.get_by_role("button", name="Annotate").click()
            expect(page.locator("#video-result")).to_contain_text(sign)
        for page in (second, first):
            page.get_by_role("button", name="Cancel").click()
        for page in (first, second):
            expect(page.locator("#video-result")).to_contain_text("Cancelled.")
            assert page.locator("#video-result video").count() == 0
            assert "Error" not in page.inner_text("#video-result")


def test_a_new_job_replaces_the_previous_one(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        tab(page, "Video")
        page.get_by_role("button", name="Use the sample").locator("visible=true").click()
        expect(page.locator("#video-result")).to_contain_text("/250")
        page.get_by_role("button", name="Annotate").click()
        expect(page.locator("#video-result [role=alert]")).to_contain_text("no clip is chosen")


def test_an_invalid_clip_gets_an_error(browser: Browser, server: Server, tmp_path: Path) -> None:
    files = [audio_only(tmp_path / "sound.mp4"), sample_clip(tmp_path / "long.mp4", frames=630, size_hw=(48, 64))]
    for name in ("empty.mp4", "text.mp4", "playlist.mp4"):
        (tmp_path / name).write_bytes(WRONG_CLIPS[name][0])
        files.append(tmp_path / name)
    with visit(browser, server) as page:
        tab(page, "Video")
        for path, says in zip(
            files, ("sound only", "the limit is 20 s", "0 bytes", "not a supported video", "not a supported video")
        ):
            upload(page, "video-file", path)
            page.get_by_role("button", name="Annotate").click()
            expect(page.locator("#video-result [role=alert]")).to_contain_text(says)
            page.locator("#video-file [aria-label=Clear]").click()


# ---- leaving


def test_a_closed_tab_leaves_nothing(browser: Browser, server: Server, astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mine.png"), astronaut[::2, ::2])
    with visit(browser, server) as page:
        tab(page, "Image")
        upload(page, "image-file", tmp_path / "mine.png")
        expect(page.locator("#image-result")).to_contain_text("256 x 256 px")
        tab(page, "Video")
        upload(page, "video-file", sample_clip(tmp_path / "unused.mp4", frames=3))
        page.get_by_role("button", name="Use the sample").locator("visible=true").click()
        expect(page.locator("#video-result")).to_contain_text("frames")
        assert _left(server)
    until(lambda: not _left(server), lambda: _left(server))


def test_closing_a_tab_ends_its_running_clip(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        tab(page, "Video")
        page.get_by_role("button", name="Use the sample").locator("visible=true").click()
        expect(page.locator("#video-result")).to_contain_text("/250")
    until(lambda: not _left(server), lambda: _left(server))
    with visit(browser, server) as page:
        tab(page, "Video")
        page.get_by_role("button", name="Annotate").click()
        expect(page.locator("#video-result")).to_contain_text("no clip is chosen")


def _left(server: Server) -> list[Path]:
    """The visitors' files on the server's disk, without the sample."""
    left = []
    folders = (found for own in server.folder.glob("lineament-*") for found in os.walk(own))
    for path in (Path(folder, name) for folder, _, names in folders for name in names):
        with suppress(FileNotFoundError):  # deleted meanwhile; os.walk skips deleted folders
            if path.parent.name != "sample" and path.is_file() and path.stat().st_size:
                left.append(path)
    return left


# ---- network camera


def test_a_network_camera_is_shown_and_can_be_stopped(browser: Browser, server: Server, tmp_path: Path) -> None:
    sample_clip(tmp_path / "a.mkv", frames=150)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        with visit(browser, server) as page:
            tab(page, "Camera")
            page.get_by_label("camera address").fill(f"http://127.0.0.1:{web.server_port}/a.mkv")
            page.click("#camera [data-ln=start]")
            running(page, "camera", frames=3)
            assert page.evaluate("Lineament.views.webcam.view.mirror && !Lineament.views.camera.view.mirror")
            page.click("#camera [data-ln=stop]")
            page.wait_for_function("Lineament.views.camera.element.dataset.state === 'stopped'")
        web.shutdown()


def test_the_page_says_why_an_address_does_not_open(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        tab(page, "Camera")
        for address, says in (
            ("file:///etc/passwd", "not the address of a network camera"),
            (f"rtsp://127.0.0.1:{free_port()}/live", "connection refused"),
            ("", "enter the camera's address first"),
        ):
            page.get_by_label("camera address").fill(address)
            page.click("#camera [data-ln=start]")
            expect(page.locator("#camera [data-ln=error]")).to_contain_text(says)


HELD = """(name) => {
    const [view, Socket] = [Lineament.views[name], window.WebSocket];
    const { server } = view;
    Object.assign(window, { sockets: [], held: [] });
    window.WebSocket = class extends Socket { constructor(url) { super(url); sockets.push(this); } };
    // the test decides when a ticket arrives
    view.server = { ticket: (_) => new Promise((ready) => held.push(() => ready(server.ticket(0)))) };
}"""
LET_GO = "held.splice(0).forEach((go) => go())"
CLOSED = "count => sockets.length === count && sockets.every((socket) => socket.readyState === 3)"


@pytest.mark.parametrize(("name", "title", "begin"), [("webcam", "Live", "sample"), ("camera", "Camera", "start")])
def test_a_view_stopped_or_restarted_while_connecting_leaves_no_socket_open(
    browser: Browser, server: Server, name: str, title: str, begin: str
) -> None:
    with mjpeg_server(turning_head()) as address, visit(browser, server) as page:
        tab(page, title)
        if name == "camera":
            page.get_by_label("camera address").fill(address)
        page.evaluate(HELD, name)
        part = f"#{'live' if name == 'webcam' else name} [data-ln="
        page.click(f"{part}{begin}]")
        page.wait_for_function("held.length === 1")
        page.click(f"{part}stop]")  # which is already enabled
        page.evaluate(LET_GO)
        page.wait_for_function(CLOSED, arg=1)
        assert page.evaluate(f"Lineament.views.{name}.socket === null && !Lineament.views.{name}.running")
        for waiting in (1, 2):
            page.click(f"{part}{begin}]")
            page.wait_for_function(f"held.length === {waiting}")
        page.evaluate(LET_GO)
        running(page, name, frames=3)
        page.wait_for_function("sockets.length === 3")
        page.wait_for_function(f"sockets.every((s) => s.readyState === (s === Lineament.views.{name}.socket ? 1 : 3))")
        if name == "webcam":  # a connection that is restored
            page.evaluate("sockets[2].close(); sockets[1].close()")
            page.wait_for_function("held.length === 1")
        page.click(f"{part}stop]")
        page.evaluate(LET_GO)
        page.wait_for_function(CLOSED, arg=4 if name == "webcam" else 3)


# ---- public demo, and other web sites


def test_a_public_demo_without_a_login_has_no_camera_tab_and_opens_no_address(tmp_path: Path) -> None:
    with serving(tmp_path, "--host", "0.0.0.0") as server:
        assert "the Camera tab is disabled" in server.log.read_text() and "--auth" in server.log.read_text()
        with urllib.request.urlopen(server.url + "config", timeout=WAIT_S) as reply:
            assert all(c["props"].get("elem_id") != "camera" for c in json.load(reply)["components"])
        assert "network cameras are disabled" in camera_error(server)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://elsewhere.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://rebound.example:7860", "Host": "rebound.example:7860"},
        {"Host": "rebound.example"},
        {"X-Forwarded-Host": "demo.example"},
        {"Origin": "http://[::1"},
    ],
)
def test_no_other_web_site_can_have_a_camera_opened(server: Server, headers: dict[str, str]) -> None:
    assert "from the demo's own page only" in camera_error(server, headers)


def test_a_program_on_this_machine_may_open_a_camera(server: Server) -> None:
    assert "connection refused" in camera_error(server)


def camera_error(server: Server, headers: dict[str, str] | None = None) -> str:
    """The error of a camera view with a valid ticket, for an address that nobody listens on."""
    headers = dict(headers or {})
    where = urlsplit(server.url)
    if host := headers.pop("Host", None):  # websockets takes it from the address
        sock = socket.create_connection((where.hostname, where.port), WAIT_S)
        url = f"ws://{host}/lineament/camera?ticket={ticket(server)}"
    else:
        sock = None
        url = f"ws://{where.netloc}/lineament/camera?ticket={ticket(server)}"
    with connect(url, sock=sock, additional_headers=headers) as camera:
        with suppress(ConnectionClosed):  # a refused socket may be closed already
            camera.send(json.dumps({"url": f"rtsp://127.0.0.1:{free_port()}/live"}))
        error: str = json.loads(camera.recv(timeout=WAIT_S))["error"]
    return error


def test_without_internet_the_demo_reports_the_missing_link_and_serves_locally(
    browser: Browser, tmp_path: Path
) -> None:
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
    with serving(tmp_path, "--share", "--auth", "ann:secret", **nowhere) as server:
        log = server.log.read_text()
        assert "everyone who has the link can use this demo" in log and "a password is required" in log
        assert "could not get a public link" in log and "secret" not in log and "Traceback" not in log
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.url + "gradio_api/info", timeout=WAIT_S)
        request = urllib.request.Request(server.url + "gradio_api/cancel", b"{}", {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=WAIT_S)
        with browser.new_context() as visitor:
            page = visitor.new_page()
            page.goto(server.url)
            page.get_by_label("username").fill("ann")
            page.get_by_label("password").fill("secret")
            page.get_by_role("button", name="Login").click()
            page.wait_for_selector("#live [data-ln=start]")
            page.click("#live [data-ln=sample]")
            running(page)
            opens_an_absent_camera(page)


def test_a_port_in_use_is_reported_in_one_line(server: Server) -> None:
    port = server.url.rstrip("/").rpartition(":")[2]
    command = [sys.executable, "-m", "demo", "--port", port]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 1
    # a model may have logged its precision first
    said = [line for line in done.stderr.splitlines() if " runs in f32" not in line]
    assert len(said) == 1 and said[0].startswith(f"error: cannot listen on 127.0.0.1, port {port}: in use")


# ---- looks


def test_on_a_phone_nothing_overflows_and_all_tabs_can_be_reached(browser: Browser, server: Server) -> None:
    with visit(browser, server, viewport={"width": 375, "height": 720}, has_touch=True, is_mobile=True) as page:
        page.click("#live [data-ln=sample]")
        running(page)
        _fits(page)
        page.get_by_role("tab", name="Image", exact=True).click()
        page.get_by_role("button", name="One face").locator("visible=true").click()
        expect(page.locator("#image-result img")).to_be_visible()
        _fits(page)
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-menu").get_by_text("About").click()
        expect(page.get_by_text("Other parameters")).to_be_visible()
        _fits(page)


def _fits(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_dark_mode_is_followed(browser: Browser, server: Server) -> None:
    with visit(browser, server, color_scheme="dark") as page:
        red, green, blue = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)")
        assert max(int(red), int(green), int(blue)) < 60


def test_the_live_tab_can_be_used_with_the_keyboard_alone(browser: Browser, server: Server) -> None:
    with visit(browser, server) as page:
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.dataset.ln") == "sample":
                break
        page.keyboard.press("Enter")
        running(page)


# ---- API, and what it refuses


def test_the_client_gets_the_points_of_a_picture(server: Server, astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    with client(server) as api:
        found = api.predict(handle_file(str(tmp_path / "a.png")), api_name="/landmarks")
        assert found["schema"] == "wflw98" and len(found["faces"]) == 1
        box, eye = found["faces"][0]["box_xyxy"], found["faces"][0]["points"][96]
        assert box[0] < eye[0] < box[2] and 175 < eye[0] < 275
        fewer = api.predict(handle_file(str(tmp_path / "a.png")), schema="ibug68", api_name="/landmarks")
        assert len(fewer["faces"][0]["points"]) == 68


def test_the_client_gets_one_sentence_per_error(server: Server, astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    (tmp_path / "text.jpg").write_bytes(WRONG_PICTURES["text.jpg"][0])
    with client(server) as api:
        with pytest.raises(AppError, match="not a picture, or damaged"):
            api.predict(handle_file(str(tmp_path / "text.jpg")), api_name="/landmarks")
        with pytest.raises(AppError, match="choose one of student"):
            api.predict(handle_file(str(tmp_path / "a.png")), model="/etc/passwd", api_name="/landmarks")


@contextmanager
def client(server: Server) -> Iterator[Client]:
    api = Client(server.url, verbose=False)
    try:
        yield api
    finally:
        api.close()


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=http://169.254.169.254/latest/meta-data",
        "gradio_api/file=file:///etc/passwd",
        "gradio_api/file/http://169.254.169.254/latest/meta-data",
        "gradio_api/file//http://169.254.169.254/latest/meta-data",
        "gradio_api/file%2Fhttp://169.254.169.254/latest/meta-data",
        "gradio_api/proxy=http://127.0.0.1:1/",
        "lineament/result/..%2f..%2fetc/passwd",
        "lineament/result/AAAAAAAAAAAAAAAAAAAAAA/annotated.mp4",
    ],
)
def test_other_files_and_urls_cannot_be_downloaded(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(server.url + path, timeout=WAIT_S)
    assert refused.value.code in (403, 404)
    refused.value.close()


@pytest.mark.parametrize("where", ["http://169.254.169.254/latest", "file:///etc/passwd", "HTTP://example.com/a.png"])
def test_a_picture_given_by_url_is_not_fetched(server: Server, where: str) -> None:
    body = {"data": [{"path": where, "meta": {"_type": "gradio.FileData"}}], "session_hash": "x"}
    for route in ("gradio_api/queue/join", "gradio_api/run/landmarks", "gradio_api/call/landmarks"):
        request = urllib.request.Request(
            server.url + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=WAIT_S)
        assert refused.value.code == 400
        refused.value.close()


def test_a_deeply_nested_request_gets_an_error(server: Server) -> None:
    request = urllib.request.Request(
        server.url + "gradio_api/call/landmarks", b'{"data": ' + b"[" * 50_000, {"Content-Type": "application/json"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=WAIT_S)
    assert refused.value.code == 400 and "too deeply" in refused.value.read().decode()
    refused.value.close()


def test_uploads_over_the_limits_are_refused_before_they_are_read(server: Server) -> None:
    """The server checks the size before it reads, whatever the page would send."""
    where = urlsplit(server.url)
    chunked = ("Transfer-Encoding", "chunked")
    for headers, code in (
        ([("Content-Length", "3000000")], 413),
        ([chunked], 411),
        ([("Content-Length", "10"), chunked], 411),
    ):
        connection = HTTPConnection(where.netloc, timeout=WAIT_S)
        # no body, because the response comes first and closes the connection
        connection.putrequest("POST", where.path + "gradio_api/upload")
        for header in headers:
            connection.putheader(*header)
        connection.endheaders()
        assert connection.getresponse().status == code
        connection.close()


def ticket(server: Server) -> str:
    """A ticket for one live view, obtained as the page does."""
    with urllib.request.urlopen(server.url + "config", timeout=WAIT_S) as reply:
        components = json.load(reply)["components"]
    live = next(c["id"] for c in components if c["props"].get("elem_id") == "live")
    body = {"session_hash": "x", "component_id": live, "fn_name": "ticket", "data": 0}
    request = urllib.request.Request(
        server.url + "gradio_api/component_server", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=WAIT_S) as reply:
        got: str = json.load(reply)
    return got


def view(server: Server) -> ClientConnection:
    """Opens a live view as the page does."""
    return connect(server.url.replace("http", "ws", 1) + f"lineament/live?ticket={ticket(server)}")


def test_a_live_view_answers_invalid_messages_with_an_error_and_continues(server: Server, astronaut: U8) -> None:
    with view(server) as live:
        for nonsense, says in (
            (b"", "not a JPEG"),
            (b"\xff\xd8\xff" + bytes(100), "not a JPEG"),
            (bytes(2_000_001), "the limit is 2000000"),
            ("[]", "not a JSON object"),
            ("{" * 20_000, "too long"),
            ('{"max_faces": 99}', "max faces must be"),
            ('{"shown": 1}', "wrong type"),
        ):
            live.send(nonsense)
            assert says in json.loads(live.recv(timeout=WAIT_S))["error"]
        live.send('{"schema": "ibug68"}')
        live.send(cv2.imencode(".jpg", astronaut)[1].tobytes())
        assert len(json.loads(live.recv(timeout=WAIT_S))["faces"][0]["points"]) == 68
        live.send('{"model": "/etc/passwd"}')
        live.send(cv2.imencode(".jpg", astronaut)[1].tobytes())
        assert "choose one of student" in json.loads(live.recv(timeout=WAIT_S))["error"]


def test_a_live_view_opens_only_with_a_valid_ticket(server: Server) -> None:
    for path in ("lineament/live", "lineament/live?ticket=guessed", "lineament/camera?ticket="):
        with connect(server.url.replace("http", "ws", 1) + path) as live, pytest.raises(ConnectionClosed) as closed:
            live.recv(timeout=WAIT_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 4403
