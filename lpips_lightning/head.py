"""The head without a graph: two taps and a calibration -> each pair's distance, and its gradient if asked.

The same numbers as `lpips_lightning.distance`, which is the plain form and the one for autograd. Here a tap passes the
arithmetic in blocks of positions that stay in the processor's cache, so that memory is read once and written once. On a
GPU with Triton one kernel does the same.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lpips_lightning import head_triton
from lpips_lightning.distance import EPS

__all__ = ["layer_sum", "layer_sum_gradient"]

# Of one operand, a thread: smaller blocks pay for the calls, larger ones for memory that is no cache.
_BLOCK_BYTES = 2**20


def layer_sum(x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Distance of every pair at one layer, summed over positions: ``sum_hw w . (x^ - y^)^2``.

    Args:
        x: Features ``(N, C, h, w)``, any floating dtype; fastest in ``channels_last`` memory.
        y: Features of the same shape and dtype.
        weight: Calibration ``(C,)``, or None for the baseline: the plain sum over channels.

    Returns:
        Shape ``(N,)``, float32 (float64 for float64), without a graph.
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
    """`layer_sum`, and its derivative with respect to `x`.

    A position whose channels are all zero has derivative 0.

    Args:
        x: See `layer_sum`.
        y: See `layer_sum`.
        weight: See `layer_sum`.
        into: Where the gradient may be written, on a processor: shape and dtype of `x`, ``channels_last``. It may be
            `y` itself: new memory costs more time than the arithmetic.

    Returns:
        Sums ``(N,)``, float32 or float64, and the gradient, shape and dtype of `x`.
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
        if positions.is_meta:  # where memory is estimated; the others take no more than the first
            return


def _difference(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x` in `dtype`, its norm n, i = 1 / (n + eps), and x - y i_y / i, which is 0 exactly where x equals y."""
    x, y = x.to(dtype), y.to(dtype)
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    whole = norm + EPS
    ratio = whole / torch.linalg.vector_norm(y, dim=1, keepdim=True).add_(EPS)
    return x, norm, whole.reciprocal_(), torch.addcmul(x, y, ratio, value=-1)
