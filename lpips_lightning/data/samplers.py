"""Epochs whose order depends on a seed and their number alone, and a loader that goes on in the middle of one.

A training that was killed and goes on from a checkpoint sees the batches that it would have seen: Lightning tells the
sampler the epoch (``set_epoch``) and keeps the loader's ``state_dict`` in its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

Item = dict[str, Any]


class Mirrored(Dataset[Item]):
    """Items twice: as they are, and, at their index plus their number, with all images mirrored left to right.

    So whether an item is mirrored is the sampler's choice, and no process that reads needs random numbers.

    Args:
        data: Its items are dicts; images are the tensors ``(3, H, W)`` in them.
    """

    def __init__(self, data: Dataset[Item]) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2 * _length(self.data)

    @override
    def __getitem__(self, index: int) -> Item:
        turn, place = divmod(index, _length(self.data))
        item = self.data[place]
        return {name: value.flip(-1) if turn and _is_image(value) else value for name, value in item.items()}


class EpochSampler(DistributedSampler[int]):
    """Every item once an epoch, in an order that depends on (`seed`, epoch) alone.

    A `DistributedSampler` because Lightning leaves those alone; over several ranks the last items repeat the first
    until all have as many.

    Args:
        data: What to draw from; of `Mirrored` data, either of an item's two forms is drawn.
        seed: Not negative.
        num_replicas: Number of ranks.
        rank: This one's.

    Raises:
        ValueError: If `seed` is negative.
    """

    def __init__(self, data: Dataset[Item], seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.mirrored = isinstance(data, Mirrored)
        self.count = _length(data) // (2 if self.mirrored else 1)
        super().__init__(range(self.count), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.start = 0

    def order(self) -> Tensor:
        """Indices of the whole epoch over all ranks, shape ``(total_size,)``."""
        entropy = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy) >> 1)
        order = torch.randperm(self.count, generator=generator)
        if self.mirrored:
            order = order + self.count * torch.randint(2, (self.count,), generator=generator)
        return order.repeat(-(-self.total_size // max(self.count, 1)))[: self.total_size]

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][self.start :].tolist())


class ResumableLoader(DataLoader[Item]):
    """A `DataLoader` over an `EpochSampler` that knows how far it is, and goes on from there after `load_state_dict`.

    Takes the arguments of `DataLoader`. Its length stays that of the whole epoch. With another sampler (Lightning sets
    one for ``overfit_batches``) it is a `DataLoader` that always begins at the start.
    """

    _given = 0
    _resume: tuple[int, int] | None = None  # epoch, batches

    @override
    def __iter__(self) -> Any:
        # A generator: nothing is read before the first batch is asked for. Lightning makes the iterator of the first
        # epoch before it says which epoch it is.
        return self._batches()

    def state_dict(self) -> dict[str, int]:
        """Where it stands, as plain numbers."""
        if not isinstance(self.sampler, EpochSampler):
            return {}
        return {"epoch": self.sampler.epoch, "batches": self._given, **self._shape(self.sampler)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration begin where `state` was taken; in another epoch it begins at the start.

        Args:
            state: From `state_dict`.

        Raises:
            ValueError: If it was taken in the middle of an epoch over other data, batches or ranks.
        """
        if not state or not isinstance(self.sampler, EpochSampler):
            return
        epoch, batches = state["epoch"], state["batches"]
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        for name, value in self._shape(self.sampler).items() if batches else ():
            if state[name] != value:
                raise ValueError(
                    f"{name}: expected {state[name]}, as when the checkpoint was written in the middle of an epoch,"
                    f" got {value}"
                )
        self.sampler.set_epoch(epoch)
        self._resume, self._given = (epoch, batches), batches

    def _batches(self) -> Iterator[Any]:
        resume, self._resume = self._resume, None
        self._given = 0
        if isinstance(self.sampler, EpochSampler):
            if resume is not None and resume[0] == self.sampler.epoch:
                self._given = resume[1]
            self.sampler.start = self._given * (self.batch_size or 1)
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def _shape(self, sampler: EpochSampler) -> dict[str, int]:
        return {
            "batch_size": self.batch_size or 1,
            "items": sampler.count,
            "ranks": sampler.num_replicas,
            "seed": sampler.seed,
        }


def _length(data: Any) -> int:
    return len(data)


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3
