"""Growing: the large net begins as the small one, and all of it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lineament.landmarks.types import LineamentError
from lineament.train.grow import grow, load_in_order, main
from lineament.train.model import LandmarkNet, NetSpec, load_initial
from lineament.train.native import timm


def net(name: str) -> Any:
    return timm.create_model(name, num_classes=0, global_pool="").eval()


@pytest.fixture(scope="module")
def small() -> Any:
    torch.manual_seed(1)
    made = net("tf_efficientnet_b0")
    # as a trained net's: untrained statistics let next to nothing through
    made.train()(torch.randn(4, 3, 64, 64))
    return made.eval()


@pytest.mark.parametrize("name", ["tf_efficientnet_b1", "tf_efficientnet_b2"], ids=["deeper", "wider and deeper"])
def test_a_grown_net_says_what_the_small_one_says(name: str, small: Any) -> None:
    large = net(name)
    kept = grow(small, large)
    assert kept == sum(tensor.numel() for tensor in small.state_dict().values())
    rgb = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = small(rgb), large(rgb)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, rtol=1e-4, atol=1e-5)


def test_all_of_it_learns_within_the_first_steps(small: Any) -> None:
    large = net("tf_efficientnet_b2")
    grow(small, large)
    large.train()
    optimizer = torch.optim.AdamW(large.parameters(), 1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        large(torch.randn(4, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    untaught = [name for name, p in large.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untaught, f"{len(untaught)} tensors have no gradient: {untaught[:3]}"


def test_gates_that_the_small_net_lacks_stand_open() -> None:
    lite, large = net("tf_efficientnet_lite0"), net("tf_efficientnet_b1")
    grow(lite, large)
    gate = large.get_parameter("blocks.1.0.se.conv_expand.bias")
    assert (torch.sigmoid(gate) > 0.95).all() and not large.get_parameter("blocks.1.0.se.conv_expand.weight").any()


def test_a_net_cannot_grow_into_a_smaller_one(small: Any) -> None:
    with pytest.raises(LineamentError, match=r"cannot grow: conv_stem\.weight .*one family"):
        grow(net("tf_efficientnet_b3"), net("tf_efficientnet_b0"))
    with pytest.raises(LineamentError, match=r"does not fit, by name or in order: .*belong to another model"):
        load_in_order(net("tf_efficientnet_b1"), small.state_dict(), Path("b0.pth"))


def test_foreign_names_in_the_same_order_are_taken_and_training_starts_from_the_file(
    small: Any, tmp_path: Path
) -> None:
    state = {f"_layer.{i}": tensor for i, tensor in enumerate(small.state_dict().values())}
    torch.save(state, tmp_path / "b0.pth")
    out = tmp_path / "b1.safetensors"
    args = [str(tmp_path / "b0.pth"), "--small", "tf_efficientnet_b0", "--large", "tf_efficientnet_b1"]
    assert main([*args, "--out", str(out)]) == 0
    student = LandmarkNet(NetSpec("tf_efficientnet_b1", input_hw=(64, 64)))
    load_initial(student, out)
    stem = student.get_parameter("backbone.conv_stem.weight")
    torch.testing.assert_close(stem, small.state_dict()["conv_stem.weight"])
