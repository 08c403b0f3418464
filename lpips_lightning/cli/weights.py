"""The command ``lpips-lightning weights``."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.progress import progress_report


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser("lpips-lightning weights", description="Weights of LPIPS on this machine.")
    actions = made.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="those that ship, and where the others are found")
    actions.add_parser("doctor", help="read and check every file; code 1 if one is damaged")
    fetch = actions.add_parser(
        "fetch",
        help="download backbones into a folder",
        description="Download torchvision's ImageNet weights (alex 233 MB, vgg 528 MB, squeeze 5 MB) into a folder"
        " that LPIPS_LIGHTNING_WEIGHTS can name; for machines without a network. What is there and whole is left as"
        " it is, what stopped is gone on with, and every sha256 is checked.",
    )
    fetch.add_argument("--to", required=True, metavar="DIR", help="the folder")
    fetch.add_argument("--net", default="alex,vgg,squeeze", metavar="A,B", help="which (default: %(default)s)")
    fetch.add_argument(
        "--mirror",
        "--from",
        metavar="URL",
        help="where the files lie under torchvision's names, instead of download.pytorch.org: https://, file:// or a"
        " folder",
    )
    return made


def main(args: list[str] | None = None) -> None:
    """Show, check or fetch weights.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        SystemExit: With code 1 if ``doctor`` finds damage, with 2 on bad input.
        ValueError: If an argument is off.
        OSError: If a download fails.
        WeightsError: If what was downloaded is damaged.
    """
    options = parser().parse_args(args)
    console = Console(highlight=False, soft_wrap=True, emoji=False)
    if options.action == "list":
        _list(console)
    elif options.action == "fetch":
        _fetch(options, console)
    elif not _check(console):
        raise SystemExit(1)


def _list(console: Console) -> None:
    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.weights import BACKBONE_FILES, CALIBRATIONS
    from lpips_lightning.weights.lookup import FOLDER_VARIABLE, backbone_places

    shipped = Table(title="Calibrations, which ship", title_justify="left")
    for heading in ("net", "version", "file", "license", "sha256"):
        shipped.add_column(heading, no_wrap=heading != "license")
    for (net_type, version), record in CALIBRATIONS.items():
        shipped.add_row(net_type, version, record.file, record.license, record.sha256[:12])
    Console(highlight=False).print(shipped)
    console.print("Backbones that are looked for", style="italic")
    for backbone in BACKBONES.values():
        official = BACKBONE_FILES.get(backbone.builder)
        if official is not None:
            found = next((str(place) for place in backbone_places(backbone.builder) if place.is_file()), None)
            where = found or f"not on this machine; would be downloaded from {official.url}"
            console.print(f"{backbone.name}: torchvision {official.name}, {official.license}: {where}", markup=False)
    folder = os.environ.get(FOLDER_VARIABLE) or "not set"
    console.print(f"{FOLDER_VARIABLE}, a folder to look in first: {folder}", markup=False)


def _check(console: Console) -> bool:
    """Read every file that is here, download nothing; whether all are whole."""
    import torch

    from lpips_lightning import __version__
    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.network import LPIPS
    from lpips_lightning.weights import CALIBRATIONS, EXAMPLES, WeightsError, load
    from lpips_lightning.weights.lookup import backbone_places

    def say(name: str, verdict: str, style: str) -> None:
        console.print(Text.assemble(f"{name}: ", (verdict, style)))

    say(f"lpips_lightning {__version__}", f"torch {torch.__version__}", "")
    whole = True
    for record in (*CALIBRATIONS.values(), EXAMPLES):
        try:
            load(record)
            say(record.file, "whole", "green")
        except WeightsError as error:
            whole = False
            say(record.file, str(error), "red")
    for backbone in BACKBONES.values():
        if backbone.default_weights is None and not any(place.is_file() for place in backbone_places(backbone.builder)):
            say(backbone.name, "its backbone is not on this machine", "yellow")
            continue
        try:
            net = LPIPS(backbone.name)
            net.selfcheck()
            say(backbone.name, f"{net.fingerprint}; golden distances reproduced", "green")
        except WeightsError as error:
            whole = False
            say(backbone.name, str(error), "red")
    return whole


def _fetch(options: argparse.Namespace, console: Console) -> None:
    check_output_path(options.to, "to", folder=True)

    from lpips_lightning.backbones.definition import BACKBONES
    from lpips_lightning.backbones.fetch import fetch_backbone
    from lpips_lightning.weights import BACKBONE_FILES
    from lpips_lightning.weights.lookup import FOLDER_VARIABLE

    known = {
        record.name: BACKBONE_FILES[record.builder] for record in BACKBONES.values() if record.builder in BACKBONE_FILES
    }
    names = list(dict.fromkeys(name.strip() for name in options.net.split(",")))
    if unknown := [name for name in names if name not in known]:
        ships = "; it ships, there is nothing to fetch" if unknown[0] == "embedded" else ""
        raise ValueError(f"net: expected some of {', '.join(known)}, with commas between, got {unknown[0]!r}{ships}")
    folder = Path(options.to).expanduser().absolute()
    with progress_report() as report:
        for name in names:
            fetched = fetch_backbone(known[name], folder, options.mirror, report)
            console.print(f"{name}: {'fetched' if fetched else 'is there'}: {folder / known[name].file}", markup=False)
    console.print(f"export {FOLDER_VARIABLE}={shlex.quote(str(folder))}", markup=False)
    console.print("lpips-lightning weights doctor   # with it set, checks every file", markup=False)
