"""A list of cameras: names that can be told apart, outputs that stay where they belong, and no crash on any file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.batch import SharedLandmarker
from lineament.stream.run.cameras import Camera, check_outputs, named, read_cameras, with_name
from lineament.stream.run.session import SessionConfig
from lineament.stream.run.supervisor import Supervisor
from tests.blobs import BlobLandmarker


def written(folder: Path, text: str) -> Path:
    path = folder / "cameras.yaml"
    path.write_text(text)
    return path


def failure(folder: Path, text: str) -> str:
    with pytest.raises(LineamentError) as caught:
        read_cameras(written(folder, text))
    return str(caught.value)


def test_a_file_lists_cameras_with_names_sources_and_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "hunter2")
    text = """
cameras:
  - name: door
    source: rtsp://viewer:${DOOR_PASSWORD}@10.0.0.5/live
    out: [door.mp4, points/door.jsonl, pictures/]
  - {name: webcam, source: 0, out: webcam.mp4}
  - {name: silent, source: sample}
"""
    root = tmp_path.resolve()
    assert read_cameras(written(tmp_path, text)) == [
        Camera(
            "door",
            "rtsp://viewer:hunter2@10.0.0.5/live",
            (f"{root}/door.mp4", f"{root}/points/door.jsonl", f"{root}/pictures/"),
        ),
        Camera("webcam", "0", (f"{root}/webcam.mp4",)),
        Camera("silent", "sample"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must contain one list"),
        ("cameras: []", "must contain one list"),
        ("cameras: {}\nmore: 1", "must contain one list"),
        ("cameras: [1]", "camera 1 of .* has int"),
        ("cameras: [{name: a}]", "has 'name', expected name, source"),
        ("cameras: [{name: a, source: b, password: c}]", "'password', expected"),
        ("cameras: [{name: [a], source: b}]", "not text"),
        ("cameras: [{name: ../a, source: b}]", "invalid name"),
        ("cameras: [{name: .., source: b}]", "invalid name"),
        ("cameras: [{name: a, source: b}, {name: a, source: c}]", "two cameras named 'a'"),
        ("cameras: [{name: a, source: '${NOT_SET_AT_ALL}'}]", "environment variable NOT_SET_AT_ALL"),
        ("cameras: [{name: a, source: b, out: {}}]", ""),
        ("cameras: [{name: a, source: b, out: [1]}]", "not a list of paths"),
        ("cameras: [", "not valid YAML at line 1"),
        ("cameras: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    if not says:
        assert read_cameras(written(tmp_path, text))[0].outputs == ()
        return
    assert re.search(says, failure(tmp_path, text))


@pytest.mark.parametrize("output", ["../a.mp4", "/etc/a.mp4", "b/../../a.mp4", ".", "link/a.mp4"])
def test_an_output_never_leaves_the_folder_of_its_file(tmp_path: Path, output: str) -> None:
    (tmp_path / "link").symlink_to("/var")
    assert "outside the folder" in failure(tmp_path, f"cameras: [{{name: a, source: b, out: '{output}'}}]")


def test_an_address_is_a_destination_and_takes_its_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_PASSWORD", "hunter2")
    text = "cameras: [{name: a, source: b, out: ['mqtt://door:${BROKER_PASSWORD}@broker/a', 'virtual:/dev/video10']}]"
    (camera,) = read_cameras(written(tmp_path, text))
    assert camera.outputs == ("mqtt://door:hunter2@broker/a", "virtual:/dev/video10")
    with pytest.raises(LineamentError, match=r"two outputs would write to mqtt://\*\*\*@broker/a;") as caught:
        both = [replace(camera, name=name, outputs=camera.outputs[:1]) for name in "ac"]
        Supervisor(SessionConfig(), both, SharedLandmarker(BlobLandmarker()))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(LineamentError, match=r"write to rtsp://\*\*\*@host/x; add {name} to it"):
        with_name(["rtsp://door:hunter2@host/x"], "door")
    assert "NOT_SET_AT_ALL" in failure(tmp_path, "cameras: [{name: a, source: b, out: 'ws://${NOT_SET_AT_ALL}/a'}]")


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="no such file"):
        read_cameras(tmp_path / "gone.yaml")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["cameras", "name", "source", "out", "x"]), inner),
)


@settings(deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")) | anything.map(
    lambda value: yaml.safe_dump(value).encode("utf-8", "surrogatepass")
))  # fmt: skip
def test_no_file_is_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        cameras = read_cameras(path)
    except LineamentError as error:
        assert "\n" not in str(error)
    else:
        for camera in cameras:
            assert all(Path(output).is_relative_to(path.parent.resolve()) for output in camera.outputs)


def test_sources_of_the_command_line_get_names_that_differ_and_tell_no_password() -> None:
    specs = ["rtsp://admin:hunter2@10.0.0.5:554/live?token=abc", "0", "/a/b/clip.mp4", "/c/clip.mp4", "/d/clip.mp4"]
    cameras = named(specs, ["out/{name}.mp4", "-"])
    names = [camera.name for camera in cameras]
    assert names == ["10.0.0.5-554-live", "camera-0", "clip", "clip-2", "clip-3"]
    assert cameras[1].outputs == ("out/camera-0.mp4", "-")
    assert [camera.spec for camera in cameras] == specs


@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (["clip-3.mp4", "clip.mp4", "old/clip.mp4"], ["clip-3", "clip", "clip-2"]),
        (["clip-2.mp4", "clip.mp4", "old/clip.mp4"], ["clip-2", "clip", "clip-3"]),
        (["rtsp://me:my pass@cam/a", "rtsp://me:my pass@cam/b"], ["cam-a", "cam-b"]),
    ],
)
def test_a_name_that_is_taken_gets_the_next_free_number(specs: list[str], names: list[str]) -> None:
    assert [camera.name for camera in named(specs, [])] == names


@settings(deadline=None)
@given(st.lists(st.text(max_size=20), min_size=2, max_size=8))
def test_names_are_always_file_names_and_always_differ(specs: list[str]) -> None:
    names = [camera.name for camera in named(specs, [])]
    assert len(set(names)) == len(specs)
    assert all(name and "/" not in name and not name.startswith(".") for name in names)


def test_no_output_writes_over_what_any_camera_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/a.mp4"):
        (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(LineamentError, match="is the source itself"):
        check_outputs(named(["sub/a.mp4", "a.mp4"], ["{name}.mp4"]))
    with pytest.raises(LineamentError, match="is the source itself"):
        check_outputs([Camera("a", f"file://{tmp_path}/a.mp4"), Camera("b", "sample", ("sub/../a.mp4",))])
    check_outputs(named(["sub/a.mp4", "a.mp4"], ["out/{name}.mp4"]))


def test_two_ways_to_write_one_path_are_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for other in ("door.mp4", "./door.mp4", "x/../door.mp4"):
        with pytest.raises(LineamentError, match=r"two outputs would write to .*door\.mp4"):
            check_outputs([Camera("a", "sample", (f"{tmp_path}/door.mp4", other))])
    check_outputs(
        [Camera("a", "sample", ("door.mp4", "-", "mqtt://b/x")), Camera("b", "sample", ("-", "out/door.mp4"))]
    )


def test_several_sources_need_a_place_for_their_name_in_the_path() -> None:
    with pytest.raises(LineamentError, match=r"add {name} to it"):
        with_name(["out.mp4"], "door")
