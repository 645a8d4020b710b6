"""Expression: coefficients from 0 to 1 with the names of ARKit's blend shapes. numpy.

Left and right in a coefficient's name are the person's own, as in ARKit; everywhere else in Lineament they are those of
the image. So eyeBlinkLeft is about `schema.parts["right_eye"]`, if the picture is not mirrored.

The points are first turned to the front by the head pose. Then a handful of measures is taken, such as the height of an
eye over its width, and compared with the same measures of the relaxed face: those of this person, or of people in
general. 98 points see neither tongue nor cheeks, so ARKit's other coefficients are not there.
"""

from __future__ import annotations

from lineament.landmarks.gaze import gaze_of_head
from lineament.landmarks.measures import CORNERS, EYES, GAP, INNER_BROWS, OUT, OUTER_BROWS, TYPICAL, measures
from lineament.landmarks.pose import Fit
from lineament.landmarks.types import F32, F64, Floats

_SIDEWAYS_DEG, _UPWARDS_DEG = 35.0, 30.0
"""an eye turned that far has an eyeLook coefficient of 1"""


def expression(
    points: Floats,
    fit: Fit,
    irises: F32 | None = None,
    neutral: F64 | None = None,
    visibility: Floats | None = None,
) -> dict[str, float]:
    """Coefficients from 0 to 1 by ARKit's names; nan where the points allow none: all of them without a head pose,
    those of eyeLook without irises or while the eyes are closed, those of a part that is hidden.

    points: (98, 2) of WFLW98, frame px. fit: of these points. irises: (2, 2) frame px as place_irises returns them.
    neutral: (M,) measures of this person's relaxed face; without it, that of people in general.
    visibility: (98,) of the points, if known.
    """
    relaxed = TYPICAL if neutral is None else neutral
    now = measures(points, fit, visibility)
    off, eyes = now - relaxed, (now[EYES] / relaxed[EYES]).tolist()
    inner, outer, up, out, gap = (off[at].tolist() for at in (INNER_BROWS, OUTER_BROWS, CORNERS, OUT, GAP))
    look = gaze_of_head(points, fit, irises, neutral)
    to_left, upwards = look.yaw_deg / _SIDEWAYS_DEG, look.pitch_deg / _UPWARDS_DEG
    values: dict[str, float] = {}
    for i, (side, outwards) in enumerate((("Left", to_left), ("Right", -to_left))):
        values |= {
            f"eyeBlink{side}": _ramp(-eyes[i], -0.85, -0.55),
            f"eyeWide{side}": _ramp(eyes[i], 1.12, 1.5),
            f"eyeLookOut{side}": _ramp(outwards, 0, 1),
            f"eyeLookIn{side}": _ramp(-outwards, 0, 1),
            f"eyeLookUp{side}": _ramp(upwards, 0, 1),
            f"eyeLookDown{side}": _ramp(-upwards, 0, 1),
            f"browDown{side}": _ramp(-inner[i], 0.03, 0.12),
            f"browOuterUp{side}": _ramp(outer[i], 0.03, 0.14),
            f"mouthSmile{side}": _ramp(up[i] + out[i] / 2, 0.04, 0.19),
            f"mouthFrown{side}": _ramp(-up[i], 0.03, 0.12),
            f"mouthStretch{side}": _ramp(out[i] - 2 * max(up[i], 0.0), 0.04, 0.16),
        }
    narrow, parted, shift = _ramp(-sum(out), 0.05, 0.3), _ramp(gap, 0.04, 0.2), (out[0] - out[1]) / 2
    return values | {
        "browInnerUp": _ramp(sum(inner) / 2, 0.03, 0.14),
        "jawOpen": _ramp(gap, 0.02, 0.4),
        "mouthFunnel": narrow * parted,
        "mouthPucker": narrow * (1 - parted),
        "mouthLeft": _ramp(shift, 0.03, 0.15),
        "mouthRight": _ramp(-shift, 0.03, 0.15),
    }


def _ramp(value: float, none: float, full: float) -> float:
    """0 up to none, 1 from full on, linear between; nan of nan."""
    share = (value - none) / (full - none)
    return 0.0 if share < 0 else 1.0 if share > 1 else share
