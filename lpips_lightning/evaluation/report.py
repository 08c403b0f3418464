"""Scores of the evaluation as terminal table, CSV, Markdown and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch.utils.data import Dataset

from lpips_lightning.evaluation.benchmark import HUMAN, Judged, Kind, Score, summary
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.tables import write_table

_TITLES: dict[Kind, str] = {"2afc": "2AFC score, %", "jnd": "JND average precision, %"}


def as_table(scores: Sequence[Score], kind: Kind) -> Table:
    """Terminal table of methods by sets: score ± half its interval, the paper's row below, and the number of rows.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        kind: Kind of scores to show.
    """
    chosen = [cell for cell in scores if cell.kind == kind]
    means = summary(scores, kind)
    table = Table(title=_TITLES[kind], title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", overflow="fold")
    sets = list(dict.fromkeys(cell.set for cell in chosen))
    for heading in (*sets, "mean"):
        table.add_column(Text(heading), justify="right", overflow="fold", min_width=8 if heading in sets else 4)
    for method in dict.fromkeys(cell.method for cell in chosen):
        found = {cell.set: cell for cell in chosen if cell.method == method}
        ours = [f"{_value(found[name])}" if name in found else "" for name in sets]
        table.add_row(Text(method), *ours, f"{means[method]:.1f}" if method in means else "")
        papers = [found[name].paper if name in found else None for name in sets]
        if any(paper is not None for paper in papers):
            known = [paper for paper in papers if paper is not None]
            mean = f"{sum(known) / len(known):.1f}" if len(known) == len(sets) else ""
            row = ["" if paper is None else f"{paper:.1f}    " for paper in papers]
            table.add_row("  paper", *row, mean, style="dim")
    counts = ({cell.count for cell in chosen if cell.set == name} for name in sets)
    table.add_row("n", *("/".join(map(str, sorted(found))) + " " * 4 for found in counts), "", style="dim")
    return table


def as_markdown(scores: Sequence[Score]) -> str:
    """Markdown tables of methods by sets, one per kind; the paper's values in parentheses."""
    lines: list[str] = []
    for kind, title in _TITLES.items():
        header, rows = _cells(scores, kind)
        if rows:
            lines += [f"**{title}** (paper in parentheses)" if kind == "2afc" else f"**{title}**", ""]
            lines += [_line(header), _line(["---"] + ["---:"] * (len(header) - 1)), *map(_line, rows), ""]
    return "\n".join(lines)


def save_csv(scores: Sequence[Score], path: str | Path) -> None:
    """Write a CSV atomically, one line per method and set."""
    names, rounded = [field.name for field in fields(Score)], ("value", "low", "high")
    rows = ([f"{cell[name]:.4f}" if name in rounded else cell[name] for name in names] for cell in map(asdict, scores))
    write_table(path, names, rows)


def save_text(text: str, path: str | Path) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_bars(scores: Sequence[Score], path: str | Path, kind: Kind = "2afc") -> None:
    """Draw bars of every method by set, with intervals, the human ceiling as a line and the paper's values as dots.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    chosen = [cell for cell in scores if cell.kind == kind]
    sets = list(dict.fromkeys(cell.set for cell in chosen))
    methods = [name for name in dict.fromkeys(cell.method for cell in chosen) if name != HUMAN]
    figure, axis = _figure((min(2.6 + 0.3 * len(sets) * max(len(methods), 3), 16.0), 3.6))
    width = 0.84 / max(len(methods), 1)
    by_place = {(cell.method, cell.set): cell for cell in chosen}
    for index, method in enumerate(methods):
        cells = [(place, by_place[method, name]) for place, name in enumerate(sets) if (method, name) in by_place]
        xs = [place + (index - (len(methods) - 1) / 2) * width for place, _ in cells]
        values = [cell.value for _, cell in cells]
        errors = [[cell.value - cell.low for _, cell in cells], [cell.high - cell.value for _, cell in cells]]
        style = {"error_kw": {"linewidth": 0.8}, "color": _color(index, len(methods))}
        axis.bar(xs, values, 0.92 * width, yerr=errors, label=method, **style)
        papers = [(x, cell.paper) for x, (_, cell) in zip(xs, cells, strict=True) if cell.paper is not None]
        label = "paper" if not index else None
        axis.plot(
            [x for x, _ in papers], [value for _, value in papers], "o", ms=3.5, mfc="white", mec="black", label=label
        )
    for place, name in enumerate(sets):
        if (HUMAN, name) in by_place:
            label = HUMAN if not place else None
            axis.plot([place - 0.46, place + 0.46], [by_place[HUMAN, name].value] * 2, "k--", linewidth=1, label=label)
    lowest = min((cell.low for cell in chosen), default=0.0)
    axis.set(
        xticks=range(len(sets)), xticklabels=sets, ylabel=_TITLES[kind], ylim=(max(0.0, min(50.0, lowest) - 2), None)
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    _save(figure, path)


def save_scatter(scores: Sequence[Score], path: str | Path) -> None:
    """Draw the methods' mean 2AFC score against their mean JND precision (the paper's figure 5).

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    methods = [
        {cell.method for cell in scores if cell.kind == kind and cell.method != HUMAN} for kind in ("2afc", "jnd")
    ]
    both = [cell for cell in scores if cell.method in methods[0] & methods[1]]
    across, up = summary(both, "2afc"), summary(both, "jnd")
    figure, axis = _figure((5.2, 4.2))
    for method in (name for name in across if name in up):
        axis.plot(across[method], up[method], "o", ms=6, color=_color(0, 1))
        axis.annotate(method, (across[method], up[method]), textcoords="offset points", xytext=(6, 3), fontsize=8)
    axis.set(xlabel=f"{_TITLES['2afc']}, mean over sets", ylabel=f"{_TITLES['jnd']}, mean over sets")
    axis.margins(0.18)
    _save(figure, path)


def disagreements(first: Mapping[str, Judged], second: Mapping[str, Judged], count: int) -> list[tuple[str, int, int]]:
    """The image pairs on which two methods disagree most.

    Compares ranks over all pairs, because distances of different methods have no common unit.

    Args:
        first: Distances of the first method by set.
        second: Distances of the second method on the same sets.
        count: Number of pairs per direction.

    Returns:
        (set, row, column of the distance), strongest first: `count` pairs that are near for the first method and far
        for the second, then `count` pairs that are near for the second and far for the first.
    """
    places: list[tuple[str, int, int]] = []
    columns: list[list[Tensor]] = [[], []]
    for name in first:
        rows, width = first[name].distances.shape
        places += [(name, row, column) for row in range(rows) for column in range(width)]
        for method, column_parts in zip((first, second), columns, strict=True):
            column_parts.append(method[name].distances.flatten())
    ranks = [torch.cat(parts).argsort().argsort() for parts in columns]
    order = (ranks[1] - ranks[0]).argsort(descending=True).tolist()
    return [places[index] for index in (*order[:count], *reversed(order[-count:]))]


def save_disagreements(
    measured: Mapping[str, Mapping[str, Judged]],
    names: tuple[str, str],
    sets: Mapping[str, Dataset[dict[str, Any]]],
    path: str | Path,
    count: int = 4,
) -> None:
    """Draw the image pairs on which two methods disagree most (the paper's figure 6).

    Args:
        measured: Distances by method, then by set.
        names: The two methods.
        sets: Data sets with the images, by name.
        path: Output PNG.
        count: Number of pairs per direction.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    first, second = ({name: measured[method][name] for name in sets} for method in names)
    chosen = disagreements(first, second, count)
    figure, axes = _figure((1.55 * len(chosen) // 2 + 1.2, 7.4), (4, len(chosen) // 2))
    for place, (name, row, column) in enumerate(chosen):
        item = sets[name][row]
        images = ("ref", ("p0", "p1")[column]) if "judge" in item else ("p0", "p1")
        top, left = divmod(place, len(chosen) // 2)
        for below, image in enumerate(images):
            axis = axes[2 * top + below][left]
            axis.imshow(((item[image] + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        values = [float(method[name].distances[row, column]) for method in (first, second)]
        axes[2 * top][left].set_title(f"{name}\n{values[0]:.3g} | {values[1]:.3g}", fontsize=7)
    for top, (near, far) in enumerate((names, names[::-1])):
        axes[2 * top][0].set_ylabel(f"near for {near},\nfar for {far}", fontsize=7)
    figure.suptitle(f"{names[0]} | {names[1]}: where they disagree most", fontsize=9)
    _save(figure, path)


def _cells(scores: Sequence[Score], kind: Kind) -> tuple[list[str], list[list[str]]]:
    chosen = [cell for cell in scores if cell.kind == kind]
    sets = list(dict.fromkeys(cell.set for cell in chosen))
    means = summary(scores, kind)
    rows = []
    for method in dict.fromkeys(cell.method for cell in chosen):
        found = {cell.set: cell for cell in chosen if cell.method == method}
        row = [method, *(_cell(found[name]) if name in found else "" for name in sets)]
        rows.append([*row, f"{means[method]:.2f}" if method in means else ""])
    return ["method", *sets, "mean"], rows


def _value(cell: Score) -> str:
    return _with_interval(cell, 1, "±")


def _cell(cell: Score) -> str:
    paper = f" ({cell.paper:.1f})" if cell.paper is not None else ""
    return f"{_with_interval(cell, 2, ' ± ')}{paper}"


def _with_interval(cell: Score, digits: int, sign: str) -> str:
    """The score ± half its interval; both ends where the half would reach below 0 or above 100."""
    half = (cell.high - cell.low) / 2
    if not (cell.value - half < 0 or cell.value + half > 100):
        return f"{cell.value:.{digits}f}{sign}{half:.{digits}f}"
    return f"{cell.value:.{digits}f} ({cell.low:.0f} to {cell.high:.0f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure(size: tuple[float, float], grid: tuple[int, int] | None = None) -> tuple[Any, Any]:
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            'figures are drawn by matplotlib, which is not installed: pip install "lpips_lightning[recipes]"'
        )
    from matplotlib.figure import Figure  # no pyplot: no global state, no window

    figure = Figure(size, dpi=150, layout="constrained")
    if grid is not None:
        return figure, figure.subplots(*grid, squeeze=False)
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _color(index: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](0.12 + 0.78 * index / max(count - 1, 1))


def _save(figure: Any, path: str | Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
