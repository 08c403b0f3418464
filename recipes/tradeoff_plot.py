"""Figure of a trade-off table: a panel per score, a dot per loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTHS,
    category_styles,
    fit_names,
    new_figure,
    save_figure,
    value_limits,
)
from lpips_lightning.recipes.tradeoff_table import TradeoffRow, label, score_heading, score_names

_PANELS = 5  # side by side
_HEADINGS = {"psnr": "PSNR, dB \u2191"}
_MOST = {"ssim": 1.0}  # largest possible score


def save_plot(path: str | Path, rows: Sequence[TradeoffRow], labels: dict[str, str]) -> list[Path]:
    """Draw the scores of each loss: mean over seeds, with the standard deviation.

    Scores with the network of the loss are hollow, since it is biased.

    Args:
        path: Output PNG; a PDF is written beside it.
        rows: Rows in display order.
        labels: See `lpips_lightning.recipes.tradeoff_table.rich_table`.

    Returns:
        The files; empty without scores.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    scored = [row for row in rows if row.scores and not row.note]
    losses, names = list(dict.fromkeys(row.loss for row in scored)), score_names(scored)
    if not names:
        return []
    lines = math.ceil(len(names) / _PANELS)
    columns = math.ceil(len(names) / lines)
    name_inches = 0.25 * WIDTHS["text"]
    panel_inches = 0.85 * (WIDTHS["text"] - name_inches) / columns
    headings = fit_names([_HEADINGS.get(name, score_heading(name)) for name in names], panel_inches, TEXT_SIZE)
    with new_figure("text", lines * (0.45 + 0.18 * max(len(losses), 3)) + 0.3) as figure:
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for panel, name, heading in zip(panels, names, headings, strict=False):
            _draw_score(panel, name, losses, scored)
            panel.set_title(heading)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(losses)), fit_names([label(loss, labels) for loss in losses], name_inches))
        panels[0].set_ylim(len(losses) - 0.4, -0.6)
        _add_legend(figure, scored)
        return save_figure(figure, path)


def _draw_score(axes: Any, name: str, losses: Sequence[str], rows: Sequence[TradeoffRow]) -> None:
    """A dot for each loss, hollow if the score is of the network of the loss."""
    color, ends = category_styles(1)[0].color, []
    axes.grid(axis="y", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    for place, loss in enumerate(losses):
        found = [row for row in rows if row.loss == loss]
        values = [row.scores[name] for row in found if name in row.scores]
        if not values or not all(map(math.isfinite, values)):
            style = {"transform": axes.get_yaxis_transform(), "va": "center_baseline", "fontsize": SMALL_SIZE}
            axes.text(0.02, place, "no value", color="0.4", **style)
            continue
        mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        ends += [mean - deviation, mean + deviation]
        fill = "white" if name == f"lpips_{found[0].net}" else color
        axes.errorbar(mean, place, xerr=deviation or None, fmt="o", color=color, mfc=fill, linewidth=1, clip_on=False)
    axes.set_xlim(value_limits(ends, most=_MOST.get(name, math.inf)))
    axes.xaxis.get_major_locator().set_params(nbins=3, min_n_ticks=2, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")


def _add_legend(figure: Any, rows: Sequence[TradeoffRow]) -> None:
    from matplotlib.lines import Line2D

    seeds, color = len({row.seed for row in rows}), category_styles(1)[0].color
    line = "-" if seeds > 1 else "none"
    style: Any = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1, "linestyle": line}
    entries = {f"mean of {seeds} seeds, standard deviation" if seeds > 1 else "score": Line2D([], [], **style)}
    if any(f"lpips_{row.net}" in row.scores for row in rows):
        entries["scored with the network of the loss"] = Line2D([], [], mfc="white", **style)
    options = {"loc": "outside upper right", "ncols": len(entries), "columnspacing": 1.2}
    figure.legend(entries.values(), entries, **options)
