"""Simulated observers: people who judge by a metric, with noise, a threshold and lapses.

The model gives the votes of a generated data set the shape of human ones: fractions between 0 and 1, and a ceiling
below 100 %. It says nothing about people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

VOTES: Mapping[str, int] = {"2afc/train": 2, "2afc/val": 5, "jnd/val": 3}
"""Votes per triplet or pair by part of a data set (Zhang et al. 2018, sections 2.2 and 2.3)."""


@dataclass(frozen=True)
class SimulatedObserver:
    """Observers who perceive a distance ``d`` as ``d * exp(noise * z)``, with ``z`` standard normal.

    ``z`` is drawn anew for every distance and vote. A pair looks the same if its perceived distance is at most
    `threshold`; of two patches, the one with the smaller perceived distance looks nearer to the reference (Thurstone's
    law of comparative judgment, case V). In a lapse an observer answers at random. With ``noise=0`` and ``lapse=0`` all
    votes agree with the metric.

    Attributes:
        noise: Standard deviation of the logarithm of a perceived distance. The default gives photographs with the
            paper's traditional distortions, judged by LPIPS, about the ceiling of people on that set of BAPPS, 80.8 %.
        lapse: Probability of a lapse, in [0, 1].
        threshold: Distance at which half of the observers see no difference; None where it is not known yet.

    Raises:
        ValueError: If an attribute is out of its range.

    Example:
        >>> observer = SimulatedObserver(noise=0.5, lapse=0.02, threshold=0.2)
        >>> observer.same(torch.tensor([0.0, 0.1, 0.2, 0.4]))
        tensor([0.9900, 0.9088, 0.5000, 0.0912], dtype=torch.float64)
    """

    noise: float = 0.75
    lapse: float = 0.02
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise: expected at least 0, got {self.noise}")
        if not 0 <= self.lapse <= 1:
            raise ValueError(f"lapse: expected a probability in [0, 1], got {self.lapse}")
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold: expected a distance of at least 0, got {self.threshold}")

    def with_threshold(self, distances: Tensor) -> SimulatedObserver:
        """These observers; without a threshold, with the median of `distances`, shape ``(M,)``, as theirs."""
        if self.threshold is not None or not len(distances):
            return self
        return replace(self, threshold=float(_checked(distances).quantile(0.5)))

    def same(self, distances: Tensor) -> Tensor:
        """Probability of a vote that a pair looks the same.

        Args:
            distances: Distance of each pair, shape ``(M,)``, at least 0.

        Returns:
            Shape ``(M,)`` in [0, 1], float64; falls with the distance.

        Raises:
            ValueError: If a distance is negative or not finite, or there is no threshold.
        """
        if self.threshold is None:
            raise ValueError("threshold: expected a distance, got None; with_threshold takes the median distance")
        distance = _checked(distances)
        threshold = torch.tensor(self.threshold, dtype=torch.float64)
        gap = torch.where(distance == 0, math.inf, threshold.log() - distance.log())
        return self._probability(gap, self.noise, equal=1.0)

    def second(self, d0: Tensor, d1: Tensor) -> Tensor:
        """Probability of a vote that the second patch of a triplet is nearer.

        Args:
            d0: Distance of the first patch to the reference, shape ``(M,)``, at least 0.
            d1: Distance of the second patch, same shape.

        Returns:
            Shape ``(M,)`` in [0, 1], float64; one half for equal distances.

        Raises:
            ValueError: If a distance is negative or not finite.
        """
        first, other = _checked(d0), _checked(d1)
        gap = torch.where(first == other, 0.0, first.log() - other.log())
        return self._probability(gap, math.sqrt(2) * self.noise, equal=0.5)

    def _probability(self, gap: Tensor, noise: float, equal: float) -> Tensor:
        """Normal distribution function of ``gap / noise``, with lapses; without noise, `equal` where `gap` is 0."""
        certain = torch.where(gap == 0, equal, (gap > 0).double())
        seen = torch.special.ndtr(gap / noise) if noise else certain
        return self.lapse / 2 + (1 - self.lapse) * seen


def vote(probability: float, votes: int, generator: Generator) -> float:
    """Fraction of yes among independent votes.

    Args:
        probability: Probability of a yes.
        votes: Number of votes.
        generator: Source of the random numbers; `votes` are drawn.

    Returns:
        A multiple of ``1 / votes`` in [0, 1].
    """
    return float((torch.rand(votes, generator=generator, dtype=torch.float64) < probability).double().mean())


def _checked(distances: Tensor) -> Tensor:
    values = distances.detach().cpu().double()
    wrong = values[~((values >= 0) & values.isfinite())]
    if len(wrong):
        raise ValueError(f"distances: expected finite values of at least 0, got {float(wrong[0]):g}")
    return values
