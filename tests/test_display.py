"""A video is shown as its metadata asks: square pixels, whole lines, ordinary colours; any other is left as it is."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lineament.landmarks.types import F64, U8, Frame
from lineament.stream.read.open import open_source

RED, GREEN, BLUE = (200, 40, 30), (40, 180, 60), (30, 50, 190)
GREY = (128, 128, 128)
SKIN = (200, 150, 120)

LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""shares of red and blue in luma, by FFmpeg's number of the matrix: BT.709, two of BT.601, BT.2020"""


def read_all(path: Path) -> list[Frame]:
    with open_source(str(path)) as source:
        return list(iter(source.read, None))


def write_clip(
    path: Path,
    pictures: list[av.VideoFrame],
    codec: str = "ffv1",
    options: dict[str, str] | None = None,
    first: int = 0,
    **tags: Any,
) -> Path:
    """A clip of 25 frames/s, numbered from `first`; tags: attributes of the codec context."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = pictures[0].width, pictures[0].height, pictures[0].format.name
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures, first):
            picture.pts, picture.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def yuv_of(rgb: F64, matrix: int, full: bool, bits: int = 8) -> F64:
    """(N, 3) codes of (N, 3) R'G'B' of 0..1, as ITU-R BT.601, BT.709 and BT.2020 define them."""
    red, blue = LUMA[matrix]
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    cb, cr = (rgb[:, 2] - luma) / (2 * (1 - blue)), (rgb[:, 0] - luma) / (2 * (1 - red))
    scale = 1 << (bits - 8)
    if full:
        return np.stack(
            [luma * (256 * scale - 1), cb * (256 * scale - 1) + 128 * scale, cr * (256 * scale - 1) + 128 * scale], 1
        )
    return np.stack([16 + 219 * luma, 128 + 224 * cb, 128 + 224 * cr], 1) * scale


def bars(rgb: F64, matrix: int, full: bool = False, bits: int = 8) -> av.VideoFrame:
    """A picture of vertical bars 32 px wide, of (N, 3) R'G'B' of 0..1."""
    kind = np.uint8 if bits == 8 else np.uint16
    codes = np.round(yuv_of(rgb, matrix, full, bits)).astype(kind)
    picture = av.VideoFrame(32 * len(rgb), 32, "yuv444p" if bits == 8 else "yuv444p10le")
    for plane, code in zip(picture.planes, codes.T):
        row = np.zeros(plane.line_size // kind().itemsize, kind)
        row[: plane.width] = np.repeat(code, 32)
        plane.update(np.tile(row, (plane.height, 1)).tobytes())
    return picture


def centres(bgr: U8, count: int) -> F64:
    """(count, 3) R'G'B' in 0..255 of the middles of bars."""
    width = bgr.shape[1] // count
    return np.array([bgr[bgr.shape[0] // 2, width // 2 + width * i, ::-1] for i in range(count)], np.float64)


# ---- colours


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", LUMA)
def test_colours_come_out_as_the_tags_of_matrix_and_range_say(tmp_path: Path, matrix: int, full: bool) -> None:
    rgb = np.array([RED, GREEN, BLUE, GREY, SKIN, (255, 255, 255), (0, 0, 0)]) / 255
    path = write_clip(
        tmp_path / "a.mkv", [bars(rgb, matrix, full)], colorspace=matrix, color_range=2 if full else 1
    )  # fmt: skip
    (frame,) = read_all(path)
    assert np.abs(centres(frame.bgr, len(rgb)) - rgb * 255).max() <= 3


@pytest.mark.parametrize("matrix", [8, 10, 14, 17])
def test_a_matrix_that_is_not_supported_costs_no_more_than_true_colours(
    tmp_path: Path, matrix: int, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = np.array([GREY, (230, 230, 230), (20, 20, 20)]) / 255
    path = write_clip(tmp_path / "a.mkv", [bars(rgb, 1)] * 3, colorspace=matrix, color_range=1)
    frames = read_all(path)
    assert len(frames) == 3 and np.abs(centres(frames[0].bgr, 3) - rgb * 255).max() <= 3
    said = [record for record in caplog.records if "colour" in record.getMessage()]
    assert len(said) == (0 if matrix == 10 else 1), "said once, not for every frame"


def hlg_of(nits: F64) -> F64:
    """HLG signal of (N, 3) light on a display of 1000 cd/m2 (ITU-R BT.2100)."""
    luma = (nits / 1000) @ np.array([0.2627, 0.6780, 0.0593])
    scene = nits / 1000 * np.maximum(luma, 1e-9)[:, None] ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def pq_of(nits: F64) -> F64:
    """PQ signal of light (SMPTE ST 2084)."""
    power = (nits / 10_000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize(("transfer", "signal_of"), [(18, hlg_of), (16, pq_of)], ids=["HLG", "PQ"])
def test_hdr_looks_as_the_ordinary_video_of_the_same_scene(
    tmp_path: Path, transfer: int, signal_of: Any, bits: int
) -> None:
    rgb = np.array([SKIN, (150, 110, 90), (90, 60, 50), GREY, (60, 60, 60), (180, 180, 180), (40, 70, 120)])
    light = (rgb / 255) ** 2.2 * 203  # white paper has 203 cd/m2, ITU-R BT.2408
    wide = light @ np.linalg.inv([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]).T
    picture = bars(signal_of(wide), 9, bits=bits)
    path = write_clip(
        tmp_path / "a.mkv", [picture], colorspace=9, color_range=1, color_trc=transfer, color_primaries=9
    )  # fmt: skip
    (frame,) = read_all(path)
    assert np.abs(centres(frame.bgr, len(rgb)) - rgb).max() <= (6 if bits == 10 else 9)


@pytest.mark.parametrize(("transfer", "signal_of"), [(18, hlg_of), (16, pq_of)], ids=["HLG", "PQ"])
def test_the_highlights_of_hdr_keep_their_order_up_to_white(tmp_path: Path, transfer: int, signal_of: Any) -> None:
    light = np.array([[0.0], [50.0], [100.0], [203.0], [400.0], [700.0], [1000.0]]) * np.ones(3)
    path = write_clip(
        tmp_path / "a.mkv", [bars(signal_of(light), 9, bits=10)], colorspace=9, color_range=1, color_trc=transfer
    )  # fmt: skip
    grey = centres(read_all(path)[0].bgr, len(light)).mean(1)
    assert (np.diff(grey)[:-1] > 2).all() and grey[0] <= 2 and grey[-1] >= grey[-2] and grey[-1] >= 253
    assert 215 <= grey[3] <= 240, "white paper is light, and leaves room for what is brighter"


# ---- the shape of pixels


def disc(width: int, height: int, centre: tuple[float, float], radii: tuple[float, float]) -> av.VideoFrame:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1
    return av.VideoFrame.from_ndarray((inside * 255).astype(np.uint8), format="gray").reformat(format="yuv420p")


def extent(bgr: U8) -> tuple[int, int]:
    """Width and height of what is bright."""
    bright = bgr[..., 1] > 128
    return int(bright.any(0).sum()), int(bright.any(1).sum())


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(
    ("sar", "shape_hw"),
    [(Fraction(64, 45), (144, 256)), (Fraction(8, 9), (162, 180)), (Fraction(2, 1), (144, 360))],
    ids=str,
)
def test_a_disc_stays_a_disc_whatever_the_shape_of_its_pixels(
    tmp_path: Path, name: str, sar: Fraction, shape_hw: tuple[int, int]
) -> None:
    wide, high = 60 / max(float(sar), 1), 60 * min(float(sar), 1)
    picture = disc(180, 144, (90, 72), (wide, high))
    path = write_clip(tmp_path / name, [picture] * 3, "libx264", sample_aspect_ratio=sar)
    frames = read_all(path)
    assert [frame.bgr.shape for frame in frames] == [(*shape_hw, 3)] * 3
    assert extent(frames[0].bgr) == pytest.approx((121, 121), abs=3)


@pytest.mark.parametrize("sar", [Fraction(1, 1), Fraction(1001, 1000), Fraction(50, 1), Fraction(1, 50)], ids=str)
def test_square_pixels_and_absurd_ones_leave_the_picture_as_it_is(
    tmp_path: Path, sar: Fraction, caplog: pytest.LogCaptureFixture
) -> None:
    picture = disc(180, 144, (90, 72), (50, 50))
    plain = read_all(write_clip(tmp_path / "plain.mkv", [picture] * 3, "libx264"))
    caplog.clear()
    frames = read_all(write_clip(tmp_path / "a.mkv", [picture] * 3, "libx264", sample_aspect_ratio=sar))
    assert all(np.array_equal(a.bgr, b.bgr) for a, b in zip(plain, frames, strict=True))
    assert ("is ignored" in caplog.text) == (not 0.9 < sar < 1.1)


def test_pixels_that_change_their_shape_midway_are_square_before_and_after(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{first}.ts", [disc(180, 144, (90, 72), radii)] * 10, "libx264", first=first, **tags)
        for first, radii, tags in (
            (0, (50, 50), {}), (10, (25, 50), {"sample_aspect_ratio": Fraction(2, 1)}),
        )
    ]  # fmt: skip
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shapes = [frame.bgr.shape[:2] for frame in read_all(joined)]
    assert len(shapes) == 20 and set(shapes) == {(144, 180), (144, 360)}
    assert abs(shapes.index((144, 360)) - 10) <= 2


# ---- interlaced video


def field_pair(number: int, moving: bool = True, upper_first: bool = True) -> av.VideoFrame:
    """A 96x64 picture of two fields with a bright edge that moves 4 px from field to field."""
    lines = np.full((64, 96), 60, np.uint8)
    for parity in (0, 1):
        at = 16 + (8 * number + 4 * (parity != (0 if upper_first else 1)) if moving else 0)
        lines[parity::2, at % 96 :] = 200
    return av.VideoFrame.from_ndarray(lines, format="gray").reformat(format="yuv420p")


def combing(bgr: U8) -> float:
    """How much neighbouring lines differ: 0 for a vertical edge in one piece."""
    return float(np.abs(np.diff(bgr[..., 1].astype(int), axis=0)).mean())


INTERLACED = {
    "H.264": ("a.mp4", "libx264", {"x264-params": "tff=1", "g": "5"}),
    "MPEG-2": ("a.ts", "mpeg2video", {"flags": "+ildct+ilme", "g": "5", "b": "4M"}),
}


@pytest.mark.parametrize("upper_first", [True, False], ids=["upper field first", "lower field first"])
def test_interlaced_video_is_not_combed_and_no_frame_is_lost_or_doubled(tmp_path: Path, upper_first: bool) -> None:
    pairs = [field_pair(i, upper_first=upper_first) for i in range(8)]
    options = {"x264-params": f"{'tff' if upper_first else 'bff'}=1", "crf": "1"}
    frames = read_all(write_clip(tmp_path / "a.mp4", pairs, "libx264", options))
    assert [frame.time_s for frame in frames] == pytest.approx([i / 25 for i in range(8)], abs=1e-3)
    combed = combing(pairs[4].reformat(format="bgr24").to_ndarray())
    assert combed > 5 and all(combing(frame.bgr) < 0.35 * combed for frame in frames)
    edges = [int((frame.bgr[:, :, 1] < 128).sum(1).mean()) for frame in frames]
    assert np.diff(edges) == pytest.approx(8, abs=2), "each frame moves on by as much"


@pytest.mark.parametrize("kind", INTERLACED)
def test_interlaced_video_that_stands_still_keeps_its_lines(tmp_path: Path, kind: str) -> None:
    name, codec, options = INTERLACED[kind]
    frames = read_all(write_clip(tmp_path / name, [field_pair(0, moving=False)] * 6, codec, options))
    assert len(frames) == 6
    wanted = field_pair(0, moving=False).reformat(format="bgr24").to_ndarray().astype(int)
    assert all(np.abs(frame.bgr - wanted).mean() < 3 for frame in frames)


def test_interlacing_may_come_and_go_and_the_size_may_change(tmp_path: Path) -> None:
    interlaced = {"flags": "+ildct+ilme", "b": "4M"}
    large = [disc(128, 96, (64, 48), (30, 30))] * 5
    parts = [
        write_clip(tmp_path / f"{first}.ts", pictures, "mpeg2video", options, first=first)
        for first, pictures, options in (
            (0, [field_pair(i, moving=False) for i in range(5)], {"b": "4M"}),
            (5, [field_pair(i) for i in range(5)], interlaced),
            (10, [field_pair(0, moving=False)] * 5, {"b": "4M"}),
            (15, large, interlaced),
            (20, large, {"b": "4M"}),
        )
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames = read_all(joined)
    with av.open(str(joined)) as container:  # FFmpeg's decoder drops a frame where the size changes
        decoded = [(picture.height, picture.width) for picture in container.decode(video=0)]
    assert [frame.bgr.shape[:2] for frame in frames] == decoded and len(set(decoded)) == 2
    assert [frame.index for frame in frames] == list(range(len(decoded)))
    times_s = [frame.time_s for frame in frames]
    assert times_s == sorted(set(times_s)) and times_s[-1] == pytest.approx(24 / 25, abs=0.05)
    assert all(combing(frame.bgr) < 4 for frame in frames[5:10])


def test_a_phone_held_upright_with_wide_pixels_in_hdr_gets_all_of_it(tmp_path: Path) -> None:
    light = np.array([SKIN, GREY, (40, 70, 120)]) / 255
    path = write_clip(
        tmp_path / "a.mov", [bars(hlg_of(light**2.2 * 203), 9, bits=10)] * 3, "libx265", {"x265-params": "log-level=0"},
        colorspace=9, color_range=1, color_trc=18, color_primaries=9, sample_aspect_ratio=Fraction(2, 1),
    )  # fmt: skip
    flat = read_all(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    upright = read_all(path)
    assert [frame.bgr.shape for frame in flat] == [(32, 192, 3)] * 3
    assert all(np.array_equal(b.bgr, np.rot90(a.bgr, -1)) for a, b in zip(flat, upright, strict=True))
    assert np.abs(centres(flat[0].bgr, 3).mean(1) - 255 * light.mean(1)).max() < 25
