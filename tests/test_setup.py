"""The set-up: what is optional is installed only by the targets that need it; where it is absent, one line says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lineament import engines
from lineament.landmarks.types import LineamentError

ROOT = Path(__file__).resolve().parent.parent


def make(*args: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """path: where alone it finds programs."""
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
def test_no_other_requirements_bring_mediapipe(name: str) -> None:
    lines = (ROOT / f"requirements{name}.txt").read_text().splitlines()
    assert not any(line.startswith("mediapipe") for line in lines)


def test_without_a_python_that_will_do_make_says_which_it_wants(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    done = make("stream", f"VENV={tmp_path / 'venv'}", path=str(tmp_path))
    line = done.stderr.splitlines()[0]
    assert done.returncode and line.startswith("no Python 3.11 to 3.14 found, python3 is Python 3.9.2; install one")


def test_without_mediapipe_the_mesh_says_how_to_get_it_and_is_not_on_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    for model in ("mesh", "mesh-fast"):
        with pytest.raises(LineamentError, match="mediapipe, which is not installed; `make stream MODEL=mesh`"):
            engines.load(model)
        assert model not in engines.ready()
    assert engines.DEFAULT in engines.ready()


def test_a_mediapipe_without_models_is_told_from_the_one_that_has_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "mediapipe"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mediapipe", raising=False)
    with pytest.raises(LineamentError, match=r"no face_landmark/.*; install the version in requirements-mesh"):
        engines.load("mesh")
    assert "mesh" not in engines.ready()
