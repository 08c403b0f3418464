"""The work of `correlate`: distances of rated images and videos, in today's order and batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lpips_lightning.evaluation.methods import Method
from lpips_lightning.evaluation.opinion_scores import (
    FrameBatch,
    FrameDistance,
    OpinionScore,
    frame_batches,
    frame_scorer,
    naming_place,
    reference_groups,
    row_means,
)
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.runs.engine import BatchTimes, UnitDataset, Work
from lpips_lightning.runs.judgments import UnitProgress

Distances = Mapping[str, PerceptualDistance | Method]
"""What is measured, by name."""


@dataclass(frozen=True)
class RowBatch:
    """Frames of one row.

    Attributes:
        unit: Number of the unit: of the reference.
        row: Number of the row.
        frames: The frames, read for the distances in `names`.
        names: Names of the distances.
        last: Whether it is the last batch of the unit.
    """

    unit: int
    row: int
    frames: FrameBatch
    names: Sequence[str]
    last: bool = False

    def to(self, device: torch.device) -> RowBatch:
        """The batch on a device."""
        return self._with(lambda images: images.to(device, non_blocking=True))

    def pin_memory(self) -> RowBatch:
        """The batch in pinned memory."""
        return self._with(Tensor.pin_memory)

    def share(self) -> RowBatch:
        """The batch in memory that processes share."""
        return self._with(Tensor.share_memory_)

    def _with(self, function: Any) -> RowBatch:
        return replace(self, frames=replace(self.frames, x=function(self.frames.x), y=function(self.frames.y)))


class _Rows(UnitDataset):
    """Reads the rows of references; `keeping_alpha` has the names of distances by whether alpha channels are kept."""

    def __init__(
        self,
        units: Sequence[int],
        opinions: Sequence[OpinionScore],
        groups: Sequence[Sequence[int]],
        keeping_alpha: Mapping[bool, Sequence[str]],
    ) -> None:
        super().__init__(units)
        self._opinions, self._groups, self._keeping_alpha = opinions, groups, keeping_alpha

    def __iter__(self) -> Iterator[RowBatch]:
        for unit in self.own_units():
            before = None
            for batch in self._unit(unit):
                if before is not None:
                    yield before
                before = batch
            if before is not None:
                yield replace(before, last=True)

    def _unit(self, unit: int) -> Iterator[RowBatch]:
        for row in self._groups[unit]:
            opinion = self._opinions[row]
            for keep, names in self._keeping_alpha.items():
                with naming_place(opinion):
                    yield from (RowBatch(unit, row, one, names) for one in frame_batches(opinion.frames, keep))


class OpinionsWork(Work):
    """Distances of rated images, as `lpips_lightning.evaluation.opinion_scores.measure` computes them, bit for bit.

    A unit is a reference with its rows. The results are what `measured_rows` takes.

    Args:
        distances: Makes the distances; called on every rank, picklable.
        opinions: The rows.
        keeping_alpha: Names of the distances by whether their images keep alpha channels.
        report: Progress of rank 0, in references.
    """

    def __init__(
        self,
        distances: Callable[[], Distances],
        opinions: Sequence[OpinionScore],
        keeping_alpha: Mapping[bool, Sequence[str]],
        report: ProgressCallback = no_progress,
    ) -> None:
        self._make, self._opinions, self._keeping_alpha = distances, opinions, keeping_alpha
        self._groups, self._progress = reference_groups(opinions), UnitProgress(report)

    @override
    def todo(self) -> Sequence[int]:
        return range(len(self._groups))

    @override
    def dataset(self, units: Sequence[int]) -> _Rows:
        return _Rows(units, self._opinions, self._groups, self._keeping_alpha)

    @override
    def start(self, trainer: Trainer, device: torch.device) -> None:
        self._scorers = {name: frame_scorer(distance, device) for name, distance in self._make().items()}
        self._progress.start(len(self._groups), trainer.world_size)

    @override
    def measure(self, batch: RowBatch, times: BatchTimes) -> tuple[int, dict[str, list[float]]]:
        with naming_place(self._opinions[batch.row]):
            measured = {name: self._scorers[name].distances(batch.frames) for name in batch.names}
        if batch.last:
            self._progress.step()
        return batch.row, measured


def by_alpha(distances: Distances) -> dict[bool, list[str]]:
    """Names of distances by whether their images keep alpha channels."""
    groups: dict[bool, list[str]] = {}
    for name, distance in distances.items():
        groups.setdefault(frame_scorer(distance, "cpu").keeps_alpha, []).append(name)
    return groups


def measured_rows(
    results: Sequence[tuple[int, Mapping[str, Sequence[float]]]], opinions: Sequence[OpinionScore]
) -> dict[str, tuple[Tensor, list[FrameDistance]]]:
    """By name of a distance, what `lpips_lightning.evaluation.opinion_scores.measure` returns.

    Args:
        results: Results of the work in the order of its units.
        opinions: Its rows.
    """
    rows: dict[str, dict[int, list[float]]] = {}
    for row, measured in results:
        for name, values in measured.items():
            rows.setdefault(name, {}).setdefault(row, []).extend(values)
    return {name: row_means(opinions, by_row) for name, by_row in rows.items()}
