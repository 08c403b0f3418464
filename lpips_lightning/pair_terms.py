"""Pairs of images that fit into memory -> each layer's distance, and the gradient of their sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.head import layer_sum, layer_sum_gradient
from lpips_lightning.passage import pair_features, passage
from lpips_lightning.winograd import shared_memory

__all__ = ["Others", "Own", "mean_weight", "pair_gradient", "pair_terms"]

Others: TypeAlias = Tensor | Mapping[str, Tensor]
"""What is compared to: images as the trunk wants them, or their features by layer name."""

Own: TypeAlias = Mapping[str, tuple[slice, slice]]
"""The rows and columns of a layer that count."""

# fp16 knows nothing between 0 and 6e-8, where the derivatives of a mean lie. They pass the trunk enlarged to this.
_FP16_LARGEST = 2.0**10


@torch.no_grad()
@shared_memory()
def pair_terms(network: FrozenNetwork, x: Tensor, y: Others) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without a graph.

    Args:
        network: On the images' device, in their dtype.
        x: Images ``(N, 3, H, W)`` as the trunk wants them.
        y: What they are compared to.

    Returns:
        Shape ``(N,)`` by layer name; float32, float64 for float64.
    """
    features = None if isinstance(y, Tensor) else y
    terms = {}
    for layer, tap, other in pair_features(network, x, y if isinstance(y, Tensor) else None):
        against = other if features is None else features[layer]
        assert against is not None
        terms[layer] = layer_sum(tap, against, mean_weight(network, layer, tap))
    return terms


@torch.no_grad()
@shared_memory()
def pair_gradient(
    network: FrozenNetwork, x: Tensor, y: Others, positions: Mapping[str, int] | None = None, own: Own | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Distance of every pair at every layer, and the gradient of the layers' sum by `x`.

    Args:
        network: On the images' device, in their dtype.
        x: Images ``(N, 3, H, W)`` as the trunk wants them.
        y: What they are compared to.
        positions: By layer, of the whole image if this is a part of one; None for those that there are.
        own: What counts of each layer; None for all.

    Returns:
        Shape ``(N,)`` by layer name, and that of `x`; float32, float64 for float64.
    """
    half = x.dtype == torch.float16
    features = None if isinstance(y, Tensor) else y
    way = passage(network, x)
    terms, gradients = {}, {}
    for layer, tap, other, spare in way.taps(x, y if isinstance(y, Tensor) else None):
        against = other if features is None else features[layer]
        assert against is not None
        part = (slice(None), slice(None), *(own[layer] if own is not None else (slice(None), slice(None))))
        given = tap[part], against[part]
        if half:
            given = given[0].float(), given[1].float()
        weight = mean_weight(network, layer, tap, None if positions is None else positions[layer])
        # The features' own memory takes their gradient where nobody else needs it.
        free = spare and features is None and against.is_contiguous(memory_format=torch.channels_last)
        into = against if free and own is None and not half else None
        terms[layer], gradient = layer_sum_gradient(*given, weight, into)
        if own is not None:
            whole = against.zero_() if free and not half else torch.zeros_like(tap, dtype=gradient.dtype)
            whole[part] = gradient
            gradient = whole
        gradients[layer] = gradient
        del tap, other, against, given, into, gradient
    working = torch.promote_types(x.dtype, torch.float32)
    if not half:
        return terms, way.back(gradients).to(working)
    largest = torch.stack([gradient.abs().amax() for gradient in gradients.values()]).amax()
    enlarged = torch.where(largest > 0, _FP16_LARGEST / largest, 1.0)
    found = way.back({layer: gradient.mul_(enlarged).half() for layer, gradient in gradients.items()})
    return terms, found.to(working) / enlarged


def mean_weight(network: FrozenNetwork, layer: str, tap: Tensor, positions: int | None = None) -> Tensor:
    """Weight that makes a sum over positions a mean.

    Args:
        network: Whose calibration counts.
        layer: The layer's name.
        tap: Its features ``(N, C, h, w)``.
        positions: How many there are; None for ``h * w``.

    Returns:
        The calibration's, or 1, divided by the number of positions: shape ``(C,)``, float32, float64 for float64.
    """
    calibration = network.calibration
    dtype = torch.float64 if tap.dtype == torch.float64 else torch.float32
    weight = tap.new_ones(tap.shape[1], dtype=dtype) if calibration is None else calibration[layer].to(dtype)
    return weight / (positions or tap.shape[2] * tap.shape[3])
