"""VMC: head, eyes and expression of one face as messages of the Virtual Motion Capture protocol, over OSC.

https://protocol.vmc.info/marionette-spec defines the messages; docs/vtubers.md says what they mean here. Axes are
Unity's, of an avatar that looks along z: x to its right, y up. They point opposite to the camera's, all three of them,
so a rotation has the same matrix in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from pythonosc.osc_bundle_builder import IMMEDIATELY, OscBundleBuilder
from pythonosc.osc_message import OscMessage
from pythonosc.osc_message_builder import OscMessageBuilder

from lineament.landmarks.expression import expression
from lineament.landmarks.gaze import Gaze, gaze_of_head
from lineament.landmarks.pose import Fit, fit
from lineament.landmarks.types import LineamentError
from lineament.stream.write.network import Address
from lineament.stream.write.udp import Moment

_DATAGRAM = 1400
"""bytes, most: more than fits a packet of the network would be split, and lost if any piece is"""
_CALIBRATED, _NORMAL = 3, 0
Quaternion = tuple[float, float, float, float]
"""x, y, z, w"""


class Vmc:
    """The datagrams of a moment: bundles of messages, in order.

    The path of the address names the kind of blend shapes: "vrm" for VRM 0's presets and eye bones, "arkit" for ARKit's
    names, which avatars call perfect sync; both without a path.
    """

    def __init__(self, address: Address) -> None:
        kinds = {"": (True, True), "vrm": (True, False), "arkit": (False, True)}
        if address.path not in kinds:
            raise LineamentError(
                f"{address.shown!r} has an unknown path; use /vrm or /arkit for these blend shapes alone, none for both"
            )
        self._vrm, self._arkit = kinds[address.path]

    def __call__(self, moment: Moment) -> list[bytes]:
        return _bundles(list(self._messages(moment)))

    def _messages(self, moment: Moment) -> Iterator[OscMessage]:
        track = moment.track
        found = fit(track.points, moment.frame_hw) if track else None
        seen = found is not None and math.isfinite(found.focal_px)
        yield _message("/VMC/Ext/OK", int(seen), _CALIBRATED, _NORMAL, int(seen))
        yield _message("/VMC/Ext/T", float(moment.time_s))
        if track is None or found is None or not seen:
            return
        for bone in ("Neck", "Head"):
            yield _bone(bone, _half(found))
        look = gaze_of_head(track.points, found, track.irises, track.neutral)
        if self._vrm and math.isfinite(look.yaw_deg):
            for bone in ("LeftEye", "RightEye"):
                yield _bone(bone, _eye(look))
        values = expression(track.points, found, track.irises, track.neutral, track.visibility)
        blends = {**(presets(values) if self._vrm else {}), **(values if self._arkit else {})}
        for name, value in blends.items():
            if math.isfinite(value):  # an avatar keeps its last value, as eyes that are closed do
                yield _message("/VMC/Ext/Blend/Val", name, value)
        yield _message("/VMC/Ext/Blend/Apply")


def presets(values: Mapping[str, float]) -> dict[str, float]:
    """VRM 0's blend shapes of ARKit's coefficients: lids, and vowels by how open and how wide the mouth is."""
    opened = min(1.0, 1.5 * values["jawOpen"])
    narrow = values["mouthPucker"] + values["mouthFunnel"]
    # a smile with closed lips is no vowel
    parted = min(1.0, 10 * values["jawOpen"])
    wide = parted * max(values[f"mouth{kind}{side}"] for kind in ("Smile", "Stretch") for side in ("Left", "Right"))
    return {
        "Blink_L": values["eyeBlinkLeft"],
        "Blink_R": values["eyeBlinkRight"],
        "A": opened * (1 - max(narrow, wide)),
        "I": wide * (1 - opened) * (1 - narrow),
        "U": narrow * (1 - opened),
        "E": wide * opened * (1 - narrow),
        "O": narrow * opened,
    }


def _half(found: Fit) -> Quaternion:
    """Half of the head's rotation, which neck and head share: the head's is relative to the neck's."""
    axis = np.asarray(cv2.Rodrigues(found.turn)[0], np.float64)[:, 0]
    angle = float(np.linalg.norm(axis))
    x, y, z = (axis * (math.sin(angle / 4) / angle if angle > 0 else 0.0)).tolist()
    return x, y, z, math.cos(angle / 4)


def _eye(look: Gaze) -> Quaternion:
    """Of an eye within the head: a look to the right of the image is to the avatar's left, against y."""
    y, x = -math.radians(look.yaw_deg) / 2, -math.radians(look.pitch_deg) / 2
    return (
        math.cos(y) * math.sin(x),
        math.sin(y) * math.cos(x),
        -math.sin(y) * math.sin(x),
        math.cos(y) * math.cos(x),
    )


def _bone(name: str, turned: Quaternion) -> OscMessage:
    """Only the rotation means anything: where a bone sits is the avatar's business."""
    return _message("/VMC/Ext/Bone/Pos", name, 0.0, 0.0, 0.0, *turned)


def _message(path: str, *values: str | int | float) -> OscMessage:
    builder = OscMessageBuilder(path)
    for value in values:
        builder.add_arg(value)
    return builder.build()


def _bundles(messages: Sequence[OscMessage]) -> list[bytes]:
    """Datagrams that each fit a packet."""
    bundles: list[bytes] = []
    builder, size = OscBundleBuilder(IMMEDIATELY), 16
    for message in messages:
        if size + 4 + message.size > _DATAGRAM:
            bundles.append(builder.build().dgram)
            builder, size = OscBundleBuilder(IMMEDIATELY), 16
        builder.add_content(message)
        size += 4 + message.size
    return [*bundles, builder.build().dgram]
