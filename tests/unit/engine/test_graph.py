"""Which backbones can be followed, what their positions see, and why others cannot be."""

from __future__ import annotations

import pytest
import torch
from frozen_networks import frozen_network
from tiling_nets import PIECES, made
from torch import nn
from torch.nn import functional as F

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module, from_torchvision
from lpips_lightning.backbones.extractor import cut
from lpips_lightning.engine.graph import ReceptiveField, build_layer_graph, unsupported_reason
from lpips_lightning.engine.windows import Axis


@pytest.mark.parametrize("size", [(97, 131), (64, 200), (65, 66)])
@pytest.mark.parametrize("name", PIECES)
def test_shapes_are_those_of_the_backbone(backbones, name, size):
    _, network = made(name, backbones)
    layer_graph = build_layer_graph(network.extractor.graph)
    shapes = layer_graph.shapes(size)
    feature_layers = network.extractor(torch.zeros(1, 3, *size, dtype=torch.float64))
    assert list(layer_graph.feature_layers) == list(feature_layers)
    assert {layer: shapes[feature_map] for layer, feature_map in layer_graph.feature_layers.items()} == {
        layer: tuple(values.shape[1:]) for layer, values in feature_layers.items()
    }


@pytest.mark.parametrize(
    ("name", "before", "after"), [("vgg", 90, 105), ("alex", 66, 96), ("squeeze", 88, 118), ("thin", 90, 105)]
)
def test_how_far_the_last_layer_sees(backbones, name, before, after):
    layer_graph = build_layer_graph(made(name, backbones)[1].extractor.graph)
    last = list(layer_graph.feature_layers.values())[-1]
    assert layer_graph.receptive_fields[last] == (ReceptiveField(16, before, after), ReceptiveField(16, before, after))
    assert layer_graph.strides == (16, 16)


@pytest.mark.parametrize("name", PIECES)
def test_positions_see_exactly_their_sight(backbones, name):
    """By the gradient of one position in the middle, which no padding touches."""
    _, network = made(name, backbones)
    layer_graph = build_layer_graph(network.extractor.graph)
    images = torch.rand(1, 3, 330, 310, dtype=torch.float64, requires_grad=True)
    for layer, values in network.extractor(images).items():
        row, column = values.shape[2] // 2, values.shape[3] // 2
        (gradient,) = torch.autograd.grad(values[:, :, row, column].sum(), images, retain_graph=True)
        for axis, position in ((2, row), (3, column)):
            seen = gradient.abs().amax((0, 1, 5 - axis)).nonzero().flatten()
            field = layer_graph.receptive_fields[layer_graph.feature_layers[layer]][axis - 2]
            assert field.jump * position - field.before <= int(seen[0])
            assert int(seen[-1]) <= field.jump * position + field.after
            if name in ("alex", "vgg", "squeeze", "embedded"):  # no position of a window is left out
                assert int(seen[-1] - seen[0]) >= (field.before + field.after) * 0.8


def _sequence(*modules):
    return lambda: nn.Sequential(*modules)


class _Method(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.convolution, self.end, self.change = nn.Conv2d(3, 4, 3), nn.ReLU(), change

    def forward(self, images):
        return self.end(self.change(self.convolution(images)))


class _Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        self.end, self.scale = nn.ReLU(), nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, images):
        return self.end(images * self.scale)


class _Untraced(nn.Module):
    def __init__(self):
        super().__init__()
        self.end = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        return self.end(images) if images.sum() > -1e9 else images


class _Own(nn.ReLU):
    def forward(self, images):
        return images - images.mean((2, 3), keepdim=True)


def _hooked():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    module[0].register_forward_hook(lambda module, inputs, output: output * output.mean())
    return module


UNFOLLOWED = {
    "global": (_sequence(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(4), nn.ReLU()), ["2"], "AdaptiveAvgPool2d"),
    "reflected": (_sequence(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU()), ["1"], "padding_mode"),
    "instance": (_sequence(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU()), ["2"], "InstanceNorm2d"),
    "batch": (
        _sequence(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()),
        ["2"],
        "BatchNorm2d",
    ),
    "upsampled": (_sequence(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), nn.ReLU()), ["2"], "Upsample"),
    "transposed": (_sequence(nn.ConvTranspose2d(3, 4, 3), nn.ReLU()), ["1"], "ConvTranspose2d"),
    "method": (lambda: _Method(lambda x: x.mean(2, keepdim=True)), ["end"], "mean"),
    "function": (lambda: _Method(lambda x: F.interpolate(x, scale_factor=2)), ["end"], "interpolate"),
    "crop": (lambda: _Method(lambda x: x[:, :, 1:]), ["end"], "getitem"),
    "flipped": (lambda: _Method(lambda x: torch.cat([x, x], 2)), ["end"], "cat"),
    "unequal": (lambda: _Method(lambda x: x + F.max_pool2d(x, 30, 1)), ["end"], "expected inputs of one size"),
    "strides": (lambda: _Method(lambda x: x + F.max_pool2d(x, 30)), ["end"], "expected inputs of one stride"),
    "weighted": (_Weighted, ["end"], "scale"),
    "untraced": (_Untraced, ["end"], "torch.fx can trace"),
    "own": (_sequence(nn.Conv2d(3, 4, 3), _Own(), nn.ReLU()), ["2"], "mean"),
    "hooked": (_hooked, ["1"], "without hooks"),
}


@pytest.mark.parametrize("name", UNFOLLOWED)
def test_what_cannot_be_followed_is_named(name):
    module, feature_layers, match = UNFOLLOWED[name]
    graph = frozen_network(
        LPIPS(from_module(module(), feature_layers, smallest_side=32), calibrated=False)
    ).extractor.graph
    assert match in str(unsupported_reason(graph))


@pytest.mark.parametrize(
    ("builder", "feature_map"),
    [
        ("resnet50", "layer4"),
        ("vgg19_bn", "features.51"),
        ("densenet121", "features.norm5"),
        ("mnasnet1_0", "layers.16"),
    ],
)
def test_torchvisions_convolutional_nets_are_followed(builder, feature_map):
    graph, _ = cut(from_torchvision(builder, [feature_map], smallest_side=64))
    assert unsupported_reason(graph) is None


@pytest.mark.parametrize(
    ("builder", "feature_map"), [("vit_b_32", "encoder.layers.encoder_layer_0.ln_1"), ("swin_t", "features.1")]
)
def test_attention_is_not(builder, feature_map):
    from lpips_lightning.backbones.definition import Backbone, TorchvisionBuilder

    graph, _ = cut(Backbone(builder, builder, {"feature_map": feature_map}, (1,), 224, TorchvisionBuilder(builder)))
    assert unsupported_reason(graph)


@pytest.mark.parametrize("ceil", [False, True])
def test_windows_are_counted_as_pytorch_counts_them(ceil):
    checked = 0
    for kernel, stride, padding, dilation in [(2, 2, 0, 1), (3, 2, 1, 1), (3, 3, 1, 2), (5, 1, 2, 1), (2, 4, 1, 1)]:
        axis = Axis(kernel, stride, padding, padding, dilation, ceil)
        for length in range(axis.extent, 40):
            pooled = F.max_pool2d(
                torch.zeros(1, 1, length, 9), (kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil
            )
            assert axis.count(length) == pooled.shape[2]
            checked += 1
    assert checked > 150
