"""Slow reference implementations, and peer libraries with the same weights."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from itertools import combinations
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
    """Largest |value - expected| / |expected|, element by element, in float64."""
    return float(((value.double() - expected.double()).abs() / expected.double().abs().clamp_min(1e-300)).max())


def relative_distance(value, expected):
    """||value - expected|| / ||expected||, of all elements together, in float64."""
    assert value.shape == expected.shape
    value, expected = value.detach().double(), expected.detach().double()
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


def slow_features(net, tensors, images, version="0.1"):
    """Feature layers by running torchvision's own modules one after the other in float64."""
    with _untrained_torchvision():
        features = models.get_model(BUILDERS[net], weights=None).features.double().eval()
    features.load_state_dict({name.removeprefix("features."): value for name, value in tensors.items()})
    x = images.double()
    if version == "0.1":
        shift = torch.tensor([-0.030, -0.088, -0.188]).double().view(1, 3, 1, 1)
        scale = torch.tensor([0.458, 0.448, 0.450]).double().view(1, 3, 1, 1)
        x = (x - shift) / scale
    feature_layers = []
    for index, module in enumerate(features):
        x = module(x)
        if index in CUTS[net]:
            feature_layers.append(x.detach().clone())
        if index == CUTS[net][-1]:
            break
    return feature_layers


def slow_distance(x_features, y_features, weights):
    """Equation 1 of the paper for one pair of images, in loops. `weights`: list of lists, or None for the baseline."""
    total = 0.0
    for level, (x, y) in enumerate(zip(x_features, y_features, strict=True)):
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


def slow_two_afc(d0, d1, judge):
    """The 2AFC score of the paper, triplet by triplet."""
    scores = []
    for first, second, fraction in zip(d0.tolist(), d1.tolist(), judge.tolist(), strict=True):
        scores.append((first < second) * (1 - fraction) + (second < first) * fraction + 0.5 * (first == second))
    return math.fsum(scores) / len(scores)


def slow_jnd(distances, same):
    """VOC average precision in loops: for every threshold, of all pairs at or below it."""
    pairs = list(zip(distances.tolist(), same.tolist(), strict=True))
    points = []
    for threshold in sorted({distance for distance, _ in pairs}):
        passed = [share for distance, share in pairs if distance <= threshold]
        points.append((sum(passed) / sum(share for _, share in pairs), sum(passed) / len(passed)))
    area, before = 0.0, 0.0
    for index, (recall, _) in enumerate(points):
        area += (recall - before) * max(precision for _, precision in points[index:])
        before = recall
    return area


def slow_diversity(net, groups):
    """The mean over groups of the mean distance over pairs, pair by pair. `groups`: (G, K, 3, H, W)."""
    means = [torch.cat([net(a[None], b[None]) for a, b in combinations(group, 2)]).mean() for group in groups]
    return torch.stack(means).mean()


def _fill(module: nn.Module, tensors):
    """Load torchvision's `features.N.*` into the peers' `slice1.N.*` or `slices.0.N.*`, strictly."""
    state = {name: tensors[re.sub(r"^(slice\d+|slices\.\d+)\.", "features.", name)] for name in module.state_dict()}
    module.load_state_dict(state, strict=True)


@contextlib.contextmanager
def _untrained_torchvision():
    """The peers' torchvision calls warn of old arguments; their initializers take seconds and are overwritten."""
    with warnings.catch_warnings(), contextlib.ExitStack() as patches:
        warnings.simplefilter("ignore")
        for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_"):
            patches.enter_context(mock.patch(f"torch.nn.init.{name}"))
        yield


def peer_lpips(net, tensors, **kwargs):
    """`lpips.LPIPS` 0.1.4 with the given backbone."""
    import lpips

    with _untrained_torchvision():
        peer = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, **kwargs)
    _fill(peer.net, tensors)
    return peer.requires_grad_(False)


def peer_torchmetrics(net, tensors, **kwargs):
    """torchmetrics' metric with the given backbone."""
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
