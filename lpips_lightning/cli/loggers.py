"""Options of commands that log the scores of a run, by the names of the recipes' loggers."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli.launch import LAUNCH_OPTIONS

if TYPE_CHECKING:
    from lpips_lightning.io.console import Console

LOGGER_OPTIONS = ("wandb", "logger", "log_dir")
"""Names of the options of `add_logger_options`."""


def add_logger_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that choose loggers to a group of a parser.

    Args:
        group: The group.
    """
    add = group.add_argument
    modes = ("offline", "online")
    add("--wandb", nargs="?", const=modes[0], choices=modes, metavar="MODE", help="log to wandb: offline or online")
    kinds = ("csv", "tensorboard")
    add("--logger", action="append", choices=kinds, metavar="L", help="log to csv or tensorboard (repeatable)")
    add("--log-dir", metavar="DIR", help="folder of the logs (default: outputs)")


def check_loggers(options: argparse.Namespace) -> None:
    """Check before a run that its scores can be logged; on rank 0.

    Args:
        options: The parsed command line.

    Raises:
        ModuleNotFoundError: If the package of a logger is not installed.
        ValueError: If the folder cannot be one, wandb has no account, or there is a folder without a logger.
    """
    if not (options.wandb or options.logger):
        if options.log_dir is not None:
            raise ValueError(f"log-dir: expected --logger or --wandb with it, got {options.log_dir!r} alone")
        return

    from lpips_lightning.runs.loggers import check_run_loggers

    check_run_loggers(options.logger or (), options.wandb, options.log_dir or "outputs")


def config_of(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What the command line says about a measurement, for `log_scores`: not where it runs, and where it writes.

    Args:
        options: The parsed command line.
        **more: Further values, such as the fingerprint of the network.
    """
    others = {"force", "out", *LAUNCH_OPTIONS, *LOGGER_OPTIONS}
    given = {name: value for name, value in vars(options).items() if name not in others and not callable(value)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in (given | more).items()}


def log_scores(
    options: argparse.Namespace,
    scores: Mapping[str, float],
    config: Mapping[str, Any],
    name: str,
    console: Console | None = None,
) -> None:
    """Log the scores of a run to the loggers of the command line; on rank 0, after `check_loggers`.

    A logger that fails does not lose the run: a warning says why.

    Args:
        options: The parsed command line.
        scores: Scores by name, such as ``compare/lpips_mean``.
        config: What was measured: options and fingerprints.
        name: Of the command, such as ``compare``: the folder of csv and tensorboard, the project of wandb.
        console: Where to print the places of the logs; None for standard output.
    """
    if not (options.wandb or options.logger):
        return

    from lpips_lightning.io.console import Console
    from lpips_lightning.runs.loggers import log_run

    places = log_run(options.logger or (), options.wandb, options.log_dir or "outputs", name, scores, config)
    for place in places:
        line = f"Logged to {place}"
        (console or Console()).print(line, highlight=False, markup=False, soft_wrap=True)
