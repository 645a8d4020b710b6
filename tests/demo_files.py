"""Files that visitors upload: damaged, hostile, and valid."""

from __future__ import annotations

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from lineament.landmarks.types import Frame, Result
from lineament.stream.read.sample import Sample
from lineament.stream.write.files import VideoSink


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def jpeg_2000() -> bytes:
    """A valid file of 64 x 64 pixels."""
    good, data = cv2.imencode(".jp2", np.full((64, 64, 3), 90, np.uint8))
    assert good
    return data.tobytes()


def _cut_after_header(jpeg_2000: bytes) -> bytes:
    return jpeg_2000[: jpeg_2000.index(b"ihdr") + 60]


def _of_two_sizes(jpeg_2000: bytes) -> bytes:
    """The header box states a smaller size than the codestream."""
    at = jpeg_2000.index(b"ihdr") + 4
    return jpeg_2000[:at] + struct.pack(">II", 60, 60) + jpeg_2000[at + 8 :]


def tiff_of_two_sizes(width: int, height: int) -> bytes:
    """A TIFF of this size with a second pair of size tags, 10 x 10."""
    held = io.BytesIO()
    Image.new("RGB", (width, height)).save(held, "TIFF", compression="tiff_lzw")
    data = held.getvalue()
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    tags = [data[at + 2 + 12 * index :][:12] for index in range(count)]
    tags += [struct.pack("<HHIHH", tag, 3, 1, 10, 0) for tag in (256, 257)]
    tags.sort(
        key=lambda tag: struct.unpack_from("<H", tag)[0]
    )  # a stable sort, so the second tag of a kind follows the first
    folder = struct.pack("<H", len(tags)) + b"".join(tags) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + folder


WRONG_PICTURES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "0 bytes"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "drawing.png": (b"\xef\xbb\xbf <?xml version='1.0'?><svg/>", "SVG"),
    "page.jpg": (b"<!DOCTYPE html><html>", "web page"),
    "text.jpg": (b"hello " * 50, "not a picture, or damaged"),
    "bomb.png": (png_header(60000, 60000), "over 40 megapixels"),
    "large.png": (png_header(8000, 8000), "over 40 megapixels"),
    "cut.png": (png_header(100, 100)[:40], "not a picture, or damaged"),
    "hollow.png": (png_header(100, 100), "damaged"),
    "cut.jp2": (_cut_after_header(jpeg_2000()), "not a picture, or damaged"),
    "sizes.jp2": (_of_two_sizes(jpeg_2000()), "not a picture, or damaged"),
    "script.pdf": (b"%PDF-1.4 ...", "not a picture, or damaged"),
    "print.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture, or damaged"),
}
WRONG_CLIPS: dict[str, tuple[bytes, str]] = {
    "empty.mp4": (b"", "0 bytes"),
    "text.mp4": (b"hello " * 50, "not a supported video"),
    "playlist.m3u8": (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "not a supported video"),
    "playlist.mp4": (b"#EXTM3U\n#EXTINF:10,\nhttp://169.254.169.254/latest\n#EXT-X-ENDLIST\n", "not a supported video"),
    "concat.mp4": (b"ffconcat version 1.0\nfile 'other.mp4'\n", "not a supported video"),
    "session.sdp": (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
        "not a supported video",
    ),
    "picture.mp4": (png_header(100, 100), "use the Image tab"),
    "cut.mp4": (
        b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41" + bytes(100),
        "not a supported video|sound",
    ),
}


def audio_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def raw_h264(path: Path, frames: int) -> Path:
    """A bare stream: no container states its length or its times."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(frames):
            picture = av.VideoFrame.from_ndarray(np.zeros((120, 160, 3), np.uint8), format="bgr24")
            for packet in stream.encode(picture):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


CONTAINERS = {
    "mp4": "libx264", "m4v": "libx264", "mov": "mpeg4", "3gp": "mpeg4", "3g2": "mpeg4", "f4v": "libx264",
    "mkv": "libx264", "webm": "libvpx", "avi": "mpeg4", "ts": "libx264", "m2ts": "mpeg2video",
    "mpg": "mpeg1video", "vob": "mpeg2video", "wmv": "wmv2", "asf": "msmpeg4", "flv": "flv", "ogv": "libvpx",
    "mxf": "mpeg2video", "nut": "ffv1", "ivf": "libvpx", "rm": "rv10", "gif": "gif", "apng": "apng",
    "mjpeg": "mjpeg", "h264": "libx264", "m1v": "mpeg1video", "h261": "h261", "h263": "h263",
    "y4m": "wrapped_avframe",
}  # fmt: skip
"""codec by ending"""
_FORMATS = {"3g2": "3g2", "m2ts": "mpegts", "vob": "vob", "y4m": "yuv4mpegpipe", "mpg": "mpeg", "m1v": "mpeg1video"}
_PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}


def clip_in(path: Path, frames: int, start_s: float = 0.0) -> Path:
    """The sample's first frames in the container of the path's ending; its time begins at start_s."""
    ending = path.suffix[1:]
    size_hw = (288, 352) if ending in ("h261", "h263", "rm") else (240, 320)
    sample = Sample(size_hw=size_hw)
    with av.open(str(path), "w", format=_FORMATS.get(ending)) as container:
        stream = container.add_stream(CONTAINERS[ending], rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = *size_hw, _PIXELS.get(ending, "yuv420p")
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(sample.render(index), format="bgr24").reformat(format=stream.pix_fmt)
            picture.pts, picture.time_base = round(25 * start_s) + index, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def sample_clip(path: Path, frames: int, size_hw: tuple[int, int] = (240, 320), fps: float = 30.0) -> Path:
    """The sample's first frames."""
    sample = Sample(size_hw=size_hw)
    with VideoSink(path, fps) as sink:
        for index in range(frames):
            bgr = sample.render(index)
            sink.write(Result(Frame(bgr, "sample", index, index / fps, 0.0), ()), bgr)
    return path
