"""Check that a backbone reproduces the distances of the reference implementation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lpips_lightning.backbones.caffe_alexnet import NET_TYPE
from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.backbones.loading import calibration_tensors
from lpips_lightning.distances.feature_distance import LPIPS_DISTANCE, FeatureDistance
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.weights import EXAMPLES, WeightsError, load


@dataclass(frozen=True)
class Golden:
    """Distances of the reference implementation's example patches under LPIPS v0.1.

    Attributes:
        p0: Between ``ex_ref.png`` and ``ex_p0.png``.
        p1: Between ``ex_ref.png`` and ``ex_p1.png``.
        source: Where the distances come from.
    """

    p0: float
    p1: float
    source: str


_COMPUTED = "lpips 0.1.4 in float32, torchvision's IMAGENET1K_V1 backbone"
_SHIFT_TOLERANT = "stlpips-pytorch 0.0.2 in float32, its weights ST0.0"
GOLDEN = {
    "alex": Golden(0.721880674, 0.137565538, _COMPUTED),
    "vgg": Golden(0.568612814, 0.421664298, _COMPUTED),
    "squeeze": Golden(0.711047649, 0.147901624, _COMPUTED),
    "embedded": Golden(0.821794514, 0.126430342, "lpips_lightning in float64, the shipped weights"),
    "dists": Golden(0.387927307, 0.225023716, "DISTS_pytorch 0.1 in float64, torchvision's IMAGENET1K_V1 backbone"),
    "embedded-vgg": Golden(0.551488192, 0.482182055, "lpips_lightning in float64, the shipped weights"),
    "alex-st": Golden(0.777755499, 0.132021546, _SHIFT_TOLERANT),
    "vgg-st": Golden(0.651697099, 0.136112005, _SHIFT_TOLERANT),
}
"""Recorded distances by net_type, or of a distance with a network of its own."""

_TOLERANCE = 2e-3  # three published digits; 10-bit mantissa of TF32 convolutions


def selfcheck(net_type: str, network: FrozenNetwork) -> dict[str, float]:
    """Compare distances of the example patches with the recorded ones.

    For ``"caffe-alexnet"``, of which no distances are known, its features are checked instead: their channels, that
    they are finite, and that no layer is constant.

    Args:
        net_type: Key of the recorded distances.
        network: Its backbone is used, with the official v0.1 calibration and input scaling.

    Returns:
        Distances to the reference patch, ``"p0"`` and ``"p1"``; for ``"caffe-alexnet"`` without calibration.

    Raises:
        WeightsError: If the distances differ from the recorded ones, or the features are not those of such a network.
        ValueError: If no distances are recorded for `net_type`.
    """
    if net_type == NET_TYPE:
        return _plausible_distances(network)
    own = network.distance.name in GOLDEN  # a network of its own; others are checked by LPIPS
    net_type = network.distance.name if own else net_type
    if net_type not in GOLDEN:
        raise ValueError(f"selfcheck: expected one of {', '.join(map(repr, GOLDEN))}, got the backbone {net_type!r}")
    layers = _example_features(network)
    first = next(iter(layers.values()))
    official = network.calibration or {} if own else calibration_tensors(network.record, "0.1", None)
    weights = {layer: weight.to(first.device) for layer, weight in official.items()}
    p0, p1 = _example_distances(layers, weights, network.distance if own else LPIPS_DISTANCE)
    golden = GOLDEN[net_type]
    if not (abs(p0 - golden.p0) <= _TOLERANCE * golden.p0 and abs(p1 - golden.p1) <= _TOLERANCE * golden.p1):
        raise WeightsError(
            f"selfcheck: expected distances of {golden.p0:.3f} and {golden.p1:.3f} ({golden.source}) on the example "
            f"patches, got {p0:.3f} and {p1:.3f}: these are not the weights of LPIPS {net_type}"
        )
    return {"p0": p0, "p1": p1}


def _example_features(network: FrozenNetwork) -> dict[str, Tensor]:
    """Features of the three example patches by layer name."""
    parameter = next(network.extractor.parameters())
    record, patches = network.record, {name: patch.to(parameter.device) for name, patch in load(EXAMPLES).items()}
    shift, scale = (torch.tensor(values, device=parameter.device) for values in (record.shift, record.scale))
    batch = torch.stack([patches[name] for name in ("ref", "p0", "p1")])
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        features: dict[str, Tensor] = network.extractor(
            to_backbone(batch, (0, 255), shift, scale, parameter.dtype, clamp=False)
        )
    return features


def _example_distances(
    layers: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None, distance: FeatureDistance = LPIPS_DISTANCE
) -> tuple[float, float]:
    """Distances of the second and third patch to the first."""
    reference = {layer: feature_map[:1].expand(2, -1, -1, -1) for layer, feature_map in layers.items()}
    others = {layer: feature_map[1:] for layer, feature_map in layers.items()}
    device = next(iter(layers.values())).device.type
    with torch.no_grad(), torch.autocast(device, enabled=False):
        terms = distance.by_layer(reference, others, weights)
    p0, p1 = torch.stack(list(terms.values())).sum(0).tolist()
    return p0, p1


def _plausible_distances(network: FrozenNetwork) -> dict[str, float]:
    layers = _example_features(network)
    for (layer, features), channels in zip(layers.items(), network.record.channels, strict=True):
        if features.shape[1] != channels or not bool(features.isfinite().all()):
            raise WeightsError(f"selfcheck: expected {channels} channels of finite features at {layer}, got others")
        if bool((features == features[:1, :, :1, :1]).all()):
            raise WeightsError(f"selfcheck: expected features that differ at {layer}, got constant ones")
    p0, p1 = _example_distances(layers, None)
    return {"p0": p0, "p1": p1}
