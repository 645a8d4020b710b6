"""The network: nothing frozen, normalised once, saved and loaded whole, and clear about what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from lineament.landmarks.types import LineamentError
from lineament.train import model
from lineament.train.model import LandmarkNet, NetSpec
from lineament.train.native import timm

TINY = NetSpec("test_efficientnet", input_hw=(64, 64))


@pytest.fixture(scope="module")
def net() -> LandmarkNet:
    torch.manual_seed(0)
    return LandmarkNet(TINY).eval()


def crops(n: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", ["coords", "simcc", "heatmap", "star"])
def test_every_head_sits_on_a_backbone_with_nothing_frozen(head: str) -> None:
    spec = replace(TINY, head=head, presence=True, stacks=1 if head == "heatmap" else 0)
    net = LandmarkNet(spec)
    raw, presence = net(crops())
    assert presence is not None and presence.shape == (3,)
    (net.head.loss(raw, torch.full((3, 98, 2), 0.4)).sum() + presence.sum()).backward()
    assert [n for n, p in net.named_parameters() if not p.requires_grad or p.grad is None] == []


@pytest.mark.parametrize(
    "backbone", ["test_convnext", "test_resnet", "mobilenetv4_conv_small_035", "mobilenetv3_small_050"]
)
def test_layers_behind_a_pooling_that_is_not_done_are_left_out(backbone: str) -> None:
    net = LandmarkNet(replace(TINY, backbone=backbone))
    net.points(crops()).points_unit.sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_the_default_is_the_whole_b5() -> None:
    net = LandmarkNet(NetSpec())
    b5 = timm.create_model("tf_efficientnet_b5", pretrained=False, num_classes=0)
    assert sum(p.numel() for p in net.backbone.parameters()) == sum(p.numel() for p in b5.parameters())
    assert all(p.requires_grad for p in net.parameters())


def test_pixels_are_normalised_inside_with_the_backbones_own_numbers(net: LandmarkNet) -> None:
    cfg = timm.get_pretrained_cfg("test_efficientnet").to_dict()
    assert net.mean == pytest.approx(cfg["mean"], abs=1e-5) and net.std == pytest.approx(cfg["std"], abs=1e-5)
    mean_grey = torch.tensor(np.round(np.array(net.mean) * 255), dtype=torch.uint8).expand(1, 64, 64, 3)
    seen: list[torch.Tensor] = []
    hook = net.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    stem = next(net.backbone.children()).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net(mean_grey)
    hook.remove()
    stem.remove()
    assert seen and seen[0].abs().max() < 0.02


def test_a_saved_net_says_the_same_and_carries_its_card(net: LandmarkNet, tmp_path: Path) -> None:
    card = replace(model.new_card(net, "tiny", 1.3), nme={"held out": 4.2})
    saved = model.save(net, card, tmp_path / "tiny.safetensors")
    again, read = model.load(tmp_path / "tiny.safetensors")
    assert read == saved and read.nme == {"held out": 4.2} and len(read.weights_sha256) == 64
    torch.testing.assert_close(again.points(crops())[0], net.points(crops())[0])


def test_half_the_size_says_nearly_the_same(net: LandmarkNet, tmp_path: Path) -> None:
    model.save(net, model.new_card(net, "tiny", 1.3), tmp_path / "full.safetensors")
    card = model.save(net, model.new_card(net, "tiny", 1.3), tmp_path / "half.safetensors", half=True)
    assert card.precision == "fp16"
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    half, _ = model.load(tmp_path / "half.safetensors")
    torch.testing.assert_close(half.points(crops())[0], net.points(crops())[0], atol=2e-3, rtol=0)


def test_evaluation_can_replace_the_card_alone(net: LandmarkNet, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    card = model.save(net, model.new_card(net, "tiny", 1.3), path)
    model.write_card(path, replace(card, nme={"test": 5.0}))
    again, read = model.load(path)
    assert read.nme == {"test": 5.0}
    torch.testing.assert_close(again.points(crops())[0], net.points(crops())[0])


def test_damaged_foreign_and_absent_files_are_refused(net: LandmarkNet, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    with pytest.raises(LineamentError, match="no model at"):
        model.load(path)
    model.save(net, model.new_card(net, "tiny", 1.3), path)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(LineamentError, match=r"tiny\.safetensors"):
            model.load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(LineamentError, match="its card says"):
        model.load(path)
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(LineamentError, match="not a Lineament model"):
        model.load(path)


def test_unknown_and_unfit_backbones_are_named() -> None:
    with pytest.raises(LineamentError, match=r"did you mean one of .*efficientnet_b5"):
        LandmarkNet(replace(TINY, backbone="my_efficientnet_b5"))
    with pytest.raises(LineamentError, match="take a convolutional model"):
        LandmarkNet(replace(TINY, backbone="test_vit", input_hw=(160, 160)))


def test_pretrained_weights_that_cannot_be_fetched_name_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(*args: object, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("cannot reach the hub")
        return create(*args, pretrained=False, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(LineamentError, match=r"--no-pretrained.*--init"):
        LandmarkNet(TINY, pretrained=True)


def test_initial_weights_come_from_a_backbone_or_from_an_earlier_run(net: LandmarkNet, tmp_path: Path) -> None:
    torch.save(net.backbone.state_dict(), tmp_path / "backbone.pth")
    model.save(net, model.new_card(net, "tiny", 1.3), tmp_path / "run.safetensors")
    for name in ("backbone.pth", "run.safetensors"):
        torch.manual_seed(5)
        fresh = LandmarkNet(TINY)
        model.load_initial(fresh, tmp_path / name)
        for (key, a), b in zip(fresh.backbone.state_dict().items(), net.backbone.state_dict().values()):
            assert torch.equal(a, b), key
    with pytest.raises(LineamentError, match="belong to another model"):
        model.load_initial(LandmarkNet(replace(TINY, backbone="test_resnet")), tmp_path / "backbone.pth")


@pytest.mark.parametrize("backbone", ["test_convnext", "test_efficientnet", "test_resnet"])
@pytest.mark.parametrize("head", ["heatmap", "simcc"])
def test_any_head_begins_with_all_of_a_backbones_weights(backbone: str, head: str, tmp_path: Path) -> None:
    source = timm.create_model(backbone, num_classes=0)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    torch.manual_seed(7)
    fresh = LandmarkNet(replace(TINY, backbone=backbone, head=head))
    model.load_initial(fresh, tmp_path / "weights.pth")
    wanted = {name.replace(".", "_"): value for name, value in source.state_dict().items()}
    taken = fresh.backbone.state_dict()
    assert len(taken) > 0.8 * len(wanted)
    for name, value in taken.items():
        assert torch.equal(value, wanted[name.replace(".", "_")]), name


def test_weights_of_other_names_are_taken_in_their_order(tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet", num_classes=10)
    foreign = {f"layer{i}": value for i, value in enumerate(source.state_dict().values())}
    torch.save(foreign, tmp_path / "foreign.pth")
    fresh = LandmarkNet(TINY)
    model.load_initial(fresh, tmp_path / "foreign.pth")
    assert torch.equal(fresh.backbone.state_dict()["conv_stem.weight"], source.state_dict()["conv_stem.weight"])


def test_offline_weights_are_found_by_timms_name(tmp_path: Path) -> None:
    with pytest.raises(LineamentError, match=r"no tf_efficientnet_b5\.safetensors, \.pth or \.bin"):
        model.offline_weights(tmp_path, "tf_efficientnet_b5")
    (tmp_path / "tf_efficientnet_b5.pth").touch()
    assert model.offline_weights(tmp_path, "tf_efficientnet_b5") == tmp_path / "tf_efficientnet_b5.pth"


def test_mirrored_crops_are_averaged_in_the_schemas_order(net: LandmarkNet) -> None:
    rgb = crops(4).numpy()
    plain, both = model.predictor(net)(rgb), model.predictor(net, flip=True)(rgb)
    mirrored = model.predictor(net)(np.ascontiguousarray(rgb[:, :, ::-1]))
    np.testing.assert_allclose(both, (plain + net.schema.flipped(mirrored, 2.0)) / 2, atol=1e-6)
    assert model.predictor(net)(rgb[:0]).shape == (0, 98, 2)
