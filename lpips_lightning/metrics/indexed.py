"""Metrics that deduplicate samples by dataset index, e.g. the padding of a `DistributedSampler`."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.batch import SUM_DTYPE
from lpips_lightning.functional.reduction import choose_range
from lpips_lightning.images.ranges import DataRange, RangeChecker
from lpips_lightning.network import LPIPS
from lpips_lightning.options import LPIPSOptions
from lpips_lightning.perceptual_distance import PerceptualDistance, check_repeatable
from lpips_lightning.transforms import is_vmapped


class MetricOptions(LPIPSOptions, total=False):
    """Keyword options of a metric with a network: those of the network and of `torchmetrics.Metric`.

    Attributes:
        compute_on_cpu: See `torchmetrics.Metric`.
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
"""Defaults of `torchmetrics.Metric`."""

# In half precision a model's output for a repeated sample depends slightly on the rest of the batch.
_SAME = {"rtol": 0.02, "atol": 1e-3}


class IndexedMetric(Metric):
    """A metric that stores one row per sample if samples come with their dataset index.

    A sample with an index counts once, even if several batches or ranks have it, and samples are ordered by index.
    Equal indices with different rows are an error: the caller has then passed indices within the batch.

    Several threads may update one metric: a lock guards its state.

    Args:
        kwargs: See `torchmetrics.Metric`.
    """

    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        indices: list[Tensor]
        indexed_rows: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lock = RLock()
        self._finished = 0  # updates since the last reset
        # Flat, so that gathering also works for ranks without samples.
        self.add_state("indices", default=[], dist_reduce_fx="cat")
        self.add_state("indexed_rows", default=[], dist_reduce_fx="cat")

    @override
    @torch.jit.unused
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its score."""
        with self._exclusive():
            value = super().forward(*args, **kwargs)
            self._finished = self._update_count
        return value

    @override
    def reset(self) -> None:
        """Reset the state."""
        with self._exclusive():
            for name in self._list_states():
                setattr(self, name, [])  # torchmetrics would empty the list, which `Running` still needs
            super().reset()
            self._finished = 0

    def _exclusive(self) -> AbstractContextManager[Any]:
        """Lock of the state; none under ``torch.compile``, which cannot trace locks."""
        return nullcontext() if torch.compiler.is_compiling() else self._lock

    def _wrap_update(self, update: Callable[..., None]) -> Callable[..., None]:
        wrapped = super()._wrap_update(update)

        @functools.wraps(update)
        def counted(*args: Any, **kwargs: Any) -> None:
            if any(isinstance(given, Tensor) and is_vmapped(given) for given in (*args, *kwargs.values())):
                raise TypeError(
                    "update: expected whole batches, since a metric keeps a state, got a tensor mapped by torch.vmap; "
                    "map the function or the network instead"
                )
            wrapped(*args, **kwargs)
            with self._exclusive():
                self._computed = None  # another thread may have computed the score without this batch
                self._finished += 1
                self._update_count = max(self._update_count, self._finished)  # torchmetrics counts without a lock

        return counted

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def exclusive(*args: Any, **kwargs: Any) -> Any:
            with self._exclusive():
                return wrapped(*args, **kwargs)

        return exclusive

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__["_lock"] = RLock()
        super().__setstate__(state)

    def _list_states(self) -> list[str]:
        return [name for name, default in self._defaults.items() if isinstance(default, list)]

    def _append(self, name: str, part: Tensor) -> None:
        state = getattr(self, name)
        if isinstance(state, list):
            state.append(part)
        else:  # synchronized
            setattr(self, name, [state, part])

    @override
    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name in self._list_states():  # a tensor if the state was saved while synchronized
            setattr(self, name, as_list(getattr(self, name)))

    @override
    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        with self._exclusive():
            lists = {name: as_list(incoming_state[name]) for name in self._list_states() if name in incoming_state}
            for name in lists:
                setattr(self, name, as_list(getattr(self, name)))
            super()._reduce_states({**incoming_state, **lists})

    def _checked_index(self, index: Tensor | Sequence[int] | None, count: int) -> Tensor | None:
        """Dataset indices of `count` samples, ``(count,)``, or None.

        Raises:
            TypeError: If they are not integers.
            ValueError: If there is not one index per sample.
        """
        if index is None:
            return None
        indices = torch.as_tensor(index, device=self.device)
        if not indices.numel():
            indices = indices.long()  # torch makes an empty list float
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise TypeError(f"index: expected integers, got {indices.dtype}")
        if indices.shape != (count,) and not (indices.dim() == 0 and count == 1):
            raise ValueError(f"index: expected one index per sample, shape ({count},), got {tuple(indices.shape)}")
        return indices.long().view(count)

    def _store_rows(self, index: Tensor, rows: Tensor) -> None:
        """Store rows ``(N, K)`` with their dataset indices."""
        with self._exclusive():
            self._append("indices", index)
            self._append("indexed_rows", rows.to(SUM_DTYPE).flatten())

    def _unique_rows(self, unindexed: Tensor | int) -> Tensor | None:
        """Stored rows ``(M, K)``, one per dataset index, in the order of indices; None if there are none.

        Args:
            unindexed: Number of samples without an index.

        Raises:
            ValueError: If only some samples had an index, or two samples of one index differ.
        """
        if not len(self.indices):  # a list; after a sync a tensor
            return None
        index = dim_zero_cat(self.indices)
        if not len(index):
            return None
        if unindexed:
            raise ValueError("index: expected it in every update or in none, on all ranks, got it in some")
        rows = dim_zero_cat(self.indexed_rows)
        if rows.numel() % len(index):
            raise ValueError("compute: expected videos of equal length and maps of equal size on all ranks")
        order = index.argsort(stable=True)
        index, rows = index[order], rows.view(len(index), -1)[order]
        repeated = index[1:] == index[:-1]
        differs = repeated & ~torch.isclose(rows[1:], rows[:-1], **_SAME, equal_nan=True).all(1)
        if differs.any():
            first = int(index[1:][differs][0])
            raise ValueError(
                f"index: expected the dataset index of each sample, got two different samples with index {first}; "
                "do not pass the index within the batch"
            )
        return rows[torch.cat([repeated.new_ones(1), ~repeated])]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # Ranks without samples send an empty tensor of the right dtype; torchmetrics would send another dtype.
        for name in self._defaults:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                dtype = torch.long if name == "indices" else SUM_DTYPE
                setattr(self, name, [torch.zeros(0, dtype=dtype, device=self.device)])
        super()._sync_dist(*args, **kwargs)


def state_names(names: Sequence[str], fingerprint: str, net: PerceptualDistance) -> list[str]:
    """Names of states which no metric of another network has.

    `MetricCollection` merges metrics whose states have equal names and values after the first update.

    Args:
        names: Names of the states.
        fingerprint: Everything that determines them.
        net: The network.
    """
    identity = hashlib.sha256(f"{fingerprint} {net.validate_args}".encode()).hexdigest()[:8]
    return [f"{name}_{net.net_type}_{identity}" for name in names]


def as_list(state: Tensor | list[Tensor]) -> list[Tensor]:
    """List of a list state: a new one, since the caller's may belong to a state dict.

    Args:
        state: A list, or a tensor if it is synchronized.
    """
    return [state] if isinstance(state, Tensor) else [*state]


class ImageMetric(IndexedMetric):
    """A metric with an LPIPS network; it reports pixel values outside the range in `compute`, not at every batch.

    Args:
        net_type: A backbone, or a built `PerceptualDistance`, whose frozen networks and options are used.
        options: Options of the network and of `torchmetrics.Metric`.
    """

    def __init__(self, net_type: str | Backbone | PerceptualDistance, options: MetricOptions) -> None:
        given: dict[str, Any] = dict(options)
        own = {name: given.pop(name) for name in METRIC_DEFAULTS if name in given}
        net = LPIPS.of(net_type, given, type(self))  # type: ignore[arg-type]
        check_repeatable(net)
        super().__init__(**own)
        self.net = net
        self.net.range_checker = RangeChecker()
        self.net.role = "unsure"  # called by itself; what the metric measures is data
        self._in_forward = False

    @override
    @torch.jit.unused
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return its differentiable score; the state stores no autograd graph."""
        with self._exclusive():
            return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self._in_forward = True
        try:
            value = super().forward(*args, **kwargs)
        finally:
            self._in_forward = False
        for name in self._defaults:
            state = getattr(self, name)
            setattr(self, name, [part.detach() for part in state] if isinstance(state, list) else state.detach())
        # torchmetrics stores the batch's score until the next batch, and with its graph the images.
        detached: Any
        if isinstance(value, dict):
            detached = {layer: score.detach() for layer, score in value.items()}
        else:
            detached = value.detach()
        self._forward_cache = detached
        return value

    def _choose_range(self, normalize: bool, data_range: DataRange | None) -> tuple[float, float]:
        """The range of the images, from both arguments, if the network takes images on it."""
        low_high = choose_range(self.net.images, normalize, data_range)
        self.net.check_range(low_high)
        return low_high

    def _flush_range_checks(self) -> None:
        """Raise pending range errors; not for the score of a single batch, which must not wait for the device."""
        if not self._in_forward:
            self.net.range_checker.flush()
