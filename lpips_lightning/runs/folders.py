"""Pairs of local folders as a source of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import default_batch_size
from lpips_lightning.io.image_decoding import read_header
from lpips_lightning.sources.listed import ListedPairs

_UNIT, _FEWEST_UNITS = 480, 64


class FolderPairs(ListedPairs):
    """Pairs of local files, in units that are a multiple of the batch.

    Args:
        pairs: The pairs.
        batch_size: Pairs per batch; None: that of the first pair's size.
    """

    def __init__(self, pairs: Sequence[Pair], batch_size: int | None) -> None:
        batch = batch_size or _default_batch(pairs)
        unit = batch * max(1, min(round(_UNIT / batch), len(pairs) // (_FEWEST_UNITS * batch)))
        names = [(str(pair.a), str(pair.b)) for pair in pairs]
        known = {path: _version(path) for pair in pairs for path in (pair.a, pair.b)}
        versions = [f"{known[pair.a]} {known[pair.b]}" for pair in pairs]
        super().__init__(names, unit, "files", versions)


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _default_batch(pairs: Sequence[Pair]) -> int:
    """Pairs per batch of the first pair that can be read."""
    for pair in pairs:
        try:
            return default_batch_size(read_header(pair.a), read_header(pair.b))
        except (ValueError, OSError):
            continue
    return 1
