"""Distances of statistics of whole feature maps: their means, and their Gram matrices.

Both are alternatives to the comparison position by position in Kumar et al., "Do better ImageNet classifiers assess
perceptual similarity better?", TMLR 2022. They are blind to where something is in the image, and take no calibration.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lpips_lightning.distances.feature_distance import FeatureDistance
from lpips_lightning.distances.lpips import at_least_float32, layer_distance, unit_normalize
from lpips_lightning.distances.positions import fractions, nan_if_empty, spatial_mean, without_masked
from lpips_lightning.distances.vectors import DistanceVectors


class MeanPoolDistance(FeatureDistance):
    """Mean over positions, unit length over channels, squared difference: its mean over channels, by layer."""

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """See `FeatureDistance.at_layer`."""
        mean_x, mean_y = (spatial_mean(at_least_float32(features), mask) for features in (x, y))
        return nan_if_empty(layer_distance(mean_x, mean_y, None) / x.shape[1], mask)

    def vectors(self, layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> DistanceVectors:
        """See `FeatureDistance.vectors`."""
        means = (spatial_mean(at_least_float32(features), None) for features in layers.values())
        return DistanceVectors.of([unit_normalize(mean).flatten(1) / mean.shape[1] ** 0.5 for mean in means], [])


class StyleDistance(FeatureDistance):
    """Mean absolute difference of two Gram matrices, by layer.

    The matrix ``(C, C)`` is the mean over positions of the outer product of a feature vector with itself, each vector
    scaled to unit length. The mean makes it independent of the image size: with a sum, as in piq's ``StyleLoss``
    (``normalize_features=True``, ``distance="mae"``), it is ``h w`` times as large.
    """

    def at_layer(self, x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """See `FeatureDistance.at_layer`."""
        difference = gram_matrix(x, mask) - gram_matrix(y, mask)
        return nan_if_empty(difference.abs().mean((1, 2)), mask)

    def vectors(self, layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> DistanceVectors:
        """See `FeatureDistance.vectors`: the upper triangles of the symmetric Gram matrices."""
        return DistanceVectors.of([], [_triangle(gram_matrix(features)) for features in layers.values()])


def _triangle(gram: Tensor) -> Tensor:
    channels = gram.shape[1]
    rows, columns = torch.triu_indices(channels, channels, device=gram.device)
    return gram[:, rows, columns] * torch.where(rows == columns, 1, 2) / channels**2


def gram_matrix(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over positions of the outer product of unit feature vectors.

    Args:
        features: Shape ``(N, C, h, w)``.
        mask: Weight of every position, ``(N, 1, h, w)``; None for equal weights.

    Returns:
        Shape ``(N, C, C)``; float32, or float64 for float64 features.

    Example:
        >>> gram_matrix(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
        tensor([[[0.3600, 0.4800],
                 [0.4800, 0.6400]]])
    """
    features = at_least_float32(features)
    if mask is None:
        unit = unit_normalize(features).flatten(2)
        return unit @ unit.transpose(1, 2) / unit.shape[2]
    unit = unit_normalize(without_masked(features, mask)).flatten(2)
    return (unit * fractions(mask, unit.dtype).flatten(2)) @ unit.transpose(1, 2)


MEAN_POOL_DISTANCE = MeanPoolDistance("mean_pool", "mean-pool distance", has_vectors=True)
STYLE_DISTANCE = StyleDistance("style", "style distance", has_vectors=True)
