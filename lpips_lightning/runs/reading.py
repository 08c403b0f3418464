"""Batches of image pairs, read and decoded in DataLoader workers, in bounded memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lpips_lightning.comparison.file_pairs import InputNeeds, input_problems, size_problems
from lpips_lightning.comparison.measure import checked_pixels, default_batch_size, stacked
from lpips_lightning.io.image_decoding import Header, read_header, read_pixels
from lpips_lightning.runs.engine import UnitDataset
from lpips_lightning.sources.base import PairSource, SourcePair

_Names = tuple[str, str]


@dataclass(frozen=True)
class PairBatch:
    """Pairs of one unit that fit in a batch.

    Attributes:
        unit: Number of the unit.
        rows: Numbers of the pairs in the unit, in the order of the images.
        names: Paths of both images by row, also of pairs that failed.
        x: First images ``(N, C, H, W)``, uint8, or float32 on [0, 1]; None if all pairs failed.
        y: Second images.
        errors: Why pairs failed, by row; such rows are not in `rows`.
        end: Number of pairs in the unit, in its last batch; else None.
        reading: Seconds spent reading bytes.
        decoding: Seconds spent decoding them.
    """

    unit: int
    rows: tuple[int, ...] = ()
    names: Mapping[int, _Names] = field(default_factory=dict)
    x: Tensor | None = None
    y: Tensor | None = None
    errors: Mapping[int, str] = field(default_factory=dict)
    end: int | None = None
    reading: float = 0.0
    decoding: float = 0.0

    def _with(self, function: Any) -> PairBatch:
        return self if self.x is None or self.y is None else replace(self, x=function(self.x), y=function(self.y))

    def to(self, device: torch.device) -> PairBatch:
        """The batch with its images on a device."""
        return self._with(lambda images: images.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """The batch with its images in pinned memory."""
        return self._with(Tensor.pin_memory)


@dataclass
class _Waiting:
    """Pairs of equal sizes and kinds that wait for a full batch, encoded."""

    size: int
    pairs: list[tuple[int, SourcePair, tuple[bytes, bytes], tuple[Header, Header]]]


class PairReader(UnitDataset):
    """Reads units of a source into batches.

    Batches depend only on the source and `batch_size`, not on ranks and workers: pairs of equal sizes and kinds are
    batched in the order of the unit. At most one batch is decoded at a time; pairs that wait for theirs stay encoded.

    Args:
        units: Numbers of the units.
        source: The pairs.
        needs: What the network needs.
        batch_size: Pairs per batch; None: 24, fewer for large images.
        done: Rows that need not be measured again, by unit; batches with no other rows are left out.
    """

    def __init__(
        self,
        units: Sequence[int],
        source: PairSource,
        needs: InputNeeds,
        batch_size: int | None = None,
        done: Mapping[int, frozenset[int]] | None = None,
    ) -> None:
        super().__init__(units)
        self.source, self.needs, self.batch_size, self.done = source, needs, batch_size, done or {}

    @override
    def __iter__(self) -> Iterator[PairBatch]:
        for unit in self.own_units():
            yield from _UnitReader(self, unit)


class _UnitReader:
    """One pass over a unit."""

    def __init__(self, reader: PairReader, unit: int) -> None:
        self._reader, self._unit = reader, unit
        self._done = reader.done.get(unit, frozenset())
        self._groups: dict[Any, _Waiting] = {}
        self._failed: dict[int, tuple[_Names, str]] = {}
        self._reading = self._decoding = 0.0

    def __iter__(self) -> Iterator[PairBatch]:
        row = -1
        pairs = iter(self._reader.source.unit(self._unit))
        while (pair := self._next(pairs)) is not None:
            row += 1
            group = self._add(row, pair)
            if group is not None and len(group.pairs) == group.size:
                yield from self._batch(group)
                group.pairs = []
        for group in self._groups.values():
            if group.pairs:
                yield from self._batch(group)
        yield replace(self._emptied(PairBatch(self._unit)), end=row + 1)

    def _next(self, pairs: Iterator[SourcePair]) -> SourcePair | None:
        start = time.perf_counter()
        pair = next(pairs, None)
        self._reading += time.perf_counter() - start
        return pair

    def _add(self, row: int, pair: SourcePair) -> _Waiting | None:
        """Read a pair; its group, or None if it failed."""
        try:
            if pair.error:
                raise ValueError(pair.error)
            contents = pair.contents or self._read(pair)
            a, b = read_header(pair.a, contents[0]), read_header(pair.b, contents[1])
            self._check(pair, a, b)
        except (ValueError, OSError) as error:
            self._fail(row, pair, error)
            return None
        key = (a.size, b.size, a.alpha, b.alpha, a.deep or b.deep)
        size = self._reader.batch_size or default_batch_size(a, b)
        group = self._groups.setdefault(key, _Waiting(size, []))
        group.pairs.append((row, pair, contents, (a, b)))
        return group

    def _read(self, pair: SourcePair) -> tuple[bytes, bytes]:
        start = time.perf_counter()
        try:
            return self._reader.source.read(pair.a), self._reader.source.read(pair.b)
        finally:
            self._reading += time.perf_counter() - start

    def _check(self, pair: SourcePair, a: Header, b: Header) -> None:
        needs = self._reader.needs
        problems = [*input_problems(pair.a, a, needs), *input_problems(pair.b, b, needs)]
        if needs.images.resize is None:
            names = [pair.a, pair.b] if pair.a != pair.b else [pair.a]
            problems += size_problems(names, {pair.a: a, pair.b: b})
        if problems:
            raise ValueError("; ".join(problems))

    def _fail(self, row: int, pair: SourcePair, error: Exception) -> None:
        if row not in self._done:
            self._failed[row] = ((pair.a, pair.b), str(error))

    def _batch(self, group: _Waiting) -> Iterator[PairBatch]:
        if all(row in self._done for row, *_ in group.pairs):
            return
        start = time.perf_counter()
        rows, names, first, second, deep = [], {}, [], [], False
        for row, pair, contents, (a, b) in group.pairs:
            try:
                x = checked_pixels(read_pixels(pair.a, contents[0]), pair.a, a, self._reader.needs.images)
                y = checked_pixels(read_pixels(pair.b, contents[1]), pair.b, b, self._reader.needs.images)
            except (ValueError, OSError) as error:
                self._fail(row, pair, error)
                continue
            first.append(x)
            second.append(y)
            rows.append(row)
            names[row] = (pair.a, pair.b)
            deep |= a.deep or b.deep
        images = (stacked(first, deep).contiguous(), stacked(second, deep).contiguous()) if rows else (None, None)
        self._decoding += time.perf_counter() - start
        yield self._emptied(PairBatch(self._unit, tuple(rows), names, *images))

    def _emptied(self, batch: PairBatch) -> PairBatch:
        """The batch with the failures and times since the last one."""
        names = {**batch.names, **{row: names for row, (names, _) in self._failed.items()}}
        errors = {row: error for row, (_, error) in self._failed.items()}
        full = replace(batch, names=names, errors=errors, reading=self._reading, decoding=self._decoding)
        self._failed, self._reading, self._decoding = {}, 0.0, 0.0
        return full
