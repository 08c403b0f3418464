"""Your own judgments: a CSV of triplets and a folder of images of any size.

The CSV has a header with the columns ``ref``, ``p0``, ``p1`` (files in the folder) and ``votes_p0`` and ``votes_p1``
(number of people who found that candidate closer to `ref`), or ``judge`` (fraction who found `p1` closer; with one row
per person, 0 or 1). A row with votes may leave ``judge`` empty, and a row with ``judge`` the votes; a row with both
counts by its votes. Other columns are ignored; commas, semicolons or tabs separate.

Rows about the same images are one triplet, also with `p0` and `p1` swapped: their votes are added, a row with ``judge``
counts as one vote. Rows without a judgment are skipped. The log says how many rows were merged or skipped.
"""

from __future__ import annotations

import functools
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpips_lightning.data.bapps import check_same_size, check_size, to_signed
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import read_image, resize_image
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.tables import Row, Table, read_table

COLUMNS = ("ref", "p0", "p1", "votes_p0", "votes_p1", "judge")
_PATCH = re.compile(r"(photographs/.+)/\d{6,}-ref\.png")  # as `study_from_photographs` names them
SplitBy = Literal["reference", "triplet"]
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Triplet:
    """One judged triplet.

    Attributes:
        ref: File of the reference, relative to the folder of images.
        p0: File of the first candidate.
        p1: File of the second candidate.
        judge: Fraction of people who found `p1` closer to `ref`, in [0, 1].
    """

    ref: str
    p0: str
    p1: str
    judge: float

    @property
    def images(self) -> tuple[str, ...]:
        """The reference, then the candidates in sorted order: equal for the same triplet with candidates swapped."""
        return (self.ref, *sorted((self.p0, self.p1)))


class TripletDataset(Dataset[dict[str, Any]]):
    """Data set of judged triplets.

    Items are dicts as in `TwoAFCDataset`: ``ref``, ``p0``, ``p1``, shape ``(3, H, W)`` in [-1, 1]; ``judge``, shape
    ``()`` in [0, 1]; ``set``; ``path``, ``"ref|p0|p1"``.

    Args:
        triplets: From `read_triplets`.
        folder: Folder of the images.
        size: Side to resize images to (see `resize_image`). None: no resizing; a triplet's images must then have one
            size.
        name: Name of the set.
        cache_bytes: Size of the cache of decoded images, per process.

    Raises:
        ValueError: If an argument is invalid; on item access, if an image is damaged or the sizes differ.
        FileNotFoundError: On item access, if an image is missing.
    """

    def __init__(
        self,
        triplets: Sequence[Triplet],
        folder: str | Path,
        size: int | None = 64,
        name: str = "triplets",
        cache_bytes: int = 1 << 30,
    ) -> None:
        check_size(size)
        self.triplets, self.folder, self.size, self.name = list(triplets), Path(folder), size, name
        self._cache, self._free = OrderedDict[str, Tensor](), cache_bytes

    def __len__(self) -> int:
        return len(self.triplets)

    @property
    def references(self) -> Tensor:
        """Index of each triplet's reference, ``(M,)``, int64; patches of one photograph are one (`photograph_of`)."""
        references = [photograph_of(triplet.ref) for triplet in self.triplets]
        indices = {reference: index for index, reference in enumerate(sorted(set(references)))}
        return torch.tensor([indices[reference] for reference in references], dtype=torch.long)

    def __getitem__(self, index: int) -> dict[str, Any]:
        triplet = self.triplets[index]
        files = {"ref": triplet.ref, "p0": triplet.p0, "p1": triplet.p1}
        images = {kind: self._read(file) for kind, file in files.items()}
        check_same_size(images, {kind: self.folder / file for kind, file in files.items()})
        item: dict[str, Any] = {kind: to_signed(image) for kind, image in images.items()}
        item["judge"] = torch.tensor(triplet.judge, dtype=torch.float32)
        return item | {"set": self.name, "path": "|".join(files.values())}

    def _read(self, file: str) -> Tensor:
        """The resized uint8 image, from an LRU cache."""
        image = self._cache.pop(file, None)
        if image is None:
            image = resize_image(read_image(self.folder / file), self.size)
            self._free -= image.numel()
            while self._free < 0 and self._cache:
                self._free += self._cache.popitem(last=False)[1].numel()
            if self._free < 0:
                self._free += image.numel()
                return image
        self._cache[file] = image
        return image


def read_triplets(path: str | Path, folder: str | Path, columns: Mapping[str, str] | None = None) -> list[Triplet]:
    """Read judged triplets from a CSV.

    Args:
        path: The CSV, UTF-8 with or without byte-order mark.
        folder: Folder of the images that the CSV names.
        columns: Column names in the file that differ from `COLUMNS`, such as ``{"ref": "reference"}``.

    Returns:
        One triplet per reference and pair of candidates, in the order of their first rows.

    Raises:
        FileNotFoundError: If the CSV, the folder or an image is missing; the message has the line number.
        ValueError: If a column is missing or a value is invalid; the message has the line number.
    """
    if unknown := set(columns or ()) - set(COLUMNS):
        raise ValueError(f"columns: expected some of {', '.join(COLUMNS)} as keys, got {min(unknown)!r}")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"folder: expected an existing folder of images, got '{folder}'")
    names = {column: (columns or {}).get(column, column) for column in COLUMNS}
    table = read_table(path)
    ways = _judgment_columns(names, table)
    _check_images(table, names, Path(folder))
    votes = [_read_votes(row, ways) for row in table.rows]
    files = [(row[names["ref"]], row[names["p0"]], row[names["p1"]]) for row in table.rows]
    judged = [(file, vote) for file, vote in zip(files, votes, strict=True) if vote is not None]
    without = count_of(len(votes) - len(judged), "row") + " without a judgment"
    if not judged:
        raise ValueError(f"{path}: expected judged rows, got {without}")
    triplets = _merge(judged)
    if len(judged) < len(votes):
        _log.warning("%s: skipped %s", path, without)
    if len(triplets) < len(judged):
        _log.warning("%s: merged %d rows into %s", path, len(judged), count_of(len(triplets), "triplet"))
    return triplets


def _judgment_columns(names: Mapping[str, str], table: Table) -> list[tuple[str, ...]]:
    """The columns that judge a row: both of votes, the one of `judge`, or either."""
    votes, judge = (names["votes_p0"], names["votes_p1"]), (names["judge"],)
    voted = any(column in table.columns for column in votes)
    judged = judge[0] in table.columns
    table.require([*(names[column] for column in ("ref", "p0", "p1")), *(votes if voted or not judged else judge)])
    return [votes] * (voted or not judged) + [judge] * judged


def _check_images(table: Table, names: Mapping[str, str], folder: Path) -> None:
    exists = functools.cache(lambda file: bool(file) and (folder / file).is_file())
    for row in table.rows:
        for column in ("ref", "p0", "p1"):
            if not exists(row[names[column]]):
                raise FileNotFoundError(
                    f"{row.place}: {names[column]}: expected a file in '{folder}', got"
                    f" '{printable(row[names[column]])}'"
                )


def _read_votes(row: Row, ways: Sequence[tuple[str, ...]]) -> tuple[float, float] | None:
    """Votes for p0 and p1 of a row, or None without a judgment."""
    given = [cells for cells in ways if any(row[cell] for cell in cells)]
    if not given:
        return None
    cells = given[0]
    values = [row.number(cell) for cell in cells]
    if len(values) == 1:
        if not 0 <= values[0] <= 1:
            raise ValueError(f"{row.place}: {cells[0]}: expected a fraction in [0, 1], got {values[0]:g}")
        return 1 - values[0], values[0]
    if not (min(values) >= 0 and sum(values) > 0):
        raise ValueError(
            f"{row.place}: expected votes >= 0 and not both 0, got {cells[0]} {values[0]:g} and"
            f" {cells[1]} {values[1]:g}; leave both empty to skip the row"
        )
    return values[0], values[1]


def _merge(judged: Sequence[tuple[tuple[str, str, str], tuple[float, float]]]) -> list[Triplet]:
    """One triplet per reference and pair of candidates, by the sum of its rows' votes, independent of their order."""
    found: dict[tuple[str, ...], tuple[Triplet, list[float], list[float]]] = {}
    for (ref, p0, p1), (for_p0, for_p1) in judged:
        triplet = Triplet(ref, p0, p1, for_p1 / (for_p0 + for_p1))
        first, *totals = found.setdefault(triplet.images, (triplet, [], []))
        swapped = first.p0 != p0
        totals[swapped].append(for_p0)
        totals[not swapped].append(for_p1)
    return [
        replace(first, judge=math.fsum(for_p1) / math.fsum([*for_p0, *for_p1]))
        for first, for_p0, for_p1 in found.values()
    ]


def photograph_of(path: str) -> str:
    """What the reference of an item comes from: patches of one photograph are related, other references are their own.

    Args:
        path: File of the reference, relative to the folder of images.

    Example:
        >>> photograph_of("photographs/holiday/beach/000012-ref.png"), photograph_of("reference/kodim01.png")
        ('photographs/holiday/beach', 'reference/kodim01.png')
    """
    found = _PATCH.fullmatch(path)
    return found[1] if found else path


def split_triplets(
    triplets: Sequence[Triplet], fraction: float, seed: int, by: SplitBy = "reference"
) -> tuple[list[Triplet], list[Triplet]]:
    """Split triplets at random into two parts, keeping groups of related rows together.

    Args:
        triplets: Triplets to split.
        fraction: Fraction of groups in the second part, between 0 and 1; each part gets one at least.
        seed: Random seed; equal seeds give equal parts.
        by: Grouping: ``"reference"`` by reference, so that no reference is in both parts, nor patches of one photograph
            (see `photograph_of`), or ``"triplet"`` by reference and candidates (in either order).

    Returns:
        The first and the second part, each in the order of `triplets`.

    Raises:
        ValueError: If an argument is invalid, or there is only one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction: expected a number between 0 and 1, got {fraction}")
    if by not in get_args(SplitBy):
        raise ValueError(f"split_by: expected one of {get_args(SplitBy)}, got {by!r}")
    keys = [(photograph_of(t.ref),) if by == "reference" else t.images for t in triplets]
    groups = sorted(set(keys))
    if len(groups) < 2:
        raise ValueError(
            f"split_by: expected at least 2 {by}s, to hold one out, got {len(groups)}; add judgments, or give those of"
            " validation separately"
        )
    count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    second = {groups[index] for index in order[:count]}
    parts: tuple[list[Triplet], list[Triplet]] = ([], [])
    for triplet, key in zip(triplets, keys, strict=True):
        parts[key in second].append(triplet)
    return parts
