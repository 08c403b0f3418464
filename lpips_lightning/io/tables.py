"""CSV files: atomic writing, and reading with line numbers in every error."""

from __future__ import annotations

import csv
import io
import itertools
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.streams import is_stream, read_bytes

_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        place: File and line number for error messages; the row's last line.
        values: Cells by column name, stripped of whitespace.
    """

    place: str
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def number(self, column: str) -> float:
        """The cell as a finite number.

        Raises:
            ValueError: If the cell is not a finite number.
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
    """The header and rows of a CSV.

    Attributes:
        path: The file.
        columns: Column names of the header.
        rows: Rows in file order, without blank ones.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]

    def require(self, columns: Sequence[str]) -> None:
        """Raise a ValueError unless the table has all `columns`."""
        if missing := [column for column in columns if column not in self.columns]:
            raise ValueError(
                f"{self.path}, line 1: expected the columns {', '.join(columns)},"
                f" got {printable(', '.join(self.columns))}, without {', '.join(missing)}"
            )


def read_table(path: str | Path) -> Table:
    """Read a CSV with a header.

    Args:
        path: A UTF-8 file or a stream, such as ``/dev/stdin``, with or without byte-order mark; separated by the
            header's commas, semicolons or tabs. Blank rows are skipped; the log says how many.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is malformed or has no rows.
    """
    path = Path(path)
    if not path.is_file() and not is_stream(path):
        got = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: expected a CSV file, got {got}")
    try:
        text = read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected UTF-8 text, got byte {error.object[error.start]:#x} at {error.start}"
        ) from None
    separator = separator_of(text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    columns: tuple[str, ...] = ()
    blank = 0
    try:
        for cells in reader:
            place = f"{path}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                blank += 1
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
        raise ValueError(f"{path}: expected a header and rows, got {'only a header' if columns else 'an empty file'}")
    if blank:
        _log.warning("%s: skipped %s", path, count_of(blank, "blank row"))
    return Table(path, columns, rows)


def separator_of(header: str) -> str:
    """The separator of a CSV by its header: a comma, semicolon or tab that is not in quotes.

    Example:
        >>> separator_of('"height, in cm";weight')
        ';'
    """
    bare = re.sub(r'"(?:[^"]|"")*"', "", header)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def write_table(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    r"""Write a CSV atomically: UTF-8, commas, ``\n`` line ends.

    Args:
        path: Output file.
        columns: Column names.
        rows: Cells per row, one per column; format floating-point numbers as strings.
    """
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(itertools.chain([columns], rows))


def table_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The text that `write_table` would write."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(itertools.chain([columns], rows))
    return text.getvalue()


def _check_header(columns: tuple[str, ...], place: str) -> tuple[str, ...]:
    names = [column for column in columns if column]
    if len(set(names)) < len(names):
        raise ValueError(f"{place}: expected unique column names, got {printable(', '.join(columns))}")
    return columns
