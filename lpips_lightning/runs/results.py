"""The merged result of a run: its tables, and exact statistics in one pass.

The rule of the merge: rows in the order of the source, each pair once; of a pair that was measured twice, a row with a
distance before one with an error, then the first. So the tables do not depend on ranks, workers and resumed attempts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.comparison.report import write_json
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.tables import write_table
from lpips_lightning.runs.journal import PairRow

MOST_IN_JSON = 10**6
"""Pairs that a JSON file may have: it is made in memory."""

_ROW_GROUP = 1 << 18  # rows of a Parquet file that are in memory at a time
_EXAMPLES = 3


class ExactSum:
    """Sum of floats without rounding errors, independent of their order (Shewchuk's algorithm, as `math.fsum`)."""

    def __init__(self) -> None:
        self._buffer: list[float] = []

    def add(self, value: float) -> None:
        """Add a finite number."""
        partials = 0
        for other in self._buffer:
            if abs(value) < abs(other):
                value, other = other, value
            high = value + other
            low = other - (high - value)
            if low:
                self._buffer[partials] = low
                partials += 1
            value = high
        self._buffer[partials:] = [value]

    def value(self) -> float:
        """The sum, correctly rounded."""
        return math.fsum(self._buffer)

    def exact(self) -> Fraction:
        """The sum."""
        return sum(map(Fraction, self._buffer), Fraction())


@dataclass
class _Mean:
    """Mean of a score, which may be infinite for some pairs."""

    total: ExactSum = field(default_factory=ExactSum)
    finite: int = 0
    infinite: int = 0

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total.add(value)
            self.finite += 1
        else:
            self.infinite += 1

    @property
    def of_finite(self) -> float:
        return self.total.value() / self.finite if self.finite else math.nan

    @property
    def value(self) -> float:
        return math.inf if self.infinite else self.of_finite


@dataclass
class Statistics:
    """Statistics of the distances of a run.

    Attributes:
        count: Pairs with a distance.
        failed: Pairs without one.
        least: Row of the smallest distance, the first of equal ones.
        most: Row of the largest distance.
        examples: The first errors.
    """

    count: int = 0
    failed: int = 0
    least: PairRow | None = None
    most: PairRow | None = None
    examples: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._sum, self._squares = ExactSum(), ExactSum()
        self._means: dict[str, _Mean] = {}

    @property
    def mean(self) -> float:
        """Mean distance; NaN without pairs."""
        return self._sum.value() / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation; NaN for fewer than two pairs. Squares of float32 distances are exact."""
        if self.count < 2:
            return math.nan
        squares = self._squares.exact() - self._sum.exact() ** 2 / self.count
        return math.sqrt(max(squares, Fraction()) / (self.count - 1))

    @property
    def terms(self) -> list[str]:
        """Names of the other scores, then of the layers."""
        return list(self._means)

    def passing(self, rows: Iterable[PairRow]) -> Iterator[PairRow]:
        """Add rows, and hand them on."""
        for row in rows:
            self._add(row)
            yield row

    def means(self) -> dict[str, float]:
        """Means of the other scores, then of the layers, in the order of the rows."""
        return {name: one.value for name, one in self._means.items()}

    def lines(self, name: Callable[[PairRow], str]) -> list[str]:
        """Tab-separated lines, as `comparison.report.summary_lines` has them.

        Args:
            name: Name of a pair.
        """
        if self.least is None or self.most is None:
            return ["n\t0"]
        lines = [
            f"mean\t{_format(self.mean)}",
            f"std\t{_format(self.std) if self.count > 1 else '-'}",
            f"min\t{_format(self.least.distance)}\t{printable(name(self.least))}",
            f"max\t{_format(self.most.distance)}\t{printable(name(self.most))}",
            f"n\t{self.count}",
        ]
        return lines + [f"{term}\t{_format(value)}" for term, value in self.means().items()]

    def notes(self) -> list[str]:
        """A sentence on pairs of equal images among others, whose PSNR makes the mean infinite; none without them."""
        psnr = self._means.get("psnr")
        if psnr is None or not psnr.finite or not psnr.infinite:
            return []
        pairs, are = count_of(self.count, "pair"), "is" if psnr.infinite == 1 else "are"
        return [
            f"psnr: {psnr.infinite} of {pairs} {are} equal, with infinite PSNR;"
            f" the mean of the others is {_format(psnr.of_finite)}"
        ]

    def summary(self) -> dict[str, Any]:
        """The statistics in JSON's types: a number that is not finite is None or ``"inf"``."""
        found: dict[str, Any] = {"n": self.count, "failed": self.failed}
        found |= {"mean": _json_number(self.mean), "std": _json_number(self.std)}
        for name, row in (("min", self.least), ("max", self.most)):
            pair = None if row is None else {"lpips": row.distance, "a": printable(row.a), "b": printable(row.b)}
            found[name] = pair
        return found | {f"mean_{name}": _json_number(value) for name, value in self.means().items()}

    def _add(self, row: PairRow) -> None:
        if row.error:
            self.failed += 1
            if len(self.examples) < _EXAMPLES:
                self.examples.append(row.error)
            return
        self.count += 1
        self._sum.add(row.distance)
        self._squares.add(row.distance**2)
        for name, value in itertools.chain(row.scores.items(), row.layers.items()):
            if name not in self._means:
                self._means[name] = _Mean()
            self._means[name].add(value)
        if self.least is None or row.distance < self.least.distance:
            self.least = row
        if self.most is None or row.distance > self.most.distance:
            self.most = row


def write_csv(path: str | Path, rows: Iterable[PairRow], terms: Sequence[str], with_errors: bool) -> None:
    """Write the rows as `comparison.report.write_csv` does, one at a time.

    Args:
        path: Output file.
        rows: The rows.
        terms: Columns of other scores and of layers.
        with_errors: Whether there is a column of errors.
    """
    write_table(path, _columns(terms, with_errors), (_cells(row, terms, with_errors) for row in rows))


def write_json_table(path: str | Path, rows: Iterable[PairRow], fingerprint: str, notes: Sequence[str]) -> None:
    """Write the rows as `comparison.report.write_json` does; they are in memory.

    Args:
        path: Output file.
        rows: The rows.
        fingerprint: Fingerprint of the network.
        notes: Sentences on files that were not compared.
    """
    results, per_layer = [], False
    for row in rows:
        pair = Pair("", cast(Path, row.a), cast(Path, row.b))  # a `Path` of a URL would lose a slash
        results.append(PairResult(pair, row.distance, dict(row.layers), row.error, dict(row.scores)))
        per_layer = per_layer or bool(row.layers)
    write_json(path, results, fingerprint, per_layer, notes=notes)


def require_parquet() -> None:
    """Raise if there is no pyarrow.

    Raises:
        ModuleNotFoundError: The message says what to install.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'parquet: expected pyarrow, which is missing: pip install "lpips_lightning[parquet]", or use --csv'
        ) from None


def write_parquet(
    path: str | Path, rows: Iterable[PairRow], terms: Sequence[str], with_errors: bool, metadata: Mapping[str, str]
) -> None:
    """Write the rows as Parquet, compressed; numbers are float64, and null where there are none.

    Args:
        path: Output file.
        rows: The rows; a quarter of a million is in memory at a time.
        terms: Columns of other scores and of layers.
        with_errors: Whether there is a column of errors.
        metadata: Texts that the schema keeps.
    """
    import pyarrow as pa
    from pyarrow import parquet

    names = _columns(terms, with_errors)
    texts = {"a", "b", "error"}
    fields = [pa.field(name, pa.string() if name in texts else pa.float64()) for name in names]
    schema = pa.schema(fields, dict(metadata))
    left = iter(rows)
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while group := list(itertools.islice(left, _ROW_GROUP)):
            columns = zip(*(_values(row, terms, with_errors) for row in group), strict=True)
            arrays = [pa.array(column, one.type) for column, one in zip(columns, fields, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=_ROW_GROUP)


def write_summary(path: str | Path, fingerprint: str, statistics: Statistics, notes: Sequence[str] = ()) -> None:
    """Write the fingerprint and the statistics as JSON.

    Args:
        path: Output file.
        fingerprint: Fingerprint of the network.
        statistics: The statistics.
        notes: Sentences on files that were not compared.
    """
    content = {"fingerprint": fingerprint} | statistics.summary() | ({"notes": list(notes)} if notes else {})
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _columns(terms: Sequence[str], with_errors: bool) -> list[str]:
    return ["a", "b", "lpips", *terms, *["error"] * with_errors]


def _cells(row: PairRow, terms: Sequence[str], with_errors: bool) -> list[str]:
    a, b, *numbers = _values(row, terms, with_errors=False)
    cells = ["" if value is None else _format(value) for value in numbers]
    return [a, b, *cells, *[printable(row.error)] * with_errors]


def _values(row: PairRow, terms: Sequence[str], with_errors: bool) -> list[Any]:
    """Texts and numbers of the columns; None where there is no number."""
    values: list[Any] = [printable(row.a), printable(row.b)]
    if row.error:
        values += [None] * (1 + len(terms))
    else:
        scores, layers = row.scores, row.layers
        values += [row.distance, *(scores[term] if term in scores else layers.get(term) for term in terms)]
    return values + [printable(row.error) if row.error else None] * with_errors


def _format(value: float) -> str:
    return f"{value:.9g}"  # enough to round-trip a float32


def _json_number(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)
