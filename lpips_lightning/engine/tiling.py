"""Exact gradients of huge images in bounded memory: tiles with a halo that completes every receptive field.

Every position of every layer belongs to the interior of exactly one tile and is computed from its full receptive field,
so its value is that of the whole image. Feature positions in the halo are left out;
gradients w.r.t. pixels of the halo are added up over tiles. True image borders keep their padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.engine.executor import pair_gradient
from lpips_lightning.engine.graph import LayerGraph
from lpips_lightning.engine.state import Engine


@dataclass(frozen=True)
class AxisTile:
    """A tile along one axis.

    Attributes:
        pixels: Image pixels of the tile, halo included.
        interior: Positions of each layer that the tile owns, counted from the first position that `pixels` produce.
    """

    pixels: slice
    interior: Mapping[str, slice]


def axis_tiles(layer_graph: LayerGraph, axis: int, length: int, tile: int) -> list[AxisTile]:
    """Split an axis into tiles of equal interior, each with at least one position of every layer.

    Args:
        layer_graph: Layer graph of the backbone.
        axis: 0 for rows, 1 for columns.
        length: Pixels of the image along the axis.
        tile: Interior of a tile in pixels, rounded down to a multiple of the stride of the backbone, and at least one
            stride. The last tile also takes pixels too few for a tile of their own.

    Returns:
        Tiles from the first pixel to the last.

    Raises:
        ValueError: If `tile` is not positive.
    """
    if tile < 1:
        raise ValueError(f"tile: expected a positive number of pixels, got {tile}")
    stride = layer_graph.strides[axis]
    # All nodes, not only feature layers: with large padding, a feature layer can reach less far than its inputs.
    receptive_fields = {name: both[axis] for name, both in layer_graph.receptive_fields.items()}
    counts = {name: shape[1 + axis] for name, shape in layer_graph.shapes((length, length)).items()}
    before = max(field.before for field in receptive_fields.values())
    after = max(field.after - field.jump + 1 for field in receptive_fields.values())
    count = -(-length // (max(tile // stride, 1) * stride))
    step = -(-length // (count * stride)) * stride
    starts = [
        start
        for start in range(0, length, step)
        if all(counts[name] > start // field.jump for name, field in receptive_fields.items())
    ]
    tiles = []
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        low = max(0, (start - before) // stride * stride)
        high = length if stop == length else min(length, stop + after)
        interior = {}
        for layer, name in layer_graph.feature_layers.items():
            jump = receptive_fields[name].jump
            last = counts[name] if stop == length else stop // jump
            interior[layer] = slice((start - low) // jump, last - low // jump)
        tiles.append(AxisTile(slice(low, high), interior))
    return tiles


def tiled_gradient(
    network: FrozenNetwork,
    x: Tensor,
    y: Tensor,
    preprocess_x: Callable[[Tensor], Tensor],
    preprocess_y: Callable[[Tensor], Tensor],
    tile: tuple[int, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Distance of every pair at every layer, and the gradient of the sum over layers w.r.t. `x`.

    Args:
        network: The frozen network, with the dtype and device that `preprocess_x` returns.
        x: Floating-point images ``(N, 3, H, W)``.
        y: Images of the same shape.
        preprocess_x: Part of an image ``(1, 3, h, w)`` -> backbone input; differentiable, pixel by pixel.
        preprocess_y: The same for `y`; need not be differentiable.
        tile: Maximum rows and columns of a tile's interior, in pixels.

    Returns:
        Distances ``(N,)`` by layer name in float32 (float64 for a backbone in float64), and the gradient with the shape
        and dtype of `x`.

    Raises:
        ValueError: If the backbone is not supported: see `lpips_lightning.engine.graph.unsupported_reason`.
    """
    layer_graph = Engine.of(network).layer_graph
    tiles = [axis_tiles(layer_graph, axis, x.shape[2 + axis], tile[axis]) for axis in range(2)]
    positions = _positions(layer_graph, x)
    gradient = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32), requires_grad=False)
    pairs = []
    for image in range(len(x)):
        sums: dict[str, list[Tensor]] = {layer: [] for layer in network.layers}
        for rows, columns in product(*tiles):
            part = slice(image, image + 1), slice(None), rows.pixels, columns.pixels
            images = x[part].detach(), y[part].detach()
            found, tile_part = tile_gradient(network, images, (preprocess_x, preprocess_y), (rows, columns), positions)
            gradient[part] += tile_part
            for layer, total in found.items():
                sums[layer].append(total)
        pairs.append({layer: torch.stack(totals).sum(0) for layer, totals in sums.items()})
    distances = {layer: torch.cat([pair[layer] for pair in pairs]) for layer in network.layers}
    return distances, gradient.to(x.dtype)


def tile_gradient(
    network: FrozenNetwork,
    images: tuple[Tensor, Tensor],
    preprocess: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    tile: tuple[AxisTile, AxisTile],
    positions: Mapping[str, int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Contribution of one tile to distances and gradient.

    Args:
        network: See `tiled_gradient`.
        images: Pixels of the tile, ``(N, 3, h, w)`` for each of the two images; the first without an autograd graph.
        preprocess: Preprocessing of each of the two images.
        tile: Rows and columns of the tile.
        positions: Number of positions of the whole image, by layer name.

    Returns:
        What the interior adds to each layer's distance, ``(N,)`` by layer name, and the gradient of their sum w.r.t.
        the pixels of the first image.
    """
    rows, columns = tile
    with torch.no_grad():
        other = preprocess[1](images[1])
    with torch.enable_grad():
        leaf = images[0].requires_grad_()
        image = preprocess[0](leaf)
    interior = {layer: (rows.interior[layer], columns.interior[layer]) for layer in network.layers}
    (slope,) = torch.autograd.grad(image, leaf, torch.ones_like(image))  # preprocessing is pixelwise
    distances, gradient = pair_gradient(network, image.detach(), other, positions, interior)
    return distances, gradient.mul_(slope)


def _positions(layer_graph: LayerGraph, images: Tensor) -> dict[str, int]:
    shapes = layer_graph.shapes((images.shape[2], images.shape[3]), images.shape[1])
    return {layer: shapes[name][1] * shapes[name][2] for layer, name in layer_graph.feature_layers.items()}
