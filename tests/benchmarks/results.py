"""Results on disk: one JSON a machine, written after every case, so that a run that is cut off has lost nothing."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from benchmarks.contenders import NETS, weights_name
from benchmarks.machine import hardware, slug, stamp, versions
from lpips_lightning.io.atomic import atomic_write

CASE = ("net", "batch", "side", "work")  # rows that agree in these were measured together
OTHER = "other_versions"  # of a row: the versions that are not those of the file


class Results:
    """A machine's rows by part; a case that is measured again replaces the old one as a whole.

    With other versions of Python or packages than the file's, rows from before stay, and say the versions that they
    were measured with under ``other_versions``; the file's own are always those of the latest run that measured.

    Args:
        path: The JSON; read if it is there.
        machine: From `machine.describe`.

    Raises:
        ValueError: If the file was written on another machine.
    """

    def __init__(self, path: Path, machine: dict[str, object]) -> None:
        self.path = path
        self.changed: dict[str, tuple[object, object]] = {}
        self.data: dict[str, object] = {"machine": machine}
        if path.is_file():
            self.data = json.loads(path.read_text())
            was = self.data["machine"]
            other = _differences(hardware(was), hardware(machine))
            if other:
                raise ValueError(
                    f"{path}: expected results of this machine, got one that differs in {', '.join(sorted(other))}; "
                    "give another --out, or move the file away"
                )
            self.changed = _differences(versions(was), versions(machine))
            self.data["machine"] = machine
            for row in self._rows():
                found = {name: old for name, (old, _) in self.changed.items()} | row.pop(OTHER, {})
                found = {name: value for name, value in found.items() if value != machine.get(name)}
                row |= {OTHER: found} if found else {}

    def put(self, part: str, case: dict[str, object], rows: list[dict[str, object]]) -> None:
        """Put the rows of one case into a part, with the weights' name, date and commit, and write the file."""
        old = [row for row in self.data.get(part, []) if any(row[key] != case[key] for key in CASE)]
        weights = {"weights": weights_name(case["net"])}
        rows = [case | row | weights | stamp() for row in rows]
        self.data[part] = sorted(old + rows, key=lambda row: (NETS.index(row["net"]), row["side"], row["batch"]))
        with atomic_write(self.path) as file:
            file.write_text(json.dumps(self.data, indent=1) + "\n")

    def opening(self) -> str:
        """What becomes of the file, in one line."""
        if not self.path.is_file():
            return f"{self.path}: a new file"
        if not self.changed:
            return f"{self.path}: cases are added, or replace those of the same name"
        changes = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in sorted(self.changed.items()))
        rows = sum(OTHER in row for row in self._rows())
        return (
            f"{self.path}: written with other versions ({changes}); cases that are measured now replace the old ones, "
            f"{rows} rows from before say their versions"
        )

    def _rows(self) -> list[dict[str, object]]:
        return [row for part in self.data.values() if isinstance(part, list) for row in part]


def path_of(folder: Path, machine: dict[str, object]) -> Path:
    """Where a machine's results are, or will be: under its name, with a number if that is another machine's."""
    name = slug(machine)
    paths = (folder / f"{name}{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1))
    return next(path for path in paths if not path.is_file() or _is_of(path, machine))


def _is_of(path: Path, machine: dict[str, object]) -> bool:
    return not _differences(hardware(json.loads(path.read_text())["machine"]), hardware(machine))


def _differences(was: dict[str, object], now: dict[str, object]) -> dict[str, tuple[object, object]]:
    return {name: (was.get(name), now.get(name)) for name in was.keys() | now.keys() if was.get(name) != now.get(name)}
