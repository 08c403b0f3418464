"""2AFC and JND scores and rank flips as torchmetrics metrics; same value for any sharding over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.functional.judgments import agreement, checked, jnd_curve, jnd_score, rank_flips
from lpips_lightning.metrics.indexed import IndexedMetric

Index: TypeAlias = Tensor | Sequence[int] | None


class _MeanOfFractions(IndexedMetric):
    """Mean of one value per judgment over all batches and ranks; the state is a sum and a count."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, validate_args: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validate_args = validate_args
        # MetricCollection merges metrics whose states have equal names and values after the first update.
        self._total, self._count = f"total_{type(self).__name__}", f"count_{type(self).__name__}"
        self.add_state(self._total, default=torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state(self._count, default=torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def compute(self) -> Tensor:
        """Mean over all samples; NaN without samples."""
        total, count = getattr(self, self._total), getattr(self, self._count)
        rows = self._unique_rows(count)
        return total / count if rows is None else self._fractions(*rows.unbind(1)).mean()

    @staticmethod
    def _fractions(*columns: Tensor) -> Tensor:
        """Values to average, ``(M,)``."""
        raise NotImplementedError

    def _add(self, columns: dict[str, Tensor], index: Index) -> None:
        values = checked(columns, fractions=("judge",), values=self.validate_args)
        indices = self._checked_index(index, len(values[0]))
        if indices is not None:
            self._store_rows(indices, torch.stack(values, 1))
            return
        fractions = self._fractions(*values)
        with self._exclusive():
            # Not in place and not in the state's dtype: a parent's .to(torch.bfloat16) casts states.
            setattr(self, self._total, getattr(self, self._total) + fractions.sum(dtype=SUM_DTYPE))
            setattr(self, self._count, getattr(self, self._count) + len(fractions))


class TwoAFCScore(_MeanOfFractions):
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
        """Add a batch; see `two_afc_score`.

        Args:
            d0: See `two_afc_score`.
            d1: See `two_afc_score`.
            judge: See `two_afc_score`.
            index: Dataset index of each judgment, ``(M,)``; a judgment that a `DistributedSampler` repeats counts once.
                The state then stores every judgment. Pass it in every update or in none.
        """
        self._add({"d0": d0, "d1": d1, "judge": judge}, index)

    @staticmethod
    @override
    def _fractions(*columns: Tensor) -> Tensor:
        d0, d1, judge = columns
        return agreement(d0, d1, judge, validate_args=False)


class HumanCeiling(_MeanOfFractions):
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
        """Add a batch; see `human_ceiling` and, for `index`, `TwoAFCScore.update`."""
        self._add({"judge": judge}, index)

    @staticmethod
    @override
    def _fractions(*columns: Tensor) -> Tensor:
        (fraction,) = columns
        return fraction.square() + (1 - fraction).square()


class RankFlipRate(_MeanOfFractions):
    """`rank_flip_rate` over all batches and ranks; the state is a sum and a count.

    Args:
        validate_args: Check values; this waits for the device. Shapes are always checked.
        kwargs: See `torchmetrics.Metric`.

    Example:
        >>> metric = RankFlipRate()
        >>> metric.update(*(torch.tensor([value]) for value in (0.1, 0.3, 0.4, 0.2)))
        >>> float(metric.compute())
        1.0
    """

    higher_is_better = False

    @override
    def update(self, d0: Tensor, d1: Tensor, shifted_d0: Tensor, shifted_d1: Tensor, index: Index = None) -> None:
        """Add a batch; see `rank_flip_rate` and, for `index`, `TwoAFCScore.update`."""
        self._add({"d0": d0, "d1": d1, "shifted_d0": shifted_d0, "shifted_d1": shifted_d1}, index)

    @staticmethod
    @override
    def _fractions(*columns: Tensor) -> Tensor:
        d0, d1, shifted_d0, shifted_d1 = columns
        return rank_flips(d0, d1, shifted_d0, shifted_d1, validate_args=False)


class JNDScore(IndexedMetric):
    """`jnd_score` over all batches and ranks; the state stores every pair's distance.

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

    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        distances: list[Tensor]
        same: list[Tensor]

    def __init__(self, validate_args: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validate_args = validate_args
        self.add_state("distances", default=[], dist_reduce_fx="cat")
        self.add_state("same", default=[], dist_reduce_fx="cat")

    @override
    def update(self, distances: Tensor, same: Tensor, index: Index = None) -> None:
        """Add a batch; see `jnd_score` and, for `index`, `TwoAFCScore.update`."""
        columns = {"distances": distances, "same": same}
        distance, fraction = checked(columns, fractions=("same",), values=self.validate_args)
        indices = self._checked_index(index, len(distance))
        if indices is not None:
            self._store_rows(indices, torch.stack([distance, fraction], 1))
            return
        with self._exclusive():
            self._append("distances", distance)
            self._append("same", fraction)

    @override
    def compute(self) -> Tensor:
        """Score of all samples; NaN without samples."""
        distances, same = self._all()
        return jnd_score(distances, same)

    def curve(self) -> tuple[Tensor, Tensor]:
        """Recall and precision of this rank's samples; see `jnd_curve`."""
        return jnd_curve(*self._all())

    def _all(self) -> tuple[Tensor, Tensor]:
        empty = torch.zeros(0, dtype=SUM_DTYPE, device=self.device)
        distances, same = (dim_zero_cat(state) if len(state) else empty for state in (self.distances, self.same))
        rows = self._unique_rows(len(distances))
        return (distances, same) if rows is None else (rows[:, 0], rows[:, 1])
