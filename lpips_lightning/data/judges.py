"""Who judged a data set in BAPPS' layout: people, a metric, observers simulated on a metric, or nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lpips_lightning.data.bapps_download import ARCHIVES

RECORD = "made.json"
"""File in the folder of generated data that records how it was made."""

_JUDGMENTS = {"2afc/train": "judge", "2afc/val": "judge", "jnd/val": "same"}


@dataclass(frozen=True)
class Judge:
    """Who judged a set.

    Attributes:
        kind: ``"people"`` for BAPPS itself, ``"metric"`` for generated data, ``"simulated"`` for generated data with
            votes of a `SimulatedObserver`, ``"unknown"`` for all others.
        label: Name of the row of the judges' own agreement: ``"human"``, ``"judge: LPIPS alex v0.1"``,
            ``"simulated: LPIPS alex v0.1"``, ``"judges"``.
    """

    kind: Literal["people", "metric", "simulated", "unknown"]
    label: str


PEOPLE, UNKNOWN = Judge("people", "human"), Judge("unknown", "judges")
_METRIC, _SIMULATED = "judge: ", "simulated: "


def judged_by(root: str | Path, part: str, name: str) -> Judge:
    """Who judged a set.

    BAPPS is recognized by the name of the set and the number of its judgments (`ARCHIVES`), in a folder that
    `make_bapps` has not made. Generated data names its judge in ``made.json``.

    Args:
        root: Folder of the data set.
        part: ``"2afc/train"``, ``"2afc/val"`` or ``"jnd/val"``.
        name: Name of the set.
    """
    record = Path(root) / RECORD
    if record.is_file():
        return _recorded(record)
    folder = Path(root) / part / name / _JUDGMENTS[part]
    if name not in ARCHIVES[part].counts or not folder.is_dir():
        return UNKNOWN
    return judge_of(part, name, sum(path.suffix == ".npy" for path in folder.iterdir()))


def judge_of(part: str, name: str, count: int) -> Judge:
    """Who judged a set of which only the name and the number of judgments are known.

    Args:
        part: See `judged_by`.
        name: Name of the set.
        count: Number of judgments.

    Example:
        >>> judge_of("2afc/val", "cnn", 4720).label, judge_of("2afc/val", "cnn", 200).label
        ('human', 'judges')
    """
    low, high = ARCHIVES[part].counts.get(name, (1, 0))
    return PEOPLE if low <= count <= high else UNKNOWN


def _recorded(record: Path) -> Judge:
    try:
        content: Any = json.loads(record.read_text(encoding="utf-8"))
        name = content["judge"]
    except (OSError, ValueError, KeyError, TypeError):
        return UNKNOWN
    if not isinstance(name, str) or not name or name == "none":  # the judgments came later
        return UNKNOWN
    net, *options = name.split(", ")
    name = f"{net}{', baseline' * ('baseline' in options)}"
    if content.get("observer") is not None:
        return Judge("simulated", f"{_SIMULATED}{name}")
    return Judge("metric", f"{_METRIC}{name}")


def is_label(name: str) -> bool:
    """Whether a name is that of judges, which a method must not have."""
    return name in (PEOPLE.label, UNKNOWN.label) or name.startswith((_METRIC, _SIMULATED))


def judge_note(labels: Iterable[str]) -> str:
    """What a title says about judges that are no people; empty if there are none.

    Args:
        labels: Labels of judges.

    Example:
        >>> judge_note(["judge: l2", "judge: l2", "human"])
        'judged by a metric: l2'
        >>> judge_note(["simulated: l2"])
        'votes simulated with a metric: l2'
    """
    found = list(dict.fromkeys(labels))
    notes = []
    for kind, what in ((_METRIC, "judged by a metric"), (_SIMULATED, "votes simulated with a metric")):
        if names := [label.removeprefix(kind) for label in found if label.startswith(kind)]:
            notes.append(f"{what}: {', '.join(names)}")
    return "; ".join(notes)


def is_exact(label: str) -> bool:
    """Whether judges with this label always agree with themselves: a metric, without simulated observers."""
    return label.startswith(_METRIC)
