"""Figures of the evaluation: scores by set, 2AFC against JND, and the image pairs on which two methods disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpips_lightning.data.judges import is_exact, judge_note
from lpips_lightning.evaluation.benchmark import HUMAN, Judged, Kind, Score, summary
from lpips_lightning.evaluation.report import TITLES
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    WIDTHS,
    Width,
    below_row,
    category_styles,
    fit_name,
    fit_names,
    label_points,
    new_figure,
    save_figure,
    text_inches,
    value_limits,
)

Place: TypeAlias = tuple[str, int, int]
"""Set, row, and column of a distance."""

_LINE = 0.125  # inches, of a line of small text
_PANELS = 6  # side by side
_LABELS = ("score, 95 % interval", "paper", "human ceiling", "ceiling of the judges")
_OURS, _PAPER, _ACROSS = "#4477aa", "#ee6677", {"axis": "y", "color": "0.9", "linewidth": 0.5}


def save_scores(scores: Sequence[Score], path: str | Path, kind: Kind = "2afc") -> list[Path]:
    """Draw the score of every method on every set: a panel per set, a row per method.

    Dots have their 95 % intervals; diamonds below are the paper's values, a dashed line is the ceiling: the agreement
    of the judges with themselves. If a metric judged, there is none. The figure says so, and if votes are simulated.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        path: Output PNG; a PDF is written beside it.
        kind: Kind of scores to draw.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    chosen = [cell for cell in scores if cell.kind == kind]
    sets = list(dict.fromkeys(cell.set for cell in chosen)) or [""]
    methods = list(dict.fromkeys(cell.method for cell in chosen if not cell.is_ceiling))
    lines = math.ceil(len(sets) / _PANELS)
    columns = math.ceil(len(sets) / lines)
    width: Width = "column" if len(sets) < 3 else "text"
    name_inches = 0.3 * WIDTHS[width]
    set_inches = 0.85 * (WIDTHS[width] - (name_inches if methods else 0)) / columns
    with new_figure(width, lines * (0.5 + 0.18 * max(len(methods), 3)) + 0.45) as figure:
        panels = figure.subplots(lines, columns, sharey=True, squeeze=False).ravel()
        for panel, name, title in zip(panels, sets, fit_names(sets, set_inches, TEXT_SIZE), strict=False):
            _draw_set(panel, methods, [cell for cell in chosen if cell.set == name], 6 if columns == 1 else 3)
            panel.set_title(title)
        for panel in panels[len(sets) :]:
            panel.set_visible(False)
        panels[0].set_yticks(range(len(methods)), fit_names(methods, name_inches))
        panels[0].set_ylim(len(methods) - 0.4, -0.6)
        note = fit_name(judge_note(cell.judge for cell in chosen), WIDTHS[width] - 0.1, TEXT_SIZE)
        figure.supxlabel(TITLES[kind] + (f"\n{note}" if note else ""), fontsize=TEXT_SIZE)
        shown = {label: handle for panel in panels for handle, label in zip(*_handles(panel), strict=True)}
        if shown:
            labels = sorted(shown, key=_LABELS.index)
            options = {"loc": "outside upper right", "ncols": len(labels), "columnspacing": 1.2}
            figure.legend([shown[label] for label in labels], labels, **options)
        return save_figure(figure, path)


def save_scatter(scores: Sequence[Score], path: str | Path) -> list[Path]:
    """Draw the methods' mean 2AFC score against their mean JND precision (the paper's figure 5).

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        path: Output PNG; a PDF is written beside it.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    methods = [
        {cell.method for cell in scores if cell.kind == kind and not cell.is_ceiling} for kind in ("2afc", "jnd")
    ]
    both = [cell for cell in scores if cell.method in methods[0] & methods[1]]
    across, up = summary(both, "2afc"), summary(both, "jnd")
    points = {name: (across[name], up[name]) for name in across if name in up}
    with new_figure("column", 2.6) as figure:
        axes = figure.subplots()
        for (x, y), style in zip(points.values(), category_styles(len(points)), strict=True):
            axes.plot(x, y, style.marker, color=style.color, clip_on=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(nbins=6, steps=[1, 2, 5, 10])
            axis.set_major_formatter("{x:g}")
        for kind, axis, values in (("2afc", "x", across), ("jnd", "y", up)):
            axes.set(**{f"{axis}lim": value_limits([values[name] for name in points], 0.18)})
            sets = len({cell.set for cell in both if cell.kind == kind})
            axes.set(**{f"{axis}label": TITLES[kind] + (f"\nmean of {sets} sets" if sets > 1 else "")})  # type: ignore[index]
        axes.set_title(fit_name(judge_note(cell.judge for cell in both), 2.6, TEXT_SIZE))
        if not points:
            _say(axes, "no method with both scores")
        drawn = all(map(math.isfinite, (*across.values(), *up.values())))
        if not drawn or not label_points(axes, list(points.values()), fit_names(list(points), 1.2)):
            _add_legend(figure, axes, points)
        return save_figure(figure, path)


def disagreements(
    first: Mapping[str, Judged],
    second: Mapping[str, Judged],
    count: int,
    identify: Callable[[Place], Hashable] = lambda place: place,
) -> tuple[list[Place], list[Place]]:
    """The image pairs on which two methods disagree most.

    Compares ranks over all pairs, because distances of different methods have no common unit. NaN distances are left
    out.

    Args:
        first: Distances of the first method by set.
        second: Distances of the second method on the same sets.
        count: Number of pairs per direction.
        identify: A key per pair; of pairs with equal keys, one is returned.

    Returns:
        Up to `count` pairs that are nearer for the first method than for the second, and up to `count` that are nearer
        for the second, strongest first.
    """
    places: list[Place] = []
    columns: list[list[Tensor]] = [[], []]
    for name in first:
        rows, width = first[name].distances.shape
        places += [(name, row, column) for row in range(rows) for column in range(width)]
        for method, column_parts in zip((first, second), columns, strict=True):
            column_parts.append(method[name].distances.flatten())
    values = torch.stack([torch.cat(parts) for parts in columns])
    known = (~values.isnan().any(0)).nonzero().flatten()
    one, other = (row[known].argsort(stable=True).argsort() for row in values)
    seen: set[Hashable] = set()

    def strongest(difference: Tensor) -> list[Place]:
        found: list[Place] = []
        for index in difference.argsort(descending=True, stable=True):
            if len(found) == count or difference[index] <= 0:
                break
            place = places[known[index]]
            if (key := identify(place)) not in seen:
                seen.add(key)
                found.append(place)
        return found

    return strongest(other - one), strongest(one - other)


def save_disagreements(
    measured: Mapping[str, Mapping[str, Judged]],
    names: tuple[str, str],
    sets: Mapping[str, Dataset[dict[str, Any]]],
    path: str | Path,
    count: int = 4,
) -> list[Path]:
    """Draw the image pairs on which two methods disagree most (the paper's figure 6).

    A pair of images is shown once, with their files if the data set knows them.

    Args:
        measured: Distances by method, then by set.
        names: The two methods.
        sets: Data sets with the images, by name.
        path: Output PNG; a PDF is written beside it.
        count: Number of pairs per direction.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    methods = [{name: measured[method][name] for name in sets} for method in names]
    chosen = disagreements(methods[0], methods[1], count, lambda place: _content(_images(sets, place)))
    short = fit_names(names, 2.2, TEXT_SIZE)
    cell = 0.96 * WIDTHS["text"] / count
    captions = [[_caption(sets, place, methods, names, cell) for place in places] for places in chosen]
    heights = [_block_height(sets, *block, cell) for block in zip(chosen, captions, strict=True)]
    with new_figure("text", sum(heights)) as figure:
        blocks = figure.subfigures(2, height_ratios=heights)
        for block, places, texts, (near, far) in zip(blocks, chosen, captions, (short, short[::-1]), strict=True):
            block.suptitle(f"similar for {near}, different for {far}", fontsize=TEXT_SIZE)
            if not places:
                block.text(0.5, 0.2, "no such pair", ha="center", fontsize=SMALL_SIZE)
                continue
            axes = block.subplots(1, count, squeeze=False)[0]
            for panel, place, text in zip(axes, places, texts, strict=False):
                _draw_pair(panel, _images(sets, place))
                panel.set_xlabel(text, fontsize=SMALL_SIZE)
            for panel in axes[len(places) :]:
                panel.set_visible(False)
        return save_figure(figure, path)


def _draw_set(axes: Any, methods: Sequence[str], cells: Sequence[Score], ticks: int) -> None:
    """Dots, intervals, the paper's values and the judges' agreement of one set."""
    rows = {name: row for row, name in enumerate(methods)}
    shown = [cell for cell in cells if cell.method in rows and math.isfinite(cell.value)]
    ceilings = [cell for cell in cells if cell.is_ceiling and not is_exact(cell.judge) and math.isfinite(cell.value)]
    papers = [(cell.paper, rows[cell.method]) for cell in cells if cell.paper is not None and cell.method in rows]
    axes.grid(**_ACROSS)
    axes.set_axisbelow(True)
    for cell in ceilings:
        axes.axvline(
            cell.value, color="black", linestyle="dashed", linewidth=0.8, label=_LABELS[2 if cell.judge == HUMAN else 3]
        )
    if shown:
        errors = [(max(0.0, cell.value - cell.low), max(0.0, cell.high - cell.value)) for cell in shown]
        style = {"color": _OURS, "linewidth": 1, "clip_on": False, "markersize": 3.5, "label": _LABELS[0]}
        at = [rows[cell.method] for cell in shown]
        axes.errorbar([cell.value for cell in shown], at, xerr=list(zip(*errors, strict=True)), fmt="o", **style)
    if papers:
        style = {"markersize": 2.5, "clip_on": False, "label": _LABELS[1], "transform": below_row(axes)}
        axes.plot(*zip(*papers, strict=True), "D", color=_PAPER, **style)
    ends = [end for cell in (*shown, *ceilings) for end in (cell.value, cell.low, cell.high)]
    axes.set_xlim(value_limits([*ends, *(value for value, _ in papers)]))
    axes.xaxis.get_major_locator().set_params(nbins=ticks, min_n_ticks=2, steps=[1, 2, 5, 10])
    axes.xaxis.set_major_formatter("{x:g}")
    for cell in (cell for cell in cells if cell.method in rows and cell not in shown):
        place = {"transform": axes.get_yaxis_transform(), "va": "center_baseline", "fontsize": SMALL_SIZE}
        axes.text(0.02, rows[cell.method], "no value", color="0.4", **place)
    if not cells:
        _say(axes, "no scores")


def _handles(axes: Any) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles, labels


def _add_legend(figure: Any, axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Names of all points below the axes, in a taller figure."""
    from matplotlib.lines import Line2D

    labels = [name if all(map(math.isfinite, point)) else f"{name} (no value)" for name, point in points.items()]
    styles = category_styles(len(points))
    handles = [Line2D([], [], color=style.color, marker=style.marker, linestyle="none") for style in styles]
    figure.set_figheight(2.6 + 0.15 * math.ceil(len(points) / 2))
    options = {"loc": "outside lower center", "ncols": 2, "handletextpad": 0.2, "columnspacing": 1.0}
    figure.legend(handles, fit_names(labels, 1.2), **options)


def _say(axes: Any, text: str) -> None:
    place = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": SMALL_SIZE}
    axes.text(0.5, 0.5, text, **place)


def _images(sets: Mapping[str, Dataset[dict[str, Any]]], place: Place) -> list[Tensor]:
    """The two images of a pair."""
    name, row, column = place
    item = sets[name][row]
    return [item[image] for image in _kinds(item, column)]


def _kinds(item: Mapping[str, Any], column: int) -> tuple[str, str]:
    return ("ref", ("p0", "p1")[column]) if "judge" in item else ("p0", "p1")


def _content(images: Sequence[Tensor]) -> Hashable:
    """A key of the two images, in any order."""
    return frozenset((tuple(image.shape), image.numpy().tobytes()) for image in images)


def _draw_pair(axes: Any, images: Sequence[Tensor]) -> None:
    """Two images of one size side by side."""
    gap = images[0].new_ones(3, images[0].shape[1], max(1, images[0].shape[2] // 24))
    pair = torch.cat([images[0], gap, images[1]], 2)
    axes.imshow(((pair + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[], anchor="N")
    axes.spines[:].set_visible(False)


def _block_height(
    sets: Mapping[str, Dataset[dict[str, Any]]], places: Sequence[Place], captions: Sequence[str], cell: float
) -> float:
    """Inches of a heading and pairs of images in cells of width `cell`, with their captions."""
    shapes = [_images(sets, place)[0].shape for place in places]
    tallest = max((height / width for _, height, width in shapes), default=0.0)
    lines = max((text.count("\n") + 1 for text in captions), default=1)
    return min(tallest, 3.0) * cell / 2 + lines * _LINE + 0.4


def _caption(
    sets: Mapping[str, Dataset[dict[str, Any]]],
    place: Place,
    methods: Sequence[Mapping[str, Judged]],
    names: Sequence[str],
    inches: float,
) -> str:
    """Set, files or row, and the two distances, in lines of at most `inches`."""
    name, row, column = place
    item = sets[name][row]
    kinds, files = _kinds(item, column), str(item.get("path", "")).split("|")
    lines = [fit_name(name, inches)] if len(sets) > 1 else []
    if len(files) == 3:  # of a TripletDataset
        lines += fit_names([files[0], files[1 + column]], inches)
    else:
        file = Path(files[0]).name or f"row {row}"
        lines.append(fit_name(f"{kinds[0]}, {kinds[1]}: {file}", inches))
    values = [float(method[name].distances[row, column]) for method in methods]
    scores = [f"{method} {value:.3g}" for method, value in zip(fit_names(names, inches - 0.5), values, strict=True)]
    if text_inches(together := " | ".join(scores)) < inches:
        scores = [together]
    return "\n".join([*lines, *scores])
