"""How much memory an evaluation may take when nobody says it, and what becomes of it then."""

from __future__ import annotations

import warnings
from dataclasses import replace

from lpips_lightning.frozen import FrozenNetwork
from lpips_lightning.planning import Plan, Shape, plan

__all__ = ["affordable", "check_budget"]

_MIB = 2**20
# Of a forward pass. On a processor more is no faster, and slower where memory must come fresh from the system: squeeze
# takes 0.7 of the time for 16 images of 256, and 0.8 for one of 1024 in stripes.
_FORWARD = {"cpu": 128 * _MIB, "other": 4096 * _MIB}
# Of a gradient, for several images at once. One image may take _IMAGE: tiles see the pixels around them twice.
_GRADIENT = {"cpu": 256 * _MIB, "other": 4096 * _MIB}
_IMAGE = 4096 * _MIB
_TILES = 1536 * _MIB
# Batches of so few pixels fit in any case: nothing is estimated for them.
_FEW_PIXELS = 2**16


def affordable(network: FrozenNetwork, shape: tuple[int, ...], budget: int | None, gradient: bool) -> Plan:
    """How to evaluate a batch of pairs.

    Args:
        network: On the images' device.
        shape: ``(N, 3, H, W)``.
        budget: Bytes above weights and images; None for defaults that cost no time.
        gradient: Whether the gradient is wanted too.

    Returns:
        The plan; it takes more than the `budget` where nothing less is possible, and a warning says so.
    """
    count, channels, height, width = shape
    whole = Plan("whole", 0, max(count, 1))
    if count == 0 or (budget is None and count * height * width <= _FEW_PIXELS):
        return whole
    asked: Shape = (count, channels, height, width)
    if budget is not None:
        found = plan(network, asked, budget, gradient)
        if found.reason:
            warnings.warn(f"memory_budget: {found.reason}", stacklevel=2)
        return found
    kind = "cpu" if next(network.extractor.parameters()).device.type == "cpu" else "other"
    try:
        found = plan(network, asked, (_GRADIENT if gradient else _FORWARD)[kind], gradient)
        if found.way != "tiles":
            return found
        alone = plan(network, (1, *asked[1:]), _IMAGE, gradient)
        return replace(alone, way="images") if alone.way == "whole" else plan(network, asked, _TILES, gradient)
    except (RuntimeError, NotImplementedError):  # a trunk of the user's own that cannot run without data
        return whole


def check_budget(budget: int | None) -> None:
    """Raise a ValueError unless a budget is a positive number of bytes or None."""
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise ValueError(f"memory_budget: expected a positive number of bytes or None, got {budget!r}")
