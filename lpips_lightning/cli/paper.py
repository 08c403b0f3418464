"""The command ``lpips-lightning paper``."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli import bapps as bapps_cli
from lpips_lightning.cli.evaluate import data_sets
from lpips_lightning.cli.options import add_device_option, choose_device
from lpips_lightning.io.arguments import NETS, ArgumentParser
from lpips_lightning.io.atomic import atomic_write, choose_output_folder, has_results
from lpips_lightning.io.console import Console
from lpips_lightning.io.figures import WIDTHS, require_matplotlib
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.tables import write_table

if TYPE_CHECKING:
    from lpips_lightning.data.bapps import JNDDataset, TwoAFCDataset
    from lpips_lightning.data.judges import Judge
    from lpips_lightning.evaluation.benchmark import Judged
    from lpips_lightning.evaluation.paper_methods import PaperMethod
    from lpips_lightning.evaluation.paper_report import Comparison, Picture

_OUT = "outputs/paper"
_REPORT, _OPTIONS, _DATA, _DISTANCES = "report.html", "options.json", "data", "distances"
_FILES = (
    *(_REPORT, "scores.csv", "table4.csv"),
    *(f"figure{number}.{kind}" for number in (4, 5, 6) for kind in ("png", "pdf")),
)
_MAKE = ("photographs", "judge", "val", "jnd", "seed", "noise", "lapse", "threshold")
_DEFAULTS = {"judge": "auto", "val": 500, "jnd": 500, "seed": 0}
_DESCRIPTION = """The paper's figures 4 (methods by group), 5 (2AFC against JND) and 6 (disagreements), and its Tables 4
and 5, as one HTML page.

On BAPPS with --folder. Without it, a data set is generated from photographs, with the paper's traditional distortions
and votes of simulated observers of a metric: the numbers then say how near a method is to that metric, not to people.

METHOD is as for `bapps evaluate`, or a .safetensors file of a backbone; NAME=METHOD names it. Methods whose weights are
not on this machine are left out; the page names them and the command that fetches the weights. Distances are kept: the
same command resumes an interrupted run."""


def parser() -> ArgumentParser:
    """Build the argument parser."""
    result = ArgumentParser("lpips-lightning paper", description=_DESCRIPTION)
    result.formatter_class = argparse.RawDescriptionHelpFormatter
    add = result.add_argument
    add("--folder", "--root", metavar="DIR", help="folder of BAPPS, or of a data set from `bapps make`")
    add("--sets", nargs="*", metavar="SET", help="2AFC sets of --folder (default: all present)")
    add("--jnd-sets", nargs="*", metavar="SET", help="JND sets of --folder (default: all present)")
    add("--limit", type=int, metavar="N", help="at most N triplets or pairs of each set, evenly spaced (default: all)")
    add("--methods", nargs="+", metavar="METHOD", help="methods to compare (default: those of the paper)")
    more: Any = {"nargs": "+", "default": [], "metavar": "METHOD"}
    add("--more", **more, help="further methods, such as files of `kmeans` and of self-supervised recipes")
    add("--self-supervised", **more, help="further methods, in the group of self-supervised networks: Mine=FILE")
    add("--disagree", nargs=2, metavar="METHOD", help="methods of figure 6 (default: ssim and the best other one)")
    add("--size", type=int, default=64, metavar="PIXELS", help="side of the images (default 64; 0: no resizing)")
    _add_data_options(result)
    add("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (default 1000)")
    add("--batch-size", type=int, default=50, metavar="N", help="triplets or pairs per batch (default 50)")
    add("--num-workers", "--workers", type=int, default=0, metavar="N", help="image reading processes (default 0)")
    add_device_option(result)
    add("--out", metavar="DIR", help=f"output folder (default {_OUT}, or {_OUT}-2, ... if that is complete)")
    add("--force", action="store_true", help="replace existing results")
    return result


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the generated data, without --folder")
    add = group.add_argument
    add("--photographs", metavar="DIR", help="folder of photographs (default: five of scikit-image)")
    judges = ("auto", *NETS, "l2")
    judge = "metric that judges: a network or l2; auto (default): vgg if on this machine, else embedded-vgg"
    add("--judge", choices=judges, metavar="NET", help=judge)
    add("--val", type=int, metavar="N", help=f"triplets (default {_DEFAULTS['val']})")
    add("--jnd", type=int, metavar="N", help=f"pairs (default {_DEFAULTS['jnd']})")
    add("--seed", type=int, metavar="N", help="random seed of patches, distortions and votes (default 0)")
    bapps_cli.add_observer_options(group)


def main(args: list[str] | None = None) -> None:
    """Run ``lpips-lightning paper``.

    Args:
        args: Command line after ``paper``.

    Raises:
        ValueError: If an argument is invalid, or no method can be measured.
        FileExistsError: If the output exists, without ``--force``.
        FileNotFoundError: If a file or folder is missing.
    """
    start = time.monotonic()
    options = parser().parse_args(args)
    _check(options)
    out = _output_folder(options)
    _check_data(options)
    methods, left_out = _methods(options)
    device = choose_device(options.device)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for one in left_out:
        console.print(f"Left out: {one.name}, since {one.reason}. To get it: {one.command}")
    root = options.folder or _make(options, out, console)
    _write_options(out, options)
    sets = data_sets(root, options.sets, options.jnd_sets, options.size or None)
    _shorten(sets.values(), options.limit)
    methods, judges, observer = _judges(root, sets, methods)

    from lpips_lightning.evaluation.paper_distances import measure_or_read
    from lpips_lightning.evaluation.paper_report import warning

    if note := warning(judges.values(), observer):
        console.print(note, style="bold")
    with progress_report("items") as report:
        loading = (options.batch_size, options.num_workers, device)
        measured = measure_or_read(methods, sets, out / _DISTANCES, *loading, report)
    comparison = _score(options, methods, left_out, measured, judges, observer, root)
    figures, no_figure6 = _draw(comparison, measured, sets, options.disagree, out)
    _finish(comparison, figures, no_figure6, out, _run(args, device, start), console)


def _check(options: argparse.Namespace) -> None:
    require_matplotlib("lpips-lightning paper needs")
    for argument, least in (("batch_size", 1), ("num_workers", 0), ("resamples", 1), ("limit", 1), ("size", 0)):
        value = getattr(options, argument)
        if value is not None and value < least:
            raise ValueError(f"{argument.replace('_', '-')}: expected at least {least}, got {value}")
    given = [name for name in _MAKE if getattr(options, name) is not None]
    if options.folder and given:
        raise ValueError(f"{given[0]}: expected no --folder with this option, which generates data, got both")
    of_folder = [name for name in ("sets", "jnd_sets", "limit") if getattr(options, name) is not None]
    if not options.folder and of_folder:
        raise ValueError(f"{of_folder[0].replace('_', '-')}: expected --folder DIR with this option, got none")
    for name, value in _DEFAULTS.items():
        if not options.folder and getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("val", "jnd"):
        if not options.folder and getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")


def _check_data(options: argparse.Namespace) -> None:
    """Refuse what `_make` or `data_sets` would refuse later; get the weights of the judge."""
    from lpips_lightning.backbones.offline import require_backbone
    from lpips_lightning.data.observer import SimulatedObserver
    from lpips_lightning.io.image_files import find_images

    if options.folder:
        data_sets(options.folder, options.sets, options.jnd_sets, options.size or None)
        return
    SimulatedObserver(**bapps_cli.observer_options(options))
    if options.photographs:
        with _photographs_named():
            find_images(options.photographs)
    require_backbone(options.judge, "--judge")


def _output_folder(options: argparse.Namespace) -> Path:
    """The given folder, or a version of the default one that is new, or that the same command left incomplete."""
    out = options.out
    if out is None and not options.force:
        versions = (Path(f"{_OUT}-{number}" if number > 1 else _OUT) for number in itertools.count(1))
        out = str(next(one for one in versions if not has_results(one) or _is_unfinished(one, options)))
    folder = choose_output_folder(out or _OUT, _OUT, options.force, _FILES)
    if has_results(folder / _OPTIONS) and not options.force and not _is_unfinished(folder, options):
        raise FileExistsError(f"out: {folder} has an incomplete run with other data; --force replaces it")
    return folder


def _data_options(options: argparse.Namespace) -> dict[str, Any]:
    """What decides on the generated data, or where data are read."""
    return {name: getattr(options, name) for name in ("folder", *_MAKE)} | {"size": options.size}


def _is_unfinished(folder: Path, options: argparse.Namespace) -> bool:
    """Whether the same command stopped before its end."""
    try:
        same = json.loads((folder / _OPTIONS).read_text(encoding="utf-8")) == _data_options(options)
    except (OSError, ValueError):
        return False
    return same and not (folder / _REPORT).exists()


def _write_options(out: Path, options: argparse.Namespace) -> None:
    (out / _REPORT).unlink(missing_ok=True)  # with --force; so that an interrupted run is not taken for a complete one
    with atomic_write(out / _OPTIONS) as temporary:
        temporary.write_text(json.dumps(_data_options(options), indent=1) + "\n", encoding="utf-8")


def _methods(options: argparse.Namespace) -> tuple[list[PaperMethod], list[Any]]:
    from lpips_lightning.evaluation.paper_methods import DEFAULT_METHODS, SELF_SUPERVISED, choose, load

    choices = [choose(text) for text in [*(options.methods or DEFAULT_METHODS), *options.more]]
    methods, left_out = load([*choices, *(choose(text, SELF_SUPERVISED) for text in options.self_supervised)])
    names = [one.name for one in methods]
    for name in options.disagree or ():
        if name not in names:
            raise ValueError(f"disagree: expected two of {', '.join(names)}, got {name!r}")
    return methods, left_out


@contextmanager
def _photographs(folder: str | None) -> Iterator[str]:
    """The given folder, or a temporary one with the photographs of scikit-image."""
    if folder is not None:
        yield folder
        return
    from lpips_lightning.recipes.photographs import bundled_photographs

    with tempfile.TemporaryDirectory() as temporary:
        for path in bundled_photographs().values():
            shutil.copyfile(path, Path(temporary, path.name))
        yield temporary


@contextmanager
def _photographs_named() -> Iterator[None]:
    """Errors about the argument `folder` name the option of the photographs."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        if str(error).startswith("folder: "):
            raise type(error)(f"photographs: {str(error).removeprefix('folder: ')}") from error
        raise


def _make(options: argparse.Namespace, folder: Path, console: Console) -> Path:
    """The data set in a folder of results: that of an interrupted run, or a new one."""
    from lpips_lightning.data.bapps_generate import RECORD, make_bapps
    from lpips_lightning.data.observer import SimulatedObserver

    out, replace = folder / _DATA, options.force and has_results(folder / _OPTIONS)
    if (out / RECORD).is_file() and not options.force and _is_unfinished(folder, options):
        return out
    observer = SimulatedObserver(**bapps_cli.observer_options(options))
    judge = _judge(options.judge)
    if judge != options.judge:
        console.print(f"Judge: {judge} (--judge chooses another one)")
    counts = {"train": 0, "val": options.val, "jnd": options.jnd, "seed": options.seed}
    with _photographs(options.photographs) as photographs, progress_report("items") as report:
        size = options.size or 64
        distance = bapps_cli.judging_distance(judge, None)
        options_of_data = {"distance": distance, "observer": observer, "size": size, **counts}
        with _photographs_named():
            return make_bapps(photographs, out, **options_of_data, replace=replace, report=report)


def _judge(name: str) -> str:
    from lpips_lightning.backbones.definition import BACKBONES

    return name if name != "auto" else "vgg" if BACKBONES["vgg"].is_available else "embedded-vgg"


def _shorten(sets: Any, limit: int | None) -> None:
    """Keep at most `limit` evenly spaced items of every set."""
    for data in sets:
        if limit is not None and limit < len(data.items):
            data.items = [data.items[index * len(data.items) // limit] for index in range(limit)]


def _judges(
    root: str | Path, sets: Mapping[str, object], methods: Sequence[PaperMethod]
) -> tuple[list[PaperMethod], dict[str, Judge], dict[str, Any]]:
    """Who judged, by set; the methods, with a mark on the one that judged; and the simulated observers."""
    from lpips_lightning.data.judges import RECORD, judged_by
    from lpips_lightning.evaluation.paper_methods import mark_judge

    parts = {name: "jnd/val" if name.startswith("jnd/") else "2afc/val" for name in sets}
    judges = {name: judged_by(root, part, name.removeprefix("jnd/")) for name, part in parts.items()}
    if all(judge.kind in ("people", "unknown") for judge in judges.values()):
        return list(methods), judges, {}
    record = json.loads(Path(root, RECORD).read_text(encoding="utf-8"))
    return mark_judge(methods, record["judge"]), judges, record.get("observer") or {}


def _score(
    options: argparse.Namespace,
    methods: Sequence[PaperMethod],
    left_out: Sequence[Any],
    measured: Mapping[str, Mapping[str, Judged]],
    judges: Mapping[str, Judge],
    observer: Mapping[str, Any],
    root: str | Path,
) -> Comparison:
    from lpips_lightning.evaluation.benchmark import score
    from lpips_lightning.evaluation.paper_report import Comparison
    from lpips_lightning.evaluation.table5 import TABLE_5

    rows = {one.name: one.method.paper if one.method.paper in TABLE_5 else None for one in methods}
    scores = score(measured, rows, options.resamples, judges=judges)
    data = _describe_data(options, root, next(iter(measured.values())), judges, observer)
    return Comparison(scores, methods, left_out, judges, observer, data, {})


def _describe_data(
    options: argparse.Namespace,
    root: str | Path,
    sets: Mapping[str, Judged],
    judges: Mapping[str, Judge],
    observer: Mapping[str, Any],
) -> dict[str, str]:
    from lpips_lightning.data.judges import RECORD
    from lpips_lightning.evaluation.paper_report import attributes

    about = {"folder": str(root)}
    record = Path(root, RECORD)
    if record.is_file():
        content = json.loads(record.read_text(encoding="utf-8"))
        images = content["images"]
        shown = ", ".join(images[:8]) + (", ..." if len(images) > 8 else "")
        about |= {"generated from": f"{len(images)} photographs: {shown}", "seed": str(content["seed"])}
        about |= {"judge": str(content["judge"])}
    if observer:
        votes = ", ".join(f"{number} per item of {part}" for part, number in observer["votes"].items())
        about["simulated observers"] = f"{attributes(observer)}; votes: {votes}"
    for name, judged in sets.items():
        what = "triplets" if judged.kind == "2afc" else "pairs"
        about[name] = f"{len(judged.shares)} {what}, judges: {judges[name].label}"
    about["size"] = f"{options.size} x {options.size} pixels" if options.size else "as in the files"
    return about


def _draw(
    comparison: Comparison,
    measured: Mapping[str, Mapping[str, Judged]],
    sets: Mapping[str, TwoAFCDataset | JNDDataset],
    disagree: Sequence[str] | None,
    out: Path,
) -> tuple[dict[str, Picture], str]:
    """The figures, and why there is no figure 6."""
    from lpips_lightning.evaluation.figures import save_disagreements
    from lpips_lightning.evaluation.paper_figures import panels, points_of, save_bars, save_scatter
    from lpips_lightning.evaluation.paper_report import picture

    scores, methods = comparison.scores, comparison.methods
    figures: dict[str, Picture] = {}
    triplets = {name: data for name, data in sets.items() if not name.startswith("jnd/")}
    if triplets:
        inches = WIDTHS["text" if len(panels(list(triplets))) > 1 else "column"]
        bars = save_bars(scores, methods, out / "figure4.png")
        caption = "Mean 2AFC score by group of methods, from chance (50 %), with 95 % intervals."
        figures["figure4"] = picture(bars, inches, "Bars of the methods' 2AFC scores", caption)
    if points_of(scores):
        scatter = save_scatter(scores, methods, out / "figure5.png", _correlation_note(comparison))
        caption = "2AFC score against JND precision, means over the sets that were judged both ways."
        caption += " Open marker: the metric that judged." if any(one.is_judge for one in methods) else ""
        figures["figure5"] = picture(scatter, WIDTHS["column"], "Points of the methods, 2AFC against JND", caption)
    pair = tuple(disagree) if disagree else _default_pair(comparison)
    if not triplets or pair is None:
        return figures, "It takes sets of triplets and two methods, such as ssim and a network."
    pictures = save_disagreements(measured, (pair[0], pair[1]), triplets, out / "figure6.png")
    caption = f"Pairs of images that are near for {pair[0]} and far for {pair[1]}, and the reverse, by rank."
    figures["figure6"] = picture(
        pictures, WIDTHS["text"], f"Image pairs on which {' and '.join(pair)} disagree", caption
    )
    return figures, ""


def _correlation_note(comparison: Comparison) -> str:
    from lpips_lightning.evaluation.paper_report import jnd_correlation

    found = jnd_correlation(comparison)
    if found is None:
        return ""
    return f"Pearson {found.pearson[0]:.2f}, Spearman {found.spearman[0]:.2f}, n = {found.count}"


def _default_pair(comparison: Comparison) -> tuple[str, str] | None:
    """A low-level metric, ssim if it is there, and the network that agrees best with the judges."""
    from lpips_lightning.evaluation.benchmark import summary
    from lpips_lightning.evaluation.paper_methods import LOW_LEVEL

    means = comparison.without_judge(summary(comparison.scores, "2afc"))
    low = [one.name for one in comparison.methods if one.group == LOW_LEVEL and one.name in means]
    networks = [one.name for one in comparison.methods if one.group != LOW_LEVEL and one.name in means]
    if not low or not networks:
        return None
    return "ssim" if "ssim" in low else low[0], max(networks, key=lambda name: means[name])


def _finish(
    comparison: Comparison,
    figures: Mapping[str, Picture],
    no_figure6: str,
    out: Path,
    run: Mapping[str, str],
    console: Console,
) -> None:
    """Print and write the results; the page last, since it marks a complete run."""
    from dataclasses import replace

    from lpips_lightning.evaluation import report
    from lpips_lightning.evaluation.benchmark import KINDS
    from lpips_lightning.evaluation.paper_report import correlation_text, table_4, write_report

    for kind in KINDS:
        if any(cell.kind == kind for cell in comparison.scores):
            Console().print(report.as_table(comparison.scores, kind))
    console.print(correlation_text(comparison))
    report.save_csv(comparison.scores, out / "scores.csv")
    cells = (
        [*row.tasks, *(f"{x:.4f}" if x is not None else "" for x in (row.paper, row.printed, row.ours)), row.count]
        for row in table_4(comparison)
    )
    write_table(out / "table4.csv", ["task", "other", "paper", "printed", "ours", "networks"], cells)
    write_report(replace(comparison, run=run), figures, out / _REPORT, no_figure6)
    console.print(f"Written to {out}: {_REPORT}, figures (PNG, PDF), scores.csv, table4.csv ({run['time']})")


def _run(args: list[str] | None, device: object, start: float) -> dict[str, str]:
    """Command, versions, machine, time and memory."""
    from datetime import UTC, datetime

    import torch

    from lpips_lightning import __version__

    packages = ("torch", "torchvision", "torchmetrics", "numpy", "matplotlib")
    versions = [f"lpips_lightning {__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in packages]
    return {
        "command": shlex.join(["lpips-lightning", "paper", *(sys.argv[2:] if args is None else args)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join(versions),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, device {device}",
        "time": f"{(time.monotonic() - start) / 60:.1f} minutes, {time.process_time() / 60:.1f} minutes of CPU time",
        "peak memory": _peak_memory(),
    }


def _peak_memory() -> str:
    """Peak resident memory of this process."""
    try:
        import resource
    except ImportError:  # Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**20 if sys.platform == 'darwin' else 2**10):.0f} MiB"
