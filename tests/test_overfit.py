"""A net that can learn anything learns sixteen real faces by heart: data, crops, loss and optimiser fit together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lineament.landmarks.schema import WFLW98
from lineament.train import data
from lineament.train.augment_config import AugmentConfig
from lineament.train.config import TrainConfig
from lineament.train.loop import fit
from lineament.train.schedule import ScheduleConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Beside another process, two threads wait for each other in every layer and take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("backbone", "steps"),
    [
        ("mobilenetv4_conv_small", 400),
        # half an hour on one core
        pytest.param("tf_efficientnet_b5", 800, marks=[pytest.mark.slow, pytest.mark.timeout(14400)]),
    ],
)
def test_sixteen_faces_are_learnt_by_heart(backbone: str, steps: int, shared: Path, tmp_path: Path) -> None:
    # ten rows in turn show one face
    rows = data.shifted(data.read(shared / "data" / "wflw-mini", "train", WFLW98), 0.5)
    faces = rows[::10][:16]
    cfg = TrainConfig(
        (shared,),
        tmp_path / "run",
        backbone=backbone,
        pretrained=False,
        input_px=96,
        # all sixteen in every step: with some of them twice, the statistics of a deep net's norms never come to rest
        epochs=steps,
        batch=16,
        lr=3e-3,
        drop_path=0.0,
        ema=0.0,
        workers=0,
        device="auto",
        augment=AugmentConfig.off(),
        schedule=ScheduleConfig("cosine", warmup_epochs=20),
        val_every=steps,
    )
    fitted = fit(cfg, faces, faces)
    print(f"{backbone}: NME {fitted.nme:.3f} after {steps} steps")
    assert fitted.nme < 1.5
