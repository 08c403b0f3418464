"""Progress bars on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

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

from lpips_lightning.io.console import Console
from lpips_lightning.io.download import ProgressCallback


@contextmanager
def progress_report(
    unit: Literal["bytes", "items"] = "bytes", console: Console | None = None
) -> Iterator[ProgressCallback]:
    """Context with a `ProgressCallback` that draws one bar per task on standard error.

    Args:
        unit: What ``done`` and ``total`` count.
        console: Console to draw on instead.
    """
    count = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn())
    progress = Progress(*columns, console=console or Console(stderr=True))
    tasks: dict[str, TaskID] = {}

    def report(task: str, done: int, total: int) -> None:
        progress.start()  # lazily, so that an early error is printed without a bar
        if task not in tasks:
            tasks[task] = progress.add_task(task, total=None)
        progress.update(tasks[task], completed=done, total=total or None)

    try:
        yield report
    finally:
        if tasks:
            progress.stop()
