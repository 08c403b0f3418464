"""Results on disk: one JSON a machine, written after every case, so that a run that is cut off has lost nothing."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.contenders import NETS
from benchmarks.machine import stamp
from lpips_lightning.whole_files import whole_file

CASE = ("net", "batch", "side", "work")  # rows that agree in these were measured together


class Results:
    """A machine's rows by part; a case that is measured again replaces the old one as a whole.

    Args:
        path: The JSON; read if it is there.
        machine: From `machine.describe`.

    Raises:
        ValueError: If the file was written on another machine or with other versions.
    """

    def __init__(self, path: Path, machine: dict[str, object]) -> None:
        self.path = path
        self.data: dict[str, object] = {"machine": machine}
        if path.is_file():
            self.data = json.loads(path.read_text())
            was = self.data["machine"]
            if was != machine:
                other = {key for key in was.keys() | machine.keys() if was.get(key) != machine.get(key)}
                raise ValueError(
                    f"{path}: expected results of this machine, got one that differs in {', '.join(sorted(other))}; "
                    "give another --out, or move the file away"
                )

    def put(self, part: str, case: dict[str, object], rows: list[dict[str, object]]) -> None:
        """Put the rows of one case into a part, and write the file."""
        old = [row for row in self.data.get(part, []) if any(row[key] != case[key] for key in CASE)]
        rows = [case | row | stamp() for row in rows]
        self.data[part] = sorted(old + rows, key=lambda row: (NETS.index(row["net"]), row["side"], row["batch"]))
        with whole_file(self.path) as file:
            file.write_text(json.dumps(self.data, indent=1) + "\n")
