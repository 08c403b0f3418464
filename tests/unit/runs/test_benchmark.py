"""The benchmark of a run's parts: its formula, and what it measures on images in memory."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from lpips_lightning import LPIPS
from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.runs import benchmark as module
from lpips_lightning.runs.benchmark import Parts, benchmark
from lpips_lightning.runs.simulation import Setting, simulate
from lpips_lightning.sources.base import SourcePair

NET = LPIPS("embedded")
NEEDS = InputNeeds.of(NET)
PARTS = Parts(reading=1.0, decoding=4.0, transfer=0.5, network=1.5, decoding_cpu=4.0, network_cpu=1.0)


def image(seed, side=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "png")
    return file.getvalue()


class Source:
    """Equal images; some rows are broken; `archive`: the bytes come with the pairs."""

    def __init__(self, count=60, unit=24, broken=(), archive=False, delay=0.0):
        self._count, self._unit, self._broken, self._archive, self._delay = count, unit, broken, archive, delay
        self._bytes = image(0)
        self.reads = []

    def __len__(self):
        return -(-self._count // self._unit)

    @property
    def pairs(self):
        return self._count

    def describe(self):
        return {}

    def unit(self, index):
        for row in range(index * self._unit, min((index + 1) * self._unit, self._count)):
            names = f"{row}-a.png", f"{row}-b.png"
            yield SourcePair(*names, tuple(map(self.read, names)) if self._archive else None)

    def read(self, name):
        time.sleep(self._delay)
        self.reads.append(name)
        row = int(name.partition("-")[0])
        return b"broken" if row in self._broken else self._bytes


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "_LEAST", 0.05)
    monkeypatch.setattr(module, "_MOST", 1.0)


@pytest.mark.parametrize(
    ("workers", "cores", "seconds"),
    [
        (0, 8, 6.0),  # decoding, transfer and network follow each other
        (1, 8, 4.0),
        (2, 8, 2.0),  # the device, and the workers
        (4, 8, 2.0),  # the device
        (4, 2, 2.5),  # (4 + 1) seconds of a core on two cores
    ],
)
def test_the_expected_time_is_that_of_the_slowest_part(workers, cores, seconds):
    assert PARTS.expected(workers, cores) == seconds


def test_as_many_workers_hide_decoding_as_it_takes_longer_than_the_device():
    assert PARTS.workers_to_hide() == 2
    assert PARTS.expected(2, 100) == PARTS.expected(100, 100)


@pytest.mark.parametrize("archive", [False, True])
def test_it_measures_every_part_of_the_first_pairs(archive):
    source = Source(broken=(3,), archive=archive)
    report = benchmark(source, lambda: NET, NEEDS, accelerator="cpu", pairs=30)
    assert (report.pairs, report.skipped, report.total) == (29, 1, 60)
    assert report.batch == 24
    assert report.megapixels == pytest.approx(2 * 32 * 32 / 1e6)
    parts = report.parts
    assert min(parts.reading, parts.decoding, parts.network, parts.network_cpu, report.together) > 0
    assert parts.transfer == 0
    assert report.decoding_in_workers is None
    lines = report.lines()
    assert [line[:24].strip() for line in lines[1:8]] == [
        *("", "reading", "decoding, one process", "transfer", "network", "together", "expected of the parts"),
    ]
    assert "1 failed ones skipped" in lines[0] and any(" limits (" in line for line in lines)


def test_slow_reading_is_what_limits():
    report = benchmark(Source(delay=0.05), lambda: NET, NEEDS, accelerator="cpu", batch_size=8, pairs=24)
    assert report.parts.reading > 0.05 * 2 / 8 * 0.9  # eight threads
    name, _ = report.rates.limit()
    assert name == "reading"


@pytest.mark.parametrize(
    ("source", "pairs", "message"),
    [
        (Source(), 0, "benchmark: expected a positive number of pairs, got 0"),
        (Source(broken=range(60)), 10, "benchmark: expected pairs that can be compared, got 0-a.png: expected a read"),
        (Source(count=0), 10, "benchmark: expected pairs that can be read, got none"),
    ],
)
def test_errors_name_what_is_wrong(source, pairs, message):
    with pytest.raises(ValueError, match=message):
        benchmark(source, lambda: NET, NEEDS, accelerator="cpu", pairs=pairs)


def test_it_runs_in_one_process_only(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="benchmark: expected one process, got several ranks"):
        benchmark(Source(), lambda: NET, NEEDS)


class Sleeping:
    """A network that takes a fixed time per batch and no core."""

    def __call__(self, x, y, data_range, per_layer, mask=None, erode=False):
        time.sleep(0.05)
        return {"layer": torch.zeros(len(x))}


@pytest.mark.slow
@pytest.mark.parametrize(("delay", "workers"), [(0.0, 2), (0.04, 2), (0.04, 1)])
def test_the_simulation_agrees_with_a_real_run(monkeypatch, delay, workers):
    """Within 25 percent, of which most is the start of processes."""
    monkeypatch.setattr(module, "_LEAST", 4.0)
    monkeypatch.setattr(module, "_MOST", 8.0)
    monkeypatch.setattr(module, "_network", lambda *_: (0.05 / 8, 0.0))
    source = Source(count=400, unit=40, delay=delay)
    report = benchmark(source, Sleeping, NEEDS, accelerator="cpu", workers=workers, batch_size=8, pairs=200)
    parts = report.parts
    simulated = simulate(
        Setting(
            pairs=report.rates.pairs,
            ranks=1,
            workers=workers,
            unit=16,
            batch=8,
            reading=parts.reading,
            decoding=parts.decoding,
            device=parts.network,
            variation=0,
            start_s=0,
        )
    )
    real = report.together * report.rates.pairs
    assert simulated.total == pytest.approx(real, rel=0.25)
    assert report.expected == pytest.approx(report.together, rel=0.25)
