"""Tables: a row for each face of each frame, as CSV or Parquet. Columns that mean the same as in OpenFace are so named.

docs/tables.md describes the columns.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lineament.landmarks.pose import aspect_ratios, camera_angles, head_pose
from lineament.landmarks.schema import SCHEMAS, WFLW98, Schema, points_of
from lineament.landmarks.types import F32, U8, LineamentError, Result, Track
from lineament.stream.read.image import cannot_write
from lineament.stream.read.spec import redacted
from lineament.stream.write.files import AppendSink
from lineament.stream.write.json_line import known

log = logging.getLogger(__name__)

Cell = str | int | float | None
"""None is an empty cell"""

_BATCH_ROWS, _BATCH_S = 256, 2.0
"""a batch of rows is written when it is that large, or that old"""
_GROUP_BYTES = 32 << 20
"""of a row group of a Parquet file: the most that is in memory at once"""

_COLUMNS = {
    "source": "string",
    "frame": "int64",
    "face_id": "int64",
    "timestamp": "double",
    "confidence": "float",
    "success": "int64",
    **dict.fromkeys(("pose_Rx", "pose_Ry", "pose_Rz"), "float"),
    **dict.fromkeys(("yaw_deg", "pitch_deg", "roll_deg"), "float"),
    **dict.fromkeys(("left_eye_aspect", "right_eye_aspect", "mouth_aspect"), "float"),
    "score": "float",
    **dict.fromkeys(("face_x", "face_y", "face_w", "face_h"), "float"),
    "width": "int64",
    "height": "int64",
}


def columns(schema: Schema) -> dict[str, str]:
    """Name to Arrow type, in order; x_0, x_1, ... and y_0, y_1, ... are the schema's points."""
    points = [f"{axis}_{i}" for axis in "xy" for i in range(len(schema))]
    return _COLUMNS | dict.fromkeys(points, "float")


def rows(result: Result, schema: Schema) -> list[list[Cell]]:
    """The cells of columns(schema) for each face; a frame without a face is one row, with success 0."""
    frame, (height, width) = result.frame, result.frame.bgr.shape[:2]
    common: dict[str, Cell] = {
        "source": redacted(frame.source).encode("utf-8", "backslashreplace").decode(),  # a file name may be invalid
        "frame": frame.index + 1,
        "timestamp": round(frame.time_s, 6),
        "success": int(bool(result.tracks)),
        "width": width,
        "height": height,
    }
    unknown: list[Cell] = [None for _ in range(2 * len(schema))]
    found = [(_face(t, (height, width)), _points(points_of(t, WFLW98, schema))) for t in result.tracks]
    return [[(common | face).get(name) for name in _COLUMNS] + points for face, points in found or [({}, unknown)]]


def csv_of(result: Result, schema: Schema) -> str:
    """One result as CSV, with the header."""
    return _csv([list(columns(schema)), *rows(result, schema)])


class CsvSink(AppendSink):
    """CSV with a header line. The rows of a frame are written in one system call."""

    def __init__(self, path: str, schema: str = WFLW98.name) -> None:
        super().__init__(Path(path).expanduser())
        self._schema = SCHEMAS[schema]

    def _open(self) -> None:
        super()._open()
        self.append(_csv([list(columns(self._schema))]))

    def write(self, result: Result, drawn_bgr: U8) -> None:
        self.append(_csv(rows(result, self._schema)))


class ParquetSink(AppendSink):
    """Parquet. A file is unreadable until its end is written, so rows go to an Arrow stream beside it, PATH.part.

    close() converts that to the Parquet file. A killed process leaves the stream, which to_parquet converts.
    """

    def __init__(self, path: str, schema: str = WFLW98.name) -> None:
        """Raises LineamentError if pyarrow is not installed."""
        try:
            import pyarrow
        except ImportError:
            raise LineamentError(
                f"cannot write {path}: Parquet needs pyarrow; run `pip install pyarrow==26.0.1`, or write a .csv"
            ) from None
        super().__init__(Path(path).expanduser())
        self._schema, self._arrow = SCHEMAS[schema], pyarrow
        self._types = columns(self._schema)
        self._rows: list[list[Cell]] = []
        self._since_s = 0.0
        """when the oldest of the rows came"""

    @property
    def part(self) -> Path:
        return self.path.with_name(f"{self.path.name}.part")

    def _open(self) -> None:
        with self.path.open("wb"):  # an older table must not pass for this one
            pass
        self._file = self.part.open("wb", buffering=0)
        self.append(self._arrow.schema(list(self._types.items())).serialize().to_pybytes())

    def write(self, result: Result, drawn_bgr: U8) -> None:
        if not self._rows:
            self._since_s = time.monotonic()
        self._rows += rows(result, self._schema)
        if len(self._rows) >= _BATCH_ROWS or time.monotonic() - self._since_s >= _BATCH_S:
            self._write_batch()

    def _write_batch(self) -> None:
        columns = zip(self._types.items(), zip(*self._rows))
        arrays = {name: self._arrow.array(cells, kind) for (name, kind), cells in columns}
        self._rows = []
        self.append(self._arrow.RecordBatch.from_pydict(arrays).serialize().to_pybytes())

    def close(self) -> None:
        if self._file is None:
            return
        if self._rows:
            self._write_batch()
        super().close()
        try:
            to_parquet(self.part, self.path)
            self.part.unlink()
        except OSError as error:
            raise cannot_write(self.path, error) from None


def to_parquet(part: Path, path: Path) -> None:
    """Converts the .part that a killed process left to a Parquet file, in constant memory.

    A batch that is cut off at the end is left out, with a warning.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with (
        pa.OSFile(str(part)) as file,
        pa.ipc.open_stream(file) as stream,
        parquet.ParquetWriter(path, stream.schema, compression="zstd") as writer,
    ):
        group: list[Any] = []
        size = 0
        for batch in _whole(stream, part):
            group.append(batch)
            size += batch.nbytes
            if size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_batches(group))


def _whole(stream: Any, part: Path) -> Iterator[Any]:
    while True:
        try:
            yield stream.read_next_batch()
        except StopIteration:
            return
        except OSError as error:
            log.warning("%s ends in the middle of a batch of rows, which is lost: %s", part, error)
            return


def _face(track: Track, frame_hw: tuple[int, int]) -> dict[str, Cell]:
    pose, ratios = head_pose(track.points, frame_hw), aspect_ratios(track.points, visibility=track.visibility)
    x1, y1, x2, y2 = (float(v) for v in track.face.box_xyxy)
    return {
        "face_id": track.id,
        "confidence": known(float(track.confidence)),
        "score": known(float(track.face.score)),
        **{f"pose_R{axis}": known(v) for axis, v in zip("xyz", camera_angles(track.points, frame_hw))},
        **{name: known(angle) for name, angle in pose._asdict().items()},
        **{f"{part}_aspect": known(ratio) for part, ratio in ratios._asdict().items()},
        **{f"face_{name}": known(v, 2) for name, v in zip("xywh", (x1, y1, x2 - x1, y2 - y1))},
    }


def _points(points: F32) -> list[Cell]:
    """(K, 2) px -> 2 K cells, first all x."""
    numbers: list[float] = np.round(points.T.astype(np.float64), 2).ravel().tolist()
    return [number if math.isfinite(number) else None for number in numbers]


def _csv(lines: Sequence[Sequence[Cell]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
