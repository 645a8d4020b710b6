"""Pictures as people bring them: every format, page and frame, whatever its name; nothing is left out unsaid."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from pillow_heif import register_heif_opener

import lineament
from lineament.landmarks.types import Frame, LineamentError
from lineament.stream.__main__ import main
from lineament.stream.read.image import Picture, read_image
from lineament.stream.read.open import open_source
from lineament.stream.read.pixels import exposed
from lineament.stream.read.video import VideoSource
from tests.test_source import failure, read_all

register_heif_opener()
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
"""RGB of the pages and frames of the files below"""
SHOWN_MS = [50, 200, 100]


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (96, 64), colour) for colour in COLOURS]


def photo(height: int = 64, width: int = 96) -> Image.Image:
    """A picture that differs from all its rotations."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    return Image.fromarray(np.stack([x, y, x / 2 + y], -1).astype(np.uint8))


def several(path: Path, **options: Any) -> Path:
    """A file with the three colours as pages, frames or images."""
    first, *others = pictures()
    first.save(path, save_all=True, append_images=others, **options)
    return path


def colour_of(frame: Frame) -> int:
    """The number of the colour that a frame shows."""
    return int(np.argmax(frame.bgr.mean(axis=(0, 1))[::-1]))


# ---- formats


@pytest.mark.parametrize("suffix", ["heic", "avif", "gif", "webp", "png", "tif", "bmp", "jp2", "ppm", "jpg"])
@pytest.mark.parametrize("called", ["same", "a.jpg", "a.png", "a.heic", "a"])
def test_content_and_not_the_name_tells_the_format(tmp_path: Path, suffix: str, called: str) -> None:
    name = f"a.{suffix}"
    photo().save(tmp_path / name, **({"quality": 95} if name.endswith((".heic", ".avif", ".webp")) else {}))
    path = (tmp_path / name).rename(tmp_path / (name if called == "same" else called))
    source = open_source(str(path))
    assert source.still
    (frame,) = read_all(source)
    wanted = np.asarray(photo())[..., ::-1]
    assert frame.bgr.shape == wanted.shape and np.abs(frame.bgr.astype(int) - wanted).mean() < 8
    assert np.array_equal(read_image(path), frame.bgr)


@pytest.mark.parametrize("suffix", [".heic", ".avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_photo_is_turned_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = photo()
    picture.info["exif"] = exif.tobytes()
    picture.save(tmp_path / f"a{suffix}", quality=95, exif=exif.tobytes())
    turned = cv2.imread(str(as_jpeg(tmp_path, exif)))
    bgr = read_image(tmp_path / f"a{suffix}")
    assert bgr.shape == turned.shape and np.abs(bgr.astype(int) - turned).mean() < 8


def as_jpeg(folder: Path, exif: Image.Exif) -> Path:
    photo().save(folder / "wanted.jpg", quality=95, exif=exif)
    return folder / "wanted.jpg"


def test_a_tiled_photo_is_read_whole(tmp_path: Path) -> None:
    wanted = np.asarray(photo(256, 384))[..., ::-1]
    photo(256, 384).save(tmp_path / "a.heic", quality=95, tile_size=64)
    with Picture(tmp_path / "a.heic") as picture:
        assert picture.left_out() == ""
        assert np.abs(picture.read().astype(int) - wanted).mean() < 8


def test_a_tiled_photo_from_the_shared_inputs_is_read_whole(shared: Path) -> None:
    (frame,) = read_all(open_source(str(shared / "inputs" / "grid-2x2.avif")))
    assert frame.bgr.shape == (1024, 768, 3)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_sensor_that_fills_a_part_of_its_16_bits_gives_a_bright_picture(
    tmp_path: Path, suffix: str, bits: int
) -> None:
    grey = np.linspace(0, 2**bits - 1, 96 * 64).reshape(64, 96).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), grey)
    bgr = read_image(tmp_path / f"a{suffix}")
    assert bgr.shape == (64, 96, 3) and bgr.max() == 255 and abs(float(bgr.mean()) - 127) < 2


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_a_tiff_with_a_plane_for_each_colour_is_read(tmp_path: Path, depth: type[np.unsignedinteger[Any]]) -> None:
    planes = np.moveaxis(np.asarray(photo()), -1, 0).astype(depth) * (257 if depth is np.uint16 else 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.asarray(photo())[..., ::-1])


def test_a_tiff_that_pillow_cannot_read_is_read_by_opencv(tmp_path: Path) -> None:
    photo().convert("YCbCr").save(tmp_path / "a.tif")
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - np.asarray(photo())[..., ::-1]).mean() < 6


@pytest.mark.parametrize("white", [1.0, 255.0, 60000.0])
@pytest.mark.parametrize("colour", [True, False])
def test_floats_of_any_range_are_read(tmp_path: Path, colour: bool, white: float) -> None:
    wanted = np.asarray(photo())[..., ::-1] if colour else np.asarray(photo().convert("L"))
    wanted = (wanted * (255 / wanted.max())).astype(np.uint8)
    values = wanted.astype(np.float32) / 255 * white
    values[0, 0] = np.nan
    assert cv2.imwrite(str(tmp_path / "a.tif"), values)
    bgr = read_image(tmp_path / "a.tif")
    assert np.abs(bgr[1:].astype(int) - (wanted if colour else wanted[..., None])[1:]).mean() < 6


def test_a_lamp_does_not_darken_the_faces_of_an_hdr_picture(tmp_path: Path) -> None:
    light = (np.asarray(photo(), np.float32)[..., ::-1] / 255) ** 2.2
    alone = exposed(light)
    lit = light.copy()
    lit[:8, :8] = 1000.0
    assert abs(float(exposed(lit)[16:].mean()) - alone[16:].mean()) < 60
    assert exposed(np.zeros((4, 4, 3), np.float32)).max() == 0
    cv2.imwrite(str(tmp_path / "a.hdr"), lit)
    assert open_source(str(tmp_path / "a.hdr")).still
    assert np.abs(read_image(tmp_path / "a.hdr").astype(int) - exposed(lit)).mean() < 3


def test_what_is_there_of_a_photo_cut_short_is_read_and_the_rest_is_missed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photo(256, 384).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
    bgr = read_image(tmp_path / "a.jpg")
    wanted = np.asarray(photo(256, 384))[..., ::-1]
    assert bgr.shape == wanted.shape and np.abs(bgr[:100].astype(int) - wanted[:100]).mean() < 3
    assert "a.jpg is read in part: its end is missing" in caplog.text


def test_a_raw_photo_is_not_read_as_its_preview(tmp_path: Path) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[254], tags[50706] = 1, b"\1\4\0\0"
    photo().save(tmp_path / "a.dng", "TIFF", tiffinfo=tags)
    with pytest.raises(LineamentError, match="a camera's raw photo; export it as JPEG or TIFF"):
        Picture(tmp_path / "a.dng")


@pytest.mark.parametrize("suffix", [".heic", ".avif", ".gif", ".hdr", ".webp", ".tif"])
def test_a_picture_over_the_limit_is_refused_undecoded(tmp_path: Path, suffix: str) -> None:
    if suffix == ".hdr":
        cv2.imwrite(str(tmp_path / "a.hdr"), np.ones((64, 96, 3), np.float32))
    else:
        photo().save(tmp_path / f"a{suffix}")
    with (
        Picture(tmp_path / f"a{suffix}", max_pixels=1000) as picture,
        pytest.raises(LineamentError, match="megapixels; downscale it first"),
    ):
        picture.read()


# ---- pages and frames


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.avif", "a.gif", "wrong.jpg", "none"])
def test_an_animation_is_a_video_with_its_own_times(tmp_path: Path, name: str) -> None:
    saved = tmp_path / (name if name[0] == "a" else "a.webp")
    path = several(saved, duration=SHOWN_MS).rename(tmp_path / name)
    source = open_source(str(path))
    assert not source.still
    frames = read_all(source)
    assert not source.still and source.frame_count == 3 and source.fps == pytest.approx(20)
    assert [colour_of(frame) for frame in frames] == [0, 1, 2]
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.05, 0.25])
    assert [frame.index for frame in frames] == [0, 1, 2]


def test_an_animation_that_gives_no_times_is_shown_at_ten_frames_a_second(tmp_path: Path) -> None:
    frames = read_all(open_source(str(several(tmp_path / "a.png", duration=0))))
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.2])


def test_the_picture_for_programs_without_animations_is_no_frame(tmp_path: Path) -> None:
    path = several(tmp_path / "a.png", duration=100, default_image=True)
    assert [colour_of(frame) for frame in read_all(open_source(str(path)))] == [1, 2]


def test_an_animation_that_is_damaged_gives_the_frames_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance = np.random.default_rng(0)
    first, *others = [Image.fromarray(chance.integers(0, 256, (64, 96, 3), np.uint8)) for _ in range(6)]
    first.save(tmp_path / "a.png", save_all=True, append_images=others, duration=100)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    frames = read_all(open_source(str(tmp_path / "a.png")))
    assert 0 < len(frames) < 6 and "is damaged or ends early" in caplog.text


def test_every_page_is_a_picture_with_a_name_and_an_output_of_its_own(tmp_path: Path) -> None:
    path = several(tmp_path / "scan.tif")
    source = open_source(str(path))
    frames = read_all(source)
    assert source.still and source.frame_count == 3
    assert [frame.source for frame in frames] == [f"{path}#page={page}" for page in (1, 2, 3)]
    assert [colour_of(frame) for frame in frames] == [0, 1, 2]
    assert main(["--source", str(path), "--out", f"{tmp_path}/out/", "--no-window"]) == 0
    written = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in written] == ["scan-2.jpg", "scan-3.jpg", "scan.jpg"]
    assert [int(np.argmax(cv2.imread(str(file))[40:].mean(axis=(0, 1))[::-1])) for file in written] == [1, 2, 0]


def test_previews_in_a_tiff_are_no_pages(tmp_path: Path) -> None:
    first, preview, _ = pictures()
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[preview])
    (frame,) = read_all(open_source(str(tmp_path / "a.tif")))
    assert colour_of(frame) == 0 and frame.source == str(tmp_path / "a.tif")


def test_of_a_photo_for_both_eyes_the_first_is_read_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several(tmp_path / "a.mpo")
    (frame,) = read_all(open_source(str(tmp_path / "a.mpo")))
    assert colour_of(frame) == 0 and not caplog.records


def test_a_heic_with_several_images_gives_the_main_one_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    several(tmp_path / "a.heic", primary_index=1)
    (frame,) = read_all(open_source(str(tmp_path / "a.heic")))
    assert colour_of(frame) == 1
    assert "a.heic is read in part: the main one of 3 images" in caplog.text


@pytest.mark.parametrize(("name", "left"), [("a.tif", "pages"), ("a.gif", "frames"), ("a.webp", "frames")])
def test_find_takes_the_first_of_several_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, left: str
) -> None:
    assert lineament.find(several(tmp_path / name)) == []
    assert f"{name} is read in part: the first of 3 {left}" in caplog.text


# ---- folders


def test_a_folder_counts_and_names_what_it_does_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    photo().save(tmp_path / "1.heic")
    photo().save(tmp_path / "2", "AVIF")
    several(tmp_path / "3.gif")
    several(tmp_path / "4.tif")
    (tmp_path / "5.jpg").write_bytes(b"")
    (tmp_path / "6.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "notes.txt").write_text("P5 is not a picture here")
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    frames = read_all(open_source(str(tmp_path)))
    assert [Path(frame.source).name for frame in frames] == [
        "1.heic", "2", "3.gif", "4.tif#page=1", "4.tif#page=2", "4.tif#page=3",
    ]  # fmt: skip
    (said,) = caplog.messages
    assert said.startswith("read 4 of 9 files in ")
    for part in (
        "5.jpg (the file is empty (0 bytes))",
        "6.png (not a picture, or damaged)",
        "notes.txt (not a picture)",
        "clip.mp4 (a video; give it as --source)",
        "gone.jpg (not a picture)",
        "3.gif (the first of 3 frames)",
        "2 subfolders not read",
    ):
        assert part in said


def test_a_folder_that_is_read_whole_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo().save(tmp_path / "a.jpg")
    several(tmp_path / "b.tif")
    source = open_source(str(tmp_path))
    assert len(read_all(source)) == source.frame_count == 4 and not caplog.records


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "x").mkdir()
    said = failure(open_source(str(tmp_path)))
    assert "is a folder without pictures" in said and "notes.txt (not a picture); 1 subfolder not read" in said


def test_of_many_skipped_files_some_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo().save(tmp_path / "a.jpg")
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text("notes")
    read_all(open_source(str(tmp_path)))
    assert "read 1 of 31 files" in caplog.text and "and 10 more" in caplog.text


def test_a_page_that_is_damaged_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chance = np.random.default_rng(0)
    first, *others = [Image.fromarray(chance.integers(0, 256, (64, 96, 3), np.uint8)) for _ in range(3)]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression="tiff_lzw")
    with Image.open(tmp_path / "a.tif") as pages:
        pages.seek(1)
        start = pages.tag_v2[273][0]  # type: ignore[attr-defined]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start : start + 2000] = b"\xff" * 2000
    (tmp_path / "a.tif").write_bytes(data)
    frames = read_all(open_source(str(tmp_path)))
    assert [frame.source[-1] for frame in frames] == ["1", "3"] and "a.tif (without page 2)" in caplog.text


def test_a_motion_jpeg_is_a_video(tmp_path: Path) -> None:
    frames = [cv2.imencode(".jpg", np.full((64, 96, 3), 60 * value, np.uint8))[1].tobytes() for value in range(3)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(frames))
    source = open_source(str(tmp_path / "a.mjpeg"))
    assert not source.still and len(read_all(source)) == 3


def test_ffmpeg_which_reads_a_tiled_photo_as_its_first_tile_is_not_asked_to(shared: Path) -> None:
    said = failure(VideoSource(shared / "inputs" / "grid-2x2.avif"))
    assert "is a picture in tiles (HEIC or AVIF); download it" in said
