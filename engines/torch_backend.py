"""A trained checkpoint run by PyTorch itself: the reference, and the way to stream a model before it is built.

Needs the training packages. Imported only where it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from lineament.engines.model_file import FileLandmarker, landmarks_of, parse_card
from lineament.landmarks.command import install
from lineament.landmarks.types import U8, Landmarks, LineamentError


class TorchLandmarker(FileLandmarker):
    """A landmarks.types.Landmarker of a best.safetensors that `make train` wrote."""

    def __init__(self, path: Path, device: Literal["cpu", "cuda"] = "cpu", threads: int | None = None) -> None:
        """threads: on the CPU; PyTorch knows one number for the whole process. None leaves it alone."""
        try:
            import torch

            from lineament.train.model import load
        except ImportError as error:
            raise LineamentError(
                f"{path} needs PyTorch and timm to run, and {error.name} cannot be imported; run "
                f"{install('train')}, or stream the .onnx or .engine that `make engine` makes of it"
            ) from error
        if device == "cuda" and not torch.cuda.is_available():
            raise LineamentError(
                f"{path} cannot run on CUDA: PyTorch {torch.__version__} finds no NVIDIA GPU; ask for device 'cpu', "
                "or install a driver and a CUDA build of torch"
            )
        if threads is not None:
            torch.set_num_threads(threads)
        net, card = load(path, device)
        super().__init__(path, parse_card(path, card.to_json()))  # refuses what every backend refuses
        self._torch = torch
        self._device = device
        self._net: Any = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _run(self, rgb_NHWC: U8) -> Landmarks:
        with self._torch.inference_mode():
            # a copy, for PyTorch warns of memory that may not be written to
            rgb = self._torch.from_numpy(np.array(rgb_NHWC)).to(self._device)
            prediction, presence = self._net.points(rgb)
            points = prediction.points_unit.float().cpu().numpy()
            confidence = None if presence is None else presence.cpu().numpy()
        return landmarks_of(points, confidence)

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
