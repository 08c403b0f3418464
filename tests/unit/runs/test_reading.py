"""Batches of pairs from worker processes: they depend on the source only, in bounded memory; errors are rows."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lpips_lightning.comparison.file_pairs import InputNeeds
from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.runs import read_ahead, reading
from lpips_lightning.runs.read_ahead import ReadAhead
from lpips_lightning.runs.reading import PairReader
from lpips_lightning.sources.base import SourcePair

NEEDS = InputNeeds(ImagePolicy(), 8, "alex")
SIZES = ((16, 16), (16, 24), (24, 16), (32, 8))


def encoded(index, size=None, **options):
    height, width = size or SIZES[index * 7 % len(SIZES)]
    pixels = np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", **options)
    return file.getvalue()


class Made:
    """A source of images in memory; `broken` by row: an exception of `read`, or the bytes of a file."""

    def __init__(self, count=30, unit=30, size=None, broken=None, archive=False):
        self.count, self._unit, self.size, self.broken, self.archive = count, unit, size, broken or {}, archive
        self.reads = 0
        self.delay = 0.0

    def __len__(self):
        return -(-self.count // self._unit)

    @property
    def pairs(self):
        return self.count

    def describe(self):
        return {}

    def unit(self, index):
        for row in range(index * self._unit, min((index + 1) * self._unit, self.count)):
            names = f"{row}/a.png", f"{row}/b.png"
            yield SourcePair(*names, tuple(map(self.read, names)) if self.archive else None)

    def read(self, name):
        self.reads += 1
        time.sleep(self.delay)
        row = int(name.partition("/")[0])
        found = self.broken.get(row)
        if isinstance(found, Exception):
            raise found
        return found if found is not None else encoded(row, self.size)


def batches(source, units=None, **options):
    return list(PairReader(range(len(source)) if units is None else units, source, NEEDS, **options))


def rows_of(found):
    return [(batch.unit, batch.rows) for batch in found if batch.rows]


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_depend_on_the_source_only(workers):
    source = Made(70, 30)
    alone = batches(source, batch_size=4)
    loader = DataLoader(PairReader([0, 1, 2], source, NEEDS, 4), batch_size=None, num_workers=workers)
    shared = sorted(loader, key=lambda batch: batch.unit)
    assert rows_of(shared) == rows_of(alone)
    assert all(torch.equal(one.x, two.x) for one, two in zip(alone, shared, strict=True) if one.rows)
    assert [batch.end for batch in alone if batch.end is not None] == [30, 30, 10]
    assert sorted(row for batch in alone if batch.unit == 1 for row in batch.rows) == list(range(30))
    assert max(len(batch.rows) for batch in alone) == 4


@pytest.mark.parametrize("archive", [False, True])
def test_waiting_pairs_are_bounded_by_their_bytes(monkeypatch, archive):
    source = Made(40, 40, archive=archive)
    whole = rows_of(batches(source))
    most = 4 * 2 * len(encoded(0, (24, 16)))
    monkeypatch.setattr(reading, "_MOST_WAITING", most)
    reader = reading._UnitReader(PairReader([0], source, NEEDS), 0)
    waiting, found = [], []
    for batch in reader:
        waiting.append(reader._waiting)
        found.append(batch)
    assert max(waiting) <= most
    assert len(rows_of(found)) > len(whole) == 4
    assert sorted(row for _, rows in rows_of(found) for row in rows) == list(range(40))
    assert rows_of(batches(source)) == rows_of(found)
    assert rows_of(found)[0][1][0] == 0  # those that wait longest come first


def test_a_resumed_unit_has_the_same_batches(monkeypatch):
    monkeypatch.setattr(reading, "_MOST_WAITING", 9000)
    source = Made(40, 40)
    whole = rows_of(batches(source))
    done = frozenset(row for _, rows in whole[:3] for row in rows) | {whole[4][1][0]}
    assert rows_of(batches(source, done={0: done})) == whole[3:]
    assert len(whole) > 5


def test_an_error_of_any_kind_is_a_row(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    broken = {
        1: OSError("1/a.png: no connection"),
        3: MemoryError(),
        4: KeyError("secret"),
        6: b"",
        7: encoded(7)[:-40],
        8: encoded(8, (99, 99)),
        9: encoded(9, (4, 4)),
        11: RecursionError("deep"),
    }
    found = batches(Made(20, 20, size=(16, 16), broken=broken))
    errors = {row: error for batch in found for row, error in batch.errors.items()}
    assert errors.keys() == broken.keys()
    assert [row for _, rows in rows_of(found) for row in rows] == [row for row in range(20) if row not in broken]
    assert all(f"{row}/a.png: " in error for row, error in errors.items())
    assert "DecompressionBombError" in errors[8]
    assert "MemoryError" in errors[3]
    assert found[-1].end == 20


def test_images_that_fill_the_memory_are_rows(monkeypatch):
    def full(pixels, deep):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(reading, "stacked", full)
    found = batches(Made(5, 5, size=(16, 16)))
    assert not rows_of(found)
    errors = {row: error for batch in found for row, error in batch.errors.items()}
    assert errors.keys() == set(range(5))
    assert errors[2] == "2/a.png: expected images that can be compared, got RuntimeError: can't allocate memory"


def test_a_unit_that_has_become_shorter_ends_the_run():
    with pytest.raises(ValueError, match="unit 0: expected at least 10 pairs, as in an earlier attempt, got 5"):
        batches(Made(5, 5), done={0: frozenset({9})})
    assert batches(Made(10, 10), done={0: frozenset({9})})[-1].end == 10


def test_threads_read_ahead_in_order():
    source = Made(64, 64, size=(16, 16))
    source.delay = 0.02
    start = time.perf_counter()
    with ReadAhead(source, 0) as pairs:
        names = [pair.a for pair, contents in pairs if contents]
    assert names == [f"{row}/a.png" for row in range(64)]
    assert time.perf_counter() - start < 64 * 2 * 0.02 / 2


@pytest.mark.parametrize("limit", ["_PAIRS", "_BYTES"])
@pytest.mark.parametrize("archive", [False, True])
def test_reading_ahead_is_bounded(monkeypatch, limit, archive):
    source = Made(200, 200, size=(16, 16), archive=archive)
    monkeypatch.setattr(read_ahead, limit, 5 if limit == "_PAIRS" else 5 * 2 * len(encoded(0, (16, 16))))
    with ReadAhead(source, 0) as pairs:
        for taken in range(3):
            next(pairs)
            time.sleep(0.1)
            assert source.reads <= 2 * (taken + 1 + 5 + read_ahead._THREADS + 1)
    assert source.reads < 40


def test_threads_end_with_the_unit_and_when_it_is_left():
    def alive():
        return [thread for thread in threading.enumerate() if thread.name.startswith(("read-ahead", "list-ahead"))]

    source = Made(200, 200, size=(16, 16))
    iterator = iter(PairReader([0], source, NEEDS, 1))
    next(iterator)
    assert alive()
    iterator.close()
    assert not alive()
    assert len(batches(source)) > 5
    assert not alive()


def test_an_error_of_the_list_ends_the_run():
    class Broken(Made):
        def unit(self, index):
            yield from super().unit(index)
            raise OSError("list.csv: expected a file, got no such file")

    found = []
    with pytest.raises(OSError, match="list.csv: expected a file"):
        found.extend(PairReader([0], Broken(3, 3, size=(16, 16)), NEEDS, 1))
