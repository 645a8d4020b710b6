"""What runs in a cluster's processes, without a cluster; tests/test_cluster.py has it in one."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lineament.landmarks.types import LineamentError
from lineament.stream.analyse.followed import TrackerState
from lineament.stream.cluster.actors import CameraActor, Engine, Job, load_ray
from lineament.stream.run.cameras import Camera, in_run
from lineament.stream.run.session import SessionConfig
from tests.blobs import CARD


def test_an_engine_answers_for_its_own_model_however_it_was_built_and_for_no_other() -> None:
    engine = Engine("student", "auto", 1)
    card = engine.card()
    crops = np.zeros((1, *card.input_hw, 3), np.uint8)
    assert engine.landmarks(crops, replace(card, precision="int8")).points_unit.shape == (1, 98, 2)
    with pytest.raises(LineamentError, match="different models"):
        engine.landmarks(crops, replace(card, weights_sha256="0" * 64))
    status = engine.status()
    assert (status.crops, status.batches) == (1, 1) and status.born != Engine("student", "auto", 1).status().born


def test_an_engine_without_its_model_says_so_to_whoever_asks() -> None:
    engine = Engine("gone.onnx", "auto", 1)
    for ask in (engine.card, engine.status):
        with pytest.raises(LineamentError, match=r"gone\.onnx"):
            ask()


def test_a_camera_that_was_told_nothing_yet_has_nothing_to_say_or_to_stop() -> None:
    actor = CameraActor()
    assert actor.status() is None and actor.stop() is None


def test_what_a_camera_is_told_shows_no_password() -> None:
    camera = Camera("door", "rtsp://me:hunter2@10.0.0.1/x", ("rtsp://me:hunter2@10.0.0.2/y",))
    job = Job(SessionConfig(), camera, 1, CARD, (), 0, 1.0, TrackerState(1), 1.0)
    assert "hunter2" not in f"{job} {job!r}" and "door" in repr(job)


def test_without_ray_the_error_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LineamentError, match=r"pip install -r requirements-cluster\.txt"):
        load_ray()


def test_what_a_later_life_writes_lies_beside_what_the_first_wrote(tmp_path: Path) -> None:
    path = str(tmp_path / "door.jsonl")
    assert in_run(path, 1) == path and in_run(path, 2) == str(tmp_path / "door-2.jsonl")
    (tmp_path / "door-2.jsonl").touch()
    assert in_run(path, 2) == str(tmp_path / "door-3.jsonl")
    assert in_run(f"{tmp_path}/pictures/", 3) == f"{tmp_path}/pictures-3/"
    assert in_run("mqtt://broker/topic", 3) == "mqtt://broker/topic" and in_run("virtual:2", 2) == "virtual:2"
