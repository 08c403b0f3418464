"""The scores of `lpips_lightning.judgements` as metrics: any split over batches and ranks gives the same number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.judgements import agreement, checked, jnd_curve, jnd_score
from lpips_lightning.metric import EXACT

__all__ = ["HumanCeiling", "JNDScore", "TwoAFCScore"]


class _MeanOfShares(Metric):
    """Mean of one number a triplet, over all batches and ranks; the state is a sum and a count."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    total: Tensor
    count: Tensor

    def __init__(self, validate_args: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validate_args = validate_args
        self.add_state("total", default=torch.zeros((), dtype=EXACT), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def compute(self) -> Tensor:
        """The mean of everything seen; NaN for nothing."""
        return self.total / self.count

    def _add(self, shares: Tensor) -> None:
        # Not in place and not in the state's dtype: a parent's .to(torch.bfloat16) casts states.
        self.total = self.total + shares.sum(dtype=EXACT)
        self.count = self.count + len(shares)


class TwoAFCScore(_MeanOfShares):
    """`two_afc_score` over all batches and ranks; the state is a sum and a count.

    Args:
        validate_args: Check values; this waits for the device. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = TwoAFCScore()
        >>> metric.update(torch.tensor([0.1]), torch.tensor([0.3]), torch.tensor([0.2]))
        >>> round(float(metric.compute()), 6)
        0.8
    """

    @override
    def update(self, d0: Tensor, d1: Tensor, judge: Tensor) -> None:
        """Add a batch; arguments and errors are those of `two_afc_score`."""
        self._add(agreement(d0, d1, judge, self.validate_args))


class HumanCeiling(_MeanOfShares):
    """`human_ceiling` over all batches and ranks; the state is a sum and a count.

    Args:
        validate_args: Check values; this waits for the device. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = HumanCeiling()
        >>> metric.update(torch.tensor([1.0, 0.5]))
        >>> round(float(metric.compute()), 6)
        0.75
    """

    higher_is_better = None

    @override
    def update(self, judge: Tensor) -> None:
        """Add a batch; argument and errors are those of `human_ceiling`."""
        (share,) = checked({"judge": judge}, shares=("judge",), values=self.validate_args)
        self._add(share.square() + (1 - share).square())


class JNDScore(Metric):
    """`jnd_score` over all batches and ranks; the state keeps every pair's distance.

    Args:
        validate_args: Check values; this waits for the device. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = JNDScore()
        >>> metric.update(torch.tensor([0.3, 0.1, 0.2]), torch.tensor([1.0, 1.0, 0.0]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    distances: list[Tensor]
    same: list[Tensor]

    def __init__(self, validate_args: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validate_args = validate_args
        self.add_state("distances", default=[], dist_reduce_fx="cat")
        self.add_state("same", default=[], dist_reduce_fx="cat")

    @override
    def update(self, distances: Tensor, same: Tensor) -> None:
        """Add a batch; arguments and errors are those of `jnd_score`."""
        columns = {"distances": distances, "same": same}
        distance, share = checked(columns, shares=("same",), values=self.validate_args)
        self.distances.append(distance)
        self.same.append(share)

    @override
    def compute(self) -> Tensor:
        """The score of everything seen; NaN for nothing."""
        distances, same = self._all()
        return jnd_score(distances, same)

    def curve(self) -> tuple[Tensor, Tensor]:
        """Recall and precision of what this rank holds; see `jnd_curve`."""
        return jnd_curve(*self._all())

    def _all(self) -> tuple[Tensor, Tensor]:
        if not len(self.distances):
            empty = torch.zeros(0, dtype=EXACT, device=self.device)
            return empty, empty
        return dim_zero_cat(self.distances), dim_zero_cat(self.same)
