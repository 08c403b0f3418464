"""Which folder a run writes to, and whether it goes on there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lpips_lightning.io.atomic import check_output_path, new_versions
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.runs.journal import LOCK, Journal

FORMAT = 1
"""Version of a run's folder."""

_STATE = ("finished", "outputs")  # of a plan, which do not say what is measured


class Run:
    """A run in its folder, which is locked until a stack ends.

    Args:
        journal: The folder.
        plan: What is measured, in JSON's types.
        outputs: Files that the run writes at its end.
        resumed: Whether the folder has parts of this run.
    """

    def __init__(self, journal: Journal, plan: Mapping[str, Any], outputs: Sequence[str], resumed: bool) -> None:
        self.journal, self.plan, self.resumed = journal, dict(plan), resumed
        known = (journal.plan() or {}).get("outputs", []) if resumed else []
        self.own_outputs = frozenset(str(one) for one in known)
        """Files that an earlier attempt may have written; it had checked that it may."""
        self._outputs = sorted({*self.own_outputs, *outputs})

    def begin(self) -> None:
        """Write the plan; what an earlier run has left is deleted unless it is resumed."""
        if not self.resumed:
            self.journal.clear()
        self.journal.begin({**self.plan, "outputs": self._outputs, "finished": False})

    def finish(self) -> None:
        """Write that the run is complete."""
        self.journal.begin({**self.plan, "outputs": self._outputs, "finished": True})


def open_run(
    stack: ExitStack,
    plan: Mapping[str, Any],
    out: str | None,
    default: str,
    outputs: Sequence[str] = (),
    force: bool = False,
    retry_failed: bool = False,
) -> Run:
    """Choose and lock the folder of a run; nothing but the lock is written.

    Args:
        stack: Ends the lock.
        plan: What is measured. A run resumes only if its plan is equal.
        out: Folder that the user chose. None: `default`, or ``default-2``, ... if a finished or other run lies there.
        default: Default folder.
        outputs: Files that the run writes at its end.
        force: Whether to replace a finished or other run in `out`.
        retry_failed: Whether to go on in a run of this plan, finished or not, with the pairs that failed.

    Raises:
        ValueError: If `out` has a finished or other run, or another process uses it; with `retry_failed`: if there is
            no run of this plan.
    """
    plan = json.loads(json.dumps({"format": FORMAT, **plan}))
    if retry_failed:
        return _retried(stack, plan, out, default, outputs)
    journal = Journal(next(_free(default, plan)) if out is None else out)
    check_output_path(journal.folder, "out", folder=True)
    stack.enter_context(journal.locked())
    found = journal.plan()
    difference = "" if found is None else _difference(found, plan)
    finished = found is not None and not difference and bool(found.get("finished"))
    if (difference or finished) and not force:
        what = f"another run, {difference}" if difference else "a finished run"
        raise ValueError(
            f"out: expected a new folder or an unfinished run of the same command, got '{printable(journal.folder)}'"
            f" with {what}; --force measures again, or choose another folder"
        )
    return Run(journal, plan, outputs, resumed=found is not None and not difference and not finished)


def _retried(stack: ExitStack, plan: Mapping[str, Any], out: str | None, default: str, outputs: Sequence[str]) -> Run:
    """The run of this plan, without the results of pairs that failed."""
    there = [folder for folder in ([Path(out)] if out is not None else _versions(default)) if folder.is_dir()]
    plans = {folder: found for folder in there if (found := Journal(folder).plan()) is not None}
    matching = [folder for folder, found in plans.items() if not _difference(found, plan)]
    if not matching:
        place = printable(default if out is None else out)
        got = f"one {_difference(next(reversed(plans.values())), plan)}" if plans else "none"
        raise ValueError(
            f"retry-failed: expected a run of the same command in '{place}', got {got}; leave --retry-failed out to"
            " measure all pairs"
        )
    journal = Journal(matching[-1])
    stack.enter_context(journal.locked())
    run = Run(journal, plan, outputs, resumed=True)
    run.begin()
    journal.forget_failed()
    return run


def _versions(default: str) -> Iterator[Path]:
    """Versions of the default folder that exist."""
    return itertools.takewhile(Path.exists, new_versions(default))


def _free(default: str, plan: Mapping[str, Any]) -> Iterator[Path]:
    """Versions of the default folder that are new, or have an unfinished run of the plan."""
    for folder in new_versions(default):
        if not folder.exists():
            yield folder
        if not folder.is_dir():
            continue
        found = Journal(folder).plan()
        if found is None and all(one.name == LOCK for one in folder.iterdir()):
            yield folder
        if found is not None and not found.get("finished") and not _difference(found, plan):
            yield folder


def _difference(found: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The first thing in which plans differ; empty if they are equal."""
    one, two = _flat(found), _flat(plan)
    for name in [*two, *one]:
        if one.get(name) != two.get(name):
            before, now = (printable(str(side.get(name)))[:200] for side in (one, two))
            return f"whose {name} is {before!r}, not {now!r}"
    return ""


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        if name not in _STATE:
            inner = value if isinstance(value, dict) else None
            flat |= {name: value} if inner is None else {f"{name} {key}": one for key, one in inner.items()}
    return flat
