"""CSV files: written whole or not at all; read with the number of the line for every complaint."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: The file and the line that it ends on, for errors.
        values: By column, without spaces around them.
    """

    place: str
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def number(self, column: str) -> float:
        """The value as a number.

        Raises:
            ValueError: If it is none, or not finite.
        """
        try:
            value = float(self.values[column])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{self.place}: {column}: expected a number, got {self.values[column]!r}")
        return value


@dataclass(frozen=True)
class Table:
    """Rows under a header.

    Attributes:
        path: The file.
        columns: The header.
        rows: In the file's order; empty lines are left out.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def require(self, columns: Sequence[str]) -> None:
        """Raise a ValueError unless all `columns` are there."""
        if lacking := [column for column in columns if column not in self.columns]:
            raise ValueError(
                f"{self.path}, line 1: expected the columns {', '.join(columns)},"
                f" got {printable(', '.join(self.columns))}: without {', '.join(lacking)}"
            )


def read_table(path: str | Path) -> Table:
    """A CSV with a header.

    Args:
        path: UTF-8, with or without byte-order mark; commas, semicolons or tabs separate, whichever the header has.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such table, or holds no row.
    """
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected a CSV file, got {got}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#x} at {error.start}"
        ) from None
    header = text.partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in header), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = _check_header(tuple(cell.strip() for cell in cells), place)
                continue
            if len(cells) != len(columns):
                raise ValueError(f"{place}: expected {len(columns)} values as in the header, got {len(cells)}")
            rows.append(Row(place, dict(zip(columns, (cell.strip() for cell in cells), strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: expected a CSV row, got {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected a header and rows, got {'a header alone' if columns else 'nothing'}")
    return Table(path, columns, rows)


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV, which appears when it is complete: UTF-8, commas, lines that end in a line feed.

    Args:
        path: The file.
        columns: The header.
        rows: Cells of each row, as many as there are columns; numbers are best given as texts.
    """
    with atomic_write(path) as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(itertools.chain([columns], rows))


def table_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """What `write_table` would write."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(itertools.chain([columns], rows))
    return text.getvalue()


def _check_header(columns: tuple[str, ...], place: str) -> tuple[str, ...]:
    named = [column for column in columns if column]
    if len(set(named)) < len(named):
        raise ValueError(f"{place}: expected different names of columns, got {printable(', '.join(columns))}")
    return columns
