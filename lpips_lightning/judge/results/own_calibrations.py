"""Calibration files that a user names, as metrics of a report or a ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lpips_lightning.evaluation.methods import Method, parse_method
from lpips_lightning.io.arguments import NETS
from lpips_lightning.io.tensor_files import read_record
from lpips_lightning.judge.results.calibrate import study_digest
from lpips_lightning.judge.store import Study


@dataclass(frozen=True)
class OwnCalibration:
    """A calibration file.

    Attributes:
        file: The file, as it was given.
        name: Its name among the metrics: that of the file without folder and suffix, or `file` if that one is taken.
        method: What `parse_method` calls it.
        record: Its record.
        held_out: The items that it was not trained on, if it was trained on answers of the study; else None.
    """

    file: str
    name: str
    method: str
    record: dict[str, Any]
    held_out: Sequence[int] | None

    def load(self) -> Method:
        """The metric, under its name."""
        return replace(parse_method(self.method), name=self.name)


def own_calibrations(files: Iterable[str], study: Study, taken: Iterable[str] = ()) -> list[OwnCalibration]:
    """Read the records of calibration files.

    Args:
        files: The files.
        study: The study that the metrics are for.
        taken: Names of other metrics.

    Raises:
        ValueError: If a file is no calibration of the backbone that comes with a network.
    """
    names, digest = {*taken}, study_digest(study)
    found = []
    for file in dict.fromkeys(files):
        record = read_record(Path(file).expanduser())
        net = record.get("net_type")
        if net not in NETS or str(record.get("mode", "lin")) != "lin":
            raise ValueError(
                f"calibration: expected a file of `judge calibrate` or `calibration fast`, got {file!r};"
                " --net alex:calibration=FILE takes any other"
            )
        name = file if Path(file).stem in names else Path(file).stem
        names.add(name)
        of_this = (record.get("study") or {}).get("digest") == digest
        held_out = list(record["held_out_items"]) if of_this else None
        found.append(OwnCalibration(file, name, f"{net}:calibration={file}", record, held_out))
    return found
