"""Exact gradients of huge images in bounded memory: tiles with as much around them as their positions see.

Every position of every layer belongs to one tile. A tile's positions are computed from all pixels that they see, so
they are those of the whole image; what is computed around them is not counted. True borders keep their padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import Course, follow
from lpips_lightning.pair_terms import pair_gradient

__all__ = ["Span", "spans", "tile_gradient", "tiled_gradient"]


@dataclass(frozen=True)
class Span:
    """A tile along one axis.

    Attributes:
        pixels: Of the image, with what is around the tile.
        own: Positions that belong to it, by layer, counted from the first that `pixels` make.
    """

    pixels: slice
    own: Mapping[str, slice]


def spans(course: Course, axis: int, length: int, tile: int) -> list[Span]:
    """Cut an axis into tiles of about equal length, each with a position of every layer.

    Args:
        course: The trunk.
        axis: 0 for rows, 1 for columns.
        length: Of the image along this axis.
        tile: Pixels that a tile should own at most; no less than the trunk's stride are owned.

    Returns:
        From the first to the last.

    Raises:
        ValueError: If `tile` is not positive.
    """
    if tile < 1:
        raise ValueError(f"tile: expected a positive number of pixels, got {tile}")
    stride = course.strides[axis]
    # Of all results, not of the layers alone: with much padding, a layer may see less than what it is made of.
    sights = {name: both[axis] for name, both in course.sights.items()}
    counts = {name: shape[1 + axis] for name, shape in course.shapes((length, length)).items()}
    before = max(sight.before for sight in sights.values())
    after = max(sight.after - sight.jump + 1 for sight in sights.values())
    fitting = max(tile // stride, 1) * stride
    step = -(-length // (-(-length // fitting)) // stride) * stride
    starts = [
        start
        for start in range(0, length, step)
        if all(counts[name] > start // sight.jump for name, sight in sights.items())
    ]
    cut = []
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        low = max(0, (start - before) // stride * stride)
        high = length if stop == length else min(length, stop + after)
        own = {}
        for layer, name in course.taps.items():
            jump = sights[name].jump
            last = counts[name] if stop == length else stop // jump
            own[layer] = slice((start - low) // jump, last - low // jump)
        cut.append(Span(slice(low, high), own))
    return cut


def tiled_gradient(
    network: FrozenNetwork,
    x: Tensor,
    y: Tensor,
    prepare_x: Callable[[Tensor], Tensor],
    prepare_y: Callable[[Tensor], Tensor],
    tile: tuple[int, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Distance of every pair at every layer, and the gradient of the layers' sum by `x`.

    Args:
        network: In the dtype and on the device of what `prepare_x` makes.
        x: Floating images ``(N, 3, H, W)``.
        y: Images of the same shape.
        prepare_x: Part of an image ``(1, 3, h, w)`` -> the trunk's input, differentiable; of every pixel by itself.
        prepare_y: The same for `y`; it need not be differentiable.
        tile: Rows and columns that a tile should own at most.

    Returns:
        Shape ``(N,)`` by layer name, float32, or float64 for a trunk in float64; and shape and dtype of `x`.

    Raises:
        ValueError: If the trunk cannot be followed: see `lpips_lightning.geometry.obstacle`.
    """
    course = follow(network.extractor.graph)
    tiles = [spans(course, axis, x.shape[2 + axis], tile[axis]) for axis in range(2)]
    positions = _positions(course, x)
    gradient = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=False)
    pairs = []
    for image in range(len(x)):
        sums: dict[str, list[Tensor]] = {layer: [] for layer in network.layers}
        for rows, columns in product(*tiles):
            part = slice(image, image + 1), slice(None), rows.pixels, columns.pixels
            inputs = x[part].detach(), y[part].detach()
            found, gradient_part = tile_gradient(network, inputs, (prepare_x, prepare_y), (rows, columns), positions)
            gradient[part] += gradient_part
            for layer, total in found.items():
                sums[layer].append(total)
        pairs.append({layer: torch.stack(totals).sum(0) for layer, totals in sums.items()})
    distances = {layer: torch.cat([pair[layer] for pair in pairs]) for layer in network.layers}
    return distances, gradient.to(x.dtype)


def tile_gradient(
    network: FrozenNetwork,
    images: tuple[Tensor, Tensor],
    prepares: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    tile: tuple[Span, Span],
    positions: Mapping[str, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """One tile of one pair.

    Args:
        network: See `tiled_gradient`.
        images: The tile's pixels, ``(N, 3, h, w)`` each, the first without a graph.
        prepares: For each of them.
        tile: Its rows and columns.
        positions: How many there are in the whole image, by layer.

    Returns:
        What the tile's own positions add to the layers' means, ``(N,)`` by layer name, and the gradient of their sum,
        of the shape of the pixels.
    """
    rows, columns = tile
    with torch.no_grad():
        other = prepares[1](images[1])
    with torch.enable_grad():
        leaf = images[0].requires_grad_()
        image = prepares[0](leaf)
    own = {layer: (rows.own[layer], columns.own[layer]) for layer in network.layers}
    (slope,) = torch.autograd.grad(image, leaf, torch.ones_like(image))
    terms, gradient = pair_gradient(network, image.detach(), other, positions, own)
    return terms, gradient.mul_(slope)


def _positions(course: Course, images: Tensor) -> dict[str, int]:
    shapes = course.shapes((images.shape[2], images.shape[3]))
    return {layer: shapes[name][1] * shapes[name][2] for layer, name in course.taps.items()}
