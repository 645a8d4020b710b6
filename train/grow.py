"""Grows a small net into a larger one of its family, for a backbone without ImageNet weights at hand.

    python -m train.grow lite2.pth --small tf_efficientnet_lite2 --large tf_efficientnet_b5 --out b5-grown.safetensors
    python -m train --init b5-grown.safetensors ...

After Net2Net (Chen, Goodfellow, Shlens, ICLR 2016): every tensor of the small net becomes the leading part of the large
one's. What is new starts at random but unread: the old channels take nothing from new ones, new blocks of a stage add
nothing to what passes them, and gates that the small net lacks stand open. So the large net begins at what the small
one knows, as far as both have the same activations, and within the first steps all of it learns.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import tyro
from torch import Tensor, nn

from lineament.landmarks.command import ends_in_a_line
from lineament.landmarks.files import replaced
from lineament.landmarks.types import LineamentError
from lineament.train.model import in_order, read_weights
from lineament.train.native import timm

OPEN = 4.0
"""bias of a new gate: its sigmoid is 0.98"""


@dataclass(frozen=True)
class GrowConfig:
    """Writes the weights of a large backbone that starts as a smaller one of the same family."""

    weights: Annotated[Path, tyro.conf.Positional]
    """State dict of the small net, .pth or .safetensors, with timm's names, or others in timm's order."""
    out: Path
    """The .safetensors file to write, for `python -m train --init`."""
    small: str = "tf_efficientnet_lite2"
    """timm name of the small net."""
    large: str = "tf_efficientnet_b5"
    """timm name of the large net."""
    seed: int = 0


@ends_in_a_line
def main(args: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 failed, 2 wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    cfg = tyro.cli(GrowConfig, args=args, prog="python -m train.grow", description=GrowConfig.__doc__)
    torch.manual_seed(cfg.seed)
    small, large = (timm.create_model(name, num_classes=0) for name in (cfg.small, cfg.large))
    load_in_order(small, read_weights(cfg.weights), cfg.weights)
    kept = grow(small, large)
    state = {name: tensor.contiguous() for name, tensor in large.state_dict().items()}
    with replaced(cfg.out) as part:
        safetensors.torch.save_file(state, part)
    total = sum(tensor.numel() for tensor in large.parameters())
    print(f"{cfg.out}: {kept / 1e6:.1f} of {total / 1e6:.1f} million weights come from {cfg.small}")
    return 0


def load_in_order(net: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads state into net by name, or in order if the names differ and all shapes match. Skips a classifier."""
    own = net.state_dict()
    if own.keys() <= state.keys():
        state = {name: state[name] for name in own}
    net.load_state_dict(in_order(own, state, path))


@torch.no_grad()
def grow(small: Any, large: Any) -> int:
    """Copies small's weights into large, in place; returns how many. Raises LineamentError if large is not larger."""
    old, new, kept = small.state_dict(), large.state_dict(), 0
    for name, tensor in new.items():
        source = old.get(name)
        if source is None:
            _open_or_pass(name, tensor, old)
            continue
        if source.ndim != tensor.ndim or any(a > b for a, b in zip(source.shape, tensor.shape)):
            raise LineamentError(
                f"cannot grow: {name} is {tuple(source.shape)} in the small net, {tuple(tensor.shape)} in the large; "
                "take two nets of one family, such as tf_efficientnet_lite2 and tf_efficientnet_b5"
            )
        if tensor.ndim > 1:
            tensor[: source.shape[0]] = 0
        tensor[tuple(slice(side) for side in source.shape)] = source
        kept += source.numel()
    # the large net may normalise its pixels differently
    ratio = [b / a for a, b in zip(small.default_cfg["std"], large.default_cfg["std"])]
    stem = next(tensor for tensor in new.values() if tensor.ndim == 4)
    stem[: next(t for t in old.values() if t.ndim == 4).shape[0]] *= torch.tensor(ratio)[:, None, None]
    large.load_state_dict(new)
    return kept


def _open_or_pass(name: str, tensor: Tensor, old: Mapping[str, Tensor]) -> None:
    """Initialises a tensor without a counterpart: gates open, new blocks end in zero."""
    if ".se.conv_expand." in name:
        tensor.fill_(OPEN if name.endswith("bias") else 0)
    block = name.split(".")
    is_new_block = block[0] == "blocks" and not any(key.startswith(".".join(block[:3]) + ".") for key in old)
    # the last norm of a residual block: bn3, or bn2 without expansion
    if is_new_block and name.endswith(("bn3.weight", "bn2.weight" if block[1] == "0" else "bn3.weight")):
        tensor.zero_()


if __name__ == "__main__":
    sys.exit(main())
