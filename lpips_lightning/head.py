"""One layer's distance summed over positions, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from lpips_lightning.distance import EPS

__all__ = ["layer_sum", "layer_sum_gradient"]

_ELEMENTS = 2**20  # of a block of rows: its temporaries stay in the processor's cache


@torch.no_grad()
def layer_sum(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over positions of ``w . (x^ - y^)^2``.

    Args:
        x: Shape ``(N, C, h, w)``.
        y: The same.
        weight: Shape ``(C,)``, or None for the plain sum over channels.

    Returns:
        Shape ``(N,)``, float32, or float64 for float64.
    """
    return torch.stack([_block(*rows, weight, None) for rows in _blocks(x, y)]).sum(0)


@torch.no_grad()
def layer_sum_gradient(x: Tensor, y: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same, and its derivative by `x`.

    Args:
        x: See `layer_sum`.
        y: See `layer_sum`.
        weight: See `layer_sum`.

    Returns:
        The sum, and a tensor of shape and dtype of `x`.
    """
    gradient = torch.empty_like(x)
    blocks = zip(_blocks(x, y), _blocks(gradient, gradient), strict=True)
    return torch.stack([_block(*rows, weight, out) for rows, (out, _) in blocks]).sum(0), gradient


def _blocks(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    rows = max(1, _ELEMENTS // max(1, x[:, :, :1].numel()))
    return list(zip(x.split(rows, 2), y.split(rows, 2), strict=True))


def _block(x: Tensor, y: Tensor, weight: Tensor | None, gradient: Tensor | None) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(dtype), y.to(dtype)
    w = torch.ones(x.shape[1], dtype=dtype, device=x.device) if weight is None else weight.to(dtype)
    norm, inverse = _norm(x)
    difference = x * inverse - y * _norm(y)[1]
    weighted = difference * w.view(1, -1, 1, 1)
    total = (weighted * difference).sum((1, 2, 3))
    if gradient is not None:
        along = (weighted * x).sum(1, keepdim=True) * inverse.square() / torch.where(norm == 0, 1.0, norm)
        gradient.copy_(2 * (weighted * inverse - x * along))
    return total


def _norm(features: Tensor) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return norm, torch.where(norm == 0, 0.0, 1 / (norm + EPS))
