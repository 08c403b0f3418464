"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lpips_lightning.io.download import Report


@contextmanager
def progress_report(unit: Literal["bytes", "items"] = "bytes", console: Console | None = None) -> Iterator[Report]:
    """A `Report` that draws one bar a task, to standard error, while the context is open.

    Args:
        unit: What the numbers of the report count.
        console: Where to draw instead.
    """
    count = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    progress = Progress(*columns, console=console or Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def report(task: str, done: int, total: int) -> None:
        progress.start()  # at the first report: a mistake that is found before it stands alone
        if task not in tasks:
            tasks[task] = progress.add_task(task, total=None)
        progress.update(tasks[task], completed=done, total=total or None)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()
