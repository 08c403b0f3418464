"""DISTS: structure and texture similarity of feature maps.

Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", TPAMI 2020.
``d(x, y) = 1 - sum_l sum_c  alpha l(x, y) + beta s(x, y)``, where ``l`` (texture) compares the means of a channel and
``s`` (structure) its covariance with the variances, as SSIM does; all alpha and beta sum to 1. The layers are those of
VGG16 with L2 pooling, and the image itself. Here the complements ``1 - l`` and ``1 - s`` are summed, which are squared
differences over sums of squares: so equal images have distance exactly 0, and no digits cancel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lpips_lightning.distances.feature_distance import FeatureDistance
from lpips_lightning.distances.lpips import at_least_float32
from lpips_lightning.distances.positions import nan_if_empty, spatial_mean
from lpips_lightning.weights import DISTS, load

_EPS = 1e-6  # c1 and c2 of the reference (DISTS_pytorch 0.1)


class DISTSDistance(FeatureDistance):
    """See `lpips_lightning.distances.dists`."""

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """See `FeatureDistance.at_layer`; `weight` holds alpha and beta, ``(2, C)``."""
        if weight is None:
            raise ValueError("calibrated: expected True with distance='dists', whose alpha and beta are part of it")
        x, y = at_least_float32(x), at_least_float32(y)
        mean_x, mean_y = spatial_mean(x, mask), spatial_mean(y, mask)
        x, y = x - mean_x, y - mean_y
        texture = (mean_x - mean_y).square() / (mean_x.square() + mean_y.square() + _EPS)
        variances = spatial_mean(x.square(), mask) + spatial_mean(y.square(), mask)
        structure = spatial_mean((x - y).square(), mask) / (variances + _EPS)
        alpha, beta = weight.to(texture.dtype)
        found = (alpha * texture.flatten(1) + beta * structure.flatten(1)).sum(1)
        return nan_if_empty(found, mask)

    def packaged_weights(self, layers: Sequence[str], channels: Sequence[int]) -> dict[str, Tensor] | None:
        """See `FeatureDistance.packaged_weights`: alpha and beta, ``(2, C)``, over all layers of sum 1."""
        tensors = load(DISTS)
        both = torch.stack([tensors["alpha"], tensors["beta"]])
        return {
            layer: part.clone()
            for layer, part in zip(layers, (both / both.sum()).split(list(channels), 1), strict=True)
        }


DISTS_DISTANCE = DISTSDistance("dists", "DISTS")
