"""Backbones of the user's own, through the same table as the built-in ones."""

from __future__ import annotations

import copy
import gc
import pickle
from unittest import mock

import pytest
import torch
from frozen_networks import frozen_network, live_networks
from references import relative_difference
from torch import nn
from torchvision import models

from lpips_lightning import LPIPS, LearnedPerceptualImagePatchSimilarity, PerceptualLoss
from lpips_lightning.backbones.custom import IMAGENET_MEAN, IMAGENET_STD, from_module, from_torchvision
from lpips_lightning.functional import learned_perceptual_image_patch_similarity, temporal_lpips
from lpips_lightning.weights import WeightsError

VGG_TAPS = {"relu1_2": "features.3", "relu2_2": "features.8", "relu3_3": "features.15", "relu4_3": "features.22"}


class Tower(nn.Module):
    """A backbone with a branch that torch.fx cannot trace, and a head that small images do not fit."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh())
        self.second = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(7, 2)

    def forward(self, x):
        x = self.first(x)
        if float(x.detach().sum()) > -1e9:
            x = self.second(x)
        return self.head(x.flatten())


def _slow(feature_layers, x, y):
    """The baseline in float64, straight from the formula."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for a, b in zip(feature_layers(x.double()), feature_layers(y.double()), strict=True):
        a, b = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
        total += (a - b).square().sum(1).mean((1, 2))
    return total


def without_classifier(builder):
    """torchvision's model; a classifier of a hundred million numbers would take longer than the rest."""
    with mock.patch.object(nn.Linear, "reset_parameters"), mock.patch.object(nn.init, "normal_"):
        model = models.get_model(builder, weights=None)
    setattr(model, "fc" if hasattr(model, "fc") else "classifier", nn.Identity())
    return model


@pytest.mark.parametrize(
    ("builder", "feature_layers", "channels", "side"),
    [
        ("vgg19", ["features.3", "features.8", "features.17"], (64, 128, 256), 4),
        ("resnet50", ["relu", "layer1", "layer2"], (64, 256, 512), 1),
        ("convnext_tiny", ["features.1", "features.3"], (96, 192), 8),
    ],
)
def test_torchvision_models_work_from_a_list_of_taps(pair, builder, feature_layers, channels, side):
    backbone = from_torchvision(builder, feature_layers)
    assert (backbone.channels, backbone.smallest_side) == (channels, side)
    torch.manual_seed(0)
    model = without_classifier(builder).double().eval()
    net = LPIPS(backbone, weights=model.state_dict(), calibrated=False)
    x, y = pair(2, 64, 48, torch.float64)
    found = {}
    for feature_map in feature_layers:
        model.get_submodule(feature_map).register_forward_hook(
            lambda _m, _i, out, feature_map=feature_map: found.setdefault(feature_map, out)
        )

    def slow_feature_layers(images):
        found.clear()
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        with torch.no_grad():
            model(((images + 1) / 2 - mean) / std)
        return [found[feature_map].clone() for feature_map in feature_layers]

    # The weights went through float32; the input scaling of the table is rounded to three digits, this one is not.
    assert relative_difference(net(x, y), _slow(slow_feature_layers, x, y)) < 1e-5
    assert list(net(x, y, per_layer=True)) == feature_layers
    assert f"LPIPS {builder} [{' '.join(feature_layers)}]" in net.fingerprint


def test_the_table_row_of_vgg_is_reached_by_its_taps(backbones, pair):
    x, y = pair()
    backbone = from_torchvision("vgg16", {**VGG_TAPS, "relu5_3": "features.29"})
    own = LPIPS(backbone, weights=backbones["vgg"], calibrated=False)
    assert torch.allclose(own(x, y), LPIPS("vgg", weights=backbones["vgg"], calibrated=False)(x, y), rtol=1e-5)
    assert backbone.smallest_side == 16


def test_any_module_traced_or_not_gives_its_taps_and_stays_untouched(pair):
    torch.manual_seed(0)
    module = Tower().train()
    before = copy.deepcopy(module.state_dict())
    backbone = from_module(module, {"a": "first", "b": "second"}, name="tower")
    assert (backbone.channels, backbone.smallest_side) == ((8, 12), 3)
    net = LPIPS(backbone, calibrated=False)
    x, y = pair(2, 24, 20, torch.float64)
    clone = copy.deepcopy(module).double().eval()

    def slow_feature_layers(images):
        with torch.no_grad():
            first = clone.first(images)
            return [first, clone.second(first)]

    assert relative_difference(net(x, y), _slow(slow_feature_layers, x, y)) < 1e-9
    x.requires_grad_()
    net(x, y).sum().backward()
    assert float(x.grad.norm()) > 0
    assert module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    nn.init.zeros_(module.second.weight)
    assert torch.equal(net(x, y), LPIPS(backbone, calibrated=False)(x, y))
    assert list(net.parameters()) == []


def test_mean_and_std_are_of_images_on_0_1(pair):
    x, y = pair(1, 16, 16, torch.float64)
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    net = LPIPS(from_module(module, ["1"], mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), calibrated=False)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    clone = copy.deepcopy(module).double()
    expected = _slow(lambda images: [clone(((images + 1) / 2 - mean) / std).detach()], x, y)
    assert relative_difference(net(x, y), expected) < 1e-6


def test_a_calibration_of_your_own_is_used_checked_and_named(tmp_path, pair):
    x, y = pair(1, 16, 16)
    backbone = from_module(
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 6, 3)), {"one.relu": "1", "two": "2"}
    )
    weights = {"one.relu": torch.rand(5), "two": torch.zeros(6)}
    net = LPIPS(backbone, calibration=weights)
    assert float(net(x, y, per_layer=True)["two"]) == 0
    assert "lin custom sha256:" in net.fingerprint
    with pytest.raises(ValueError, match="calibration: expected a path or tensors for net_type 'custom', which has no"):
        LPIPS(backbone)
    with pytest.raises(WeightsError, match=r"calibration: two: expected shape \(6,\), got \(5,\)"):
        LPIPS(backbone, calibration={**weights, "two": torch.zeros(5)})
    with pytest.raises(ValueError, match="version: expected one of '0.1' for net_type 'custom', got '0.0'"):
        LPIPS(backbone, calibration=weights, version="0.0")


def test_metric_and_loss_take_a_backbone_and_copies_keep_it(pair):
    x, y = pair(1, 16, 16)
    backbone = from_module(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), ["1"])
    metric = LearnedPerceptualImagePatchSimilarity(backbone, calibrated=False)
    loss = PerceptualLoss(backbone, data_range=(-1, 1), calibrated=False)
    expected = LPIPS(backbone, calibrated=False)(x, y)[0]
    for copied in (metric, copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert torch.equal(copied(x, y), expected)
    for copied in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied(x, y), expected)
    assert loss.state_dict() == {}


def test_backbones_that_differ_only_in_structure_are_not_mixed_up(pair):
    x, y = pair(1, 16, 16)
    convolution = nn.Conv2d(3, 5, 3)
    nets = [
        LPIPS(from_module(nn.Sequential(convolution, act()), ["1"]), calibrated=False) for act in (nn.ReLU, nn.Tanh)
    ]
    assert nets[0].specification != nets[1].specification
    assert not torch.equal(nets[0](x, y), nets[1](x, y))
    gc.collect()
    before = live_networks()
    again = LPIPS(from_module(nn.Sequential(convolution, nn.ReLU()), ["1"]), calibrated=False)
    assert frozen_network(again) is frozen_network(nets[0])
    assert live_networks() == before


class Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: from_torchvision("vgg99", ["features.3"]), ValueError, "builder: expected the name of a torchvision"),
        (
            lambda: from_torchvision("vgg16", ["features.99"]),
            ValueError,
            r"feature layers: expected names of parts of vgg16, got ",
        ),
        (
            lambda: from_torchvision("vgg16", "features.3"),
            ValueError,
            "feature layers: expected names of parts of the backbone, got",
        ),
        (lambda: from_torchvision("vgg16", []), ValueError, "feature layers: expected names"),
        (
            lambda: from_torchvision("vgg16", ["features.3"], std=(0, 1, 1)),
            ValueError,
            "std: expected positive numbers",
        ),
        (lambda: from_torchvision("vgg16", ["features.3"], mean=(0, 1)), ValueError, "input_channels: expected 3"),
        (lambda: from_module(torch.relu, ["0"]), TypeError, "module: expected a torch.nn.Module, got builtin"),
        (
            lambda: from_module(nn.Sequential(Tokens()), ["0"]),
            ValueError,
            r"shape \(N, C, h, w\) at '0', got \(1, 3, 6",
        ),
        (
            lambda: from_module(nn.Sequential(nn.Linear(3, 2)), ["0"]),
            ValueError,
            "custom: expected a backbone that takes 256",
        ),
    ],
)
def test_what_is_no_backbone_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_weights_are_looked_for_under_the_builders_name(tmp_path, monkeypatch, pair, caplog):
    backbone = from_torchvision("resnet18", ["relu", "layer1"])
    with pytest.raises(WeightsError, match=r"(?s)'resnet18' was not found.*resnet18-f37072fd.pth"):
        LPIPS(backbone, calibrated=False)
    torch.save({"state_dict": models.resnet18(weights=None).state_dict(), "epoch": 3}, tmp_path / "resnet18.pth")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    net = LPIPS(backbone, calibrated=False)
    assert bool(net(*pair()).isfinite().all())
    assert "backbone unverified" in net.fingerprint
    assert "resnet18.pth: whether these are torchvision's IMAGENET1K_V1 is not known" in caplog.text


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: f"encoder.{name}",
        lambda name: name.removeprefix("features."),
        lambda name: (
            {"0": "conv1", "3": "conv2", "6": "conv3", "8": "conv4", "10": "conv5"}[name.split(".")[1]]
            + name[name.rindex(".") :]
        ),
    ],
)
def test_self_trained_alexnets_load_by_their_names(backbones, tmp_path, pair, rename):
    x, y = pair()
    renamed = {rename(name): tensor for name, tensor in backbones["alex"].items()}
    prefix = (
        rename("features.0.weight").removesuffix("features.0.weight") if "features" in rename("features.0.a") else ""
    )
    renamed[f"{prefix}top_layer.weight"] = torch.zeros(2, 2)
    torch.save({"epoch": 7, "state_dict": renamed}, tmp_path / "own.pth")
    net = LPIPS("alex", weights=tmp_path / "own.pth")
    assert torch.equal(net(x, y), LPIPS("alex", weights=backbones["alex"])(x, y))
    assert "backbone custom" in net.fingerprint


def test_a_backbone_with_more_than_convolutions_is_not_taken_for_alexnet(backbones):
    more = {
        f"conv{i}.{p}": backbones["alex"][f"features.{j}.{p}"]
        for i, j in enumerate((0, 3, 6, 8, 10), 1)
        for p in ("weight", "bias")
    }
    more["bn1.running_mean"] = torch.zeros(64)
    with pytest.raises(WeightsError, match="unknown: bn1.running_mean"):
        LPIPS("alex", weights=more)


def test_functions_take_custom_backbones_and_keep_them_apart():
    first, second = (from_module(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), ["1"]) for _ in range(2))
    assert repr(first) == repr(second) and first != second
    x, y = torch.randn(2, 2, 3, 16, 16).clamp(-1, 1)

    def both(x, y):
        return [
            learned_perceptual_image_patch_similarity(x, y, backbone, "none", calibrated=False)
            for backbone in (first, second)
        ]

    expected = [LPIPS(backbone, calibrated=False)(x, y) for backbone in (first, second)]
    compiled = torch.compile(both, backend="eager")
    for found in (both(x, y), both(x, y), compiled(x, y)):
        assert torch.allclose(torch.stack(found), torch.stack(expected), rtol=1e-5)
    frames = temporal_lpips(x[None], y[None], first, calibrated=False)
    assert torch.equal(frames, temporal_lpips(x[None], y[None], LPIPS(first, calibrated=False)))
