"""The way through a backbone without autograd, against autograd in float64."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from frozen_networks import frozen_network
from references import relative_distance
from tiling_nets import PIECES, made, whole
from torch import nn
from torch.utils.module_tracker import ModuleTracker

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module
from lpips_lightning.engine import executor as executor_module
from lpips_lightning.engine.executor import (
    _AutogradExecutor,
    _ManualExecutor,
    choose_executor,
    iterate_features,
    pair_distances,
    pair_gradient,
)

BY_HAND = ("alex", "squeeze", "embedded", "thin", "thin-st", "thin-vgg-st")


class Branches(nn.Module):
    """A ReLU that is stacked, pooled and returned under two names; a convolution that leads to no feature layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 5, stride=2, padding=1), nn.ReLU()
        self.left, self.left_relu = nn.Conv2d(4, 3, 1), nn.ReLU(inplace=True)
        self.right, self.right_relu = nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.blind = nn.Conv2d(12, 2, 1)
        self.last = nn.Conv2d(12, 6, 3)
        self.same = nn.Identity()

    def forward(self, images):
        x = self.first(self.stem(images))
        stacked = torch.cat([self.left_relu(self.left(x)), x, self.right_relu(self.right(x))], 1)
        pooled = self.pool(stacked)
        self.blind(pooled)
        return self.same(self.last(pooled))


def double(net):
    return frozen_network(net, torch.float64)


def branches(feature_layers):
    torch.manual_seed(0)
    return double(LPIPS(from_module(Branches(), feature_layers, smallest_side=16), calibrated=False))


def images(count=2, height=49, width=66, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, count, 3, height, width, generator=generator, dtype=torch.float64)
    return [batch.contiguous(memory_format=torch.channels_last) for batch in pair]


@pytest.fixture(autouse=True)
def few_pixels_are_many(monkeypatch):
    monkeypatch.setattr(executor_module, "AUTOGRAD_PIXELS", 0)


def hold(network, x, y):
    expected, gradient = whole(network, x, y)
    given = x.clone(), y.clone()
    terms, found = pair_gradient(network, x, y)
    values = pair_distances(network, x, y)
    assert torch.equal(x, given[0]) and torch.equal(y, given[1])
    assert terms.keys() == values.keys() == expected.keys()
    for layer, term in expected.items():
        torch.testing.assert_close(terms[layer], term, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(values[layer], term, rtol=1e-12, atol=1e-15)
    assert relative_distance(found, gradient) < 1e-12


@pytest.mark.parametrize("name", PIECES)
def test_distances_and_gradients_are_those_of_autograd(backbones, name):
    _net, network = made(name, backbones)
    assert isinstance(
        choose_executor(network, torch.empty(1, 3, 64, 64)), _ManualExecutor if name in BY_HAND else _AutogradExecutor
    )
    hold(network, *images(height=97))


@pytest.mark.parametrize(
    "feature_layers",
    [
        {"a": "first", "b": "same"},
        {"a": "first", "again": "first", "b": "pool"},
        {"a": "left_relu", "b": "right_relu", "c": "last"},
        {"a": "stem", "b": "pool", "c": "last"},
    ],
)
def test_results_that_several_steps_or_layers_use_get_the_sum_of_gradients(feature_layers):
    network = branches(feature_layers)
    assert isinstance(choose_executor(network, torch.empty(1, 3, 64, 64)), _ManualExecutor)
    hold(network, *images())


@pytest.mark.parametrize("few", [0, 2**17])
def test_a_backbone_whose_layer_is_the_image_leaves_the_images_alone(monkeypatch, few):
    monkeypatch.setattr(executor_module, "AUTOGRAD_PIXELS", few)
    module = nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    network = double(LPIPS(from_module(module, ["0", "2"], smallest_side=16), calibrated=False))
    hold(network, *images())


@pytest.mark.parametrize("few", [0, 2**17])
@pytest.mark.parametrize("name", ["squeeze", "resnet"])
def test_gradient_hooks_on_all_modules_leave_the_gradient(backbones, monkeypatch, name, few):
    """FlopCounterMode and memory trackers register them on every module's input."""
    monkeypatch.setattr(executor_module, "AUTOGRAD_PIXELS", few)
    _net, network = made(name, backbones)
    x, y = images()
    with ModuleTracker() as tracker:
        _, found = pair_gradient(network, x, y)
        assert tracker._hooks
    assert relative_distance(found, whole(network, x, y)[1]) < 1e-12


def test_gradients_of_pools_stay_in_channels_last():
    """So that the ReLU before a pool writes its gradient in place instead of copying it."""
    leaf = torch.rand(1, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    result = nn.MaxPool2d(3, 2)(executor_module._not_a_leaf(leaf))
    (gradient,) = torch.autograd.grad(result, leaf, torch.ones_like(result))
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()


def test_features_in_the_place_of_images_are_not_written_over(backbones):
    _net, network = made("squeeze", backbones)
    x, y = images()
    expected, gradient = whole(network, x, y)
    with torch.no_grad():
        features = network.extractor(y)
    kept = {layer: feature_map.clone() for layer, feature_map in features.items()}
    terms, found = pair_gradient(network, x, features)
    assert all(torch.equal(features[layer], kept[layer]) for layer in kept)
    torch.testing.assert_close(sum(terms.values()), sum(expected.values()), rtol=1e-12, atol=0)
    assert relative_distance(found, gradient) < 1e-12


@pytest.mark.parametrize("name", ["alex", "squeeze", "resnet"])
def test_equal_images_are_at_distance_zero_and_have_no_gradient(backbones, name):
    _net, network = made(name, backbones)
    x, _ = images()
    terms, gradient = pair_gradient(network, x, x.clone())
    assert all(bool((term == 0).all()) for term in terms.values())
    assert bool((gradient == 0).all())


def test_a_layer_is_let_go_with_the_next(backbones):
    _net, network = made("thin", backbones)
    seen = []
    for _layer, *feature_layers in iterate_features(network, *images()):
        gc.collect()
        assert not any(feature_map() is not None for feature_map in seen)
        seen = [weakref.ref(feature_map) for feature_map in feature_layers]
        del feature_layers


def test_a_network_away_from_the_processor_takes_autograd(backbones, monkeypatch):
    _net, network = made("alex", backbones)
    monkeypatch.setattr(network, "on_cpu", False)
    assert isinstance(choose_executor(network, torch.empty(1, 3, 64, 64)), _AutogradExecutor)


def test_few_pixels_take_autograd(backbones, monkeypatch):
    _net, network = made("alex", backbones)
    monkeypatch.undo()
    few, many = torch.empty(1, 3, 64, 64), torch.empty(8, 3, 256, 256)
    assert isinstance(choose_executor(network, few), _AutogradExecutor) and isinstance(
        choose_executor(network, many), _ManualExecutor
    )
