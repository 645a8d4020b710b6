"""The environment of a run: processes, devices, precision, random state, and a record of the machine."""

from __future__ import annotations

import logging
import os
import platform
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from lineament.landmarks.types import LineamentError
from lineament.train.config import TrainConfig

log = logging.getLogger(__name__)


class Here(NamedTuple):
    """Rank and device of this process, and the number of all."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


@contextmanager
def processes(cfg: TrainConfig) -> Iterator[Here]:
    """Joins the processes that torchrun started; alone otherwise."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = pick_device(cfg.device)
    if world == 1:
        yield Here(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Here(rank, world, device)
    finally:
        dist.destroy_process_group()


_DRIVER = Path("/proc/driver/nvidia/version")
"""exists if NVIDIA's driver is loaded"""


def pick_device(name: str) -> torch.device:
    """auto selects a GPU if there is one, and logs one line if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        if name == "cpu" and _DRIVER.exists():
            made_for = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
            log.warning(
                "training on the CPU although an NVIDIA driver is there, for torch %s, %s, finds no GPU; look at "
                "`nvidia-smi`, or install the torch that fits the driver (docs/gpu.md)",
                torch.__version__,
                made_for,
            )
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LineamentError(
            "device is 'cuda', but no CUDA device is available; check `nvidia-smi`, or use --device cpu"
        )
    return device


def one_first(here: Here, make: Callable[[], Any]) -> Any:
    """make(), in the first process before the others, because it writes a cache."""
    if here.world == 1:
        return make()
    made = make() if here.first else None
    dist.barrier()
    return made if here.first else make()


def summed(values: Tensor, here: Here) -> list[float]:
    """values (n,), summed over all processes."""
    if here.world > 1:
        dist.all_reduce(values)
    summed: list[float] = values.tolist()
    return summed


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def draws(device: torch.device) -> dict[str, Tensor | None]:
    """Random state of a step: of the CPU, and of this process's GPU."""
    return {
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def draw_on(state: dict[str, Any], device: torch.device) -> None:
    """Restores `draws` of the first process, whose steps all others share, on any machine."""
    torch.set_rng_state(state["rng"].cpu())
    of_gpu = state["cuda_rng"]
    if isinstance(of_gpu, list):  # an older checkpoint: one state per GPU of the first process, its own first
        of_gpu = of_gpu[0] if of_gpu else None
    if of_gpu is not None and device.type == "cuda":
        torch.cuda.set_rng_state(of_gpu.cpu(), device)


def amp_dtype(cfg: TrainConfig, device: torch.device) -> torch.dtype | None:
    match cfg.amp:
        case "off":
            return None
        case "bf16":
            return torch.bfloat16
        case "fp16":
            return torch.float16
        case "auto" if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        case _:
            return None


def environment(device: torch.device) -> dict[str, str]:
    """Machine, versions and the state of the code."""
    import cv2

    packages = ("torch", "torchvision", "timm", "albumentations", "numpy")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    return {
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "gpu": gpu,
        **{package: version(package) for package in packages},
        # it may be the headless package
        "opencv": cv2.__version__,
        "git": _git("rev-parse", "HEAD"),
        "git changes": _git("status", "--short"),
    }


def _git(*args: str) -> str:
    root = Path(__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
