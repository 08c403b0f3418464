"""Rows of a trade-off table, as CSV, terminal table and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table

from lpips_lightning.io.tables import read_table, write_table

UNTRAINED, PIXEL, BASELINE = "untrained", "pixel", "baseline"
"""Losses without a network: no training and pixel loss only; and the suffix for uncalibrated networks."""

GAN = "+gan"
"""Suffix of losses with a discriminator."""

OWN = "\u2020"
"""Marks scores with the network of the loss."""

_BREAKS = str.maketrans({" ": "\n", "(": "\n", ")": "", "-": "-\n"})  # LPIPS, network and arrow on lines of their own
_PLAIN = ("loss", "seed", "weight", "seconds", "note")
_ADVERSARIAL = "adversarial"  # a column that older tables lack
_HEADINGS = {"psnr": "PSNR \u2191", "ssim": "SSIM \u2191"}
_DIGITS = {"psnr": 2}


@dataclass(frozen=True)
class TradeoffRow:
    """Result of one training, or the reason why it is missing.

    Attributes:
        loss: For example ``"pixel"``, ``"alex"``, ``"alex:baseline"`` or ``"alex+gan"``.
        seed: Seed of the training.
        weight: Weight of LPIPS in the loss.
        seconds: Training time.
        note: Reason for missing scores, else empty.
        scores: Scores by name: ``"psnr"``, ``"ssim"``, ``"lpips_<net>"``, and the recipe's own.
        adversarial: Weight of the adversarial loss; 0 without a discriminator.
    """

    loss: str
    seed: int
    weight: float = 0.0
    seconds: float = 0.0
    note: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    adversarial: float = 0.0

    @property
    def reconstruction(self) -> str:
        """The loss without the discriminator."""
        return self.loss.removesuffix(GAN)

    @property
    def net(self) -> str:
        """Network of the loss."""
        return self.reconstruction.partition(":")[0]

    @property
    def stem(self) -> str:
        """Stem of the row's file names."""
        return f"{self.loss.replace(':', '_').replace('+', '_')}_seed{self.seed}"


def read_rows(path: Path) -> list[TradeoffRow]:
    """Read the rows of `write_rows`; empty if the file does not exist.

    Raises:
        ValueError: If the file is not such a table.
    """
    if not path.exists():
        return []
    table = read_table(path)
    table.require(_PLAIN)
    names = [name for name in table.columns if name not in (*_PLAIN, _ADVERSARIAL)]
    has_adversarial = _ADVERSARIAL in table.columns
    return [
        TradeoffRow(
            row["loss"],
            int(row.number("seed")),
            row.number("weight"),
            row.number("seconds"),
            row["note"],
            {name: row.number(name) for name in names if row[name]},
            row.number(_ADVERSARIAL) if has_adversarial else 0.0,
        )
        for row in table.rows
    ]


def write_rows(path: Path, rows: Sequence[TradeoffRow]) -> None:
    """Write rows as CSV atomically."""
    names = score_names(rows)
    lines = []
    for row in rows:
        scores = [f"{row.scores[name]:.6g}" if name in row.scores else "" for name in names]
        plain = [row.loss, row.seed, f"{row.weight:.6g}", f"{row.seconds:.1f}", row.note]
        lines.append([*plain, f"{row.adversarial:.6g}", *scores])
    write_table(path, [*_PLAIN, _ADVERSARIAL, *names], lines)


def score_names(rows: Iterable[TradeoffRow]) -> list[str]:
    """Score names of all rows: PSNR, SSIM, LPIPS by network, then other scores."""
    found = dict.fromkeys(name for row in rows for name in row.scores)
    return sorted(found, key=lambda name: (name not in _HEADINGS, not name.startswith("lpips_")))


def score_heading(name: str) -> str:
    """Heading of a score, with an arrow to better values."""
    return _HEADINGS.get(name, f"LPIPS({name[6:]}) \u2193" if name.startswith("lpips_") else name)


def rich_table(rows: Sequence[TradeoffRow], title: str, labels: dict[str, str]) -> Table:
    """Table for the terminal.

    Args:
        rows: Rows in display order; the seeds of a loss share one line.
        title: Title of the table.
        labels: Labels of losses, where they differ from the name.
    """
    headings, lines = _lines(rows, labels, short_label)
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for index, heading in enumerate(headings):
        shown = heading.translate(_BREAKS)  # 80 characters hold four networks, and a loss always
        table.add_column(shown, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(rows: Sequence[TradeoffRow], labels: dict[str, str]) -> str:
    """Table as Markdown with a legend; see `rich_table`."""
    headings, lines = _lines(rows, labels, label)
    rule = ["---", *["---:"] * (len(headings) - 1)]
    shown = "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
    return f"{shown}\n\n{legend(rows, labels)}\n"


def label(loss: str, labels: dict[str, str]) -> str:
    """Label of a loss, such as ``L1 + LPIPS(alex, uncalibrated) + GAN``.

    Args:
        loss: The loss.
        labels: Labels of some losses, such as ``"untrained"`` and ``"pixel"``.
    """
    base, gan = loss.removesuffix(GAN), " + GAN" * loss.endswith(GAN)
    if base in (*labels, UNTRAINED, PIXEL):
        return f"{labels.get(base, base)}{gan}"
    net, _, kind = base.partition(":")
    return f"{labels.get(PIXEL, PIXEL)} + LPIPS({net}{', uncalibrated' * (kind == BASELINE)}){gan}"


def short_label(loss: str, labels: dict[str, str]) -> str:
    """Label of a loss for the terminal, such as ``+ alex + GAN``; see `label`."""
    base, gan = loss.removesuffix(GAN), " + GAN" * loss.endswith(GAN)
    return f"{base if base == PIXEL else labels.get(base, f'+ {base}')}{gan}"


def _lines(
    rows: Sequence[TradeoffRow], labels: dict[str, str], name: Callable[[str, dict[str, str]], str]
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; dashes for a loss without scores."""
    scores = score_names(rows)
    lines = []
    for loss in dict.fromkeys(row.loss for row in rows):
        scored = [row for row in rows if row.loss == loss and not row.note]
        trained = [row for row in scored if row.seconds]
        weight = f"{scored[0].weight:.2g}" if scored else "\u2013"
        seconds = f"{statistics.mean(row.seconds for row in trained):.0f} s" if trained else "\u2013"
        lines.append([name(loss, labels), weight, seconds, *(_cell(scored, score) for score in scores)])
    return ["loss", "weight", "time", *map(score_heading, scores)], lines


def _cell(rows: Sequence[TradeoffRow], name: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [row.scores[name] for row in rows if name in row.scores]
    if not values:
        return "\u2013"
    digits = _DIGITS.get(name, 3)
    deviation = f" \u00b1 {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    own = OWN if name == f"lpips_{rows[0].net}" else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}{own}"


def legend(rows: Sequence[TradeoffRow], labels: dict[str, str]) -> str:
    """Legend: meaning of the marks, and notes of missing rows."""
    seeds = sorted({row.seed for row in rows if row.loss != UNTRAINED})
    shown = ", ".join(map(str, seeds))
    seed_note = f" Mean \u00b1 standard deviation over the seeds {shown}." if len(seeds) > 1 else ""
    scaled = " The weight of a baseline gives the untrained model the same loss as with calibration."
    baseline = scaled if any(row.reconstruction.endswith(BASELINE) for row in rows) else ""
    weights = sorted({f"{row.adversarial:g}" for row in rows if row.adversarial})
    gan = f" GAN: with a discriminator, adversarial weight {', '.join(weights)}." if weights else ""
    marks = f"{OWN} scored with the network of the loss, which is biased.{baseline}{gan}{seed_note}"
    notes = [
        f"{short_label(row.loss, labels)}{f', seed {row.seed}' if len(seeds) > 1 else ''}: {row.note}."
        for row in rows
        if row.note
    ]
    return "\n".join([marks, *notes])
