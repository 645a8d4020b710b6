"""What a real receiver gets over UDP is the face, on the sides and with the signs that it expects; whoever does not
listen costs nothing."""

from __future__ import annotations

import logging
import math
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from pythonosc.osc_bundle import OscBundle

from lineament.landmarks.expression import expression
from lineament.landmarks.pose import fit
from lineament.landmarks.types import F32, F64, Face, Frame, LineamentError, Result, Track
from lineament.stream.analyse.followed import TrackConfig
from lineament.stream.analyse.track import Tracker
from lineament.stream.write.network import Background
from lineament.stream.write.open import is_expressive, open_sink
from lineament.stream.write.vmc import presets
from tests.blobs import BlobDetector, BlobLandmarker, scene
from tests.drawn_faces import HW, looking, seen, with_eyes, with_mouth
from tests.published import feed, nothing_left
from tests.waiting import WAIT_S

LAYOUT = "<di2f2fBf4f3f3f68f136f210f14f"
"""of facetracker.py: time, id, size, right and left eye, success, error, quaternion, Euler angles, translation, 68
confidences, 68 points, 70 points in 3-D, 14 features"""
PICTURE = np.zeros((*HW, 3), np.uint8)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left():
        yield


def result(*points: F32, time_s: float = 1.5) -> Result:
    """Faces with the ids 3, 4 and so on; the newest first."""
    box = np.array([10, 10, 100, 100], np.float32)
    tracks = [Track(i, Face(box, 0.9), one, 0.75, irises=one[[96, 97]]) for i, one in enumerate(points, 3)]
    return Result(Frame(PICTURE, "clip.mp4", 0, time_s, 0.0), tuple(reversed(tracks)))


@contextmanager
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.settimeout(WAIT_S)
        yield listening


def vmc(sent: Result, path: str = "") -> list[tuple[str, list[object]]]:
    """The messages of one frame, in order."""
    with receiver() as listening:
        with open_sink(f"osc://127.0.0.1:{listening.getsockname()[1]}{path}") as sink:
            sink.write(sent, PICTURE)
        listening.settimeout(0.2)  # all of it has been sent
        messages: list[tuple[str, list[object]]] = []
        while True:
            try:
                datagram = listening.recv(65536)
            except TimeoutError:
                return messages
            assert len(datagram) <= 1400
            messages += [(message.address, list(message.params)) for message in OscBundle(datagram)]  # type: ignore[union-attr]


def bones(messages: list[tuple[str, list[object]]]) -> dict[str, F64]:
    """x, y, z, w of each."""
    return {str(v[0]): np.array(v[4:], float) for path, v in messages if path == "/VMC/Ext/Bone/Pos"}


def blends(messages: list[tuple[str, list[object]]]) -> dict[str, float]:
    return {str(v[0]): float(str(v[1])) for path, v in messages if path == "/VMC/Ext/Blend/Val"}


def product(a: F64, b: F64) -> F64:
    """Of quaternions."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])


def forwards(turned: F64) -> F64:
    """(3,) where a bone with this rotation points that pointed along z, in axes x right, y up."""
    conjugate = turned * (-1, -1, -1, 1)
    return product(product(turned, np.array([0.0, 0, 1, 0])), conjugate)[:3]


# ---- VMC


def test_a_frame_says_that_it_is_there_then_bones_then_blend_shapes_and_applies_them() -> None:
    messages = vmc(result(seen(with_mouth(0.3))))
    paths = [path for path, _ in messages]
    assert messages[0] == ("/VMC/Ext/OK", [1, 3, 0, 1]) and messages[1] == ("/VMC/Ext/T", [1.5])
    assert paths[2:6] == ["/VMC/Ext/Bone/Pos"] * 4 and set(paths[6:-1]) == {"/VMC/Ext/Blend/Val"}
    assert messages[-1] == ("/VMC/Ext/Blend/Apply", [])
    assert bones(messages).keys() == {"Neck", "Head", "LeftEye", "RightEye"}
    for _, values in messages:
        assert all(isinstance(value, int | float | str) for value in values)


def test_the_blend_shapes_are_vrms_presets_arkits_names_or_both() -> None:
    points = seen(with_mouth(0.3))
    both, vrm, arkit = (vmc(result(points), path) for path in ("", "/vrm", "/arkit"))
    names = {"Blink_L", "Blink_R", "A", "I", "U", "E", "O"}
    assert blends(vrm).keys() == names and blends(arkit).keys() == expression(points, fit(points, HW)).keys()
    assert blends(both) == {**blends(vrm), **blends(arkit)} and blends(both)["jawOpen"] > 0.5
    assert bones(arkit).keys() == {"Neck", "Head"}


@pytest.mark.parametrize(
    ("head", "axis", "sign"),
    [((20, 0, 0), 0, -1), ((-20, 0, 0), 0, 1), ((0, 20, 0), 1, 1), ((0, -20, 0), 1, -1)],
)
def test_the_avatars_head_turns_as_the_persons_does(head: tuple[float, float, float], axis: int, sign: int) -> None:
    """To the right of the image is to the person's left, and so to the avatar's: against its x axis."""
    turned = bones(vmc(result(seen(None, *head))))
    whole = product(turned["Neck"], turned["Head"])
    assert np.linalg.norm(whole) == pytest.approx(1)
    assert math.degrees(math.asin(forwards(whole)[axis])) == pytest.approx(sign * 20, abs=1.5)


def test_the_avatars_head_tilts_to_the_same_shoulder() -> None:
    turned = bones(vmc(result(seen(roll_deg=20))))  # clockwise on the screen: the crown to the image's right
    up = product(product(turned["Head"], np.array([0.0, 1, 0, 0])), turned["Head"] * (-1, -1, -1, 1))
    assert up[0] < -0.1  # to the avatar's left


def test_its_eyes_look_where_the_persons_do() -> None:
    for eyes, axis, sign in (((20, 0), 0, -1), ((-20, 0), 0, 1), ((0, 15), 1, 1), ((0, -15), 1, -1)):
        turned = bones(vmc(result(seen(looking(*eyes)))))
        for bone in ("LeftEye", "RightEye"):
            assert forwards(turned[bone])[axis] * sign > 0.2


def test_a_closed_left_eye_of_the_person_closes_the_avatars_left_and_its_eyes_keep_their_direction() -> None:
    values = blends(vmc(result(seen(with_eyes(0.2, ("right_eye",))))))  # of the image
    assert values["Blink_L"] == values["eyeBlinkLeft"] == 1 and values["Blink_R"] == values["eyeBlinkRight"] < 0.1
    messages = vmc(result(seen(with_eyes(0.2))))
    assert bones(messages).keys() == {"Neck", "Head"} and not any("eyeLook" in name for name in blends(messages))


def test_vowels_follow_the_mouth() -> None:
    rest = dict.fromkeys(expression(seen(), fit(seen(), HW)), 0.0)
    assert max(presets(rest).values()) == 0
    for values, vowel in (
        ({"jawOpen": 0.8}, "A"),
        ({"jawOpen": 0.12, "mouthStretchLeft": 1.0, "mouthStretchRight": 1.0}, "I"),
        ({"mouthPucker": 1.0}, "U"),
        ({"jawOpen": 0.6, "mouthStretchLeft": 1.0, "mouthStretchRight": 1.0}, "E"),
        ({"jawOpen": 0.8, "mouthFunnel": 1.0}, "O"),
    ):
        found = {name: value for name, value in presets(rest | values).items() if value > 0.5}
        assert found.keys() == {vowel}
    assert max(presets(rest | {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0}).values()) == 0


def test_the_face_that_has_been_there_longest_is_sent() -> None:
    closed, opened = seen(with_eyes(0.2)), seen()
    assert blends(vmc(result(closed, opened)))["Blink_L"] == 1
    assert blends(vmc(result(opened, closed)))["Blink_L"] == 0


@pytest.mark.parametrize(
    "sent", [result(), result(np.full((98, 2), np.nan, np.float32)), result(np.ones((98, 2), np.float32))]
)
def test_without_a_face_only_the_time_is_sent(sent: Result) -> None:
    assert vmc(sent) == [("/VMC/Ext/OK", [0, 3, 0, 0]), ("/VMC/Ext/T", [1.5])]


# ---- OpenSeeFace


def packet(sent: Result) -> tuple[float, ...]:
    with receiver() as listening:
        with open_sink(f"openseeface://127.0.0.1:{listening.getsockname()[1]}") as sink:
            sink.write(sent, PICTURE)
        data = listening.recv(65536)
    assert len(data) == struct.calcsize(LAYOUT) == 1785
    return struct.unpack(LAYOUT, data)


def test_a_packet_has_openseefaces_layout() -> None:
    points = seen(with_eyes(0.2, ("right_eye",)))
    values = packet(result(points))
    assert values[1:4] == (0, 1280, 720) and values[6] == 1 and values[7] < 1
    right_open, left_open = values[4:6]
    assert right_open > 0.9 and left_open == 0
    confidences, sent = values[18:86], np.reshape(values[86:222], (68, 2))
    assert set(confidences) == {0.75}
    # contour, tip of the nose, eye corners, the points beside the left corner of the mouth, inner corners, pupils
    for at, wflw in (
        (0, 0),
        (8, 16),
        (16, 32),
        (30, 54),
        (36, 60),
        (45, 72),
        (48, 77),
        (58, 88),
        (62, 92),
        (66, 96),
        (67, 97),
    ):
        np.testing.assert_allclose(sent[at], points[wflw], rtol=1e-6)
    assert values[-14] < -0.9 < 0 <= values[-13]  # left eye closed, right eye open


@pytest.mark.parametrize(
    ("head", "euler"),
    [((0, 0, 0), (180, 0, 90)), ((20, 0, 0), (180, 20, 90)), ((0, 20, 0), (160, 0, 90)), ((0, 0, 20), (180, 0, 70))],
)
def test_angles_are_those_that_openseefaces_solver_finds(
    head: tuple[float, float, float], euler: tuple[float, float, float]
) -> None:
    """Its tracker, run on its own face seen from there, gives these and a face behind the camera."""
    values = packet(result(seen(None, *head)))
    np.testing.assert_allclose(values[12:15], euler, atol=1.5)
    assert values[17] < 0 and np.linalg.norm(values[8:12]) == pytest.approx(1)


def test_points_in_3d_are_turned_to_the_front_and_the_eyes_look_along_them() -> None:
    for yaw in (-25, 0, 25):
        points = np.reshape(packet(result(seen(looking(15, 0), yaw)))[222:432], (70, 3)) * (1, -1, -1)
        np.testing.assert_allclose(points[30], 0, atol=0.02)  # the tip of the nose
        np.testing.assert_allclose(points[36] * (-1, 1, 1), points[45], atol=0.02)
        assert points[36][0] > 0.25 and points[36][1] > 0.2 > -0.4 > points[8][1]
        for pupil, eyeball in ((66, 68), (67, 69)):
            aside, up, towards = points[pupil] - points[eyeball]
            assert math.degrees(math.atan2(-aside, towards)) == pytest.approx(15, abs=2) and abs(up) < 0.01


@pytest.mark.parametrize("points", [np.full((98, 2), np.nan), np.full((98, 2), 7.0)])
def test_a_face_without_a_pose_is_not_sent_and_the_next_one_is(points: F64) -> None:
    with receiver() as listening, open_sink(f"openseeface://127.0.0.1:{listening.getsockname()[1]}") as sink:
        for one in (points.astype(np.float32), seen()):
            sink.write(result(one), PICTURE)
        assert len(listening.recv(65536)) == 1785 and sink.lost == 0


# ---- receivers that are away, and addresses


@pytest.mark.parametrize("scheme", ["osc", "openseeface"])
def test_a_receiver_that_is_away_costs_nothing_and_comes_whenever_it_likes(scheme: str) -> None:
    with receiver() as listening:
        port = listening.getsockname()[1]
    with open_sink(f"{scheme}://127.0.0.1:{port}") as sink:
        for _ in range(50):
            sink.write(result(seen()), PICTURE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.bind(("127.0.0.1", port))
            late.settimeout(0.2)
            heard = []

            def hears() -> bool:
                try:
                    heard.append(late.recv(65536))
                except TimeoutError:
                    sink.write(result(seen()), PICTURE)
                return bool(heard)

            feed(sink, hears)


def test_a_name_that_nobody_has_is_said_once_and_the_results_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with open_sink("osc://no-such-host.invalid:39539") as sink:
        assert isinstance(sink, Background)
        feed(sink, lambda: "cannot reach osc://no-such-host.invalid:39539" in caplog.text and sink.lost > 20)
    assert caplog.text.count("unknown host name") == 1


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("osc://127.0.0.1:39539/live", "has an unknown path; use /vrm or /arkit"),
        ("osc://127.0.0.1?a=b", r"has a '\?', which osc:// does not support"),
        ("osc://", "is not a valid address; use osc://host:39539"),
        ("openseeface://me:s3cret@127.0.0.1", r"'openseeface://\*\*\*@127.0.0.1' has a user name, which"),
        ("openseeface://127.0.0.1:99999", "is not a valid address"),
    ],
)
def test_an_address_that_is_wrong_is_refused_at_once(output: str, says: str) -> None:
    with pytest.raises(LineamentError, match=says) as caught:
        open_sink(output)
    assert re.search("use ", str(caught.value))


@pytest.mark.parametrize(
    ("output", "needed"),
    [
        ("-", True),
        ("out/points.JSONL", True),
        ("ws://127.0.0.1:9200", True),
        ("mqtts://broker/faces", True),
        ("osc://127.0.0.1:39539", True),
        ("OSC://127.0.0.1:39539", True),
        ("openseeface://127.0.0.1:11573", True),
        ("annotated.mp4", False),
        ("points.csv", False),
        ("rtsp://server/me", False),
    ],
)
def test_irises_are_searched_only_for_outputs_with_gaze_and_expression(output: str, needed: bool) -> None:
    assert is_expressive(output) is needed


def test_a_tracker_that_need_not_know_the_gaze_does_not_look_for_irises() -> None:
    for expressive in (True, False):
        tracker = Tracker(BlobDetector(), BlobLandmarker(), TrackConfig(), expressive=expressive)
        (track,) = tracker(scene([(100, 80)])).tracks
        assert (track.irises is not None) is expressive
