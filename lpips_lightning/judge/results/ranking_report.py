"""Rankings of methods as terminal tables, CSV and figure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTHS,
    Width,
    fit_name,
    fit_names,
    new_figure,
    save_figure,
)
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.tables import write_table
from lpips_lightning.judge.results.metric_ranking import Agreement, MetricRanking
from lpips_lightning.judge.results.ranking import Ranking

FILES = ("ranking.csv", "pairs.csv", "agreement.csv", "ranking.png", "ranking.pdf")
"""Files that `save` writes."""

_PANELS = 5  # side by side
_CLEAR = 0.05  # p-value of what people tell apart
_PEOPLE, _METRIC, _OTHER = "#4477aa", "0.35", "#ee6677"


def method_table(ranking: Ranking) -> Table:
    """People's scores, as log-odds and as probability of being preferred over an average method."""
    table = _table(f"People's ranking, with {level(ranking)} intervals")
    table.add_column("")
    table.add_column("method", overflow="fold")
    for heading in ("score", "preferred, %", "won"):
        table.add_column(heading, justify="right")
    for place, row in enumerate(ranking.scores, 1):
        preferred, low, high = (100 * value for value in row.preferred)
        score = f"{row.score:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        table.add_row(
            str(place),
            Text(row.method),
            score,
            f"{preferred:.0f} ({low:.0f} to {high:.0f})",
            f"{row.wins} of {row.wins + row.losses}",
        )
    return table


def metric_table(metrics: Sequence[MetricRanking]) -> Table:
    """Mean distance and place of every method, in people's order, by every metric."""
    table = _table("Mean distance by each metric, and the place by it")
    table.add_column("")
    table.add_column("method", overflow="fold")
    for one in metrics:
        table.add_column(Text(one.metric), justify="right", overflow="fold", min_width=11)
    for row, mean in enumerate(metrics[0].means):
        cells = (f"{one.means[row].value:.3g} ({one.places[row]})" for one in metrics)
        table.add_row(str(row + 1), Text(mean.method), *cells)
    return table


def wins_table(ranking: Ranking) -> Table:
    """How often the method of a row was preferred over that of a column, of how many comparisons."""
    table = _table("How often the row was preferred over the column")
    table.add_column("", overflow="fold")
    for number in range(1, len(ranking.scores) + 1):
        table.add_column(str(number), justify="right")
    wins = ranking.wins.int().tolist()
    for row, score in enumerate(ranking.scores):
        cells = [
            "" if row == column else f"{wins[row][column]}/{wins[row][column] + wins[column][row]}"
            for column in range(len(wins))
        ]
        table.add_row(Text(f"{row + 1} {score.method}"), *cells)
    return table


def agreement_table(metrics: Sequence[MetricRanking]) -> Table:
    """Rank correlations of people and metrics; and the pairs in another order, all and those people tell apart."""
    table = _table("Agreement of people's order with each metric's")
    table.add_column("metric", overflow="fold")
    for heading in ("Kendall's tau", "Spearman's rho", "reversed", "clearly"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in metrics:
        clear = sum(pair.p < _CLEAR for pair in one.differing)
        counts = (f"{len(one.differing)} of {len(one.means) * (len(one.means) - 1) // 2}", str(clear))
        table.add_row(Text(one.metric), _agreement(one.kendall), _agreement(one.spearman), *counts)
    return table


def sentences(ranking: Ranking, metrics: Sequence[MetricRanking]) -> Iterator[str]:
    """What the tables do not say: neighbors, the fit, limits, and where a metric's order differs."""
    for place, one in enumerate(ranking.neighbors, 1):
        verdict = "differ" if one.p < 1 - ranking.confidence else "cannot be told apart with these answers"
        yield f"Places {place} and {place + 1} ({one.better}, {one.worse}) {verdict}: p = {one.p:.2g}."
    yield _fit_sentence(ranking)
    for metric in metrics:
        for one in [pair for pair in metric.differing if pair.p < _CLEAR][:3]:
            yield f"{metric.metric} puts {one.worse} before {one.better}; people prefer {one.better} (p = {one.p:.2g})."
    yield from ranking.notes


def overview(ranking: Ranking) -> str:
    """What was counted."""
    counts = (ranking.answers, "answer"), (ranking.observers, "observer"), (ranking.references, "reference")
    answers, observers, references = (count_of(number, noun) for number, noun in counts)
    return f"{answers} by {observers} on {references}"


def level(ranking: Ranking) -> str:
    """The level of the intervals, such as ``"95 %"``."""
    return f"{100 * ranking.confidence:g} %"


def _table(title: str) -> Table:
    return Table(
        title=Text(title, style="table.title"), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False
    )


def _agreement(one: Agreement) -> str:
    if math.isnan(one.value):
        return "none (all equal)"
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def _fit_sentence(ranking: Ranking) -> str:
    fit = ranking.fit
    if fit.freedom < 1:
        return "Goodness of fit: nothing to test, there are no more pairs than scores."
    verdict = "no sign of misfit" if fit.p >= _CLEAR else "one score per method does not explain all pairs"
    first, second = fit.pair
    return (
        f"Goodness of fit: deviance {fit.deviance:.1f} with {fit.freedom} degrees of freedom, p = {fit.p:.2g}:"
        f" {verdict}. Furthest off: {first} won {100 * fit.observed:.0f} % of {fit.count} against {second}, expected"
        f" {100 * fit.expected:.0f} %."
    )


def save(ranking: Ranking, metrics: Sequence[MetricRanking], out: Path, note: str = "") -> list[Path]:
    """Write the CSV files and the figure.

    Args:
        ranking: People's ranking.
        metrics: Rankings by metrics.
        out: Output folder.
        note: Line below the figure, such as that answers are simulated.

    Returns:
        The files.
    """
    write_table(out / "ranking.csv", _RANKING, _ranking_rows(ranking, metrics))
    write_table(out / "pairs.csv", _PAIRS, _pair_rows(ranking))
    write_table(out / "agreement.csv", _AGREEMENT, _agreement_rows(metrics))
    return [*(out / name for name in FILES[:3]), *save_ranking(ranking, metrics, out / FILES[3], note)]


_RANKING = ("judge", "place", "method", "value", "low", "high", "preferred", "wins", "losses")
_PAIRS = ("better", "worse", "wins", "losses", "difference", "low", "high", "p", "neighbors", "p_holm")
_AGREEMENT = ("metric", "kendall", "kendall_low", "kendall_high", "spearman", "spearman_low", "spearman_high")


def _ranking_rows(ranking: Ranking, metrics: Sequence[MetricRanking]) -> Iterator[list[Any]]:
    for place, row in enumerate(ranking.scores, 1):
        values = [f"{value:.6g}" for value in (row.score, row.low, row.high, row.preferred[0])]
        yield ["people", place, row.method, *values, row.wins, row.losses]
    for metric in metrics:
        for place, mean in zip(metric.places, metric.means, strict=True):
            values = [f"{value:.6g}" for value in (mean.value, mean.low, mean.high)]
            yield [metric.metric, place, mean.method, *values, "", "", ""]


def _pair_rows(ranking: Ranking) -> Iterator[list[Any]]:
    place = {row.method: number for number, row in enumerate(ranking.scores)}
    corrected = {(one.better, one.worse): one.p for one in ranking.neighbors}
    for one in ranking.pairs:
        first, second = place[one.better], place[one.worse]
        counts = int(ranking.wins[first, second]), int(ranking.wins[second, first])
        values = [f"{value:.6g}" for value in (one.difference, one.low, one.high, one.p)]
        holm = corrected.get((one.better, one.worse))
        near = ["no", ""] if holm is None else ["yes", f"{holm:.6g}"]
        yield [one.better, one.worse, *counts, *values, *near]


def _agreement_rows(metrics: Sequence[MetricRanking]) -> Iterator[list[Any]]:
    for one in metrics:
        parts = (one.kendall, one.spearman)
        yield [one.metric, *(f"{value:.6g}" for part in parts for value in (part.value, part.low, part.high))]


def save_ranking(ranking: Ranking, metrics: Sequence[MetricRanking], path: str | Path, note: str = "") -> list[Path]:
    """Draw people's scores beside the mean distances of every metric; a row per method, people's best one on top.

    Better is to the right everywhere. Red marks methods that a metric puts in another order than people, where people
    tell them apart.

    Args:
        ranking: People's ranking.
        metrics: Rankings by metrics.
        path: Output PNG; a PDF is written beside it.
        note: Line below the figure.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    panels = 1 + len(metrics)
    lines = math.ceil(panels / _PANELS)
    columns = math.ceil(panels / lines)
    width: Width = "column" if panels == 1 else "text"
    names = 0.3 * WIDTHS[width]
    inches = 0.85 * (WIDTHS[width] - names) / columns
    height = lines * (0.75 + 0.16 * max(len(ranking.scores), 3)) + 0.5
    with new_figure(width, height) as figure:
        axes = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        _draw_people(axes[0], ranking, inches)
        for panel, metric in zip(axes[1:], metrics, strict=False):
            _draw_metric(panel, metric, inches)
        for panel in axes[:panels]:
            _finish(panel, 5 if columns == 1 else 3)
        for panel in axes[panels:]:
            panel.set_visible(False)
        axes[0].set_yticks(range(len(ranking.scores)), fit_names([row.method for row in ranking.scores], names))
        axes[0].set_ylim(len(ranking.scores) - 0.5, -0.5)
        figure.supxlabel("\n".join(_caption(ranking, metrics, note, WIDTHS[width])), fontsize=TEXT_SIZE)
        return save_figure(figure, path)


def _caption(ranking: Ranking, metrics: Sequence[MetricRanking], note: str, inches: float) -> list[str]:
    """Lines below the figure."""
    red = "red: the metric reverses a pair that people tell apart"
    about = f"{overview(ranking)}; {level(ranking)} intervals"
    lines = [about, *([red] if any(map(_reversed, metrics)) else []), note]
    return [line for text in lines if text for line in wrap(text, int(inches * 16))]


def _reversed(metric: MetricRanking) -> set[str]:
    """Methods in pairs that people tell apart, and that the metric puts in the other order."""
    return {name for one in metric.differing if one.p < _CLEAR for name in (one.better, one.worse)}


def _draw_people(axes: Any, ranking: Ranking, inches: float) -> None:
    values = [(row.score, row.low, row.high) for row in ranking.scores]
    _draw(axes, values, [_PEOPLE] * len(values))
    axes.axvline(0, color="0.6", linewidth=0.6, linestyle="dashed")
    axes.set_title(fit_name("people", inches, TEXT_SIZE))
    axes.set_xlabel(fit_name("score (log-odds)", inches + 0.2), fontsize=SMALL_SIZE)


def _draw_metric(axes: Any, metric: MetricRanking, inches: float) -> None:
    colors = [_OTHER if mean.method in _reversed(metric) else _METRIC for mean in metric.means]
    _draw(axes, [(mean.value, mean.low, mean.high) for mean in metric.means], colors)
    tau = "none" if math.isnan(metric.kendall.value) else f"{metric.kendall.value:.2f}"
    axes.set_title(f"{fit_name(metric.metric, inches, TEXT_SIZE)}\n\u03c4 = {tau}")
    axes.set_xlabel("mean distance", fontsize=SMALL_SIZE)
    axes.invert_xaxis()


def _draw(axes: Any, values: Sequence[tuple[float, float, float]], colors: Sequence[str]) -> None:
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    for row, ((value, low, high), color) in enumerate(zip(values, colors, strict=True)):
        axes.plot([low, high], [row, row], color=color, linewidth=1)
        axes.plot(value, row, "o", color=color, markersize=3.5)
    axes.margins(x=0.08)


def _finish(axes: Any, ticks: int) -> None:
    axes.xaxis.get_major_locator().set_params(nbins=ticks, min_n_ticks=2, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")
