"""3x3 and 5x5 convolutions of stride 1 with fewer multiplications (Winograd; Lavin and Gray 2016, F(m x m, 3x3)).

Tiles of (m + 2) x (m + 2) pixels that overlap by two become as many numbers by sums and differences; of each of these,
all tiles pass one matrix product over channels; sums and differences of the products are m x m pixels of the result.
A 5x5 kernel is four of 3x3, a tile apart: four tiles side by side pass the products as one.

With m = 2 the error in float32 is 2e-7 to 4e-7 of the result; with m = 3, at the points 0, 1, -1/2, -2 and infinity,
5e-7 to 9e-7. oneDNN's direct convolution has 2e-7 to 1.2e-6. (m = 4 would be faster still, and loses a digit.)
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.winograd_forms import FORMS, Size

__all__ = ["Kernel", "convolve", "room", "shared_memory", "transformed"]

# Numbers of a block of tiles at one of their positions: few enough for the cache, many enough for the products.
_BLOCK = 2**17
_FEWEST_TILES, _MOST_TILES = 64, 1024
_SOME = 32  # filters


@dataclass(frozen=True)
class Kernel:
    """A convolution's weight as `convolve` wants it.

    Attributes:
        values: Of all points ``(m + 2)^2``, channels that go in, block by block, and filters.
        side: Of the kernel: 3 or 5.
        size: Of the tiles.
    """

    values: Tensor
    side: int
    size: Size

    @property
    def blocks(self) -> int:
        """3x3 kernels along an axis."""
        return -(-self.side // 3)


def transformed(weight: Tensor, size: Size = 2) -> Kernel:
    """A convolution's weight as `convolve` wants it.

    Args:
        weight: Shape ``(K, C, 3, 3)`` or, with tiles of 3 pixels, ``(K, C, 5, 5)``.
        size: Of the tiles.

    Returns:
        Its values have the weight's dtype.
    """
    points = torch.tensor(FORMS[size].points, dtype=torch.float64, device=weight.device)
    side = weight.shape[2]
    blocks = -(-side // 3)
    missing = 3 * blocks - side
    spread = weight.new_empty(len(points) ** 2, blocks**2 * weight.shape[1], len(weight))
    for first in range(0, len(weight), _SOME):  # float64 takes room
        filters = slice(first, first + _SOME)
        whole = F.pad(weight[filters].detach().double(), (0, missing, 0, missing))
        parts = whole.unflatten(3, (blocks, 3)).unflatten(2, (blocks, 3))
        values = torch.einsum("ai,kcyixj,bj->abyxck", points, parts, points)
        spread[:, :, filters] = values.flatten(2, 4).flatten(0, 1)
    return Kernel(spread, side, size)


def room(x: Tensor, weight: Tensor, size: Size, padding: tuple[int, int], adjoint: bool) -> object:
    """What `convolve` takes for itself.

    Args:
        x: See `convolve`.
        weight: See `transformed`; its form alone counts.
        size: See `transformed`.
        padding: See `convolve`.
        adjoint: See `convolve`.

    Returns:
        Holds the memory.
    """
    points, side = len(FORMS[size].points), weight.shape[2]
    channels = weight.shape[1] * (-(-side // 3)) ** 2
    values = weight.new_empty(1).expand(points**2, channels, len(weight))
    return _Block(x, Kernel(values, side, size), padding, adjoint)


@torch.no_grad()
def convolve(x: Tensor, kernel: Kernel, bias: Tensor | None, padding: tuple[int, int], adjoint: bool = False) -> Tensor:
    """The convolution, or its adjoint: what maps the gradient by its result to that by its input.

    Args:
        x: Shape ``(N, C, H, W)``, on a processor; fastest in ``channels_last`` memory.
        kernel: From `transformed`, in the dtype of `x`.
        bias: Shape ``(K,)``, or None; of the convolution alone.
        padding: Zeros around rows and columns of the convolution's input: fewer than the kernel's side.
        adjoint: Take the adjoint; `x` has K channels then, and the result C.

    Returns:
        ``channels_last``, without a graph.
    """
    block = _Block(x, kernel, padding, adjoint)
    result = torch.empty(block.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels, found = x.permute(0, 2, 3, 1), result.permute(0, 2, 3, 1)
    size = kernel.size
    for part, top, rows in block.parts():
        values = block.split(block.cut(pixels[part], top, rows))
        products = block.scattered(values) if adjoint else block.gathered(values)
        block.merge(products, None if adjoint else bias, found[part, size * top : size * (top + rows)])
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

    def __init__(self, x: Tensor, kernel: Kernel, padding: tuple[int, int], adjoint: bool) -> None:
        self._form, self._m, self._blocks = FORMS[kernel.size], kernel.size, kernel.blocks
        points = len(self._form.points)
        # The transform of a mirrored kernel is the kernel's in another order.
        self._order = self._form.mirrored if adjoint else tuple(range(points))
        self._values = kernel.values.transpose(1, 2) if adjoint else kernel.values
        last, zeros = 3 * self._blocks - 1, kernel.side - 1
        self._above, self._left = (last - padding[0], last - padding[1]) if adjoint else padding
        count, depth, *sides = x.shape
        tall, wide = (
            side + (zeros - 2 * pad if adjoint else 2 * pad - zeros) for side, pad in zip(sides, padding, strict=True)
        )
        pieces = self._blocks**2
        filters = self._values.shape[2] // (pieces if adjoint else 1)
        self.shape = count, filters, tall, wide
        self._down, self._across = -(-tall // self._m), -(-wide // self._m)

        widest = max(depth, filters * pieces) if adjoint else max(depth * pieces, filters)
        most = min(max(_BLOCK // widest, _FEWEST_TILES), _MOST_TILES)
        self._rows = max(1, min(self._down, most // self._across))
        whole = self._rows == self._down
        self._images = max(1, min(count, most // (self._down * self._across))) if whole else 1
        tiles = self._images * self._rows * self._across
        rows, columns = self._rows + self._blocks - 1, self._across + self._blocks - 1
        seen = self._images * rows * columns
        slab = self._images, self._m * rows + 2, self._m * columns + 2, depth
        split, merged = points * self._images * rows * slab[2] * depth, points * self._m * tiles * filters
        beside = 0 if pieces == 1 else pieces * (seen * filters if adjoint else tiles * depth)
        sizes = [
            prod(slab),
            # Each of the two holds values and products in turn, and what is halfway to the other.
            max(points**2 * seen * depth, merged),
            max(points**2 * tiles * filters, split),
            points**2 * beside,  # four tiles, or their products
        ]
        zeros, self._seen, self._products, self._beside = _memory(x, sum(sizes)).split(sizes)
        self._slab = zeros.zero_().view(slab)

    def parts(self) -> Iterator[tuple[slice, int, int]]:
        """Images, first row of tiles, and how many rows of them."""
        for first in range(0, self.shape[0], self._images):
            for top in range(0, self._down, self._rows):
                images = slice(first, min(first + self._images, self.shape[0]))
                yield images, top, min(self._rows, self._down - top)

    def cut(self, pixels: Tensor, top: int, rows: int) -> Tensor:
        """The images' rows under some rows of tiles; those beyond the image are zeros, as the outer columns are."""
        slab = self._slab[: len(pixels), : self._m * (rows + self._blocks - 1) + 2]
        first = self._m * top - self._above
        height, width = pixels.shape[1:3]
        low, high = max(first, 0), min(first + slab.shape[1], height)
        slab[:, : low - first] = 0
        slab[:, low - first : high - first, self._left : self._left + width] = pixels[:, low:high]
        slab[:, high - first :] = 0
        return slab

    def split(self, slab: Tensor) -> Tensor:
        """Values at all points, of all tiles: ``(points, points, N, rows, columns, C)``."""
        (count, tall, wide, depth), m, points = slab.shape, self._m, len(self._order)
        rows, columns = (tall - 2) // m, (wide - 2) // m
        by_rows = _view(self._products, points, count, rows, wide, depth)  # there are no products yet
        values = _view(self._seen, points, points, count, rows, columns, depth)
        last = m * (rows - 1) + 1, m * (columns - 1) + 1
        self._form.split([slab[:, k : k + last[0] : m] for k in range(points)], [by_rows[k] for k in self._order])
        across = [by_rows[:, :, :, k : k + last[1] : m] for k in range(points)]
        self._form.split(across, [values[:, k] for k in self._order])
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """The convolution's products: each tile of the result is made of tiles side by side, one for each block."""
        points, _, count, rows, columns, depth = values.shape
        if self._blocks == 1:
            return self._multiplied(values, self._products)
        rows, columns = rows - 1, columns - 1
        beside = _view(self._beside, points, points, count, rows, columns, 4, depth)
        for k, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            beside[:, :, :, :, :, k] = values[:, :, :, down : down + rows, right : right + columns]
        return self._multiplied(beside.flatten(5), self._products)

    def scattered(self, values: Tensor) -> Tensor:
        """The adjoint's products: each tile makes parts of tiles side by side, one for each block."""
        if self._blocks == 1:
            return self._multiplied(values, self._products)
        beside = self._multiplied(values, self._beside).unflatten(5, (4, -1))
        near, far = slice(None, -1), slice(1, None)
        points, _, count, rows, columns, _, filters = beside.shape
        products = _view(self._products, points, points, count, rows - 1, columns - 1, filters)
        torch.add(beside[:, :, :, far, far, 0], beside[:, :, :, far, near, 1], out=products)
        return products.add_(beside[:, :, :, near, far, 2]).add_(beside[:, :, :, near, near, 3])

    def merge(self, products: Tensor, bias: Tensor | None, into: Tensor) -> None:
        """Pixels of the result ``(N, rows, columns, K)`` from the products."""
        m = self._m
        by_rows = _view(self._seen, m, *products.shape[1:])  # the values have served
        self._form.merge([products[k] for k in self._order], list(by_rows))
        if bias is not None:
            by_rows[:, 1].add_(bias)  # which all sums of columns contain
        for first in range(m):
            lines = into[:, first::m]
            columns = [by_rows[first, k, :, : lines.shape[1]] for k in self._order]
            self._form.merge(columns, [lines[:, :, k::m] for k in range(m)])

    def _multiplied(self, values: Tensor, into: Tensor) -> Tensor:
        points_squared, depth, filters = self._values.shape
        products = _view(into, *values.shape[:5], filters)
        torch.bmm(values.view(points_squared, -1, depth), self._values, out=products.view(points_squared, -1, filters))
        return products


def _view(memory: Tensor, *shape: int) -> Tensor:
    """The first numbers of a piece of memory, in some shape."""
    return memory[: prod(shape)].view(shape)
