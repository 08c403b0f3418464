"""Large runs of ``lpips-lightning compare``: on the ranks of a Trainer, resumable, with failed pairs as rows."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli.launch import add_launch_options, is_launched, launch_or_one_device, workers_of
from lpips_lightning.cli.loggers import add_logger_options, check_loggers, config_of, log_scores
from lpips_lightning.cli.options import network_options, require_network
from lpips_lightning.io.arguments import Page
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import print_lines, print_notes
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.streams import name_streams

if TYPE_CHECKING:
    from lpips_lightning.comparison.fidelity import Score
    from lpips_lightning.perceptual_distance import PerceptualDistance
    from lpips_lightning.runs.journal import PairRow
    from lpips_lightning.runs.pairs import PairWork
    from lpips_lightning.runs.plans import Run
    from lpips_lightning.runs.results import Statistics
    from lpips_lightning.sources.base import PairSource

RUNS = Page(
    "runs",
    "lpips-lightning compare [options] A B --devices N ..., or --out DIR, --parquet FILE, --workers N, or LIST, SHARDS",
    "A large run: any of these options, a URL, a list, tar shards, torchrun or SLURM start one. Its numbers do not"
    " depend on devices and workers. A and B are two folders, with --pairs FILE also a list, or shards:"
    " 'a-{000..099}.tar' 'b-{000..099}.tar', or one set with both images, KEY.a.png and KEY.b.png. LIST is a CSV or"
    " Parquet file with columns a and b: paths or URLs. Everything may be a URL of fsspec: s3://, gs://, hf://,"
    " https://, zip://::x.zip. All options of --help go too, but --map, --map-raw, --mask, --erode, --tlp and --long.",
    "The folder of a run has the results so far. Killed anywhere, the same command goes on there, and measures at"
    " most one batch per device again. The tables have the rows in the order of the pairs, each pair once; of a pair"
    " that was measured twice, a row with a distance before one with an error, then the first. A pair that fails is a"
    " row with an error, the rest goes on, and the exit code is 3; if all fail, it is 2. With --out, --force replaces"
    " a finished run, or another one; an unfinished run of the same command goes on.",
)
_DEFAULT_OUT = "outputs/compare/run"
_STARTING = (
    *("devices", "num_nodes", "strategy", "accelerator", "workers", "out", "parquet", "columns", "folder"),
    *("benchmark", "retry_failed", "wandb", "logger", "log_dir"),
)
_BENCHMARK = 200  # pairs
_OUTPUTS = ("csv", "json", "parquet")
_INSTEAD = {
    "map": "compare the pairs to be drawn without it",
    "map_raw": "compare the pairs to be drawn without it",
    "map_max": "compare the pairs to be drawn without it",
    "mask": "compare without it",
    "erode": "compare without it",
    "tlp": "compare without it",
    "long": "a run writes one row per pair anyway",
}
_PARTIAL = 3  # exit code


def add_run_options(group: argparse._ArgumentGroup) -> None:
    """Add the options of large runs."""
    add = group.add_argument
    add_launch_options(group)
    add("--out", metavar="DIR", help=f"folder of the run (default: {_DEFAULT_OUT}, or -2, ... if it is taken)")
    text = "measure the pairs again that failed in a run of the same command, such as for its network; keep the others"
    add("--retry-failed", action="store_const", const=True, help=text)
    add("--columns", metavar="A,B", help="columns of a list with the first and second images (default: a,b)")
    add("--folder", metavar="DIR", help="folder or URL that paths in a list start from (default: that of the list)")
    add("--parquet", metavar="FILE", help="write every distance as Parquet, in float64 (needs pyarrow)")
    text = f"measure reading, decoding and network alone on the first pairs (default: {_BENCHMARK}); no results"
    add("--benchmark", type=int, metavar="N", help=text)
    add_logger_options(group)


def with_benchmark(args: Sequence[str]) -> list[str]:
    """The command line with a number after ``--benchmark``, which argparse would take from the paths."""
    following = [*args[1:], ""][: len(args)]
    return [
        f"{arg}={_BENCHMARK}" if arg == "--benchmark" and not re.fullmatch(r"-?\d+", after) else arg
        for arg, after in zip(args, following, strict=True)
    ]


def why_run(options: argparse.Namespace) -> str:
    """What makes a comparison a large run, for messages; empty if nothing does."""
    for name in _STARTING:
        if getattr(options, name) is not None:
            return f"--{name.replace('_', '-')}"
    from lpips_lightning.sources.names import is_list, is_shards
    from lpips_lightning.sources.storage import is_url, shown

    alone = len(options.paths) == 1
    for path in options.paths:
        if is_shards(path) or is_url(path) or (alone and is_list(path)):
            return f"'{printable(shown(path))}'"
    return "torchrun or SLURM" if is_launched() else ""


def run(options: argparse.Namespace, why: str) -> None:
    """Compare on the ranks of a Trainer; rank 0 lists, writes and prints.

    Args:
        options: The parsed command line.
        why: What makes it a large run, for messages.

    Raises:
        SystemExit: With code 3, if some pairs failed.
        ValueError: If an argument is invalid, or all pairs failed.
    """
    options.to_stderr = name_streams(options, outputs=_OUTPUTS)
    _check(options, why)
    launch = launch_or_one_device(options)
    if options.benchmark is not None:
        _benchmark(options, launch.accelerator)
        return

    from lpips_lightning.runs import engine
    from lpips_lightning.runs.rates import progress_line

    trainer = launch.trainer()
    jobs: list[_Job] = []
    with ExitStack() as stack:
        with ExitStack() as measuring:

            def make() -> PairWork:
                jobs.append(job := _prepare(options, stack))
                work = job.work
                measuring.enter_context(progress_line(work.folder, trainer.world_size, work.source.pairs, work.resumed))
                return work

            engine.run(trainer, make, workers=workers_of(options.workers, trainer.num_devices))
        if not trainer.is_global_zero:
            return
        statistics = _finish(options, jobs[0])
    _report_failures(statistics)


def _benchmark(options: argparse.Namespace, accelerator: str) -> None:
    """Measure the parts of a run, and print how fast each is."""
    from lpips_lightning.comparison.file_pairs import InputNeeds
    from lpips_lightning.runs.benchmark import benchmark
    from lpips_lightning.runs.once import PerProcess

    require_network(options)
    network = PerProcess(_network, options)
    source, notes = _open_source(options)
    print_notes(notes)
    report = benchmark(
        source,
        network,
        InputNeeds.of(network()),
        accelerator=accelerator,
        workers=workers_of(options.workers, 1),
        batch_size=options.batch_size,
        scores=_scores(options),
        pairs=options.benchmark,
    )
    print_lines(report.lines(), options.to_stderr)


@dataclass(frozen=True)
class _Job:
    """A run that has been prepared, on rank 0."""

    work: PairWork
    run: Run
    fingerprint: str
    notes: list[str]

    def rows(self) -> Iterator[PairRow]:
        """The merged rows."""
        return self.run.journal.rows(len(self.work.source))


def _check(options: argparse.Namespace, why: str) -> None:
    """Raise if an option does not go with a large run, or has a wrong value."""
    for name, instead in _INSTEAD.items():
        if getattr(options, name) not in (None, False):
            option = name.replace("_", "-")
            raise ValueError(f"{option}: expected no --{option} with {why}, which starts a large run; {instead}")
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"batch-size: expected a positive number, got {options.batch_size}")
    if options.benchmark is not None and options.benchmark < 1:
        raise ValueError(f"benchmark: expected a positive number of pairs, got {options.benchmark}")
    if options.retry_failed and options.force:
        raise ValueError("retry-failed: expected no --force, which measures all pairs again; give one of them")
    network_options(options)


def _prepare(options: argparse.Namespace, stack: ExitStack) -> _Job:
    """Check all arguments, list the pairs, build the network, and begin the run in its folder."""
    _check_outputs(options)
    check_loggers(options)

    from lpips_lightning.comparison.fidelity import definition
    from lpips_lightning.comparison.file_pairs import InputNeeds
    from lpips_lightning.runs.once import PerProcess
    from lpips_lightning.runs.pairs import PairWork
    from lpips_lightning.runs.plans import open_run

    require_network(options)
    network = PerProcess(_network, options)
    net, scores = network(), _scores(options)
    source, notes = _open_source(options)
    print_notes(notes)
    _check_size(options, source.pairs or 0)
    fingerprint = net.fingerprint + definition(scores, masked=False)
    plan: dict[str, Any] = {
        "command": "compare",
        "source": source.describe(),
        "fingerprint": fingerprint,
        "scores": list(scores),
        "layers": options.per_layer,
        "batch_size": options.batch_size,
    }
    outputs = [str(Path(path).resolve()) for path in _outputs(options).values()]
    run = open_run(
        stack, plan, options.out, _DEFAULT_OUT, outputs, options.force, retry_failed=bool(options.retry_failed)
    )
    for name, path in _outputs(options).items():
        replace = options.force or str(Path(path).resolve()) in run.own_outputs
        check_output_path(path, name, replace=replace)
    run.begin()
    needs = InputNeeds.of(net)
    work = PairWork(source, network, needs, run.journal.folder, options.batch_size, scores, options.per_layer)
    if work.resumed:
        of_all = "" if source.pairs is None else f" of {source.pairs}"
        print_notes([f"{work.resumed}{of_all} pairs are measured already, in '{printable(run.journal.folder)}'"])
    return _Job(work, run, fingerprint, notes)


def _network(options: argparse.Namespace) -> PerceptualDistance:
    from lpips_lightning.network import LPIPS

    return LPIPS(options.net, **network_options(options))


def _scores(options: argparse.Namespace) -> list[Score]:
    scores: tuple[Score, ...] = ("psnr", "ssim")
    return [score for score in scores if getattr(options, score)]


def _outputs(options: argparse.Namespace) -> Mapping[str, str]:
    return {name: path for name in _OUTPUTS if (path := getattr(options, name)) is not None}


def _check_outputs(options: argparse.Namespace) -> None:
    """Raise if an output cannot be written, before the long listing; whether it exists is checked later."""
    places: dict[Path, str] = {}
    for name, path in _outputs(options).items():
        check_output_path(path, name)
        place = Path(path).resolve()
        if place in places or place in [Path(one).resolve() for one in options.paths]:
            raise ValueError(f"{name}: expected a path that no other option and no input uses, got {path!r}")
        places[place] = name
    if options.parquet is not None:
        from lpips_lightning.runs.results import require_parquet

        require_parquet()


def _check_size(options: argparse.Namespace, pairs: int) -> None:
    from lpips_lightning.runs.results import MOST_IN_JSON

    if options.json is not None and pairs > MOST_IN_JSON:
        raise ValueError(f"json: expected at most {MOST_IN_JSON} pairs, got {pairs}; use --csv or --parquet")


def _open_source(options: argparse.Namespace) -> tuple[PairSource, list[str]]:
    """The pairs, and notes on files that are in no pair."""
    from lpips_lightning.runs.choose import open_source

    if options.pairs != (len(options.paths) == 3):
        count = len(options.paths)
        given = f"{'--pairs and ' * options.pairs}{count} path{'s' * (count != 1)}"
        raise ValueError(
            f"paths: expected two folders, or two folders, --pairs and a CSV, for a large run, got {given}; compare all"
            " pairs without its options (--help=runs)"
        )
    return open_source(
        options.paths,
        batch_size=options.batch_size,
        common=options.common,
        in_order=options.in_order,
        columns=_columns(options),
        folder=options.folder,
    )


def _columns(options: argparse.Namespace) -> tuple[str, str] | None:
    if options.columns is None:
        return None
    names = [name.strip() for name in options.columns.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise ValueError(f"columns: expected two names, as in a,b, got '{printable(options.columns)}'")
    return names[0], names[1]


def _finish(options: argparse.Namespace, job: _Job) -> Statistics:
    """Merge the parts, write the tables, and print the summary."""
    from lpips_lightning.runs import results

    statistics = results.Statistics()
    for _ in statistics.passing(job.rows()):
        pass
    if statistics.count:
        _check_size(options, statistics.count + statistics.failed)  # with archives it is known only now
        print_lines([*statistics.lines(_namer(options)), job.fingerprint], options.to_stderr)
        print_notes(statistics.notes())
        _write(options, job, statistics)
    results.write_summary(job.run.journal.folder / "summary.json", job.fingerprint, statistics, job.notes)
    job.run.finish()
    _log(options, job, statistics)
    return statistics


def _log(options: argparse.Namespace, job: _Job, statistics: Statistics) -> None:
    """Log the means and counts to the loggers of the command line."""
    from lpips_lightning.io.console import Console

    found = {
        "pairs": statistics.count,
        "failed": statistics.failed,
        "lpips": statistics.mean,
        "lpips_std": statistics.std,
    }
    scores = {f"compare/{name}": float(value) for name, value in (found | statistics.means()).items()}
    config = config_of(options, fingerprint=job.fingerprint)
    log_scores(options, scores, config, "compare", Console(stderr=options.to_stderr))


def _write(options: argparse.Namespace, job: _Job, statistics: Statistics) -> None:
    from lpips_lightning.runs import results

    terms, with_errors = statistics.terms, statistics.failed > 0
    if options.csv is not None:
        results.write_csv(options.csv, job.rows(), terms, with_errors)
    if options.json is not None:
        results.write_json_table(options.json, job.rows(), job.fingerprint, job.notes)
    if options.parquet is not None:
        results.write_parquet(options.parquet, job.rows(), terms, with_errors, {"fingerprint": job.fingerprint})


def _namer(options: argparse.Namespace) -> Callable[[PairRow], str]:
    """Makes the name of a pair as `match_folders` does: the first path in its folder, without suffix."""
    from lpips_lightning.io.image_formats import image_suffixes
    from lpips_lightning.sources.storage import is_url, shown

    folder = next((shown(path) for path in options.paths if is_url(path) or Path(path).is_dir()), None)

    def name(row: PairRow) -> str:
        start = None if folder is None else f"{folder.rstrip('/')}/"
        if start is None or not row.a.startswith(start):
            return row.a
        inside = PurePosixPath(row.a.removeprefix(start))
        return (inside.with_suffix("") if inside.suffix.lower() in image_suffixes() else inside).as_posix()

    return name


def _report_failures(statistics: Statistics) -> None:
    """Name failed pairs.

    Raises:
        SystemExit: With code 3, if some pairs failed.
        ValueError: If all failed.
    """
    failed, pairs = statistics.failed, statistics.failed + statistics.count
    if failed == 0:
        return
    if not statistics.count:
        more = f" (and {failed - 1} more)" if failed > 1 else ""
        raise ValueError(f"{statistics.examples[0]}{more}")
    print_notes([*statistics.examples, f"{failed} of {pairs} pairs failed; they are in the table"])
    raise SystemExit(_PARTIAL)
