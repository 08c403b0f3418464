"""The Trainer of a command: devices and machines as Lightning reads them, from options or the environment."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from typing_extensions import override

from lpips_lightning.io.console import print_notes
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.runs.processes import RankProcesses

_WAIT = timedelta(hours=2)  # for connecting, and for rank 0 to list the pairs; the end is waited for in `ranks`
_SILENT = 20  # seconds without a word while ranks connect
_LOGGERS = ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric")
_STRATEGIES = ("auto", "ddp")


@dataclass(frozen=True)
class Launch:
    """How a run is distributed; the names and values are those of Lightning's ``Trainer``.

    Attributes:
        devices: Number of devices per machine, ``"auto"``, or a list of indices as text, such as ``"0,2"``.
        num_nodes: Number of machines.
        strategy: ``"auto"`` or ``"ddp"``.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"``, ``"mps"``, ...
        command: What the other ranks of this machine run, after ``lpips-lightning``; empty: the command line of this
            process. Not read where torchrun or srun start the ranks.
    """

    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: str = "auto"
    command: Sequence[str] = ()

    def trainer(self) -> Trainer:
        """A Trainer without logger, checkpoints and progress bar.

        Raises:
            ValueError: If Lightning refuses an option; the message is Lightning's.
        """
        if self.strategy not in _STRATEGIES:
            raise ValueError(
                f"strategy: expected auto or ddp, got {self.strategy!r}; every rank has the whole network, so there is"
                " nothing to shard, and each is a process of its own"
            )
        try:
            with quiet():
                trainer = self._trainer(self.strategy)
                # Not Lightning's own DDP: its ranks wait 30 minutes for each other, and rerun the user's script.
                several = isinstance(trainer.strategy, DDPStrategy)
                trainer = self._trainer(_Ddp(self.command)) if several else trainer
        except Exception as error:  # MisconfigurationException of either Lightning package is no ValueError
            if not isinstance(error, _REFUSALS) and type(error).__name__ != "MisconfigurationException":
                raise
            raise ValueError(self._refusal(error)) from error
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            name = type(trainer.strategy).__name__
            raise ValueError(f"accelerator: expected auto, cpu, gpu or mps, got {self.accelerator!r} ({name})")
        return trainer

    def _trainer(self, strategy: str | DDPStrategy) -> Trainer:
        devices, num_nodes = _devices(self.devices), self.num_nodes
        if devices == "auto" and started_by_launcher():  # Lightning expects the launcher's numbers, also on CPUs
            devices, num_nodes = _devices_of_launcher()
        return Trainer(
            accelerator=self.accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            plugins=_environment(),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )

    def _refusal(self, error: Exception) -> str:
        """One line about the option that Lightning refuses."""
        reason = " ".join(str(error).split())
        if reason.startswith("devices: "):
            return reason
        about_devices = self.devices != "auto" and "devices" in reason
        option = "devices" if about_devices or self.accelerator == "auto" else "accelerator"
        return f"{option}: expected what Lightning accepts, got {getattr(self, option)!r}: {reason}"


_REFUSALS = (RuntimeError, TypeError, ValueError, ImportError)


class _Ddp(DDPStrategy):
    """Lightning's DDP with our own start of the other ranks."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__(timeout=_WAIT)
        self._command = command

    @override
    def _configure_launcher(self) -> None:
        environment: Any = self.cluster_environment
        self._launcher = RankProcesses(environment, self.num_processes, self.num_nodes, self._command)

    @override
    def setup_distributed(self) -> None:
        with self._waiting(), _interruptible():
            super().setup_distributed()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Say what is waited for, if it takes long."""
        environment: Any = self.cluster_environment
        ranks, machines = self.num_nodes * self.num_processes, self.num_nodes
        how = ", by torchrun, srun, or with MASTER_ADDR, MASTER_PORT and NODE_RANK set" if machines > 1 else ""
        note = (
            f"waiting for {ranks} ranks on {count_of(machines, 'machine')} to connect to"
            f" {environment.main_address}:{environment.main_port}; each machine has to start this command{how}"
        )
        timer = threading.Timer(_SILENT, print_notes, [[note]])
        timer.daemon = True
        if environment.global_rank() == 0:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end this process while torch waits for other ranks, which no Python code can interrupt."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def started_by_launcher() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ.get("WORLD_SIZE", "1")) > 1
    return _started_by_srun()


def _started_by_srun() -> bool:
    """Whether this is one of several tasks of srun: not in the script of sbatch itself, nor in a shell of salloc."""
    environment = os.environ
    is_shell = environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
    in_step = {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS"} <= environment.keys()
    return in_step and not is_shell and int(environment.get("SLURM_NTASKS", "1")) > 1


def _environment() -> list[Any]:
    """Lightning's plugin for SLURM, if needed: without requeueing, since there are no checkpoints."""
    if "SLURM_NTASKS" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    # A script of sbatch, or one task of srun: other ranks are not there unless this process starts them.
    return [SLURMEnvironment(auto_requeue=False) if _started_by_srun() else LightningEnvironment()]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says about every Trainer, such as the devices that are not used."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        for message in (
            "The '.*_dataloader' does not have many workers",
            ".*LeafSpec",
            "GPU available but not used",
            "The `srun` command is available",
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
