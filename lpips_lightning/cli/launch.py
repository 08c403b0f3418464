"""Options of commands that run on several devices and machines."""

from __future__ import annotations

import argparse
import os
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lpips_lightning.runs.launch import Launch

LAUNCH_OPTIONS = ("devices", "num_nodes", "strategy", "accelerator", "workers")
"""Names of the options of `add_launch_options`."""
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"}
_MOST_WORKERS = 8  # per device
COMMAND: ContextVar[tuple[str, ...]] = ContextVar("command", default=())
"""The command that runs, after ``lpips-lightning``: other ranks run it again, also if a program has called it."""


def add_launch_options(group: argparse._ArgumentGroup, workers: bool = True) -> None:
    """Add Lightning's options for devices and machines to a group of a parser.

    Args:
        group: The group.
        workers: Also add ``--workers``; a command may have such an option already, for one device too.
    """
    add = group.add_argument
    add("--devices", metavar="N", help="devices per machine: a number, a list such as 0,2, or auto")
    add("--num-nodes", type=int, metavar="N", help="machines (default: 1; torchrun and SLURM set it)")
    add("--strategy", metavar="S", help="auto (default), ddp")
    add("--accelerator", metavar="A", help="auto (default), cpu, gpu, mps")
    if workers:
        add("--workers", type=int, metavar="N", help="processes per device that read and decode images")


def launch_of(options: argparse.Namespace) -> Launch | None:
    """How to distribute a command: from its options, torchrun or SLURM; None on one device in this process.

    Args:
        options: The parsed command line.

    Raises:
        ValueError: If an option is invalid, or ``--device`` is given too.
    """
    given = {name: value for name in LAUNCH_OPTIONS if (value := getattr(options, name, None)) is not None}
    for name, least in (("num_nodes", 1), ("workers", 0)):
        if given.get(name, least) < least:
            raise ValueError(f"{name.replace('_', '-')}: expected at least {least}, got {given[name]}")

    if not given and not _LAUNCHERS & os.environ.keys():
        return None  # without the import of Lightning

    from lpips_lightning.runs.launch import Launch, started_by_launcher

    if not given and not started_by_launcher():
        return None
    if getattr(options, "device", "auto") != "auto":
        option = f"--{next(iter(given)).replace('_', '-')}" if given else "torchrun or SLURM"
        raise ValueError(f"device: expected no --device with {option}, got {options.device!r}; use --accelerator")
    given.pop("workers", None)
    return Launch(**given, command=COMMAND.get())


def share_cores() -> None:
    """Let the threads of a network wait without spinning, before torch is imported.

    Else a network on the CPU takes two to three times as long as soon as decoding needs one of its cores.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when OpenMP is loaded, with torch


def is_launched() -> bool:
    """Whether torchrun or srun has started this process as one of several ranks."""
    if not _LAUNCHERS & os.environ.keys():
        return False  # without the import of Lightning

    from lpips_lightning.runs.launch import started_by_launcher

    return started_by_launcher()


def launch_or_one_device(options: argparse.Namespace) -> Launch:
    """As `launch_of`; without options for devices, torchrun and SLURM: on ``--device``, in this process.

    Args:
        options: The parsed command line.

    Raises:
        ValueError: If an option is invalid, or there is no such device.
    """
    from lpips_lightning.runs.launch import Launch

    names = [name for name in LAUNCH_OPTIONS if name != "workers"]
    if any(getattr(options, name, None) is not None for name in names) or is_launched():
        launch = launch_of(options)
        assert launch is not None
        return launch
    if (options.workers or 0) < 0:
        raise ValueError(f"workers: expected at least 0, got {options.workers}")

    from lpips_lightning.cli.options import choose_device

    device = choose_device(options.device)
    if device.type == "cuda":
        return Launch(f"{device.index or 0},", accelerator="gpu", command=COMMAND.get())
    return Launch("1", accelerator=device.type, command=COMMAND.get())


def workers_of(given: int | None, devices: int) -> int:
    """Processes per device that read: the given number, or the cores per device, at most 8; 0 with one core.

    Args:
        given: The option ``--workers``; None for the default.
        devices: Ranks on this machine.
    """
    if given is not None:
        return given
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores // max(devices, 1), _MOST_WORKERS) if cores > 1 else 0
