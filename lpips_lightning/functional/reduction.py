"""Reduction over a batch, and checks of arguments shared by functional form, metrics and loss."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lpips_lightning.batch import Distances
from lpips_lightning.images.preprocessing import SIGNED, ImagePolicy
from lpips_lightning.images.ranges import DataRange

Reduction: TypeAlias = Literal["mean", "sum", "none"] | None
_KNOWN = (*get_args(get_args(Reduction)[0]), None)


def check_reduction(reduction: Reduction) -> None:
    """Check a reduction.

    Args:
        reduction: Reduction over the batch.

    Raises:
        ValueError: If it is unknown.
    """
    if reduction not in _KNOWN:
        raise ValueError(f"reduction: expected one of {_KNOWN}, got {reduction!r}")


def choose_range(images: ImagePolicy, normalize: bool, data_range: DataRange | None) -> tuple[float, float]:
    """Data range from torchmetrics' `normalize` and our `data_range`.

    Args:
        images: Which images the network accepts.
        normalize: True for [0, 1], False for [-1, 1].
        data_range: Range instead of `normalize`, or the same.

    Returns:
        ``(low, high)``; of infinities for a network without a range.

    Raises:
        ValueError: If `normalize` is not a bool, or True with another range than (0, 1); if a range is given for a
            network without one.
    """
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    if normalize and not images.has_range:
        raise ValueError("normalize: expected False for a network whose input has no range, got True")
    low_high = images.value_range(data_range, (0.0, 1.0) if normalize else SIGNED)
    if normalize and low_high != (0.0, 1.0):
        raise ValueError(
            f"data_range: expected None with normalize=True, which is (0, 1), got {data_range!r}; leave one of them out"
        )
    return low_high


def reduced(distances: Distances, reduction: Reduction) -> Tensor | dict[str, Tensor]:
    """Reduce the distances of a batch.

    Args:
        distances: From `LPIPS.measure`.
        reduction: Over the batch and the frames of videos.

    Returns:
        0-dimensional tensor, or ``(1, H, W)`` for maps; unchanged for ``"none"``; a dict of these for a dict. Images
        that a mask excludes completely do not count in mean and sum; the mean of no image is NaN.
    """
    values, valid = distances.values, distances.valid
    if isinstance(values, dict):
        return {layer: _reduced(term, valid, distances.dims, reduction) for layer, term in values.items()}
    return _reduced(values, valid, distances.dims, reduction)


def _reduced(values: Tensor, valid: Tensor | None, dims: int, reduction: Reduction) -> Tensor:
    if reduction in ("none", None):
        return values
    batch = tuple(range(dims))
    if valid is None:
        return values.mean(batch) if reduction == "mean" else values.sum(batch)
    total, count = torch.where(valid, values, 0).sum(batch), valid.sum()
    if reduction == "sum":
        return total
    return torch.where(count == 0, float("nan"), total / count.clamp_min(1))  # no 0 / 0: its gradient is NaN
