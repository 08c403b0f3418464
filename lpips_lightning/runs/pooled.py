"""The work of `calibration fast`: pooled squared differences of judged triplets, in blocks that depend on them only."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Trainer
from torch import Tensor
from torch.utils.data import default_collate
from typing_extensions import override

from lpips_lightning.calibration.model import TrainableLPIPS
from lpips_lightning.calibration.pooled import (
    TRIPLETS,
    FeatureCache,
    Moments,
    PoolCache,
    PooledTriplets,
    SharedPairs,
    check_shape,
    feature_capacity,
    joined_batches,
    pair_moments,
    triplet_moments,
)
from lpips_lightning.data.bapps import TwoAFCDataset
from lpips_lightning.data.triplets import TripletDataset
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.runs import engine
from lpips_lightning.runs.engine import BatchTimes, UnitDataset, Work
from lpips_lightning.runs.judgments import ItemBatch, UnitProgress
from lpips_lightning.runs.processes import RankProcesses

Data = TwoAFCDataset | TripletDataset
_Array = npt.NDArray[np.float32]
_Result = tuple[_Array, _Array | None]
_IMAGES = 32  # of a block; a unit of pairs is within one block or between two


class _Plan(ABC):
    """How the triplets of one data set are pooled in units."""

    units: int

    @abstractmethod
    def read(self, unit: int) -> Mapping[str, Any]:
        """The images of a unit; in a worker process."""

    @abstractmethod
    def measure(self, network: TrainableLPIPS, unit: int, items: Mapping[str, Any], spread: bool) -> Moments:
        """Moments of a unit's pairs."""

    @abstractmethod
    def joined(self, parts: Sequence[Moments], network: TrainableLPIPS) -> PooledTriplets:
        """The pooled triplets from the moments of all units."""


class _Batches(_Plan):
    """Batches of triplets with images of their own."""

    def __init__(self, data: TwoAFCDataset) -> None:
        self._data = data
        self.units = -(-len(data) // TRIPLETS)

    @override
    def read(self, unit: int) -> Mapping[str, Any]:
        rows = range(unit * TRIPLETS, min((unit + 1) * TRIPLETS, len(self._data)))
        items: Mapping[str, Any] = default_collate([self._data[row] for row in rows])
        return items

    @override
    def measure(self, network: TrainableLPIPS, unit: int, items: Mapping[str, Any], spread: bool) -> Moments:
        mean, deviation = triplet_moments(network, items, spread)
        # The judgments go the same way as the values, as a last column.
        return torch.cat([mean, items["judge"].to(mean).repeat(2)[:, None]], 1), deviation

    @override
    def joined(self, parts: Sequence[Moments], network: TrainableLPIPS) -> PooledTriplets:
        batches = [((mean[:, :-1], spread), mean[: len(mean) // 2, -1]) for mean, spread in parts]
        return joined_batches(batches, network)


class _Pairs(_Plan):
    """Pairs of images that triplets share; every unit encodes each of its images once."""

    def __init__(self, data: TripletDataset, network: TrainableLPIPS) -> None:
        self._shared = SharedPairs(data)
        first = self._shared.image(0)
        self._shape = first.shape
        self._blocks = pair_blocks(self._shared.pairs, min(_IMAGES, feature_capacity(network, first) // 2))
        self.units = len(self._blocks)

    @override
    def read(self, unit: int) -> Mapping[str, Any]:
        indices = self._images(unit)
        images = [self._shared.image(index) for index in indices]
        for image in images:
            check_shape(image, self._shape)
        return {"images": torch.stack(images)}

    @override
    def measure(self, network: TrainableLPIPS, unit: int, items: Mapping[str, Any], spread: bool) -> Moments:
        images = dict(zip(self._images(unit), items["images"], strict=True))
        cache = FeatureCache(network, images.__getitem__, self._shape, len(images))
        return pair_moments(cache, self._shared.pairs[self._blocks[unit]], spread)

    @override
    def joined(self, parts: Sequence[Moments], network: TrainableLPIPS) -> PooledTriplets:
        inverse = torch.cat(self._blocks).argsort()
        means = torch.cat([mean for mean, _ in parts])[inverse]
        spreads = [spread for _, spread in parts if spread is not None]
        return self._shared.joined([(means, torch.cat(spreads)[inverse] if spreads else None)], network)

    def _images(self, unit: int) -> list[int]:
        found: list[int] = self._shared.pairs[self._blocks[unit]].unique().tolist()
        return found


class _Blocks(UnitDataset):
    """Reads units of plans."""

    def __init__(self, units: Sequence[int], plans: Mapping[int, _Plan], places: Sequence[tuple[int, int]]) -> None:
        super().__init__(units)
        self._plans, self._places = plans, places

    def __iter__(self) -> Iterator[ItemBatch]:
        for unit in self.own_units():
            part, block = self._places[unit]
            yield ItemBatch(unit, self._plans[part].read(block))


class PooledWork(Work):
    """Pooled squared differences of data sets, as `lpips_lightning.calibration.pooled.pool` computes them, bit for bit.

    Made on rank 0, which also reads and writes the cache; data sets that are there are not computed again.

    Args:
        network: Makes the network; called on every rank, picklable.
        parts: Data sets of triplets.
        folder: Cache folder, as of `lpips_lightning.calibration.pooled.cached_pool`; None for no cache.
        spread: Also compute `PooledTriplets.spread`.
        report: Progress, on rank 0, in blocks of all ranks.
    """

    def __init__(
        self,
        network: Callable[[], TrainableLPIPS],
        parts: Sequence[Data],
        folder: str | os.PathLike[str] | None = None,
        *,
        spread: bool = False,
        report: ProgressCallback = no_progress,
    ) -> None:
        self._make, self._spread, self._progress = network, spread, UnitProgress(report)
        self._caches = [] if folder is None else [PoolCache(network(), part, folder, spread) for part in parts]
        found = [cache.read() for cache in self._caches] or [None] * len(parts)
        self._found = {number: one for number, one in enumerate(found) if one is not None}
        self._parts = len(parts)
        self._plans: dict[int, _Plan] = {
            number: _Pairs(part, network()) if isinstance(part, TripletDataset) else _Batches(part)
            for number, part in enumerate(parts)
            if number not in self._found
        }
        self._places = [(number, unit) for number, plan in self._plans.items() for unit in range(plan.units)]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_found": {}, "_caches": []}

    @override
    def todo(self) -> Sequence[int]:
        return range(len(self._places))

    @override
    def dataset(self, units: Sequence[int]) -> _Blocks:
        return _Blocks(units, self._plans, self._places)

    @override
    def start(self, trainer: Trainer, device: torch.device) -> None:
        self._network = self._make().to(device)
        self._progress.start(len(self._places), trainer.world_size)

    @override
    def measure(self, batch: ItemBatch, times: BatchTimes) -> tuple[int, _Result]:
        part, unit = self._places[batch.unit]
        mean, spread = self._plans[part].measure(self._network, unit, batch.items, self._spread)
        self._progress.step()
        return part, (mean.cpu().numpy(), None if spread is None else spread.cpu().numpy())

    @override
    def finish(self) -> None:
        self._network.cpu()

    def pooled(self, results: Sequence[tuple[int, _Result]]) -> list[PooledTriplets]:
        """The pooled triplets of all data sets; writes the cache.

        Args:
            results: What `measure` returned, in the order of units.
        """
        network = self._make()
        for part, group in groupby(results, key=lambda one: one[0]):
            moments = [tuple(None if one is None else torch.from_numpy(one) for one in result) for _, result in group]
            self._found[part] = self._plans[part].joined(moments, network)  # type: ignore[arg-type]
            if self._caches:
                self._caches[part].write(self._found[part])
        return [self._found[number] for number in range(self._parts)]


def pool_on_ranks(trainer: Trainer, make: Callable[[], PooledWork], *, workers: int = 0) -> list[PooledTriplets] | None:
    """Pool on all ranks of a Trainer; if the cache has everything, no rank is started.

    Args:
        trainer: Trainer from `Launch.trainer`.
        make: Makes the work; called on rank 0 only.
        workers: Worker processes per rank that read.

    Returns:
        The pooled triplets on rank 0, on the CPU; None on others.

    Raises:
        Exception: See `lpips_lightning.runs.engine.run`.
    """
    made: list[PooledWork] = []

    def once() -> PooledWork:
        if not made:
            made.append(make())
        return made[0]

    if trainer.is_global_zero and _starts_all_ranks(trainer) and not once().todo():
        return once().pooled([])
    results = engine.run(trainer, once, workers=workers)
    return None if results is None else once().pooled(results)


def pair_blocks(pairs: Tensor, images: int) -> list[Tensor]:
    """Divide pairs so that each part has few images, and few images are in several parts.

    Images that pairs connect come together into blocks of at most `images`; a part is within a block, or between two.

    Args:
        pairs: Image indices, ``(P, 2)``, each pair once.
        images: Images of a block, at least 1.

    Returns:
        Indices of pairs, by part.

    Example:
        >>> pair_blocks(torch.tensor([[0, 2], [0, 4], [1, 3]]), 4)
        [tensor([0, 1]), tensor([2])]
    """
    block = _block_of_images(pairs.tolist(), images)
    parts: dict[tuple[int, int], list[int]] = {}
    for number, (first, second) in enumerate(pairs.tolist()):
        low, high = sorted((block[first], block[second]))
        parts.setdefault((low, high), []).append(number)
    return [torch.tensor(parts[key]) for key in sorted(parts)]


def _block_of_images(pairs: Sequence[Sequence[int]], images: int) -> dict[int, int]:
    """Number of the block of each image; connected ones are in one block, as far as they fit."""
    blocks: dict[int, int] = {}
    block, free = 0, images
    for group in _connected(pairs):
        if len(group) > free:
            block, free = block + (free < images), images
        for image in group:
            if not free:
                block, free = block + 1, images
            blocks[image] = block
            free -= 1
    return blocks


def _connected(pairs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of images that pairs connect, each sorted, in the order of their first images."""
    parent: dict[int, int] = {}

    def root(image: int) -> int:
        while parent.setdefault(image, image) != image:
            parent[image] = image = parent[parent[image]]
        return image

    for first, second in pairs:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for image in sorted(parent):
        groups.setdefault(root(image), []).append(image)
    return list(groups.values())


def _starts_all_ranks(trainer: Trainer) -> bool:
    """Whether this process starts all others, so that none waits if it does not."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, RankProcesses):
        return trainer.world_size == 1
    return trainer.num_nodes == 1 and not launcher.cluster_environment.creates_processes_externally
