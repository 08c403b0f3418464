"""Shards of samples over ranks, and the jobs of each rank; see test_distributed.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boring_module as boring
import torch
import torch.distributed as dist
import toy_judgments as judged
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset
from torchmetrics import Metric

from lpips_lightning.calibration.module import PerceptualCalibration
from lpips_lightning.callbacks import PerceptualScores, SampleGallery

Batches = list[list[int]]  # numbers of samples, batch by batch
COUNT = 8


def shards(world_size: int) -> dict[str, list[Batches]]:
    """Shardings of `COUNT` samples without repeats: the batches of every rank."""
    uneven = {1: [8], 2: [6, 2], 4: [4, 2, 1, 1]}[world_size]
    ones = {1: [8], 2: [7, 1], 4: [5, 1, 1, 1]}[world_size]
    empty = [0] * (world_size - 1)
    return {
        "equal": _dealt([COUNT // world_size] * world_size, 2),
        "uneven": _dealt(uneven, 3),
        "size 1": _dealt(ones, 1),
        "all but the first empty": _dealt([COUNT, *empty], 3),
        "all but the last empty": _dealt([*empty, COUNT], 5),
        "batches of nothing": [[[], *rank, []] for rank in _dealt(uneven, 4)],
    }


def padded(world_size: int, count: int, shuffle: bool) -> list[Batches]:
    """Shards of torch's `DistributedSampler`, which repeats samples."""
    ranks = [DistributedSampler(range(count), world_size, rank, shuffle=shuffle, seed=1) for rank in range(world_size)]
    return [_batches(list(sampler), 2) for sampler in ranks]


def _dealt(sizes: list[int], batch_size: int) -> list[Batches]:
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    return [_batches(list(range(start, start + size)), batch_size) for start, size in zip(starts, sizes, strict=True)]


def _batches(numbers: list[int], size: int) -> Batches:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


@dataclass
class Job:
    """A metric over shards.

    Attributes:
        name: For messages.
        metric: As it is made.
        columns: What `update` takes, by argument, a row a sample.
        shards: By rank.
        numbered: Pass dataset indices too.
    """

    name: str
    metric: Metric
    columns: dict[str, Tensor]
    shards: list[Batches]
    numbered: bool

    def on(self, rank: int) -> Any:
        """Result of `rank`."""
        for batch in self.shards[rank]:
            rows = torch.tensor(batch, dtype=torch.long)
            index = {"index": rows} if self.numbered else {}
            self.metric.update(**{name: column[rows] for name, column in self.columns.items()}, **index)
        return self.metric.compute()

    def alone(self) -> Any:
        """Single-process result over every sample, in the order of the ranks' results."""
        dealt = [number for rank in self.shards for batch in rank for number in batch]
        rows = torch.tensor(sorted(set(dealt)) if self.numbered else dealt)
        metric = self.metric.clone()
        metric.update(**{name: column[rows] for name, column in self.columns.items()})
        return metric.compute()


class Loaders(LightningDataModule):
    """Loaders of which some may be empty on some ranks."""

    def __init__(self, make: Callable[[], list[DataLoader]]) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # else Lightning refuses
        self.make = make

    def val_dataloader(self) -> list[DataLoader]:
        return self.make()


@dataclass
class Validation:
    """A Trainer's validation over two loaders.

    Attributes:
        name: Of its folder.
        kind: ``"scores"``: `PerceptualScores` and `SampleGallery`. ``"judged"``: `PerceptualCalibration`, triplets and
            pairs.
        counts: Samples of each loader.
        shards: By rank, for the first loader; the second is dealt out one by one. None: the Trainer's sampler does it.
    """

    name: str
    kind: str
    counts: tuple[int, int]
    shards: list[Batches] | None = None

    def on(self, rank: int, world_size: int, folder: str) -> dict[str, float]:
        """Logged values of `rank`."""

        def make() -> list[DataLoader]:
            if self.shards is None:
                return [DataLoader(data, batch_size=2) for data in self.data()]
            first = [number for batch in self.shards[rank] for number in batch]
            own = (first, range(rank, self.counts[1], world_size))
            return [DataLoader(Subset(data, part), batch_size=2) for data, part in zip(self.data(), own, strict=True)]

        together = {"strategy": "ddp", "devices": world_size} if dist.is_initialized() else {}
        trainer = boring.trainer(folder, self.callbacks(), use_distributed_sampler=self.shards is None, **together)
        model = boring.Boring() if self.kind == "scores" else PerceptualCalibration("embedded", init="official")
        trainer.validate(model, datamodule=Loaders(make), verbose=False)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.kind == "judged":
            found |= {f"recall {place}": value for place, value in enumerate(model.jnd_curves["1"][0].tolist())}
            found["human"] = model.human_ceilings["0"]
        return found

    def alone(self, folder: str) -> dict[str, float]:
        """Logged values of a single process with all samples."""
        return Validation(self.name, self.kind, self.counts).on(0, 1, folder)

    def data(self) -> list[Any]:
        if self.kind == "scores":
            return [TensorDataset(*boring.images(count, seed)) for seed, count in enumerate(self.counts)]
        return [judged.triplets(self.counts[0]), judged.pairs(self.counts[1])]

    def callbacks(self) -> list[Any]:
        if self.kind == "judged":
            return []
        options = {"net_type": "embedded", "data_range": (0, 1)}
        return [PerceptualScores(table=True, **options), SampleGallery(k=3, **options)]
