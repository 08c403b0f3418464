"""LPIPS averaged with the weights of the reference's own features: LPIPS+ of TOPIQ (Chen et al., TIP 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.distances.feature_distance import FeatureDistance
from lpips_lightning.distances.lpips import at_least_float32, layer_maps
from lpips_lightning.distances.positions import nan_if_empty, spatial_mean

_WEIGHT_LAYER = 2  # "semantic_weight_layer" of pyiqa's "lpips+"


class LPIPSPlusDistance(FeatureDistance):
    """LPIPS whose mean over positions weights each by the activations of the reference, `y`, at the third layer.

    The activations, summed over channels, are resized to each layer, bilinear with half-pixel centers. So errors count
    where the reference has content. Negative activations, which no ReLU has, count as 0; where all are 0, the weights
    are equal. Not symmetric: `y` is the reference.
    """

    def by_layer(
        self,
        x: Mapping[str, Tensor],
        y: Mapping[str, Tensor],
        calibration: Mapping[str, Tensor] | None,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.by_layer`."""
        weights = _position_weights(y)
        found = {}
        for layer, layer_map in layer_maps(x, y, calibration).items():
            mask = None if masks is None else masks[layer]
            weight = weights[layer] if mask is None else _masked_weight(weights[layer], mask)
            found[layer] = nan_if_empty(spatial_mean(layer_map, weight).flatten(), mask)
        return found

    def maps(
        self, x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """See `FeatureDistance.maps`."""
        weights = _position_weights(y)
        return {
            layer: layer_map * weights[layer] / weights[layer].mean((2, 3), keepdim=True)
            for layer, layer_map in layer_maps(x, y, calibration).items()
        }

    def check_layers(self, layers: Sequence[str]) -> None:
        """See `FeatureDistance.check_layers`."""
        if len(layers) <= _WEIGHT_LAYER:
            raise ValueError(
                f"distance: expected a backbone with at least {_WEIGHT_LAYER + 1} feature layers for 'lpips_plus', "
                f"whose weights are those of the third one, got {list(layers)}"
            )


def _position_weights(y: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight of every position, ``(N, 1, h, w)`` by layer name; not all 0."""
    # Resizing is linear, so the sum over channels may come first.
    activation = at_least_float32(list(y.values())[_WEIGHT_LAYER]).clamp(min=0).sum(1, keepdim=True)
    activation = torch.where(activation.sum((2, 3), keepdim=True) == 0, 1.0, activation)
    resized = {}
    for layer, features in y.items():
        size = (features.shape[2], features.shape[3])
        resized[layer] = _not_all_zero(F.interpolate(activation, size=size, mode="bilinear", align_corners=False))
    return resized


def _masked_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """Product of weight and mask; the mask alone where the reference has no activation inside it."""
    product = weight * mask.to(weight.dtype)
    return torch.where(product.sum((2, 3), keepdim=True) == 0, mask.to(weight.dtype), product)


def _not_all_zero(weight: Tensor) -> Tensor:
    return torch.where(weight.sum((2, 3), keepdim=True) == 0, 1.0, weight)


LPIPS_PLUS_DISTANCE = LPIPSPlusDistance(
    "lpips_plus", "LPIPS+", is_layerwise=False, is_symmetric=False, has_maps=True, uses_calibration=True
)
