"""A net that can learn anything learns sixteen real faces by heart: data, crops, loss and optimiser fit together."""

from __future__ import annotations

from pathlib import Path

import pytest

from landmarks.schema import WFLW98
from train import data
from train.augment import AugmentConfig
from train.loop import TrainConfig, fit
from train.schedule import ScheduleConfig


@pytest.mark.parametrize(
    ("backbone", "input_px", "epochs"),
    [
        ("mobilenetv4_conv_small", 64, 40),
        # two hours on two cores, minutes on a GPU: 400 steps bring it to 5.1 and 1.5 takes longer
        pytest.param("tf_efficientnet_b5", 128, 250, marks=[pytest.mark.slow, pytest.mark.timeout(14400)]),
    ],
)
def test_sixteen_faces_are_learnt_by_heart(
    backbone: str, input_px: int, epochs: int, shared: Path, tmp_path: Path
) -> None:
    # ten rows in turn show one face
    rows = data.shifted(data.read(shared / "data" / "wflw-mini", "train", WFLW98), 0.5)
    faces = rows[::10][:16]
    cfg = TrainConfig(
        (shared,),
        tmp_path / "run",
        backbone=backbone,
        pretrained=False,
        input_px=input_px,
        epochs=epochs,
        batch=16,
        lr=2e-3,
        drop_path=0.0,
        ema=0.0,
        workers=0,
        device="auto",
        augment=AugmentConfig.off(),
        schedule=ScheduleConfig("cosine", warmup_epochs=2),
        val_every=epochs,
    )
    fitted = fit(cfg, faces * 10, faces)
    print(f"{backbone}: NME {fitted.nme:.3f} after {10 * epochs} steps")
    assert fitted.nme < 1.5
