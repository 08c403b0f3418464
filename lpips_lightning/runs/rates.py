"""How fast a run is, and what limits it."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.runs.engine import BatchTimes
from lpips_lightning.runs.reading import PairBatch

_EVERY = 2.0  # seconds between reports


@dataclass
class Rates:
    """Sums over the batches of a rank; all but `pairs` and `failed` are seconds.

    Attributes:
        pairs: Pairs measured, among them failed ones.
        failed: Pairs that failed.
        waiting: Time without a batch.
        transfer: Copying to the device.
        network: Measuring and writing.
        reading: Reading bytes, summed over the worker processes.
        decoding: Decoding, summed over the worker processes.
    """

    pairs: int = 0
    failed: int = 0
    waiting: float = 0.0
    transfer: float = 0.0
    network: float = 0.0
    reading: float = 0.0
    decoding: float = 0.0


class RankRates:
    """Keeps the rates of a rank in the folder of the run; rank 0 prints those of all ranks."""

    def __init__(self, folder: Path, rank: int, ranks: int, resumed: int, total: int | None) -> None:
        self.folder, self.rank, self.ranks, self.resumed, self.total = folder, rank, ranks, resumed, total
        self.rates, self.start = Rates(), time.perf_counter()
        self._last = self.start
        self._write()

    def add(self, batch: PairBatch, times: BatchTimes, network: float) -> None:
        """Add a batch."""
        self.rates.pairs += len(batch.rows) + len(batch.errors)
        self.rates.failed += len(batch.errors)
        self.rates.waiting += times.waiting
        self.rates.transfer += times.transfer
        self.rates.network += network
        self.rates.reading += batch.reading
        self.rates.decoding += batch.decoding
        if time.perf_counter() - self._last > _EVERY:
            self._write()

    def close(self) -> None:
        """Write the last state."""
        self._write()

    def _write(self) -> None:
        self._last = time.perf_counter()
        with suppress(OSError), atomic_write(self.folder / f"rates-{self.rank:05d}.json") as temporary:
            temporary.write_text(json.dumps(asdict(self.rates)), encoding="utf-8")
