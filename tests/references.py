"""Slow, obvious oracles, and the peers with the same weights as ours."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from unittest import mock

import torch
from torch import nn
from torchvision import models

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

BUILDERS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
CUTS = {
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}


def relative_difference(value, expected):
    """Largest |value - expected| / |expected|."""
    return float(((value.double() - expected.double()).abs() / expected.double().abs().clamp_min(1e-300)).max())


def slow_features(net, tensors, images, version="0.1"):
    """Taps by running torchvision's own modules one after the other in float64."""
    features = models.get_model(BUILDERS[net], weights=None).features.double().eval()
    features.load_state_dict({name.removeprefix("features."): value for name, value in tensors.items()})
    x = images.double()
    if version == "0.1":
        shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).double().view(1, 3, 1, 1)
        x = (x - shift) / scale
    taps = []
    for index, module in enumerate(features):
        x = module(x)
        if index in CUTS[net]:
            taps.append(x.detach().clone())
        if index == CUTS[net][-1]:
            break
    return taps


def slow_distance(x_taps, y_taps, weights):
    """Equation 1 of the paper for one pair of images, in loops. `weights`: list of lists, or None for the baseline."""
    total = 0.0
    for level, (x, y) in enumerate(zip(x_taps, y_taps, strict=True)):
        _, channels, height, width = x.shape
        layer = 0.0
        for row in range(height):
            for column in range(width):
                a = [float(x[0, c, row, column]) for c in range(channels)]
                b = [float(y[0, c, row, column]) for c in range(channels)]
                norm_a = math.sqrt(math.fsum(v * v for v in a)) + 1e-10
                norm_b = math.sqrt(math.fsum(v * v for v in b)) + 1e-10
                w = weights[level] if weights is not None else [1.0] * channels
                layer += math.fsum(w[c] * (a[c] / norm_a - b[c] / norm_b) ** 2 for c in range(channels))
        total += layer / (height * width)
    return total


def _fill(module: nn.Module, tensors):
    """Load torchvision's `features.N.*` into the peers' `slice1.N.*` or `slices.0.N.*`, strictly."""
    state = {name: tensors[re.sub(r"^(slice\d+|slices\.\d+)\.", "features.", name)] for name in module.state_dict()}
    module.load_state_dict(state, strict=True)


@contextlib.contextmanager
def _untrained_torchvision():
    """The peers' torchvision calls warn of old arguments; their initialisers take seconds and are overwritten."""
    with warnings.catch_warnings(), mock.patch("torch.nn.init.kaiming_normal_"), mock.patch("torch.nn.init.normal_"):
        warnings.simplefilter("ignore")
        yield


def peer_lpips(net, tensors, **kwargs):
    """`lpips.LPIPS` 0.1.4 with the given trunk."""
    import lpips

    with _untrained_torchvision():
        peer = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, **kwargs)
    _fill(peer.net, tensors)
    return peer.requires_grad_(False)


def peer_torchmetrics(net, tensors, **kwargs):
    """torchmetrics' metric with the given trunk."""
    import torchmetrics.functional.image.lpips as module
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    getter = "_get_tv_model_features" if hasattr(module, "_get_tv_model_features") else "_get_net"  # since 1.8
    real = getattr(module, getter)
    with (
        _untrained_torchvision(),
        mock.patch.object(module, getter, lambda name, _: real(name, False)),
    ):
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net, **kwargs)
    _fill(metric.net.net, tensors)
    return metric
