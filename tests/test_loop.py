"""The training loop: it learns, resumes as if never interrupted, shares a batch between processes, and stops on nan."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from lineament.landmarks.types import LineamentError
from lineament.train import batches, loop, machine, model
from lineament.train.__main__ import ship, train
from lineament.train.augment_config import AugmentConfig
from lineament.train.batches import Batches
from lineament.train.config import TrainConfig
from lineament.train.crops import CropConfig
from lineament.train.loop import fit
from lineament.train.machine import Here
from lineament.train.sample import Sample
from lineament.train.schedule import ScheduleConfig

ROOT = Path(__file__).resolve().parent.parent
CPU = Here(0, 1, torch.device("cpu"))


def faces(folder: Path, n: int, write: bool = True) -> list[Sample]:
    """n pictures of a disc with 98 points on rings round its middle; where the disc lies and how large it is varies.

    write: False where the pictures are there already.
    """
    rng = np.random.default_rng(3)
    angles = np.linspace(0, 2 * np.pi, 98, endpoint=False)
    shape = np.stack([np.cos(angles), np.sin(angles)], 1) * np.linspace(0.4, 1, 98)[:, None]
    samples = []
    for i in range(n):
        center, radius = rng.uniform(45, 65, 2), rng.uniform(20, 32)
        picture = np.full((110, 110, 3), rng.integers(0, 80, 3), np.uint8)
        cv2.circle(picture, (round(center[0]), round(center[1])), round(radius), rng.integers(120, 255, 3).tolist(), -1)
        path = folder / f"{i}.png"
        if write:
            cv2.imwrite(str(path), picture)
        points = (center + radius * shape).astype(np.float32)
        rect = np.concatenate([points.min(0), points.max(0)])
        samples.append(Sample(path.name, points, rect, frozenset(), path))
    return samples


def config(folder: Path, **changes: Any) -> TrainConfig:
    base = TrainConfig(
        data=(folder,),
        run=folder / "run",
        backbone="test_efficientnet",
        pretrained=False,
        input_px=64,
        epochs=3,
        batch=4,
        lr=2e-3,
        drop_path=0.1,
        workers=0,
        device="cpu",
        schedule=ScheduleConfig(warmup_epochs=1),
        crop=CropConfig(level=False),
    )
    return replace(base, **changes)


@contextmanager
def recorded() -> Iterator[list[float]]:
    """The loss of every step that is taken inside the block."""
    step, losses = loop.Run.step, list[float]()

    def kept(run: loop.Run, batch: batches.Batch) -> float:
        losses.append(step(run, batch))
        return losses[-1]

    loop.Run.step = kept  # type: ignore[method-assign]
    try:
        yield losses
    finally:
        loop.Run.step = step  # type: ignore[method-assign]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(model.load(path)[0].state_dict())


def test_a_run_leaves_all_that_its_folder_should_hold(tmp_path: Path) -> None:
    samples = faces(tmp_path, 12)
    epochs: list[tuple[int, float]] = []
    fitted = fit(config(tmp_path), samples[:8], samples[8:], lambda epoch, nme: epochs.append((epoch, nme)))
    names = {path.name for path in fitted.run.iterdir()}
    assert {"config.json", "environment.json", "curves.csv", "schedule.png", "train.jpg", "val.jpg"} <= names
    assert {"last.pt", "best.safetensors"} <= names and any(name.startswith("events.out") for name in names)
    assert not any(name.startswith(".") for name in names), "a half-written file was left"
    rows = list(csv.DictReader((fitted.run / "curves.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3] == [epoch for epoch, _ in epochs]
    assert fitted.nme == min(nme for _, nme in epochs)
    card = model.read_header(fitted.best)[1]
    assert card.nme["held out"] == pytest.approx(fitted.nme, abs=1e-3) and card.crop_scale == CropConfig().scale
    assert json.loads((fitted.run / "environment.json").read_text())["torch"] == version("torch")


def test_an_epoch_that_is_run_again_after_a_resume_is_listed_once(tmp_path: Path) -> None:
    samples = faces(tmp_path, 12)
    cfg = config(tmp_path, epochs=4, val_every=2)

    def cut_off(epoch: int, nme: float) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(cfg, samples[:8], samples[8:], cut_off)
    # epoch 3 was run and listed, but the last checkpoint is of epoch 2, which was validated
    assert torch.load(cfg.run / "last.pt", weights_only=True)["epoch"] == 2
    again: list[int] = []
    fit(cfg, samples[:8], samples[8:], lambda epoch, nme: again.append(epoch))
    rows = list(csv.DictReader((cfg.run / "curves.csv").read_text().splitlines()))
    assert again == [3, 4] and [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]


def test_a_run_whose_minutes_are_over_has_a_best_whenever_it_ends(tmp_path: Path) -> None:
    samples = faces(tmp_path, 12)
    fitted = fit(config(tmp_path, epochs=4, val_every=3, minutes=1e-9), samples[:8], samples[8:])
    assert fitted.epochs == 1 and np.isfinite(fitted.nme) and fitted.best.is_file()
    assert torch.load(fitted.run / "last.pt", weights_only=True)["epoch"] == 1


def test_what_a_run_ships_is_its_best_in_half_the_bytes(tmp_path: Path) -> None:
    samples = faces(tmp_path, 12)
    fitted = fit(config(tmp_path, epochs=1), samples[:8], samples[8:])
    shipped = ship(fitted.best)
    whole, half = weights(fitted.best), weights(shipped)
    for name, tensor in whole.items():
        torch.testing.assert_close(half[name].float(), tensor.float(), rtol=1e-3, atol=1e-4)
    assert shipped.stat().st_size < 0.6 * fitted.best.stat().st_size
    cards = [model.read_header(path)[1] for path in (fitted.best, shipped)]
    assert cards[1].precision == "fp16" and cards[0].nme == cards[1].nme


def test_a_run_begins_by_saying_what_the_mean_face_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = faces(tmp_path, 8)
    # of the box, round which both are cropped
    middle = (train[0].points.max(0) + train[0].points.min(0)) / 2
    narrow = (train[0].points - middle) * np.float32([0.5, 1]) + middle
    with caplog.at_level("INFO", "lineament.train.loop"):
        cfg = config(tmp_path, epochs=1, crop=CropConfig("rect", level=False))
        fit(cfg, train, [replace(train[0], points=narrow)])
    # the mean face is the training faces' one shape, as high as the narrow one and twice as wide
    off = float(np.abs(narrow - middle)[:, 0].mean()) / np.linalg.norm(narrow[60] - narrow[72]) * 100
    said = next(m for m in caplog.messages if m.startswith("the mean face"))
    assert float(said.split()[-1]) == pytest.approx(off, abs=1e-3)


def test_only_an_epoch_that_is_validated_logs_a_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples = faces(tmp_path, 8)
    with caplog.at_level("INFO", "lineament.train.record"):
        fit(config(tmp_path, epochs=2, val_every=2), samples, samples[:2])
    first, second = (m for m in caplog.messages if m.startswith("epoch"))
    assert "NME" not in first and "best" not in first
    assert re.search(r"held-out NME \d+\.\d+  best \d+\.\d+$", second)


def test_a_run_without_held_out_faces_logs_no_score(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image": str(face.image_path), "points": face.points.tolist()} for face in faces(tmp_path, 8)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level("INFO", "lineament"):
        train(config(tmp_path, epochs=1, hold_out=0.0))
    assert f"no held-out NME after 1 epochs: {tmp_path / 'run' / 'best.safetensors'}" in caplog.messages
    assert "nan" not in caplog.text.replace(str(tmp_path), "")


@pytest.mark.parametrize("head", ["coords", "heatmap", "star", "simcc"])
def test_every_head_learns(tmp_path: Path, head: str) -> None:
    # the same eight over and over: epochs cost more than steps
    samples = faces(tmp_path, 8) * 12
    cfg = config(tmp_path, head=head, epochs=2, batch=8, ema=0.0, drop_path=0.0, augment=AugmentConfig.off())
    with recorded() as losses:
        fit(cfg, samples, [])
    # heatmaps are at 0.66 by then, here; how fast a net learns differs between processors
    assert np.mean(losses[-4:]) < 0.85 * losses[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_and_resumed_is_as_good_as_never_interrupted(tmp_path: Path, workers: int) -> None:
    if not workers:
        interrupt_and_resume(tmp_path, workers)
        return
    # in a process of its own, as users train: PyTorch's workers leave a handler of SIGCHLD behind, and where other
    # tests have loaded every runtime into this one, the next child that ends would end it (SIGSEGV)
    code = "import sys, pathlib, tests.test_loop as t; t.interrupt_and_resume(pathlib.Path(sys.argv[1]), 2)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def interrupt_and_resume(folder: Path, workers: int, device: str = "cpu") -> None:
    """Trains with a break and without one; the weights must be the same, on a GPU the losses nearly."""
    samples = faces(folder, 12)
    # its stochastic depth is alive, unlike that of a net of few blocks: what it draws must be drawn again
    live = {"backbone": "mobilenetv4_conv_small", "drop_path": 0.2, "workers": workers, "device": device, "amp": "off"}
    with recorded() as losses:
        whole = fit(config(folder, run=folder / "a" / "run", **live), samples, [])
    cfg = config(folder, run=folder / "b" / "run", **live)
    step, taken = loop.Run.step, 0

    def interrupted(run: loop.Run, batch: batches.Batch) -> float:
        nonlocal taken
        taken += 1
        run.stop = taken == 5  # in the middle of the second epoch of three
        return step(run, batch)

    loop.Run.step = interrupted  # type: ignore[method-assign]
    try:
        with pytest.raises(loop.Stopped, match=r"stopped in epoch 2; the same command resumes"):
            fit(cfg, samples, [])
    finally:
        loop.Run.step = step  # type: ignore[method-assign]
    with recorded() as resumed_losses:
        resumed = fit(cfg, samples, [])
    assert resumed.epochs == 3
    with recorded() as more:
        assert fit(cfg, samples, [])[:2] == resumed[:2] and not more, "a finished run takes no step"
    if device != "cpu":  # it adds up in no fixed order
        assert resumed_losses == pytest.approx(losses[5:], rel=0.02)
        return
    ours, theirs = weights(resumed.best), weights(whole.best)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_says_that_it_is_resumed_or_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lineament.train.loop")
    samples, cfg = faces(tmp_path, 12), config(tmp_path, epochs=2)
    fit(replace(cfg, minutes=1e-6), samples, [])
    assert not [record for record in caplog.records if "resum" in record.message or "finished" in record.message]
    caplog.clear()
    done = fit(cfg, samples, samples[:3])
    assert caplog.messages[0] == f"resuming {cfg.run} at epoch 2 of 2; another --run starts over"
    caplog.clear()
    assert fit(cfg, samples, samples[:3]) == done
    says = f"{cfg.run} is finished, all 2 epochs; to train further, give another --run and --init {done.best}"
    assert caplog.messages == [says]


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_takes_the_steps_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    interrupt_and_resume(tmp_path, 0, "cuda")


class Gpus:
    """torch.cuda's own random numbers, as far as a checkpoint asks for them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stand = {torch.device("cuda", i): torch.tensor([i], dtype=torch.uint8) for i in range(2)}
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.stand[device])
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)

    def set(self, state: torch.Tensor, device: torch.device) -> None:
        assert device in self.stand, f"there is no {device}"
        self.stand[device] = state


@pytest.mark.parametrize("before", [False, True], ids=["", "a checkpoint of before"])
def test_each_process_draws_on_from_the_first_on_its_own_gpu(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    gpus = Gpus(monkeypatch)
    first, second = gpus.stand
    gpus.stand[first] = torch.tensor([77], dtype=torch.uint8)
    state: dict[str, Any] = machine.draws(first)
    if before:
        state["cuda_rng"] = list(gpus.stand.values()) * 2  # of more GPUs than there are now
    gpus.stand[first] = torch.zeros(1, dtype=torch.uint8)
    for device in (first, second):
        machine.draw_on(state, device)
        assert gpus.stand[device].tolist() == [77]


def test_a_run_on_a_gpu_is_gone_on_with_on_the_cpu_and_the_other_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch)
    (gpu, _) = gpus.stand
    of_gpu, of_cpu = machine.draws(gpu), machine.draws(CPU.device)
    wanted = torch.rand(3)
    machine.draw_on(of_gpu, CPU.device)
    assert torch.equal(torch.rand(3), wanted)
    machine.draw_on(of_cpu, gpu)
    assert torch.equal(torch.rand(3), wanted) and gpus.stand[gpu].tolist() == [0]


def test_half_precision_is_of_the_kind_that_the_gpu_was_made_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch calls bfloat16 supported where it is only emulated, and slow."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert machine.amp_dtype(config(tmp_path), torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert machine.amp_dtype(config(tmp_path), torch.device("cuda")) == torch.bfloat16


def test_training_on_the_cpu_beside_a_gpu_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "_DRIVER", tmp_path / "version")
    assert machine.pick_device("auto") == torch.device("cpu") and not caplog.records
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX 550.1")
    assert machine.pick_device("cpu") == torch.device("cpu") and not caplog.records
    assert machine.pick_device("auto") == torch.device("cpu")
    (record,) = caplog.records
    assert "although an NVIDIA driver is there" in record.message and f"torch {torch.__version__}" in record.message


def test_a_run_with_another_config_is_not_gone_on_with(tmp_path: Path) -> None:
    samples = faces(tmp_path, 8)
    cfg = config(tmp_path, epochs=1)
    fit(cfg, samples, [])
    with pytest.raises(LineamentError, match=r"lr: 0\.002 -> 0\.1"):
        fit(replace(cfg, lr=0.1), samples, [])


def test_a_damaged_checkpoint_says_how_to_start_anew(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.run.mkdir(parents=True)
    (cfg.run / "last.pt").write_bytes(b"half a checkpoint")
    with pytest.raises(LineamentError, match="delete it to start"):
        fit(cfg, faces(tmp_path, 4), [])


def test_nan_ends_the_run_and_keeps_the_batch_that_caused_it(tmp_path: Path) -> None:
    samples = faces(tmp_path, 8)
    samples[3] = replace(samples[3], weight=float("nan"))
    with pytest.raises(LineamentError, match=r"the loss became nan in epoch 1, batch \d; the batch is in"):
        fit(config(tmp_path, batch=2), samples, [])
    state = torch.load(tmp_path / "run" / "not-finite-rank0.pt", weights_only=True)
    rgb, points, weight = state["batch"]
    assert rgb.shape == (2, 64, 64, 3) and points.shape == (2, 98, 2) and weight.isnan().any()


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """A net without batch norm, which would see half a batch in each of two processes."""
    faces(tmp_path, 8)
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
from tests.test_loop import config, faces, recorded
from lineament.train import loop
folder, world = Path({str(tmp_path)!r}), sys.argv[1]
cfg = config(folder, run=folder / world / "run", backbone="test_convnext", epochs=2, drop_path=0.0, head="simcc")
with recorded() as losses:
    loop.fit(cfg, faces(folder, 8, write=False), [])
(folder / f"{{world}}.txt").write_text("\\n".join(map(str, losses)))
"""
    path = tmp_path / "run.py"
    path.write_text(script)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([sys.executable, str(path), "1"], [*torchrun, str(path), "2"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (np.loadtxt(tmp_path / f"{world}.txt") for world in (1, 2))
    assert len(one) == 4
    np.testing.assert_allclose(two, one, rtol=2e-3)


def test_norms_that_share_statistics_leave_a_net_what_it_was() -> None:
    torch.manual_seed(0)
    net = model.LandmarkNet(model.NetSpec("test_efficientnet", input_hw=(64, 64))).eval()
    rgb = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        wanted = net(rgb)[0]
        shared = loop.with_shared_statistics(net)
        assert torch.equal(shared(rgb)[0], wanted)
    norms = [module for module in shared.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)


def test_batches_are_a_function_of_seed_and_epoch_and_split_evenly() -> None:
    def drawn(here: Here, epoch: int, first: int = 0, seed: int = 0) -> list[list[tuple[int, int]]]:
        batches = Batches(10, 4, seed, here)
        batches.start(epoch, first)
        return list(batches)

    whole = drawn(CPU, 1)
    assert whole == drawn(CPU, 1) and whole != drawn(CPU, 2) and whole != drawn(CPU, 1, seed=1)
    assert [len(batch) for batch in whole] == [4, 4] and len({i for batch in whole for _, i in batch}) == 8
    assert drawn(CPU, 1, first=1) == whole[1:]
    halves = [drawn(Here(rank, 2, CPU.device), 1) for rank in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*halves)] == [sorted(batch) for batch in whole]


def test_a_sample_without_points_teaches_presence_and_nothing_else(tmp_path: Path) -> None:
    samples = faces(tmp_path, 8)
    nowhere = np.full((98, 2), np.nan, np.float32)
    samples[6:] = [replace(sample, points=nowhere) for sample in samples[6:]]
    fitted = fit(config(tmp_path, presence=True, epochs=1), samples, samples[:2])
    net, _ = model.load(fitted.best)
    with torch.inference_mode():
        points, presence, _ = net.points(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
    assert torch.isfinite(points).all() and presence is not None and 0 < float(presence) < 1


def test_training_on_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match="no faces to train on"):
        fit(config(tmp_path), [], [])


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"lr": 0.0}, {"clip_norm": np.nan}, {"hold_out": 1.0}, {"schema": "68"}, {"ema": 1.0}]
)
def test_impossible_configs_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|wanted"):
        config(tmp_path, **bad)
