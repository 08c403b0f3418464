"""Pairs whose names are in memory, packed: of folders, or of a short list."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from lpips_lightning.sources import storage
from lpips_lightning.sources.base import SourcePair


class ListedPairs:
    """Pairs of files.

    Args:
        pairs: Paths or URLs of both images of every pair, in order.
        unit: Pairs per unit.
        title: What the pairs are, for `describe`.
        versions: A text for each pair that changes when one of its files does, such as sizes and times; may be empty.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], unit: int, title: str, versions: Sequence[str] = ()) -> None:
        self._count, self._unit, self._title = len(pairs), unit, title
        self._packed = [_packed(pairs[start : start + unit]) for start in range(0, len(pairs), unit)]
        digest = hashlib.sha256()
        for pair in pairs:
            digest.update(repr(tuple(map(storage.shown, pair))).encode())
        digest.update(repr(list(versions)).encode())
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return self._count

    def describe(self) -> dict[str, Any]:
        """Title, number of pairs, pairs per unit, and a digest of the names and versions."""
        return {"source": self._title, "pairs": self.pairs, "unit": self._unit, "digest": self._digest}

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a unit."""
        names = zlib.decompress(self._packed[index]).decode("utf-8", "surrogateescape").split("\0")
        for a, b in zip(names[::2], names[1::2], strict=True):
            yield SourcePair(storage.shown(a), storage.shown(b), places=(a, b))

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        return storage.read(name)


def _packed(pairs: Sequence[tuple[str, str]]) -> bytes:
    """The names of a unit, which have much in common; 10^8 strings would take 10 GB."""
    return zlib.compress("\0".join(name for pair in pairs for name in pair).encode("utf-8", "surrogateescape"), 1)
