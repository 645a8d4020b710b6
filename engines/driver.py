"""The NVIDIA driver of this machine, and which requirements fit it.

    python engines/driver.py gpu       # prints requirements-gpu.txt or requirements-gpu-cu12.txt; nothing without a GPU
    python engines/driver.py train     # the same for requirements-train

`make` runs this file before it installs anything, so it imports the standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

FITTING = ((580, ""), (535, "-cu12"))
"""oldest major version of the driver, and the suffix of the requirements that fit it from there on: CUDA 13, and wheels
for CUDA 12, as NVIDIA names them for TensorRT 11.4:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/installing-tensorrt/prerequisites.html"""
OLDEST_CAPABILITY = (7, 5)
"""compute capability of Turing, the oldest that TensorRT supports, by the same page"""
TORCH_CU12 = "https://download.pytorch.org/whl/cu126"
"""index of the torch that requirements-train-cu12.txt pins; PyPI's is built for CUDA 13"""

_KERNEL_DRIVER, _WSL = Path("/proc/driver/nvidia/version"), Path("/dev/dxg")
"""exists if NVIDIA's kernel driver is loaded; or under WSL, which uses the driver of Windows"""
_PCI = Path("/sys/bus/pci/devices")
_TIMEOUT_S = 60
"""nvidia-smi takes seconds on a machine with eight GPUs, and hangs on a broken one"""
_ON_CPU = "build for the CPU: `make engine ARGS='--target cpu'`"


class Driver(NamedTuple):
    """What nvidia-smi says."""

    version: str = ""
    """such as 535.183.01, under WSL of the driver of Windows; empty if unknown"""
    gpus: tuple[str, ...] = ()
    """names"""
    capability: tuple[int, int] | None = None
    """of the GPU with the highest; None if unknown"""
    failure: str = ""
    """the first line that nvidia-smi printed when it failed"""

    @property
    def shows_gpu(self) -> bool:
        """Whether a GPU is here: listed and not hidden from CUDA, or on the bus of a machine whose nvidia-smi fails."""
        if hidden():
            return False
        return bool(self.gpus) or (bool(self.failure) and (_on_the_bus() or _WSL.exists()))

    @property
    def suffix(self) -> str | None:
        """Of the requirements that fit; None if the driver is too old for any. An unknown driver may be new."""
        major, _, _ = self.version.partition(".")
        if not major.isdigit():  # nvidia-smi may print [N/A]
            return ""
        return next((suffix for oldest, suffix in FITTING if int(major) >= oldest), None)

    @property
    def obstacle(self) -> str:
        """Why TensorRT cannot run on the GPU here, and what to do; empty if nothing is known to be wrong."""
        if self.failure:
            return f"nvidia-smi fails: {self.failure}; repair or reinstall the NVIDIA driver, or {_ON_CPU}"
        if self.suffix is None:
            oldest, best = FITTING[-1][0], FITTING[0][0]
            return (
                f"the NVIDIA driver is {self.version}, expected {oldest} or later for TensorRT; update it, "
                f"best to {best} or later, or {_ON_CPU}"
            )
        if self.capability is not None and self.capability < OLDEST_CAPABILITY:
            return unsupported(", ".join(self.gpus), self.capability)
        return ""


@cache
def installed() -> Driver | None:
    """The driver of this machine; None if it has none."""
    if shutil.which("nvidia-smi") is None:  # running it would raise PermissionError if a folder on PATH is unreadable
        return Driver(_kernel_version()) if _KERNEL_DRIVER.exists() or _WSL.exists() else None
    try:
        done = _query("driver_version,name")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(_kernel_version(), failure=str(error)[:200])
    # whatever the exit code: it is 14 if the answer ends with a warning about a corrupt infoROM
    found = [
        match for line in done.stdout.splitlines() if (match := re.fullmatch(r"(\d+\.[\d.]+|\[N/A\]), (.+)", line))
    ]
    if found:
        return Driver(found[0][1], tuple(match[2] for match in found), _highest_capability())
    said = f"{done.stdout}\n{done.stderr}".strip().splitlines()
    if not said and done.returncode == 0:
        return Driver(_kernel_version())
    return Driver(_kernel_version(), failure=said[0][:200] if said else f"exit code {done.returncode}")


def hidden() -> bool:
    """Whether the user hides all GPUs from CUDA."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "none", "NoDevFiles")


def fitting() -> str:
    """The suffix of the requirements that fit the driver of this machine; of the newest without a driver that fits."""
    return (installed() or Driver()).suffix or ""


def install_gpu() -> str:
    """The command that installs TensorRT for the driver here."""
    # not at the top, because `make` runs this file alone
    from lineament.landmarks.command import install

    suffix = fitting()
    return install(f"gpu{suffix}", TORCH_CU12 if suffix else "")


def unsupported(name: str, capability: tuple[int, int]) -> str:
    has, oldest = (".".join(map(str, one)) for one in (capability, OLDEST_CAPABILITY))
    return f"{name} has compute capability {has}, expected {oldest} (Turing) or later for TensorRT; {_ON_CPU}"


def _query(fields: str) -> subprocess.CompletedProcess[str]:
    """Prints a line for each GPU."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)


def _highest_capability() -> tuple[int, int] | None:
    """None from drivers before about 510, which do not know it."""
    try:
        lines = _query("compute_cap").stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = [(int(match[1]), int(match[2])) for line in lines if (match := re.fullmatch(r"(\d+)\.(\d+)", line))]
    return max(found, default=None)


def _kernel_version() -> str:
    """The version of the driver that the kernel has loaded; empty if unknown."""
    try:
        match = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _KERNEL_DRIVER.read_text().partition("\n")[0])
    except OSError:
        return ""
    return match[0] if match else ""


def _on_the_bus() -> bool:
    """Whether a display controller of NVIDIA is there, also without a driver."""
    for device in _PCI.glob("*"):
        try:
            if (device / "vendor").read_text() == "0x10de\n" and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:  # removed meanwhile
            continue
    return False


def main(args: list[str]) -> int:
    driver = installed()
    if args == ["train"]:
        # with a driver that is too old for any, training runs on the CPU
        print(f"requirements-train{(driver and driver.suffix) or ''}.txt")
    elif args != ["gpu"]:
        print(f"got {' '.join(args)!r}; usage: python engines/driver.py gpu | train", file=sys.stderr)
        return 2
    elif driver and driver.shows_gpu and driver.obstacle:
        print(driver.obstacle, file=sys.stderr)
        return 1
    elif driver and driver.shows_gpu:
        print(f"requirements-gpu{driver.suffix}.txt")
    elif driver and driver.failure:
        print(f"no engine for a GPU: nvidia-smi says {driver.failure}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
