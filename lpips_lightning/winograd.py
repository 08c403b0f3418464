"""3x3 convolutions of stride 1 with 4/9 of the multiplications (Winograd; Lavin and Gray 2016, F(2x2, 3x3)).

Tiles of 4x4 pixels that overlap by two become 16 numbers by sums and differences alone; of each of the 16, all tiles
pass one matrix product over channels; sums and differences of the products are 2x2 pixels of the result. The error in
float32 is that of a direct convolution: 4e-7 of the result, where oneDNN's with 512 channels is 2e-7 to 1.2e-6. (The
larger F(4x4, 3x3) would be faster still, and is not taken: it multiplies by up to 8, and loses a digit.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["SPACE", "convolve", "transformed"]

# Numbers of a block of tiles at one of the 16 positions: few enough for the cache, many enough for the products.
_BLOCK = 2**17
_FEWEST_TILES, _MOST_TILES = 64, 512
_SOME = 32  # filters
SPACE = 176 * _BLOCK
"""Bytes that a call takes for itself at most, in float32, while blocks have no more tiles than they should."""

_STRAIGHT, _MIRRORED = (0, 1, 2, 3), (3, 1, 2, 0)


def transformed(weight: Tensor) -> Tensor:
    """A convolution's weight as `convolve` wants it.

    Args:
        weight: Shape ``(K, C, 3, 3)``.

    Returns:
        Shape ``(16, C, K)``, dtype of `weight`.
    """
    halves = [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    points = torch.tensor(halves, dtype=torch.float64, device=weight.device)
    spread = weight.new_empty(16, weight.shape[1], weight.shape[0])
    for first in range(0, len(weight), _SOME):  # float64 takes room
        filters = slice(first, first + _SOME)
        values = torch.einsum("ai,kcij,bj->abck", points, weight[filters].detach().double(), points)
        spread[:, :, filters] = values.flatten(0, 1)
    return spread


@torch.no_grad()
def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int], adjoint: bool = False) -> Tensor:
    """The convolution, or its adjoint: what maps the gradient by its result to that by its input.

    Args:
        x: Shape ``(N, C, H, W)``, on a processor; fastest in ``channels_last`` memory.
        kernel: From `transformed`, in the dtype of `x`.
        bias: Shape ``(K,)``, or None; of the convolution alone.
        padding: Zeros around rows and columns of the convolution's input: 0, 1 or 2 of them.
        adjoint: Take the adjoint; `x` has K channels then, and the result C.

    Returns:
        ``channels_last``, without a graph.
    """
    kernel = kernel.transpose(1, 2) if adjoint else kernel
    order = _MIRRORED if adjoint else _STRAIGHT  # the transform of a mirrored kernel has its ends exchanged
    above, left = (2 - padding[0], 2 - padding[1]) if adjoint else padding
    depth, filters = kernel.shape[1:]
    count, _, height, width = x.shape
    tall, wide = height + 2 * above - 2, width + 2 * left - 2
    result = torch.empty(
        (count, filters, tall, wide), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
    )
    pixels, found = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)

    down, across = -(-tall // 2), -(-wide // 2)
    most = min(max(_BLOCK // max(depth, filters), _FEWEST_TILES), _MOST_TILES)
    rows = max(1, min(down, most // across))
    images = max(1, min(count, most // (down * across))) if rows == down else 1
    tiles = images * rows * across
    slab = x.new_zeros(images, 2 * rows + 2, 2 * across + 2, depth)
    seen, products = x.new_empty(16 * tiles * depth), x.new_empty(16 * tiles * filters)
    halfway = x.new_empty(8 * max((tiles + images * rows) * depth, tiles * filters))
    for part, top, r in _blocks(count, down, images, rows):
        n = part.stop - part.start
        _cut(slab[:n, : 2 * r + 2], pixels[part], 2 * top - above, left)
        by_rows = halfway[: 8 * n * r * (across + 1) * depth].view(4, n, r, 2 * across + 2, depth)
        tile_values = seen[: 16 * n * r * across * depth].view(4, 4, n, r, across, depth)
        _differences([slab[:n, k : k + 2 * r : 2] for k in range(4)], [by_rows[k] for k in order])
        columns = [by_rows[:, :, :, k : k + 2 * across : 2] for k in range(4)]
        _differences(columns, [tile_values[:, k] for k in order])

        tile_products = products[: 16 * n * r * across * filters].view(4, 4, n, r, across, filters)
        torch.bmm(tile_values.view(16, -1, depth), kernel, out=tile_products.view(16, -1, filters))
        pairs = halfway[: 8 * n * r * across * filters].view(2, 4, n, r, across, filters)
        _sums([tile_products[k] for k in order], [pairs[0], pairs[1]])
        if bias is not None and not adjoint:
            pairs[:, 1].add_(bias)  # which both sums of two columns contain
        block = found[part, 2 * top : 2 * (top + r)]
        for parity in range(2):
            lines = block[:, parity::2]
            columns = [pairs[parity, k, :, : lines.shape[1]] for k in order]
            _sums(columns, [lines[:, :, 0::2], lines[:, :, 1::2]])
    return result


def _blocks(count: int, down: int, images: int, rows: int) -> Iterator[tuple[slice, int, int]]:
    """Images, first row of tiles, and how many rows of them."""
    for first in range(0, count, images):
        for top in range(0, down, rows):
            yield slice(first, min(first + images, count)), top, min(rows, down - top)


def _cut(slab: Tensor, pixels: Tensor, first: int, left: int) -> None:
    """Fill a slab with the rows from `first` on; those beyond the image with zeros, as its outer columns are."""
    height, width = pixels.shape[1:3]
    low, high = max(first, 0), min(first + slab.shape[1], height)
    slab[:, : low - first] = 0
    slab[:, low - first : high - first, left : left + width] = pixels[:, low:high]
    slab[:, high - first :] = 0


def _differences(d: list[Tensor], into: list[Tensor]) -> None:
    torch.sub(d[0], d[2], out=into[0])
    torch.add(d[1], d[2], out=into[1])
    torch.sub(d[2], d[1], out=into[2])
    torch.sub(d[1], d[3], out=into[3])


def _sums(m: list[Tensor], into: list[Tensor]) -> None:
    """Of four, two; the second may be a column short where the image ends."""
    torch.add(m[1], m[2], out=into[0]).add_(m[0])
    short = [part[..., : into[1].shape[-2], :] for part in m]
    torch.sub(short[1], short[2], out=into[1]).sub_(short[3])
