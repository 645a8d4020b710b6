"""Tables: what is written reads back, means what OpenFace's columns mean, and survives a crash."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.adapter import mean_shape
from lineament.landmarks.schema import IBUG68
from lineament.landmarks.types import F32, F64, Face, Frame, LineamentError, Result, Track
from lineament.stream.__main__ import main
from lineament.stream.write.open import open_sink
from lineament.stream.write.table import columns, to_parquet
from tests.waiting import started

parquet = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 480, 640
LOOP = """
import numpy as np
from lineament.landmarks.types import Face, Frame, Result, Track
from lineament.stream.write.open import open_sink
points = np.random.default_rng(0).uniform(100, 200, (98, 2)).astype(np.float32)
crowd = tuple(Track(i, Face(np.array([1, 2, 3, 4], np.float32), 0.9), points, 0.9) for i in range(20))
frames = (Result(Frame(np.zeros((4, 4, 3), np.uint8), "clip", i, i / 30, 0.0), crowd) for i in range(10**9))
"""


def face(points: F32, number: int = 1) -> Track:
    return Track(number, Face(np.concatenate([points.min(0), points.max(0)]), 0.8), points, 0.9)


def turned(degrees: tuple[float, float, float], middle: tuple[float, float] = (0.0, 0.0)) -> F32:
    """(98, 2) frame px of the mean face, turned by OpenFace's R = Rx Ry Rz; middle: as shares of its distance."""
    away = 12.0
    shape = mean_shape() @ rotation(tuple(np.radians(degrees))).T + np.array([*middle, 1]) * away
    seen = shape[:, :2] / shape[:, 2:] * WIDTH + np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    return np.asarray(seen, np.float32)


def rotation(angles: tuple[float, ...]) -> F64:
    """Rx Ry Rz."""
    x, y, z = (np.asarray(cv2.Rodrigues(axis * angle)[0]) for axis, angle in zip(np.eye(3), angles))
    return np.asarray(x @ y @ z, np.float64)


def result(index: int, *tracks: Track, source: str = "clip.mp4") -> Result:
    return Result(Frame(np.zeros((HEIGHT, WIDTH, 3), np.uint8), source, index, index / 30, 0.0), tracks)


def written(path: Path, *results: Result, schema: str = "wflw98") -> list[dict[str, str]]:
    """The rows of a .csv."""
    with open_sink(str(path), 30.0, schema) as sink:
        for one in results:
            sink.write(one, one.frame.bgr)
    return rows_of(path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_face_of_each_frame_is_a_row_and_a_frame_without_one_is_a_row_without_success(tmp_path: Path) -> None:
    points = turned((0, 0, 0))
    rows = written(tmp_path / "a.csv", result(0, face(points), face(points, 2)), result(1), result(3, face(points, 2)))
    assert [(row["frame"], row["face_id"], row["success"]) for row in rows] == [
        ("1", "1", "1"),
        ("1", "2", "1"),
        ("2", "", "0"),
        ("4", "2", "1"),
    ]
    assert {name for name, cell in rows[2].items() if cell} == {
        "source",
        "frame",
        "timestamp",
        "success",
        "width",
        "height",
    }
    assert (rows[3]["timestamp"], rows[3]["confidence"], rows[3]["score"]) == ("0.1", "0.9", "0.8")
    assert (rows[0]["width"], rows[0]["height"]) == (str(WIDTH), str(HEIGHT))


@pytest.mark.parametrize("schema", ["wflw98", "ibug68"])
def test_a_row_has_the_points_and_the_box_of_the_line_of_json(tmp_path: Path, schema: str) -> None:
    one = result(0, face(turned((4, 8, 9))))
    (row,) = written(tmp_path / "a.csv", one, schema=schema)
    with open_sink(f"{tmp_path}/a.jsonl", schema=schema) as sink:
        sink.write(one, one.frame.bgr)
    (told,) = json.loads((tmp_path / "a.jsonl").read_text())["faces"]
    x, y = ([float(row[f"{axis}_{i}"]) for i in range(len(told["points"]))] for axis in "xy")
    assert np.column_stack([x, y]).tolist() == told["points"] and f"x_{len(x)}" not in row
    x, y, w, h = (float(row[f"face_{name}"]) for name in "xywh")
    np.testing.assert_allclose([x, y, x + w, y + h], told["box_xyxy"], atol=0.02)
    angles = {name.removesuffix("_deg"): float(row[name]) for name in ("yaw_deg", "pitch_deg", "roll_deg")}
    assert angles == told["pose_deg"] and float(row["mouth_aspect"]) == told["mouth_aspect"]
    assert [float(row[f"{side}_eye_aspect"]) for side in ("left", "right")] == told["eye_aspect"]


@pytest.mark.parametrize("middle", [(0.0, 0.0), (0.3, -0.2), (-0.35, 0.1)])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (15, 0, 0), (0, 20, 0), (0, 0, 25), (-10, 25, -15), (12, -30, 40)])
def test_angles_are_those_of_openface(
    tmp_path: Path, degrees: tuple[float, float, float], middle: tuple[float, float]
) -> None:
    """Anywhere in the frame: they are relative to the camera, not to the line of sight."""
    (row,) = written(tmp_path / "a.csv", result(0, face(turned(degrees, middle))))
    found = np.degrees([float(row[f"pose_R{axis}"]) for axis in "xyz"])
    assert np.abs(found - degrees).max() < 0.1, found


def test_a_head_that_looks_up_and_to_its_right_has_openfaces_signs(tmp_path: Path) -> None:
    """OpenFace: up is a negative pose_Rx, the person's right, the left of the image, is a positive pose_Ry."""
    (row,) = written(tmp_path / "a.csv", result(0, face(turned((-15, 20, 0)))))
    assert float(row["pitch_deg"]) > 10 and float(row["yaw_deg"]) < -15
    assert float(row["pose_Rx"]) < -0.2 and float(row["pose_Ry"]) > 0.3


def test_what_is_not_finite_is_an_empty_cell(tmp_path: Path) -> None:
    points = turned((0, 0, 0))
    track = face(points)
    points[3], points[60] = np.nan, np.inf
    for name in ("a.csv", "a.parquet"):
        with open_sink(f"{tmp_path}/{name}") as sink:
            sink.write(result(0, track), result(0).frame.bgr)
    (row,) = rows_of(tmp_path / "a.csv")
    empty = {name for name, cell in row.items() if not cell}
    poses = {"pose_Rx", "pose_Ry", "pose_Rz", "yaw_deg", "pitch_deg", "roll_deg"}
    assert empty == {"x_3", "y_3", "x_60", "y_60", "left_eye_aspect"} | poses
    assert {
        name for name, cell in parquet.read_table(tmp_path / "a.parquet").to_pylist()[0].items() if cell is None
    } == empty


def test_parquet_has_the_rows_of_csv_with_types(tmp_path: Path) -> None:
    crowd = [face(turned((0, 5 * i, 0)), i + 1) for i in range(3)]
    results = [result(i, *crowd[: i % 4]) for i in range(200)]  # more rows than are kept in memory
    rows = written(tmp_path / "a.csv", *results)
    with open_sink(f"{tmp_path}/a.parquet") as sink:
        for one in results:
            sink.write(one, one.frame.bgr)
    assert not (tmp_path / "a.parquet.part").exists()
    table = parquet.read_table(tmp_path / "a.parquet")
    assert table.column_names == list(rows[0]) and table.num_rows == len(rows) == 350
    kinds = {name: str(kind) for name, kind in zip(table.schema.names, table.schema.types)}
    assert kinds.pop("source") == "string" and kinds.pop("timestamp") == "double"
    assert {kinds.pop(name) for name in ("frame", "face_id", "success", "width", "height")} == {"int64"}
    assert set(kinds.values()) == {"float"}
    for wanted, got in zip(rows, table.to_pylist()):
        assert got.pop("source") == wanted["source"]
        np.testing.assert_allclose(
            [np.nan if cell is None else cell for cell in got.values()],
            [float(wanted[name] or "nan") for name in got],
            rtol=1e-6,
        )


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_run_that_fails_leaves_a_whole_table(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(ZeroDivisionError), open_sink(str(path)) as sink:
        for i in range(5):
            sink.write(result(i, face(turned((0, 0, 0)))), result(i).frame.bgr)
        raise ZeroDivisionError
    rows = rows_of(path) if name == "a.csv" else parquet.read_table(path).to_pylist()
    assert [int(row["frame"]) for row in rows] == [1, 2, 3, 4, 5]


def test_without_a_frame_a_table_has_its_columns(tmp_path: Path) -> None:
    assert written(tmp_path / "a.csv") == []
    with open_sink(f"{tmp_path}/a.parquet"):
        pass
    header = (tmp_path / "a.csv").read_text().strip().split(",")
    assert parquet.read_table(tmp_path / "a.parquet").column_names == header


def test_a_killed_process_leaves_whole_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code = f"""{LOOP}
with open_sink("a.csv") as lines, open_sink("a.parquet") as table:
    for result in frames:
        lines.write(result, result.frame.bgr)
        table.write(result, result.frame.bgr)
        print(result.frame.index, flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with started(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < 40:
            pass
        process.kill()
    assert process.returncode == -signal.SIGKILL
    text = (tmp_path / "a.csv").read_text()
    assert text.endswith("\n")
    assert_whole([int(row["frame"]) for row in rows_of(tmp_path / "a.csv")], 40)

    part = tmp_path / "a.parquet.part"
    to_parquet(part, tmp_path / "a.parquet")
    assert_whole(parquet.read_table(tmp_path / "a.parquet")["frame"].to_pylist(), 30)
    # a machine that lost its power may have lost the end of the last batch
    whole = parquet.read_table(tmp_path / "a.parquet").num_rows
    part.write_bytes(part.read_bytes()[:-100])
    to_parquet(part, tmp_path / "a.parquet")
    assert 0 < parquet.read_table(tmp_path / "a.parquet").num_rows < whole
    assert "ends in the middle of a batch" in caplog.text


def assert_whole(frames: list[int], least: int) -> None:
    counts = [(frame, len(list(rows))) for frame, rows in itertools.groupby(frames)]
    assert counts == [(i + 1, 20) for i in range(len(counts))] and len(counts) >= least


def test_a_disk_that_fills_up_keeps_whole_rows(tmp_path: Path) -> None:
    code = f"""{LOOP}
import resource, signal, sys
from lineament.landmarks.types import LineamentError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a file over the limit fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for name in ("a.csv", "a.parquet"):
    try:
        with open_sink(name) as sink:
            for result in frames:
                sink.write(result, result.frame.bgr)
    except LineamentError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "cannot write a.csv" in done.stdout and "cannot write a.parquet" in done.stdout, done.stderr
    assert_whole([int(row["frame"]) for row in rows_of(tmp_path / "a.csv")], 5)
    to_parquet(tmp_path / "a.parquet.part", tmp_path / "a.parquet")
    assert parquet.read_table(tmp_path / "a.parquet").num_rows % 20 == 0


def test_a_picture_whose_name_is_not_text_has_a_row(tmp_path: Path) -> None:
    name = os.fsdecode(b'caf\xe9, "one"\n.png')
    (row,) = written(tmp_path / "a.csv", result(0, source=name))
    assert row["source"] == 'caf\\udce9, "one"\n.png'
    with open_sink(f"{tmp_path}/a.parquet") as sink:
        sink.write(result(0, source=name), result(0).frame.bgr)
    assert parquet.read_table(tmp_path / "a.parquet")["source"].to_pylist() == [row["source"]]


def test_a_folder_that_is_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    for name in ("a.csv", "a.parquet"):
        (tmp_path / name).mkdir()
        with (
            pytest.raises(LineamentError, match=rf"cannot write .*{name}: is a directory"),
            open_sink(f"{tmp_path}/{name}"),
        ):
            pass


@pytest.mark.parametrize(("out", "says"), [("a.parquet", r"pip install pyarrow"), ("a.xyz", r"\.csv, \.parquet")])
def test_an_output_that_cannot_be_written_is_said_before_the_source_opens(
    out: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["--source", f"{tmp_path}/absent.mp4", "--no-window", "--out", f"{tmp_path}/{out}"]) == 1
    assert says.replace("\\", "") in caplog.text and "absent" not in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_page_describes_every_column() -> None:
    page = (ROOT / "docs/tables.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    names = [name for name in columns(IBUG68) if not re.fullmatch(r"[xy]_\d+", name)]
    assert described == {*names, "x_0", "x_1", "y_0", "y_1"}
