"""Metrics whose samples may have numbers, so that those which a distributed sampler repeats count once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.images.ranges import RangeChecker
from lpips_lightning.network import LPIPS
from lpips_lightning.options import LPIPSOptions


class MetricOptions(LPIPSOptions, total=False):
    """Keyword options of a metric on a network: the network's, and those of `torchmetrics.Metric`.

    Attributes:
        compute_on_cpu: See `torchmetrics.Metric`, as for all others.
        dist_sync_on_step: See there.
        process_group: See there.
        dist_sync_fn: See there.
        distributed_available_fn: See there.
        sync_on_compute: See there.
        compute_with_cache: See there.
    """

    compute_on_cpu: bool
    dist_sync_on_step: bool
    process_group: Any
    dist_sync_fn: Callable[..., Any] | None
    distributed_available_fn: Callable[..., Any] | None
    sync_on_compute: bool
    compute_with_cache: bool


METRIC_DEFAULTS: dict[str, Any] = {
    "compute_on_cpu": False,
    "dist_sync_on_step": False,
    "process_group": None,
    "dist_sync_fn": None,
    "distributed_available_fn": None,
    "sync_on_compute": True,
    "compute_with_cache": True,
}
"""torchmetrics' own."""

# A model in half precision sees a repeated sample in another batch, and answers a little differently.
_SAME = {"rtol": 0.02, "atol": 1e-3}


class IndexedMetric(Metric):
    """A metric that keeps a row for each sample whose number it is told; other samples it counts as they come.

    With numbers, a sample that was seen twice, by one rank or by two, counts once, and the order of samples is that of
    their numbers. Numbers are those in the data set: two samples of one number with different rows are an error, which
    is what numbers that begin anew in every batch would give.

    Args:
        kwargs: See `torchmetrics.Metric`.
    """

    numbers: list[Tensor]
    numbered: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # Flat, so that ranks which saw nothing can be gathered too.
        self.add_state("numbers", default=[], dist_reduce_fx="cat")
        self.add_state("numbered", default=[], dist_reduce_fx="cat")

    def _checked_index(self, index: Tensor | Sequence[int] | None, count: int) -> Tensor | None:
        """The numbers of `count` samples, ``(count,)``; None for none.

        Raises:
            TypeError: If they are no whole numbers.
            ValueError: If there are more or fewer than samples.
        """
        if index is None:
            return None
        numbers = torch.as_tensor(index, device=self.device)
        if not numbers.numel():
            numbers = numbers.long()  # of an empty list, torch makes floats
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise TypeError(f"index: expected whole numbers, got {numbers.dtype}")
        if numbers.shape != (count,) and not (numbers.dim() == 0 and count == 1):
            raise ValueError(f"index: expected one number a sample, shape ({count},), got {tuple(numbers.shape)}")
        return numbers.long().view(count)

    def _keep(self, index: Tensor, rows: Tensor) -> None:
        """Remember rows ``(N, K)`` by number."""
        self.numbers.append(index)
        self.numbered.append(rows.to(SUM_DTYPE).flatten())

    def _kept(self, counted: Tensor | int) -> Tensor | None:
        """The remembered rows ``(M, K)``, each number once, in the order of numbers; None if there are none.

        Args:
            counted: How many samples without a number were seen.

        Raises:
            ValueError: If some samples had a number and others none, or two of one number differ.
        """
        if not len(self.numbers):  # a list, or after a sync a tensor
            return None
        index = dim_zero_cat(self.numbers)
        if not len(index):
            return None
        if counted:
            raise ValueError("index: expected in every update or in none, on all ranks, got it in some")
        rows = dim_zero_cat(self.numbered)
        if rows.numel() % len(index):
            raise ValueError("compute: expected videos of as many frames, and maps of one size, on all ranks")
        order = index.argsort(stable=True)
        index, rows = index[order], rows.view(len(index), -1)[order]
        repeated = index[1:] == index[:-1]
        differs = repeated & ~torch.isclose(rows[1:], rows[:-1], **_SAME, equal_nan=True).all(1)
        if differs.any():
            number = int(index[1:][differs][0])
            raise ValueError(
                f"index: expected each sample's number in the data set, got two different samples of number {number};"
                " a position in the batch is no such number"
            )
        return rows[torch.cat([repeated.new_ones(1), ~repeated])]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # A rank that saw nothing sends an empty tensor, of our dtype: torchmetrics would send one of its own.
        for name in self._defaults:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                dtype = torch.long if name == "numbers" else SUM_DTYPE
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)


class ImageMetric(IndexedMetric):
    """A metric on an LPIPS network that reports range errors in `compute`, not at every batch.

    Args:
        net_type: A backbone, or a built `LPIPS` that the metric shares the frozen network of.
        options: Of the network, and torchmetrics'.
    """

    def __init__(self, net_type: str | Backbone | LPIPS, options: MetricOptions) -> None:
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in METRIC_DEFAULTS if name in given}
        net = LPIPS.of(net_type, given, type(self))  # type: ignore[arg-type]
        super().__init__(**own)
        self.net = net
        self.net.range_checker = RangeChecker()
        self._in_forward = False

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the batch's own score, differentiable; the state keeps no graph."""
        self._in_forward = True
        try:
            value = super().forward(*args, **kwargs)
        finally:
            self._in_forward = False
        for name in self._defaults:
            state = getattr(self, name)
            setattr(self, name, [part.detach() for part in state] if isinstance(state, list) else state.detach())
        # torchmetrics keeps the batch's score until the next batch, and with its graph the images.
        layers = value.items() if isinstance(value, dict) else [("", value)]
        kept = {layer: score.detach() for layer, score in layers}
        cache: Any = kept if isinstance(value, dict) else kept[""]
        self._forward_cache = cache
        return value

    def _flush_range_checks(self) -> None:
        """Raise pending range errors; not for the score of a single batch, which must not wait for the device."""
        if not self._in_forward:
            self.net.range_checker.flush()
