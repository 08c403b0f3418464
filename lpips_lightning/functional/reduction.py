"""Reductions over a batch, and the arguments that the functional form, metrics and loss share."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from lpips_lightning.batch import Distances
from lpips_lightning.images.ranges import DataRange, parse_range

Reduction: TypeAlias = Literal["mean", "sum", "none"] | None


def check_reduction(reduction: Reduction) -> None:
    """Refuse a reduction that does not exist.

    Args:
        reduction: Over the batch.

    Raises:
        ValueError: If it is none of the known ones.
    """
    known = (*get_args(get_args(Reduction)[0]), None)
    if reduction not in known:
        raise ValueError(f"reduction: expected one of {known}, got {reduction!r}")


def choose_range(normalize: bool, data_range: DataRange | None) -> tuple[float, float]:
    """The range that torchmetrics' `normalize` and our `data_range` say together.

    Args:
        normalize: True for [0, 1], False for [-1, 1].
        data_range: Overrides it.

    Returns:
        ``(low, high)``.

    Raises:
        ValueError: If `normalize` is no bool, or both are given.
    """
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize: expected True or False, got {normalize!r}")
    if data_range is None:
        return (0.0, 1.0) if normalize else (-1.0, 1.0)
    if normalize:
        raise ValueError(f"data_range: expected None with normalize=True, got {data_range!r}; leave one of them out")
    return parse_range(data_range)


def reduced(measurement: Distances, reduction: Reduction) -> Tensor | dict[str, Tensor]:
    """Distances of a batch -> one number, or themselves.

    Args:
        measurement: From `LPIPS.measure`.
        reduction: Over the batch, and over the frames of videos.

    Returns:
        0-dimensional, or ``(1, H, W)`` for maps, or as they are for ``"none"``; a dict of such for a dict. Images of
        which a mask left nothing enter neither mean nor sum; the mean of nothing is NaN.
    """
    values, counted = measurement.values, measurement.valid
    if isinstance(values, dict):
        return {layer: _reduced(term, counted, measurement.dims, reduction) for layer, term in values.items()}
    return _reduced(values, counted, measurement.dims, reduction)


def _reduced(values: Tensor, counted: Tensor | None, dims: int, reduction: Reduction) -> Tensor:
    if reduction in ("none", None):
        return values
    batch = tuple(range(dims))
    if counted is None:
        return values.mean(batch) if reduction == "mean" else values.sum(batch)
    total, count = torch.where(counted, values, 0).sum(batch), counted.sum()
    if reduction == "sum":
        return total
    return torch.where(count == 0, float("nan"), total / count.clamp_min(1))  # no 0 / 0: its gradient is NaN
