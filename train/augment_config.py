"""What a training step does to a crop, and how often."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

_STEEPEST = 0.15
"""neighbouring knots may differ by four times their spread, and the bend must stay below a pixel a pixel"""

ONE_OF = (
    "gauss_noise",
    "gauss_blur",
    "blur",
    "motion_blur",
    "low_resolution",
    "compression",
    "clahe",
    "gamma",
    "posterize",
)
"""at most one of these happens to a crop"""


SWITCHES = (
    *("flip", "rotate", "shift_scale_rotate", "upside_down", "elastic", "occlusion", "glasses", "worn"),
    *("brightness_contrast", "colour", "cast", "duotone", "grey", "dark"),
    *ONE_OF,
)
"""the fields of AugmentConfig that are probabilities"""


@dataclass(frozen=True)
class AugmentConfig:
    """How often and how strongly. A field named after a transform is its probability; 0 switches it off."""

    flip: float = 0.5
    """Mirror, with left and right points exchanged: doubles the faces."""
    rotate: float = 0.6
    """Turn in the plane. Crops are levelled by the last points, which may be wrong or, for a new face, absent."""
    rotate_deg: float = 45.0
    """Farthest turn to either side."""
    shift_scale_rotate: float = 0.8
    """Move, zoom and turn a little, as a detector's box and a tracker's last points differ from the true ones."""
    shift: float = 0.08
    """Farthest move, as a share of the input's side."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Least and greatest zoom."""
    tilt_deg: float = 10.0
    """Farthest turn that comes with a move."""
    upside_down: float = 0.0
    """Turn by any angle at all, for people lying down and cameras on the ceiling; costs accuracy on upright faces."""
    elastic: float = 0.1
    """Bend smoothly: faces and grimaces that nobody has."""
    elastic_strength: float = 0.015
    """Spread of the bend's knots, as a share of the input's side."""
    elastic_knots: int = 5
    """Knots along a side; more is crinklier."""
    occlusion: float = 0.35
    """Cover parts with noise, a plain colour or another part of the picture: hands, microphones, people in front."""
    occlusion_patches: int = 3
    """Most patches at once."""
    occlusion_size: tuple[float, float] = (0.08, 0.4)
    """Sides of a patch, as shares of the input's."""
    glasses: float = 0.2
    """Put on glasses, which hide lids and brows behind rims, tints and glare. Only where the schema is wflw98."""
    worn: float = 0.15
    """Draw a mask, a cap, a hand or a microphone where people have them. Only where the schema is wflw98."""
    brightness_contrast: float = 0.4
    """Rooms at night, windows behind."""
    brightness_limit: float = 0.35
    """Greatest change, as a share of white."""
    contrast_limit: float = 0.35
    """Greatest change of the factor 1."""
    colour: float = 0.3
    """Other hue and saturation: lamps, screens, cheap white balance."""
    cast: float = 0.1
    """Weigh the channels: stage lights, sodium lamps, sunsets."""
    cast_gain: tuple[float, float] = (0.45, 1.5)
    """Least and greatest factor of a channel."""
    duotone: float = 0.05
    """Paint light and shade in two colours: screens in the dark, face paint, posters."""
    grey: float = 0.1
    """Drop colour: infrared cameras."""
    dark: float = 0.1
    """Little light and the noise that comes with it, brightened again by the camera or not."""
    dark_gain: tuple[float, float] = (0.08, 0.5)
    """Least and greatest share of the light that is left."""
    gauss_noise: float = 0.08
    """Sensor noise in the dark."""
    noise_std: tuple[float, float] = (0.01, 0.08)
    """Least and greatest spread, as shares of white."""
    gauss_blur: float = 0.06
    """Out of focus."""
    blur_sigma_px: tuple[float, float] = (0.5, 2.5)
    """Least and greatest."""
    blur: float = 0.03
    """Box blur: cheap scalers."""
    motion_blur: float = 0.08
    """A head that turns while the shutter is open."""
    motion_px: int = 11
    """Longest streak."""
    low_resolution: float = 0.18
    """Shrunk and blown up again: small faces of a wide frame."""
    resolution: tuple[float, float] = (0.12, 0.7)
    """Least and greatest share of the resolution that is left."""
    compression: float = 0.1
    """JPEG's blocks, as in a starved video stream."""
    quality: tuple[int, int] = (15, 70)
    """Least and greatest JPEG quality."""
    clahe: float = 0.04
    """Local contrast, as cameras with 'HDR' make it."""
    gamma: float = 0.08
    """Other curves from light to number."""
    gamma_percent: tuple[float, float] = (60.0, 160.0)
    """Least and greatest exponent times 100."""
    posterize: float = 0.03
    """Few grey levels: old codecs in the dark."""

    def __post_init__(self) -> None:
        for name in SWITCHES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is a probability, got {getattr(self, name)}; wanted 0 to 1")
        if (total := sum(getattr(self, name) for name in ONE_OF)) > 1 + 1e-6:
            raise ValueError(
                f"at most one of {', '.join(ONE_OF)} happens to a crop, but their probabilities add up to {total:.3f}; "
                "wanted at most 1"
            )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            low, high = value if isinstance(value, tuple) else (value, value)
            if not least <= low <= high <= most:
                raise ValueError(f"augment.{name} is {value}, wanted {least:g} to {most:g}, the lower first")

        if (steepness := self.elastic_strength * self.elastic_knots) > _STEEPEST:
            raise ValueError(
                f"augment.elastic_strength times elastic_knots is {steepness:.3f}: the picture would fold over itself; "
                f"wanted at most {_STEEPEST}"
            )

    @classmethod
    def off(cls) -> AugmentConfig:
        """Nothing happens: the wide crop's centre."""
        return cls().only()

    def only(self, *names: str) -> AugmentConfig:
        """Those always, nothing else; strengths as they are."""
        probabilities: dict[str, Any] = {name: float(name in names) for name in SWITCHES}
        return replace(self, **probabilities)

    def scaled(self, factor: float) -> AugmentConfig:
        """Every probability times factor, as far as it may go."""
        scaled: dict[str, Any] = {name: min(1.0, factor * getattr(self, name)) for name in SWITCHES}
        total = max(1.0, sum(scaled[name] for name in ONE_OF))
        return replace(self, **scaled | {name: scaled[name] / total for name in ONE_OF})


_RANGES: tuple[tuple[str, float, float], ...] = (
    ("rotate_deg", 0, 180),
    ("shift", 0, 0.5),
    ("scale", 0.25, 4),
    ("tilt_deg", 0, 180),
    ("elastic_strength", 0, 0.15),
    ("elastic_knots", 1, 100),
    ("occlusion_patches", 1, 100),
    ("occlusion_size", 0.01, 1),
    ("brightness_limit", 0, 1),
    ("contrast_limit", 0, 1),
    ("noise_std", 0, 1),
    ("blur_sigma_px", 0.1, 20),
    ("motion_px", 3, 99),
    ("resolution", 0.05, 1),
    ("quality", 1, 100),
    ("gamma_percent", 10, 1000),
    ("cast_gain", 0, 4),
    ("dark_gain", 0.01, 1),
)
