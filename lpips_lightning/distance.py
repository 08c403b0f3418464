"""Two stacks of features and a calibration -> one distance, or one map, a layer.

``d_l(x, y) = mean_hw  w_l . (x^_l - y^_l)^2`` (paper, equation 1), where ``x^`` is ``x`` scaled to unit length over
channels. Everything here runs in float32, or in float64 when the features are float64: the difference of two unit
vectors loses all its digits in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["layer_distances", "layer_maps", "unit_normalize", "upsample"]

EPS = 1e-10  # outside the root: lpips/__init__.py, normalize_tensor


def unit_normalize(features: Tensor, eps: float = EPS) -> Tensor:
    """Scale every spatial position of `features` to unit length over channels.

    ``eps`` is added to the norm, outside the root, as in the reference (richzhang/PerceptualSimilarity,
    ``lpips/__init__.py``). A position whose channels are all zero stays zero, and so does its gradient.

    Args:
        features: Shape ``(N, C, H, W)``, any floating dtype.
        eps: Added to the norm.

    Returns:
        Shape and dtype of `features`.

    Raises:
        ValueError: If `features` is not 4-dimensional.

    Example:
        >>> unit_normalize(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.6000, 0.8000])
    """
    if features.dim() != 4:
        raise ValueError(f"features: expected 4 dimensions (N, C, H, W), got shape {tuple(features.shape)}")
    return features * _inverse_norm(features, eps)


def layer_distances(
    x: Mapping[str, Tensor],
    y: Mapping[str, Tensor],
    calibration: Mapping[str, Tensor] | None,
    masks: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Distance of every image pair at every layer.

    Args:
        x: Features ``(N, C, h, w)`` by layer name.
        y: Features of the same names and shapes.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline: the plain sum over channels.
        masks: How much every position counts, ``(N, 1, h, w)`` by layer name; None for all alike.

    Returns:
        Shape ``(N,)`` by layer name, float32 (float64 for float64 features). Their sum is the distance. NaN where no
        position counts.
    """
    positions = _positions(x, y, calibration)
    if masks is None:
        return {layer: distance.mean((1, 2)) for layer, distance in positions.items()}
    return {layer: _weighted_mean(distance, masks[layer].squeeze(1)) for layer, distance in positions.items()}


def layer_maps(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Distance at every position of every layer.

    Args:
        x: Features ``(N, C, h, w)`` by layer name.
        y: Features of the same names and shapes.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline: the plain sum over channels.

    Returns:
        Shape ``(N, 1, h, w)`` by layer name, at the layer's own size.
    """
    return {layer: distance.unsqueeze(1) for layer, distance in _positions(x, y, calibration).items()}


def upsample(layer_map: Tensor, size: tuple[int, int]) -> Tensor:
    """A layer's map at the image's size, bilinear with half-pixel centres, as in the reference (``lpips/lpips.py``).

    Args:
        layer_map: Shape ``(N, 1, h, w)``.
        size: ``(H, W)``.

    Returns:
        Shape ``(N, 1, H, W)``.
    """
    return F.interpolate(layer_map, size=size, mode="bilinear", align_corners=False)


def _weighted_mean(distance: Tensor, mask: Tensor) -> Tensor:
    """``(N,)`` from two ``(N, h, w)``. What does not count is left out before the sum: not even its NaN gets in."""
    mask = mask.to(distance.dtype)
    total = mask.sum((1, 2))
    nothing = total == 0
    mean = (torch.where(mask == 0, 0.0, distance) * mask).sum((1, 2)) / torch.where(nothing, 1.0, total)
    return torch.where(nothing, float("nan"), mean)


def _positions(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    return {
        layer: _position_distance(x[layer], y[layer], None if calibration is None else calibration[layer])
        for layer in x
    }


def _position_distance(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """``(N, h, w)``. The difference is taken first: |x|^2 + |y|^2 - 2xy would cancel to nothing for near images.

    Both products are rounded before it (no fused multiply-add), so that equal images are at distance 0 exactly.
    """
    x, y = _at_least_float32(x), _at_least_float32(y)
    difference = x * _inverse_norm(x) - y * _inverse_norm(y)
    weighted = difference if weight is None else difference * weight.to(difference.dtype).view(1, -1, 1, 1)
    return (weighted * difference).sum(1)


def _inverse_norm(features: Tensor, eps: float = EPS) -> Tensor:
    square = features.square().sum(1, keepdim=True)
    dead = square == 0
    # A root at 0 has no derivative, and 0 * inf is NaN: both branches stay finite, in any order of differentiation.
    return torch.where(dead, 0.0, 1 / (torch.where(dead, 1.0, square).sqrt() + eps))


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
