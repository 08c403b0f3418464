"""Entry point of the engine: distances of image pairs, for metrics, losses, callbacks and commands.

`measure` uses the fused path where possible: distances without an autograd graph, or with an input gradient computed in
the forward pass, both within a memory budget. Maps, masks, per-layer gradients and tracing use plain autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lpips_lightning.backbones.frozen import FrozenNetwork, without_autocast
from lpips_lightning.batch import cat, chunks
from lpips_lightning.distances.lpips import upsample
from lpips_lightning.engine.autograd import distances
from lpips_lightning.engine.erosion import eroded_masks
from lpips_lightning.engine.executor import mean_weight, pair_distances
from lpips_lightning.engine.inputs import Pairs
from lpips_lightning.engine.state import Engine
from lpips_lightning.engine.streaming import stream
from lpips_lightning.images.masks import any_unmasked, layer_masks
from lpips_lightning.images.preprocessing import to_backbone
from lpips_lightning.kernels.head import layer_sum
from lpips_lightning.tracing import is_symbolic, is_tracing
from lpips_lightning.transforms import has_tangent, is_transformed

LayerDistances: TypeAlias = tuple[dict[str, Tensor], Tensor | None]
"""Distances by layer name (or their sum under ``""``), and bools ``(M,)``: which pairs have unmasked positions.

The second is None without a mask.
"""


def measure(
    pairs: Pairs,
    *,
    map_size: tuple[int, int] | None = None,
    per_layer: bool = False,
    mask: Tensor | None = None,
    erode: bool = False,
) -> LayerDistances:
    """Distance of every pair.

    Args:
        pairs: The image pairs.
        map_size: ``(H, W)`` of distance maps; None for one distance per pair.
        per_layer: Whether the caller needs every layer's distance with its own gradient.
        mask: Weight of each pixel in [0, 1], ``(M, 1, H, W)``; None for equal weights.
        erode: Count only positions whose whole receptive field is unmasked.

    Returns:
        Distances ``(M,)``, or maps ``(M, 1, H, W)``, by layer name (their sum under ``""`` if only that was computed),
        and which pairs have unmasked positions. float32, or float64 if the backbone runs in float64.

    Raises:
        ValueError: With `erode`, if the receptive fields of the backbone are unknown.
    """
    fixed = [pairs.y] if isinstance(pairs.y, Tensor) else list(pairs.y.values())
    if mask is None and map_size is None and _is_fused(pairs.x, fixed, per_layer):
        if torch.is_grad_enabled() and pairs.x.requires_grad:
            return {"": distances(pairs)}, None
        return _distances_without_graph(pairs), None
    results = []
    for part in chunks(pairs.x, None if is_tracing() else pairs.chunk):
        x, y = pairs.features(part)
        masks = None if mask is None else position_masks(pairs.network, mask[part], x, erode)
        results.append(measure_features(pairs.network, x, y, map_size=map_size, masks=masks))
    by_layer = {layer: cat([found[layer] for found, _ in results]) for layer in results[0][0]}
    valid = [part for _, part in results if part is not None]
    return by_layer, cat(valid) if valid else None


def measure_features(
    network: FrozenNetwork,
    x: Mapping[str, Tensor],
    y: Mapping[str, Tensor],
    *,
    map_size: tuple[int, int] | None = None,
    masks: Mapping[str, Tensor] | None = None,
) -> LayerDistances:
    """Distance of every pair of features.

    Args:
        network: The frozen network; its calibration is used.
        x: Features ``(M, C, h, w)`` by layer name.
        y: Features with the same names and shapes.
        map_size: See `measure`.
        masks: Weight of each position, ``(M, 1, h, w)`` by layer name; None for equal weights.

    Returns:
        See `measure`.
    """
    calibration = network.calibration
    first = x[network.layers[0]]
    with without_autocast(first.device):
        if map_size is not None:
            maps = network.distance.maps(x, y, calibration)
            return {layer: upsample(layer_map, map_size) for layer, layer_map in maps.items()}, None
        if masks is None and network.distance.is_fused and _is_fused(first, [*x.values(), *y.values()], per_layer=True):
            with torch.no_grad():
                return {
                    layer: layer_sum(x[layer], y[layer], mean_weight(network, layer, x[layer]))
                    for layer in network.layers
                }, None
        return network.distance.by_layer(x, y, calibration, masks), None if masks is None else any_unmasked(masks)


def encode(
    network: FrozenNetwork,
    dtype: torch.dtype,
    images: Tensor,
    data_range: tuple[float, float],
    clamp: bool,
    chunk: int | None,
) -> dict[str, Tensor]:
    """Features of images, recorded by autograd if grad mode is on.

    Args:
        network: The frozen network, on the device of the images.
        dtype: Dtype of the backbone.
        images: Shape ``(M, 3, H, W)``.
        data_range: Value range ``(low, high)`` of the images.
        clamp: Clamp the images to the range.
        chunk: Maximum number of images per pass; None for all at once.

    Returns:
        Shape ``(M, C, h, w)`` by layer name.
    """
    with without_autocast(images.device):
        runs = [
            network.extractor(to_backbone(images[part], data_range, network.shift, network.scale, dtype, clamp))
            for part in chunks(images, None if is_tracing() else chunk)
        ]
    return {layer: cat([run[layer] for run in runs]) for layer in network.layers}


def position_masks(
    network: FrozenNetwork, mask: Tensor, features: Mapping[str, Tensor], erode: bool
) -> dict[str, Tensor]:
    """Resize a pixel mask to the feature layers.

    Args:
        network: The network that made the features.
        mask: Weight of each pixel in [0, 1], ``(M, 1, H, W)``.
        features: Features by layer name; only their sizes are used.
        erode: See `measure`.

    Returns:
        Weight of each position, ``(M, 1, h, w)`` by layer name.

    Raises:
        ValueError: With `erode`, if the receptive fields of the backbone are unknown.
    """
    if not erode:
        return layer_masks(mask, {layer: (values.shape[2], values.shape[3]) for layer, values in features.items()})
    try:
        layer_graph = Engine.layer_graph_of(network)
    except ValueError as error:
        raise ValueError(f"erode: the receptive fields of this backbone are unknown: {error}") from error
    return eroded_masks(mask, layer_graph)


def _is_fused(x: Tensor, fixed: Sequence[Tensor], per_layer: bool) -> bool:
    """Whether the caller needs no autograd graph, or only the gradient of the summed distance w.r.t. `x`.

    False while tracing, under ``torch.func`` and in forward-mode AD, where PyTorch must see every operation.
    """
    if is_symbolic(x):
        return False
    if is_transformed() or any(map(has_tangent, (x, *fixed))):
        return False
    if not torch.is_grad_enabled() or not any(given.requires_grad for given in (x, *fixed)):
        return True
    return not per_layer and not any(given.requires_grad for given in fixed)


@torch.no_grad()
def _distances_without_graph(pairs: Pairs) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without an autograd graph."""
    plan = pairs.plan(gradient=False)
    with without_autocast(pairs.x.device):
        if plan.way == "rows" and isinstance(pairs.y, Tensor):
            return stream(pairs.network, pairs.x, pairs.y, pairs.preprocess_x, pairs.preprocess_y, plan.strip_bytes)
        results = [
            pair_distances(pairs.network, pairs.inputs_x(part), pairs.inputs_y(part))
            for part in chunks(pairs.x, plan.images)
        ]
    return {layer: cat([result[layer] for result in results]) for layer in pairs.network.layers}
