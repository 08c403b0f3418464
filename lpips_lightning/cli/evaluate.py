"""The command ``lpips-lightning bapps evaluate``: the paper's Table 5 for any method, on BAPPS or your own data."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli.launch import add_launch_options, launch_of
from lpips_lightning.cli.loggers import add_logger_options, check_loggers, config_of, log_scores
from lpips_lightning.cli.options import add_device_option, choose_device
from lpips_lightning.io.arguments import integers
from lpips_lightning.io.atomic import choose_output_folder
from lpips_lightning.io.console import Console
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import STDIN, name_streams

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
    from lpips_lightning.data.judges import Judge
    from lpips_lightning.evaluation.benchmark import Judged, Score
    from lpips_lightning.evaluation.methods import Method
    from lpips_lightning.runs.launch import Launch

_OUT = "outputs/evaluation"
_FIGURES = ("2afc", "jnd", "2afc_jnd", "disagreements")
_FILES = ("scores.csv", "scores.md", *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")))
_DESCRIPTION = """Measure how often distances agree with judgments, of people or of a metric.

METHOD is a calibrated network (alex, vgg, squeeze, embedded, alex-st, vgg-st); a network with a variant: alex:baseline,
alex:random, alex:calibration=FILE, alex:weights=FILE, alex:kmeans=FILE; another distance on its features:
alex:mean_pool, alex:style, alex:lpips_plus, alex:lpips+0.5*style; dists; or l2, l2-lab, psnr, ssim, ms-ssim, fsim. PSNR
and SSIM are of RGB on [0, 1], without border crop; SSIM has a Gaussian window of 11x11, sigma 1.5, as in torchmetrics.
cvvdp is ColorVideoVDP (extra cvvdp), as 10 - JOD on its display standard_4k; cvvdp:DISPLAY on another, such as
standard_fhd.

The first row is the agreement of the judges with themselves. It is called "human" for BAPPS, recognized by the names of
its sets and their numbers of judgments, which alone has the paper's values beside it; "judge: NAME" where a metric
judged (data of bapps make); "judges" for all other data.

--shifts measures rank flips as Ghildyal and Liu (2022) do: all images are cropped by 3 columns, or by the shift if that
is larger; both patches are then cropped N columns further right, the reference is not. A triplet flips if the other
patch is closer then; a tie before or after counts one half."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.description, parser.formatter_class = _DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="methods to evaluate (default: embedded l2 ssim)")
    parser.add_argument(
        "--folder",
        "--root",
        metavar="DIR",
        help="folder of BAPPS, or of a data set from `bapps make`; with --csv, of the images that it names",
    )
    parser.add_argument("--sets", nargs="*", metavar="SET", help="2AFC sets (default: all present)")
    parser.add_argument("--jnd-sets", nargs="*", metavar="SET", help="JND sets (default: all present)")
    parser.add_argument(
        "--csv", metavar="FILE", help="your own judgments: ref, p0, p1, and votes_p0, votes_p1 or judge; - for stdin"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="folder of the images that --csv names, if --folder is a data set"
    )
    parser.add_argument(
        "--size", type=int, default=64, metavar="PIXELS", help="resize images to this side (default 64; 0: no resizing)"
    )
    parser.add_argument(
        "--distances",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="score distances from a CSV, or a folder of CSVs, with columns path, d0, d1, judge (repeatable)",
    )
    parser.add_argument(
        "--disagree", nargs=2, metavar="METHOD", help="draw the pairs on which these two methods disagree most"
    )
    parser.add_argument(
        "--shifts",
        type=integers,
        default=(),
        metavar="N,N",
        help="also measure how often shifting both patches by so many pixels changes the answer, such as 1,2,3",
    )
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (default 1000)")
    parser.add_argument(
        "--batch-size", type=int, default=50, metavar="N", help="triplets or pairs per batch (default 50)"
    )
    parser.add_argument(
        "--num-workers",
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="worker processes that read images (default 0)",
    )
    add_device_option(parser)
    add_launch_options(parser.add_argument_group("several devices"), workers=False)
    add_logger_options(parser.add_argument_group("loggers"))
    parser.add_argument("--out", metavar="DIR", help=f"output folder (default {_OUT}, or {_OUT}-2, ... if that exists)")
    parser.add_argument("--force", action="store_true", help="replace existing results")


def run(args: argparse.Namespace) -> None:
    """Measure, print and save.

    Args:
        args: Parsed arguments of `add_arguments`.

    Raises:
        ValueError: If an argument is invalid, or there is nothing to score.
        FileNotFoundError: If a file is missing.
    """
    name_streams(args, inputs=["csv"])
    launch = launch_of(args)
    if launch is not None:
        _run_on_ranks(args, launch)
        return
    job = _prepare(args)

    from lpips_lightning.evaluation import benchmark as evaluation

    device = choose_device(args.device)
    with progress_report("items") as report:
        options = (args.batch_size, args.num_workers, device, report, args.shifts)
        measured = evaluation.measure(job.methods(), job.sets, *options)
    _finish(args, job, measured)


@dataclass(frozen=True)
class _Job:
    """What is to be measured, and where it goes."""

    out: Path
    external: Mapping[str, str]
    sets: Mapping[str, Dataset[dict[str, Any]]]
    judges: Mapping[str, Judge]
    methods: Callable[[], list[Method]]


def _prepare(args: argparse.Namespace) -> _Job:
    """Check all arguments, and build the methods."""
    out = choose_output_folder(args.out, _OUT, args.force, _FILES)
    for argument, least in (("batch_size", 1), ("num_workers", 0), ("resamples", 1)):
        if getattr(args, argument) < least:
            raise ValueError(f"{argument.replace('_', '-')}: expected at least {least}, got {getattr(args, argument)}")
    check_loggers(args)

    from lpips_lightning.data.judges import is_label
    from lpips_lightning.runs.once import PerProcess

    external = dict(_split_name(text) for text in args.distances)
    sets = _sets(args)
    judges = _judges(args, sets)
    if args.methods and not sets:
        raise ValueError("folder: expected --folder DIR, alone or with --csv FILE, to evaluate methods, got none")
    _check_shifts(args.shifts, sets)
    if not sets and not external:
        raise ValueError("methods: expected --folder or --distances, got nothing to score")
    names = list(dict.fromkeys([*args.methods, *(args.disagree or [])])) or (["embedded", "l2", "ssim"] if sets else [])
    if clash := sorted(name for name in external if name in names or is_label(name)):
        raise ValueError(f"distances: expected a name that is not among the methods or judges, got {clash[0]!r}")
    methods = PerProcess(_methods, names)
    methods()
    return _Job(out, external, sets, judges, methods)


def _methods(names: Sequence[str]) -> list[Method]:
    from lpips_lightning.evaluation.methods import parse_method

    require_backbones(names)
    return [parse_method(name) for name in names]


def _run_on_ranks(args: argparse.Namespace, launch: Launch) -> None:
    """As `run`, with the batches on the ranks of a Trainer; rank 0 prints and saves."""
    from lpips_lightning.runs import engine
    from lpips_lightning.runs.judgments import JudgmentsWork, judged_sets

    jobs: list[_Job] = []

    def make() -> JudgmentsWork:
        jobs.append(job := _prepare(args))
        return JudgmentsWork(job.methods, job.sets, args.batch_size, args.shifts, report)

    trainer = launch.trainer()
    with progress_report("items") as report:
        results = engine.run(trainer, make, workers=args.num_workers)
    if results is not None:
        _finish(args, jobs[0], judged_sets(results, jobs[0].sets, args.shifts))


def _finish(args: argparse.Namespace, job: _Job, measured: dict[str, dict[str, Judged]]) -> None:
    """Score, print and save."""
    from lpips_lightning.evaluation import benchmark as evaluation
    from lpips_lightning.evaluation import figures

    measured |= {name: evaluation.read_distances(path) for name, path in job.external.items()}
    methods = job.methods()
    paper_rows = {method.name: method.paper for method in methods}
    scores = evaluation.score(measured, paper_rows, args.resamples, judges=job.judges)
    notes = [method.note for method in methods if method.note]
    files = _print_and_save(scores, notes, job.out, flips=bool(args.shifts))
    if args.disagree:
        pair = (args.disagree[0], args.disagree[1])
        files += figures.save_disagreements(measured, pair, job.sets, job.out / "disagreements.png")
    written = f"Written to {job.out}: {', '.join(file.name for file in files)}"
    Console().print(written, highlight=False, markup=False, soft_wrap=True)
    logged = {f"bapps/{one.kind}/{one.set}/{one.method}": one.value for one in scores}  # per cent, as in the table
    log_scores(args, logged, config_of(args, notes=notes), "bapps")


def _print_and_save(scores: Sequence[Score], notes: Sequence[str], out: Path, flips: bool) -> list[Path]:
    from lpips_lightning.evaluation import benchmark as evaluation
    from lpips_lightning.evaluation import figures
    from lpips_lightning.evaluation import report as evaluation_report

    console = Console()
    kinds = [kind for kind in evaluation.KINDS if any(cell.kind == kind for cell in scores)]
    for kind in kinds:  # print before writing, so that a full disk loses no result
        console.print(evaluation_report.as_table(scores, kind))
    if flips:
        console.print(evaluation_report.as_flip_table(scores))
    for note in notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    evaluation_report.save_csv(scores, out / "scores.csv")
    evaluation_report.save_text("\n".join([evaluation_report.as_markdown(scores), *notes]), out / "scores.md")
    files = [out / "scores.csv", out / "scores.md"]
    for kind in kinds:
        files += figures.save_scores(scores, out / f"{kind}.png", kind)
    if len(kinds) == 2:
        files += figures.save_scatter(scores, out / "2afc_jnd.png")
    return files


def _check_shifts(shifts: Sequence[int], sets: Mapping[str, object]) -> None:
    if any(shift < 1 for shift in shifts):
        raise ValueError(f"shifts: expected pixels of at least 1, got {min(shifts)}")
    if shifts and all(name.startswith("jnd/") for name in sets):
        raise ValueError("shifts: expected --folder with sets of triplets, got none; pairs have no rank to flip")


def _sets(args: argparse.Namespace) -> dict[str, Dataset[dict[str, Any]]]:
    from lpips_lightning.data.triplets import TripletDataset, read_triplets

    size = args.size or None
    found: dict[str, Dataset[dict[str, Any]]] = {}
    images, root = _folders(args)
    if bool(args.csv) != bool(images):
        raise ValueError("csv: expected --csv FILE together with --folder DIR, got one of them")
    if args.csv and images:
        found["triplets"] = TripletDataset(read_triplets(args.csv, images), images, size)
    if root:
        found |= data_sets(root, args.sets, args.jnd_sets, size)
    return found


def data_sets(
    folder: str | Path, sets: Sequence[str] | None, jnd_sets: Sequence[str] | None, size: int | None
) -> dict[str, TwoAFCDataset | JNDDataset]:
    """The validation sets in the folder of a data set; the names of JND sets begin with ``jnd/``.

    Args:
        folder: Folder of the data set.
        sets: 2AFC sets; None for all that are there.
        jnd_sets: JND sets; None for all that are there.
        size: Side to resize images to; None: no resizing.

    Raises:
        FileNotFoundError: If a set is missing, or there is none.
    """
    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset

    found: dict[str, TwoAFCDataset | JNDDataset] = {}
    for name in _select_sets(Path(folder) / "2afc/val", sets):
        found[name] = TwoAFCDataset(folder, "val", [name], size)
    for name in _select_sets(Path(folder) / "jnd/val", jnd_sets):
        found[f"jnd/{name}"] = JNDDataset(folder, [name], size)
    if not found:
        raise FileNotFoundError(f"folder: expected sets in 2afc/val or jnd/val of '{folder}', got none")
    return found


def _folders(args: argparse.Namespace) -> tuple[str | None, str | None]:
    """The folder of the images that ``--csv`` names, and that of a data set."""
    if args.csv:
        return args.images or args.folder, args.images and args.folder
    return args.images, args.folder


def _judges(args: argparse.Namespace, sets: Mapping[str, object]) -> dict[str, Judge]:
    """Who judged, by set."""
    from lpips_lightning.data.judges import UNKNOWN, judged_by

    def judge(name: str) -> Judge:
        part = "jnd/val" if name.startswith("jnd/") else "2afc/val"
        return judged_by(_folders(args)[1] or "", part, name.removeprefix("jnd/"))

    return {name: UNKNOWN if args.csv and name == "triplets" else judge(name) for name in sets}


def require_backbones(methods: Sequence[str], option: str = "METHOD") -> None:
    """Download the backbones that methods need, and that are not on this machine; the message names the option."""
    from lpips_lightning.backbones.offline import require_backbone

    for method in methods:
        net_type, _, variant = method.partition(":")
        if variant in ("", "baseline") or variant.startswith("calibration="):
            require_backbone(net_type, option)


def _select_sets(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    """The requested sets, or all present: the paper's sets first, in its order."""
    from lpips_lightning.evaluation.table5 import PAPER_SETS

    if wanted is not None:
        return list(wanted)
    present = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    in_paper = [name for name in PAPER_SETS if name in present]
    return [*in_paper, *sorted(set(present) - set(in_paper))]


def _split_name(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if not name or not path:
        raise ValueError(f"distances: expected NAME=FILE, got {text!r}")
    return name, STDIN if path == "-" else path
