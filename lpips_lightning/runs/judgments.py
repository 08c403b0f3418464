"""The work of `bapps evaluate`: distances of methods on sets of judgments, in today's batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from typing_extensions import override

from lpips_lightning.evaluation.benchmark import Judged, JudgedBatch, judged_batch, judged_set
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.runs.engine import BatchTimes, UnitDataset, Work

Sets = Mapping[str, Dataset[dict[str, Any]]]


@dataclass(frozen=True)
class ItemBatch:
    """Collated items of a set, one unit of the work.

    Attributes:
        unit: Number of the unit.
        items: What a DataLoader of the set gives.
    """

    unit: int
    items: Mapping[str, Any]

    def to(self, device: torch.device) -> ItemBatch:
        """The batch with its images on a device; judgments stay."""
        return self._with(lambda name, one: one if name in ("judge", "same") else one.to(device, non_blocking=True))

    def pin_memory(self) -> ItemBatch:
        """The batch in pinned memory."""
        return self._with(lambda _, one: one.pin_memory())

    def share(self) -> ItemBatch:
        """The batch in memory that processes share."""
        return self._with(lambda _, one: one.share_memory_())

    def _with(self, function: Callable[[str, Tensor], Tensor]) -> ItemBatch:
        moved = {name: function(name, one) if isinstance(one, Tensor) else one for name, one in self.items.items()}
        return replace(self, items=moved)


class _Items(UnitDataset):
    """Reads batches of sets."""

    def __init__(self, units: Sequence[int], sets: Sets, batches: Sequence[tuple[str, range]]) -> None:
        super().__init__(units)
        self._sets, self._batches = sets, batches

    def __iter__(self) -> Iterator[ItemBatch]:
        for unit in self.own_units():
            name, rows = self._batches[unit]
            yield ItemBatch(unit, default_collate([self._sets[name][row] for row in rows]))


class JudgmentsWork(Work):
    """Distances of methods on sets, as `lpips_lightning.evaluation.benchmark.measure` computes them, bit for bit.

    Its results, in the order of units, are what `judged_sets` takes.

    Args:
        methods: Makes the methods; called on every rank, picklable.
        sets: Data sets by name.
        batch_size: Triplets or pairs per batch, which is a unit.
        shifts: Pixels of each shift.
        report: Progress of rank 0, in batches.
    """

    def __init__(
        self,
        methods: Callable[[], Sequence[Method]],
        sets: Sets,
        batch_size: int = 50,
        shifts: Sequence[int] = (),
        report: ProgressCallback = no_progress,
    ) -> None:
        self._make, self._sets, self._shifts, self._progress = methods, sets, shifts, UnitProgress(report)
        self._batches = [
            (name, range(first, min(first + batch_size, size)))
            for name, data in sets.items()
            for size in [len(data)]  # type: ignore[arg-type]
            for first in range(0, size, batch_size)
        ]

    @override
    def todo(self) -> Sequence[int]:
        return range(len(self._batches))

    @override
    def dataset(self, units: Sequence[int]) -> _Items:
        return _Items(units, self._sets, self._batches)

    @override
    def start(self, trainer: Trainer, device: torch.device) -> None:
        self._methods, self._device = self._make(), device
        self._progress.start(len(self._batches), trainer.world_size)

    @override
    def measure(self, batch: ItemBatch, times: BatchTimes) -> tuple[str, JudgedBatch]:
        measured = judged_batch(self._methods, batch.items, self._device, self._shifts)
        self._progress.step()
        return self._batches[batch.unit][0], measured


def judged_sets(
    results: Sequence[tuple[str, JudgedBatch]], sets: Sets, shifts: Sequence[int] = ()
) -> dict[str, dict[str, Judged]]:
    """Distances by method, then by set, as of `lpips_lightning.evaluation.benchmark.measure`.

    Args:
        results: Results of the work in the order of its units.
        sets: Its data sets.
        shifts: Its shifts.
    """
    measured: dict[str, dict[str, Judged]] = {}
    for name, parts in groupby(results, key=lambda one: one[0]):
        for method, judged in judged_set([part for _, part in parts], sets[name], shifts).items():
            measured.setdefault(method, {})[name] = judged
    return measured


class UnitProgress:
    """Progress of rank 0 with its own units, which are as many as those of any other rank.

    Args:
        report: Called on rank 0; other ranks, which get a copy by pickle, report nothing.
    """

    def __init__(self, report: ProgressCallback = no_progress) -> None:
        self._report = report
        self._done = self._total = 0
        self._name = "measuring"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_report": no_progress}

    def start(self, units: int, ranks: int) -> None:
        """Begin.

        Args:
            units: Units of all ranks.
            ranks: Number of ranks.
        """
        self._done, self._total = 0, -(-units // ranks)
        self._name = "measuring" if ranks == 1 else f"rank 0 of {ranks}"

    def step(self) -> None:
        """One more unit is done on this rank."""
        self._done += 1
        self._report(self._name, self._done, self._total)
