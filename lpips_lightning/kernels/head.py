"""Distance of one feature layer, and its gradient, without an autograd graph.

Computes what `lpips_lightning.distances.lpips` computes in plain autograd. The features are processed in blocks of
positions that fit the CPU cache, so memory is read and written once. On a GPU with Triton, one fused kernel does the
same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lpips_lightning.distances.lpips import EPS
from lpips_lightning.kernels import head_triton

# Per operand and thread: smaller blocks pay call overhead, larger ones fall out of cache.
_BLOCK_BYTES = 2**20


def layer_sum(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Weighted squared difference of unit-normalized features: ``sum_hw w . (x^ - y^)^2`` for every pair.

    Args:
        x: Features ``(N, C, h, w)``, any floating dtype; fastest in ``channels_last`` memory.
        y: Features of the same shape and dtype.
        weight: Channel weights ``(C,)``; None for 1. Divide them by ``h w`` to get the mean over positions.

    Returns:
        Shape ``(N,)``; float32, or float64 for float64 features; without an autograd graph.
    """
    if head_triton.available(x.device, x.dtype):
        return head_triton.layer_sum(x.detach(), y.detach(), weight)
    weight = _weight(x, weight)
    positions_x, positions_y = _positions(x), _positions(y)
    found = torch.empty(len(positions_x), device=x.device, dtype=weight.dtype)
    with torch.no_grad():
        for block in _blocks(positions_x):
            _, _, inverse, difference = _difference(positions_x[block], positions_y[block], weight.dtype)
            torch.mv(difference.square_(), weight, out=found[block])
            found[block].mul_(inverse.square_()[:, 0])
    return found.view(len(x), x.shape[2] * x.shape[3]).sum(1)


def layer_sum_gradient(
    x: Tensor, y: Tensor, weight: Tensor | None, into: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`layer_sum` and its gradient w.r.t. `x`; 0 at positions where all channels of `x` are 0.

    Args:
        x: See `layer_sum`.
        y: See `layer_sum`.
        weight: See `layer_sum`.
        into: Memory for the gradient (CPU only), shape and dtype of `x`, ``channels_last``. It may be `y`: fresh memory
            costs more time than the arithmetic.

    Returns:
        Sums ``(N,)`` in float32 or float64, and the gradient with the shape and dtype of `x`.
    """
    if head_triton.available(x.device, x.dtype):
        return head_triton.layer_sum_gradient(x, y, weight)
    weight = _weight(x, weight)
    positions_x, positions_y = _positions(x), _positions(y)
    found = torch.empty(len(positions_x), device=x.device, dtype=weight.dtype)
    if into is None:
        into = torch.empty_like(x, memory_format=torch.channels_last)
    gradient = into.permute(0, 2, 3, 1).view(-1, x.shape[1])
    with torch.no_grad():
        for block in _blocks(positions_x):
            features, norm, inverse, difference = _difference(positions_x[block], positions_y[block], weight.dtype)
            # With v = x - r y, i = 1 / (n + eps): d = i^2 w.v^2, and dd/dx = 2 i^2 (w v - x (w v . x) i / n)
            weighted = difference * weight
            along = torch.mul(weighted, features).sum(1, keepdim=True)
            torch.mv(difference.square_(), weight, out=found[block])
            dead = norm == 0
            weighted.addcmul_(features, torch.where(dead, 0.0, along * inverse / norm), value=-1)
            square = inverse.square_()
            found[block].mul_(square[:, 0])
            torch.mul(weighted, torch.where(dead, 0.0, 2 * square), out=gradient[block])
    return found.view(len(x), x.shape[2] * x.shape[3]).sum(1), into


def _positions(features: Tensor) -> Tensor:
    """``(N * h * w, C)``; a view of features in ``channels_last`` memory."""
    return features.detach().permute(0, 2, 3, 1).reshape(-1, features.shape[1])


def _weight(features: Tensor, weight: Tensor | None) -> Tensor:
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    if weight is None:
        return torch.ones(features.shape[1], device=features.device, dtype=dtype)
    return weight.detach().to(dtype)


def _blocks(positions: Tensor) -> Iterator[slice]:
    count, channels = positions.shape
    if positions.device.type not in ("cpu", "meta"):
        yield slice(0, count)
        return
    rows = max(torch.get_num_threads() * _BLOCK_BYTES // (channels * max(positions.element_size(), 4)), 1)
    for start in range(0, count, rows):
        yield slice(start, start + rows)
        if positions.is_meta:  # memory estimate: all blocks need the same memory
            return


def _difference(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x` in `dtype`, its norm n, i = 1 / (n + eps), and x - y i_y / i, which is exactly 0 for x = y."""
    x, y = x.to(dtype), y.to(dtype)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    whole = norm + EPS
    ratio = whole / torch.linalg.vector_norm(y, dim=1, keepdim=True).add_(EPS)
    return x, norm, whole.reciprocal_(), torch.addcmul(x, y, ratio, value=-1)
