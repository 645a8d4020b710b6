"""The driver decides what is installed for an NVIDIA GPU, and a GPU that gets no engine is a failure that says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lineament.engines import build, driver
from lineament.engines.build import Row, Targets, main, targets
from lineament.engines.driver import Driver
from lineament.engines.engine_file import Gpu
from lineament.landmarks import command
from lineament.landmarks.types import LineamentError

ROOT = Path(__file__).resolve().parent.parent
NvidiaSmi = Callable[..., Path]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No trace of NVIDIA from the machine that runs the tests."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(driver, "_KERNEL_DRIVER", tmp_path / "absent")
    monkeypatch.setattr(driver, "_WSL", tmp_path / "absent")
    monkeypatch.setattr(driver, "_PCI", tmp_path / "absent")


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> NvidiaSmi:
    """Writes an nvidia-smi that answers as the real one; returns its folder."""

    def write(version: str, name: str = "Tesla T4", capability: str = "7.5", fails: str = "", n: int = 1) -> Path:
        driver.installed.cache_clear()
        (folder := tmp_path / "bin").mkdir(exist_ok=True)
        unknown = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
        answer = f"echo {capability}" if capability else unknown
        lines = [
            "#!/bin/sh",
            f"[ -z '{fails}' ] || {{ printf '%s\\n\\n' '{fails}'; exit 9; }}",
            'case "$*" in',
            f"*compute_cap*) for i in $(/usr/bin/seq {n}); do {answer}; done ;;",
            f"*driver_version,name*) for i in $(/usr/bin/seq {n}); do echo '{version}, {name}'; done ;;",
            "*) exit 1 ;;",
            "esac",
        ]
        (folder / "nvidia-smi").write_text("\n".join(lines) + "\n")
        (folder / "nvidia-smi").chmod(0o755)
        return folder

    return write


def on_the_bus(folder: Path, vendor: str = "0x10de", kind: str = "0x030200") -> Path:
    device = folder / "pci" / "0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    return folder / "pci"


# ---- what nvidia-smi says


def answering(tmp_path: Path, lines: str, code: int) -> driver.Driver | None:
    """The driver, if nvidia-smi prints these lines."""
    (folder := tmp_path / "bin").mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '%b' '{lines}'\nexit {code}\n")
    (folder / "nvidia-smi").chmod(0o755)
    driver.installed.cache_clear()
    return driver.installed()


@pytest.mark.parametrize("code", [0, 14])
def test_a_warning_after_the_answer_is_no_failure(code: int, tmp_path: Path) -> None:
    warning = "WARNING: infoROM is corrupted at gpu 0000:00:1E.0"
    here = answering(tmp_path, f"535.183.01, NVIDIA L4\\n{warning}\\n", code)
    assert here is not None and here.shows_gpu and here.suffix == "-cu12" and not here.obstacle
    assert here == driver.Driver("535.183.01", ("NVIDIA L4",))


@pytest.mark.parametrize(("said", "code"), [("No devices were found", 0), ("No devices were found", 6), ("", 9)])
def test_an_answer_without_a_gpu_is_a_failure_in_its_words(said: str, code: int, tmp_path: Path) -> None:
    here = answering(tmp_path, f"{said}\\n" if said else "", code)
    assert here == driver.Driver(failure=said or "exit code 9") and not here.shows_gpu
    assert answering(tmp_path, "", 0) == driver.Driver()


def test_a_failure_under_wsl_counts_as_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its GPUs are not on a PCI bus."""
    (tmp_path / "dxg").touch()
    monkeypatch.setattr(driver, "_WSL", tmp_path / "dxg")
    here = answering(tmp_path, "Failed to initialize NVML: GPU access blocked by the operating system", 17)
    assert here is not None and here.shows_gpu and "GPU access blocked" in here.obstacle


def test_a_closed_folder_on_path_is_no_failure_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is in none of the folders then raises PermissionError."""

    def closed(*args: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", "nvidia-smi")

    monkeypatch.setattr(driver.subprocess, "run", closed)
    assert driver.installed() is None


def test_a_driver_is_asked_once(nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi("580.65.06")
    first = driver.installed()
    (Path(os.environ["PATH"]) / "nvidia-smi").unlink()
    assert driver.installed() is first


# ---- what fits


@pytest.mark.parametrize(
    ("version", "suffix"),
    [
        ("595.45.04", ""),
        ("581.29", ""),  # of Windows, under WSL
        ("580.65.06", ""),
        ("579.99", "-cu12"),
        ("575.57.08", "-cu12"),
        ("550.54.15", "-cu12"),
        ("535.183.01", "-cu12"),
        ("534.10", None),
        ("525.60.13", None),
        ("470.256.02", None),
        ("[N/A]", ""),
    ],
)
def test_the_requirements_fit_the_driver(version: str, suffix: str | None, nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi(version)
    here = driver.installed()
    assert here == Driver(version, ("Tesla T4",), (7, 5)) and here.shows_gpu
    assert here.suffix == suffix
    assert here.obstacle == "" if suffix is not None else f"driver is {version}, expected 535 or later" in here.obstacle
    if suffix is not None:
        assert driver.install_gpu() == f"`pip install -r requirements-gpu{suffix}.txt`"
        assert all((ROOT / f"requirements-{name}{suffix}.txt").is_file() for name in ("train", "gpu"))


def test_both_builds_are_of_one_tensorrt_and_one_torch() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / f"requirements-{name}.txt").read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))

    assert pins("gpu")["tensorrt"] == pins("gpu-cu12")["tensorrt-cu12"]
    assert pins("gpu")["cuda-bindings"].startswith("13.") and pins("gpu-cu12")["cuda-bindings"].startswith("12.")
    for name in ("torch", "torchvision"):
        assert pins("train-cu12")[name] == f"{pins('train')[name]}+cu126"
    assert f"--extra-index-url {driver.TORCH_CU12}\n" in (ROOT / "requirements-train-cu12.txt").read_text()


def test_an_installed_package_needs_the_extra_and_the_index_of_its_torch(
    nvidia_smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "CHECKOUT", None)
    assert driver.install_gpu() == "`pip install 'lineament[gpu]'`"
    nvidia_smi("550.54.15")
    index = "https://download.pytorch.org/whl/cu126"
    assert driver.install_gpu() == f"`pip install 'lineament[gpu-cu12]' --extra-index-url {index}`"


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)", "580.65.06"),
    ],
)
def test_the_kernel_tells_the_version_where_nvidia_smi_does_not(
    line: str, version: str, nvidia_smi: NvidiaSmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    monkeypatch.setattr(driver, "_KERNEL_DRIVER", tmp_path / "version")
    assert driver.installed() == Driver(version)
    said = "Failed to initialize NVML: Driver/library version mismatch"
    nvidia_smi("", fails=said)
    assert driver.installed() == Driver(version, failure=said)


def test_several_gpus_count_by_the_most_capable(nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi("580.65.06", "NVIDIA L4, 24 GB", "6.1; echo 8.9", n=2)
    assert driver.installed() == Driver("580.65.06", ("NVIDIA L4, 24 GB",) * 2, (8, 9))


def test_a_gpu_that_tensorrt_does_not_support_is_an_obstacle(nvidia_smi: NvidiaSmi) -> None:
    nvidia_smi("580.65.06", "Tesla V100-SXM2-16GB", "7.0")
    here = driver.installed()
    assert here and here.obstacle.startswith("Tesla V100-SXM2-16GB has compute capability 7.0, expected 7.5 (Turing)")
    nvidia_smi("470.256.02", "Tesla T4", "")
    assert driver.installed() == Driver("470.256.02", ("Tesla T4",))


def test_a_machine_without_a_driver_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert driver.installed() is None
    monkeypatch.setattr(driver, "_WSL", tmp_path)
    driver.installed.cache_clear()
    assert driver.installed() == Driver(), "under WSL it is that of Windows, of unknown version without nvidia-smi"
    monkeypatch.setattr(driver, "_WSL", tmp_path / "absent")
    assert driver.install_gpu() == "`pip install -r requirements-gpu.txt`"


@pytest.mark.parametrize(("vendor", "kind", "there"), [("0x10de", "0x030000", True), ("0x8086", "0x030000", False)])
def test_a_driver_that_fails_counts_as_a_gpu_only_if_one_is_on_the_bus(
    vendor: str, kind: str, there: bool, nvidia_smi: NvidiaSmi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "NVIDIA-SMI has failed because it couldn`t communicate with the NVIDIA driver."
    nvidia_smi("", fails=said)
    monkeypatch.setattr(driver, "_PCI", on_the_bus(tmp_path, vendor, kind))
    here = driver.installed()
    assert here and here.failure == said and here.shows_gpu == there
    assert f"nvidia-smi fails: {said}; repair or reinstall" in here.obstacle


@pytest.mark.parametrize(("value", "there"), [("", False), ("-1", False), ("0", True), ("1,0", True)])
def test_a_gpu_that_is_hidden_from_cuda_does_not_count(
    value: str, there: bool, nvidia_smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi("580.65.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert driver.installed().shows_gpu == there  # type: ignore[union-attr]


# ---- make


class Setup:
    """`make` in an environment whose pip only notes what it is asked for; the steps before are done."""

    def __init__(self, folder: Path, broken: str = "") -> None:
        self.venv, self._notes = folder / "venv", folder / "notes"
        (self.venv / "bin").mkdir(parents=True)
        python = self.venv / "bin" / "python"
        python.write_text(
            f'#!/bin/sh\ncase "$*" in\n*engines/driver.py*) exec {sys.executable} "$@" ;;\nesac\n'
            f'echo "$*" >> {self._notes}\ncase "$*" in *\'{broken or "-nothing-"}\'*) echo broken; exit 1 ;; esac\n'
        )
        python.chmod(0o755)
        (self.venv / ".serve").touch()

    def make(self, target: str, *more: str, smi: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """smi: the folder of an nvidia-smi."""
        path = os.pathsep.join([*([str(smi)] if smi else []), "/usr/bin", "/bin"])
        wanted = ["/usr/bin/make", "-C", str(ROOT), f"VENV={self.venv}", *target.split(), *more]
        env["PATH"] = path
        return subprocess.run(wanted, env=env, capture_output=True, text=True, timeout=60, check=False)

    @property
    def done(self) -> list[str]:
        """What python was called for, without options of pip."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [line.replace(" --quiet --disable-pip-version-check --no-warn-conflicts", "") for line in lines]

    @property
    def files(self) -> list[str]:
        """The requirements that pip was given, in order."""
        return [line.split()[-1] for line in self.done if " -r " in line]


@pytest.mark.parametrize(("version", "suffix"), [("580.65.06", ""), ("535.183.01", "-cu12")])
def test_make_installs_what_fits_the_driver_and_removes_what_does_not(
    version: str, suffix: str, nvidia_smi: NvidiaSmi, tmp_path: Path
) -> None:
    setup = Setup(tmp_path)
    done = setup.make("engine", smi=nvidia_smi(version))
    assert done.returncode == 0, done.stderr
    assert setup.files == [f"requirements-train{suffix}.txt", f"requirements-gpu{suffix}.txt"]
    other = "tensorrt-cu13" if suffix else "tensorrt-cu12"
    bindings = "tensorrt-cu12-bindings tensorrt-cu13-bindings"
    assert f"-m pip uninstall --quiet --yes {other} {other}-libs {bindings}" in setup.done
    assert setup.done[-1] == "-m engines.build" and (setup.venv / ".gpu").exists()


def test_make_installs_again_after_a_change_of_the_driver(nvidia_smi: NvidiaSmi, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    for version, fitting in (("580.65.06", "gpu"), ("580.95.05", ""), ("550.54.15", "gpu-cu12"), ("535.183.01", "")):
        before = len(setup.files)
        assert setup.make("engine", smi=nvidia_smi(version)).returncode == 0
        new = [name for name in setup.files[before:] if "train" not in name]
        assert new == ([f"requirements-{fitting}.txt"] if fitting else [])


def test_make_keeps_what_is_installed_while_the_gpu_is_hidden(nvidia_smi: NvidiaSmi, tmp_path: Path) -> None:
    setup, smi = Setup(tmp_path), nvidia_smi("580.65.06")
    assert setup.make("engine", smi=smi).returncode == 0
    before = setup.files
    for hidden in ("", "0"):
        assert setup.make("engine", smi=smi, CUDA_VISIBLE_DEVICES=hidden).returncode == 0
    assert setup.files == before


def test_training_takes_the_torch_that_fits_too(nvidia_smi: NvidiaSmi, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.make("train", "DATA=wflw", smi=nvidia_smi("550.54.15")).returncode == 0
    assert setup.files == ["requirements-train-cu12.txt"]


@pytest.mark.parametrize(
    ("version", "capability", "said"),
    [
        ("470.256.02", "", "the NVIDIA driver is 470.256.02, expected 535 or later for TensorRT; update it"),
        ("580.65.06", "6.1", "Tesla T4 has compute capability 6.1, expected 7.5"),
    ],
)
def test_make_stops_before_it_installs_anything_if_tensorrt_cannot_run(
    version: str, capability: str, said: str, nvidia_smi: NvidiaSmi, tmp_path: Path
) -> None:
    setup = Setup(tmp_path)
    smi = nvidia_smi(version, capability=capability)
    done = setup.make("engine", smi=smi)
    assert done.returncode and setup.done == []
    assert done.stderr.startswith(said) and "make engine ARGS='--target cpu'" in done.stderr.splitlines()[0]
    # which is what then happens
    assert setup.make("engine", "ARGS=--target cpu", smi=smi).returncode == 0
    assert setup.files == ["requirements-train.txt"] and setup.done[-1] == "-m engines.build --target cpu"


@pytest.mark.parametrize("args", ["--target cpu", "--target=cpu", "--target tensorrt-rtx", "--help"])
def test_make_installs_no_tensorrt_for_another_target(args: str, nvidia_smi: NvidiaSmi, tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    assert setup.make("engine", f"ARGS={args}", smi=nvidia_smi("580.65.06")).returncode == 0
    assert setup.files == ["requirements-train.txt"] and setup.done[-1] == f"-m engines.build {args}"
    assert setup.make("engine", "ARGS=--target tensorrt", smi=nvidia_smi("580.65.06")).returncode == 0
    assert setup.files[-1] == "requirements-gpu.txt"


def test_make_without_a_gpu_installs_no_tensorrt(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi", path="/usr/bin:/bin"):
        pytest.skip("nvidia-smi is in a folder that make needs on its PATH")
    setup = Setup(tmp_path)
    done = setup.make("engine")
    assert done.returncode == 0 and not done.stderr
    assert setup.files == ["requirements-train.txt"] and setup.done[-1] == "-m engines.build"


@pytest.mark.parametrize("there", [False, True])
def test_a_failing_nvidia_smi_is_reported_and_stops_make_only_where_a_gpu_is(
    there: bool,
    nvidia_smi: NvidiaSmi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvidia_smi("", fails="No devices were found")
    if there:
        monkeypatch.setattr(driver, "_PCI", on_the_bus(tmp_path))
    assert driver.main(["gpu"]) == there
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "No devices were found" in said.err
    assert ("repair or reinstall" in said.err) == there


def test_where_tensorrt_cannot_be_installed_the_build_goes_on_and_decides(
    nvidia_smi: NvidiaSmi, tmp_path: Path
) -> None:
    setup = Setup(tmp_path, broken="requirements-gpu.txt")
    done = setup.make("engine", smi=nvidia_smi("580.65.06"))
    assert "broken\ncould not install TensorRT; building for the CPU\n" in done.stderr
    assert setup.done[-1] == "-m engines.build" and not (setup.venv / ".gpu").exists(), "the next make tries again"


def test_a_wrong_argument_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["cpu"]) == 2 and "gpu | train" in capsys.readouterr().err


# ---- engines.build


H200, V100, RTX_4090 = (
    Gpu("NVIDIA H200", (9, 0)),
    Gpu("Tesla V100-SXM2-16GB", (7, 0)),
    Gpu("NVIDIA GeForce RTX 4090", (8, 9)),
)


def imported(name: str) -> None:
    """Of an installed library."""


def given(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | str, packages: set[str]) -> None:
    """gpu: or why CUDA finds none."""

    def first_gpu() -> Gpu:
        if isinstance(gpu, str):
            raise LineamentError(gpu)
        return gpu

    monkeypatch.setattr("lineament.engines.cuda.first_gpu", first_gpu)
    monkeypatch.setattr(build, "installed", lambda name: name in packages)
    monkeypatch.setattr(build, "library", imported)


@pytest.mark.parametrize(
    ("gpu", "packages", "names", "obstacle"),
    [
        (H200, {"tensorrt"}, ["tensorrt"], ""),
        (RTX_4090, {"tensorrt-rtx"}, ["tensorrt-rtx"], ""),
        (H200, {"tensorrt-rtx"}, ["cpu"], "TensorRT is not installed; run `pip install -r requirements-gpu-cu12.txt`"),
        (V100, {"tensorrt"}, ["cpu"], "Tesla V100-SXM2-16GB has compute capability 7.0, expected 7.5"),
        ("the bindings cannot be imported; run it", set(), ["cpu"], "the bindings cannot be imported; run it"),
    ],
)
def test_a_gpu_without_an_engine_is_a_failure_that_names_the_reason_and_what_was_made(
    gpu: Gpu | str,
    packages: set[str],
    names: list[str],
    obstacle: str,
    nvidia_smi: NvidiaSmi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nvidia_smi("535.183.01", "NVIDIA L4", "8.9")
    given(monkeypatch, gpu, packages)
    wanted = targets("auto")
    name = "NVIDIA L4" if isinstance(gpu, str) else gpu.name
    assert wanted.names == names and wanted.gpu == name and wanted.obstacle.startswith(obstacle)
    code, said = made(tmp_path, monkeypatch, capsys)
    if not obstacle:
        assert code == 0 and "no engine" not in said
        return
    last = said.splitlines()[-1]
    assert code == 1 and last.startswith(f"error: no engine was built for {name}: {obstacle}")
    assert last.endswith(f"Kept for the CPU: {tmp_path / 'a.onnx'}, {tmp_path / 'a-bf16.onnx'}")
    code, said = made(tmp_path, monkeypatch, capsys, "--target", "cpu")
    assert code == 0 and "no engine" not in said


def test_a_driver_that_is_too_old_is_the_reason_whatever_cuda_says(
    nvidia_smi: NvidiaSmi, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi("470.256.02", "NVIDIA L4", "")
    given(monkeypatch, "the bindings cannot be imported", set())
    assert targets("auto").obstacle.startswith("the NVIDIA driver is 470.256.02, expected 535 or later")


def test_a_library_that_cannot_be_imported_does_not_cost_the_files_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, nvidia_smi: NvidiaSmi
) -> None:
    def broken(name: str) -> None:
        raise LineamentError(f"{name} cannot be imported (libnvinfer.so.11: no such file)")

    nvidia_smi("580.65.06")
    given(monkeypatch, H200, {"tensorrt"})
    monkeypatch.setattr(build, "library", broken)
    reason = "tensorrt cannot be imported (libnvinfer.so.11: no such file)"
    assert targets("auto") == Targets(["cpu"], H200.name, reason)
    given(monkeypatch, "no GPU", {"tensorrt-rtx"})
    monkeypatch.setattr(build, "library", broken)
    assert targets("auto").names == ["cpu"]


@pytest.mark.parametrize("hidden", [False, True])
def test_without_a_gpu_the_files_for_the_cpu_are_all_that_is_wanted(
    hidden: bool,
    nvidia_smi: NvidiaSmi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    if hidden:
        nvidia_smi("580.65.06")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    given(monkeypatch, "this machine has no NVIDIA driver; install it", {"tensorrt"})
    reason = "CUDA_VISIBLE_DEVICES hides Tesla T4" if hidden else "this machine has no NVIDIA driver; install it"
    assert targets("auto") == Targets(["cpu"], "", reason)
    code, said = made(tmp_path, monkeypatch, capsys)
    assert code == 0 and not said
    assert caplog.messages == [f"no engine for a GPU: {reason.partition(';')[0]}"]


def made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, str]:
    """The exit code and stderr of a build that writes two files for the CPU, and one for other machines."""

    def run(cfg: build.BuildConfig) -> list[Row]:
        names = {"a.onnx": 3.0, "a-rtx.engine": None, "a-bf16.onnx": 2.0}
        for name in names:
            (folder / name).write_bytes(b"x")
        rows = [Row(folder / name, "OpenVINO", "fp32", 0, 0.0, ms=ms) for name, ms in names.items()]
        return [rows[0]._replace(by="ONNX Runtime"), *rows]

    monkeypatch.setattr(build, "run", run)
    code = main(["--model", str(folder / "a.safetensors"), *args])
    return code, capsys.readouterr().err
