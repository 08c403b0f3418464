"""Progress on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from lpips_lightning.download import Report

__all__ = ["progress_report"]


@contextmanager
def progress_report(console: Console | None = None) -> Iterator[Report]:
    """A `Report` that draws one bar a task, to standard error, while the context is open.

    Args:
        console: Where to draw instead.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console or Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = progress.add_task(task, total=None)
            progress.update(tasks[task], completed=done, total=total or None)

        yield report
