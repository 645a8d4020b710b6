"""Losses. Each returns one value per point, (B, K), for the loop to weight and average.

Suffixes: B faces, K points, H W of a heatmap.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

WING_PX = 256.0
"""Wing loss is in pixels of a crop of this width, whatever the input size: on unit coordinates it would be plain L1"""


def wing(pred_BK2: Tensor, truth_BK2: Tensor, w: float = 10.0, epsilon: float = 2.0) -> Tensor:
    """Wing loss (Feng et al., "Wing Loss for Robust Facial Landmark Localisation", CVPR 2018), (B, K).

    Of unit coordinates:
    w ln(1 + |x| / epsilon) for |x| below w, then |x| - C; x in pixels of a WING_PX wide crop.
    """
    x = (pred_BK2 - truth_BK2).abs() * WING_PX
    c = w - w * math.log(1 + w / epsilon)
    return torch.where(x < w, w * torch.log1p(x / epsilon), x - c).mean(2)


def adaptive_wing(
    pred_BKHW: Tensor, truth_BKHW: Tensor, omega: float = 14.0, theta: float = 0.5, epsilon: float = 1.0
) -> Tensor:
    """Adaptive Wing loss on heatmaps in 0..1 (Wang, Bo, Li, "Adaptive Wing Loss", ICCV 2019) -> (B, K).

    With its weight map: pixels on and next to a point count eleven times those of the background.
    """
    alpha = 2.1
    away = (pred_BKHW - truth_BKHW).abs()
    power = alpha - truth_BKHW
    at_theta = torch.pow(torch.tensor(theta / epsilon, device=away.device, dtype=away.dtype), power)
    slope = omega / (1 + at_theta) * power * torch.pow(theta / epsilon, power - 1) / epsilon
    c = theta * slope - omega * torch.log1p(at_theta)
    near = omega * torch.log1p(torch.pow((away / epsilon).clamp_min(1e-6), power))
    loss = torch.where(away < theta, near, slope * away - c)
    near_a_point = F.max_pool2d(truth_BKHW, 3, 1, 1) >= 0.2
    return (loss * (1 + 10 * near_a_point)).mean((2, 3))


def star(mean_BK2: Tensor, covariance_BK22: Tensor, truth_BK2: Tensor, restriction: float = 0.1) -> Tensor:
    """STAR loss (Zhou et al., "STAR Loss: Reducing Semantic Ambiguity in Facial Landmark Detection", CVPR 2023).

    The error is taken along the principal axes of the predicted distribution and divided by its spread there, so that
    a point may slide along an edge at less cost; the spread itself is held down. All in pixels of one grid.
    """
    # in closed form: eigh of a million 2x2 matrices is slow, and its gradient is infinite where both values agree
    a, b, d = covariance_BK22[..., 0, 0], covariance_BK22[..., 0, 1], covariance_BK22[..., 1, 1]
    middle, half = (a + d) / 2, torch.sqrt(((a - d) / 2) ** 2 + b**2 + 1e-12)
    # rounding can make a variance negative
    spread = torch.stack([middle + half, middle - half], -1).clamp_min(1e-4)
    angle = 0.5 * torch.atan2(2 * b, a - d + 1e-12).detach()
    axes = torch.stack([torch.stack([angle.cos(), angle.sin()], -1), torch.stack([-angle.sin(), angle.cos()], -1)], -2)
    along = (axes * (mean_BK2 - truth_BK2)[..., None, :]).sum(-1)
    error = F.smooth_l1_loss(along, torch.zeros_like(along), beta=0.5, reduction="none")
    # at least half a cell: dividing by less would first reward and then punish certainty
    scaled = error / spread.detach().clamp_min(0.25).sqrt()
    # at least a cell: narrower, the distribution would stop moving
    return scaled.sum(-1) + restriction * (spread.sqrt() - 1).clamp_min(0).sum(-1)
