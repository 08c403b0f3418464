"""3x3 convolutions of stride 1 with fewer multiplications (Winograd; Lavin and Gray 2016, F(3x3, 3x3)).

Tiles of 5x5 pixels that overlap by two become 25 transform points by sums and differences (input transform); at each
point all tiles pass one matrix product over channels; sums and differences of the products are 3x3 pixels of the result
(output transform). That is 25 multiplications where a direct convolution has 81.

What it brings, in per cent of a loss step with the ImageNet backbones (CPU time, one thread, torch 2.14, medians of
interleaved rounds, 2026-11-27 on a Zen 5; AVX2 is that machine with oneDNN, MKL and PyTorch held to AVX2):

| | AVX2 | AVX-512 |
|---|---|---|
| vgg, 4 images of 128 pixels | 30 less | 14 more |
| alex, 1 of 512, 4 of 256 | 19 to 21 less | 1 to 5 more |
| alex, 8 of 128 | 0 | not taken: too few pixels |

So `lpips_lightning.convolutions` takes it with AVX2 alone: AVX-512 doubles the speed of the direct convolution, but not
that of the memory that the transforms wait for. F(2x2, 3x3) in its place leaves alex at 10 to 14 less and vgg at 17 to
21 less; together with it, for layers of many weights, vgg is at 25 less. alex's 5x5 layer as four 3x3 ones brings
another 10 for one image of 512 pixels, 0 to 4 for four of 256, and nothing below. Neither is worth its code.
F(4x4, 3x3) would be faster still, and loses a digit.

Its rounding error follows from the points 0, 1, -1/2, -2 and infinity; ``tests/rounding.py`` derives it. Measured on
random images and weights, it is 0.8 to 1.6 times the larger of oneDNN's two (by memory format) from 64 channels on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

__all__ = ["convolve", "room", "shared_memory", "transformed"]

# Elements per transform point in one block of tiles; sized to stay in L2 and keep the matrix products large.
_BLOCK = 2**17
_FEWEST_TILES, _MOST_TILES = 64, 1024
_SOME = 32  # filters

_M = 3  # pixels of the result that a tile makes, along each axis
# Value of a row of three weights at each point, scaled so that mirroring the row changes nothing but the order.
_POINTS = (
    (1, 0, 0),
    (2 / 9, 2 / 9, 2 / 9),
    (8 / 9, -4 / 9, 2 / 9),
    (2 / 9, -4 / 9, 8 / 9),
    (0, 0, 1),
)
_MIRRORED = (4, 1, 3, 2, 0)


def transformed(weight: Tensor) -> Tensor:
    """A convolution's weight as `convolve` wants it.

    Args:
        weight: Shape ``(K, C, 3, 3)``.

    Returns:
        Shape ``(25, C, K)``, one matrix a transform point, in the weight's dtype.
    """
    points = torch.tensor(_POINTS, dtype=torch.float64, device=weight.device)
    kernel = weight.new_empty(len(points) ** 2, weight.shape[1], len(weight))
    for first in range(0, len(weight), _SOME):  # float64 takes memory
        filters = slice(first, first + _SOME)
        values = torch.einsum("ai,kcij,bj->abck", points, weight[filters].detach().double(), points)
        kernel[:, :, filters] = values.flatten(0, 1)
    return kernel


def room(x: Tensor, weight: Tensor, padding: tuple[int, int], adjoint: bool) -> object:
    """Allocate the workspace of `convolve`.

    Args:
        x: See `convolve`.
        weight: See `transformed`; its shape alone counts.
        padding: See `convolve`.
        adjoint: See `convolve`.

    Returns:
        Holds the memory.
    """
    kernel = weight.new_empty(1).expand(len(_POINTS) ** 2, weight.shape[1], len(weight))
    return _Block(x, kernel, padding, adjoint)


@torch.no_grad()
def convolve(x: Tensor, kernel: Tensor, bias: Tensor | None, padding: tuple[int, int], adjoint: bool = False) -> Tensor:
    """The convolution, or its input gradient: what maps the gradient w.r.t. its result to that w.r.t. its input.

    Args:
        x: Shape ``(N, C, H, W)``, on a CPU; fastest in ``channels_last`` memory.
        kernel: From `transformed`, in the dtype of `x`.
        bias: Shape ``(K,)``, or None; of the convolution alone.
        padding: Zeros around rows and columns of the convolution's input: two at most.
        adjoint: Take the input gradient; `x` has K channels then, and the result C.

    Returns:
        ``channels_last``, without a graph.
    """
    block = _Block(x, kernel, padding, adjoint)
    result = torch.empty(block.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, found = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)
    for images, top, rows in block.parts():
        products = block.multiply(block.transform_input(block.cut(pixels[images], top, rows)))
        block.transform_output(products, None if adjoint else bias, found[images, _M * top : _M * (top + rows)])
    return result


@contextlib.contextmanager
def shared_memory() -> Iterator[None]:
    """Inside, a thread's calls take what they need one after the other from one piece of memory.

    Blocks of many sizes that come and go between features leave holes that nothing fits into.
    """
    outer = getattr(_shared, "pieces", None)
    _shared.pieces = {} if outer is None else outer
    try:
        yield
    finally:
        _shared.pieces = outer


_shared = threading.local()


def _memory(x: Tensor, count: int) -> Tensor:
    pieces: dict[tuple[torch.dtype, torch.device], Tensor] | None = getattr(_shared, "pieces", None)
    if pieces is None:
        return x.new_empty(count)
    key = x.dtype, x.device
    if key not in pieces or len(pieces[key]) < count:
        pieces.pop(key, None)
        pieces[key] = x.new_empty(count)
    return pieces[key][:count]


class _Block:
    """Memory for some tiles, of several images or of some rows of one; it serves one block of them after the other."""

    def __init__(self, x: Tensor, kernel: Tensor, padding: tuple[int, int], adjoint: bool) -> None:
        points = len(_POINTS)
        # The input gradient is a convolution with the mirrored kernel: its transform has another order.
        self._kernel = kernel.transpose(1, 2) if adjoint else kernel
        self._order = _MIRRORED if adjoint else tuple(range(points))
        self._above, self._left = (2 - padding[0], 2 - padding[1]) if adjoint else padding
        count, depth, height, width = x.shape
        filters = self._kernel.shape[2]
        self.shape = count, filters, height + 2 * self._above - 2, width + 2 * self._left - 2
        self._down, across = -(-self.shape[2] // _M), -(-self.shape[3] // _M)

        most = min(max(_BLOCK // max(depth, filters), _FEWEST_TILES), _MOST_TILES)
        self._rows = max(1, min(self._down, most // across))
        whole = self._rows == self._down
        self._images = max(1, min(count, most // (self._down * across))) if whole else 1
        tiles = self._images * self._rows * across
        slab = self._images, _M * self._rows + 2, _M * across + 2, depth
        halfway_in = points * self._images * self._rows * slab[2] * depth
        halfway_out = points * _M * tiles * filters
        sizes = [
            prod(slab),
            # Each of the two holds values and products in turn, and what is halfway to the other.
            max(points**2 * tiles * depth, halfway_out),
            max(points**2 * tiles * filters, halfway_in),
        ]
        zeros, self._values, self._products = _memory(x, sum(sizes)).split(sizes)
        self._slab = zeros.zero_().view(slab)

    def parts(self) -> Iterator[tuple[slice, int, int]]:
        """Images, first row of tiles, and how many rows of them."""
        for first in range(0, self.shape[0], self._images):
            for top in range(0, self._down, self._rows):
                images = slice(first, min(first + self._images, self.shape[0]))
                yield images, top, min(self._rows, self._down - top)

    def cut(self, pixels: Tensor, top: int, rows: int) -> Tensor:
        """The images' rows under some rows of tiles; those beyond the image are zeros, as the outer columns are."""
        slab = self._slab[: len(pixels), : _M * rows + 2]
        first = _M * top - self._above
        height, width = pixels.shape[1:3]
        low, high = max(first, 0), min(first + slab.shape[1], height)
        slab[:, : low - first] = 0
        slab[:, low - first : high - first, self._left : self._left + width] = pixels[:, low:high]
        slab[:, high - first :] = 0
        return slab

    def transform_input(self, slab: Tensor) -> Tensor:
        """Values at all points, of all tiles: ``(5, 5, N, rows, columns, C)``."""
        (count, tall, wide, depth), points = slab.shape, len(_POINTS)
        rows, columns = (tall - 2) // _M, (wide - 2) // _M
        by_rows = _view(self._products, points, count, rows, wide, depth)  # there are no products yet
        values = _view(self._values, points, points, count, rows, columns, depth)
        last = _M * (rows - 1) + 1, _M * (columns - 1) + 1
        _transform_input([slab[:, k : k + last[0] : _M] for k in range(points)], [by_rows[k] for k in self._order])
        across = [by_rows[:, :, :, k : k + last[1] : _M] for k in range(points)]
        _transform_input(across, [values[:, k] for k in self._order])
        return values

    def multiply(self, values: Tensor) -> Tensor:
        """Products over channels, of all tiles: ``(5, 5, N, rows, columns, K)``."""
        squared, depth, filters = self._kernel.shape
        products = _view(self._products, *values.shape[:5], filters)
        torch.bmm(values.view(squared, -1, depth), self._kernel, out=products.view(squared, -1, filters))
        return products

    def transform_output(self, products: Tensor, bias: Tensor | None, into: Tensor) -> None:
        """Pixels of the result ``(N, rows, columns, K)`` from the products."""
        by_rows = _view(self._values, _M, *products.shape[1:])  # the values have served
        _transform_output([products[k] for k in self._order], list(by_rows))
        if bias is not None:
            by_rows[:, 1].add_(bias)  # which all sums of columns contain
        for first in range(_M):
            lines = into[:, first::_M]
            columns = [by_rows[first, k, :, : lines.shape[1]] for k in self._order]
            _transform_output(columns, [lines[:, :, k::_M] for k in range(_M)])


def _transform_input(d: list[Tensor], into: list[Tensor]) -> None:
    """Rows of five pixels -> the value at each point."""
    before, after = torch.sub(d[1], d[2], out=into[1]), torch.sub(d[3], d[2], out=into[2])
    torch.sub(d[0], d[3], out=into[0]).add_(before, alpha=1.5)
    torch.sub(d[4], d[1], out=into[4]).add_(after, alpha=1.5)
    torch.sub(before, after, alpha=2, out=into[3])
    torch.sub(after, before, alpha=2, out=into[2])
    torch.add(d[1], d[3], out=into[1]).add_(d[2], alpha=2.5)


def _transform_output(m: list[Tensor], into: list[Tensor]) -> None:
    """Products at the points -> three pixels; all but the first may be a column short where the image ends."""
    torch.add(m[0], m[1], out=into[0]).add_(m[2]).add_(m[3], alpha=0.25)
    short = _like(into[1], m)
    both = torch.add(short[2], short[3], out=into[1])
    torch.sub(short[1], both, alpha=0.5, out=into[1])
    short = _like(into[2], m)
    torch.add(short[4], short[1], out=into[2]).add_(short[2], alpha=0.25).add_(short[3])


def _like(short: Tensor, m: list[Tensor]) -> list[Tensor]:
    return [part[..., : short.shape[-2], :] for part in m]


def _view(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of a piece of memory, in some shape."""
    return memory[: prod(shape)].view(shape)
