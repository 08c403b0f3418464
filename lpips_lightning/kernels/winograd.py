"""3x3 convolutions of stride 1 with fewer multiplications (Winograd; Lavin and Gray 2016, F(3x3, 3x3)).

The input transform maps overlapping tiles of 5x5 pixels to 25 points by sums and differences; at each point, one matrix
product over channels covers all tiles; the output transform maps the products to 3x3 output pixels by sums and
differences. That is 25 multiplications where a direct convolution needs 81.

CPU time of a loss step, change in per cent (ImageNet backbones, one thread, torch 2.14, medians of interleaved rounds,
2026-11-27 on a Zen 5; "AVX2" is the same machine with oneDNN, MKL and PyTorch limited to AVX2):

| | AVX2 | AVX-512 |
|---|---|---|
| vgg, 4 images of 128 pixels | 30 less | 14 more |
| alex, 1 of 512, 4 of 256 | 19 to 21 less | 1 to 5 more |
| alex, 8 of 128 | 0 | not used: too few pixels |

So `lpips_lightning.kernels.conv2d` uses it on AVX2 only: AVX-512 doubles the speed of the direct convolution but not of
the memory traffic that bounds the transforms. Alternatives that are not worth their code: F(2x2, 3x3) saves 10 to 14
(alex) and 17 to 21 (vgg); both algorithms together save 25 with vgg; alex's 5x5 layer as four 3x3 layers saves another
10 for one image of 512 pixels, 0 to 4 for four of 256, nothing below. F(4x4, 3x3) would be faster but loses a digit.

The rounding error follows from the points 0, 1, -1/2, -2 and infinity; ``tests/_helpers/rounding.py`` derives it. On
random images and weights it is 0.8 to 1.6 times that of oneDNN (the larger of its two memory formats) from 64 channels.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

# Elements per transform point in one block of tiles; sized to stay in L2 and keep the matrix products large.
_BLOCK_ELEMENTS = 2**17
_MIN_TILES, _MAX_TILES = 64, 1024
_FILTERS_AT_ONCE = 32  # bounds the float64 temporaries of `transform_weight`

_M = 3  # output pixels of a tile along each axis
# Values of a row of three weights at the points, scaled so that mirroring the row only permutes them (`_MIRRORED`).
_POINTS = (
    (1, 0, 0),
    (2 / 9, 2 / 9, 2 / 9),
    (8 / 9, -4 / 9, 2 / 9),
    (2 / 9, -4 / 9, 8 / 9),
    (0, 0, 1),
)
_MIRRORED = (4, 1, 3, 2, 0)


def transform_weight(weight: Tensor) -> Tensor:
    """Transform a convolution weight for `convolve`.

    Args:
        weight: Shape ``(K, C, 3, 3)``.

    Returns:
        Shape ``(25, C, K)``: one matrix per transform point, in the dtype of `weight`.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64, device=weight.device)
    kernel = weight.new_empty(len(points) ** 2, weight.shape[1], len(weight))
    for first in range(0, len(weight), _FILTERS_AT_ONCE):
        filters = slice(first, first + _FILTERS_AT_ONCE)
        values = torch.einsum("ai,kcij,bj->abck", points, weight[filters].detach().double(), points)
        kernel[:, :, filters] = values.flatten(0, 1)
    return kernel


def workspace(x: Tensor, weight: Tensor, padding: tuple[int, int], input_gradient: bool) -> object:
    """Allocate the workspace of `convolve`.

    Args:
        x: See `convolve`.
        weight: See `transform_weight`; only its shape is used.
        padding: See `convolve`.
        input_gradient: See `convolve`.

    Returns:
        An object that holds the memory.
    """
    kernel = weight.new_empty(1).expand(len(_POINTS) ** 2, weight.shape[1], len(weight))
    return _TileBlock(x, kernel, padding, input_gradient)


@torch.no_grad()
def convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int], input_gradient: bool = False
) -> Tensor:
    """The convolution, or its input gradient: the map from the gradient w.r.t. the output to that w.r.t. the input.

    Args:
        x: Shape ``(N, C, H, W)``, on a CPU; fastest in ``channels_last`` memory.
        kernel: From `transform_weight`, in the dtype of `x`.
        bias: Shape ``(K,)``, or None; ignored for the input gradient.
        padding: Zeros around rows and columns of the convolution's input, at most 2.
        input_gradient: Compute the input gradient; then `x` has K channels and the result C.

    Returns:
        The output in ``channels_last`` memory, without an autograd graph.
    """
    block = _TileBlock(x, kernel, padding, input_gradient)
    result = torch.empty(block.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, output = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)
    for images, top, rows in block.batches():
        products = block.multiply(block.transform_input(block.pad_rows(pixels[images], top, rows)))
        block.transform_output(products, None if input_gradient else bias, output[images, _M * top : _M * (top + rows)])
    return result


@contextlib.contextmanager
def shared_workspace() -> Iterator[None]:
    """Within this context, all calls of a thread reuse one workspace.

    Allocating workspaces of many sizes between feature maps fragments the heap.
    """
    outer = getattr(_thread, "workspaces", None)
    _thread.workspaces = {} if outer is None else outer
    try:
        yield
    finally:
        _thread.workspaces = outer


_thread = threading.local()


def _allocate(x: Tensor, count: int) -> Tensor:
    workspaces: dict[tuple[torch.dtype, torch.device], Tensor] | None = getattr(_thread, "workspaces", None)
    if workspaces is None:
        return x.new_empty(count)
    key = x.dtype, x.device
    if key not in workspaces or len(workspaces[key]) < count:
        workspaces.pop(key, None)
        workspaces[key] = x.new_empty(count)
    return workspaces[key][:count]


class _TileBlock:
    """Workspace for one block of tiles (several images, or rows of tiles of one image), reused for all blocks."""

    def __init__(self, x: Tensor, kernel: Tensor, padding: tuple[int, int], input_gradient: bool) -> None:
        points = len(_POINTS)
        # The input gradient is a convolution with the mirrored kernel, whose transform is a permutation.
        self._kernel = kernel.transpose(1, 2) if input_gradient else kernel
        self._order = _MIRRORED if input_gradient else tuple(range(points))
        self._pad_top, self._pad_left = (2 - padding[0], 2 - padding[1]) if input_gradient else padding
        count, depth, height, width = x.shape
        filters = self._kernel.shape[2]
        self.shape = count, filters, height + 2 * self._pad_top - 2, width + 2 * self._pad_left - 2
        self._tile_rows, tile_columns = -(-self.shape[2] // _M), -(-self.shape[3] // _M)

        max_tiles = min(max(_BLOCK_ELEMENTS // max(depth, filters), _MIN_TILES), _MAX_TILES)
        self._rows_per_block = max(1, min(self._tile_rows, max_tiles // tile_columns))
        whole = self._rows_per_block == self._tile_rows
        self._images_per_block = max(1, min(count, max_tiles // (self._tile_rows * tile_columns))) if whole else 1
        tiles = self._images_per_block * self._rows_per_block * tile_columns
        padded_shape = self._images_per_block, _M * self._rows_per_block + 2, _M * tile_columns + 2, depth
        halfway_in = points * self._images_per_block * self._rows_per_block * padded_shape[2] * depth
        halfway_out = points * _M * tiles * filters
        sizes = [
            prod(padded_shape),
            # Each buffer holds values or products, and the intermediate result of the other transform.
            max(points**2 * tiles * depth, halfway_out),
            max(points**2 * tiles * filters, halfway_in),
        ]
        zeros, self._values, self._products = _allocate(x, sum(sizes)).split(sizes)
        self._padded = zeros.zero_().view(padded_shape)

    def batches(self) -> Iterator[tuple[slice, int, int]]:
        """Yields images, first row of tiles, and number of rows of tiles."""
        for first in range(0, self.shape[0], self._images_per_block):
            for top in range(0, self._tile_rows, self._rows_per_block):
                images = slice(first, min(first + self._images_per_block, self.shape[0]))
                yield images, top, min(self._rows_per_block, self._tile_rows - top)

    def pad_rows(self, pixels: Tensor, top: int, rows: int) -> Tensor:
        """Input rows of some rows of tiles, with zero padding."""
        padded = self._padded[: len(pixels), : _M * rows + 2]
        first = _M * top - self._pad_top
        height, width = pixels.shape[1:3]
        low, high = max(first, 0), min(first + padded.shape[1], height)
        padded[:, : low - first] = 0
        padded[:, low - first : high - first, self._pad_left : self._pad_left + width] = pixels[:, low:high]
        padded[:, high - first :] = 0
        return padded

    def transform_input(self, padded: Tensor) -> Tensor:
        """Values at all points for all tiles: ``(5, 5, N, rows, columns, C)``."""
        (count, tall, wide, depth), points = padded.shape, len(_POINTS)
        rows, columns = (tall - 2) // _M, (wide - 2) // _M
        by_rows = _view(self._products, points, count, rows, wide, depth)  # the products do not exist yet
        values = _view(self._values, points, points, count, rows, columns, depth)
        last = _M * (rows - 1) + 1, _M * (columns - 1) + 1
        _transform_input([padded[:, k : k + last[0] : _M] for k in range(points)], [by_rows[k] for k in self._order])
        across = [by_rows[:, :, :, k : k + last[1] : _M] for k in range(points)]
        _transform_input(across, [values[:, k] for k in self._order])
        return values

    def multiply(self, values: Tensor) -> Tensor:
        """Matrix products over channels at all points: ``(5, 5, N, rows, columns, K)``."""
        squared, depth, filters = self._kernel.shape
        products = _view(self._products, *values.shape[:5], filters)
        torch.bmm(values.view(squared, -1, depth), self._kernel, out=products.view(squared, -1, filters))
        return products

    def transform_output(self, products: Tensor, bias: Tensor | None, into: Tensor) -> None:
        """Output pixels ``(N, rows, columns, K)`` from the products."""
        by_rows = _view(self._values, _M, *products.shape[1:])  # the values are no longer needed
        _transform_output([products[k] for k in self._order], list(by_rows))
        if bias is not None:
            by_rows[:, 1].add_(bias)  # the point that contributes with weight 1 to all output pixels
        for first in range(_M):
            lines = into[:, first::_M]
            columns = [by_rows[first, k, :, : lines.shape[1]] for k in self._order]
            _transform_output(columns, [lines[:, :, k::_M] for k in range(_M)])


def _transform_input(d: list[Tensor], into: list[Tensor]) -> None:
    """Rows of five pixels -> values at the five points."""
    before, after = torch.sub(d[1], d[2], out=into[1]), torch.sub(d[3], d[2], out=into[2])
    torch.sub(d[0], d[3], out=into[0]).add_(before, alpha=1.5)
    torch.sub(d[4], d[1], out=into[4]).add_(after, alpha=1.5)
    torch.sub(before, after, alpha=2, out=into[3])
    torch.sub(after, before, alpha=2, out=into[2])
    torch.add(d[1], d[3], out=into[1]).add_(d[2], alpha=2.5)


def _transform_output(m: list[Tensor], into: list[Tensor]) -> None:
    """Products at the points -> three pixels; the last two may be one column shorter at the image border."""
    torch.add(m[0], m[1], out=into[0]).add_(m[2]).add_(m[3], alpha=0.25)
    short = _like(into[1], m)
    both = torch.add(short[2], short[3], out=into[1])
    torch.sub(short[1], both, alpha=0.5, out=into[1])
    short = _like(into[2], m)
    torch.add(short[4], short[1], out=into[2]).add_(short[2], alpha=0.25).add_(short[3])


def _like(short: Tensor, m: list[Tensor]) -> list[Tensor]:
    return [part[..., : short.shape[-2], :] for part in m]


def _view(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a buffer in a given shape."""
    return memory[: prod(shape)].view(shape)
