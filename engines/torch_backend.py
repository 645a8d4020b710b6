"""Runs a trained checkpoint in PyTorch: the reference, and the way to stream a model before it is built.

Needs the training packages. Imported only on demand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from lineament.engines.model_file import OUTPUTS, FileLandmarker, landmarks_of, parse_card
from lineament.landmarks.command import install
from lineament.landmarks.types import U8, Landmarks, LineamentError


class TorchLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker of a best.safetensors from `make train`."""

    def __init__(self, path: Path, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None) -> None:
        """threads: on the CPU, for all of PyTorch in this process; None leaves them unchanged."""
        try:
            import torch

            from lineament.train.model import load
        except ImportError as error:
            raise LineamentError(
                f"{path} needs PyTorch and timm, and {error.name} cannot be imported; run {install('train')}, or "
                "stream the .onnx or .engine that `make engine` builds from it"
            ) from error
        if device == "cuda" and not torch.cuda.is_available():
            raise LineamentError(
                f"{path} cannot run on CUDA: PyTorch {torch.__version__} finds no NVIDIA GPU; use device 'cpu', "
                "or install a driver and a CUDA build of torch"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        net, card = load(path, device)
        super().__init__(path, parse_card(path, card.to_json()))  # the same checks as in every backend
        self._torch = torch
        self._device = device
        self._net: Any = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        with self._torch.inference_mode():
            # a copy, because PyTorch warns about read-only memory
            rgb = self._torch.from_numpy(np.array(rgb_NHWC)).to(self._device)
            answer = self._net.points(rgb)
            found = {name: a.float().cpu().numpy() for name, a in zip(OUTPUTS, answer) if a is not None}
        return landmarks_of(found)

    def _release(self) -> None:
        del self._net
        if self._device == "cuda":
            self._torch.cuda.empty_cache()


def cuda_is_there() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
