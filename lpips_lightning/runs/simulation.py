"""A simulation of a large run from its measured parts: how long it takes, where it breaks, and what to set.

    python -m lpips_lightning.runs.simulation              10^8 pairs on 64 GPUs, as the page "At scale" shows it
    python -m lpips_lightning.runs.simulation --help       other pairs, ranks, machines and parts

It follows every rank and worker process in steps of some pairs. Storage is shared equally among all worker processes;
times of pairs are drawn from gamma distributions, with a fixed seed: equal settings give equal results.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

_STEPS = 4000  # of a rank, about
_MOST_FAILURES = 1000
_AHEAD = 2  # batches that a worker process has ready, as `engine.run` sets it
_Times = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """A run and its machines. Times are in seconds per pair, unless their name says otherwise.

    Attributes:
        pairs: Pairs of the run.
        ranks: Devices, on all machines.
        per_machine: Devices of a machine.
        workers: Worker processes per device.
        cores: Cores of a machine.
        unit: Pairs per unit.
        batch: Pairs per batch.
        reading: Time until the bytes of a pair are there, in one worker process, if storage is not shared.
        decoding: Time of one core.
        device: Transfer and network.
        variation: Standard deviation of a pair's decoding over its mean.
        unit_variation: The same of whole units, such as archives with larger images.
        bytes_per_pair: Encoded size of both images.
        requests_per_pair: Requests that the store gets; 0 for archives that are read as streams.
        bandwidth: Bytes per second that a machine reads, at most; 0: without limit.
        request_rate: Requests per second that the store answers, for all machines; 0: without limit.
        start_s: Seconds until the ranks run: processes, network, first batch.
        list_rate: Pairs per second that rank 0 lists before the start; 0: the list is not read.
        list_bytes: Bytes per pair that every process keeps of the list.
        scan_rate: Pairs per second that rank 0 finds in the folder of the run when it resumes.
        merge_rate: Pairs per second that rank 0 merges and writes at the end.
        row_bytes: Bytes per pair in the folder of the run.
        failure_h: Hours between failures of one device or its machine's part, on average; 0: none.
        seed: Of the random numbers.
    """

    pairs: int = 10**8
    ranks: int = 64
    per_machine: int = 8
    workers: int = 8
    cores: int = 96
    unit: int = 480
    batch: int = 24
    reading: float = 0.002
    decoding: float = 0.01
    device: float = 0.0005
    variation: float = 0.5
    unit_variation: float = 0.0
    bytes_per_pair: float = 1e5
    requests_per_pair: float = 2.0
    bandwidth: float = 0.0
    request_rate: float = 0.0
    start_s: float = 30.0
    list_rate: float = 0.0
    list_bytes: float = 0.0
    scan_rate: float = 0.0
    merge_rate: float = 0.0
    row_bytes: float = 0.0
    failure_h: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("pairs", "ranks", "per_machine", "workers", "cores", "unit", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        negative = [one.name for one in fields(self) if getattr(self, one.name) < 0]
        if negative:
            raise ValueError(f"{negative[0]}: expected a number of at least 0, got {getattr(self, negative[0])}")

    @property
    def machines(self) -> int:
        """Number of machines."""
        return math.ceil(self.ranks / self.per_machine)

    @property
    def crowding(self) -> float:
        """How much longer decoding takes because worker processes share cores."""
        here = min(self.ranks, self.per_machine)
        return max(1.0, here * (self.workers + 1) / self.cores)

    @property
    def storage(self) -> float:
        """Seconds per pair of a worker process that waits for its part of the storage."""
        here, everywhere = min(self.ranks, self.per_machine) * self.workers, self.ranks * self.workers
        by_bytes = self.bytes_per_pair * here / self.bandwidth if self.bandwidth else 0.0
        by_requests = self.requests_per_pair * everywhere / self.request_rate if self.request_rate else 0.0
        return max(by_bytes, by_requests, self.reading)

    def limits(self) -> dict[str, float]:
        """Pairs per second that each part allows for the whole run, by name; without spread and failures."""
        return {
            "network": self.ranks / self.device if self.device else math.inf,
            "decoding": self.ranks * self.workers / (self.decoding * self.crowding) if self.decoding else math.inf,
            "reading": self.ranks * self.workers / self.reading if self.reading else math.inf,
            "bandwidth": self.machines * self.bandwidth / self.bytes_per_pair if self.bandwidth else math.inf,
            "requests": self.request_rate / self.requests_per_pair if self.request_rate else math.inf,
        }


@dataclass(frozen=True)
class Outcome:
    """What a simulated run took, in seconds.

    Attributes:
        total: From the command to its end.
        starting: Listing, starting, and finding what is done, over all attempts.
        measuring: Until the first rank had nothing left to do, over all attempts.
        straggling: From there until the last rank was done.
        merging: On rank 0, after the last rank.
        repeated: Pairs that were measured twice because of failures.
        failures: Number of failures.
        busy: Fraction of the devices' time, over `total`, in which they measured.
    """

    total: float
    starting: float
    measuring: float
    straggling: float
    merging: float
    repeated: int
    failures: int
    busy: float


def simulate(setting: Setting) -> Outcome:
    """Run a setting in simulated time.

    Returns:
        The times. A run that fails more often than it gets on ends after 1000 failures, with a `total` of infinity.
    """
    random = np.random.default_rng(setting.seed)
    left = setting.pairs
    starting = measuring = straggling = 0.0
    repeated = failures = 0
    while failures < _MOST_FAILURES:
        begin = setting.start_s + _over(setting.pairs, setting.list_rate) + _resuming(setting, setting.pairs - left)
        next_failure = _next_failure(setting, random)
        measured, took, rest = 0, 0.0, None
        if next_failure > begin:
            measured, took, rest = _attempt(setting, left, next_failure - begin, random)
        begin = min(begin, next_failure)
        starting, measuring = starting + begin, measuring + took
        if rest is not None:
            straggling = rest
            break
        lost = min(setting.ranks * setting.batch // 2, measured)
        left, repeated, failures = left - measured + lost, repeated + lost, failures + 1
    else:
        measuring = math.inf
    merging = _over(setting.pairs, setting.merge_rate)
    total = starting + measuring + straggling + merging
    busy = setting.pairs * setting.device / (setting.ranks * total)
    return Outcome(total, starting, measuring, straggling, merging, repeated, failures, busy)


def _resuming(setting: Setting, done: int) -> float:
    """Seconds to find what is done, and to read on to there in the units that were begun."""
    return _over(done, setting.scan_rate) + (setting.unit / 2 * setting.storage if done else 0.0)


def _over(count: float, rate: float) -> float:
    return count / rate if rate else 0.0


def _next_failure(setting: Setting, random: np.random.Generator) -> float:
    return float(random.exponential(3600 * setting.failure_h / setting.ranks)) if setting.failure_h else math.inf


def _per_unit(setting: Setting, pairs: int) -> int:
    """Steps of a unit, so that a rank has some thousands of steps, or one per unit."""
    return max(1, min(setting.unit, round(setting.unit * setting.ranks * _STEPS / pairs)))


def _attempt(
    setting: Setting, pairs: int, until: float, random: np.random.Generator
) -> tuple[int, float, float | None]:
    """Pairs measured, the time until the first rank ended, and from there to the last; None if a failure came first."""
    per_unit = _per_unit(setting, pairs)
    step = setting.unit / per_unit
    left = _dealt(setting, pairs) * per_unit
    steps = left.copy()
    device = np.zeros(setting.ranks)  # when each rank has finished its latest step
    ready = np.zeros((setting.workers, setting.ranks))  # when each worker process has finished its latest one
    taken = np.zeros((_AHEAD, setting.workers, setting.ranks))  # when the latest ones of each were done with
    done, last = 0.0, np.zeros(setting.ranks)
    for turn, times in enumerate(_times(setting, int(left.max()) * setting.workers, step, per_unit, random)):
        worker, slot = turn % setting.workers, turn // setting.workers % _AHEAD
        active = left[worker] > 0
        left[worker] -= 1
        # A worker process waits while its batches ahead are untouched.
        ready[worker] = np.maximum(ready[worker], taken[slot, worker]) + times
        device = np.where(active, np.maximum(device, ready[worker]) + step * setting.device, device)
        taken[slot, worker] = device
        done += step * float((active & (device <= until)).sum())
        last = np.where(active, device, last)
        if device.min() > until:
            break
    end = float(last.max())
    if end > until:
        return min(int(done), pairs - 1), until, None
    first = float(last[steps.sum(0) > 0].min())
    return pairs, first, end - first


def _dealt(setting: Setting, pairs: int) -> npt.NDArray[np.int64]:
    """Units of each worker process of each rank: a rank has every ranks-th, and its workers share these in turn."""
    units = math.ceil(pairs / setting.unit)
    own = [range(rank, units, setting.ranks) for rank in range(setting.ranks)]
    return np.array([[len(one[worker :: setting.workers]) for one in own] for worker in range(setting.workers)])


def _times(setting: Setting, steps: int, step: float, per_unit: int, random: np.random.Generator) -> Iterator[_Times]:
    """Seconds that the worker process of each rank takes for its next step."""
    size = np.ones((setting.workers, setting.ranks))
    for turn in range(steps):
        worker = turn % setting.workers
        if setting.unit_variation and turn // setting.workers % per_unit == 0:
            size[worker] = _gamma(setting.unit_variation, 1, setting.ranks, random)
        drawn = _gamma(setting.variation, step, setting.ranks, random) * size[worker]
        yield np.maximum(drawn * setting.decoding * setting.crowding, step * setting.storage)


def _gamma(variation: float, count: float, ranks: int, random: np.random.Generator) -> _Times:
    """Sums of `count` times of mean 1."""
    if not variation:
        return np.full(ranks, count)
    return random.gamma(count / variation**2, variation**2, ranks)


# Seconds of one core per MPix of both images: measured 2026-11-29, AMD EPYC (family 25, AVX2), one process.
_PNG, _JPEG = 0.045, 0.015
# Seconds per MPix of both images: assumed, not measured: LPIPS(alex), 28 GFLOP per MPix at 20 TFLOP/s.
_ALEX = 0.0014
# Rows per second and bytes per row of the folder of a run: measured on the same machine, with Parquet as the output.
_SCAN, _MERGE, _ROW = 1e6, 4e4, 131.0
_SMALL, _LARGE = 2 * 0.256**2, 2 * 1.024**2  # MPix of both images: 256 and 1024 pixels a side
_COMMON = Setting(scan_rate=_SCAN, merge_rate=_MERGE, row_bytes=_ROW, failure_h=5000, bandwidth=2.5e9)
_SHARDS: dict[str, Any] = {"unit": 10_000, "requests_per_pair": 0.0, "reading": 0.0005, "unit_variation": 0.1}
# Two requests of 30 ms, eight at a time, from one prefix of S3; 395 bytes of names per pair in every process.
_OBJECTS: dict[str, Any] = {"request_rate": 5500, "reading": 0.0075, "list_rate": 1.5e5, "list_bytes": 395}

CASES: dict[str, Setting] = {
    "256 px JPEG, shards": replace(
        _COMMON, **_SHARDS, decoding=_SMALL * _JPEG, device=_SMALL * _ALEX, bytes_per_pair=35e3
    ),
    "256 px PNG, objects": replace(
        _COMMON, **_OBJECTS, decoding=_SMALL * _PNG, device=_SMALL * _ALEX, bytes_per_pair=235e3
    ),
    "1 MPix JPEG, shards": replace(
        _COMMON, **_SHARDS, batch=1, decoding=_LARGE * _JPEG, device=_LARGE * _ALEX, bytes_per_pair=345e3
    ),
    "1 MPix PNG, objects": replace(
        _COMMON, **_OBJECTS, batch=1, decoding=_LARGE * _PNG, device=_LARGE * _ALEX, bytes_per_pair=2.7e6
    ),
}
CASES["the last, failing"] = replace(CASES["1 MPix PNG, objects"], failure_h=100)
"""10^8 pairs on 64 GPUs in 8 machines with 96 cores each."""

_MUCH = 0.1  # of the total, from which on a part is worth a change
_MEMORY = 256e9  # bytes of a machine


def advice(setting: Setting, outcome: Outcome) -> list[str]:
    """What limits a setting, and what to set."""
    limits = setting.limits()
    name = min(limits, key=lambda one: limits[one])
    hide = math.ceil(max(setting.decoding, setting.reading) / setting.device) if setting.device else setting.workers
    here = min(setting.ranks, setting.per_machine)
    remedies = {
        "network": "more devices",
        "decoding": f"{hide} workers per device would hide it, with {here * (hide + 1)} cores in a machine",
        "reading": f"{hide} workers per device would hide it",
        "bandwidth": "smaller files, or machines with faster networks",
        "requests": "tar shards, which are few large requests",
    }
    found = [f"{name} limits, {limits[name]:,.0f} pairs/s at most: {remedies[name]}"]
    parts = (
        (
            outcome.merging,
            "merging on rank 0 takes long: split the run into several, with a table each",
        ),
        (outcome.straggling, "ranks wait for the last one: smaller units or shards, of equal sizes"),
        (outcome.starting, "starting takes long: tar shards or a list in parts instead of one long list"),
    )
    found += [text for seconds, text in parts if seconds > _MUCH * outcome.total]
    lists = setting.list_bytes * setting.pairs * here * (setting.workers + 1)
    if lists > _MEMORY:
        found.append(f"names of all pairs take {lists / 1e9:,.0f} GB in a machine: tar shards, or split the run")
    return found


def table(cases: dict[str, Setting]) -> list[str]:
    """A line for each case: hours of each phase, failures, the devices' use, and the size of the run's folder."""
    columns = ("start", "measure", "wait for last", "merge", "total")
    lines = [f"{'hours':22}" + "".join(f"{one:>15}" for one in columns) + f"{'failures':>10}{'busy':>7}{'folder':>9}"]
    for name, setting in cases.items():
        found = simulate(setting)
        times = (found.starting, found.measuring, found.straggling, found.merging, found.total)
        shown = "".join(f"{seconds / 3600:>15.2f}" for seconds in times)
        size = f"{setting.pairs * setting.row_bytes / 1e9:.3g} GB"
        lines.append(f"{name:22}{shown}{found.failures:>10}{found.busy:>7.0%}{size:>9}")
        lines += [f"  {one}" for one in advice(setting, found)]
    return lines


def main(args: Sequence[str] | None = None) -> None:
    """Print the table of `CASES`, or of one setting from the command line."""
    description = (__doc__ or "").partition("\n\n")[0]
    parser = argparse.ArgumentParser("python -m lpips_lightning.runs.simulation", description=description)
    for one in fields(Setting):
        kind = int if isinstance(one.default, int) else float
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, help=f"default {one.default:g}")
    given = {name: value for name, value in vars(parser.parse_args(args)).items() if value is not None}
    try:
        lines = table({"your setting": Setting(**given)} if given else CASES)
    except ValueError as error:
        parser.error(str(error))
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
