"""``lpips-lightning bapps evaluate``: the paper's Table 5 for any methods, on BAPPS or on your own judgments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lpips_lightning.cli.options import add_device_option, choose_device
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.progress import progress_report

if TYPE_CHECKING:
    from torch.utils.data import Dataset

_DESCRIPTION = """How often do distances agree with people?

METHOD is a network (alex, vgg, squeeze, embedded), calibrated; or one with a variant: alex:baseline, alex:random,
alex:calibration=FILE, alex:weights=FILE, alex:kmeans=FILE; or l2, l2-lab, psnr, ssim, ms-ssim, fsim."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="what to measure (default: embedded l2 ssim)")
    parser.add_argument("--root", metavar="DIR", help="BAPPS, or a data set that `bapps make` wrote")
    parser.add_argument("--sets", nargs="*", metavar="SET", help="2AFC sets (default: all that are there)")
    parser.add_argument("--jnd-sets", nargs="*", metavar="SET", help="JND sets (default: all that are there)")
    parser.add_argument("--csv", metavar="FILE", help="judgments of your own: ref, p0, p1, votes_p0, votes_p1 or judge")
    parser.add_argument("--images", metavar="DIR", help="the images that --csv names")
    parser.add_argument("--size", type=int, default=64, metavar="PIXELS", help="resize to (default 64; 0 leaves as is)")
    parser.add_argument(
        "--distances",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="score distances in a CSV, or a folder of such: path, d0, d1, judge (repeatable)",
    )
    parser.add_argument("--disagree", nargs=2, metavar="METHOD", help="draw the pairs these two disagree on most")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="of the bootstrap (default 1000)")
    parser.add_argument("--batch-size", type=int, default=50, metavar="N", help="(default 50)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read (default 0)")
    add_device_option(parser)
    parser.add_argument(
        "--out", default="outputs/evaluation", metavar="DIR", help="for the files (default %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and save.

    Args:
        args: As `add_arguments` makes them.

    Raises:
        ValueError: If an argument is off, or there is nothing to score.
        FileNotFoundError: If a file is missing.
    """
    check_output_path(args.out, "out", folder=True)
    for argument, least in (("batch_size", 1), ("workers", 0), ("resamples", 1)):
        if getattr(args, argument) < least:
            raise ValueError(f"{argument.replace('_', '-')}: expected at least {least}, got {getattr(args, argument)}")

    from lpips_lightning.evaluation import benchmark as evaluation
    from lpips_lightning.evaluation import report as evaluation_report
    from lpips_lightning.evaluation.methods import parse_method

    given = dict(_named(text) for text in args.distances)
    sets = _sets(args)
    if args.methods and not sets:
        raise ValueError("root: expected --root DIR or --csv FILE with --images DIR to measure methods on, got neither")
    if not sets and not given:
        raise ValueError("methods: expected --root, --csv or --distances, got nothing to score")
    names = list(dict.fromkeys([*args.methods, *(args.disagree or [])])) or (["embedded", "l2", "ssim"] if sets else [])
    if clash := sorted(set(names) & set(given)):
        raise ValueError(f"distances: expected names that are no method's, got {clash[0]!r} for both")
    methods = [parse_method(name) for name in names]
    device = choose_device(args.device)
    with progress_report("items") as report:
        measured = evaluation.measure(methods, sets, args.batch_size, args.workers, device, report)
    measured |= {name: evaluation.read_distances(path) for name, path in given.items()}
    papers = {method.name: method.paper for method in methods}
    scores = evaluation.score(measured, papers, args.resamples)
    out, console = Path(args.out), Console()
    kinds = [kind for kind in evaluation.KINDS if any(cell.kind == kind for cell in scores)]
    for kind in kinds:  # before anything is written: a full disk takes no number away
        console.print(evaluation_report.as_table(scores, kind))
    for kind in kinds:
        evaluation_report.save_bars(scores, out / f"{kind}.png", kind)
    evaluation_report.save_csv(scores, out / "scores.csv")
    evaluation_report.save_text(evaluation_report.as_markdown(scores), out / "scores.md")
    if len(kinds) == 2:
        evaluation_report.save_scatter(scores, out / "2afc_jnd.png")
    if args.disagree:
        pair = (args.disagree[0], args.disagree[1])
        evaluation_report.save_disagreements(measured, pair, sets, out / "disagreements.png")
    console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)


def _sets(args: argparse.Namespace) -> dict[str, Dataset[dict[str, Any]]]:
    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
    from lpips_lightning.data.triplets import TripletDataset, read_triplets

    size = args.size or None
    found: dict[str, Dataset[dict[str, Any]]] = {}
    if bool(args.csv) != bool(args.images):
        raise ValueError("csv: expected --csv FILE together with --images DIR, got one of them")
    if args.csv:
        found["triplets"] = TripletDataset(read_triplets(args.csv, args.images), args.images, size)
    if args.root:
        root = Path(args.root)
        for name in _chosen(root / "2afc/val", args.sets):
            found[name] = TwoAFCDataset(root, "val", [name], size)
        for name in _chosen(root / "jnd/val", args.jnd_sets):
            found[f"jnd/{name}"] = JNDDataset(root, [name], size)
        if not found:
            raise FileNotFoundError(f"root: expected sets in 2afc/val or jnd/val of '{root}', got none")
    return found


def _chosen(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    """The sets asked for, or all that are there, the paper's in its order first."""
    from lpips_lightning.evaluation.table5 import PAPER_SETS

    if wanted is not None:
        return list(wanted)
    here = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    known = [name for name in PAPER_SETS if name in here]
    return [*known, *sorted(set(here) - set(known))]


def _named(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ValueError(f"distances: expected NAME=FILE, got {text!r}")
    return name, path
