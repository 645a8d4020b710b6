"""Setup: optional packages are installed only by the targets that need them; if one is missing, a line says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lineament import engines
from lineament.landmarks.types import LineamentError

ROOT = Path(__file__).resolve().parent.parent


def make(*args: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """path: the only folder that it finds programs in."""
    env = None if path is None else {"PATH": path}
    command = ["/usr/bin/make", "-C", str(ROOT), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("stream", ()),
        ("demo", ()),
        ("train", ()),
        ("stream MODEL=student", ()),
        ("stream MODEL=mesh", ("mesh",)),
        ("demo MODEL=mesh-fast", ("mesh",)),
        ("fit-mesh", ("mesh",)),
        ("bench", ("mesh", "bench")),
    ],
)
def test_mediapipe_is_installed_only_for_what_needs_it(target: str, wanted: tuple[str, ...], tmp_path: Path) -> None:
    done = make("-n", f"VENV={tmp_path / 'venv'}", *target.split())
    assert done.returncode == 0, done.stderr
    for extra in ("mesh", "bench"):
        assert (f"-r requirements-{extra}.txt" in done.stdout) == (extra in wanted)


@pytest.mark.parametrize("name", ["", "-demo", "-train", "-cluster"])
def test_no_other_requirements_contain_mediapipe(name: str) -> None:
    lines = (ROOT / f"requirements{name}.txt").read_text().splitlines()
    assert not any(line.startswith("mediapipe") for line in lines)


def _requirements(path: Path) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


@pytest.mark.parametrize("name", ["", "-demo", "-train", "-cluster", "-bench", "-rtx", "-dev"])
def test_the_lock_file_contains_every_pin(name: str) -> None:
    locked = {(canonicalize_name(one.name), one.specifier) for one in _requirements(ROOT / "requirements-lock.txt")}
    for pin in _requirements(ROOT / f"requirements{name}.txt"):
        assert (canonicalize_name(pin.name), pin.specifier) in locked, f"{pin} is not in the lock; run `make lock`"


def test_the_lock_file_has_one_version_of_each_package_here() -> None:
    here = [one for one in _requirements(ROOT / "requirements-lock.txt") if not one.marker or one.marker.evaluate()]
    assert len({canonicalize_name(one.name) for one in here}) == len(here)
    assert all(str(one.specifier).startswith("==") and "+" not in str(one.specifier) for one in here)


def test_without_a_supported_python_make_says_which_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = make("stream", f"VENV={tmp_path / 'venv'}", path=str(tmp_path))
    line = done.stderr.splitlines()[0]
    assert done.returncode and line.startswith("no Python 3.11 to 3.14 found, python3 is Python 3.9.2; install one")


@pytest.mark.parametrize("code", [0, 1])
def test_pip_is_quiet_unless_it_fails_and_then_tells_all(code: int, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho 'WARNING: connection broken' >&2\necho 'ERROR: no %s'\nexit {code}\n")
    python.chmod(0o755)
    done = make(f"VENV={tmp_path}", f"{tmp_path}/.serve")
    assert "installing the serving packages, once; takes half a minute\n" in done.stdout
    assert "WARNING" not in done.stdout and "ERROR" not in done.stdout
    assert done.stderr.startswith("WARNING: connection broken\nERROR: no %s\n") if code else not done.stderr
    assert (tmp_path / ".serve").exists() == (code == 0), "the next make tries again"


def test_without_mediapipe_the_mesh_says_how_to_install_it_and_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for model in ("mesh", "mesh-fast"):
        with pytest.raises(LineamentError, match="mediapipe, which is not installed; run `pip install --no-deps"):
            engines.load(model)
        assert model not in engines.ready()
    assert engines.DEFAULT in engines.ready()


def test_the_install_command_for_the_mesh_names_the_pinned_version(monkeypatch: pytest.MonkeyPatch) -> None:
    (pin,) = _requirements(ROOT / "requirements-mesh.txt")
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(LineamentError, match=f"`pip install --no-deps {pin}`"):
        engines.load("mesh")


def test_a_mediapipe_without_models_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "mediapipe"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    with pytest.raises(LineamentError, match=r"no face_landmark/.*; 0\.10\.21 is the last version with it"):
        engines.load("mesh")
    assert "mesh" not in engines.ready()
