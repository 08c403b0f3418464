"""Triplets judged by a calibration that is known."""

import torch

from lpips_lightning.calibration.pooled import PooledTriplets


def simulated(count, channels=12, seed=0, sharp=6.0):
    """Triplets whose judgments follow a hidden calibration, and an official one that is off."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(2 * count, channels, generator=generator) ** 3
    hidden = torch.rand(channels, generator=generator) ** 3
    rows = torch.arange(2 * count).view(count, 2)
    first, second = (mean @ hidden)[rows].unbind(1)
    judge = (sharp * (first - second)).sigmoid()
    return PooledTriplets(mean, None, rows, judge, {"one": channels // 2, "two": channels - channels // 2}), hidden
