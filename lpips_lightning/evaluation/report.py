"""Scores of the evaluation as terminal table, CSV and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from lpips_lightning.data.judges import judge_note
from lpips_lightning.evaluation.benchmark import Kind, Score, flip_rates, summary
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.tables import write_table

TITLES: dict[Kind, str] = {"2afc": "2AFC score, %", "jnd": "JND average precision, %"}
"""Names of the scores, with their unit."""

FLIPS_TITLE = "Rank flips, %"
"""Name of the rank flips, with their unit."""


def as_table(scores: Sequence[Score], kind: Kind) -> Table:
    """Terminal table of methods by sets: score ± half its interval, the paper's row below, and the number of rows.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        kind: Kind of scores to show.
    """
    chosen = [cell for cell in scores if cell.kind == kind]
    means = summary(scores, kind)
    note = judge_note(cell.judge for cell in chosen)
    title = Text(TITLES[kind] + (f", {note}" if note else ""), style="table.title")
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
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


def as_flip_table(scores: Sequence[Score]) -> Table:
    """Terminal table of rank flips: methods by pixels of the shift, over the triplets of all sets.

    Args:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`, of which some are rank flips.
    """
    header, rows, counts = _flip_cells(scores)
    title = Text(FLIPS_TITLE, style="table.title")
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(header[0], overflow="fold")
    for heading in header[1:]:
        table.add_column(heading, justify="right")
    for method, *cells in rows:
        table.add_row(Text(method), *cells)
    table.add_row("n", *counts, style="dim")
    return table


def as_markdown(scores: Sequence[Score]) -> str:
    """Markdown tables of methods by sets, one per kind; the paper's values in parentheses."""
    lines: list[str] = []
    for kind, title in TITLES.items():
        header, rows = _cells(scores, kind)
        if rows:
            of_kind = [cell for cell in scores if cell.kind == kind]
            about = ["paper in parentheses"] * any(cell.paper is not None for cell in of_kind)
            about += filter(None, [judge_note(cell.judge for cell in of_kind)])
            lines += [f"**{title}**" + (f" ({'; '.join(about)})" if about else ""), ""]
            lines += [_line(header), _line(["---"] + ["---:"] * (len(header) - 1)), *map(_line, rows), ""]
    header, rows, _ = _flip_cells(scores)
    if rows:
        lines += [f"**{FLIPS_TITLE}**", "", _line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
        lines += [*map(_line, rows), ""]
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


def _flip_cells(scores: Sequence[Score]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headings, rows, and numbers of triplets."""
    rates = flip_rates(scores)
    shifts = sorted({shift for found in rates.values() for shift in found})
    rows = [
        [method, *(f"{found[shift][0]:.1f}" if shift in found else "" for shift in shifts)]
        for method, found in rates.items()
    ]
    counts = [
        "/".join(map(str, sorted({found[shift][1] for found in rates.values() if shift in found}))) for shift in shifts
    ]
    return ["method", *(f"{shift} px" for shift in shifts)], rows, counts


def _value(cell: Score) -> str:
    return with_interval(cell, 1, "±")


def _cell(cell: Score) -> str:
    paper = f" ({cell.paper:.1f})" if cell.paper is not None else ""
    return f"{with_interval(cell, 2, ' ± ')}{paper}"


def with_interval(cell: Score, digits: int, sign: str) -> str:
    """The score ± half its interval; both ends where the half would reach below 0 or above 100.

    Args:
        cell: The score.
        digits: Decimals of the score and its half interval.
        sign: What stands between them.
    """
    half = (cell.high - cell.low) / 2
    if not (cell.value - half < 0 or cell.value + half > 100):
        return f"{cell.value:.{digits}f}{sign}{half:.{digits}f}"
    return f"{cell.value:.{digits}f} ({cell.low:.0f} to {cell.high:.0f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
