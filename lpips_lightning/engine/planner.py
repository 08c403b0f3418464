"""Choose how to evaluate a batch of pairs within a memory budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from lpips_lightning.backbones.frozen import FrozenNetwork
from lpips_lightning.callers import warn_user
from lpips_lightning.engine.constants import (
    FORWARD_BUDGET,
    GRADIENT_BUDGET,
    MAX_CACHED_PLANS,
    MAX_TILES_PER_AXIS,
    MIN_STRIP_BYTES,
    SINGLE_IMAGE_GRADIENT_BUDGET,
    STRIP_BYTES,
    TILED_GRADIENT_BUDGET,
    UNPLANNED_PIXELS,
)
from lpips_lightning.engine.graph import LayerGraph
from lpips_lightning.engine.memory import Shape, Work, estimate, estimate_stream
from lpips_lightning.engine.state import Engine, Plan
from lpips_lightning.engine.tiling import axis_tiles

_NEEDS_IMAGES = "only distance 'lpips' is computed without whole images"


def plan(network: FrozenNetwork, shape: Shape, budget: int, gradient: bool) -> Plan:
    """The fastest plan that fits a memory budget.

    Args:
        network: The frozen network, on any device; its dtype matters.
        shape: ``(N, 3, H, W)`` of each of the two batches.
        budget: Bytes in addition to weights and images.
        gradient: Whether to compute the gradient w.r.t. the first images too.

    Returns:
        The plan. If none fits, the plan that needs least memory, with a reason.

    Raises:
        ValueError: If the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"memory_budget: expected a positive number of bytes, got {budget}")
    plans = Engine.of(network).plans
    key = (shape, budget, gradient)
    if key not in plans:
        if len(plans) >= MAX_CACHED_PLANS:
            plans.clear()
        plans[key] = _plan(network, shape, budget, gradient)
    return plans[key]


def _plan(network: FrozenNetwork, shape: Shape, budget: int, gradient: bool) -> Plan:
    count = shape[0]
    work: Work = "gradient" if gradient else "forward"
    one, two = (estimate(network, (images, *shape[1:]), work) for images in (1, 2))
    if one <= budget:
        parts = -(-count // (1 + (budget - one) // max(two - one, 1)))
        images = -(-count // parts)
        size = estimate(network, (images, *shape[1:]), work)
        return Plan("whole" if parts == 1 else "images", size, images)
    unsupported = Engine.of(network).unsupported_reason if network.distance.is_fused else _NEEDS_IMAGES
    if unsupported is not None:
        return Plan("images", one, reason=f"images cannot be split into strips or tiles: {unsupported}")
    return _tiles(network, shape, budget) if gradient else _rows(network, shape, budget)


def _rows(network: FrozenNetwork, shape: Shape, budget: int) -> Plan:
    """Row strips: the largest that fit."""
    strip_bytes = STRIP_BYTES
    while (size := estimate_stream(network, shape, strip_bytes)) > budget and strip_bytes > MIN_STRIP_BYTES:
        strip_bytes //= 2
    reason = f"an image in row strips takes {size} bytes, more than {budget}" if size > budget else ""
    return Plan("rows", size, strip_bytes=strip_bytes, reason=reason)


def _tiles(network: FrozenNetwork, shape: Shape, budget: int) -> Plan:
    """Tiles: of those that fit, the ones with the fewest pixels in total, halos included."""
    layer_graph = Engine.of(network).layer_graph
    gradient = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    plans = []
    for rows, columns in product(*(list(_cuts(layer_graph, axis, shape[2 + axis])) for axis in range(2))):
        size = estimate(network, (1, shape[1], rows.longest, columns.longest), "tile") + gradient
        cost = size if size > budget else rows.total * columns.total
        plans.append((size > budget, cost, size, rows.tile, columns.tile))
    over, _, size, *tile = min(plans)
    reason = f"an image in tiles takes {size} bytes, more than {budget}" if over else ""
    return Plan("tiles", size, tile=(tile[0], tile[1]), reason=reason)


@dataclass(frozen=True)
class _AxisCut:
    """One way to split an axis, in pixels: interior of a tile, longest tile with halo, all tiles with halos."""

    tile: int
    longest: int
    total: int


def _cuts(layer_graph: LayerGraph, axis: int, length: int) -> Iterator[_AxisCut]:
    for parts in range(1, MAX_TILES_PER_AXIS + 1):
        tile = -(-length // parts)
        lengths = [part.pixels.stop - part.pixels.start for part in axis_tiles(layer_graph, axis, length, tile)]
        yield _AxisCut(tile, max(lengths), sum(lengths))
        if tile <= layer_graph.strides[axis]:
            return


def choose_plan(network: FrozenNetwork, shape: tuple[int, ...], budget: int | None, gradient: bool) -> Plan:
    """The plan for a batch of pairs, with default budgets; warns if no plan fits `budget`.

    Args:
        network: The frozen network, on the device of the images.
        shape: ``(N, 3, H, W)``.
        budget: Bytes in addition to weights and images; None for the defaults, which cost no time.
        gradient: Whether to compute the gradient w.r.t. the first images too.

    Returns:
        The plan. It exceeds `budget` only where nothing smaller is possible.
    """
    count, channels, height, width = shape
    whole = Plan("whole", 0, max(count, 1))
    if count == 0 or (budget is None and count * height * width <= UNPLANNED_PIXELS):
        return whole
    batch: Shape = (count, channels, height, width)
    if budget is not None:
        found = plan(network, batch, budget, gradient)
        if found.reason:
            warn_user(f"memory_budget: {found.reason}")
        return found
    kind = "cpu" if next(network.extractor.parameters()).device.type == "cpu" else "other"
    try:
        found = plan(network, batch, (GRADIENT_BUDGET if gradient else FORWARD_BUDGET)[kind], gradient)
        if found.way != "tiles":
            return found
        single = plan(network, (1, *batch[1:]), SINGLE_IMAGE_GRADIENT_BUDGET, gradient)
        if single.way == "whole":
            return replace(single, way="images")
        return plan(network, batch, TILED_GRADIENT_BUDGET, gradient)
    except (RuntimeError, NotImplementedError):  # a custom backbone that cannot run on the meta device
        return whole


def check_budget(budget: int | None) -> None:
    """Raise ValueError unless `budget` is None or a positive number of bytes."""
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise ValueError(f"memory_budget: expected a positive number of bytes or None, got {budget!r}")
