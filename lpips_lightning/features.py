"""Features of images, and distances that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lpips_lightning.images import Arrangement

__all__ = ["Features", "Measurement", "cat", "joined", "parts"]


class Features(NamedTuple):
    """What the trunk sees in a batch of images.

    Attributes:
        layers: Activations ``(M, C, h, w)`` by layer name, from the input on.
        size: ``(H, W)`` of the images that the trunk saw.
        arrangement: How the M answer to the images that came in.
        source: Trunk and preparation; only features of one source can be compared.
    """

    layers: dict[str, Tensor]
    size: tuple[int, int]
    arrangement: Arrangement
    source: str

    def of(self, rows: Sequence[int]) -> Features:
        """Features of some of the images.

        Args:
            rows: Which, of images that came as ``(N, 3, H, W)``.

        Returns:
            Copies.

        Raises:
            ValueError: If they came otherwise.
        """
        if len(self.arrangement.shape) != 1 or self.arrangement.channels != 1:
            raise ValueError(f"features: expected those of images (N, 3, H, W), got {self.arrangement}")
        chosen = list(rows)
        layers = {layer: values[chosen] for layer, values in self.layers.items()}
        return Features(layers, self.size, Arrangement((len(chosen),)), self.source)


class Measurement(NamedTuple):
    """Distances, and which of them could be measured.

    Attributes:
        values: As `LPIPS.forward` returns them.
        counted: Bools ``(N,)`` (``(B, T)`` for videos): whether the mask left anything of the image; None without mask.
        dims: How many of the first dimensions are the batch's: 1, or 2 for videos.
    """

    values: Tensor | dict[str, Tensor]
    counted: Tensor | None
    dims: int


def parts(images: Tensor, chunk: int | None) -> list[slice]:
    """Slices of a batch.

    Args:
        images: Shape ``(M, ...)``.
        chunk: How many at once; None for all.

    Returns:
        At least one.
    """
    if chunk is None or len(images) <= chunk:
        return [slice(None)]
    return [slice(start, start + chunk) for start in range(0, len(images), chunk)]


def cat(tensors: Sequence[Tensor]) -> Tensor:
    """One tensor of several; the very same one if there is only one.

    Args:
        tensors: Shapes ``(m, ...)``.

    Returns:
        Shape ``(M, ...)``.
    """
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))


def joined(
    results: list[tuple[dict[str, Tensor], Tensor | None]], arrangement: Arrangement, per_layer: bool
) -> Measurement:
    """Parts of a flat batch -> what the images that came in get.

    Args:
        results: Terms by layer, and which images count.
        arrangement: How the flat batch answers to the images.
        per_layer: Keep the layers apart.

    Returns:
        Distances, and which of them count.
    """
    terms = {layer: arrangement.fold(cat([part[layer] for part, _ in results])) for layer in results[0][0]}
    masked = [counted.float() for _, counted in results if counted is not None]
    values = terms if per_layer else torch.stack(list(terms.values())).sum(0)
    counted = arrangement.fold(cat(masked)) == 1 if masked else None
    return Measurement(values, counted, len(arrangement.shape))
