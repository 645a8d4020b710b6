"""The whole chain, as a user walks it: train a small net, build it, stream what was built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from lineament.landmarks.types import U8

for package in ("torch", "onnx", "onnxruntime", "openvino", "nncf", "albumentations"):
    pytest.importorskip(package)

ROOT = Path(__file__).resolve().parent.parent


def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, astronaut: U8) -> Path:
    """best.safetensors of a run that goes on from the student by a hair, so that it knows faces on every processor.
    What a short run learns by itself differs between them, and a net that knows no face leads a tracker anywhere."""
    from lineament import engines
    from lineament.train.augment_config import AugmentConfig
    from lineament.train.crops import CropConfig
    from lineament.train.loop import fit
    from tests.labelled import mean_face, sample
    from tests.test_loop import config

    folder = tmp_path_factory.mktemp("train")
    path = folder / "WFLW_images" / "portrait.png"
    path.parent.mkdir()
    assert cv2.imwrite(str(path), astronaut)
    face = sample(mean_face(225, 118, 48), path.name, root=folder)
    cfg = config(
        folder,
        backbone="mobilenetv4_conv_small",
        init=engines.CHECKPOINTS["student-fast"],
        presence=True,
        input_px=112,
        crop=CropConfig(scale=1.2),
        epochs=1,
        batch=8,
        lr=1e-6,
        ema=0.0,
        drop_path=0.0,
        augment=AugmentConfig.off(),
    )
    return fit(cfg, [face] * 16, [face]).best


@pytest.fixture(scope="module")
def built(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `make engine` filled."""
    out = tmp_path_factory.mktemp("engines")
    done = run("engines.build", "--model", trained, "--out", out, "--target", "cpu")
    assert done.returncode == 0, done.stderr
    assert "fp32" in done.stdout and "make stream MODEL=" in done.stdout
    return out


def streamed(model: Path, *args: str) -> Sequence[dict[str, object]]:
    done = run("stream", "--source", "sample", "--model", model, "--frames", "5", "--no-window", "--jsonl", "-", *args)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def points(lines: Sequence[dict[str, object]]) -> np.ndarray:
    """(n, 98, 2) of the first face, in frames that have one."""
    faces = [line["faces"] for line in lines]
    return np.array([face[0]["points"] for face in faces if isinstance(face, list) and face], np.float32)


def test_what_was_trained_streams_alike_as_checkpoint_and_as_built(trained: Path, built: Path) -> None:
    by_torch, by_openvino = streamed(trained), streamed(built / "best.onnx")
    assert len(by_torch) == len(by_openvino) == 5
    found = points(by_openvino)
    assert found.shape[1:] == (98, 2) and len(found) > 0
    assert points(by_torch).shape == found.shape
    # each crop follows from the points before it, so the last bits of 0.01 px may grow; the face has 80
    assert np.linalg.norm(points(by_torch) - found, axis=-1).max() < 1


def test_the_other_files_for_the_cpu_stream_too(built: Path) -> None:
    others = [path for path in sorted(built.glob("*.onnx")) if path.name != "best.onnx"]
    assert others, "INT8 is made on any CPU"
    for path in others:
        assert len(points(streamed(path))) > 0, path.name


def test_the_card_goes_all_the_way(trained: Path, built: Path) -> None:
    from lineament import engines
    from lineament.train.model import read_header

    _, card = read_header(trained)
    with engines.load(str(built / "best.onnx")) as landmarker:
        found = landmarker.card
    assert (found.name, found.weights_sha256, found.crop_scale) == (card.name, card.weights_sha256, card.crop_scale)
    assert dict(found.nme) == dict(card.nme) and card.nme, "training measured the net, and the file still says it"
