"""The LPIPS formula in plain autograd: features and calibration -> distance or distance map per layer.

``d_l(x, y) = mean_hw  w_l . (x^_l - y^_l)^2`` (Zhang et al. 2018, equation 1), where ``x^`` is ``x`` scaled to unit
length over channels. All arithmetic runs in float32, or in float64 for float64 features: in half precision, the
difference of two unit vectors would lose all its digits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-10  # outside the root: lpips/__init__.py, normalize_tensor


def unit_normalize(features: Tensor, eps: float = EPS) -> Tensor:
    """Scale every spatial position of `features` to unit length over channels.

    ``eps`` is added to the norm, outside the root, as in the reference (richzhang/PerceptualSimilarity,
    ``lpips/__init__.py``). A position whose channels are all zero stays zero, and so does its gradient.

    Args:
        features: Shape ``(N, C, H, W)``, any floating dtype.
        eps: Added to the norm.

    Returns:
        Unit-length features with the shape and dtype of `features`.

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
        y: Features with the same names and shapes.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline: the unweighted sum over channels.
        masks: Weight of every position, ``(N, 1, h, w)`` by layer name; None for equal weights.

    Returns:
        Shape ``(N,)`` by layer name; float32, or float64 for float64 features. Their sum is the distance. NaN where all
        weights are 0.
    """
    return {
        layer: layer_distance(
            x[layer],
            y[layer],
            None if calibration is None else calibration[layer],
            None if masks is None else masks[layer],
        )
        for layer in x
    }


def layer_distance(x: Tensor, y: Tensor, weight: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Distance of every image pair at one layer.

    Args:
        x: Features ``(N, C, h, w)``.
        y: Features of the same shape.
        weight: Weights ``(C,)``, or None: see `layer_distances`.
        mask: Weight of every position, ``(N, 1, h, w)``; None for equal weights.

    Returns:
        Shape ``(N,)``.
    """
    distance = _position_distance(x, y, weight)
    return distance.mean((1, 2)) if mask is None else _weighted_mean(distance, mask.squeeze(1))


def layer_maps(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Distance at every position of every layer.

    Args:
        x: Features ``(N, C, h, w)`` by layer name.
        y: Features with the same names and shapes.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline: the unweighted sum over channels.

    Returns:
        Shape ``(N, 1, h, w)`` by layer name, at the resolution of the layer.
    """
    return {layer: distance.unsqueeze(1) for layer, distance in _positions(x, y, calibration).items()}


def upsample(layer_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample a distance map, bilinear with half-pixel centers, as the reference does (``lpips/lpips.py``).

    Args:
        layer_map: Shape ``(N, 1, h, w)``.
        size: ``(H, W)``.

    Returns:
        Shape ``(N, 1, H, W)``.
    """
    return F.interpolate(layer_map, size=size, mode="bilinear", align_corners=False)


def _weighted_mean(distance: Tensor, mask: Tensor) -> Tensor:
    """Weighted mean of ``(N, h, w)`` over positions. Masked positions are removed first, so their NaN cannot spread."""
    mask = mask.to(distance.dtype)
    total = mask.sum((1, 2))
    empty = total == 0
    mean = (torch.where(mask == 0, 0.0, distance) * mask).sum((1, 2)) / torch.where(empty, 1.0, total)
    return torch.where(empty, float("nan"), mean)


def _positions(
    x: Mapping[str, Tensor], y: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    return {
        layer: _position_distance(x[layer], y[layer], None if calibration is None else calibration[layer])
        for layer in x
    }


def _position_distance(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted squared difference of unit features, ``(N, h, w)``.

    The difference is taken first: |x|^2 + |y|^2 - 2xy would cancel for similar images. Both products are rounded before
    it (no fused multiply-add), so equal images have distance exactly 0.
    """
    x, y = at_least_float32(x), at_least_float32(y)
    difference = x * _inverse_norm(x) - y * _inverse_norm(y)
    weighted = difference if weight is None else difference * weight.to(difference.dtype).view(1, -1, 1, 1)
    return (weighted * difference).sum(1)


def _inverse_norm(features: Tensor, eps: float = EPS) -> Tensor:
    square = features.square().sum(1, keepdim=True)
    dead = square == 0
    # sqrt has no derivative at 0, and 0 * inf is NaN: keep both branches finite for derivatives of any order.
    return torch.where(dead, 0.0, 1 / (torch.where(dead, 1.0, square).sqrt() + eps))


def at_least_float32(features: Tensor) -> Tensor:
    """Features in float32, or as they are if they are float64."""
    return features if features.dtype == torch.float64 else features.float()


def feature_vectors(layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> Tensor:
    """Features as vectors whose squared Euclidean distance is LPIPS.

    Args:
        layers: Features ``(N, C, h, w)`` by layer name.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline.

    Returns:
        Shape ``(N, D)``: unit-normalized features times ``sqrt(weight / positions)``.
    """
    parts = []
    for layer, features in layers.items():
        working = features if features.dtype == torch.float64 else features.float()
        unit = unit_normalize(working) / (features.shape[2] * features.shape[3]) ** 0.5
        if calibration is not None:
            unit = unit * calibration[layer].to(unit.dtype).sqrt().view(1, -1, 1, 1)
        parts.append(unit.flatten(1))
    return torch.cat(parts, 1)
