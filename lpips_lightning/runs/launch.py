"""The Trainer of a command: devices and machines as Lightning reads them, from options or the environment."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy

_WAIT = timedelta(days=7)  # that the first ranks to finish wait for the last


@dataclass(frozen=True)
class Launch:
    """How a run is distributed; the names and values are those of Lightning's ``Trainer``.

    Attributes:
        devices: Number of devices per machine, ``"auto"``, or a list of indices as text, such as ``"0,2"``.
        num_nodes: Number of machines.
        strategy: Lightning's strategy, such as ``"ddp"``.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"mps"``, ...
    """

    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"

    def trainer(self) -> Trainer:
        """A Trainer without logger, checkpoints and progress bar.

        Raises:
            ValueError: If Lightning refuses an option; the message is Lightning's.
        """
        try:
            with quiet():
                trainer = self._trainer(self.strategy)
                # Not Lightning's own choice of "ddp", whose ranks wait 30 minutes for each other, then fail.
                return self._trainer("ddp") if type(trainer.strategy).__name__ == "DDPStrategy" else trainer
        except (RuntimeError, TypeError, ImportError) as error:
            raise ValueError(f"devices: Lightning refuses these options: {error}") from error
        except Exception as error:  # MisconfigurationException of either Lightning package
            if type(error).__name__ != "MisconfigurationException":
                raise
            raise ValueError(f"devices: {error}") from error

    def _trainer(self, strategy: str) -> Trainer:
        devices, num_nodes = _devices(self.devices), self.num_nodes
        if devices == "auto" and started_by_launcher():  # Lightning expects the launcher's numbers, also on CPUs
            devices, num_nodes = _devices_of_launcher()
        return Trainer(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=DDPStrategy(timeout=_WAIT) if strategy == "ddp" else strategy,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )


def started_by_launcher() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive", None)
    return not interactive and "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says about every Trainer, such as the devices that are not used."""
    loggers = [logging.getLogger(f"{name}.utilities.rank_zero") for name in ("pytorch_lightning", "lightning.pytorch")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        for message in (
            "The '.*_dataloader' does not have many workers",
            ".*LeafSpec",
            "GPU available but not used",
            "Total length of",
            "Your `IterableDataset` has `__len__` defined",
        ):
            warnings.filterwarnings("ignore", message)
        try:
            for one in loggers:
                one.setLevel(max(one.level, logging.WARNING))
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)


def _devices_of_launcher() -> tuple[int, int]:
    """Devices per machine, and machines, as torchrun or srun says."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        here = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        return here, max(int(environment["WORLD_SIZE"]) // here, 1)
    machines = int(environment.get("SLURM_NNODES", "1"))
    return max(int(environment["SLURM_NTASKS"]) // machines, 1), machines


def _devices(text: str) -> str | int | list[int]:
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        return text if text == "auto" else int(text)
    except ValueError:
        raise ValueError(f"devices: expected a number, a list such as 0,2, or auto, got {text!r}") from None
