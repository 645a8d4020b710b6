"""LandmarkNet: a timm backbone, a head, and the one place where pixels are normalised. Saving and loading it.

    net = LandmarkNet(NetSpec("tf_efficientnet_b5"))
    save(net, card, path); net, card = load(path)

Suffixes: B faces, H W pixels, K points.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lineament.landmarks.card import CropScale, ModelCard
from lineament.landmarks.files import replaced
from lineament.landmarks.schema import SCHEMAS
from lineament.landmarks.types import F32, U8, LineamentError
from lineament.train.heads import Coordinates, Head, HeadName, Heatmap, SimCC, Star
from lineament.train.native import timm


@dataclass(frozen=True)
class NetSpec:
    """Everything a network is built from; saved with the weights."""

    backbone: str = "tf_efficientnet_b5"
    """name of any convolutional timm model"""
    head: HeadName = "coords"
    schema: str = "wflw98"
    input_hw: tuple[int, int] = (256, 256)
    stacks: int = 0
    """hourglasses of the heatmap heads"""
    presence: bool = False
    """a second output: the probability that there is a face; trained on samples without points"""
    drop_path: float = 0.0
    """stochastic depth in training, 0..1"""
    visibility: bool = False
    """a third output: the probability that each point is seen, which also lowers the presence of faces that lie upside
    down or beside the crop; train.visibility adds it to a trained net"""

    def __post_init__(self) -> None:
        if self.schema not in SCHEMAS:
            raise ValueError(f"unknown schema {self.schema!r}, expected one of {sorted(SCHEMAS)}")
        if len(self.input_hw) != 2 or not all(type(side) is int and 32 <= side <= 4096 for side in self.input_hw):
            raise ValueError(f"input_hw is {self.input_hw}, expected 32x32 to 4096x4096")
        if not isinstance(self.backbone, str) or not type(self.presence) is type(self.visibility) is bool:
            raise ValueError(
                f"backbone is {self.backbone!r}, presence {self.presence!r} and visibility {self.visibility!r}, "
                "expected a name and two bools"
            )
        if self.head not in get_args(HeadName):
            raise ValueError(f"unknown head {self.head!r}, expected one of {', '.join(get_args(HeadName))}")
        if type(self.stacks) is not int or not 0 <= self.stacks <= 16:
            raise ValueError(f"stacks is {self.stacks!r}, expected 0 to 16")
        if type(self.drop_path) not in (int, float) or not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path is {self.drop_path!r}, expected 0 or more, below 1")


class Answer(NamedTuple):
    """What a net says of B crops."""

    points_unit: Tensor
    """(B, K, 2) unit crop coordinates"""
    presence: Tensor | None
    """(B,) 0..1: there is a face; None without this output"""
    visibility: Tensor | None
    """(B, K) 0..1: the point is seen; None without this output"""


class Visibility(nn.Module):
    """Whether each point is seen, and whether the crop fits the face, from the last features, whose cells keep their
    places."""

    WIDTH = 96
    """channels a cell keeps"""

    def __init__(self, features_BCHW: Tensor, n_points: int) -> None:
        super().__init__()
        _, channels, height, width = features_BCHW.shape
        self.squeeze = nn.Sequential(nn.Conv2d(channels, self.WIDTH, 1), nn.SiLU())
        self.linear = nn.Linear(self.WIDTH * height * width, n_points + 1)

    def logits(self, features_BCHW: Tensor) -> Tensor:
        """(B, K + 1): of each point, then of the crop."""
        return self.linear(self.squeeze(features_BCHW).flatten(1))

    def forward(self, features_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K) and (B,), 0..1 in float32."""
        probability = self.logits(features_BCHW).float().sigmoid()
        return probability[:, :-1], probability[:, -1]


class LandmarkNet(nn.Module):
    """uint8 crops in, a head's raw outputs or points out. Every parameter is trained: no layer is frozen."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, spec: NetSpec, pretrained: bool = False) -> None:
        """pretrained: downloads timm's weights; raises LineamentError if that fails."""
        super().__init__()
        self.spec = spec
        self.schema = SCHEMAS[spec.schema]
        self.input_hw = spec.input_hw
        self._pyramid = spec.head in ("heatmap", "star")
        self.backbone = _backbone(spec, pretrained, self._pyramid)
        cfg = timm.get_pretrained_cfg(spec.backbone).to_dict()
        self.register_buffer("mean_3", torch.tensor(cfg["mean"]) * 255, persistent=False)
        self.register_buffer("std_3", torch.tensor(cfg["std"]) * 255, persistent=False)
        self.backbone.eval()
        levels = self._features(torch.zeros(1, 3, *spec.input_hw))
        _prune(self.backbone, levels[-1])
        self.backbone.train()
        self.head = _head(spec, levels)
        self.presence = nn.Linear(levels[-1].shape[1], 1) if spec.presence else None
        self.visibility = Visibility(levels[-1], len(self.schema)) if spec.visibility else None

    def forward(self, rgb_BHW3: Tensor) -> tuple[Any, Tensor | None]:
        """rgb_BHW3: uint8 -> raw output of the head, and presence logits (B,) or None."""
        return self._answer(self.levels(rgb_BHW3))

    def points(self, rgb_BHW3: Tensor) -> Answer:
        """The same decoded, with the visibility of each point."""
        levels = self.levels(rgb_BHW3)
        raw, logits = self._answer(levels)
        presence, seen = None if logits is None else logits.float().sigmoid(), None
        if self.visibility is not None:
            seen, placed = self.visibility(levels[-1])
            presence = placed if presence is None else presence * placed
        return Answer(self.head.decode(raw).points_unit, presence, seen)

    def levels(self, rgb_BHW3: Tensor) -> list[Tensor]:
        """rgb_BHW3: uint8 -> the features (B, C, H, W) that the outputs use, finest first."""
        x = (rgb_BHW3.permute(0, 3, 1, 2).float() - self.mean_3[:, None, None]) / self.std_3[:, None, None]
        return self._features(x.contiguous(memory_format=torch.channels_last))

    def _answer(self, levels: list[Tensor]) -> tuple[Any, Tensor | None]:
        raw = self.head(levels if self.head.needs_pyramid else levels[-1])
        return raw, None if self.presence is None else self.presence(levels[-1].mean((2, 3)))[:, 0]

    @property
    def mean(self) -> tuple[float, float, float]:
        r, g, b = (self.mean_3 / 255).tolist()
        return round(r, 6), round(g, 6), round(b, 6)

    @property
    def std(self) -> tuple[float, float, float]:
        r, g, b = (self.std_3 / 255).tolist()
        return round(r, 6), round(g, 6), round(b, 6)

    def _features(self, x_B3HW: Tensor) -> list[Tensor]:
        """The levels that the head uses, finest first."""
        return list(self.backbone(x_B3HW)) if self._pyramid else [self.backbone.forward_features(x_B3HW)]


def _backbone(spec: NetSpec, pretrained: bool, pyramid: bool) -> Any:
    if not timm.is_model(spec.backbone):
        near = ", ".join(timm.list_models(f"*{spec.backbone.rpartition('_')[2]}*")[:5]) or "tf_efficientnet_b5"
        raise LineamentError(f"timm has no model {spec.backbone!r}; did you mean one of {near}?")
    options: dict[str, Any] = {"features_only": True} if pyramid else {"num_classes": 0, "global_pool": ""}
    if spec.drop_path:
        options["drop_path_rate"] = spec.drop_path
    try:
        net = timm.create_model(spec.backbone, pretrained=pretrained, **options)
    except (RuntimeError, OSError, ValueError) as error:
        if not pretrained:
            raise LineamentError(f"timm cannot build {spec.backbone!r} as a backbone: {error}") from error
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise LineamentError(
            f"cannot fetch the pretrained weights of {spec.backbone} ({reason}); "
            "train from scratch with --no-pretrained, or give a local file with --init weights.safetensors"
        ) from error
    return net


def _prune(net: nn.Module, output: Tensor) -> None:
    """Removes layers that the output does not depend on: those of a classifier after a pooling that is not used.

    They would never learn, and DistributedDataParallel would wait for their gradients.
    """
    named = dict(net.named_parameters())
    gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True)
    unused = {name for name, gradient in zip(named, gradients) if gradient is None}
    for path in {name.rpartition(".")[0] for name in unused}:
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Identity())


def _head(spec: NetSpec, levels: list[Tensor]) -> Head:
    k = len(SCHEMAS[spec.schema])
    last = levels[-1]
    if last.ndim != 4 or not last.shape[2] == last.shape[3] * spec.input_hw[0] // spec.input_hw[1]:
        raise LineamentError(
            f"{spec.backbone} gives features of shape {tuple(last.shape)}, expected (B, C, H, W); "
            "take a convolutional model"
        )
    cells_hw = (last.shape[2], last.shape[3])
    match spec.head:
        case "coords":
            return Coordinates(last.shape[1], cells_hw, k)
        case "simcc":
            return SimCC(last.shape[1], cells_hw, k, spec.input_hw)
        case "heatmap" | "star":
            kind = Heatmap if spec.head == "heatmap" else Star
            strides = [spec.input_hw[1] // level.shape[3] for level in levels]
            return kind([level.shape[1] for level in levels], strides, k, spec.input_hw, spec.stacks)


# ---- files


def save(net: LandmarkNet, card: ModelCard, path: Path, half: bool = False) -> ModelCard:
    """Writes weights, spec and card as one safetensors file, atomically; returns the card as written.

    half: floating weights as float16, for shipping.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    card = replace(card, weights_sha256=_digest(tensors), precision="fp16" if half else "fp32")
    with replaced(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=_metadata(net.spec, card))
    return card


def load(path: Path, device: str = "cpu") -> tuple[LandmarkNet, ModelCard]:
    """A trained net in eval mode, and its card. Raises LineamentError if the file is foreign or damaged."""
    spec, card = read_header(path)
    net = LandmarkNet(spec)
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise LineamentError(f"cannot read {path}: {error}; copy it again, or train again") from error
    if (found := _digest(tensors)) != card.weights_sha256:
        raise LineamentError(
            f"the weights in {path} have hash {found[:12]}, its card says {card.weights_sha256[:12]}; "
            "the file was changed after training: copy it again"
        )
    try:
        net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except RuntimeError as error:
        raise LineamentError(
            f"the weights in {path} do not fit {spec.backbone}; train with this timm, "
            f"{version('timm')}, or install {dict(card.built_with).get('timm', 'the one of the card')}"
        ) from error
    return net.to(device).eval(), card


def read_header(path: Path) -> tuple[NetSpec, ModelCard]:
    """Spec and card, without the weights."""
    if not os.path.isfile(path):
        raise LineamentError(
            f"no model at {path}; `make train DATA=...` trains one, best.safetensors in its run folder"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        spec = json.loads(metadata["net"])
        spec["input_hw"] = tuple(spec["input_hw"])
        net, card = NetSpec(**spec), ModelCard.from_json(metadata["card"])
        if (net.input_hw, net.schema) != (card.input_hw, card.schema):
            raise ValueError(
                f"its net takes {net.input_hw} and gives {net.schema}, its card says {card.input_hw} and {card.schema}"
            )
        return net, card
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise LineamentError(
            f"{path} is not a Lineament model ({type(error).__name__}: {str(error)[:200]}); "
            "expected a best.safetensors from `make train`"
        ) from error


def write_card(path: Path, card: ModelCard) -> None:
    """Replaces the card of a saved model, for `train.evaluate --write-card`."""
    spec, _ = read_header(path)
    tensors = safetensors.torch.load_file(path)
    with replaced(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=_metadata(spec, card))


def load_initial(net: LandmarkNet, path: Path) -> None:
    """Loads initial weights from a file: one of our models, or a state dict of the timm backbone, with any head.

    Tensors of another shape (a classifier, a head for other points) are left as they are. A state dict whose names are
    not timm's is taken in its order, if every shape is right. Raises LineamentError where neither fits.
    """
    state, own = read_weights(path), net.state_dict()
    # a pyramid backbone has names with underscores: stages_0.blocks for stages.0.blocks
    by_name = {_flat(name).removeprefix("backbone_"): value for name, value in state.items()}
    fitting = {
        name: by_name[flat]
        for name, value in own.items()
        if (flat := _flat(name).removeprefix("backbone_")) in by_name and by_name[flat].shape == value.shape
    }
    backbone = [name for name in own if name.startswith("backbone.")]
    if len(fitting) < len(backbone) / 4:
        fitting = in_order({name: own[name] for name in backbone}, state, path)
    net.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in fitting.items()}, strict=False
    )


def in_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The first tensors of state, under own's names. Raises LineamentError, naming path, if a shape differs."""
    named = dict(zip(own, state.values()))
    if wrong := [name for name in own if name not in named or named[name].shape != own[name].shape]:
        raise LineamentError(
            f"{path} does not fit, by name or in order: {len(wrong)} of {len(own)} tensors differ, the first is "
            f"{wrong[0]}; it may belong to another model"
        )
    return named


def _flat(name: str) -> str:
    return name.replace(".", "_")


def offline_weights(folder: Path, backbone: str) -> Path:
    """A backbone's file in a folder of weights: <timm name>.safetensors, .pth or .bin."""
    for suffix in (".safetensors", ".pth", ".bin"):
        if os.path.isfile(path := folder / f"{backbone}{suffix}"):
            return path
    raise LineamentError(
        f"{folder} contains no {backbone}.safetensors, .pth or .bin; save timm's weights there under that name, "
        "or train from scratch with --no-pretrained"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a state dict saved by torch."""
    if not os.path.isfile(path):
        raise LineamentError(f"no weights at {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise LineamentError(
            f"cannot read the weights in {path}: {error}; expected .safetensors or a state dict"
        ) from error


def new_card(net: LandmarkNet, name: str, crop_scale: CropScale) -> ModelCard:
    """The card of a net in training: what serving needs, without scores."""
    packages = ("torch", "timm", "albumentations")
    return ModelCard(
        name=name,
        schema=net.spec.schema,
        input_hw=net.spec.input_hw,
        crop_scale=crop_scale,
        mean=net.mean,
        std=net.std,
        head=net.spec.head,
        built_with={package: version(package) for package in packages},
    )


def predictor(net: LandmarkNet, device: str = "cpu", flip: bool = False, batch: int = 64) -> Callable[[U8], F32]:
    """net as a function of crops (N, H, W, 3) uint8 RGB -> (N, K, 2) unit coordinates.

    flip: the mean with what it says of the mirrored crops.
    """

    @torch.inference_mode()
    def predict(rgb_NHW3: U8) -> F32:
        net.eval()
        found = [np.zeros((0, len(net.schema), 2), np.float32)]
        for start in range(0, len(rgb_NHW3), batch):
            rgb = torch.from_numpy(np.ascontiguousarray(rgb_NHW3[start : start + batch])).to(device)
            points = net.points(rgb).points_unit.cpu().numpy()
            if flip:
                mirrored = net.points(rgb.flip(2)).points_unit.cpu().numpy()
                points = (points + net.schema.flipped(mirrored, 2.0)) / 2
            found.append(points)
        return np.concatenate(found).astype(np.float32)

    return predict


def _metadata(spec: NetSpec, card: ModelCard) -> dict[str, str]:
    return {"net": json.dumps(asdict(spec)), "card": card.to_json()}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        # as bytes, because a damaged file may name dtypes that numpy lacks
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
