"""The command ``lpips-lightning``: hands a subcommand everything after its name, and says errors in one sentence."""

import difflib
import os
import sys
from dataclasses import dataclass
from importlib import import_module

from rich.console import Console
from rich.table import Table

__all__ = ["COMMANDS", "Command", "main"]

TRACEBACK_VARIABLE = "LPIPS_LIGHTNING_TRACEBACK"


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: Its line on the help screen.
        target: ``"module:function"``, imported when it is called with the arguments after its name.
    """

    summary: str
    target: str


_RECIPES = "lpips_lightning.recipes"
COMMANDS = {
    "demo": Command("superresolution in minutes: a table and a picture", f"{_RECIPES}.demo:main"),
    "superresolution": Command("enlarge pictures: fit, validate, test, predict", f"{_RECIPES}.superresolution:main"),
    "frame-interpolation": Command(
        "the frame between two: fit, validate, test, predict", f"{_RECIPES}.frame_interpolation:main"
    ),
    "distillation": Command("teach a small trunk the distances of a large one", f"{_RECIPES}.distillation:main"),
    "calibration": Command("teach LPIPS from judgements: fit, validate, test, fast", f"{_RECIPES}.calibration:main"),
    "bapps": Command("evaluate against people; make a judged data set", "lpips_lightning.bapps_cli:main"),
    "correlate": Command("LPIPS against opinion scores: SRCC, PLCC, KRCC", "lpips_lightning.correlate_cli:main"),
    "kmeans": Command("a trunk without labels, by stacked k-means", "lpips_lightning.kmeans:main"),
    "weights": Command("list those that are here; doctor checks them", "lpips_lightning.cli:weights"),
}
"""Subcommands by name, in the order of the help screen."""


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Returns:
        The exit code: 0, 2 after bad input, 130 after an interrupt; a subcommand may exit with its own.
    """
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        _help()
        return 0
    if name in ("-V", "--version"):
        from lpips_lightning import __version__

        Console().print(f"lpips_lightning {__version__}", highlight=False)
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "lpips-lightning --help lists them"
        return _fail(f"expected a subcommand, got {name!r}; {hint}")
    return _run(COMMANDS[name], rest)


def weights(args: list[str]) -> None:
    """Show the weights that ship and those that are looked for.

    Args:
        args: ``["list"]`` or ``["doctor"]``.

    Raises:
        SystemExit: With code 1 if ``doctor`` finds damage, with 2 on bad input.
    """
    import argparse

    parser = argparse.ArgumentParser("lpips-lightning weights", description="Weights of LPIPS on this machine.")
    parser.add_argument("action", choices=("list", "doctor"), help="list them, or read and check every file")
    if parser.parse_args(args).action == "list":
        _list_weights(Console())
    elif not _check_weights(Console()):
        raise SystemExit(1)


def _list_weights(console: Console) -> None:
    from lpips_lightning.backbones import BACKBONES
    from lpips_lightning.weights import CALIBRATIONS, TRUNK_FILES
    from lpips_lightning.weights.lookup import FOLDER_VARIABLE, trunk_places

    shipped = Table(title="Calibrations, which ship", title_justify="left")
    for heading in ("net", "version", "file", "licence", "sha256"):
        shipped.add_column(heading, no_wrap=heading != "licence")
    for (net_type, version), record in CALIBRATIONS.items():
        shipped.add_row(net_type, version, record.file, record.licence, record.sha256[:12])
    console.print(shipped)
    console.print("Trunks that are looked for", style="italic")
    for backbone in BACKBONES.values():
        trunk = TRUNK_FILES.get(backbone.builder)
        if trunk is not None:
            found = next((str(place) for place in trunk_places(backbone.builder) if place.is_file()), None)
            where = found or f"not on this machine; would be downloaded from {trunk.url}"
            line = f"{backbone.name}: torchvision {trunk.name}, {trunk.licence}: {where}"
            console.print(line, soft_wrap=True, highlight=False)
    folder = os.environ.get(FOLDER_VARIABLE) or "not set"
    console.print(f"{FOLDER_VARIABLE}, a folder to look in first: {folder}", highlight=False)


def _check_weights(console: Console) -> bool:
    """Read every file that is here, download nothing; whether all are whole."""
    import torch

    from lpips_lightning import LPIPS, __version__
    from lpips_lightning.backbones import BACKBONES
    from lpips_lightning.weights import CALIBRATIONS, EXAMPLES, WeightsError, load
    from lpips_lightning.weights.lookup import trunk_places

    console.print(f"lpips_lightning {__version__}, torch {torch.__version__}", highlight=False)
    whole = True
    for record in (*CALIBRATIONS.values(), EXAMPLES):
        try:
            load(record)
            verdict = "[green]whole[/green]"
        except WeightsError as error:
            whole, verdict = False, f"[red]{error}[/red]"
        console.print(f"{record.file}: {verdict}", soft_wrap=True, highlight=False)
    for backbone in BACKBONES.values():
        if backbone.own is None and not any(place.is_file() for place in trunk_places(backbone.builder)):
            verdict = "[yellow]its trunk is not on this machine[/yellow]"
        else:
            try:
                net = LPIPS(backbone.name)
                net.selfcheck()
                verdict = f"[green]{net.fingerprint}; golden distances reproduced[/green]"
            except WeightsError as error:
                whole, verdict = False, f"[red]{error}[/red]"
        console.print(f"{backbone.name}: {verdict}", soft_wrap=True, highlight=False)
    return whole


def _run(command: Command, args: list[str]) -> int:
    module, _, function = command.target.partition(":")
    try:
        getattr(import_module(module), function)(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get(TRACEBACK_VARIABLE) or not _is_users(error):
            raise
        return _fail(str(error))
    return 0


def _is_users(error: Exception) -> bool:
    """Whether the message says what to do: everything we raise on purpose, and files that cannot be opened."""
    from lpips_lightning.weights import WeightsError

    purposeful = (ValueError, OSError, ModuleNotFoundError, WeightsError)
    return isinstance(error, purposeful) or type(error).__name__ == "MisconfigurationException"


def _fail(sentence: str) -> int:
    Console(stderr=True).print(f"lpips-lightning: {sentence}", soft_wrap=True, highlight=False, markup=False)
    return 2


def _help() -> None:
    console = Console(highlight=False)
    console.print("Usage: lpips-lightning COMMAND ...\n\nLPIPS as a metric, a loss and ready recipes.\n")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, command in COMMANDS.items():
        table.add_row(f"  [bold]{name}[/bold]", command.summary)
    console.print(table)
    console.print("\nlpips-lightning COMMAND --help says more; --version the version.")
    console.print(f"{TRACEBACK_VARIABLE}=1 shows where an error came from.")
