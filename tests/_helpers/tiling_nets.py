"""Backbones and references for the tests of tiled evaluation."""

from __future__ import annotations

import torch
from frozen_networks import frozen_network
from torch import nn
from torch.nn import functional as F

from lpips_lightning import LPIPS
from lpips_lightning.backbones.custom import from_module, from_torchvision
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.shift_tolerant import shift_tolerant_alexnet, shift_tolerant_vgg16
from lpips_lightning.distances.lpips import layer_distances

PIECES = ("alex", "squeeze", "embedded", "thin", "resnet", "odd", "thin-st", "thin-vgg-st")
"""Nets: the table's, VGG16's geometry with few channels, one with sums and normalization, one of oddities, and the
geometry of the shift-tolerant ones with few channels."""


def thin_vgg(channels=6):
    """VGG16's convolutions and pools, with few channels."""
    layers, inputs = [], 3
    for count in (2, 2, 3, 3, 3):
        layers += [nn.MaxPool2d(2)] if layers else []
        for _ in range(count):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            nn.init.kaiming_normal_(layers[-2].weight)
            inputs = channels
    return nn.Sequential(*layers)


class Odd(nn.Module):
    """Every supported operation that is in no other net; its first feature layer is changed in place later."""

    def __init__(self):
        super().__init__()
        self.dilated = nn.Conv2d(3, 4, (3, 5), padding=(2, 1), dilation=(2, 1))
        self.even = nn.Conv2d(4, 4, (4, 2), padding="same", groups=2)
        self.wide = nn.Conv2d(4, 4, 1, padding=2, stride=(3, 2))  # its first window lies in the padding alone
        self.norm = nn.BatchNorm2d(4)
        self.norm.running_mean.normal_()
        self.blur = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.dilated_pool = nn.MaxPool2d(2, stride=1, dilation=2, padding=1)
        self.deep = nn.Conv2d(8, 4, 5, stride=3, padding=3)
        self.average = nn.AvgPool2d(3, stride=2, padding=1, ceil_mode=True)
        self.inner_average = nn.AvgPool2d((2, 3), stride=(1, 2), padding=1, count_include_pad=False, ceil_mode=True)
        self.divided = nn.AvgPool2d(2, stride=1, padding=1, divisor_override=3)
        self.dropout = nn.Dropout()
        self.early, self.middle, self.late, self.last = (nn.Identity() for _ in range(4))

    def forward(self, images):
        x = self.early(self.dilated(images))
        x = F.relu(self.even(self.dropout(F.relu(x, inplace=True))))
        x = self.norm(self.wide(x))
        near = self.pool(x)
        near += self.pool(F.max_pool2d(self.blur(x.sigmoid() * 0.5), 1, 1))
        x = self.dilated_pool(torch.cat([near.relu(), near], dim=1))
        x = self.middle(self.deep(x))
        x = self.late(torch.relu_(self.average(x).add(0.1)) - 0.05)
        x = F.avg_pool2d(self.divided(x), 2, stride=1, count_include_pad=False)
        return self.last(self.inner_average(x))


def thin_shift_tolerant(name):
    """A shift-tolerant network with few channels."""
    module = (shift_tolerant_alexnet if name == "alex-st" else shift_tolerant_vgg16)((5, 6, 7, 8, 8))
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):  # what a blur leaves of small features would drown in biases
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    side = BACKBONES[name].smallest_side
    return from_module(module, dict(BACKBONES[name].feature_layers), smallest_side=side)


def made(name, backbones):
    """A net by the tests' name for it, and its network in float64."""
    torch.manual_seed(0)
    if name == "embedded":
        net = LPIPS("embedded")
    elif name in backbones:
        net = LPIPS(name, weights=backbones[name])
    elif name == "resnet":
        net = LPIPS(from_torchvision("resnet18", ["relu", "layer1", "layer2"]), weights="random", calibrated=False)
    elif name == "thin":
        feature_layers = {layer: str(index) for layer, index in zip("abcde", (3, 8, 15, 22, 29), strict=True)}
        net = LPIPS(from_module(thin_vgg(), feature_layers), calibrated=False)
    elif name.startswith("thin-"):
        net = LPIPS(thin_shift_tolerant({"thin-st": "alex-st"}.get(name, "vgg-st")), calibrated=False)
    else:
        net = LPIPS(from_module(Odd(), ["early", "middle", "late", "last"]), calibrated=False)
    return net, frozen_network(net, torch.float64)


def whole(network, x, y):
    """Distances by layer, and the gradient of their sum w.r.t. `x`, by plain autograd."""
    x = x.detach().requires_grad_()
    distances = layer_distances(network.extractor(x), network.extractor(y), network.calibration)
    (gradient,) = torch.autograd.grad(sum(distances.values()).sum(), x)
    return {layer: distance.detach() for layer, distance in distances.items()}, gradient
