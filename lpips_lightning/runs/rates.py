"""How fast a run is, and what limits it: every rank keeps its times in a file, rank 0 shows those of all."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.console import Console
from lpips_lightning.runs.engine import BatchTimes
from lpips_lightning.runs.reading import PairBatch

_EVERY = 2.0  # seconds between the reports of a rank
_WINDOW = 30.0  # seconds that "now" means
_ON_TERMINAL, _ELSEWHERE = 1.0, 30.0  # seconds between lines
_FILES = "rates-*.json"

ADVICE = {
    "reading": "more --workers, or storage that is faster or nearer",
    "decoding": "more --workers while cores are free, or more machines",
    "transfer": "a larger --batch-size",
    "network": "more devices (--devices, --num-nodes)",
}
"""What to change, by what limits a run."""


@dataclass
class Rates:
    """Sums over the batches of a rank, or of all; all but `pairs` and `failed` are seconds.

    Attributes:
        pairs: Pairs measured, among them failed ones.
        failed: Pairs that failed.
        waiting: Time without a batch.
        transfer: Copying to the device.
        network: Measuring and writing.
        reading: Waiting for bytes, summed over the worker processes.
        decoding: Decoding, summed over the worker processes.
    """

    pairs: int = 0
    failed: int = 0
    waiting: float = 0.0
    transfer: float = 0.0
    network: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Rates) -> Rates:
        return Rates(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def limit(self) -> tuple[str, float] | None:
        """What limits the speed, a key of `ADVICE`, and its fraction of the ranks' time; None without times.

        Time without a batch is that of reading or decoding, whichever took the worker processes longer.
        """
        workers = "decoding" if self.decoding > self.reading else "reading"
        times = {workers: self.waiting, "transfer": self.transfer, "network": self.network}
        total = sum(times.values())
        name = max(times, key=lambda one: times[one])
        return (name, times[name] / total) if total > 0 else None


class RankRates:
    """Keeps the rates of a rank in the folder of the run, for rank 0.

    Args:
        folder: The folder.
        rank: Number of the rank.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.rates = Rates()
        self._path = folder / f"rates-{rank:05d}.json"
        self._write()

    def add(self, batch: PairBatch, times: BatchTimes, network: float) -> None:
        """Add a batch, of which the network took so many seconds."""
        pairs, failed = len(batch.rows) + len(batch.errors), len(batch.errors)
        self.rates += Rates(pairs, failed, times.waiting, times.transfer, network, batch.reading, batch.decoding)
        if time.monotonic() - self._last > _EVERY:
            self._write()

    def close(self) -> None:
        """Write the last state."""
        self._write()

    def _write(self) -> None:
        self._last = time.monotonic()
        with suppress(OSError), atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(asdict(self.rates)), encoding="utf-8")


class RunRates:
    """Rates of all ranks over time, and the sentence that says them.

    Args:
        total: Number of pairs of the run; None if it is not known.
        resumed: Number of pairs that earlier attempts measured.
    """

    def __init__(self, total: int | None, resumed: int = 0) -> None:
        self._total, self._resumed = total, resumed
        self._start: float | None = None
        self._seen: deque[tuple[float, Rates]] = deque()

    @property
    def pairs(self) -> int:
        """Pairs measured so far, also by earlier attempts."""
        return self._resumed + (self._seen[-1][1].pairs if self._seen else 0)

    def see(self, now: float, rates: Rates) -> None:
        """Note the sum over the ranks at a time in seconds."""
        self._start = now if self._start is None else self._start
        self._seen.append((now, rates))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW:
            self._seen.popleft()

    def line(self) -> str:
        """How far the run is, how fast, what limits it, and what to change; empty before the first pair."""
        if not self._seen or self._seen[-1][1].pairs == 0:
            return ""
        speed = [f"{_per_second(self._rate_now())} now", f"{_per_second(self._rate())} on average", self._left()]
        failed = self._seen[-1][1].failed
        parts = [self._count(), *filter(None, speed), *[f"{failed:,} failed"] * bool(failed)]
        return "; ".join(filter(None, [", ".join(parts), self._limit(self._seen[-1][1] - self._seen[0][1])]))

    def summary(self) -> str:
        """The average of the whole attempt, at its end; empty without pairs."""
        if not self._seen or self._seen[-1][1].pairs == 0:
            return ""
        now, rates = self._seen[-1]
        took = f"{rates.pairs:,} pairs in {duration(now - (self._start or 0.0))}, {_per_second(self._rate())}"
        return "; ".join(filter(None, [took, self._limit(rates)]))

    def _count(self) -> str:
        if not self._total:
            return f"{self.pairs:,} pairs"
        return f"{self.pairs:,} of {self._total:,} pairs ({int(100 * self.pairs / self._total)} %)"

    def _rate_now(self) -> float:
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last.pairs - first.pairs) / (end - begin) if end > begin else 0.0

    def _rate(self) -> float:
        end, last = self._seen[-1]
        took = end - (self._start or 0.0)
        return last.pairs / took if took > 0 else 0.0

    def _left(self) -> str:
        rate = self._rate_now()
        if self._total is None or rate == 0 or self.pairs >= self._total:
            return ""
        return f"{duration((self._total - self.pairs) / rate)} left"

    @staticmethod
    def _limit(rates: Rates) -> str:
        found = rates.limit()
        if found is None:
            return ""
        name, fraction = found
        return f"{name} limits ({fraction:.0%} of the time): {ADVICE[name]}"


@contextmanager
def progress_line(folder: Path, ranks: int, total: int | None, resumed: int = 0) -> Iterator[None]:
    """Show on standard error how fast a run is; for rank 0, from before the ranks start to after the last has ended.

    One line on a terminal, else a line every 30 seconds; nothing if standard error is closed.

    Args:
        folder: Folder of the run.
        ranks: Number of ranks.
        total: Number of pairs; None if it is not known.
        resumed: Number of pairs that earlier attempts measured.
    """
    for path in folder.glob(_FILES):  # of an earlier attempt
        path.unlink(missing_ok=True)
    if sys.stderr is None:
        yield
        return
    reporter = _Reporter(folder, ranks, RunRates(total, resumed), total)
    thread = threading.Thread(target=reporter.run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        reporter.left.set()
        thread.join()


def read_rates(folder: Path, ranks: int) -> Rates | None:
    """Sum of the rates of all ranks that have written some; None if none has."""
    found = [one for rank in range(ranks) if (one := _read(folder / f"rates-{rank:05d}.json")) is not None]
    return sum(found, Rates()) if found else None


def _read(path: Path) -> Rates | None:
    try:
        return Rates(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there yet, or of another version
        return None


class _Reporter:
    """The thread that prints."""

    def __init__(self, folder: Path, ranks: int, rates: RunRates, total: int | None) -> None:
        self._folder, self._ranks, self._rates = folder, ranks, rates
        self.left = threading.Event()
        self._console = Console(stderr=True)
        columns: list[ProgressColumn] = [TextColumn("{task.description}")]
        if total is not None:
            columns.insert(0, BarColumn(20))
        self._bar = Progress(*columns, console=self._console, auto_refresh=False, transient=True)
        self._task = self._bar.add_task("", total=total)
        self._shown = False

    def run(self) -> None:
        with suppress(OSError, ValueError):  # the terminal has gone: the work goes on
            try:
                while not self.left.wait(_ON_TERMINAL if self._console.is_terminal else _ELSEWHERE):
                    self._look()
                    self._show()
            finally:
                if self._bar.live.is_started:
                    self._bar.stop()
            self._look()
            if self._shown:
                self._print(self._rates.summary())

    def _look(self) -> None:
        rates = read_rates(self._folder, self._ranks)
        if rates is not None:
            self._rates.see(time.monotonic(), rates)

    def _show(self) -> None:
        line = self._rates.line()
        if not line:
            return
        if not self._console.is_terminal:
            self._print(line)
        else:
            self._bar.start()
            self._bar.update(self._task, completed=self._rates.pairs, description=line)
            self._bar.refresh()
        self._shown = True

    def _print(self, line: str) -> None:
        text: RenderableType = f"lpips-lightning: {line}"
        self._console.print(text, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.3g}/s"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size, limit in (("s", 1, 120), ("min", 60, 120 * 60), ("h", 3600, 48 * 3600)):
        if seconds < limit:
            whole = size == 1 or seconds >= 10 * size
            return f"{seconds / size:.{0 if whole else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"
