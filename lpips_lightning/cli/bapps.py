"""The command ``lpips-lightning bapps``."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli import evaluate as evaluate_cli
from lpips_lightning.io.arguments import NETS, ArgumentParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import is_stream, name_streams

if TYPE_CHECKING:
    from lpips_lightning.data.bapps_generate import Distance
    from lpips_lightning.data.cnn_distortions import DistortionFamily
    from lpips_lightning.data.observer import SimulatedObserver

_JUDGES = (*NETS, "l2", "none")


def main(args: list[str] | None = None) -> None:
    """Run ``bapps evaluate``, ``bapps make`` or ``bapps sheet``.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    options = parser().parse_args(args)
    options.run(options)


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser("lpips-lightning bapps", description="Evaluate on BAPPS, or generate such data.")
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_evaluate, _add_make, _add_sheet):
        add(commands)
    return result


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="agreement of distances with judgments (the paper's Table 5)")
    evaluate_cli.add_arguments(parser)
    parser.set_defaults(run=evaluate_cli.run)


def _add_make(commands: Any) -> None:
    text = "generate a data set in BAPPS' layout from any photographs, with the paper's distortions"
    parser = commands.add_parser("make", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=_make)
    _add_folder(parser, "folder of photographs, searched recursively")
    parser.add_argument("--out", required=True, help="output folder, new or empty")
    parser.add_argument("--force", action="store_true", help="replace the data set in --out")
    for part, count, what in (("train", 1000, "training triplets"), ("val", 200, "validation triplets")):
        parser.add_argument(f"--{part}", type=int, default=count, help=f"{what} (default: %(default)s)")
    parser.add_argument("--jnd", type=int, help="JND pairs (default: 200; 0 with --judge none)")
    parser.add_argument(
        "--judge",
        choices=_JUDGES,
        default="embedded",
        help="distance that judges; none: write a CSV for people to fill in (default: %(default)s)",
    )
    parser.add_argument("--weights", help="backbone weights of --judge: a file or a folder")
    _add_family(parser, ("traditional", "cnn", "both"), "; both: half of the items in a set of each")
    parser.add_argument(
        "--observers", choices=("simulated",), help="judgments are votes by observers of --judge with noise and lapses"
    )
    add_observer_options(parser)
    parser.add_argument("--set", dest="set_name", help="name of the set (default: that of the family)")
    parser.add_argument("--size", type=int, default=64, help="patch side in pixels (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed; equal seeds give equal files (default: %(default)s)"
    )


def _add_family(parser: argparse.ArgumentParser, choices: Sequence[str], more: str = "") -> None:
    parser.add_argument(
        "--family",
        choices=choices,
        default="traditional",
        help=f"distortions: the 20 traditional ones, or cnn: trained networks{more} (default: %(default)s)",
    )
    parser.add_argument("--cnn", metavar="FILE", help="trained networks, from `lpips-lightning cnn-distortions fit`")


def _family(options: argparse.Namespace) -> DistortionFamily | None:
    """The trained networks, if the family has some; `make_bapps` says what is missing."""
    from lpips_lightning.data.cnn_distortions import COMMAND, read_family

    if options.cnn is None and options.family != "traditional":
        raise ValueError(f"cnn: expected --cnn FILE with --family {options.family}, got none; `{COMMAND}` writes one")
    if options.cnn is not None and options.family == "traditional":
        raise ValueError("family: expected --family cnn with --cnn FILE, got traditional")
    return None if options.cnn is None else read_family(options.cnn)


def add_observer_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the options of simulated observers to a parser, or to a group of one."""
    add = parser.add_argument
    add("--noise", type=float, help="of observers: standard deviation of log distances (default: 0.75)")
    add("--lapse", type=float, help="of observers: probability of a random answer (default: 0.02)")
    add("--threshold", type=float, help="of observers: just noticeable distance (default: median of the pairs)")


def observer_options(options: argparse.Namespace) -> dict[str, float]:
    """The given options of `add_observer_options`."""
    given = {name: getattr(options, name) for name in ("noise", "lapse", "threshold")}
    return {name: value for name, value in given.items() if value is not None}


def _add_folder(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--folder", "--images", required=True, metavar="DIR", help=what)


def _make(options: argparse.Namespace) -> None:
    from lpips_lightning.data.bapps_generate import RECORD, make_bapps

    is_data_set = Path(options.out, RECORD).is_file()  # make_bapps replaces no other folder
    check_output_path(options.out, "out", folder=True, replace=options.force or not is_data_set)
    observer = _observer(options)
    other = ("run", "judge", "weights", "observers", "noise", "lapse", "threshold", "force", "cnn")
    arguments = {name: value for name, value in vars(options).items() if name not in other}
    arguments |= {"cnn": _family(options), "distance": judging_distance(options.judge, options.weights)}
    with progress_report("items") as report:
        make_bapps(**arguments, observer=observer, replace=options.force, report=report)
    console = Console(highlight=False, soft_wrap=True)
    if options.judge == "none":
        console.print(f"Written to {options.out}; fill in the votes of judge_train.csv and judge_val.csv", markup=False)
        return
    judges = f"{options.judge}, votes of simulated observers" if observer else options.judge
    console.print(f"Written to {options.out}, judged by {judges}", markup=False)
    console.print(f"Next: lpips-lightning bapps evaluate --folder {shlex.quote(options.out)}", markup=False)


def _observer(options: argparse.Namespace) -> SimulatedObserver | None:
    from lpips_lightning.data.observer import SimulatedObserver

    given = observer_options(options)
    if options.observers is None:
        if given:
            raise ValueError(f"{next(iter(given))}: expected --observers simulated with this option, got none")
        return None
    if options.judge == "none":
        raise ValueError("observers: expected a --judge that is a distance, got none")
    return SimulatedObserver(**given)


def judging_distance(judge: str, weights: str | None) -> Distance | None:
    """The distance that judges generated data.

    Args:
        judge: Name of a network, ``"l2"`` or ``"none"``.
        weights: Backbone weights of the network; None for the default ones.

    Raises:
        WeightsError: If its weights are missing and cannot be downloaded.
    """
    from lpips_lightning.backbones.offline import require_backbone
    from lpips_lightning.data.bapps_generate import l2
    from lpips_lightning.network import LPIPS

    if judge == "none":
        return None
    require_backbone(judge, "--judge", weights)
    return l2 if judge == "l2" else LPIPS(judge, weights=weights)


def _add_sheet(commands: Any) -> None:
    text = "draw a contact sheet of every distortion at 5 strengths, or of every network of a family"
    parser = commands.add_parser("sheet", help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=_sheet)
    _add_folder(parser, "folder of photographs, or one photograph")
    _add_family(parser, ("traditional", "cnn"))
    parser.add_argument("--out", required=True, help="PNG to write; - for stdout")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")


def _sheet(options: argparse.Namespace) -> None:
    console = Console(stderr=name_streams(options, outputs=["out"]))
    for path in [options.out] if is_stream(options.out) else [options.out, Path(options.out).with_suffix(".pdf")]:
        check_output_path(path, "out", replace=options.force)

    from lpips_lightning.data.distortion_sheet import write_sheet
    from lpips_lightning.data.family_sheet import photograph_patches, write_family_sheet

    family = _family(options)
    if family is None:
        files = write_sheet(options.folder, options.out, options.seed)
    else:
        files = write_family_sheet(family, photograph_patches(options.folder), options.out, options.seed)
    console.print(f"Written to {' and '.join(map(str, files))}", highlight=False, markup=False, soft_wrap=True)
