"""The command ``lpips-lightning correlate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from lpips_lightning.cli.launch import add_launch_options, launch_of
from lpips_lightning.cli.loggers import add_logger_options, check_loggers, config_of, log_scores
from lpips_lightning.cli.options import add_network_options, choose_device, network_options, require_network
from lpips_lightning.io.arguments import ArgumentParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import Console
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import name_streams
from lpips_lightning.io.tables import write_table

if TYPE_CHECKING:
    from torch import Tensor

    from lpips_lightning.evaluation.opinion_scores import FrameDistance, OpinionScore
    from lpips_lightning.functional.correlation import Correlations, Score
    from lpips_lightning.runs.launch import Launch


def main(args: list[str] | None = None) -> None:
    """Print the correlation of LPIPS with the mean opinion scores in a CSV.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.
    """
    options = parser().parse_args(args)
    console = Console(stderr=name_streams(options, inputs=["file"], outputs=["csv"]))
    launch = launch_of(options)
    if launch is not None:
        _run_on_ranks(options, launch, console)
        return
    job = _prepare(options)

    from lpips_lightning.evaluation.opinion_scores import measure

    device = choose_device(options.device)
    with progress_report("items") as report:
        found = {name: measure(job.opinions, one, device, report) for name, one in job.distances().items()}
    _finish(options, job, found, console)


@dataclass(frozen=True)
class _Job:
    """What is to be measured."""

    opinions: Sequence[OpinionScore]
    scores: Tensor
    names: Sequence[str] | None
    distances: Callable[[], dict[str, Any]]


def _prepare(options: argparse.Namespace) -> _Job:
    """Check all arguments, build the network and the methods, and read the scores."""
    if options.csv:
        check_output_path(options.csv, "csv", replace=options.force)
    check_loggers(options)
    network_options(options)

    import torch

    from lpips_lightning.evaluation.opinion_scores import read_opinion_scores
    from lpips_lightning.functional.correlation import check_scores
    from lpips_lightning.runs.once import PerProcess

    distances = PerProcess(_distances, options)
    distances()
    opinions = read_opinion_scores(options.file, options.folder, options.columns.split(","), options.group)
    scores = torch.tensor([opinion.score for opinion in opinions], dtype=torch.float64)
    names = [opinion.group for opinion in opinions] if options.group else None
    check_scores(scores, names)  # before the long measurement
    return _Job(opinions, scores, names, distances)


def _distances(options: argparse.Namespace) -> dict[str, Any]:
    """The network, named ``""``, and the methods by name."""
    from lpips_lightning.cli.evaluate import require_backbones
    from lpips_lightning.evaluation.methods import parse_method
    from lpips_lightning.network import LPIPS

    require_network(options)
    require_backbones(options.also, "--also")
    methods = {name: parse_method(name) for name in dict.fromkeys(options.also)}
    return {"": LPIPS(options.net, **network_options(options)), **methods}


def _run_on_ranks(options: argparse.Namespace, launch: Launch, console: Console) -> None:
    """As `main`, with the references on the ranks of a Trainer; rank 0 prints and saves."""
    from lpips_lightning.runs import engine
    from lpips_lightning.runs.opinions import OpinionsWork, by_alpha, measured_rows

    jobs: list[_Job] = []

    def make() -> OpinionsWork:
        jobs.append(job := _prepare(options))
        return OpinionsWork(job.distances, job.opinions, by_alpha(job.distances()), report)

    trainer = launch.trainer()
    with progress_report("items") as report:
        results = engine.run(trainer, make, workers=options.workers or 0)
    if results is not None:
        _finish(options, jobs[0], measured_rows(results, jobs[0].opinions), console)


def _finish(
    options: argparse.Namespace, job: _Job, found: Mapping[str, tuple[Tensor, list[FrameDistance]]], console: Console
) -> None:
    """Correlate, print and save."""
    from lpips_lightning.functional.correlation import by_group, correlate

    net, *methods = job.distances().values()
    (distances, frames), scores, names = found[""], job.scores, job.names
    also = {name: found[name] for name in dict.fromkeys(options.also)}
    overall = correlate(distances, scores, options.score)
    groups = by_group(distances, scores, names, options.score) if names else {}
    others = {name: _others(values, scores, names, options.score) for name, (values, _) in also.items()}
    sense = "higher is better, LPIPS is negated" if options.score == "mos" else "higher is worse, like LPIPS"
    console.print(f"LPIPS against mean opinion scores ({options.score}: {sense})", soft_wrap=True, highlight=False)
    console.print(_table(overall, groups, others))
    for line in (net.fingerprint, *(method.note for method in methods if method.note)):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if overall.srcc < 0:
        other = {"mos": "dmos", "dmos": "mos"}[options.score]
        hint = f"Negative SRCC: if these scores are {other}, use --score {other}."
        console.print(hint, style="yellow", highlight=False)
    if options.csv:
        _write_frames(Path(options.csv), frames, {name: by_frame for name, (_, by_frame) in also.items()})
    config = config_of(options, fingerprint=net.fingerprint, notes=[method.note for method in methods if method.note])
    log_scores(options, _logged(overall, groups, others), config, "correlate", console)


def _logged(
    overall: Correlations,
    groups: dict[str, Correlations],
    others: dict[str, tuple[Correlations, Correlations | None]],
) -> dict[str, float]:
    """The numbers of the table by name: of all rows together, of means over groups, and by group."""
    from lpips_lightning.functional.correlation import mean_over_groups

    rows = {"lpips": overall, **{f"group/{name}": one for name, one in groups.items()}}
    rows |= {"mean_over_groups/lpips": mean_over_groups(groups)} if groups else {}
    for name, (together, mean) in others.items():
        rows |= {name: together} | ({} if mean is None else {f"mean_over_groups/{name}": mean})
    kinds = ("srcc", "plcc", "krcc")
    return {f"correlate/{name}/{kind}": getattr(row, kind) for name, row in rows.items() for kind in kinds}


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser(
        "lpips-lightning correlate",
        description="Correlate LPIPS with mean opinion scores: SRCC, KRCC, and PLCC after a 4-parameter logistic fit.",
    )
    add = result.add_argument
    add(
        "file",
        help="CSV with columns reference, distorted, score; paths of images or folders of frames; - for stdin",
    )
    add(
        "--folder",
        "--root",
        metavar="DIR",
        help="folder that the paths are relative to (default: the CSV's; for stdin, the current one)",
    )
    columns = "reference,distorted,score"
    add("--columns", default=columns, metavar="A,B,C", help="the CSV's names of these columns (default: %(default)s)")
    add(
        "--score",
        choices=("mos", "dmos"),
        default="mos",
        help="mos: higher is better; dmos: higher is worse (default: mos)",
    )
    add("--group", metavar="COLUMN", help="also correlate within each group, and average over groups")
    add(
        "--also",
        action="append",
        default=[],
        metavar="METHOD",
        help="another row: a method of `bapps evaluate` (vgg, ssim, cvvdp, ...), of images as they are (repeatable)",
    )
    add("--csv", metavar="FILE", help="write the distance of every image or frame to this CSV; - for stdout")
    add("--force", action="store_true", help="replace an existing --csv")
    add_network_options(result)
    add_launch_options(result.add_argument_group("several devices"))
    add_logger_options(result.add_argument_group("loggers"))
    return result


def _others(
    distances: Tensor, scores: Tensor, names: Sequence[str] | None, score: Score
) -> tuple[Correlations, Correlations | None]:
    """Correlations of another method: of all rows, and the mean over groups if there are groups."""
    from lpips_lightning.functional.correlation import by_group, correlate, mean_over_groups

    overall = correlate(distances, scores, score)
    return overall, mean_over_groups(by_group(distances, scores, names, score)) if names else None


def _table(
    overall: Correlations,
    groups: dict[str, Correlations],
    others: dict[str, tuple[Correlations, Correlations | None]],
) -> Table:
    from lpips_lightning.functional.correlation import mean_over_groups

    table = Table()
    table.add_column("")
    for heading in ("n", "SRCC", "PLCC", "KRCC"):
        table.add_column(heading, justify="right")
    rows = [*groups.items(), ("all together", overall)]
    if groups:
        rows.insert(-1, ("mean over groups", mean_over_groups(groups)))
        rows.insert(-1, ("mean by Fisher's z and size", mean_over_groups(groups, fisher=True)))
    for name, (together, mean) in others.items():
        rows += [] if mean is None else [(f"{name}: mean over groups", mean)]
        rows.append((f"{name}: all together", together))
    for name, row in rows:
        style = "" if name in groups else "bold"
        table.add_row(Text(name), str(row.count), *(f"{x:.4f}" for x in (row.srcc, row.plcc, row.krcc)), style=style)
    return table


def _write_frames(path: Path, frames: Sequence[FrameDistance], others: Mapping[str, Sequence[FrameDistance]]) -> None:
    columns = [frames, *others.values()]
    rows = (
        [one[0].reference, one[0].distorted, one[0].frame, *(f"{other.distance:.9g}" for other in one)]
        for one in zip(*columns, strict=True)
    )
    write_table(path, ["reference", "distorted", "frame", "lpips", *others], rows)
