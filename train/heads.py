"""Heads: from a backbone's features to points, each with its codec: points to targets, outputs to points.

A head's `encode` and `decode` are inverse to each other, which the tests hold them to; `loss` compares raw outputs with
true points. Points are in unit coordinates of the crop, (B, K, 2); see landmarks.types.

Suffixes: B faces, K points, C channels, H W of a feature map or heatmap, N bins.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lineament.train import losses

HeadName = Literal["coords", "heatmap", "star", "simcc"]


class Prediction(NamedTuple):
    """A head's output for B crops, in float32."""

    points_unit: Tensor
    """(B, K, 2) unit crop coordinates"""
    sigma_unit: Tensor | None
    """(B, K) the head's own estimate of each point's error; None from a head without one"""


class Head(nn.Module):
    """The protocol of heads. `needs_pyramid`: takes all levels of features, not only the last."""

    needs_pyramid = False

    def encode(self, points_BK2: Tensor) -> Any:
        """The raw output of a perfect network for the true points."""
        raise NotImplementedError

    def decode(self, raw: Any) -> Prediction:
        """Points from raw outputs. Runs in float32; exportable."""
        raise NotImplementedError

    def loss(self, raw: Any, points_BK2: Tensor) -> Tensor:
        """(B, K)."""
        raise NotImplementedError


class Coordinates(Head):
    """Coordinates regressed from the last features, trained with Wing loss.

    The features keep their places (a 1x1 convolution, then all cells side by side) instead of being averaged over the
    crop: where something lies is what is asked.
    """

    WIDTH = 64
    """channels a cell keeps: 4096 numbers for a 256-px B5, enough for 196"""

    def __init__(self, channels: int, cells_hw: tuple[int, int], n_points: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, self.WIDTH, 1, bias=False), nn.BatchNorm2d(self.WIDTH), nn.SiLU()
        )
        self.linear = nn.Linear(self.WIDTH * cells_hw[0] * cells_hw[1], 2 * n_points)
        # the initial output is the centre of the crop
        nn.init.constant_(self.linear.bias, 0.5)
        nn.init.normal_(self.linear.weight, std=0.001)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        # bf16 has steps of 0.004 at 0.7: a pixel of a 256-px crop
        return _exactly(self.linear, self.squeeze(features_BCHW).flatten(1)).unflatten(1, (-1, 2))

    def encode(self, points_BK2: Tensor) -> Tensor:
        return points_BK2

    def decode(self, raw: Tensor) -> Prediction:
        return Prediction(raw.float(), None)

    def loss(self, raw: Tensor, points_BK2: Tensor) -> Tensor:
        return losses.wing(raw.float(), points_BK2)


def _exactly(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) in float32, also under mixed precision. Without it, an exporter sees only layer(x)."""
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x)
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


class SimCC(Head):
    """Each coordinate as a distribution over bins (Li et al., "SimCC", ECCV 2022), two bins a pixel.

    The bins reach an eighth of the crop beyond its edges, for points that lie outside.
    """

    SPLIT, BEYOND, SIGMA_BINS = 2, 0.125, 6.0

    def __init__(self, channels: int, cells_hw: tuple[int, int], n_points: int, input_hw: tuple[int, int]) -> None:
        super().__init__()
        height, width = input_hw
        self.per_point = nn.Conv2d(channels, n_points, 1)
        cells = cells_hw[0] * cells_hw[1]
        bins = [round(side * self.SPLIT * (1 + 2 * self.BEYOND)) for side in (width, height)]
        self.axes = nn.ModuleList(nn.Sequential(nn.Linear(cells, 256), nn.SiLU(), nn.Linear(256, n)) for n in bins)
        for name, n in zip("xy", bins):
            centers = (torch.arange(n) + 0.5) / n * (1 + 2 * self.BEYOND) - self.BEYOND
            self.register_buffer(f"centers_{name}", centers, persistent=False)

    def _centers(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("centers_x"), self.get_buffer("centers_y")

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, N) logits for x and for y."""
        cells_BKN = self.per_point(features_BCHW).flatten(2)
        return self.axes[0](cells_BKN), self.axes[1](cells_BKN)

    def encode(self, points_BK2: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a Gaussian SIGMA_BINS wide round each coordinate."""
        x, y = (
            -0.5 * ((points_BK2[..., i, None] - centers) / ((centers[1] - centers[0]) * self.SIGMA_BINS)) ** 2
            for i, centers in enumerate(self._centers())
        )
        return x, y

    def decode(self, raw: tuple[Tensor, Tensor]) -> Prediction:
        means, variances = [], []
        for logits_BKN, centers in zip(raw, self._centers()):
            share = logits_BKN.float().softmax(-1)
            mean = (share * centers).sum(-1)
            means.append(mean)
            variances.append((share * (centers - mean[..., None]) ** 2).sum(-1))
        return Prediction(torch.stack(means, -1), torch.stack(variances, -1).sum(-1).sqrt())

    def loss(self, raw: tuple[Tensor, Tensor], points_BK2: Tensor) -> Tensor:
        """Cross-entropy of both axes, minus the entropy of the target: zero at best."""
        total = points_BK2.new_zeros(points_BK2.shape[:2])
        for logits, wanted in zip(raw, self.encode(points_BK2)):
            total = total + F.kl_div(
                logits.float().log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="none"
            ).sum(-1)
        return total


class Heatmap(Head):
    """A heatmap per point at stride 4 and the point's offset from its cell, trained with Adaptive Wing and L1.

    Features of all levels are added up to stride 4; `stacks` hourglasses (Newell et al., ECCV 2016) then look again,
    each with its own output and loss; the last one counts. A point outside the crop peaks at its edge and the offset
    goes on from there.
    """

    needs_pyramid = True
    STRIDE, WIDTH, SIGMA_CELLS = 4, 128, 1.5

    def __init__(
        self, channels: list[int], strides: list[int], n_points: int, input_hw: tuple[int, int], stacks: int = 0
    ) -> None:
        super().__init__()
        self.cells_hw = (input_hw[0] // self.STRIDE, input_hw[1] // self.STRIDE)
        self.n_points = n_points
        used = [i for i, stride in enumerate(strides) if stride >= self.STRIDE]
        self.used = used
        self.lateral = nn.ModuleList(nn.Conv2d(channels[i], self.WIDTH, 1) for i in used)
        self.smooth = _conv(self.WIDTH, self.WIDTH)
        self.stacks = nn.ModuleList(_Hourglass(self.WIDTH, depth=3) for _ in range(stacks))
        self.outputs = nn.ModuleList(nn.Conv2d(self.WIDTH, 3 * n_points, 1) for _ in range(stacks + 1))
        self.back = nn.ModuleList(nn.Conv2d(3 * n_points, self.WIDTH, 1) for _ in range(stacks))
        for output in self.outputs:
            # most of a heatmap is empty
            nn.init.constant_(output.bias[:n_points], -4.0)  # type: ignore[index]
        y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in self.cells_hw), indexing="ij")
        self.register_buffer("grid_HW2", torch.stack([x, y], -1), persistent=False)

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """[(B, 3 K, H, W)] an output a stack: K heatmap logits, then K offsets in x, then K in y, in cells."""
        merged = self.lateral[-1](pyramid[self.used[-1]])
        for i in reversed(range(len(self.used) - 1)):
            level = self.lateral[i](pyramid[self.used[i]])
            merged = level + F.interpolate(merged, size=level.shape[-2:], mode="nearest")
        if merged.shape[-2:] != self.cells_hw:
            merged = F.interpolate(merged, size=self.cells_hw, mode="bilinear", align_corners=False)
        features = self.smooth(merged)
        raw = [self.outputs[0](features)]
        for stack, output, back in zip(self.stacks, list(self.outputs)[1:], self.back):
            features = features + back(raw[-1]) + stack(features)
            raw.append(output(features))
        return raw

    def encode(self, points_BK2: Tensor) -> list[Tensor]:
        """Logits of Gaussian heatmaps and the offset from every cell."""
        cells = self._cells(points_BK2)
        away = cells[:, :, None, None] - self._grid()
        peak = self._peak(cells)
        near = peak[:, :, None, None] - self._grid()
        heat = torch.exp(-0.5 * (near**2).sum(-1) / self.SIGMA_CELLS**2).clamp(1e-4, 1 - 1e-4)
        return [torch.cat([torch.logit(heat), away[..., 0], away[..., 1]], 1)]

    def decode(self, raw: list[Tensor]) -> Prediction:
        heat, dx, dy = raw[-1].float().split(self.n_points, 1)
        heat_BKN = heat.flatten(2)
        best = heat_BKN.argmax(-1, keepdim=True)
        width = self.cells_hw[1]
        x = (best % width) + dx.flatten(2).gather(-1, best)
        y = torch.div(best, width, rounding_mode="floor") + dy.flatten(2).gather(-1, best)
        points = self._unit(torch.cat([x, y], -1))
        # a clear peak is high; what is missing is uncertainty, in cells
        sigma = (1 - heat_BKN.gather(-1, best).sigmoid()[..., 0]) * self.SIGMA_CELLS / width
        return Prediction(points, sigma)

    def loss(self, raw: list[Tensor], points_BK2: Tensor) -> Tensor:
        heat_wanted, dx_wanted, dy_wanted = self.encode(points_BK2)[0].split(self.n_points, 1)
        heat_wanted = heat_wanted.sigmoid()
        # offsets matter only near the peak
        near = (heat_wanted > 0.3).float()
        share = near / near.sum((2, 3), keepdim=True).clamp_min(1)
        total = points_BK2.new_zeros(points_BK2.shape[:2])
        for output in raw:
            heat, dx, dy = output.float().split(self.n_points, 1)
            away = ((dx - dx_wanted).abs() + (dy - dy_wanted).abs()) * share
            total = total + losses.adaptive_wing(heat.sigmoid(), heat_wanted) + 0.5 * away.sum((2, 3))
        return total / len(raw)

    def _grid(self) -> Tensor:
        return self.get_buffer("grid_HW2")

    def _cells(self, points_BK2: Tensor) -> Tensor:
        """Unit coordinates as cells; integers are cell centres."""
        return points_BK2 * points_BK2.new_tensor(self.cells_hw[::-1]) - 0.5

    def _unit(self, cells: Tensor) -> Tensor:
        return (cells + 0.5) / cells.new_tensor(self.cells_hw[::-1])

    def _peak(self, cells: Tensor) -> Tensor:
        """The cell of a point's peak: its own, or the nearest inside."""
        limit = cells.new_tensor(self.cells_hw[::-1]) - 1
        return torch.minimum(cells.round().clamp_min(0), limit)


class Star(Heatmap):
    """The same network read as a distribution: the mean is the point, the spread its uncertainty; with STAR loss.

    GUIDE weighs how far the distribution is from a Gaussian round the point: STAR alone moves a flat one hardly at all.
    """

    GUIDE = 0.3

    def encode(self, points_BK2: Tensor) -> list[Tensor]:
        cells = self._cells(points_BK2)
        away = cells[:, :, None, None] - self._grid()
        logits = -0.5 * (away**2).sum(-1) / self.SIGMA_CELLS**2
        return [torch.cat([logits, away[..., 0] * 0, away[..., 1] * 0], 1)]

    def decode(self, raw: list[Tensor]) -> Prediction:
        mean, covariance = self._moments(raw[-1])
        spread = torch.diagonal(covariance, dim1=-2, dim2=-1).sum(-1).clamp_min(0).sqrt()
        return Prediction(self._unit(mean), spread / self.cells_hw[1])

    def loss(self, raw: list[Tensor], points_BK2: Tensor) -> Tensor:
        cells = self._cells(points_BK2)
        wanted = self.encode(points_BK2)[0][:, : self.n_points].flatten(2).log_softmax(-1)
        total = points_BK2.new_zeros(points_BK2.shape[:2])
        for output in raw:
            # keeps the unused offsets in the graph, or DDP would wait for their gradients
            unused = 0.0 * output[:, self.n_points :].float().mean((1, 2, 3))[:, None]
            log_share = output[:, : self.n_points].float().flatten(2).log_softmax(-1)
            astray = F.kl_div(log_share, wanted, log_target=True, reduction="none").sum(-1)
            total = total + losses.star(*self._moments(output), cells) + self.GUIDE * astray + unused
        return total / len(raw)

    def _moments(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, K, 2) and covariance (B, K, 2, 2) in cells."""
        share = output[:, : self.n_points].float().flatten(2).softmax(-1).unflatten(-1, self.cells_hw)
        # sums, not matrix products, whose factors a GPU rounds to ten bits (TF32); and about the mean, because the
        # difference of two large squares is only rounding error where the peak is sharp
        columns_BKW, rows_BKH = share.sum(-2), share.sum(-1)
        xs_W, ys_H = self._grid()[0, :, 0], self._grid()[:, 0, 1]
        x, y = (columns_BKW * xs_W).sum(-1), (rows_BKH * ys_H).sum(-1)
        dx_BKW, dy_BKH = xs_W - x[..., None], ys_H - y[..., None]
        xx, yy = (columns_BKW * dx_BKW**2).sum(-1), (rows_BKH * dy_BKH**2).sum(-1)
        xy = ((share * dx_BKW[..., None, :]).sum(-1) * dy_BKH).sum(-1)
        return torch.stack([x, y], -1), torch.stack([torch.stack([xx, xy], -1), torch.stack([xy, yy], -1)], -2)


class _Hourglass(nn.Module):
    """Down `depth` times and up again, with a skip connection at each level."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.across = _conv(width, width)
        self.down = _conv(width, width, stride=2)
        self.inner = _Hourglass(width, depth - 1) if depth > 1 else _conv(width, width)
        self.up = _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        across = self.across(x)
        small = self.up(self.inner(self.down(x)))
        return across + F.interpolate(small, size=across.shape[-2:], mode="nearest")


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())
