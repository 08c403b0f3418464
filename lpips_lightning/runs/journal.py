"""What the ranks of a run write while they measure: a folder from which a run resumes, wherever it was killed.

Every rank appends to a file of its own, one line per batch, so a killed process loses at most a torn last line. A new
attempt starts new files. Every line has a checksum: a line that was torn, edited or damaged counts as not measured.
`Journal.rows` merges the files: the rows of every unit in the order of the units, each pair once.
"""

from __future__ import annotations

import errno
import json
import os
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import starmap
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable

PLAN = "run.json"
LOCK = "run.lock"
_PARTS = "part-*.jsonl"
_PATIENCE = 15  # seconds: worker processes of a killed rank hold its lock until they notice, at most 5 seconds later
_OPEN = 100  # parts that the merge keeps open
_NOTHING: Mapping[str, float] = {}


class PairRow(NamedTuple):
    """Result of one pair.

    Attributes:
        a: Path or URL of the first image.
        b: Path or URL of the second image.
        distance: LPIPS; NaN if the pair failed.
        error: Why it failed; empty if it did not.
        scores: PSNR and SSIM, if wanted.
        layers: Terms by layer, if wanted.
        standard_error: Of `distance`, over the draws of an `Ensemble`; else None.
    """

    a: str
    b: str
    distance: float
    error: str = ""
    scores: Mapping[str, float] = _NOTHING
    layers: Mapping[str, float] = _NOTHING
    standard_error: float | None = None

    def to_json(self) -> list[Any]:
        """The row as a list of JSON's types."""
        row = [self.a, self.b, self.distance, self.error, dict(self.scores), dict(self.layers), self.standard_error]
        while len(row) > 3 and not row[-1]:
            row.pop()
        return row


@dataclass(frozen=True)
class Progress:
    """What has been measured.

    Attributes:
        ended: Number of pairs by complete unit.
        begun: Rows that have been measured, by incomplete unit.
        pairs: Number of pairs measured, among them failed ones.
        damaged: Lines that were torn, edited or damaged; their pairs count as not measured.
    """

    ended: Mapping[int, int]
    begun: Mapping[int, frozenset[int]]
    pairs: int
    damaged: int = 0


class PartWriter:
    """Appends a rank's results to its own new file in the folder of a run.

    Args:
        folder: Folder of the run.
        rank: Number of the rank.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        with _disk_errors_explained(folder):
            self._file = _new_part(folder, rank)
        weakref.finalize(self, self._file.close)  # after an error nobody calls `close`

    def write(self, unit: int, rows: Mapping[int, PairRow], end: int | None) -> None:
        """Append rows of a unit by number, and the number of its pairs after its last one.

        Raises:
            OSError: If the disk is full or failed; what was written before stays.
        """
        if rows or end is not None:
            with _disk_errors_explained(self._file.name):
                _write_all(self._file, _line(unit, rows, end))

    def close(self) -> None:
        """Write the file to the disk."""
        with _disk_errors_explained(self._file.name):
            os.fsync(self._file.fileno())
            self._file.close()


class Journal:
    """The folder of a run.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder, which is created; the lock ends with this process at the latest.

        Raises:
            ValueError: If another run uses the folder.
        """
        with _disk_errors_explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            raise ValueError(
                f"out: expected a folder that no other run uses, got '{printable(self.folder)}', which one is writing"
                " to; wait for its end, or choose another folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def plan(self) -> dict[str, Any] | None:
        """What the run is, as `begin` wrote it; None if there is no run.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            plan = json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{printable(self.folder / PLAN)}: expected the JSON of a run, got {error}") from None
        if not isinstance(plan, dict):
            raise ValueError(f"{printable(self.folder / PLAN)}: expected the JSON of a run, got {printable(plan)[:80]}")
        return plan

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Create the folder, and write what the run is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / PLAN, durable=True) as temporary:
            temporary.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")

    def clear(self) -> None:
        """Delete the plan and the parts of an earlier run."""
        (self.folder / PLAN).unlink(missing_ok=True)  # first: parts without a plan are of no run
        for path in self._parts():
            path.unlink()

    def progress(self) -> Progress:
        """What the parts contain; the rows themselves are not parsed."""
        ends: dict[int, int] = {}
        found: dict[int, set[int]] = {}
        complete: dict[int, int] = {}
        damaged = 0
        for path in self._parts():
            for line in _lines(path):
                head = _head(line)
                if head is None:
                    damaged += 1
                    continue
                unit, end, numbers = head
                if unit in complete:
                    continue
                found.setdefault(unit, set()).update(numbers)
                if end is not None:
                    ends[unit] = end
                if len(found[unit]) == ends.get(unit):
                    complete[unit] = len(found.pop(unit))
        begun = {unit: frozenset(numbers) for unit, numbers in found.items() if numbers}
        return Progress(complete, begun, sum(complete.values()) + sum(map(len, begun.values())), damaged)

    def rows(self, units: int | None = None) -> Iterator[PairRow]:
        """All rows in the order of the source, each pair once; rows of one unit are in memory at a time.

        Of a pair that was measured twice, a row with a distance is taken before one with an error, then the first.

        Args:
            units: Number of units of the source; None: those that the parts name.

        Raises:
            ValueError: If a unit is incomplete.
        """
        expected = 0
        for unit, rows, end in self._units():
            if unit != expected or end != len(rows) or (end and max(rows) >= end):
                break
            yield from starmap(PairRow, map(rows.__getitem__, sorted(rows)))
            expected += 1
        else:
            if units in (None, expected):
                return
        raise ValueError(
            f"{printable(self.folder)}: expected the results of all pairs, got an incomplete unit {expected}; the same"
            " command goes on and measures what is missing"
        )

    def forget_failed(self) -> None:
        """Delete the rows of pairs that failed; these count as not measured then.

        The ends of their units are deleted first: an archive that was read to where it failed may have more pairs.
        """
        units = {
            _unit(line) for path in self._parts() for line in filter(_undamaged, _lines(path)) if _has_failed(line)
        }
        for change in (_without_end, _without_failed):
            for path in self._parts():
                if any(_undamaged(line) and _unit(line) in units for line in _lines(path)):
                    _rewrite(path, units, change)

    def _units(self) -> Iterator[tuple[int, dict[int, list[Any]], int | None]]:
        """Rows by number of every unit, and its number of pairs, by unit."""
        parts = self._parts()
        of_unit, of_part, places = _index(parts)
        with ExitStack() as stack:
            files: dict[int, IO[bytes]] = {}
            start = 0
            for stop in [*np.flatnonzero(np.diff(of_unit)) + 1, *[len(of_unit)] * (len(of_unit) > 0)]:
                rows: dict[int, list[Any]] = {}
                end = None
                for part, place in zip(of_part[start:stop].tolist(), places[start:stop].tolist(), strict=True):
                    if part not in files:
                        _close_some(stack, files)
                        files[part] = stack.enter_context(parts[part].open("rb"))
                    files[part].seek(place)
                    _, last, numbers, own, _ = json.loads(files[part].readline())
                    end = last if end is None else end
                    _take(rows, numbers, own)
                yield int(of_unit[start]), rows, end
                start = int(stop)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(_PARTS))


def _line(unit: int, rows: Mapping[int, PairRow], end: int | None) -> bytes:
    """``[unit, end, numbers of rows, rows, checksum]`` as JSON."""
    body = json.dumps([unit, end, list(rows), [one.to_json() for one in rows.values()]])[:-1].encode()
    return body + b', "%08x"]\n' % zlib.crc32(body)


_TAIL = len(b', "01234567"]\n')


def _undamaged(line: bytes) -> bool:
    return line.endswith(b', "%08x"]\n' % zlib.crc32(memoryview(line)[:-_TAIL]))


def _head(line: bytes) -> tuple[int, int | None, list[int]] | None:
    """Unit, its number of pairs if it ends here, and numbers of rows; None if the line is damaged."""
    if not _undamaged(line):
        return None
    unit, end, numbers = json.loads(line[: line.index(b"]") + 1] + b"]")
    return unit, end, numbers


def _unit(line: bytes) -> int:
    return int(line[1 : line.index(b",")])


def _take(rows: dict[int, list[Any]], numbers: list[int], found: list[list[Any]]) -> None:
    if rows.keys().isdisjoint(numbers):
        rows.update(zip(numbers, found, strict=True))
        return
    for number, row in zip(numbers, found, strict=True):
        known = rows.get(number)
        if known is None or (_failed(known) and not _failed(row)):
            rows[number] = row


def _failed(row: list[Any]) -> bool:
    return len(row) > 3 and bool(row[3])


def _has_failed(line: bytes) -> bool:
    return any(map(_failed, json.loads(line)[3]))


def _rewrite(path: Path, units: set[int], change: Callable[[bytes], bytes]) -> None:
    """Change the undamaged lines of some units."""
    with atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
        for line in filter(_undamaged, _lines(path)):
            file.write(change(line) if _unit(line) in units else line)


def _without_end(line: bytes) -> bytes:
    unit, _, numbers, rows, _ = json.loads(line)
    return _line(unit, dict(zip(numbers, starmap(PairRow, rows), strict=True)), None) if rows else b""


def _without_failed(line: bytes) -> bytes:
    unit, _, numbers, rows, _ = json.loads(line)
    kept = {number: PairRow(*row) for number, row in zip(numbers, rows, strict=True) if not _failed(row)}
    return _line(unit, kept, None) if kept else b""


def _index(parts: list[Path]) -> tuple[Any, Any, Any]:
    """Unit, part and position of every undamaged line, by unit; 20 bytes a line."""
    units, of_parts, places = array("q"), array("i"), array("q")
    for part, path in enumerate(parts):
        position = 0
        for line in _lines(path):
            if _undamaged(line):
                units.append(_unit(line))
                of_parts.append(part)
                places.append(position)
            position += len(line)
    order = np.argsort(np.asarray(units), kind="stable")
    return tuple(np.asarray(one)[order] for one in (units, of_parts, places))  # type: ignore[return-value]


def _close_some(stack: ExitStack, files: dict[int, IO[bytes]]) -> None:
    if len(files) >= _OPEN:
        stack.close()
        files.clear()


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _new_part(folder: Path, rank: int) -> FileIO:
    attempt = 0
    while True:
        try:
            return (folder / f"part-{rank:05d}-{attempt:03d}.jsonl").open("xb", buffering=0)
        except FileExistsError:
            attempt += 1


def _write_all(file: FileIO, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _disk_errors_explained(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
        remedy = "free some space" if full else "make it writable"
        raise OSError(
            error.errno,
            f"{printable(path)}: expected to write results, got {error.strerror or error}; {remedy}, then the same"
            " command goes on from here",
        ) from error
