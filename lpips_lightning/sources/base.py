"""What a large run reads: pairs of images in units, which ranks and worker processes share among themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

_UNIT, _FEWEST_UNITS = 480, 64


def unit_size(pairs: int, batch: int) -> int:
    """Pairs per unit: a multiple of the batch near 480, or less so that there are 64 units.

    The same for any number of ranks.

    Example:
        >>> unit_size(10**8, 24), unit_size(10_000, 24), unit_size(100, 24)
        (480, 144, 24)
    """
    return batch * max(1, min(most_batches(batch), pairs // (_FEWEST_UNITS * batch)))


def most_batches(batch: int) -> int:
    """Batches per unit of a long list."""
    return max(1, round(_UNIT / batch))


@dataclass(frozen=True)
class SourcePair:
    """One pair of a unit.

    Attributes:
        a: Path or URL of the first image, as the results show it.
        b: Path or URL of the second image.
        contents: The bytes of both, if the unit was read as a whole (an archive); None: `PairSource.read` reads them.
        error: Why the pair cannot be compared, such as a partner that is missing; empty if nothing is known yet.
        places: What `PairSource.read` takes if not `a` and `b`, such as URLs with a signature, which is not shown.
    """

    a: str
    b: str
    contents: tuple[bytes, bytes] | None = None
    error: str = ""
    places: tuple[str, str] | None = None


class PairSource(Protocol):
    """Pairs of images in a fixed order, in units.

    A unit is the smallest part that a rank takes: some hundred rows of a list, or one archive. Sources are pickled to
    ranks and worker processes, so they hold names and positions, no open files. The order of the results is that of the
    units, and of the pairs in a unit.
    """

    def __len__(self) -> int:
        """Number of units."""

    @property
    def pairs(self) -> int | None:
        """Number of pairs; None if it is known only after reading."""

    def describe(self) -> dict[str, Any]:
        """What the source is, in JSON's types; a run resumes only with an equal description."""

    def unit(self, index: int) -> Iterator[SourcePair]:
        """The pairs of a unit, in order; the same at every call."""

    def read(self, name: str) -> bytes:
        """The bytes of an image, by its name or place in `SourcePair`.

        Raises:
            OSError: If it cannot be read; the message names it.
        """
