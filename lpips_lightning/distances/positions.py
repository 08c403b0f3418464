"""Means over the positions of a feature map, with equal weights or with those of a mask."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over positions. Masked positions are removed first, so that their NaN cannot spread.

    Args:
        values: Shape ``(N, C, h, w)``.
        mask: Weight of every position, ``(N, 1, h, w)``; None for equal weights.

    Returns:
        Shape ``(N, C, 1, 1)``; 0 where all weights are 0.

    Example:
        >>> spatial_mean(torch.tensor([[[[1.0, 3.0]]]]), torch.tensor([[[[1.0, 0.0]]]])).item()
        1.0
    """
    if mask is None:
        return values.mean((2, 3), keepdim=True)
    weight = fractions(mask, values.dtype)
    return (without_masked(values, mask) * weight).sum((2, 3), keepdim=True)


def fractions(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask divided by its sum; 0 where that is 0.

    Args:
        mask: Shape ``(N, 1, h, w)``.
        dtype: Dtype of the result.

    Returns:
        Shape ``(N, 1, h, w)``.
    """
    mask = mask.to(dtype)
    total = mask.sum((2, 3), keepdim=True)
    return mask / torch.where(total == 0, 1.0, total)


def without_masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values with 0 at masked positions.

    Args:
        values: Shape ``(N, C, h, w)``.
        mask: Shape ``(N, 1, h, w)``.
    """
    return torch.where(mask == 0, torch.zeros((), dtype=values.dtype, device=values.device), values)


def nan_if_empty(distance: Tensor, mask: Tensor | None) -> Tensor:
    """Distances with NaN where a mask leaves nothing of an image.

    Args:
        distance: Shape ``(N,)``.
        mask: Shape ``(N, 1, h, w)``, or None.
    """
    return distance if mask is None else torch.where(mask.sum((1, 2, 3)) == 0, float("nan"), distance)
