"""Display: decoded pictures as they are meant to be seen: de-interlaced, tone mapped, of square pixels, upright.

    display = Display(stream, "clip.mp4")
    for picture in display.filtered(decoded):
        bgr = display.bgr(picture)

A picture whose metadata asks for none of it is only converted to BGR.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import av
import av.error
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from lineament.landmarks.types import U8
from lineament.stream import MAX_PIXELS
from lineament.stream.read.image import MAX_SIDE_PX, turned
from lineament.stream.read.tone import HLG, PQ, cube

log = logging.getLogger(__name__)

_UNSPECIFIED, _BT2020, _BT2020_CONSTANT = 2, 9, 10
"""FFmpeg's numbers of matrices; that of BT2020 is also that of its primaries"""
_MATRICES = frozenset({0, 1, _UNSPECIFIED, 4, 5, 6, 7, _BT2020})
"""those that FFmpeg converts"""
_WIDEST = 4
"""a pixel of more than so many times its height is an error in the file; DVDs have up to 2.9"""


class Display:
    """What becomes of the pictures of one stream. One thread uses it."""

    def __init__(self, stream: VideoStream, name: str, max_pixels: int = MAX_PIXELS) -> None:
        """name: for the log. max_pixels: of a picture once its pixels are square."""
        self._stream, self._name, self._max_pixels = stream, name, max_pixels
        # reused, because creating one costs as much as a conversion
        self._to_bgr = VideoReformatter()
        self._needs: _Needs | None = None
        self._graph: Graph | None = None
        self._interlaced = False
        self._sar, self._coded_sar = stream.sample_aspect_ratio, _coded_sar(stream)
        self._said: set[str] = set()

    def filtered(self, pictures: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
        """The pictures, as many and in order. De-interlacing holds one back until the next comes or all are in."""
        try:
            for picture in pictures:
                yield from self._through(picture)
        except av.error.FFmpegError:
            yield from self._rest()  # an error costs none of the pictures before it
            raise
        yield from self._rest()

    def bgr(self, picture: av.VideoFrame) -> U8:
        """(H, W, 3) uint8. Raises ValueError or FFmpeg's error if its format cannot be converted."""
        width, height = self._size_wh(picture)
        if (width, height) == (picture.width, picture.height):
            shown = self._to_bgr.reformat(picture, format="bgr24")
        else:
            shown = self._to_bgr.reformat(picture, width, height, format="bgr24", interpolation="BICUBIC")
        return _upright(np.asarray(shown.to_ndarray(), np.uint8), picture)

    def _through(self, picture: av.VideoFrame) -> Iterator[av.VideoFrame]:
        self._mend_matrix(picture)
        self._interlaced |= picture.interlaced_frame
        if (needs := _Needs.of(picture, self._interlaced)) != self._needs:
            yield from self._rest()
            self._needs, self._graph = needs, self._built(needs)
        if self._graph is None:
            yield picture
        else:
            self._graph.push(picture)
            yield from _pulled(self._graph)

    def _rest(self) -> Iterator[av.VideoFrame]:
        """What the filters hold back; they take no more."""
        if self._graph is not None:
            graph, self._graph = self._graph, None
            graph.push(None)
            yield from _pulled(graph)

    def _built(self, needs: _Needs) -> Graph | None:
        """The filters for such pictures; None if there are none or they do not take them."""
        if not needs.interlaced and not needs.transfer:
            return None
        try:
            return needs.graph()
        except av.error.FFmpegError as error:
            what = f"{needs.width}x{needs.height} {needs.format}"
            self._say(f"cannot be de-interlaced or tone mapped ({what}: {error.strerror}); shown as it is")
            return None

    def _size_wh(self, picture: av.VideoFrame) -> tuple[int, int]:
        """The picture's size once its pixels are square; none of its lines or columns is lost."""
        width, height = picture.width, picture.height
        # one that changes midway is in the coded pictures only; else the container knows better
        coded = _coded_sar(self._stream)
        sar = self._sar if coded == self._coded_sar else coded
        if not sar or abs(sar - 1) < 0.01:
            return width, height
        wide, high = (round(width * sar), height) if sar > 1 else (width, round(height / sar))
        if not 1 / _WIDEST <= sar <= _WIDEST or max(wide, high) > MAX_SIDE_PX or wide * high > self._max_pixels:
            self._say(f"asks for pixels of {sar.numerator}:{sar.denominator}, which is ignored")
            return width, height
        return wide, high

    def _mend_matrix(self, picture: av.VideoFrame) -> None:
        """Replaces a YUV matrix that FFmpeg does not convert, or that HDR does not name."""
        matrix: int = picture.colorspace
        if matrix == _BT2020_CONSTANT or (matrix == _UNSPECIFIED and picture.color_trc in (HLG, PQ)):
            picture.colorspace = _BT2020
        elif matrix not in _MATRICES:
            self._say(f"has a colour space that is not supported (number {matrix}); its colours may be wrong")
            picture.colorspace = _UNSPECIFIED

    def _say(self, what: str) -> None:
        """Once, not for every picture."""
        if what not in self._said:
            self._said.add(what)
            log.warning("%s %s", self._name, what)


class _Needs(NamedTuple):
    """What a graph of filters depends on."""

    width: int
    height: int
    format: str
    matrix: int
    full_range: int
    time_base: Fraction
    interlaced: bool
    transfer: int
    """HLG, PQ, or 0 for ordinary video"""
    wide: bool
    """the primaries of HDR are BT.2020's"""

    @classmethod
    def of(cls, picture: av.VideoFrame, interlaced: bool) -> _Needs:
        transfer = picture.color_trc if picture.color_trc in (HLG, PQ) else 0
        return cls(
            picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range,
            picture.time_base or Fraction(1, 1000), interlaced, transfer,
            picture.color_primaries in (_UNSPECIFIED, _BT2020),
        )  # fmt: skip

    def graph(self) -> Graph:
        """De-interlaces what is interlaced, then tone maps."""
        graph = Graph()
        buffer = {
            "video_size": f"{self.width}x{self.height}", "pix_fmt": self.format, "time_base": str(self.time_base),
            "colorspace": str(self.matrix), "range": str(self.full_range),
        }  # fmt: skip
        nodes = [graph.add("buffer", **buffer)]
        if self.interlaced:
            nodes.append(graph.add("bwdif", mode="send_frame", deint="interlaced"))
        with TemporaryDirectory() as folder:
            if self.transfer:
                path = Path(folder) / "tone.cube"
                path.write_text(cube(self.transfer, self.wide))
                nodes += [graph.add("format", "gbrp16le"), graph.add("lut3d", file=str(path))]
            graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        return graph


def _pulled(graph: Graph) -> Iterator[av.VideoFrame]:
    """What the filters have ready."""
    while True:
        try:
            picture = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield picture


def _coded_sar(stream: VideoStream) -> Fraction | None:
    """Of the newest picture; None if FFmpeg lacks the codec or the picture does not say."""
    codec = cast("av.VideoCodecContext | None", stream.codec_context)
    return codec.sample_aspect_ratio if codec is not None else None


def _upright(bgr: U8, picture: av.VideoFrame) -> U8:
    """bgr rotated and mirrored as the container asks, to the nearest quarter turn; phone cameras set this."""
    matrix = _display_matrix(picture)
    if matrix is None:
        return bgr
    # (x, y) is shown at (a x + c y, b x + d y)
    a, b, c, d = matrix
    return turned(bgr, True, c < 0, b < 0) if abs(b) > abs(a) else turned(bgr, False, a < 0, d < 0)


def _display_matrix(picture: av.VideoFrame) -> tuple[float, float, float, float] | None:
    """(a, b, c, d) of FFmpeg's display matrix; None if the picture is shown as it is."""
    try:
        beside: Any = picture.side_data
    except ValueError:  # PyAV fails on a frame with side data of an unknown kind, but knows the angle
        turn_rad = math.radians(-picture.rotation)
        return (math.cos(turn_rad), math.sin(turn_rad), -math.sin(turn_rad), math.cos(turn_rad))
    if (data := beside.get(SideData.DISPLAYMATRIX)) is None:
        return None
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
