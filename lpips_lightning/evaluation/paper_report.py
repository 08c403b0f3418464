"""The paper's figures and tables as one HTML page that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lpips_lightning.data.judges import Judge
from lpips_lightning.evaluation.benchmark import Kind, Score, summary
from lpips_lightning.evaluation.paper_figures import DISTORTIONS, mean_score, points_of
from lpips_lightning.evaluation.paper_methods import LeftOut, PaperMethod, groups_of
from lpips_lightning.evaluation.paper_tasks import (
    PASCAL,
    PRINTED_2AFC,
    Correlation,
    TaskCorrelation,
    correlation,
    task_correlations,
)
from lpips_lightning.evaluation.report import TITLES, with_interval
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5
from lpips_lightning.io.atomic import atomic_write

TITLE = "LPIPS: the paper's figures and tables"
_PIXELS_PER_INCH = 130


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        scores: Scores from `lpips_lightning.evaluation.benchmark.score`.
        methods: The methods, in the order of their groups.
        left_out: Methods that this machine cannot measure.
        judges: Who judged, by set.
        observer: Attributes of simulated observers, from ``made.json``; empty without.
        data: Description of the data, as rows of a table.
        run: Description of the run, as rows of a table.
    """

    scores: Sequence[Score]
    methods: Sequence[PaperMethod]
    left_out: Sequence[LeftOut]
    judges: Mapping[str, Judge]
    observer: Mapping[str, object]
    data: Mapping[str, str]
    run: Mapping[str, str]

    def without_judge(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Scores by method, without the metric that judged."""
        judges = {one.name for one in self.methods if one.is_judge}
        return {name: value for name, value in scores.items() if name not in judges}


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        png: Content of the PNG, base64.
        width: Width in CSS pixels.
        alt: What it shows, for those who do not see it.
        caption: Its caption.
        files: Names of its files.
    """

    png: str
    width: int
    alt: str
    caption: str
    files: Sequence[str]


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `paper` is the paper's value."""

    text: str
    paper: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of a table below a title."""

    title: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    caption: str
    header: Sequence[str]
    groups: Sequence[Group]


def picture(figure: Sequence[Path], inches: float, alt: str, caption: str) -> Picture:
    """A figure in the page.

    Args:
        figure: Its PNG, and its other files.
        inches: Its width.
        alt: What it shows.
        caption: Its caption.
    """
    png = base64.b64encode(figure[0].read_bytes()).decode("ascii")
    return Picture(png, round(_PIXELS_PER_INCH * inches), alt, caption, [file.name for file in figure])


def write_report(
    comparison: Comparison, figures: Mapping[str, Picture], path: str | Path, no_figure6: str = ""
) -> list[TaskCorrelation]:
    """Write the page, atomically.

    Args:
        comparison: What was measured.
        figures: ``"figure4"``, and ``"figure5"`` and ``"figure6"`` if there are any.
        path: Output file.
        no_figure6: Why there is no figure 6.

    Returns:
        The rows of Table 4.
    """
    from jinja2 import Environment, StrictUndefined

    template = files("lpips_lightning.evaluation").joinpath("paper_report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    table4 = table_4(comparison)
    page = environment.from_string(template).render(
        title=TITLE,
        warning=warning(comparison.judges.values(), comparison.observer),
        data=comparison.data,
        run=comparison.run,
        figures={name: figures.get(name) for name in ("figure4", "figure5", "figure6")},
        no_figure6=no_figure6,
        correlation=correlation_text(comparison),
        table4=table4,
        table4_notes=_table_4_notes(),
        tables=[*_score_tables(comparison), _paper_table(comparison)],
        order=_order_text(comparison),
        methods=comparison.methods,
        left_out=comparison.left_out,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")
    return table4


def warning(judges: Iterable[Judge], observer: Mapping[str, object]) -> str:
    """What a reader must know first if it was not people who judged; empty for people.

    Args:
        judges: Who judged the sets.
        observer: Attributes of simulated observers; empty without.
    """
    found = list(dict.fromkeys(judges))
    labels = [judge.label.partition(": ")[2] for judge in found if judge.kind in ("metric", "simulated")]
    if labels:
        names = ", ".join(dict.fromkeys(labels))
        votes = f" with votes of simulated observers ({attributes(observer)})" if observer else ""
        return (
            f"Judged by {names}{votes}, not by people. The numbers say how near a method is to this metric, not how"
            " near it is to people."
        )
    if any(judge.kind == "unknown" for judge in found):
        return "Nothing says who judged these data: they are not BAPPS by the number of their judgments."
    return ""


def jnd_correlation(comparison: Comparison) -> Correlation | None:
    """Correlation of mean 2AFC scores and mean JND precision over the methods, without the judge."""
    points = points_of(comparison.scores)
    columns = [comparison.without_judge({name: point[axis] for name, point in points.items()}) for axis in (0, 1)]
    return correlation(columns[0], columns[1])


def correlation_text(comparison: Comparison) -> str:
    """A sentence on the correlation of figure 5."""
    found = jnd_correlation(comparison)
    if found is None:
        return "No correlation: it takes at least three methods with both scores, and sets of triplets and of pairs."
    judge = ", without the judge" if any(one.is_judge for one in comparison.methods) else ""
    return (
        f"Over {found.count} methods{judge}: Pearson {_interval(found.pearson)}, Spearman {_interval(found.spearman)}"
        " (95 % bootstrap intervals over methods). The paper has 0.928 for its networks on BAPPS."
    )


def table_4(comparison: Comparison) -> list[TaskCorrelation]:
    """Table 4 with our scores of the networks that the paper's table of tasks has."""
    sets = [cell.set for cell in comparison.scores if cell.kind == "2afc"]
    chosen = [name for name in dict.fromkeys(sets) if name in DISTORTIONS] or list(dict.fromkeys(sets))
    bars = {one.name: mean_score(comparison.scores, one.name, chosen) for one in comparison.methods}
    two_afc = {name: bar.value for name, bar in bars.items() if bar is not None} if chosen else {}
    jnd = summary(_of_methods(comparison), "jnd")
    return task_correlations(_by_row(comparison, two_afc), _by_row(comparison, jnd))


def _of_methods(comparison: Comparison) -> list[Score]:
    return [cell for cell in comparison.scores if not cell.is_ceiling]


def _by_row(comparison: Comparison, scores: Mapping[str, float]) -> dict[str, float]:
    """Scores by the paper's name of the network, of those in `PASCAL`; the first of two with one name."""
    found: dict[str, float] = {}
    for one in comparison.methods:
        row = one.method.paper
        if row in PASCAL and one.name in scores:
            found.setdefault(row, scores[one.name])
    return found


def _table_4_notes() -> list[str]:
    dots = ", ".join(name for name in PASCAL if name not in PRINTED_2AFC)
    return [
        f"“From the numbers it prints”: the {len(PRINTED_2AFC)} networks whose 2AFC scores stand in the paper's Table 5"
        f" ({', '.join(PRINTED_2AFC)}), their printed means over both sets of distortions, and the mAP of their"
        " fine-tuned AlexNets on PASCAL VOC from the literature.",
        "The paper's own correlations cannot be recomputed. They are over more networks, and the scores of the others"
        f" ({dots}) exist only as dots of its figure 5; it prints no JND precision at all. With so few networks a"
        " correlation changes much with their choice.",
        "“Ours”: the same mAP against our scores of those networks that were measured here: AlexNet is alex:baseline,"
        " Gaussian is alex:random, and files of k-means and of self-supervised networks are the others.",
    ]


def _score_tables(comparison: Comparison) -> list[Table]:
    tables = []
    for kind in ("2afc", "jnd"):
        chosen = [cell for cell in comparison.scores if cell.kind == kind]
        if chosen:
            tables.append(_score_table(comparison, chosen, kind))
    return tables


def _score_table(comparison: Comparison, chosen: Sequence[Score], kind: Kind) -> Table:
    sets = list(dict.fromkeys(cell.set for cell in chosen))
    means = summary(chosen, kind)
    paper = "; the paper's value in parentheses" if any(cell.paper is not None for cell in chosen) else ""

    def row(method: str, label: str) -> list[Cell]:
        found = {cell.set: cell for cell in chosen if cell.method == method}
        cells = [_cell(found[name]) if name in found else Cell("") for name in sets]
        return [Cell(label), *cells, Cell(f"{means[method]:.1f}" if method in means else "")]

    ceilings = list(dict.fromkeys(cell.method for cell in chosen if cell.is_ceiling))
    groups = [Group("", [row(name, name) for name in ceilings])]
    for title, members in groups_of(comparison.methods).items():
        groups.append(Group(title, [row(one.name, one.label) for one in members]))
    counts = ", ".join(f"{name} {max(cell.count for cell in chosen if cell.set == name)}" for name in sets)
    first = " First row: agreement of the judges with themselves." if ceilings else ""
    caption = f"{TITLES[kind]}, ± half a 95 % interval{paper}. Number: {counts}.{first}"
    return Table(caption, ["method", *sets, "mean"], groups)


def _cell(cell: Score) -> Cell:
    return Cell(with_interval(cell, 1, " ± "), "" if cell.paper is None else f"{cell.paper:.1f}")


def _paper_table(comparison: Comparison) -> Table:
    """The paper's Table 5, with the methods measured here."""
    means, rows = summary(comparison.scores, "2afc"), []
    for name, values in TABLE_5.items():
        ours = [one for one in comparison.methods if one.method.paper == name and one.name in means]
        cells = [name, *(f"{value:.1f}" for value in values), f"{sum(values) / len(values):.1f}"]
        cells.append(", ".join(f"{one.label} {means[one.name]:.1f}" for one in ours) or "-")
        rows.append([Cell(text) for text in cells])
    caption = "The paper's 2AFC scores on BAPPS, judged by people, %, and the mean of the same method here."
    return Table(caption, ["method", *PAPER_SETS, "mean", "here"], [Group("", rows)])


def _order_text(comparison: Comparison) -> str:
    means = comparison.without_judge(summary(comparison.scores, "2afc"))
    rows = {one.name: TABLE_5.get(one.method.paper or "") for one in comparison.methods}
    papers = {name: sum(row) / len(row) for name, row in rows.items() if row is not None}
    found = correlation(means, papers)
    if found is None:
        return ""
    return (
        f"Our means rank the {found.count} methods that both tables have as the paper's means with Spearman"
        f" {_interval(found.spearman)}."
    )


def _interval(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f} ({values[1]:.2f} to {values[2]:.2f})"


def attributes(observer: Mapping[str, object]) -> str:
    """Noise, lapse and threshold of simulated observers, as text."""
    shown = {name: value for name, value in observer.items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.3g}" for name, value in shown.items())
