"""Erode a mask: keep only the feature positions whose whole receptive field is unmasked."""

from __future__ import annotations

import torch
from torch import Tensor

from lpips_lightning.engine.graph import LayerGraph
from lpips_lightning.engine.windows import Window


def eroded_masks(mask: Tensor, layer_graph: LayerGraph) -> dict[str, Tensor]:
    """Masks of the feature layers: 1 where every pixel in the receptive field has mask 1, else 0.

    Padding beyond the image border counts as unmasked.

    Args:
        mask: Shape ``(M, 1, H, W)``, in [0, 1].
        layer_graph: Layer graph of the backbone.

    Returns:
        Shape ``(M, 1, h, w)`` by layer name.
    """
    masked = {layer_graph.image: (mask < 1).float()}
    for node in layer_graph.nodes:
        inputs = [masked[name] for name in node.inputs]
        masked[node.name] = node.op.dilate(inputs[0]) if isinstance(node.op, Window) else torch.stack(inputs).amax(0)
    return {layer: 1 - masked[name] for layer, name in layer_graph.feature_layers.items()}
