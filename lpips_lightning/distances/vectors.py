"""All pairs of images by vectors: distances that are sums of norms of differences need no features a second time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_SEGMENT = 2**16  # vector elements that are converted to float64 at a time


class DistanceVectors(NamedTuple):
    """Two vectors of every image, whose differences give the distance of a pair.

    Attributes:
        squared: Shape ``(N, D)``; the squares of its differences count.
        absolute: Shape ``(N, E)``; their absolute values count. Either may have no columns.
    """

    squared: Tensor
    absolute: Tensor

    @classmethod
    def of(cls, squared: list[Tensor], absolute: list[Tensor]) -> DistanceVectors:
        """Join parts ``(N, d)`` of each; one list may be empty.

        Args:
            squared: See `DistanceVectors`.
            absolute: See `DistanceVectors`.
        """
        first = (squared or absolute)[0]
        empty = first.new_zeros(len(first), 0)
        return cls(torch.cat(squared or [empty], 1), torch.cat(absolute or [empty], 1))

    def averaged(self, count: int) -> DistanceVectors:
        """Vectors of means: of the distances of `count` consecutive rows.

        Args:
            count: Rows of one image.
        """
        images = len(self.squared) // count
        squared, absolute = (part.reshape(images, count * part.shape[1]) for part in self)
        return self if count == 1 else DistanceVectors(squared / count**0.5, absolute / count)


def pairwise_distances(x: Iterable[DistanceVectors], y: list[DistanceVectors]) -> Tensor:
    """Distances of all pairs, by differences, so similar images do not cancel.

    Summed in float64: a float32 sum over all features of an image loses five digits.

    Args:
        x: Vectors of chunks of ``n`` images; each is used once, so this may be a generator.
        y: Vectors of chunks of ``m`` images.

    Returns:
        Shape ``(N, M)``, in the dtype of the vectors.
    """
    return torch.cat([torch.cat([_distances(rows, columns) for columns in y], 1) for rows in x])


def groups_within(chunks: Iterator[DistanceVectors], memory_budget: int) -> Iterator[list[DistanceVectors]]:
    """Group consecutive chunks up to a number of bytes, at least one per group.

    Args:
        chunks: Vectors of some images each.
        memory_budget: Maximum bytes of a group.

    Yields:
        Groups in the given order.
    """
    group: list[DistanceVectors] = []
    total = 0
    for chunk in chunks:
        size = sum(part.numel() * part.element_size() for part in chunk)
        if group and total + size > memory_budget:
            yield group
            group, total = [], 0
        group.append(chunk)
        total += size
    if group:
        yield group


def _distances(x: DistanceVectors, y: DistanceVectors) -> Tensor:
    device = torch.device("cpu") if x.squared.device.type == "mps" else x.squared.device  # MPS has no float64
    total = torch.zeros(len(x.squared), len(y.squared), dtype=torch.float64, device=device)
    for norm, rows, columns in ((2.0, x.squared, y.squared), (1.0, x.absolute, y.absolute)):
        for row_part, column_part in zip(rows.split(_SEGMENT, 1), columns.split(_SEGMENT, 1), strict=True):
            found = torch.cdist(
                row_part.to(device).double(),
                column_part.to(device).double(),
                p=norm,
                compute_mode="donot_use_mm_for_euclid_dist",
            )
            total = total + found**norm
    return total.to(x.squared.dtype).to(x.squared.device)
