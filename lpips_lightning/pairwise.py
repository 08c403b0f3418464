"""All distances between two sets of images, with one trunk pass an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from lpips_lightning.distance import unit_normalize

__all__ = ["feature_vectors", "groups_within", "pairwise_distances"]

_SEGMENT = 2**16  # of a vector, at once in float64


def feature_vectors(layers: Mapping[str, Tensor], calibration: Mapping[str, Tensor] | None) -> Tensor:
    """Features as vectors whose squared Euclidean distance is LPIPS.

    Args:
        layers: Activations ``(N, C, h, w)`` by layer name.
        calibration: Weights ``(C,)`` by layer name, or None for the baseline.

    Returns:
        Shape ``(N, D)``: unit features times the root of weight over positions.
    """
    parts = []
    for layer, features in layers.items():
        working = features if features.dtype == torch.float64 else features.float()
        unit = unit_normalize(working) / (features.shape[2] * features.shape[3]) ** 0.5
        if calibration is not None:
            unit = unit * calibration[layer].to(unit.dtype).sqrt().view(1, -1, 1, 1)
        parts.append(unit.flatten(1))
    return torch.cat(parts, 1)


def pairwise_distances(x: Iterable[Tensor], y: list[Tensor]) -> Tensor:
    """Squared Euclidean distances; the difference is taken before the square, so near images stay exact.

    Summed in float64: in float32 a sum over an image's features has lost five digits.

    Args:
        x: Chunks ``(n, D)`` of vectors; each is used once and may be made on the way.
        y: Chunks ``(m, D)`` of vectors.

    Returns:
        Shape ``(N, M)``, dtype of the vectors.
    """
    return torch.cat([torch.cat([_squared(rows, columns) for columns in y], 1) for rows in x])


def groups_within(chunks: Iterator[Tensor], memory_budget: int) -> Iterator[list[Tensor]]:
    """Lists of chunks that together stay within a number of bytes, one chunk at least.

    Args:
        chunks: Tensors.
        memory_budget: Bytes.

    Yields:
        Chunks in their order.
    """
    group: list[Tensor] = []
    held = 0
    for chunk in chunks:
        size = chunk.numel() * chunk.element_size()
        if group and held + size > memory_budget:
            yield group
            group, held = [], 0
        group.append(chunk)
        held += size
    if group:
        yield group


def _squared(x: Tensor, y: Tensor) -> Tensor:
    device = torch.device("cpu") if x.device.type == "mps" else x.device  # MPS has no float64
    total = torch.zeros(len(x), len(y), dtype=torch.float64, device=device)
    for x_part, y_part in zip(x.split(_SEGMENT, 1), y.split(_SEGMENT, 1), strict=True):
        distance = torch.cdist(
            x_part.to(device).double(), y_part.to(device).double(), compute_mode="donot_use_mm_for_euclid_dist"
        )
        total = total + distance.square()
    return total.to(x.dtype).to(x.device)
