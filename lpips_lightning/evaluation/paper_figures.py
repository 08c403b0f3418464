"""The paper's figures 4 and 5 with methods in groups: bars of 2AFC scores, and 2AFC against JND."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpips_lightning.data.judges import is_exact, judge_note
from lpips_lightning.evaluation.benchmark import HUMAN, Score, summary
from lpips_lightning.evaluation.paper_methods import GROUPS, PaperMethod, groups_of
from lpips_lightning.evaluation.report import TITLES
from lpips_lightning.evaluation.table5 import PAPER_SETS
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTHS,
    CategoryStyle,
    Width,
    category_styles,
    fit_name,
    fit_names,
    label_points,
    new_figure,
    save_figure,
    value_limits,
)

DISTORTIONS = ("traditional", "cnn")
"""Sets of the left half of figure 4; the paper's other sets are of real algorithms."""

CHANCE = 50.0
_ROW, _GAP = 0.155, 0.6  # inches of a bar; rows between groups


@dataclass(frozen=True)
class Bar:
    """Mean score over the sets of a panel, in per cent, with its 95 % interval."""

    value: float
    low: float
    high: float


def panels(sets: Sequence[str]) -> dict[str, list[str]]:
    """The 2AFC sets of each panel of figure 4, by its title."""
    found = {
        "distortions": [name for name in sets if name in DISTORTIONS],
        "real algorithms": [name for name in sets if name in PAPER_SETS and name not in DISTORTIONS],
        "other sets": [name for name in sets if name not in PAPER_SETS],
    }
    return {title: names for title, names in found.items() if names}


def mean_score(scores: Sequence[Score], method: str, sets: Sequence[str]) -> Bar | None:
    """Mean of a method's 2AFC scores over sets.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        method: The method.
        sets: Names of the sets, whose errors are independent: the half widths add up in squares.

    Returns:
        The mean; None unless all sets have a finite score.
    """
    cells = [cell for cell in scores if cell.kind == "2afc" and cell.method == method and cell.set in sets]
    if len(cells) < len(sets) or not all(math.isfinite(cell.value) for cell in cells):
        return None
    value = sum(cell.value for cell in cells) / len(cells)
    below = math.hypot(*(cell.value - cell.low for cell in cells)) / len(cells)
    above = math.hypot(*(cell.high - cell.value for cell in cells)) / len(cells)
    return Bar(value, max(0.0, value - below), min(100.0, value + above))


def save_bars(scores: Sequence[Score], methods: Sequence[PaperMethod], path: str | Path) -> list[Path]:
    """Draw the mean 2AFC score of every method as a bar from 50 %, by group (the paper's figure 4).

    One panel each for distortions, real algorithms, and other sets, as far as there are some.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        methods: The methods.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    triplets = [cell for cell in scores if cell.kind == "2afc"]
    drawn = panels(list(dict.fromkeys(cell.set for cell in triplets)))
    groups = groups_of(methods)
    rows = _rows(groups)
    width: Width = "column" if len(drawn) < 2 else "text"
    name_inches = 1.05
    with new_figure(width, _ROW * (max(rows.values()) + 1.6) + 0.75 + 0.15 * math.ceil(len(groups) / 3)) as figure:
        axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for panel, (title, sets) in zip(axes, drawn.items(), strict=True):
            _draw_bars(panel, triplets, groups, rows, sets)
            named = f"{title}: {', '.join(sets)}" if len(sets) < 3 else f"{title}: {len(sets)} sets"
            panel.set_title(fit_name(named, 0.8 * WIDTHS[width] / len(drawn), TEXT_SIZE))
        axes[0].set_yticks(list(rows.values()), fit_names([one.label for one in _in_order(groups)], name_inches))
        axes[0].set_ylim(max(rows.values()) + 0.7, -0.7)
        figure.supxlabel(_with_note(TITLES["2afc"], scores, WIDTHS[width]), fontsize=TEXT_SIZE)
        _add_groups(figure, list(groups), axes[0], 2 if width == "column" else 4)
        return save_figure(figure, path)


def save_scatter(scores: Sequence[Score], methods: Sequence[PaperMethod], path: str | Path, note: str) -> list[Path]:
    """Draw mean 2AFC scores against mean JND precision, with the color of the group (the paper's figure 5).

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        methods: The methods; those without one of the scores are left out.
        path: Output PNG; a PDF is written beside it.
        note: The correlation, written above the axes.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    points = points_of(scores)
    shown = [one for one in methods if one.name in points]
    styles = _styles(shown)
    with new_figure("column", 3.0) as figure:
        axes = figure.subplots()
        for one in shown:
            style, face = styles[one.name], "white" if one.is_judge else styles[one.name].color
            axes.plot(*points[one.name], style.marker, color=style.color, markerfacecolor=face, clip_on=False)
        places = [points[one.name] for one in shown]
        for axis, kind, column in (("x", "2afc", 0), ("y", "jnd", 1)):
            axes.set(**{f"{axis}lim": value_limits([place[column] for place in places], 0.18)})
            axes.set(**{f"{axis}label": TITLES[kind]})  # type: ignore[index]
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(nbins=6, steps=[1, 2, 5, 10])
            axis.set_major_formatter("{x:g}")
        axes.set_title(fit_name(note, 2.7, SMALL_SIZE), fontsize=SMALL_SIZE)
        judged = _with_note("", scores, WIDTHS["column"])
        figure.supxlabel(judged, fontsize=SMALL_SIZE)
        labels = fit_names([one.label for one in shown], 1.2)
        groups = [group for group in GROUPS if any(one.group == group for one in shown)]
        figure.set_figheight(3.0 + 0.15 * math.ceil(len(groups) / 2))
        _add_groups(figure, groups, axes, 2)
        if not label_points(axes, places, labels):
            for legend in figure.legends:
                legend.remove()
            figure.supxlabel("")  # would overlap the legend
            _add_names(figure, shown, labels, styles, judged)
        return save_figure(figure, path)


def points_of(scores: Sequence[Score]) -> dict[str, tuple[float, float]]:
    """Mean 2AFC score and mean JND precision of every method that has both, in per cent.

    As in the paper, both are means over the sets of distortions that were judged both ways; without such sets, over
    all.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
    """
    methods = [cell for cell in scores if not cell.is_ceiling]
    both = {cell.set for cell in methods if cell.kind == "2afc"} & {cell.set for cell in methods if cell.kind == "jnd"}
    chosen = [cell for cell in methods if cell.set in both] or methods
    across, up = summary(chosen, "2afc"), summary(chosen, "jnd")
    points = {name: (across[name], up[name]) for name in across if name in up}
    return {name: point for name, point in points.items() if all(map(math.isfinite, point))}


def _rows(groups: Mapping[str, Sequence[PaperMethod]]) -> dict[str, float]:
    """Vertical place of every method, with gaps between groups."""
    rows: dict[str, float] = {}
    place = 0.0
    for members in groups.values():
        for one in members:
            rows[one.name] = place
            place += 1
        place += _GAP
    return rows


def _in_order(groups: Mapping[str, Sequence[PaperMethod]]) -> list[PaperMethod]:
    return [one for members in groups.values() for one in members]


def _colors() -> dict[str, str]:
    return {group: style.color for group, style in zip(GROUPS, category_styles(len(GROUPS)), strict=True)}


def _draw_bars(
    axes: Any,
    scores: Sequence[Score],
    groups: Mapping[str, Sequence[PaperMethod]],
    rows: Mapping[str, float],
    sets: Sequence[str],
) -> None:
    colors, ends = _colors(), [CHANCE]
    for group, members in groups.items():
        for one in members:
            bar = mean_score(scores, one.name, sets)
            if bar is None:
                axes.text(CHANCE, rows[one.name], " no value", va="center_baseline", fontsize=SMALL_SIZE, color="0.4")
                continue
            face = "none" if one.is_judge else colors[group]
            axes.barh(rows[one.name], bar.value - CHANCE, 0.75, CHANCE, facecolor=face, edgecolor=colors[group])
            errors = [[bar.value - bar.low], [bar.high - bar.value]]
            axes.errorbar(bar.value, rows[one.name], xerr=errors, fmt="none", ecolor="0.25", elinewidth=0.7)
            ends += [bar.low, bar.high]
    labels = dict.fromkeys(cell.judge for cell in scores if cell.set in sets)
    for label in labels:
        ceiling = None if is_exact(label) else mean_score(scores, label, sets)
        if ceiling is not None:
            name = "human ceiling" if label == HUMAN else "ceiling of the judges"
            axes.axvline(ceiling.value, color="black", linestyle="dashed", linewidth=0.8, label=name)
            ends.append(ceiling.value)
    axes.axvline(CHANCE, color="0.3", linewidth=0.6)
    axes.set_xlim(value_limits(ends))
    axes.xaxis.get_major_locator().set_params(nbins=6, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")


def _add_groups(figure: Any, groups: Sequence[str], axes: Any, columns: int) -> None:
    """Legend of the groups' colors, and of what else `axes` has a label for."""
    from matplotlib.patches import Patch

    colors = _colors()
    handles, labels = axes.get_legend_handles_labels()
    handles = [Patch(facecolor=colors[group]) for group in groups] + handles
    options = {"loc": "outside upper left", "ncols": columns, "columnspacing": 1.0, "handlelength": 1.2}
    figure.legend(handles, [*groups, *labels], **options)


def _styles(methods: Sequence[PaperMethod]) -> dict[str, CategoryStyle]:
    """The color of the group, and a marker that is unique in it."""
    colors, styles = _colors(), {}
    for members in groups_of(methods).values():
        for one, style in zip(members, category_styles(len(members)), strict=True):
            styles[one.name] = style._replace(color=colors[one.group])
    return styles


def _add_names(
    figure: Any, methods: Sequence[PaperMethod], labels: Sequence[str], styles: Mapping[str, CategoryStyle], title: str
) -> None:
    """Names of all points below the axes, in a taller figure."""
    from matplotlib.lines import Line2D

    handles = []
    for one in methods:
        style, face = styles[one.name], "white" if one.is_judge else styles[one.name].color
        handles.append(Line2D([], [], color=style.color, marker=style.marker, markerfacecolor=face, linestyle="none"))
    figure.set_figheight(3.0 + 0.15 * math.ceil(len(methods) / 2))
    options = {"title": title or None, "title_fontsize": SMALL_SIZE, "handletextpad": 0.2, "columnspacing": 1.0}
    figure.legend(handles, labels, loc="outside lower center", ncols=2, **options)


def _with_note(text: str, scores: Sequence[Score], inches: float) -> str:
    """The text, and on a second line who judged if it was not people."""
    note = fit_name(judge_note(cell.judge for cell in scores), inches - 0.1, TEXT_SIZE)
    return "\n".join(filter(None, [text, note]))
