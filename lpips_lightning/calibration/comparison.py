"""Comparison of a calibration with the official one on the same held-out triplets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.calibration.pooled import PooledTriplets
from lpips_lightning.functional.judgments import agreement, bootstrap_interval, human_ceiling
from lpips_lightning.io.image_folders import count_of


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over references.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:7.2f}   (95 %: {100 * self.low:.2f} to {100 * self.high:.2f})"


@dataclass(frozen=True)
class Comparison:
    """2AFC scores in [0, 1] of a calibration and of the official one on the same triplets.

    Attributes:
        own: Score of the calibration.
        official: Score of the official calibration.
        difference: Mean over triplets of the own agreement minus the official one; its interval is that of paired
            resamples, so that triplets that are hard for both do not count as noise.
        human: Human ceiling; None if every judgment is 0 or 1, as with one person per triplet.
        triplets: Number of triplets.
        references: Number of their references.
    """

    own: Estimate
    official: Estimate
    difference: Estimate
    human: float | None
    triplets: int
    references: int

    @property
    def verdict(self) -> str:
        """What the interval of the difference says."""
        if self.difference.low > 0:
            return "better than the official calibration, beyond the noise"
        if self.difference.high < 0:
            return "worse than the official calibration, beyond the noise"
        return "within the noise: these judgments do not tell which is better"

    def held_out(self, group: str = "reference") -> str:
        """What was held out, in words.

        Args:
            group: What `references` counts.
        """
        one = ", for which alone the intervals hold" if self.references == 1 < self.triplets else ""
        return f"{count_of(self.triplets, 'held-out triplet')} of {count_of(self.references, group)}{one}"

    def lines(self, name: str) -> list[str]:
        """Text for people; scores in percent.

        Args:
            name: Name of the set.
        """
        people = "-   (no triplet has votes for both)" if self.human is None else f"{100 * self.human:.2f}"
        return [
            f"{name}: 2AFC in percent on {self.held_out()}",
            f"  this calibration      {self.own}",
            f"  official calibration  {self.official}",
            f"  difference            {self.difference}",
            f"  human ceiling         {people:>7}",
            f"  {self.verdict}",
        ]

    def record(self) -> dict[str, Any]:
        """Entries for the record of a calibration file."""
        return {
            "official": self.official.value,
            "2afc": self.own.value,
            "human": self.human,
            "difference": [self.difference.value, self.difference.low, self.difference.high],
            "triplets": self.triplets,
            "references": self.references,
        }


def compare_calibrations(
    held_out: PooledTriplets,
    own: Mapping[str, Tensor],
    official: Mapping[str, Tensor],
    references: Tensor | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Score two calibrations on the same triplets.

    Args:
        held_out: The triplets.
        own: Weights ``(C,)`` by layer name.
        official: Weights ``(C,)`` by layer name.
        references: Index of each triplet's reference, ``(M,)``; None if every triplet has its own.
        resamples: Number of bootstrap resamples.

    Returns:
        Scores, their paired difference, and their intervals.
    """
    first, second = (agreement(*held_out.distances(dict(weights)), held_out.judge) for weights in (own, official))

    def mean(values: Tensor, lowest: float) -> Estimate:
        options = {"groups": references, "bounds": (lowest, 1.0), "resamples": resamples}
        return Estimate(float(values.mean()), *bootstrap_interval(torch.mean, values, **options))  # type: ignore[arg-type]

    decided = bool(((held_out.judge == 0) | (held_out.judge == 1)).all())
    human = None if decided else float(human_ceiling(held_out.judge))
    groups = len(held_out) if references is None else len(references.unique())
    return Comparison(mean(first, 0), mean(second, 0), mean(first - second, -1), human, len(held_out), groups)
