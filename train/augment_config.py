"""Which augmentations a training crop gets, how often and how strongly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

_STEEPEST = 0.15
"""neighbouring knots may differ by four standard deviations; their displacement must change by less than 1 px per px"""

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
"""at most one of these is applied to a crop"""

SWITCHES = (
    *("flip", "rotate", "shift_scale_rotate", "upside_down", "elastic", "occlusion", "glasses", "worn"),
    *("brightness_contrast", "colour", "cast", "duotone", "grey", "dark"),
    *ONE_OF,
)
"""the fields of AugmentConfig that are probabilities"""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation. An option named after a transform is its probability; 0 disables it."""

    flip: float = 0.5
    """Mirror the crop and exchange left and right points: doubles the faces."""
    rotate: float = 0.6
    """Rotate in the plane: serving levels crops by the last points, which may be wrong, or missing for a new face."""
    rotate_deg: float = 45.0
    """Maximum rotation to either side."""
    shift_scale_rotate: float = 0.8
    """Shift, scale and rotate a little, as a detector's box or a tracker's last points differ from the true ones."""
    shift: float = 0.08
    """Maximum shift, as a share of the input's side."""
    scale: tuple[float, float] = (0.8, 1.2)
    """Minimum and maximum scale."""
    tilt_deg: float = 10.0
    """Maximum rotation of shift_scale_rotate."""
    upside_down: float = 0.0
    """Rotate by any angle, for people lying down and ceiling cameras; costs accuracy on upright faces."""
    elastic: float = 0.1
    """Deform smoothly: new face shapes and grimaces."""
    elastic_strength: float = 0.015
    """Standard deviation of the knots' displacement, as a share of the input's side."""
    elastic_knots: int = 5
    """Knots per side; more gives finer deformation."""
    occlusion: float = 0.35
    """Cover parts with noise, a plain colour or another part of the picture, as hands and people in front do."""
    occlusion_patches: int = 3
    """Maximum number of patches."""
    occlusion_size: tuple[float, float] = (0.08, 0.4)
    """Minimum and maximum side of a patch, as a share of the input's."""
    glasses: float = 0.2
    """Draw glasses, whose rims, tints and glare hide lids and brows. Only with schema wflw98."""
    worn: float = 0.15
    """Draw a mask, a cap, a hand or a microphone on the face. Only with schema wflw98."""
    brightness_contrast: float = 0.4
    """Change brightness and contrast: rooms at night, backlight."""
    brightness_limit: float = 0.35
    """Maximum change, as a share of white."""
    contrast_limit: float = 0.35
    """Maximum change of the factor from 1."""
    colour: float = 0.3
    """Change hue and saturation: lamps, screens, poor white balance."""
    cast: float = 0.1
    """Scale the channels separately (colour cast): stage lights, sodium lamps, sunsets."""
    cast_gain: tuple[float, float] = (0.45, 1.5)
    """Minimum and maximum factor of a channel."""
    duotone: float = 0.05
    """Map shadows and highlights to two colours: screens in the dark, face paint, posters."""
    grey: float = 0.1
    """Convert to grey: infrared cameras."""
    dark: float = 0.1
    """Darken, add the sensor noise of low light, and sometimes brighten again as a camera does."""
    dark_gain: tuple[float, float] = (0.08, 0.5)
    """Minimum and maximum share of the light that is left."""
    gauss_noise: float = 0.08
    """Add Gaussian noise: sensors in the dark."""
    noise_std: tuple[float, float] = (0.01, 0.08)
    """Minimum and maximum standard deviation, as a share of white."""
    gauss_blur: float = 0.06
    """Gaussian blur: out of focus."""
    blur_sigma_px: tuple[float, float] = (0.5, 2.5)
    """Minimum and maximum standard deviation."""
    blur: float = 0.03
    """Box blur: simple scalers."""
    motion_blur: float = 0.08
    """Motion blur: the head moves during the exposure."""
    motion_px: int = 11
    """Maximum length of the blur."""
    low_resolution: float = 0.18
    """Downscale and upscale again: small faces in a wide frame."""
    resolution: tuple[float, float] = (0.12, 0.7)
    """Minimum and maximum share of the resolution that is left."""
    compression: float = 0.1
    """JPEG artefacts, as in a low-bitrate stream."""
    quality: tuple[int, int] = (15, 70)
    """Minimum and maximum JPEG quality."""
    clahe: float = 0.04
    """Local contrast (CLAHE), as in cameras with HDR."""
    gamma: float = 0.08
    """Change the tone curve."""
    gamma_percent: tuple[float, float] = (60.0, 160.0)
    """Minimum and maximum exponent, times 100."""
    posterize: float = 0.03
    """Reduce the number of levels: old codecs in the dark."""

    def __post_init__(self) -> None:
        for name in SWITCHES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is a probability: wanted 0 to 1, got {getattr(self, name)}")
        if (total := sum(getattr(self, name) for name in ONE_OF)) > 1 + 1e-6:
            raise ValueError(
                f"at most one of {', '.join(ONE_OF)} is applied to a crop, but their probabilities add up to "
                f"{total:.3f}; wanted at most 1"
            )
        for name, least, most in _RANGES:
            value = getattr(self, name)
            low, high = value if isinstance(value, tuple) else (value, value)
            if not least <= low <= high <= most:
                raise ValueError(f"augment.{name} is {value}, wanted {least:g} to {most:g}, minimum before maximum")

        if (steepness := self.elastic_strength * self.elastic_knots) > _STEEPEST:
            raise ValueError(
                f"augment.elastic_strength times elastic_knots is {steepness:.3f}: the picture would fold over itself; "
                f"wanted at most {_STEEPEST}"
            )

    @classmethod
    def off(cls) -> AugmentConfig:
        """No augmentation: the centre of the wide crop."""
        return cls().only()

    def only(self, *names: str) -> AugmentConfig:
        """These transforms always, and no others; the same strengths."""
        probabilities: dict[str, Any] = {name: float(name in names) for name in SWITCHES}
        return replace(self, **probabilities)

    def keeping(self, *names: str) -> AugmentConfig:
        """These transforms as they are, and no others."""
        others: dict[str, Any] = {name: 0.0 for name in SWITCHES if name not in names}
        return replace(self, **others)

    def scaled(self, factor: float) -> AugmentConfig:
        """Every probability times factor, limited to valid values."""
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
