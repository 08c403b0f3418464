"""Pairs whose names are in memory: of local folders, or of a short list."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

from lpips_lightning.io.image_decoding import printable
from lpips_lightning.sources.base import SourcePair


class ListedPairs:
    """Pairs of local files.

    Args:
        pairs: Paths of both images of every pair, in order.
        unit: Pairs per unit.
        title: What the pairs are, for `describe`.
        versions: A text for each pair that changes when one of its files does, such as sizes and times; may be empty.
    """

    def __init__(self, pairs: Sequence[tuple[str, str]], unit: int, title: str, versions: Sequence[str] = ()) -> None:
        self._pairs, self._unit, self._title = list(pairs), unit, title
        self._digest = hashlib.sha256(repr((self._pairs, list(versions))).encode()).hexdigest()

    def __len__(self) -> int:
        return -(-len(self._pairs) // self._unit)

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def describe(self) -> dict[str, Any]:
        """Title, number of pairs, pairs per unit, and a digest of the names and versions."""
        return {"source": self._title, "pairs": self.pairs, "unit": self._unit, "digest": self._digest}

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a unit."""
        for a, b in self._pairs[index * self._unit : (index + 1) * self._unit]:
            yield SourcePair(a, b)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        try:
            with open(name, "rb") as file:  # noqa: PTH123 (the name may be of any form)
                return file.read()
        except FileNotFoundError:
            raise FileNotFoundError(f"{printable(name)}: expected an image file, got no such file") from None
