"""Layout, features and distances of a batch of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Features(NamedTuple):
    """Backbone features of a batch of images.

    Attributes:
        layers: Features ``(M, C, h, w)`` by layer name, in the order of the backbone.
        size: ``(H, W)`` of the backbone's input.
        batch_layout: How the M flat images map to the caller's batch.
        source: Identifies backbone and preprocessing; only features with equal sources can be compared.
    """

    layers: dict[str, Tensor]
    size: tuple[int, int]
    batch_layout: BatchLayout
    source: str


class Distances(NamedTuple):
    """Distances, and which of them are valid.

    Attributes:
        values: Distances as `LPIPS.forward` returns them.
        valid: Bools ``(N,)`` (``(B, T)`` for videos): whether the mask leaves any position of the image; None without
            mask.
        dims: Number of batch dimensions: 1, or 2 for videos.
    """

    values: Tensor | dict[str, Tensor]
    valid: Tensor | None
    dims: int


def chunks(images: Tensor, chunk: int | None) -> list[slice]:
    """Split a batch into slices; an empty batch has one.

    Args:
        images: Shape ``(M, ...)``.
        chunk: Maximum number of images per slice; None for all.

    Returns:
        At least one slice.
    """
    if chunk is None or len(images) <= chunk:
        return [slice(None)]
    return [slice(start, start + chunk) for start in range(0, len(images), chunk)]


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension; a single tensor is returned as it is, without a copy.

    Args:
        tensors: Shapes ``(m, ...)``.

    Returns:
        Shape ``(M, ...)``.
    """
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def merge(terms: Mapping[str, Tensor], valid: Tensor | None, batch_layout: BatchLayout, per_layer: bool) -> Distances:
    """Sum over layers and restore the caller's batch shape.

    Args:
        terms: Distances of a flat batch by layer name, ``(M, ...)``.
        valid: Bools ``(M,)``: whether the mask leaves any position of the image; None without mask.
        batch_layout: How the flat batch maps to the caller's batch.
        per_layer: Return the distances by layer name instead of their sum.

    Returns:
        Distances ``(N, ...)``, ``(B, T, ...)`` for videos.
    """
    folded = {layer: batch_layout.fold(term) for layer, term in terms.items()}
    values = folded if per_layer else torch.stack(list(folded.values())).sum(0)
    whole = None if valid is None else batch_layout.fold(valid.float()) == 1
    return Distances(values, whole, len(batch_layout.shape))


class BatchLayout(NamedTuple):
    """How a flat batch of RGB images maps to the caller's batch.

    Attributes:
        shape: Shape of the distances: ``(N,)``, or ``(B, T)`` for videos.
        channels: Number of RGB images per input image (``gray="per_channel"``); its distance is their mean.
    """

    shape: tuple[int, ...]
    channels: int = 1

    def fold(self, values: Tensor) -> Tensor:
        """Restore the batch shape of per-image values; averages over channels.

        Args:
            values: Shape ``(M, ...)``.

        Returns:
            Shape ``(*shape, ...)``.
        """
        if len(self.shape) == 1 and self.channels == 1:
            return values
        return values.view(*self.shape, self.channels, *values.shape[1:]).mean(len(self.shape))


# A float32 sum drifts by 1e-5 over 100,000 batches. MPS has no float64.
SUM_DTYPE = torch.float32 if torch.backends.mps.is_available() else torch.float64
