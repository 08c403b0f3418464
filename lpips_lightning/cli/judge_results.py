"""Report, export and calibrate from the answers of a study."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from lpips_lightning.cli.evaluate import require_backbones
from lpips_lightning.cli.options import add_device_option, choose_device, require_network
from lpips_lightning.io.arguments import NETS
from lpips_lightning.io.atomic import check_output_path, choose_output_folder, new_version
from lpips_lightning.io.console import Console
from lpips_lightning.io.figures import require_matplotlib
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import is_stream, name_streams

if TYPE_CHECKING:
    from lpips_lightning.judge.judged_images import Distances
    from lpips_lightning.judge.results.calibrate import Calibrated
    from lpips_lightning.judge.results.own_calibrations import OwnCalibration
    from lpips_lightning.judge.results.report import Report
    from lpips_lightning.judge.store import Study

_REPORT_OUT = "outputs/judge/report"
_CALIBRATION_OUT = Path("outputs/judge/calibration.safetensors")
_LAYOUTS = ("csv", "bapps", "answers")
_REPORT = """What people did, how they agree with each other and with themselves, and how metrics agree with them, as
numbers on the terminal and as a folder: report.html (one page that needs no other file), CSVs, figures (PNG, PDF).

METHOD is as for `bapps evaluate`: alex, vgg, squeeze, embedded, embedded-vgg, alex-st, vgg-st; alex:baseline,
alex:random, alex:weights=FILE; l2-lab, psnr, ms-ssim, fsim. L2 and SSIM are always among them, and so are distances
that the study holds. A calibration from `judge calibrate` on this study is scored on the items that it was not trained
on."""
_EXPORT = """Votes as a file for other commands and programs.

csv: a row per item. For 2AFC it has the columns ref, p0, p1, votes_p0, votes_p1, which `calibration fast --csv`,
`bapps evaluate --csv` and TripletDataModule read, with the folder of the study's images as --folder.
bapps: a folder in BAPPS' layout with copies of the images, which `bapps evaluate --folder` reads.
answers: a row per answer, those that do not count too, with a column that says which do."""
_CALIBRATE = """Train a calibration (mode lin) on the answers of a 2AFC study, and tell what it gains on references that
were held out, with intervals. Writes the calibration with its record, and its learning curve (PNG, PDF) beside it.

It has the most probable weights for these answers around the official ones: with few answers it stays near them.
`judge export` and `calibration fast --csv` train as the paper did, on many."""


def add_results(commands: Any) -> None:
    """Add the actions to the parser of ``judge``."""
    for add in (_add_report, _add_export, _add_calibrate):
        add(commands)


def _add(commands: Any, name: str, text: str, description: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=run)
    parser.add_argument("study", metavar="DB", help="file of the study, from `judge serve`")
    return parser


def _add_report(commands: Any) -> None:
    parser = _add(commands, "report", "numbers, figures and a page on what people answered", _REPORT, _report)
    add = parser.add_argument
    nets = "metrics to score (default: embedded, and alex and vgg if on this machine)"
    add("--net", "--nets", nargs="+", metavar="METHOD", help=nets)
    add("--calibration", nargs="+", default=[], metavar="FILE", help="your own calibration files to score as well")
    size = "resize images to this side for the metrics (default 0: as people saw them)"
    add("--size", type=int, default=0, metavar="PIXELS", help=size)
    add("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (default 1000)")
    add("--more", type=int, default=200, metavar="N", help="further judgments to look ahead to (default 200)")
    add("--too-fast", type=float, default=200.0, metavar="MS", help="answers below this are too fast (default 200)")
    add_device_option(parser)
    add("--out", metavar="DIR", help=f"output folder (default {_REPORT_OUT}, or {_REPORT_OUT}-2, ... if that exists)")
    add("--force", action="store_true", help="replace existing results")


def _add_export(commands: Any) -> None:
    parser = _add(commands, "export", "votes as CSV or in BAPPS' layout, or all answers", _EXPORT, _export)
    add = parser.add_argument
    add("--out", required=True, metavar="CSV|DIR", help="file to write, - for stdout; a folder for --layout bapps")
    add("--layout", choices=_LAYOUTS, default="csv", help="csv (default), bapps or answers")
    add("--set", dest="set_name", default="study", metavar="NAME", help="bapps: name of the set (default study)")
    _add_rules(parser)
    add("--observers", action="store_true", help="answers: pseudonyms of the observers instead of numbers")
    add("--force", action="store_true", help="replace an existing file or set")


def _add_rules(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--include-failed", action="store_true", help="also count sessions that failed their sentinels")
    slipped = "JND: also count trials whose display slipped (2AFC counts them anyway)"
    add("--include-slipped", action="store_true", help=slipped)


def _add_calibrate(commands: Any) -> None:
    parser = _add(commands, "calibrate", "a metric that agrees with your people", _CALIBRATE, _calibrate)
    parser.epilog = (
        "Offline: --net embedded, which ships with the package; or see `lpips-lightning weights fetch --help`."
    )
    add = parser.add_argument
    nets = f"network: {', '.join(NETS)} (default alex)"
    add("--net", choices=NETS, default="alex", metavar="NET", help=nets)
    add("--weights", metavar="FILE", help="backbone weights (default: torchvision's)")
    held_out = "fraction of the references, or of the photographs of patches, that are held out (default 0.2)"
    add("--val-fraction", type=float, default=0.2, metavar="F", help=held_out)
    size = "resize images to this side (default 0: as people saw them)"
    add("--size", type=int, default=0, metavar="PIXELS", help=size)
    add("--seed", type=int, default=0, help="seed of the split, and of the learning curve's parts (default 0)")
    rescale = "scale to the mean distance of the official calibration, so that loss weights stay (default)"
    add("--rescale", action=argparse.BooleanOptionalAction, default=True, help=rescale)
    add("--cache", metavar="DIR", help="cache folder for pooled differences (default: no cache)")
    _add_rules(parser)
    stem = _CALIBRATION_OUT.with_suffix("")
    add("--out", metavar="FILE", help=f"output file (default {_CALIBRATION_OUT}, or {stem}-2, ... if that exists)")
    add("--force", action="store_true", help="replace an existing file")


def _report(options: argparse.Namespace) -> None:
    start = time.monotonic()
    for name, least in (("resamples", 1), ("more", 1), ("size", 0), ("too_fast", 0)):
        if not getattr(options, name) >= least:
            raise ValueError(f"{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")

    from lpips_lightning.judge.results import report
    from lpips_lightning.judge.results.own_calibrations import own_calibrations
    from lpips_lightning.judge.store import Study

    names = (report.PAGE, *report.CSVS, *(f"{name}.{kind}" for name in report.FIGURES for kind in ("png", "pdf")))
    with closing(Study.open(options.study)) as study:
        require_matplotlib("judge report: figures need")
        out = choose_output_folder(options.out, _REPORT_OUT, options.force, names)
        nets = list(dict.fromkeys([*(_default_nets() if options.net is None else options.net), *report.BASELINES]))
        calibrations = own_calibrations(options.calibration, study, nets)
        own = [one for one in calibrations if one.held_out is not None]
        found = report.gather(
            study,
            _distances(options, study, nets, calibrations),
            held_out={one.name: one.held_out for one in own if one.held_out is not None},
            resamples=options.resamples,
            too_fast_ms=options.too_fast,
            more=options.more,
        )
        _print_report(found)
        report.write_tables(found, out)
        pictures = report.draw(found, out)
        if own:
            pictures |= report.draw_learning(own[0].record, out)
        _remove_old_figures(out, pictures, options.force)
        report.write_page(found, pictures, _run_rows(options, start), out / report.PAGE)
    written = [report.PAGE, *report.CSVS, *(file for one in pictures.values() for file in one.files)]
    _console().print(f"Written to {out}: {', '.join(written)}")


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, soft_wrap=True, markup=False)


def _remove_old_figures(out: Path, pictures: Mapping[str, Any], force: bool) -> None:
    """With --force: figures of an earlier report that this one does not have."""
    from lpips_lightning.judge.results.report import FIGURES

    for name in FIGURES:
        if force and name not in pictures:
            for kind in ("png", "pdf"):
                (out / f"{name}.{kind}").unlink(missing_ok=True)


def _distances(
    options: argparse.Namespace, study: Study, names: Sequence[str], own: Sequence[OwnCalibration]
) -> dict[str, Distances]:
    """Distances by metric, measured and stored."""
    from lpips_lightning.evaluation.methods import parse_method
    from lpips_lightning.judge.judged_images import measure
    from lpips_lightning.judge.votes import votes

    require_backbones([*names, *(one.method for one in own)], "--net")
    methods = [*map(parse_method, names), *(one.load() for one in own)]
    voted = votes(study)
    if not voted:
        return {}
    device = choose_device(options.device)
    items = [item for number, item in study.items("judged").items() if number in voted]
    with progress_report("items") as progress:
        measured = measure(study, items, methods, size=options.size or None, device=device, report=progress)
    return {**measured, **{f"{name} (stored)": found for name, found in study.distances().items()}}


def _default_nets() -> list[str]:
    from lpips_lightning.backbones.definition import BACKBONES

    return [*(name for name in ("alex", "vgg") if BACKBONES[name].is_available), "embedded"]


def _print_report(found: Report) -> None:
    console = Console(highlight=False, markup=False)
    for note in found.notes:
        console.print(note, soft_wrap=True, style="yellow")
    table = Table(box=SIMPLE, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", max_width=36)
    table.add_column(overflow="fold")
    for one in found.numbers:
        table.add_row(Text(one.name), Text(one.text))
    console.print(table)
    if found.observers:
        console.print(_observers(found))
    if found.scores:
        console.print(_metrics(found))
    for pair in found.differences:
        console.print(_difference(pair), soft_wrap=True)
    if found.outlook is not None:
        for text in found.outlook.sentences():
            console.print(text, soft_wrap=True)


def _observers(found: Report) -> Table:
    table = Table(box=SIMPLE, pad_edge=False, padding=0)  # 80 columns wide
    table.add_column("observer")
    for name in ("passed", "failed", "counted", "sentinels wrong", "repeats alike", "median ms", "too fast", "slipped"):
        table.add_column(name, justify="right")
    for one in found.observers:
        cells: list[Any] = [one.passed, one.failed, one.counted, f"{one.wrong}/{one.sentinels}"]
        median = "-" if one.median_ms != one.median_ms else f"{one.median_ms:.0f}"
        cells += [f"{one.alike}/{one.repeats}", median, one.too_fast, one.slipped]
        table.add_row(Text(one.name), *map(str, cells))
    return table


def _metrics(found: Report) -> Table:
    jnd = found.study.design.test == "jnd"
    table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("metric", overflow="fold")
    heads = ("JND average precision" if jnd else "2AFC score", "items", "judgments")
    for name in (*heads, *(("just noticeable distance",) if jnd else ())):
        table.add_column(name, justify="right")
    for one in found.scores:
        name = Text(one.name + (" (held-out items)" if one.held_out else ""))
        cells = [one.score.percent(), str(one.items), str(one.judgments)]
        table.add_row(name, *cells, *([one.threshold.plain(3)] if jnd else []))
    if not jnd:
        table.add_row("human ceiling", found.ceiling.percent(), "", "", style="dim")
    return table


def _difference(pair: Any) -> str:
    gap = pair.difference
    if not gap.known:
        return f"{pair.first} - {pair.second}: - ({pair.verdict})"
    ends = f"{100 * gap.low:+.1f} to {100 * gap.high:+.1f}"
    return f"{pair.first} - {pair.second}: {100 * gap.value:+.1f} points ({ends}): {pair.verdict}"


def _run_rows(options: argparse.Namespace, start: float) -> dict[str, str]:
    from datetime import UTC, datetime

    from lpips_lightning import __version__

    return {
        "study": str(options.study),
        "command": shlex.join(["lpips-lightning", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": f"lpips_lightning {__version__}",
        "time": f"{time.monotonic() - start:.0f} s",
    }


def _export(options: argparse.Namespace) -> None:
    console = _console(stderr=name_streams(options, outputs=["out"]))

    from lpips_lightning.judge.results import export
    from lpips_lightning.judge.store import Study

    with closing(Study.open(options.study)) as study:
        rules: dict[str, Any] = {"failed": options.include_failed}
        rules["slipped"] = True if options.include_slipped else None
        if options.layout == "bapps":
            target = export.bapps_set(study, options.out, options.set_name)
            check_output_path(target, "out", folder=True, replace=options.force)
            options_of_set = {"name": options.set_name, "replace": options.force}
            count = export.export_bapps(study, options.out, **options_of_set, **rules)
            console.print(f"Written to {target}: {count} items")
            return
        check_output_path(options.out, "out", replace=options.force)
        if options.layout == "answers":
            count = export.export_answers(study, options.out, observers=options.observers, **rules)
            console.print(f"Written to {options.out}: {count} answers")
            return
        count = export.export_csv(study, options.out, **rules)
        console.print(f"Written to {options.out}: {count} items")
        if study.design.test == "2afc" and not is_stream(options.out):
            line = ["lpips-lightning", "calibration", "fast", "--csv", options.out, "--folder", str(study.folder)]
            console.print(f"Next: {shlex.join(line)}")


def _calibrate(options: argparse.Namespace) -> None:
    options.out = options.out or str(_CALIBRATION_OUT if options.force else new_version(_CALIBRATION_OUT))
    console = _console(stderr=name_streams(options, outputs=["out"]))
    _check_calibrate(options)

    from lpips_lightning.calibration.export import usage
    from lpips_lightning.judge.results.calibrate import calibrate, check_study
    from lpips_lightning.judge.store import Study

    with closing(Study.open(options.study)) as study:
        rules: dict[str, Any] = {"failed": options.include_failed}
        rules["slipped"] = True if options.include_slipped else None
        check_study(study, **rules)
        require_network(options)
        names = ("weights", "val_fraction", "seed", "rescale", "cache")
        chosen = {name: getattr(options, name) for name in names}
        with progress_report("items") as progress:
            found = calibrate(study, options.net, size=options.size or None, report=progress, **chosen, **rules)
    console.print("\n".join(found.lines()))
    path = found.write(options.out)
    console.print(f"Written to {path}: the calibration")
    if not is_stream(path):
        _draw_learning(found, path, console)
        console.print(usage(options.net, path, options.weights))


def _check_calibrate(options: argparse.Namespace) -> None:
    if not options.out.endswith(".safetensors") and not is_stream(options.out):
        raise ValueError(f"out: expected a file that ends in .safetensors, got {options.out!r}")
    if not 0 < options.val_fraction < 1:
        raise ValueError(f"val-fraction: expected a number between 0 and 1, got {options.val_fraction}")
    if options.size < 0:
        raise ValueError(f"size: expected at least 0, got {options.size}")
    check_output_path(options.out, "out", replace=options.force)
    if not is_stream(options.out):
        for suffix in (".png", ".pdf"):
            check_output_path(Path(options.out).with_suffix(suffix), "out", replace=options.force)


def _draw_learning(found: Calibrated, path: Path, console: Console) -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        console.print('No learning curve, which matplotlib draws: pip install "lpips_lightning[judge]"')
        return
    from lpips_lightning.judge.results.agreement import Estimate
    from lpips_lightning.judge.results.report_figures import draw_learning

    official = found.comparison.official
    before = Estimate(official.value, official.low, official.high)
    files = draw_learning(found.curve, before, found.ceiling, path.with_suffix(".png"))
    console.print(f"Written to {' and '.join(map(str, files))}: the learning curve")
