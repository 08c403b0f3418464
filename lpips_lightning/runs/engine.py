"""Units of work, dealt to the ranks of a Trainer; their data are read by DataLoader workers."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from lpips_lightning.runs.launch import quiet


class Work(ABC):
    """A measurement in units, which are independent of each other and of the number of ranks.

    Rank 0 makes the work; the other ranks get a copy by pickle, and then `start` is called on every rank.
    """

    @abstractmethod
    def todo(self) -> Sequence[int]:
        """Numbers of the units that are to be done, ascending; called on rank 0."""

    @abstractmethod
    def dataset(self, units: Sequence[int]) -> UnitDataset:
        """Data set that reads these units; its items are the batches of `measure`, which carry their unit's number."""

    def start(self, trainer: Trainer, device: torch.device) -> None:
        """Prepare this rank, such as by loading the network onto the device; nothing by default."""
        return

    @abstractmethod
    def measure(self, batch: Any, times: BatchTimes) -> Any:
        """Measure one batch, which lies on the device.

        Returns:
            A small picklable object for `run`'s caller; None if the work keeps its results itself.
        """

    def finish(self) -> None:
        """Complete this rank's part, such as by closing a file; called on every rank at the end; nothing by default."""
        return


@dataclass(frozen=True)
class BatchTimes:
    """Where the time before `Work.measure` of a batch went, in seconds.

    Attributes:
        waiting: Until the batch was there (reading and decoding, as far as they were not hidden).
        transfer: Copying it to the device.
    """

    waiting: float
    transfer: float


class UnitDataset(IterableDataset[Any]):
    """Reads units one after the other; worker processes share them among themselves, in turn.

    Args:
        units: Numbers of the units.
    """

    def __init__(self, units: Sequence[int]) -> None:
        self.units = units

    def own_units(self) -> Sequence[int]:
        """The units of this worker process, or all in the main process."""
        worker = get_worker_info()
        return self.units if worker is None else self.units[worker.id :: worker.num_workers]


def run(
    trainer: Trainer,
    make: Callable[[], Work],
    *,
    workers: int = 0,
    prefetch: int = 2,
) -> list[Any] | None:
    """Do a work on all ranks of a Trainer.

    Args:
        trainer: Trainer from `Launch.trainer`.
        make: Makes the work; called on rank 0 only, before other ranks are started.
        workers: Worker processes per rank that read; 0 reads in the rank's own process.
        prefetch: Batches that each worker reads ahead.

    Returns:
        On rank 0 what `Work.measure` returned, in the order of units and of batches in a unit, without None; on other
        ranks None.

    Raises:
        ChildProcessError: If a worker process was killed, such as by the system for lack of memory.
    """
    module = _Module(make() if trainer.is_global_zero else None, workers, prefetch)
    with quiet():
        try:
            trainer.predict(module, return_predictions=False)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ChildProcessError(
                f"workers: expected processes that read to the end, got one that was killed, mostly for lack of memory"
                f" ({str(error).partition(chr(10))[0]}); give fewer --workers or a smaller --batch-size"
            ) from error
    return module.gathered


class _Module(LightningModule):
    """Lightning's view of a work. It has no parameters: a frozen network is not Lightning's to move or to save."""

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, work: Work | None, workers: int, prefetch: int) -> None:
        super().__init__()
        self._work = [work]  # in a list, so that modules in it are not registered
        self._workers, self._prefetch = workers, prefetch
        self._results: list[tuple[int, Any]] = []
        self._ready = self._transfer = 0.0
        self._todo: Sequence[int] = ()
        self.gathered: list[Any] | None = None

    @property
    def work(self) -> Work:
        return cast(Work, self._work[0])

    @override
    def setup(self, stage: str) -> None:
        first = self._work[0]
        plan = None if first is None else (first, first.todo())
        self._work[0], self._todo = self.trainer.strategy.broadcast(plan)

    @override
    def on_predict_start(self) -> None:
        self.work.start(self.trainer, self.device)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        data = self.work.dataset(self._todo[self.trainer.global_rank :: self.trainer.world_size])
        ahead = {"prefetch_factor": self._prefetch} if self._workers else {}
        workers = min(self._workers, max(len(data.units), 1))
        pin = self.device.type == "cuda"
        self._ready = time.perf_counter()
        return DataLoader(data, batch_size=None, num_workers=workers, pin_memory=pin, **(ahead if workers else {}))

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        start = time.perf_counter()
        moved = batch.to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._transfer = time.perf_counter() - start
        return moved

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> int:
        waiting = time.perf_counter() - self._ready - self._transfer
        result = self.work.measure(batch, BatchTimes(max(waiting, 0.0), self._transfer))
        if result is not None:
            self._results.append((batch.unit, result))
        self._ready = time.perf_counter()
        return batch_idx  # Lightning warns about None

    @override
    def on_predict_end(self) -> None:
        self.work.finish()
        parts = [self._results]
        if self.trainer.world_size > 1 and dist.is_available() and dist.is_initialized():
            parts = [[] for _ in range(self.trainer.world_size)]
            dist.gather_object(self._results, parts if self.trainer.is_global_zero else None)
        if self.trainer.is_global_zero:
            together = [one for part in parts for one in part]
            self.gathered = [result for _, result in sorted(together, key=lambda one: one[0])]
