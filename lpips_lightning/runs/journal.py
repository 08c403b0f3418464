"""What the ranks of a run write while they measure: a folder from which a run resumes, wherever it was killed.

Every rank appends to a file of its own, one line per batch, so a killed process loses at most a torn last line. A new
attempt starts new files. `Journal.rows` merges them: the rows of every unit in the order of the units, each pair once.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable

PLAN = "run.json"
_PARTS = "part-*.jsonl"
_END = "end"


@dataclass(frozen=True)
class PairRow:
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
    scores: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, float] = field(default_factory=dict)
    standard_error: float | None = None

    def to_json(self) -> list[Any]:
        """The row as a list of JSON's types."""
        row = [self.a, self.b, self.distance, self.error, dict(self.scores), dict(self.layers), self.standard_error]
        while not row[-1]:
            row.pop()
        return row


@dataclass(frozen=True)
class Progress:
    """What has been measured.

    Attributes:
        ended: Number of pairs by complete unit.
        begun: Rows that have been measured, by incomplete unit.
        pairs: Number of pairs measured, among them failed ones.
    """

    ended: Mapping[int, int]
    begun: Mapping[int, frozenset[int]]
    pairs: int


class PartWriter:
    """Appends a rank's results to its own new file in the folder of a run.

    Args:
        folder: Folder of the run.
        rank: Number of the rank.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._file = _new_part(folder, rank)

    def write(self, unit: int, rows: Mapping[int, PairRow], end: int | None) -> None:
        """Append rows of a unit by number, and the number of its pairs after its last one."""
        lines = [json.dumps([unit, [[row, *one.to_json()] for row, one in rows.items()]])] if rows else []
        if end is not None:
            lines.append(json.dumps([unit, _END, end]))
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()

    def close(self) -> None:
        """Write the file to the disk."""
        os.fsync(self._file.fileno())
        self._file.close()


class Journal:
    """The folder of a run.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def plan(self) -> dict[str, Any] | None:
        """What the run is, as `begin` wrote it; None if there is no run."""
        try:
            return json.loads((self.folder / PLAN).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{printable(self.folder / PLAN)}: expected the JSON of a run, got {error}") from None

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Create the folder, and write what the run is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / PLAN, durable=True) as temporary:
            temporary.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")

    def clear(self) -> None:
        """Delete the parts of an earlier run."""
        for path in self._parts():
            path.unlink()
        (self.folder / PLAN).unlink(missing_ok=True)

    def progress(self) -> Progress:
        """What the parts contain; rows of complete units are not parsed."""
        ended: dict[int, int] = {}
        begun: dict[int, list[bytes]] = {}
        for path in self._parts():
            for unit, line in _lines(path):
                if line.endswith(b"]]\n"):
                    if unit not in ended:
                        begun.setdefault(unit, []).append(line)
                else:
                    ended[unit] = json.loads(line)[2]
        rows = {
            unit: frozenset(row[0] for line in lines for row in json.loads(line)[1])
            for unit, lines in begun.items()
            if unit not in ended
        }
        return Progress(ended, rows, sum(ended.values()) + sum(map(len, rows.values())))

    def rows(self) -> Iterator[PairRow]:
        """All rows in the order of the source, each pair once; reads one unit of every part at a time."""
        streams = [_rows_by_unit(path) for path in self._parts()]
        unit, found = -1, dict[int, list[Any]]()
        for number, rows in heapq.merge(*streams, key=lambda one: one[0]):
            if number != unit:
                yield from _sorted_rows(found)
                unit, found = number, {}
            for row in rows:
                found.setdefault(row[0], row[1:])
        yield from _sorted_rows(found)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(_PARTS))


def _sorted_rows(found: Mapping[int, list[Any]]) -> Iterator[PairRow]:
    for number in sorted(found):
        yield PairRow(*found[number])


def _new_part(folder: Path, rank: int) -> IO[bytes]:
    attempt = 0
    while True:
        try:
            return (folder / f"part-{rank:05d}-{attempt}.jsonl").open("xb")
        except FileExistsError:
            attempt += 1


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Complete lines with their unit; a torn last line is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield int(line[1 : line.index(b",")]), line


def _rows_by_unit(path: Path) -> Iterator[tuple[int, list[list[Any]]]]:
    """Rows of every unit of a part, ascending.

    Worker processes take units in turn, so the lines of some consecutive units may alternate.
    """
    places: dict[int, list[int]] = {}
    with path.open("rb") as file:
        position = 0
        for line in file:
            if line.endswith(b"]]\n"):
                places.setdefault(int(line[1 : line.index(b",")]), []).append(position)
            position += len(line)
        for unit in sorted(places):
            rows: list[list[Any]] = []
            for place in places[unit]:
                file.seek(place)
                rows += json.loads(file.readline())[1]
            yield unit, rows
