"""The command ``lpips-lightning judge rank``: methods ranked by the answers of a study, beside the order of metrics."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING, Any

from lpips_lightning.cli.evaluate import require_backbones
from lpips_lightning.cli.options import add_device_option, choose_device
from lpips_lightning.io.atomic import choose_output_folder
from lpips_lightning.io.console import Console
from lpips_lightning.io.figures import require_matplotlib
from lpips_lightning.io.progress import progress_report

if TYPE_CHECKING:
    from lpips_lightning.evaluation.methods import Method
    from lpips_lightning.judge.results.metric_ranking import MetricRanking
    from lpips_lightning.judge.results.own_calibrations import OwnCalibration
    from lpips_lightning.judge.results.ranking import Preferences, Ranking
    from lpips_lightning.judge.store import Study

_OUT = "outputs/ranking"
_MOST_METHODS = 10  # of a table of wins in the terminal
_DESCRIPTION = """Rank methods by people's preferences between images (Bradley-Terry), beside the order by metrics.

DB is the file of a study that `judge serve --methods` made. METRIC is as for `bapps evaluate`: alex, vgg,
alex:calibration=FILE, embedded, l2, psnr, ssim, ... A score is the log-odds of being preferred over an average method.
Intervals draw references and observers, since answers on one image and of one person depend on each other."""


def add_ranking(commands: Any) -> None:
    """Add the actions to the parser of ``judge``."""
    text = "rank methods by people's preferences, beside the order of metrics"
    parser = commands.add_parser("rank", help=text, description=_DESCRIPTION)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(run=_rank)
    add = parser.add_argument
    add("study", metavar="DB", help="file of the study")
    nets = "metrics to rank by (default: embedded l2 ssim); none: people alone"
    add("--net", "--nets", nargs="*", metavar="METRIC", help=nets)
    add("--calibration", nargs="+", default=[], metavar="FILE", help="your own calibration files to rank by as well")
    add("--active", action="store_true", help="also count trials that were chosen since metrics are unsure")
    add("--include-failed", action="store_true", help="also count sessions that failed their sentinels")
    add("--resamples", type=int, default=1000, metavar="N", help="bootstrap resamples (default 1000)")
    add("--seed", type=int, default=0, metavar="N", help="random seed of the intervals (default 0)")
    add_device_option(parser)
    add("--out", metavar="DIR", help=f"output folder (default {_OUT}, or {_OUT}-2, ... if that exists)")
    add("--force", action="store_true", help="replace existing results")


def _rank(options: argparse.Namespace) -> None:
    from lpips_lightning.evaluation.methods import parse_method
    from lpips_lightning.judge.results import ranking_report as report
    from lpips_lightning.judge.results.own_calibrations import own_calibrations
    from lpips_lightning.judge.results.ranking import preferences, rank
    from lpips_lightning.judge.simulated import simulation_note
    from lpips_lightning.judge.store import Study
    from lpips_lightning.judge.votes import COUNTED

    require_matplotlib("lpips-lightning judge rank needs")
    out = choose_output_folder(options.out, _OUT, options.force, report.FILES)
    if options.resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {options.resamples}")
    names = list(dict.fromkeys(["embedded", "l2", "ssim"] if options.net is None else options.net))
    with closing(Study.open(options.study)) as study:
        _check_source(study)
        data = preferences(study, COUNTED if options.active else ("random",), options.include_failed)
        own = own_calibrations(options.calibration, study, names)
        require_backbones([*names, *(one.method for one in own)], "--net")
        metrics = [*map(parse_method, names), *(one.load() for one in own)]
        ranking = rank(data, options.resamples, options.seed)
        rankings = _metric_rankings(study, data, ranking, metrics, options)
        note = " ".join(filter(None, [simulation_note(study.answers()), _trained_note(own)]))
    _print(ranking, rankings, note)
    files = report.save(ranking, rankings, out, note)
    written = f"Written to {out}: {', '.join(file.name for file in files)}"
    _console().print(written, markup=False, soft_wrap=True)


def _check_source(study: Study) -> None:
    """Refuse a study that `judge serve --images` made: its methods are distortions of random strength.

    Raises:
        StudyError: If it is one.
    """
    from lpips_lightning.judge.judged_images import is_of_photographs
    from lpips_lightning.judge.records import StudyError

    if is_of_photographs(study):
        raise StudyError(
            "study: expected one of methods, from `judge serve --methods DIR`, got one of distorted photographs, whose"
            " strengths are random; `judge report` scores metrics on it"
        )


def _trained_note(calibrations: list[OwnCalibration]) -> str:
    """Says which calibrations have seen these people's answers."""
    seen = [one.file for one in calibrations if one.held_out is not None]
    return f"Trained on answers of this study, so that it agrees too well: {', '.join(seen)}." if seen else ""


def _metric_rankings(
    study: Study, data: Preferences, ranking: Ranking, metrics: list[Method], options: argparse.Namespace
) -> list[MetricRanking]:
    from lpips_lightning.judge.results.metric_ranking import measure_methods, rank_by_metric

    if not metrics:
        return []
    device = choose_device(options.device)
    with progress_report("items") as report:
        measured = measure_methods(study, metrics, data.references, report, device)
    return [
        rank_by_metric(name, distances, data, ranking, options.resamples, options.seed)
        for name, distances in measured.items()
    ]


def _print(ranking: Ranking, metrics: list[MetricRanking], note: str) -> None:
    from lpips_lightning.judge.results import ranking_report as report

    console = _console()
    console.print(report.overview(ranking), soft_wrap=True)
    if note:
        console.print(note, style="bold", soft_wrap=True)
    console.print(report.method_table(ranking))
    if len(ranking.scores) <= _MOST_METHODS:
        console.print(report.wins_table(ranking))
    if metrics:
        console.print(report.metric_table(metrics))
        console.print(report.agreement_table(metrics))
    for sentence in report.sentences(ranking, metrics):
        console.print(sentence, soft_wrap=True, markup=False)


def _console() -> Console:
    return Console(highlight=False)
