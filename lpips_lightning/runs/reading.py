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
from lpips_lightning.io.image_decoding import Header, printable, read_header, read_pixels
from lpips_lightning.runs.engine import UnitDataset
from lpips_lightning.runs.read_ahead import ReadAhead
from lpips_lightning.sources.base import PairSource, SourcePair

_MOST_WAITING = 64 << 20  # encoded bytes of a unit that wait for full batches
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
        reading: Seconds spent waiting for bytes, which threads read ahead.
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

    def share(self) -> PairBatch:
        """The batch in memory that processes share."""
        return self._with(Tensor.share_memory_)


@dataclass
class _Waiting:
    """Pairs of equal sizes and kinds that wait for a full batch, encoded."""

    size: int
    pairs: list[tuple[int, SourcePair, tuple[bytes, bytes], tuple[Header, Header]]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Encoded size."""
        return sum(len(one) for _, _, contents, _ in self.pairs for one in contents)


class PairReader(UnitDataset):
    """Reads units of a source into batches.

    Batches depend only on the source and `batch_size`, not on ranks, workers and what was done before: pairs of equal
    sizes and kinds are batched in the order of the unit. Memory is bounded: one batch is decoded at a time, and pairs
    that wait for theirs stay encoded; if these have more than 64 MiB, those that wait longest become a smaller batch.

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
        self._groups: dict[Any, _Waiting] = {}  # the one that waits longest comes first
        self._waiting = 0  # bytes
        self._failed: dict[int, tuple[_Names, str]] = {}
        self._reading = self._decoding = 0.0

    def __iter__(self) -> Iterator[PairBatch]:
        row = -1
        with ReadAhead(self._reader.source, self._unit) as pairs:
            while (found := self._next(pairs)) is not None:
                row += 1
                full = self._add(row, *found)
                if full is not None:
                    yield from self._batch(full)
                while self._waiting > _MOST_WAITING:
                    yield from self._batch(next(iter(self._groups)))
        for key in list(self._groups):
            yield from self._batch(key)
        if self._done and max(self._done) > row:
            raise ValueError(
                f"unit {self._unit}: expected at least {max(self._done) + 1} pairs, as in an earlier attempt, got"
                f" {row + 1}; the images have changed or cannot be read at present"
            )
        yield replace(self._emptied(PairBatch(self._unit)), end=row + 1)

    def _next(self, pairs: ReadAhead) -> tuple[SourcePair, tuple[bytes, bytes] | Exception] | None:
        start = time.perf_counter()
        found = next(pairs, None)
        self._reading += time.perf_counter() - start
        return found

    def _add(self, row: int, pair: SourcePair, contents: tuple[bytes, bytes] | Exception) -> Any:
        """Add a pair to its group; the group's key if it is full now."""
        try:
            if isinstance(contents, Exception):
                raise contents
            a, b = read_header(pair.a, contents[0]), read_header(pair.b, contents[1])
            self._check(pair, a, b)
        except Exception as error:  # of any kind: the other pairs go on
            self._fail(row, pair, error)
            return None
        key = (a.size, b.size, a.alpha, b.alpha, a.deep or b.deep)
        if key not in self._groups:
            self._groups[key] = _Waiting(self._reader.batch_size or default_batch_size(a, b))
        group = self._groups[key]
        group.pairs.append((row, pair, contents, (a, b)))
        self._waiting += len(contents[0]) + len(contents[1])
        return key if len(group.pairs) == group.size else None

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
            known = isinstance(error, ValueError | OSError) and str(error)
            reason = str(error) if known else _unnamed(pair, error)
            self._failed[row] = ((pair.a, pair.b), reason)

    def _batch(self, key: Any) -> Iterator[PairBatch]:
        group = self._groups.pop(key)
        self._waiting -= group.bytes
        if all(row in self._done for row, *_ in group.pairs):
            return
        start = time.perf_counter()
        decoded = {}
        for row, pair, contents, (a, b) in group.pairs:
            try:
                x = checked_pixels(read_pixels(pair.a, contents[0]), pair.a, a, self._reader.needs.images)
                y = checked_pixels(read_pixels(pair.b, contents[1]), pair.b, b, self._reader.needs.images)
                decoded[row] = x, y
            except Exception as error:
                self._fail(row, pair, error)
        images = self._stacked(group, decoded)
        self._decoding += time.perf_counter() - start
        names = {row: (pair.a, pair.b) for row, pair, *_ in group.pairs if row in decoded}
        yield self._emptied(PairBatch(self._unit, tuple(decoded), names, *images))

    def _stacked(self, group: _Waiting, decoded: dict[int, Any]) -> tuple[Tensor | None, Tensor | None]:
        """Both sides of the decoded pairs, which are emptied if they fill the memory."""
        deep = any(a.deep or b.deep for row, _, _, (a, b) in group.pairs if row in decoded)
        try:
            if decoded:
                first, second = zip(*decoded.values(), strict=True)
                return stacked(first, deep).contiguous(), stacked(second, deep).contiguous()
        except (MemoryError, RuntimeError) as error:  # torch raises the latter
            for row, pair, *_ in group.pairs:
                if row in decoded:
                    self._fail(row, pair, error)
            decoded.clear()
        return None, None

    def _emptied(self, batch: PairBatch) -> PairBatch:
        """The batch with the failures and times since the last one."""
        names = {**batch.names, **{row: names for row, (names, _) in self._failed.items()}}
        errors = {row: error for row, (_, error) in self._failed.items()}
        full = replace(batch, names=names, errors=errors, reading=self._reading, decoding=self._decoding)
        self._failed, self._reading, self._decoding = {}, 0.0, 0.0
        return full


def _unnamed(pair: SourcePair, error: Exception) -> str:
    """Reason of an error that names no file."""
    return f"{printable(pair.a)}: expected images that can be compared, got {type(error).__name__}: {printable(error)}"
