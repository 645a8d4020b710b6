"""The package: one folder in site-packages, the command, and the Python API."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import threading
import tomllib
import warnings
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from packaging.requirements import Requirement

import lineament
from lineament.__main__ import COMMANDS, main
from lineament.landmarks.types import U8, LineamentError
from lineament.stream.read.sample import Sample
from tests.demo_files import sample_clip

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("landmarks", "train", "engines", "stream", "demo")
RECIPES = dict(
    re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", (ROOT / "docs/python.md").read_text(), re.M | re.S)
)


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline; the build requirements are installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    # setuptools leaves build/ in the source folder, so build from a folder of links
    source = folder / "source"
    source.mkdir()
    for name in (*ROOMS, "lineament", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run([*pip, "-w", folder, source], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_contains_one_package_with_every_file(wheel: Path) -> None:
    with ZipFile(wheel) as zipped:
        held = {name for name in zipped.namelist() if ".dist-info/" not in name}
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.is_file()]
    assert held == {
        # a Gradio Space installs the package
        *(f"lineament/{path.relative_to(ROOT)}" for path in files if not {"__pycache__", "space"} & {*path.parts}),
        *(f"lineament/{path.name}" for path in (ROOT / "lineament").iterdir() if path.suffix in (".py", ".typed")),
    }
    assert wheel.name.startswith(f"lineament-{lineament.__version__}-py3-none-any")


def test_an_installed_wheel_streams_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    venv, outside = tmp_path / "venv", tmp_path / "outside"
    outside.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120)
    (packages,) = venv.glob("lib/python*/site-packages")
    # dependencies come from this environment
    (packages / "needed.pth").write_text(sysconfig.get_paths()["purelib"])
    command = [sys.executable, "-m", "pip", "--quiet", "--python", venv / "bin" / "python", "install", "--no-deps"]
    subprocess.run([*command, "--no-index", wheel], check=True, timeout=240)
    assert {path.name for path in packages.iterdir()} >= {"lineament"} and not (packages / "train").exists()

    def run(*words: str | Path) -> str:
        alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(words, cwd=outside, capture_output=True, text=True, timeout=240, env=alone)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(venv / "bin" / "lineament", "stream", "--source", "sample", "--frames", "5", "--no-window", "--out", "a.jsonl")
    assert len((outside / "a.jsonl").read_text().splitlines()) == 5
    code = "import lineament; print(lineament.__file__); print(len(next(lineament.stream('sample')).faces))"
    where, faces = run(venv / "bin" / "python", "-c", code).splitlines()
    assert where.startswith(str(venv)) and faces == "1"
    code = "from lineament.landmarks.command import install; print(install('train'))"
    assert run(venv / "bin" / "python", "-c", code) == "`pip install 'lineament[train]'`\n"


def test_the_package_requires_what_the_requirements_pin() -> None:
    def pinned(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        return dict(re.findall(r"^([\w.-]+)==([\w.]+)", "\n".join(lines), re.M))

    wanted = {"": pinned("requirements.txt")}
    wanted |= {extra: pinned(f"requirements-{extra}.txt") for extra in ("demo", "train", "gpu", "gpu-cu12", "cluster")}
    wanted["parquet"] = {"pyarrow": pinned("requirements-dev.txt")["pyarrow"]}
    del wanted[""]["imageio-ffmpeg"]  # pinned only to install it from source
    lists = {"": PROJECT["project"]["dependencies"], **PROJECT["project"]["optional-dependencies"]}
    for extra, pins in wanted.items():
        needed = {one.name: one for one in map(Requirement, lists[extra]) if one.name != "lineament"}
        assert needed.keys() == pins.keys(), extra
        for name, version in pins.items():
            assert needed[name].specifier.contains(version), f"{needed[name]} is not {version}"


def test_the_version_is_the_same_everywhere() -> None:
    assert f"\nversion: {lineament.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {lineament.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# ---- the command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    code = f"import sys; from lineament.__main__ import main; sys.argv = ['/bin/lineament']; main(['{name}', '--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and f"usage: lineament {name} " in done.stdout, done.stderr


def test_the_command_lists_its_commands_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {name} " in told for name in COMMANDS)
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"lineament {lineament.__version__}\n"
    assert main(["strem"]) == 2 and "unknown command 'strem'" in capsys.readouterr().err


def test_the_completion_script_completes_commands_and_their_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = tmp_path / "lineament"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from lineament.__main__ import main; sys.exit(main())"
    command.write_text(f"#!{sys.executable}\n{code}\n")
    command.chmod(0o755)
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def completed(*words: str) -> list[str]:
        typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _lineament; echo ${{COMPREPLY[*]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{typed}"], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout.split()

    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=60)
    assert completed("lineament", "st") == ["stream"]
    assert completed("lineament", "stream", "--detect") == ["--detect-every"]
    assert completed("lineament", "strem", "--detect") == []


def test_a_command_whose_packages_are_missing_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[:2] == ["lineament", "demo"]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 1
    assert "pip install 'lineament[demo]'" in capsys.readouterr().err


# ---- in Python


def test_find_returns_the_faces_in_a_file_and_in_an_array(astronaut: U8, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), astronaut)
    (face,) = lineament.find(tmp_path / "a.png")
    (same,) = lineament.find(astronaut)
    assert face.points.shape == (98, 2) and face.points.dtype == np.float32 and face.box.shape == (4,)
    assert np.array_equal(face.points, same.points)
    left, right = face.part("left_eye").mean(0), face.part("right_eye").mean(0)
    assert 160 < left[0] < right[0] < 290 and 0.1 < face.openness.left_eye < 0.5 and abs(face.pose.yaw_deg) < 30


def test_find_returns_nothing_for_an_empty_image_and_refuses_anything_else(tmp_path: Path) -> None:
    assert lineament.find(np.zeros((64, 64, 3), np.uint8)) == []
    with pytest.raises(LineamentError, match=r"gone\.jpg: no such file"):
        lineament.find(tmp_path / "gone.jpg")
    with pytest.raises(LineamentError, match=r"\(H, W, 3\) uint8 in BGR.*got float64 \(4, 4\)"):
        lineament.find(np.zeros((4, 4)))  # type: ignore[arg-type]


def test_an_unknown_part_is_refused(astronaut: U8) -> None:
    with pytest.raises(LineamentError, match="no part 'ear'; choose from contour"):
        lineament.find(astronaut)[0].part("ear")


def test_a_stream_ends_its_threads_when_its_loop_is_left() -> None:
    before = set(threading.enumerate())
    frames = lineament.stream("sample")
    first = next(frames)
    assert first.image.shape == (480, 640, 3) and [face.id for face in first.faces] == [1]
    frames.close()  # type: ignore[attr-defined]
    assert {thread for thread in threading.enumerate() if thread.name.startswith(("capture", "infer"))} <= before


def test_a_tracker_keeps_a_face_and_refuses_a_clock_that_goes_back() -> None:
    sample = Sample()
    with lineament.Tracker() as tracker:
        ids = [face.id for i in range(4) for face in tracker(sample.render(i), i / 30)]
        assert ids == [1, 1, 1, 1]
        with pytest.raises(LineamentError, match="time_s went back"):
            tracker(sample.render(0), 0.0)


def test_lineament_stream_is_both_a_module_and_a_function() -> None:
    import lineament.stream.run.session as session

    assert callable(lineament.stream) and lineament.stream.run.session is session  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'strem'"):
        lineament.strem  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_runs(
    title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], astronaut: U8
) -> None:
    if title == "Into supervision":
        pytest.importorskip("supervision")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for path in ("photo.jpg", "photos/a.jpg"):
        cv2.imwrite(path, astronaut)
    Path("photos/b.jpg").write_bytes(b"no picture")
    sample_clip(tmp_path / "clip.mp4", 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that are not ours
        exec(compile(RECIPES[title], title, "exec"), {"__name__": "recipe"})
    assert capsys.readouterr().out or title.startswith(("Drowsiness", "Into supervision"))
    assert title != "Into supervision" or Path("drawn.jpg").is_file()
