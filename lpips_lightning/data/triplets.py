"""Your own judgments: a CSV of triplets and a folder of images of any size.

The CSV has a header with the columns ``ref``, ``p0``, ``p1`` (files in the folder) and either ``votes_p0`` and
``votes_p1`` (number of people who found that candidate nearer to `ref`) or ``judge`` (fraction who found `p1` nearer).
Other columns are ignored; commas, semicolons or tabs separate. Rows without a judgment are skipped.
"""

from __future__ import annotations

import functools
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpips_lightning.data.bapps import check_same_size, check_size, to_signed
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import read_image, resize_image
from lpips_lightning.io.tables import Row, read_table

COLUMNS = ("ref", "p0", "p1", "votes_p0", "votes_p1", "judge")
SplitBy = Literal["triplet", "reference"]
_log = logging.getLogger("lpips_lightning")


@dataclass(frozen=True)
class Triplet:
    """One judged triplet.

    Attributes:
        ref: File of the reference, relative to the folder of images.
        p0: File of the first candidate.
        p1: File of the second candidate.
        judge: Fraction of people who found `p1` nearer to `ref`, in [0, 1].
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
        images: Folder of the images.
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
        images: str | Path,
        size: int | None = 64,
        name: str = "triplets",
        cache_bytes: int = 1 << 30,
    ) -> None:
        check_size(size)
        self.triplets, self.images, self.size, self.name = list(triplets), Path(images), size, name
        self._cache, self._free = OrderedDict[str, Tensor](), cache_bytes

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        triplet = self.triplets[index]
        files = {"ref": triplet.ref, "p0": triplet.p0, "p1": triplet.p1}
        images = {kind: self._read(file) for kind, file in files.items()}
        check_same_size(images, {kind: self.images / file for kind, file in files.items()})
        item: dict[str, Any] = {kind: to_signed(image) for kind, image in images.items()}
        item["judge"] = torch.tensor(triplet.judge, dtype=torch.float32)
        return item | {"set": self.name, "path": "|".join(files.values())}

    def _read(self, file: str) -> Tensor:
        """The resized uint8 image, from an LRU cache."""
        image = self._cache.pop(file, None)
        if image is None:
            image = resize_image(read_image(self.images / file), self.size)
            self._free -= image.numel()
            while self._free < 0 and self._cache:
                self._free += self._cache.popitem(last=False)[1].numel()
            if self._free < 0:
                self._free += image.numel()
                return image
        self._cache[file] = image
        return image


def read_triplets(path: str | Path, images: str | Path, columns: Mapping[str, str] | None = None) -> list[Triplet]:
    """Read judged triplets from a CSV.

    Args:
        path: The CSV, UTF-8 with or without byte-order mark.
        images: Folder of the images that the CSV names.
        columns: Column names in the file that differ from `COLUMNS`, such as ``{"ref": "reference"}``.

    Returns:
        One triplet per judged row, in file order.

    Raises:
        FileNotFoundError: If the CSV, the folder or an image is missing; the message has the line number.
        ValueError: If a column is missing or a value is invalid; the message has the line number.
    """
    if unknown := set(columns or ()) - set(COLUMNS):
        raise ValueError(f"columns: expected some of {', '.join(COLUMNS)} as keys, got {min(unknown)!r}")
    if not Path(images).is_dir():
        raise FileNotFoundError(f"images: expected an existing folder of images, got '{images}'")
    names = {column: (columns or {}).get(column, column) for column in COLUMNS}
    table = read_table(path)
    voted = names["votes_p0"] in table.columns or names["votes_p1"] in table.columns
    judged_by = ("votes_p0", "votes_p1") if voted or names["judge"] not in table.columns else ("judge",)
    table.require([names[column] for column in ("ref", "p0", "p1", *judged_by)])
    exists = functools.cache(lambda file: bool(file) and (Path(images) / file).is_file())
    for row in table.rows:
        for column in ("ref", "p0", "p1"):
            if not exists(row[names[column]]):
                raise FileNotFoundError(
                    f"{row.place}: {names[column]}: expected a file in '{images}', got"
                    f" '{printable(row[names[column]])}'"
                )
    read = (_read_row(row, names, judged_by) for row in table.rows)
    triplets = [triplet for triplet in read if triplet is not None]
    if not triplets:
        raise ValueError(f"{path}: expected judged rows, got {len(table.rows)} rows without a judgment")
    if len(triplets) < len(table.rows):
        _log.info("%s: skipped %d rows without a judgment", path, len(table.rows) - len(triplets))
    return triplets


def _read_row(row: Row, names: Mapping[str, str], judged_by: Sequence[str]) -> Triplet | None:
    """The triplet of a row, or None without a judgment."""
    cells = [names[column] for column in judged_by]
    if not any(row[cell] for cell in cells):
        return None
    values = [row.number(cell) for cell in cells]
    if len(values) == 1 and not 0 <= values[0] <= 1:
        raise ValueError(f"{row.place}: {cells[0]}: expected a fraction in [0, 1], got {values[0]:g}")
    if len(values) == 2 and not (min(values) >= 0 and sum(values) > 0):
        raise ValueError(
            f"{row.place}: expected votes >= 0 and not both 0, got {cells[0]} {values[0]:g} and"
            f" {cells[1]} {values[1]:g}"
        )
    judge = values[0] if len(values) == 1 else values[1] / sum(values)
    return Triplet(row[names["ref"]], row[names["p0"]], row[names["p1"]], judge)


def split_triplets(
    triplets: Sequence[Triplet], fraction: float, seed: int, by: SplitBy = "triplet"
) -> tuple[list[Triplet], list[Triplet]]:
    """Split triplets at random into two parts, keeping groups of related rows together.

    Args:
        triplets: Triplets to split.
        fraction: Fraction of groups in the second part, between 0 and 1.
        seed: Random seed; equal seeds give equal parts.
        by: Grouping: ``"triplet"`` by reference and candidates (in either order), ``"reference"`` by reference only.

    Returns:
        The first and the second part, each in the order of `triplets`.

    Raises:
        ValueError: If an argument is invalid, or a part would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"val_fraction: expected a number between 0 and 1, got {fraction}")
    if by not in get_args(SplitBy):
        raise ValueError(f"split_by: expected one of {get_args(SplitBy)}, got {by!r}")
    keys = [(t.ref,) if by == "reference" else t.images for t in triplets]
    groups = sorted(set(keys))
    count = round(fraction * len(groups))
    if not 0 < count < len(groups):
        raise ValueError(
            f"val_fraction: expected to leave some of the {len(groups)} groups ({by}) in each part, got {fraction}"
        )
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    second = {groups[index] for index in order[:count]}
    parts: tuple[list[Triplet], list[Triplet]] = ([], [])
    for triplet, key in zip(triplets, keys, strict=True):
        parts[key in second].append(triplet)
    return parts
