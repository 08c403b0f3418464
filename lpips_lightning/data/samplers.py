"""Sampler and loader for mid-epoch resume; the order of an epoch depends only on seed and epoch.

A training that resumes from a checkpoint gets the same batches as an uninterrupted one: Lightning sets the sampler's
epoch (``set_epoch``) and saves the loader's ``state_dict`` in its checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset
from typing_extensions import override

Item = dict[str, Any]
RandomStates = list[Tensor]
"""States of torch's random numbers: of the CPU, then of every GPU in use."""


class Mirrored(Dataset[Item]):
    """Every item of `data` twice: unchanged at its index, and mirrored horizontally at index + ``len(data)``.

    The sampler thus decides whether to mirror, and worker processes need no random numbers.

    Args:
        data: Data set whose items are dicts; tensors of shape ``(3, H, W)`` in them are images.
    """

    def __init__(self, data: Dataset[Item]) -> None:
        self.data = data

    def __len__(self) -> int:
        return 2 * _length(self.data)

    @override
    def __getitem__(self, index: int) -> Item:
        mirror, source = divmod(index, _length(self.data))
        item = self.data[source]
        return {name: value.flip(-1) if mirror and _is_image(value) else value for name, value in item.items()}


class EpochSampler(DistributedSampler[int]):
    """Draws every item once per epoch, in an order that depends only on (`seed`, epoch).

    A subclass of `DistributedSampler`, which Lightning does not replace. With several ranks, the first items are
    repeated at the end until all ranks have equally many.

    Args:
        data: Data set to sample; from `Mirrored` data, one of the two versions of each item is drawn.
        seed: Random seed >= 0.
        num_replicas: Number of ranks.
        rank: Index of this rank.

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
        """Indices of the epoch over all ranks, shape ``(total_size,)``."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(self.count, generator=generator)
        if self.mirrored:
            order = order + self.count * torch.randint(2, (self.count,), generator=generator)
        return order.repeat(-(-self.total_size // max(self.count, 1)))[: self.total_size]

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.rank :: self.num_replicas][self.start :].tolist())


class UniqueIndices(EpochSampler):
    """Indices that are new in every epoch: the epoch's order plus epoch times length.

    A dataset that seeds its random numbers by index then draws new samples in every epoch, for any number of ranks and
    workers, and a resumed run draws the same samples as an uninterrupted one.
    """

    @override
    def order(self) -> Tensor:
        return super().order() + self.epoch * self.count


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` that saves its position and resumes there after `load_state_dict`.

    Takes the arguments of `DataLoader`. Its length is always that of the full epoch. Over an `EpochSampler` it resumes
    at once. With another sampler, such as that of ``shuffle=True``, it saves the states of torch's random numbers; to
    resume it loads the batches before its position once more and drops them, with the same random numbers, and then
    restores the state at the time of saving. The training is thus the same as without the interruption, except for the
    random numbers of persistent worker processes, which go on from epoch to epoch.
    """

    _yielded = 0
    _resume: tuple[int, int] | None = None  # epoch, batches
    _replay: dict[str, Any] | None = None
    _epoch_start: RandomStates | None = None
    _first_batch: RandomStates | None = None

    @override
    def __iter__(self) -> Any:
        if not isinstance(self.sampler, EpochSampler):
            return self._replayed()
        # A lazy generator, because Lightning creates the first epoch's iterator before it calls set_epoch.
        return self._batches()

    def state_dict(self) -> dict[str, Any]:
        """Position and configuration: epoch, batches, batch_size, items, ranks, seed.

        With another sampler: batches, length, and states of the random numbers now and at the start of the epoch. Empty
        for an iterable data set.
        """
        if isinstance(self.dataset, IterableDataset):
            return {}
        if not isinstance(self.sampler, EpochSampler):
            states = {"epoch_start": self._epoch_start, "first_batch": self._first_batch, "now": self._states()}
            return {"batches": self._yielded, "length": len(self), **states}
        return {"epoch": self.sampler.epoch, "batches": self._yielded, **self._configuration(self.sampler)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration at the position of `state`; over an `EpochSampler` only in the same epoch.

        Args:
            state: From `state_dict`.

        Raises:
            ValueError: If `state` is from mid-epoch and data, batch size, ranks or seed differ.
        """
        if not isinstance(self.sampler, EpochSampler):
            self._load_replay(state)
            return
        if "epoch" not in state:
            return
        epoch, batches = state["epoch"], state["batches"]
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        for name, value in self._configuration(self.sampler).items() if batches else ():
            if state[name] != value:
                raise ValueError(
                    f"{name}: expected {state[name]}, as in the checkpoint, which was written mid-epoch, got {value}"
                )
        self.sampler.set_epoch(epoch)
        self._resume, self._yielded = (epoch, batches), batches

    def _load_replay(self, state: dict[str, Any]) -> None:
        if state.get("now") is None:  # of a loader over an EpochSampler
            return
        if 0 < state["batches"] < state["length"] != len(self):
            raise ValueError(
                f"length: expected {state['length']} batches, as in the checkpoint, which was written mid-epoch, got"
                f" {len(self)}"
            )
        self._replay = state

    def _replayed(self) -> Iterator[Any]:
        """Iterator of the epoch; a position that was loaded is reached by loading the batches before it."""
        replay = self._replay  # kept until a batch is drawn: Lightning may start an epoch that is already complete
        skipped = replay["batches"] % replay["length"] if replay is not None and replay["length"] else 0
        if replay is not None:
            self._set_states(replay["epoch_start" if skipped else "now"])
        self._epoch_start = self._states()
        batches = super().__iter__()
        if replay is not None and skipped:
            self._set_states(replay["first_batch"])
            self._first_batch = self._states()
            for _ in range(skipped):
                next(batches)
            self._set_states(replay["now"])
        return self._counted(batches, skipped)

    def _counted(self, batches: Iterator[Any], skipped: int) -> Iterator[Any]:
        self._yielded = skipped
        if not skipped:
            self._first_batch = self._states()
        for batch in batches:
            self._replay = None
            self._yielded += 1
            yield batch

    def _states(self) -> RandomStates:
        return [*random_states(), *([self.generator.get_state()] if self.generator is not None else ())]

    def _set_states(self, states: RandomStates) -> None:
        if self.generator is not None:
            *states, own = states
            self.generator.set_state(own.cpu())
        set_random_states(states)

    def _batches(self) -> Iterator[Any]:
        resume, self._resume = self._resume, None
        self._yielded = 0
        if isinstance(self.sampler, EpochSampler):
            if resume is not None and resume[0] == self.sampler.epoch:
                self._yielded = resume[1]
            self.sampler.start = self._yielded * (self.batch_size or 1)
        for batch in super().__iter__():
            self._yielded += 1
            yield batch

    def _configuration(self, sampler: EpochSampler) -> dict[str, int]:
        return {
            "batch_size": self.batch_size or 1,
            "items": sampler.count,
            "ranks": sampler.num_replicas,
            "seed": sampler.seed,
        }


def seed_of(*numbers: int) -> int:
    """A seed for torch from numbers >= 0, such as those of an epoch and of a rank; others give another one."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def random_states() -> RandomStates:
    """States of torch's global random numbers."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_random_states(states: RandomStates) -> None:
    """Restore `random_states`; those of GPUs only where equally many are in use."""
    torch.set_rng_state(states[0].cpu())
    if torch.cuda.is_initialized() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states[1:]])


def _length(data: Any) -> int:
    return len(data)


def _is_image(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 3
