"""Units of work, dealt to the ranks of a Trainer; their data are read by DataLoader workers."""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, cast

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from lpips_lightning.runs.launch import quiet
from lpips_lightning.runs.processes import RankProcesses
from lpips_lightning.runs.ranks import OtherRankError, Ranks


class Work(ABC):
    """A measurement in units, which are independent of each other and of the number of ranks.

    Rank 0 makes the work; the other ranks get a copy by pickle, and then `start` is called on every rank.
    """

    @abstractmethod
    def todo(self) -> Sequence[int]:
        """Numbers of the units that are to be done, ascending; called on rank 0."""

    @abstractmethod
    def dataset(self, units: Sequence[int]) -> UnitDataset:
        """Data set that reads these units; its items are the batches of `measure`.

        A batch has its unit's number as `unit`, and the methods `to`, `pin_memory` and `share`.
        """

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
        make: Makes the work; called on rank 0 only, before it starts other ranks.
        workers: Worker processes per rank that read; 0 reads in the rank's own process.
        prefetch: Batches that each worker reads ahead.

    Returns:
        On rank 0 what `Work.measure` returned, in the order of units and of batches in a unit, without None; on other
        ranks None.

    Raises:
        Exception: On rank 0, what went wrong on any rank.
        SystemExit: On other ranks, if something went wrong on any rank.
        ChildProcessError: If a rank on this machine has died.
    """
    launcher = trainer.strategy.launcher
    started = isinstance(launcher, RankProcesses) and launcher.cluster_environment.creates_processes_externally
    ranks = Ranks(trainer)
    # Where srun or torchrun have started the ranks, the others wait already, and have to hear of an error.
    module = _Module(make if started else _made(make, trainer), workers, prefetch, ranks)
    kill = True
    try:
        parts = ranks.end(*_measure(trainer, module))
        kill = False
    except Exception as error:
        kill = isinstance(error, ChildProcessError)
        raise
    finally:
        if isinstance(launcher, RankProcesses):
            launcher.end(kill)
    together = [one for part in parts for one in part]
    return [result for _, result in sorted(together, key=lambda one: one[0])] if trainer.is_global_zero else None


def read(data: UnitDataset, workers: int) -> Iterator[Any]:
    """The batches of a data set.

    Args:
        data: The data set.
        workers: Worker processes that read; 0 reads in this one.

    Raises:
        Exception: What went wrong in a worker process, as it is.
    """
    for batch in DataLoader(_Reading(data), batch_size=None, num_workers=workers):
        if isinstance(batch, _ReadError):
            raise batch.error
        yield batch


def _made(make: Callable[[], Work], trainer: Trainer) -> Callable[[], Work]:
    """The work, made now on rank 0."""
    work = make() if trainer.is_global_zero else None
    return lambda: cast(Work, work)


def _measure(trainer: Trainer, module: _Module) -> tuple[list[Any], Exception | None]:
    """Results and error of this rank."""
    try:
        with quiet():
            trainer.predict(module, return_predictions=False)
    except Exception as error:
        return [], _explained(error)
    return module.results, None


def _explained(error: Exception) -> Exception:
    """The error, or what it means if a worker process was killed, as the system does for lack of memory."""
    if not (isinstance(error, RuntimeError) and "DataLoader worker" in str(error)):
        return error
    return OSError(
        "workers: expected processes that read to the end, got one that was killed, mostly for lack of memory"
        f" ({str(error).splitlines()[0]}); give fewer --workers or a smaller --batch-size"
    )


@dataclass(frozen=True)
class _ReadError:
    """An error in a worker process, as it is: a DataLoader would add the worker's traceback to its message."""

    error: Exception

    def to(self, device: torch.device) -> _ReadError:
        return self

    def share(self) -> _ReadError:
        return self

    def pin_memory(self) -> _ReadError:
        return self


class _Reading(IterableDataset[Any]):
    """The batches of a data set, or what went wrong."""

    def __init__(self, data: UnitDataset) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._data if get_worker_info() is None else map(_shared, self._data)
        except Exception as error:
            yield _ReadError(error)


def _shared(batch: Any) -> Any:
    """A batch in memory that processes share.

    A DataLoader would put it there in a thread, which prints an error and loses the batch: the rank would wait forever.
    """
    try:
        return batch.share()
    except RuntimeError as error:
        raise OSError(
            f"workers: expected room for a batch in shared memory, such as /dev/shm, got {error}; give it more (Docker:"
            " --shm-size 8g), a smaller --batch-size, or --workers 0"
        ) from None


class _Module(LightningModule):
    """Lightning's view of a work. It has no parameters: a frozen network is not Lightning's to move or to save."""

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, make: Callable[[], Work], workers: int, prefetch: int, ranks: Ranks) -> None:
        super().__init__()
        self._work: list[Work] = []  # in a list, so that modules in it are not registered
        self._make, self._workers, self._prefetch, self._ranks = make, workers, prefetch, ranks
        self.results: list[tuple[int, Any]] = []
        self._ready = self._transfer = 0.0
        self._todo: Sequence[int] = ()

    @property
    def work(self) -> Work:
        return self._work[0]

    @override
    def setup(self, stage: str) -> None:
        self._ranks.connect()
        plan, failure = None, None
        if self.trainer.is_global_zero:
            try:
                work = self._make()
                plan = (work, work.todo())
            except Exception as error:
                failure = error
        plan = self.trainer.strategy.broadcast(plan)
        if plan is None:
            raise failure or OtherRankError
        self._work, self._todo = [plan[0]], plan[1]

    @override
    def on_predict_start(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)  # Lightning's own handler ends a fit only, then restores ours
        self._ranks.check()
        self.work.start(self.trainer, self.device)
        self._ready = time.perf_counter()

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        data = self.work.dataset(self._todo[self.trainer.global_rank :: self.trainer.world_size])
        workers = min(self._workers, max(len(data.units), 1))
        pin = self.device.type == "cuda"
        ahead = self._prefetch if workers else None
        return DataLoader(_Reading(data), batch_size=None, num_workers=workers, pin_memory=pin, prefetch_factor=ahead)

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
        self._ranks.check()
        if isinstance(batch, _ReadError):
            raise batch.error
        waiting = time.perf_counter() - self._ready - self._transfer
        result = self.work.measure(batch, BatchTimes(max(waiting, 0.0), self._transfer))
        if result is not None:
            self.results.append((batch.unit, result))
        self._ready = time.perf_counter()
        return batch_idx  # Lightning warns about None

    @override
    def on_predict_end(self) -> None:
        self.work.finish()


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)
