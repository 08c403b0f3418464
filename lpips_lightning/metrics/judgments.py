"""2AFC and JND scores as metrics; the value does not depend on how samples are split over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.functional.judgments import agreement, checked, jnd_curve, jnd_score
from lpips_lightning.metrics.indexed import IndexedMetric

Index: TypeAlias = Tensor | Sequence[int] | None


class _MeanOfShares(IndexedMetric):
    """Mean of one number a judgment, over all batches and ranks; the state is a sum and a count."""

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
        self.add_state("total", default=torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def compute(self) -> Tensor:
        """The mean of everything seen; NaN for nothing."""
        rows = self._kept(self.count)
        return self.total / self.count if rows is None else self._shares(*rows.unbind(1)).mean()

    @staticmethod
    def _shares(*columns: Tensor) -> Tensor:
        """The numbers ``(M,)`` that are averaged."""
        raise NotImplementedError

    def _add(self, columns: dict[str, Tensor], index: Index) -> None:
        checks = checked(columns, shares=("judge",), values=self.validate_args)
        numbers = self._checked_index(index, len(checks[0]))
        if numbers is not None:
            self._keep(numbers, torch.stack(checks, 1))
            return
        shares = self._shares(*checks)
        # Not in place and not in the state's dtype: a parent's .to(torch.bfloat16) casts states.
        self.total = self.total + shares.sum(dtype=SUM_DTYPE)
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
    def update(self, d0: Tensor, d1: Tensor, judge: Tensor, index: Index = None) -> None:
        """Add a batch; arguments and errors are those of `two_afc_score`.

        Args:
            d0: See `two_afc_score`.
            d1: See `two_afc_score`.
            judge: See `two_afc_score`.
            index: Number in the data set of each judgment, ``(M,)``; what comes again, as a distributed sampler has
                it, is counted once, and all are kept for that. In every update or in none.
        """
        self._add({"d0": d0, "d1": d1, "judge": judge}, index)

    @staticmethod
    @override
    def _shares(*columns: Tensor) -> Tensor:
        d0, d1, judge = columns
        return agreement(d0, d1, judge, validate_args=False)


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
    def update(self, judge: Tensor, index: Index = None) -> None:
        """Add a batch; argument and errors are those of `human_ceiling`, `index` is that of `TwoAFCScore`."""
        self._add({"judge": judge}, index)

    @staticmethod
    @override
    def _shares(*columns: Tensor) -> Tensor:
        (share,) = columns
        return share.square() + (1 - share).square()


class JNDScore(IndexedMetric):
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
    def update(self, distances: Tensor, same: Tensor, index: Index = None) -> None:
        """Add a batch; arguments and errors are those of `jnd_score`, `index` is that of `TwoAFCScore`."""
        columns = {"distances": distances, "same": same}
        distance, share = checked(columns, shares=("same",), values=self.validate_args)
        numbers = self._checked_index(index, len(distance))
        if numbers is not None:
            self._keep(numbers, torch.stack([distance, share], 1))
            return
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
        empty = torch.zeros(0, dtype=SUM_DTYPE, device=self.device)
        distances, same = (dim_zero_cat(kept) if len(kept) else empty for kept in (self.distances, self.same))
        rows = self._kept(len(distances))
        return (distances, same) if rows is None else (rows[:, 0], rows[:, 1])
