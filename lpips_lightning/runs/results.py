"""The merged result of a run: its table, and exact statistics in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from lpips_lightning.runs.journal import PairRow


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
        self._means: dict[str, tuple[ExactSum, int]] = {}

    @property
    def mean(self) -> float:
        """Mean distance; NaN without pairs."""
        return self._sum.value() / self.count if self.count else math.nan

    @property
    def std(self) -> float:
        """Sample standard deviation; NaN for fewer than two pairs."""
        if self.count < 2:
            return math.nan
        return math.sqrt(max(self._squares.value() - self.count * self.mean**2, 0.0) / (self.count - 1))

    def passing(self, rows: Iterable[PairRow]) -> Iterator[PairRow]:
        """Add rows, and hand them on."""
        for row in rows:
            self._add(row)
            yield row

    def means(self) -> dict[str, float]:
        """Means of the other scores, then of the layers, in the order of the rows."""
        return {name: total.value() / count for name, (total, count) in self._means.items()}

    def _add(self, row: PairRow) -> None:
        if row.error:
            self.failed += 1
            if len(self.examples) < 3:
                self.examples.append(row.error)
            return
        self.count += 1
        self._sum.add(row.distance)
        self._squares.add(row.distance**2)
        if self.least is None or row.distance < self.least.distance:
            self.least = row
        if self.most is None or row.distance > self.most.distance:
            self.most = row


def table_columns(scores: Sequence[str], layers: Sequence[str], with_errors: bool) -> list[str]:
    """Names of the columns of a run's table."""
    return ["a", "b", "lpips", *scores, *layers, *["error"] * with_errors]
