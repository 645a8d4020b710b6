"""Heads: what is encoded decodes to itself, and the loss is least there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lineament.train import losses
from lineament.train.heads import Coordinates, Head, Heatmap, SimCC, Star

HW = (96, 96)
K = 98
CHANNELS, STRIDES = [8, 12, 16, 24], [4, 8, 16, 32]


def head(name: str) -> Head:
    torch.manual_seed(0)
    match name:
        case "coords":
            return Coordinates(24, (3, 3), K)
        case "simcc":
            return SimCC(24, (3, 3), K, HW)
        case "heatmap":
            return Heatmap(CHANNELS, STRIDES, K, HW, stacks=1)
        case _:
            return Star(CHANNELS, STRIDES, K, HW)


def features(of: Head) -> Tensor | list[Tensor]:
    pyramid = [torch.randn(2, c, HW[0] // s, HW[1] // s) for c, s in zip(CHANNELS, STRIDES)]
    return pyramid if of.needs_pyramid else pyramid[-1]


def inside(seed: int = 0) -> Tensor:
    return torch.rand(2, K, 2, generator=torch.Generator().manual_seed(seed)) * 0.6 + 0.2


@pytest.mark.parametrize(("name", "within_px"), [("coords", 0.0), ("simcc", 0.01), ("heatmap", 0.01), ("star", 0.05)])
def test_decoding_what_was_encoded_gives_the_points_back(name: str, within_px: float) -> None:
    codec, points = head(name), inside()
    back = codec.decode(codec.encode(points)).points_unit
    assert (back - points).abs().max() * HW[1] <= within_px


@pytest.mark.parametrize("name", ["coords", "heatmap"])
def test_a_point_outside_the_crop_comes_back_too(name: str) -> None:
    codec, points = head(name), inside()
    points[0, 0], points[1, 5] = torch.tensor([-0.2, 0.5]), torch.tensor([0.9, 1.15])
    back = codec.decode(codec.encode(points)).points_unit
    torch.testing.assert_close(back, points, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["coords", "simcc", "heatmap", "star"])
def test_the_loss_is_least_at_the_truth_and_one_number_a_point(name: str) -> None:
    codec, points = head(name), inside()
    at_truth = codec.loss(codec.encode(points), points)
    assert at_truth.shape == (2, K)
    for off in (0.02, 0.1):
        elsewhere = codec.loss(codec.encode(points + off), points)
        assert (elsewhere > at_truth).all()
        at_truth = elsewhere


@pytest.mark.parametrize("name", ["coords", "simcc", "heatmap", "star"])
def test_outputs_have_a_point_each_and_every_parameter_learns(name: str) -> None:
    net = head(name)
    raw = net(features(net))
    prediction = net.decode(raw)
    assert prediction.points_unit.shape == (2, K, 2) and prediction.points_unit.dtype == torch.float32
    assert (prediction.sigma_unit is None) == (name == "coords")
    net.loss(raw, inside()).sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_mixed_precision_does_not_round_coordinates() -> None:
    """Half the bits know steps of half a pixel to a pixel between the middle of a 256-px crop and its edge."""
    net, seen = head("coords").eval(), features(head("coords"))
    wanted = net(seen)
    with torch.autocast("cpu", torch.bfloat16):
        found = net(seen)
    assert found.dtype == torch.float32 and (found - wanted).abs().max() * 256 < 0.1


class NoProducts(TorchDispatchMode):
    """Refuses matrix products, whose factors a GPU may round to ten bits: it does so while training."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("mm", "bmm", "addmm", "baddbmm", "matmul"), f"{func} was called"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["coords", "simcc", "heatmap", "star"])
def test_outputs_are_read_and_judged_without_what_a_gpu_rounds(name: str) -> None:
    codec, points = head(name), inside()
    raw = codec.encode(points)
    with NoProducts():
        codec.decode(raw)
        codec.loss(raw, points)


def test_the_spread_of_a_sharp_peak_is_exact_at_the_far_corner() -> None:
    codec = head("star")
    assert isinstance(codec, Star)
    heights, widths = codec.cells_hw
    logits = torch.full((1, K, heights, widths), -40.0)
    # all but one of a million parts lie in the last cell, the rest beside it
    logits[..., -1, -1], logits[..., -1, -2] = 0.0, math.log(1e-6)
    mean, covariance = codec._moments(torch.cat([logits, logits.new_zeros(1, 2 * K, heights, widths)], 1))
    torch.testing.assert_close(mean, torch.tensor([widths - 1.0, heights - 1.0]).expand(1, K, 2))
    wanted = torch.tensor([[1e-6, 0.0], [0.0, 0.0]]).expand(1, K, 2, 2)
    torch.testing.assert_close(covariance, wanted, atol=1e-8, rtol=1e-2)


def test_a_blurred_peak_is_doubted_more_than_a_sharp_one() -> None:
    for name in ("simcc", "heatmap", "star"):
        codec, points = head(name), inside()
        raw = codec.encode(points)
        flatter = tuple(r * 0.3 for r in raw) if isinstance(raw, tuple) else [raw[0] * 0.3]
        sharp, blurred = codec.decode(raw).sigma_unit, codec.decode(flatter).sigma_unit
        assert sharp is not None and blurred is not None
        assert (blurred > sharp).all(), name


def test_wing_counts_in_pixels_of_a_256_px_crop() -> None:
    truth = torch.zeros(1, 1, 2)
    # 3 px in x, 20 px in y: below and above w = 10
    off = torch.tensor([[[3 / 256, 20 / 256]]])
    near, far = 10 * math.log(1 + 3 / 2), 20 - (10 - 10 * math.log(1 + 10 / 2))
    torch.testing.assert_close(losses.wing(off, truth), torch.tensor([[(near + far) / 2]]))


def test_wing_is_continuous_where_its_halves_meet() -> None:
    truth = torch.zeros(2, 1, 2)
    off = torch.full((2, 1, 2), 10 / 256)
    off[0] -= 1e-6
    off[1] += 1e-6
    below, above = losses.wing(off, truth)
    assert float(above - below) == pytest.approx(0, abs=1e-2)


def test_adaptive_wing_is_zero_at_the_truth_and_heavier_on_a_point() -> None:
    truth = torch.zeros(1, 1, 8, 8)
    truth[0, 0, 4, 4] = 1
    assert float(losses.adaptive_wing(truth, truth)) == pytest.approx(0, abs=1e-3)
    on_point, on_ground = truth.clone(), truth.clone()
    on_point[0, 0, 4, 4] -= 0.3
    on_ground[0, 0, 0, 0] += 0.3
    assert losses.adaptive_wing(on_point, truth) > 5 * losses.adaptive_wing(on_ground, truth)


def test_star_forgives_an_error_along_the_edge_that_the_point_may_slide_on() -> None:
    covariance = torch.tensor([[[[16.0, 0.0], [0.0, 1.0]]]])
    truth = torch.zeros(1, 1, 2)
    along = losses.star(torch.tensor([[[2.0, 0.0]]]), covariance, truth)
    across = losses.star(torch.tensor([[[0.0, 2.0]]]), covariance, truth)
    # smooth L1 of 2 at beta 0.5 is 1.75; over the spread along (4) and across (1); plus a tenth of what the spread
    # exceeds a cell by
    assert float(along) == pytest.approx(1.75 / 4 + 0.3, abs=1e-2)
    assert float(across) == pytest.approx(1.75 + 0.3, abs=1e-2)
