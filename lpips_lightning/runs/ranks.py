"""What the ranks of a run tell each other: that one has failed, and that all are done."""

from __future__ import annotations

import pickle
import time
import traceback
import uuid
from typing import Any

import torch.distributed as dist
from pytorch_lightning import Trainer
from torch.distributed.distributed_c10d import _get_default_store

from lpips_lightning.runs.processes import RankProcesses
from lpips_lightning.weights import WeightsError

_SECONDS = 1.0  # between looks at the other ranks


class OtherRankError(Exception):
    """Another rank has failed, and will say why."""


class Ranks:
    """The ranks of a Trainer. They look at each other between batches, so that none waits for one that has failed.

    Args:
        trainer: The Trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._key = trainer, ""
        self._next = 0.0
        self._had_group = _has_group()

    def connect(self) -> None:
        """Agree on where to look; called on all ranks at the begin, before `several` is true."""
        # Rank 0 may have had other runs, in this process and in torchrun's store, than the processes it starts.
        self._key = self._trainer.strategy.broadcast(f"lpips-lightning/{uuid.uuid4()}")

    @property
    def several(self) -> bool:
        """Whether there are several ranks, which are connected."""
        return self._trainer.world_size > 1 and bool(self._key) and _has_group()

    def check(self) -> None:
        """See, about once a second, whether all are well.

        Raises:
            OtherRankError: If another rank has failed.
            ChildProcessError: If a rank on this machine has died.
            ConnectionError: If rank 0 is gone.
        """
        if self.several and time.monotonic() >= self._next:
            self._look()
            if self._has_failed():
                raise OtherRankError
            self._next = time.monotonic() + _SECONDS

    def end(self, results: list[Any], error: Exception | None) -> list[list[Any]]:
        """Wait for all ranks, and gather their results.

        Args:
            results: Results of this rank; picklable.
            error: Why this rank has failed, if it has.

        Returns:
            Results by rank, on rank 0; nothing on others.

        Raises:
            Exception: On rank 0, that of the first rank that failed.
            SystemExit: On other ranks, with code 2, if a rank failed; rank 0 says why.
        """
        if not self.several or isinstance(error, ChildProcessError | ConnectionError):
            if error is not None:
                raise error
            return [results]
        self._wait(failed=error is not None)
        own = (results, _portable(error, self._trainer.global_rank))
        parts: list[Any] = [None] * self._trainer.world_size
        dist.gather_object(own, parts if self._trainer.is_global_zero else None)
        failed = self._has_failed()
        self._disconnect()
        if not self._trainer.is_global_zero:
            if failed:
                raise SystemExit(2)
            return []
        if error is not None and not isinstance(error, OtherRankError):
            raise error
        for _, other in parts:
            if other is not None:
                raise other
        return [part for part, _ in parts]

    def _wait(self, failed: bool) -> None:
        """Until every rank is here; in Python, since an interrupt does not end torch's own waiting."""
        store, pause = _get_default_store(), 0.01
        if failed:
            store.set(f"{self._key}/failed", "1")
        done = store.add(f"{self._key}/done", 1)
        while done < self._trainer.world_size:
            time.sleep(pause)
            pause = min(2 * pause, _SECONDS / 2)
            done = self._look()

    def _look(self) -> int:
        """Raise if another rank has died; how many ranks are done."""
        launcher = self._trainer.strategy.launcher
        if isinstance(launcher, RankProcesses) and launcher.lost:
            raise ChildProcessError(launcher.lost)
        try:
            return int(_get_default_store().add(f"{self._key}/done", 0))
        except RuntimeError as error:  # DistNetworkError and its like
            raise ConnectionError(f"expected rank 0 to answer, but it has ended ({error})") from error

    def _has_failed(self) -> bool:
        return bool(_get_default_store().check([f"{self._key}/failed"]))

    def _disconnect(self) -> None:
        if not self._had_group:
            dist.destroy_process_group()


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def _portable(error: Exception | None, rank: int) -> Exception | None:
    """An error that can be pickled; what was not raised on purpose has its traceback as a note."""
    if error is None or isinstance(error, OtherRankError):
        return None
    if not isinstance(error, ValueError | OSError | ImportError | WeightsError):
        error.add_note(f"on rank {rank}:\n{''.join(traceback.format_exception(error))}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # of a class with arguments of its own
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
