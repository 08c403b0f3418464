"""Pairs in a list: a CSV or Parquet file whose rows name two images each, read in parts, never as a whole."""

from __future__ import annotations

import csv
import hashlib
import io
import zlib
from array import array
from bisect import bisect
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from typing import IO, Any

from typing_extensions import override

from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.tables import separator_of
from lpips_lightning.sources import storage
from lpips_lightning.sources.base import SourcePair, most_batches, unit_size
from lpips_lightning.sources.names import suffix

_CSV, _PARQUET = "a CSV list of pairs", "a Parquet list of pairs"
_FIRST = 64  # rows that are looked at for the size of the images
_LARGE_GROUP = 1 << 21  # rows
_TEXT = ("string", "large_string", "string_view")  # Arrow's types


class _List:
    """What both kinds of lists have in common.

    Args:
        path: Path or URL of the list.
        columns: Names of the columns with the first and the second images.
        folder: Folder that relative paths start from; None: that of the list.
    """

    def __init__(self, path: str, columns: tuple[str, str], folder: str | None) -> None:
        self._path, self._columns = path, columns
        self._folder = storage.folder_of(path) if folder is None else folder
        self._count, self._unit, self._digest = 0, 1, ""

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self._count

    @property
    def title(self) -> str:
        """The list's name, for messages."""
        return printable(storage.shown(self._path))

    def describe(self) -> dict[str, Any]:
        """Kind, columns, folder, numbers of pairs, and a digest of the list, which does not depend on the images."""
        about = {"columns": list(self._columns), "folder": storage.shown(self._folder)}
        counts = {"pairs": self.pairs, "unit": self._unit, "digest": self._digest}
        return {"source": type(self).__name__.removesuffix("Pairs").lower(), **about, **counts}

    def read(self, name: str) -> bytes:
        """The bytes of an image."""
        return storage.read(name)

    def pair(self, a: str, b: str) -> SourcePair:
        """A row, whose cells are shown as they are in the list."""
        names = storage.shown(a), storage.shown(b)
        try:
            places = storage.join(self._folder, a), storage.join(self._folder, b)
        except ValueError as error:
            return SourcePair(*names, error=str(error))
        return SourcePair(*names, places=places)


class CsvPairs(_List):
    """Pairs in a CSV file, which is checked row by row, and of which only the positions of the units are kept.

    UTF-8, with a header, separated by the header's commas, semicolons or tabs; cells may be quoted and have newlines.
    Rows without values are left out. The cells are paths, relative to the list's folder, or URLs.

    Args:
        path: Path or URL of the list.
        batch: Pairs per batch, of which the units are multiples.
        columns: Names of the columns with the first and the second images.
        folder: Folder that relative paths start from; None: that of the list.

    Raises:
        ValueError: If a row is malformed; the message has its line number.
        FileNotFoundError: If there is no such list.
    """

    def __init__(self, path: str, batch: int, columns: tuple[str, str] = ("a", "b"), folder: str | None = None) -> None:
        super().__init__(path, columns, folder)
        with storage.open_stream(path, _CSV) as file:
            table = _CsvRows(file, self.title, columns)
            self._separator, self._at = table.separator, table.at
            marks = _Marks(table, batch)
            for _ in table:
                marks.add()
        self._count, self._unit = marks.rows, unit_size(marks.rows, batch)
        if not self._count:
            raise ValueError(f"{self.title}: expected a header and rows, got only a header")
        self._offsets, self._checks = marks.of_units(self._unit)
        self._digest = hashlib.sha256(self._offsets.tobytes() + self._checks.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a unit.

        Raises:
            ValueError: If the list has changed.
        """
        start, end = self._offsets[index], self._offsets[index + 1]
        content = storage.read_part(self._path, start, end)
        if len(content) != end - start or zlib.crc32(content, self._checks[index]) != self._checks[index + 1]:
            got = "another one; it was changed meanwhile" if len(content) == end - start else f"{len(content)} bytes"
            raise ValueError(
                f"{self.title}: expected the same {end - start} bytes from byte {start} on as before, got {got};"
                " leave the list as it is, on a disk or a server that gives parts of files"
            )
        for cells in csv.reader(io.StringIO(content.decode(), newline=""), delimiter=self._separator, strict=True):
            if any(map(str.strip, cells)):
                yield self.pair(*(cells[at].strip() for at in self._at))


class _CsvRows(Iterator[tuple[str, str]]):
    """Checked rows of an open CSV; `end` and `check` are the position after the last one, and the CRC up to it."""

    def __init__(self, file: io.BufferedReader, title: str, columns: tuple[str, str]) -> None:
        self._file, self._title = file, title
        self.end = self.check = self.lines = 0
        self.separator = separator_of(file.peek().partition(b"\n")[0].decode("utf-8", "replace"))
        self._reader = csv.reader(self._decoded(), delimiter=self.separator, strict=True)
        names = [cell.strip() for cell in self._cells([])]
        self._width = len(names)
        missing = [column for column in columns if names.count(column) != 1]
        if missing:
            raise ValueError(
                f"{title}, line 1: expected the columns {', '.join(columns)}, once each, got"
                f" {printable(', '.join(names)) or 'none'}; --columns A,B names others"
            )
        self.at = (names.index(columns[0]), names.index(columns[1]))

    @override
    def __next__(self) -> tuple[str, str]:
        while True:
            cells = self._cells()
            if len(cells) == self._width:
                a, b = cells[self.at[0]].strip(), cells[self.at[1]].strip()
                if a and b:
                    return a, b
            if any(map(str.strip, cells)):
                raise self._malformed(len(cells))

    @property
    def _place(self) -> str:
        return f"{self._title}, line {self.lines}"

    def _malformed(self, cells: int) -> ValueError:
        if cells != self._width:
            return ValueError(f"{self._place}: expected {self._width} values as in the header, got {cells}")
        return ValueError(f"{self._place}: expected a path or URL of both images, got an empty one")

    def _cells(self, *default: list[str]) -> list[str]:
        before = self.lines
        try:
            return next(self._reader, *default)
        except csv.Error as error:
            raise ValueError(f"{self._title}, line {before + 1}: expected a CSV row, got {error}") from None

    def _decoded(self) -> Iterator[str]:
        """Lines as text, for the reader, which takes as many as a row has."""
        for line in self._file:
            self.end += len(line)
            self.check = zlib.crc32(line, self.check)
            self.lines += 1
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                byte = error.object[error.start]
                raise ValueError(f"{self._place}: expected UTF-8 text, got byte {byte:#x}") from None
            yield text.removeprefix("\ufeff") if self.lines == 1 else text


class _Marks:
    """Positions after every batch, or after every unit of a list that is known to be long."""

    def __init__(self, rows: _CsvRows, batch: int) -> None:
        self._table, self._step, self.rows = rows, batch, 0
        self._most = most_batches(batch)
        self._long = 64 * batch * self._most
        self._offsets, self._checks = array("Q", [rows.end]), array("I", [rows.check])

    def add(self) -> None:
        """Count the row that was read last."""
        self.rows += 1
        if self.rows % self._step == 0:
            self._offsets.append(self._table.end)
            self._checks.append(self._table.check)
        if self.rows == self._long:
            self._step *= self._most
            self._offsets, self._checks = self._offsets[:: self._most], self._checks[:: self._most]

    def of_units(self, unit: int) -> tuple[array[int], array[int]]:
        """Positions and checks before and after every unit; the last one has what follows the last row."""
        keep = slice(0, -(-self.rows // unit) * (unit // self._step), unit // self._step)
        offsets, checks = self._offsets[keep], self._checks[keep]
        offsets.append(self._table.end)
        checks.append(self._table.check)
        return offsets, checks


class ParquetPairs(_List):
    """Pairs in a Parquet file; a unit lies in one row group, of which a process holds the two columns.

    Row groups of 10,000 to 100,000 rows are best. A row without one of the values is an error of that row.

    Args:
        path: Path or URL of the list.
        batch: Pairs per batch, of which the units are multiples.
        columns: Names of the columns with the first and the second images.
        folder: Folder that relative paths start from; None: that of the list.

    Raises:
        ValueError: If the file is no Parquet, has not these columns of text, or has row groups of more than 2^21 rows.
        FileNotFoundError: If there is no such list.
        ImportError: If the extra ``parquet`` is not installed.
    """

    def __init__(self, path: str, batch: int, columns: tuple[str, str] = ("a", "b"), folder: str | None = None) -> None:
        super().__init__(path, columns, folder)
        groups = self._groups()
        self._count, largest = sum(groups), max(groups, default=0)
        if not self._count:
            raise ValueError(f"{self.title}: expected rows, got none")
        if largest > _LARGE_GROUP:
            raise ValueError(
                f"{self.title}: expected row groups of at most {_LARGE_GROUP} rows, got {largest}; write the list with"
                " row_group_size=100_000"
            )
        self._unit = unit_size(self._count, batch)
        self._version = storage.version(path, _PARQUET)
        self._digest = hashlib.sha256(repr((groups, self._version)).encode()).hexdigest()
        self._ends = array("Q")  # of the units of every row group
        for rows in groups:
            self._ends.append((self._ends[-1] if self._ends else 0) + -(-rows // self._unit))

    def __len__(self) -> int:
        return self._ends[-1]

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a unit.

        Raises:
            ValueError: If the list cannot be read, or has changed.
        """
        group = bisect(self._ends, index)
        start = (index - (self._ends[group - 1] if group else 0)) * self._unit
        if storage.version(self._path, _PARQUET) != self._version:
            raise ValueError(f"{self.title}: expected the list as it was before the run, got a changed one")
        table = _row_group(self._path, self._version, group, self._columns)
        a, b = (column.slice(start, self._unit).to_pylist() for column in table)
        for x, y in zip(a, b, strict=True):
            if x and y:
                yield self.pair(x, y)
            else:
                error = f"{self.title}: expected a path or URL of both images, got an empty one"
                yield SourcePair(storage.shown(x or ""), storage.shown(y or ""), error=error)

    def _groups(self) -> list[int]:
        """Rows of every row group."""
        with storage.open_stream(self._path, _PARQUET) as file:
            metadata = _opened(file, self.title, self._columns).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


@lru_cache(maxsize=1)
def _row_group(path: str, version: str, group: int, columns: tuple[str, str]) -> tuple[Any, Any]:
    """Both columns of the row group that this process read last."""
    with storage.open_stream(path, _PARQUET) as file:
        parquet = _opened(file, printable(storage.shown(path)), columns)
        table = parquet.read_row_group(group, list(columns), use_threads=False)
    return table.column(columns[0]), table.column(columns[1])


def _opened(file: IO[bytes], title: str, columns: tuple[str, str]) -> Any:
    """The open Parquet file, whose columns are checked."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ImportError(
            f"{title}: expected the package pyarrow for Parquet, which is not installed;"
            " pip install 'lpips_lightning[parquet]'"
        ) from None
    try:
        parquet = ParquetFile(file)
    except (ArrowInvalid, OSError, ValueError) as error:  # such as of a server that gives no parts of files
        raise ValueError(f"{title}: expected a Parquet file, got {printable(error)}") from None
    schema = parquet.schema_arrow
    if any(schema.names.count(column) != 1 for column in columns):
        got = printable(", ".join(schema.names))
        raise ValueError(f"{title}: expected the columns {', '.join(columns)}, got {got}; --columns A,B names others")
    for column in columns:
        kind = schema.field(column).type
        if str(getattr(kind, "value_type", kind)) not in _TEXT:
            raise ValueError(f"{title}: {printable(column)}: expected a column of text, got {kind}")
    return parquet


def open_list(
    path: str, batch: int, columns: tuple[str, str] = ("a", "b"), folder: str | None = None
) -> CsvPairs | ParquetPairs:
    """The pairs of a CSV or Parquet file, by its suffix; see `CsvPairs` and `ParquetPairs`."""
    return (ParquetPairs if suffix(path) == ".parquet" else CsvPairs)(path, batch, columns, folder)


def first_pairs(path: str, columns: tuple[str, str] = ("a", "b"), folder: str | None = None) -> list[tuple[str, str]]:
    """Paths or URLs of the first pairs of a list, at most 64; no other rows are read.

    Raises:
        ValueError: If the list is malformed.
        FileNotFoundError: If there is no such list.
    """
    about = _List(path, columns, folder)
    rows: Iterable[tuple[str | None, str | None]]
    if suffix(path) == ".parquet":
        with storage.open_stream(path, _PARQUET) as file:
            parts = _opened(file, about.title, columns).iter_batches(_FIRST, columns=list(columns), use_threads=False)
            rows = [row for part in islice(parts, 1) for row in _rows(part, columns)]
    else:
        with storage.open_stream(path, _CSV) as file:
            rows = list(islice(_CsvRows(file, about.title, columns), _FIRST))
    return [places for a, b in rows if a and b and (places := about.pair(a, b).places)]


def _rows(part: Any, columns: tuple[str, str]) -> Iterator[tuple[str | None, str | None]]:
    return zip(part[columns[0]].to_pylist(), part[columns[1]].to_pylist(), strict=True)
