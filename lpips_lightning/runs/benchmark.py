"""How fast each part of a run is alone, and all together: what limits, and what may be expected."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pytorch_lightning import Trainer
from typing_extensions import override

from lpips_lightning.comparison.fidelity import Score
from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.perceptual_distance import PerceptualDistance
from lpips_lightning.runs import engine
from lpips_lightning.runs.engine import BatchTimes
from lpips_lightning.runs.launch import Launch, started_by_launcher
from lpips_lightning.runs.pairs import PairWork
from lpips_lightning.runs.rates import ADVICE, Rates, duration
from lpips_lightning.runs.read_ahead import ReadAhead
from lpips_lightning.runs.reading import PairBatch, PairReader
from lpips_lightning.sources.base import PairSource, SourcePair

_ENCODED, _DECODED = 256 << 20, 256 << 20  # bytes that are kept in memory, at most
_LEAST, _MOST = 3.0, 10.0  # seconds that a part is measured
_SLICES = 4  # units per worker


@dataclass(frozen=True)
class Parts:
    """Seconds that the parts of a run take per pair, each alone.

    Attributes:
        reading: Reading bytes, in one process with its reading threads.
        decoding: Decoding and stacking, in one process.
        transfer: Copying to the device.
        network: The network on a batch that lies on the device.
        decoding_cpu: Seconds of one core for `decoding`.
        network_cpu: Seconds of one core for `network`; more than `network` on a CPU with several threads.
    """

    reading: float
    decoding: float
    transfer: float
    network: float
    decoding_cpu: float
    network_cpu: float

    def expected(self, workers: int, cores: int) -> float:
        """Seconds per pair of a run on one device.

        With workers, the slowest of three counts: the device (transfer and network), the workers (reading and decoding
        overlap in each), and the cores, which decoding and a network on the CPU share. Without workers, decoding,
        transfer and network follow each other, and only reading overlaps.

        Args:
            workers: Worker processes of this device.
            cores: Cores of this device.
        """
        device = self.transfer + self.network
        if workers == 0:
            return max(self.reading, self.decoding + device)
        in_workers = max(self.reading, self.decoding) / workers
        return max(device, in_workers, (self.decoding_cpu + self.network_cpu) / cores)

    def workers_to_hide(self) -> int:
        """Worker processes per device behind which reading and decoding are hidden, if there is a core for each."""
        device = self.transfer + self.network
        return max(1, math.ceil(max(self.reading, self.decoding) / device)) if device > 0 else 1


@dataclass(frozen=True)
class BenchmarkReport:
    """What `benchmark` measured.

    Attributes:
        parts: Seconds per pair of each part alone.
        decoding_in_workers: Seconds per pair of decoding in the worker processes; None without workers.
        together: Seconds per pair of all together.
        rates: Times of the device's process in the run of all together.
        pairs: Pairs that were read.
        skipped: Pairs that cannot be read or compared.
        megapixels: Of both images of a pair, on average.
        batch: Pairs per batch.
        device: Name of the device.
        workers: Worker processes.
        cores: Cores of this process.
        total: Pairs of the source; None if it is not known.
    """

    parts: Parts
    decoding_in_workers: float | None
    together: float
    rates: Rates
    pairs: int
    skipped: int
    megapixels: float
    batch: int
    device: str
    workers: int
    cores: int
    total: int | None

    @property
    def expected(self) -> float:
        """Seconds per pair that the parts let expect."""
        return self.parts.expected(self.workers, self.cores)

    def lines(self) -> list[str]:
        """The report, to be printed."""
        return [self._heading(), *self._table(), *self._sentences()]

    def _heading(self) -> str:
        skipped = f", {self.skipped} failed ones skipped" if self.skipped else ""
        return (
            f"{self.pairs} pairs{skipped}, {self.megapixels:.3g} MPix in both images, {self.batch} in a batch;"
            f" {self.device}, {_count(self.cores, 'core')}, {_count(self.workers, 'worker')}"
        )

    def _table(self) -> list[str]:
        parts = self.parts
        rows = [
            ("reading", parts.reading, None),
            ("decoding, one process", parts.decoding, parts.decoding_cpu),
            *[(f"decoding, {_count(self.workers, 'worker')}", self.decoding_in_workers, None)] * (self.workers > 0),
            ("transfer", parts.transfer, None),
            ("network", parts.network, parts.network_cpu),
            ("together", self.together, None),
            ("expected of the parts", self.expected, None),
        ]
        head = f"{'':24}{'pairs/s':>10}{'ms/pair':>10}{'ms/MPix':>10}{'CPU ms/pair':>13}"
        return [head, *(self._row(*row) for row in rows)]

    def _row(self, name: str, seconds: float | None, cpu: float | None) -> str:
        if not seconds:
            return f"{name:24}{'-':>10}{'-':>10}{'-':>10}"
        numbers = [1 / seconds, 1e3 * seconds, 1e3 * seconds / self.megapixels]
        shown = "".join(f"{_short(number):>10}" for number in numbers)
        return f"{name:24}{shown}" + ("" if cpu is None else f"{_short(1e3 * cpu):>13}")

    def _sentences(self) -> list[str]:
        formula = (
            "max(network + transfer, max(reading, decoding) / workers, (CPU of decoding + CPU of network) / cores)"
            if self.workers
            else "max(reading, decoding + transfer + network)"
        )
        lines = [f"expected: {formula}; measured: {self.expected / self.together:.0%} of that speed"]
        limit = self.rates.limit()
        if limit is not None:
            lines.append(f"{limit[0]} limits ({limit[1]:.0%} of the time): {ADVICE[limit[0]]}")
        needed = self.parts.workers_to_hide()
        lines.append(f"{_count(needed, 'worker')} and as many free cores would hide reading and decoding")
        if self.total:
            lines.append(f"all {self.total:,} pairs: about {duration(self.total * self.together)} on one such device")
        return lines


def benchmark(
    source: PairSource,
    network: Callable[[], PerceptualDistance],
    needs: InputNeeds,
    *,
    accelerator: str = "auto",
    workers: int = 0,
    batch_size: int | None = None,
    scores: Sequence[Score] = (),
    pairs: int = 200,
) -> BenchmarkReport:
    """Measure on the first pairs of a source each part of a run alone, then all together; writes no results.

    Parts are measured for at most about 10 seconds each, and at most 256 MiB of files and of decoded images are kept.
    Files that were read shortly before may come from the system's cache.

    Args:
        source: The pairs.
        network: Makes the network.
        needs: What it needs of its images.
        accelerator: As of `Launch`; one device is measured.
        workers: Worker processes.
        batch_size: Pairs per batch; None: 24, fewer for large images.
        scores: PSNR and SSIM, if wanted.
        pairs: Number of pairs.

    Raises:
        ValueError: If `pairs` is not positive, no pair can be read, or torchrun or SLURM started several ranks.
    """
    if pairs < 1:
        raise ValueError(f"benchmark: expected a positive number of pairs, got {pairs}")
    if started_by_launcher():
        raise ValueError("benchmark: expected one process, got several ranks; run it without torchrun and srun")
    trainer = Launch(devices="1", accelerator=accelerator).trainer()
    held = _Held.read(source, pairs)
    reader = _Reader(needs, batch_size)
    decoding, batches, failure = _decoding(held, reader)
    if not batches:
        raise ValueError(f"benchmark: expected pairs that can be compared, got {failure}")
    batch = max(len(one.rows) for one in batches)
    in_workers = _decoding_in_workers(held.in_units(batch, workers), reader, workers, decoding[0])
    device = trainer.strategy.root_device
    transfer, moved = _transfer(batches, device)
    network_wall, network_cpu = _network(network(), moved, scores)
    pixels = [one.x.shape[0] * (_area(one.x) + _area(one.y)) for one in batches if one.x is not None]
    megapixels = sum(pixels) / sum(len(one.rows) for one in batches) / 1e6
    del batches, moved
    parts = Parts(held.reading, decoding[0], transfer, network_wall, decoding[1], network_cpu)
    slices = held.slices(source, batch, workers, parts.expected(workers, _cores()))
    together, rates = _together(slices, network, needs, trainer, workers, batch_size, scores)
    return BenchmarkReport(
        parts=parts,
        decoding_in_workers=in_workers,
        together=together,
        rates=rates,
        pairs=len(held.pairs) - held.broken,
        skipped=held.unreadable + held.broken,
        megapixels=megapixels,
        batch=batch,
        device=_device_name(device),
        workers=workers,
        cores=_cores(),
        total=source.pairs,
    )


@dataclass(frozen=True)
class _Reader:
    """Makes the batches of a source."""

    needs: InputNeeds
    batch_size: int | None

    def __call__(self, source: PairSource) -> PairReader:
        return PairReader(range(len(source)), source, self.needs, self.batch_size)


class _Units:
    """A source that is there for a short time."""

    def __init__(self, units: Sequence[Any]) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    @property
    def pairs(self) -> int | None:
        return None

    def describe(self) -> dict[str, Any]:
        return {}


class _InMemory(_Units):
    """Pairs whose bytes are in memory."""

    def unit(self, index: int) -> Iterator[SourcePair]:
        return iter(self._units[index])

    def read(self, name: str) -> bytes:
        raise OSError(f"{name}: expected the bytes with the pair")


class _Slices(_Units):
    """Slices of the units of a source: its unit, the first pair, and the number after the last one."""

    def __init__(self, source: PairSource, slices: Sequence[tuple[int, int, int]]) -> None:
        super().__init__(slices)
        self._source = source

    def unit(self, index: int) -> Iterator[SourcePair]:
        unit, start, stop = self._units[index]
        return islice(self._source.unit(unit), start, stop)

    def read(self, name: str) -> bytes:
        return self._source.read(name)


@dataclass
class _Held:
    """The first pairs of a source, with their bytes."""

    pairs: list[SourcePair]
    counts: dict[int, int]  # pairs by unit of the source, among them skipped ones
    unreadable: int
    broken: int  # found when they are decoded
    reading: float
    divisible: bool

    @classmethod
    def read(cls, source: PairSource, count: int) -> _Held:
        held = cls([], {}, 0, 0, 0.0, True)
        failures: list[Exception] = []
        start, size = time.perf_counter(), 0
        for unit, pair, contents in _read_ahead(source):
            held.counts[unit] = held.counts.get(unit, 0) + 1
            if isinstance(contents, Exception):
                failures.append(contents)
            else:
                held.divisible &= pair.contents is None
                held.pairs.append(SourcePair(pair.a, pair.b, contents))
                size += sum(map(len, contents))
            if len(held.pairs) + len(failures) >= count or size >= _ENCODED or time.perf_counter() - start > _MOST:
                break
        if not held.pairs:
            raise ValueError(f"benchmark: expected pairs that can be read, got {failures[0] if failures else 'none'}")
        held.unreadable = len(failures)
        held.reading = (time.perf_counter() - start) / len(held.pairs)
        return held

    def in_units(self, batch: int, workers: int) -> _InMemory:
        """The pairs in units of some batches, as many as the workers need to share them."""
        size = self._size(batch, workers)
        return _InMemory([self.pairs[start : start + size] for start in range(0, len(self.pairs), size)])

    def slices(self, source: PairSource, batch: int, workers: int, expected: float) -> _Slices:
        """The same pairs of the source, so many times, or so many of them, that a run takes some seconds."""
        size = self._size(batch, workers) if self.divisible else max(self.counts.values())
        once = [
            (unit, start, min(start + size, count))
            for unit, count in self.counts.items()
            for start in range(0, count, size)
        ]
        pairs = sum(self.counts.values())
        wanted = min(max(_LEAST / expected, min(pairs, _MOST / expected)), 100 * pairs)
        taken: list[tuple[int, int, int]] = []
        for one in cycle(once):
            if wanted <= 0:
                break
            taken.append(one)
            wanted -= one[2] - one[1]
        return _Slices(source, taken)

    def _size(self, batch: int, workers: int) -> int:
        return batch * max(1, len(self.pairs) // (batch * _SLICES * max(workers, 1)))


def _read_ahead(source: PairSource) -> Iterator[tuple[int, SourcePair, Any]]:
    for unit in range(len(source)):
        with ReadAhead(source, unit) as found:
            for pair, contents in found:
                yield unit, pair, contents


def _decoding(held: _Held, reader: _Reader) -> tuple[tuple[float, float], list[PairBatch], str]:
    """Wall and CPU seconds per pair in this process, the first batches, and an error."""
    kept: list[PairBatch] = []
    count, size, failure = 0, 0, "none"
    clock = _Clock()
    for batch in reader(_InMemory([held.pairs])):
        count += len(batch.rows)
        failure = next(iter(batch.errors.values()), failure)
        held.broken += len(batch.errors)
        if batch.x is not None and batch.y is not None and size < _DECODED:
            kept.append(batch)
            size += batch.x.nbytes + batch.y.nbytes
        if clock.wall() > _MOST:
            break
    wall, cpu = clock.wall(), clock.cpu()
    return (wall / max(count, 1), cpu / max(count, 1)), kept, failure


def _decoding_in_workers(source: _InMemory, reader: _Reader, workers: int, alone: float) -> float | None:
    """Seconds per pair in worker processes, whose batches come to this process."""
    if workers == 0:
        return None
    units = [*source._units]
    rounds = math.ceil(_LEAST * workers / alone / sum(map(len, units)))
    data = reader(_InMemory(units * min(rounds, 100)))
    start, count = time.perf_counter(), 0
    for batch in engine.read(data, workers):
        count += len(batch.rows)
        if time.perf_counter() - start > _MOST:
            break
    return (time.perf_counter() - start) / max(count, 1)


def _transfer(batches: Sequence[PairBatch], device: torch.device) -> tuple[float, list[PairBatch]]:
    """Seconds per pair of copying to the device, from pinned memory on CUDA, and the batches there; 0 on the CPU."""
    if device.type == "cpu":
        return 0.0, list(batches)
    pinned = [one.pin_memory() if device.type == "cuda" else one for one in batches]
    pinned[0].to(device)
    _wait(device)
    start = time.perf_counter()
    moved = [one.to(device) for one in pinned]
    _wait(device)
    return (time.perf_counter() - start) / sum(len(one.rows) for one in batches), moved


def _network(net: PerceptualDistance, batches: Sequence[PairBatch], scores: Sequence[Score]) -> tuple[float, float]:
    """Wall and CPU seconds per pair of the network; every size of batch runs once before."""
    work = _TimedWork(_InMemory([]), lambda: net, InputNeeds.of(net), Path(os.devnull), scores=scores)
    by_size = {(one.x.shape, one.y.shape): one for one in batches if one.x is not None and one.y is not None}
    for one in by_size.values():
        work.run_network(one)
    count, clock = 0, _Clock()
    for one in chain(batches, cycle(batches)):
        work.run_network(one)
        count += len(one.rows)
        if clock.wall() > _MOST or (clock.wall() > _LEAST and count >= sum(len(each.rows) for each in batches)):
            break
    return clock.wall() / count, clock.cpu() / count


class _TimedWork(PairWork):
    """Notes when it began and ended."""

    begun = ended = 0.0
    rates = Rates()

    def run_network(self, batch: PairBatch) -> None:
        """Measure a batch; write nothing."""
        self._net = self.network()
        if batch.x is not None and batch.y is not None:
            with torch.inference_mode():
                self._measured(batch, batch.x, batch.y)

    @override
    def start(self, trainer: Trainer, device: torch.device) -> None:
        super().start(trainer, device)
        self.begun = time.perf_counter()

    @override
    def measure(self, batch: PairBatch, times: BatchTimes) -> None:
        super().measure(batch, times)
        self.ended = time.perf_counter()

    @override
    def finish(self) -> None:
        super().finish()
        self.rates = self._rates.rates


def _together(
    source: PairSource,
    network: Callable[[], PerceptualDistance],
    needs: InputNeeds,
    trainer: Trainer,
    workers: int,
    batch_size: int | None,
    scores: Sequence[Score],
) -> tuple[float, Rates]:
    """Seconds per pair of a run, and where they went."""
    with TemporaryDirectory() as folder:
        work = _TimedWork(source, network, needs, Path(folder), batch_size, scores)
        engine.run(trainer, lambda: work, workers=workers)
    return (work.ended - work.begun) / (work.rates.pairs - work.rates.failed), work.rates


class _Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def wall(self) -> float:
        return time.perf_counter() - self._wall

    def cpu(self) -> float:
        return time.process_time() - self._cpu


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({_count(torch.get_num_threads(), 'thread')})" if device.type == "cpu" else device.type


def _area(images: Any) -> int:
    return int(images.shape[-2] * images.shape[-1])


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'s' * (number != 1)}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
