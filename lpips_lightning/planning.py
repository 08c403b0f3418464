"""Which way to evaluate a batch of pairs, so that it fits into a memory budget."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.geometry import Course, follow, obstacle
from lpips_lightning.memory import Shape, Work, estimate, estimate_stream
from lpips_lightning.streaming import BLOCK
from lpips_lightning.tiling import spans

__all__ = ["Plan", "Shape", "Way", "plan"]

Way = Literal["whole", "images", "rows", "tiles"]

_MOST_TILES = 64  # along one axis
_SMALLEST_BLOCK = 2**20
_MOST_PLANS = 256

_plans: weakref.WeakKeyDictionary[FrozenNetwork, dict[tuple[Shape, int, bool], Plan]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Plan:
    """How to evaluate a batch.

    Attributes:
        way: All images at once (``"whole"``), some at a time (``"images"``), one after the other in stripes
            (``"rows"``, `lpips_lightning.streaming`), or in tiles (``"tiles"``, `lpips_lightning.tiling`).
        size: Estimated bytes above weights and images, the gradient included.
        images: How many at once.
        block: For `stream`.
        tile: For `tiled_gradient`.
        reason: Why it takes more than the budget; empty if it does not.
    """

    way: Way
    size: int
    images: int = 1
    block: int = BLOCK
    tile: tuple[int, int] = (0, 0)
    reason: str = ""


def plan(network: FrozenNetwork, shape: Shape, budget: int, gradient: bool) -> Plan:
    """How to evaluate a batch of pairs within a budget: the fastest of the ways that fit.

    Args:
        network: On any device; its dtype counts.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        budget: Bytes above the weights and the images themselves.
        gradient: Whether the gradient by the first images is wanted too.

    Returns:
        The plan. Where nothing fits, or the trunk cannot be evaluated in pieces, what takes least, with the reason.

    Raises:
        ValueError: If the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {budget}")
    known = _plans.setdefault(network, {})
    key = (shape, budget, gradient)
    if key not in known:
        if len(known) >= _MOST_PLANS:
            known.clear()
        known[key] = _plan(network, shape, budget, gradient)
    return known[key]


def _plan(network: FrozenNetwork, shape: Shape, budget: int, gradient: bool) -> Plan:
    count = shape[0]
    work: Work = "gradient" if gradient else "forward"
    one, two = (estimate(network, (images, *shape[1:]), work) for images in (1, 2))
    if one <= budget:
        parts = -(-count // (1 + (budget - one) // max(two - one, 1)))
        images = -(-count // parts)
        size = estimate(network, (images, *shape[1:]), work)
        return Plan("whole" if parts == 1 else "images", size, images)
    in_the_way = obstacle(network.extractor.graph)
    if in_the_way is not None:
        return Plan("images", one, reason=f"images cannot be evaluated in pieces: {in_the_way}")
    return _tiles(network, shape, budget) if gradient else _rows(network, shape, budget)


def _rows(network: FrozenNetwork, shape: Shape, budget: int) -> Plan:
    """The largest blocks that fit."""
    block = BLOCK
    while (size := estimate_stream(network, shape, block)) > budget and block > _SMALLEST_BLOCK:
        block //= 2
    reason = f"an image in stripes takes {size} bytes, more than {budget}" if size > budget else ""
    return Plan("rows", size, block=block, reason=reason)


def _tiles(network: FrozenNetwork, shape: Shape, budget: int) -> Plan:
    """The tiles with the fewest pixels in all, those around them included, of those that fit."""
    course = follow(network.extractor.graph)
    gradient = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    plans = []
    for rows, columns in product(*(list(_cuts(course, axis, shape[2 + axis])) for axis in range(2))):
        size = estimate(network, (1, 3, rows.longest, columns.longest), "tile") + gradient
        plans.append((size > budget, size if size > budget else rows.all * columns.all, size, rows.tile, columns.tile))
    over, _, size, *tile = min(plans)
    reason = f"an image in tiles takes {size} bytes, more than {budget}" if over else ""
    return Plan("tiles", size, tile=(tile[0], tile[1]), reason=reason)


@dataclass(frozen=True)
class _Cut:
    """A way to cut an axis: pixels that a tile owns, those of the longest with what is around it, those of all."""

    tile: int
    longest: int
    all: int


def _cuts(course: Course, axis: int, length: int) -> Iterator[_Cut]:
    for parts in range(1, _MOST_TILES + 1):
        tile = -(-length // parts)
        lengths = [span.pixels.stop - span.pixels.start for span in spans(course, axis, length, tile)]
        yield _Cut(tile, max(lengths), sum(lengths))
        if tile <= course.strides[axis]:
            return
