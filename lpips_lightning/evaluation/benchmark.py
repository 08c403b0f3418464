"""The paper's evaluation: agreement of distances with judgments of people or of a metric, per method and set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lpips_lightning.data.judges import PEOPLE, Judge, judge_of
from lpips_lightning.evaluation.methods import Method
from lpips_lightning.evaluation.table5 import PAPER_SETS, TABLE_5, paper_row
from lpips_lightning.functional.judgments import agreement, bootstrap_interval, jnd_score, rank_flips
from lpips_lightning.io.tables import read_table

Kind = Literal["2afc", "jnd"]
KINDS: tuple[Kind, ...] = ("2afc", "jnd")
HUMAN = PEOPLE.label
FLIPS = "flips-"
"""Kind of rank flips after a shift, before the number of pixels."""

SHIFT_ROOM = 3
"""Columns by which images are narrower in the measurement of rank flips, as of Ghildyal and Liu 2022."""


@dataclass(frozen=True)
class Judged:
    """Distances of one method on one set, with the judgments.

    Attributes:
        kind: ``"2afc"`` for triplets, ``"jnd"`` for pairs.
        distances: Shape ``(M, 2)``, distances to the reference, for triplets; ``(M, 1)`` for pairs.
        shares: Shape ``(M,)`` in [0, 1]: fraction of people who chose `p1` (triplets) or saw no difference (pairs).
        references: Shape ``(M,)``: index of each triplet's reference; None if every triplet has its own.
        flips: By pixels of a shift, ``(M,)``: whether it changes the answer, see `rank_flip_rate`.
    """

    kind: Kind
    distances: Tensor
    shares: Tensor
    references: Tensor | None = None
    flips: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One cell of the table.

    Attributes:
        method: Name of the method; `judge` for the agreement of the judges with themselves.
        set: Name of the set.
        kind: ``"2afc"``: 2AFC score. ``"jnd"``: average precision. ``"flips-1"``: rank flips after a shift by 1 pixel.
        value: The score in per cent.
        low: Lower bound of the 95 % interval over references, see `bootstrap_interval`, in per cent.
        high: Upper bound, in per cent.
        count: Number of triplets or pairs.
        paper: The paper's value in per cent, or None; only for BAPPS itself.
        judge: Who judged the set: a label of `lpips_lightning.data.judges`.
    """

    method: str
    set: str
    kind: str
    value: float
    low: float
    high: float
    count: int
    paper: float | None
    judge: str = HUMAN

    @property
    def is_ceiling(self) -> bool:
        """Whether it is the agreement of the judges with themselves, not that of a method."""
        return self.method == self.judge


def measure(
    methods: Sequence[Method],
    sets: Mapping[str, Dataset[dict[str, Any]]],
    batch_size: int = 50,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    report: Callable[[str, int, int], None] | None = None,
    shifts: Sequence[int] = (),
) -> dict[str, dict[str, Judged]]:
    """Distances of every method on every set; each image is read once.

    Of triplets, also how often a shift by some pixels changes the answer, as Ghildyal and Liu 2022 measure it. All
    images are cropped by 3 columns (by as many as the shift, if that is larger). The answer without a shift is that of
    the leftmost crops of all three. For the answer after it, both patches are cropped `shift` columns further right,
    the reference is not: so the patches are shifted to the left against the reference, and nothing is made up at
    borders.

    Args:
        methods: Methods to evaluate.
        sets: Data sets by name, with items as in `TwoAFCDataset` or `JNDDataset`. Prefix JND names with ``"jnd/"`` to
            keep them distinct from 2AFC names.
        batch_size: Triplets or pairs per batch.
        num_workers: Worker processes that read images.
        device: Device to compute on.
        report: Progress callback: name of the set, rows done, rows in total.
        shifts: Pixels of each shift.

    Returns:
        Distances by method, then by set.

    Raises:
        ValueError: If images are not wider than a shift.
    """
    results: dict[str, dict[str, Judged]] = {method.name: {} for method in methods}
    for name, data in sets.items():
        parts: list[JudgedBatch] = []
        for batch in DataLoader(data, batch_size, num_workers=num_workers):
            parts.append(judged_batch(methods, batch, device, shifts))
            if report is not None:
                report(name, sum(len(part.shares) for part in parts), len(data))  # type: ignore[arg-type]
        for method, judged in judged_set(parts, data, shifts).items():
            results[method][name] = judged
    return results


@dataclass(frozen=True)
class JudgedBatch:
    """Distances of methods on one batch of a set, on the CPU.

    Attributes:
        kind: ``"2afc"`` for triplets, ``"jnd"`` for pairs.
        distances: By method, ``(N, 2)`` for triplets, ``(N, 1)`` for pairs, float64.
        flips: By method, ``(N, S)`` for S shifts; empty for pairs.
        shares: Shape ``(N,)``, the judgments.
    """

    kind: Kind
    distances: Mapping[str, Tensor]
    flips: Mapping[str, Tensor]
    shares: Tensor


def judged_batch(
    methods: Sequence[Method], batch: Mapping[str, Any], device: str | torch.device, shifts: Sequence[int] = ()
) -> JudgedBatch:
    """Distances of every method on a batch.

    Args:
        methods: Methods to evaluate.
        batch: Items of a set, collated.
        device: Device to compute on.
        shifts: Pixels of each shift, see `measure`.

    Returns:
        The distances.

    Raises:
        ValueError: If images are not wider than a shift.
    """
    kind: Kind = "2afc" if "judge" in batch else "jnd"
    first, *others = ("ref", "p0", "p1") if kind == "2afc" else ("p0", "p1")
    images = {image: batch[image].to(device) for image in (first, *others)}
    distances, flips = {}, {}
    with torch.inference_mode():
        for method in methods:
            columns = [method.distance(images[first], images[other]) for other in others]
            distances[method.name] = torch.stack(columns, 1).cpu().double()
            if kind == "2afc":
                flips[method.name] = _flips(method, images, shifts)
    return JudgedBatch(kind, distances, flips, batch["judge" if kind == "2afc" else "same"].double())


def judged_set(
    parts: Sequence[JudgedBatch], data: Dataset[dict[str, Any]], shifts: Sequence[int] = ()
) -> dict[str, Judged]:
    """Distances of every method on a set, by method.

    Args:
        parts: All batches of the set, in its order.
        data: The set.
        shifts: Pixels of each shift.
    """
    kind, references = parts[0].kind, getattr(data, "references", None)
    shares = torch.cat([part.shares for part in parts])
    results = {}
    for method in parts[0].distances:
        columns = torch.cat([part.flips[method] for part in parts]).unbind(1) if kind == "2afc" else ()
        by_shift = dict(zip(shifts if kind == "2afc" else (), columns, strict=True))
        distances = torch.cat([part.distances[method] for part in parts])
        results[method] = Judged(kind, distances, shares, references, by_shift)
    return results


def _flips(method: Method, images: Mapping[str, Tensor], shifts: Sequence[int]) -> Tensor:
    """Rank flips of every triplet after every shift, ``(M, S)``."""
    flips = [torch.zeros(len(images["ref"]), 0, dtype=torch.float64)]
    unshifted: dict[int, tuple[Tensor, Tensor]] = {}
    for shift in shifts:
        room = max(shift, SHIFT_ROOM)
        if room not in unshifted:
            unshifted[room] = _shifted_distances(method, images, 0, room)
        (d0, d1), (shifted_d0, shifted_d1) = unshifted[room], _shifted_distances(method, images, shift, room)
        flips.append(rank_flips(d0, d1, shifted_d0, shifted_d1)[:, None].cpu().double())
    return torch.cat(flips, 1)


def _shifted_distances(method: Method, images: Mapping[str, Tensor], shift: int, room: int) -> tuple[Tensor, Tensor]:
    """Distances of both patches, cropped further right, to the leftmost crop of the reference."""
    reference = crop_columns(images["ref"], 0, room)
    d0, d1 = (method.distance(reference, crop_columns(images[name], shift, room)) for name in ("p0", "p1"))
    return d0, d1


def crop_columns(images: Tensor, first: int, room: int) -> Tensor:
    """Columns from `first` on, `room` fewer than the images have; see `measure`.

    Args:
        images: Shape ``(N, C, H, W)``.
        first: First column, at most `room`.
        room: Columns to leave out.

    Returns:
        Shape ``(N, C, H, W - room)``.

    Raises:
        ValueError: If no column would be left.
    """
    width = images.shape[-1]
    if width <= room:
        raise ValueError(f"shifts: expected less than the width of the images, {width} pixels, got {room}")
    return images[..., first : width - room + first]


def read_distances(path: str | Path) -> dict[str, Judged]:
    """Read distances computed elsewhere.

    Args:
        path: A CSV with columns ``path``, ``d0``, ``d1``, ``judge`` (triplets) or ``path``, ``distance``, ``same``
            (pairs), or a folder of such CSVs. The set is the folder two levels above the image: ``cnn`` in
            ``2afc/val/cnn/p0/000000.png``.

    Returns:
        Distances by set.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a column is missing or a value is invalid; the message has the line number.
    """
    files = sorted(Path(path).glob("*.csv")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise FileNotFoundError(f"distances: expected CSV files in '{path}', got none")
    rows: dict[tuple[Kind, str], list[list[float]]] = {}
    for file in files:
        table = read_table(file)
        kind: Kind = "jnd" if "same" in table.columns else "2afc"
        columns = ("d0", "d1", "judge") if kind == "2afc" else ("distance", "same")
        table.require(["path", *columns])
        for row in table.rows:
            folders = Path(row["path"].replace("\\", "/")).parts
            if len(folders) < 3:
                raise ValueError(f"{row.place}: path: expected <set>/<kind>/<image>, got {row['path']!r}")
            values = [row.number(column) for column in columns]
            if not 0 <= values[-1] <= 1:
                raise ValueError(f"{row.place}: {columns[-1]}: expected a fraction in [0, 1], got {values[-1]:g}")
            rows.setdefault((kind, folders[-3]), []).append(values)
    results = {}
    in_order = sorted(rows, key=lambda key: (key[0], PAPER_SETS.index(key[1]) if key[1] in PAPER_SETS else len(rows)))
    for kind, name in in_order:
        table_values = torch.tensor(rows[kind, name], dtype=torch.float64)
        results[name if kind == "2afc" else f"jnd/{name}"] = Judged(kind, table_values[:, :-1], table_values[:, -1])
    return results


def score(
    measured: Mapping[str, Mapping[str, Judged]],
    papers: Mapping[str, str | None] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    judges: Mapping[str, Judge] | None = None,
) -> list[Score]:
    """Scores of every method on every set, preceded by the agreement of the judges of every 2AFC set with themselves.

    Args:
        measured: Distances by method, then by set; from `measure` and `read_distances`.
        papers: Row of the paper's Table 5 by method.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.
        judges: Who judged, by set. Other sets are taken for BAPPS if name and number of rows are those of BAPPS.

    Returns:
        Scores in the order of methods and sets.
    """
    scores: list[Score] = []
    seen: dict[str, Judged] = {}
    for sets in measured.values():
        seen = dict(sets) | seen
    judge = {name: _judge(name, judged) for name, judged in seen.items()} | dict(judges or {})
    for name, judged in seen.items():
        if judged.kind == "2afc":
            fraction, row = judged.shares, paper_row(HUMAN)
            per_row = fraction.square() + (1 - fraction).square()
            label = judge[name].label
            scores.append(_score(label, name, judged, torch.mean, (per_row,), row, resamples, seed, judge[name]))
    for method, sets in measured.items():
        row = (papers or {}).get(method)
        for name, judged in sets.items():
            if judged.kind == "2afc":
                d0, d1 = judged.distances.unbind(1)
                columns: tuple[Tensor, ...] = (agreement(d0, d1, judged.shares),)
                scores.append(_score(method, name, judged, torch.mean, columns, row, resamples, seed, judge[name]))
                for shift, flips in judged.flips.items():
                    cell = _score(method, name, judged, torch.mean, (flips,), None, resamples, seed, judge[name])
                    scores.append(replace(cell, kind=f"{FLIPS}{shift}"))
            else:
                columns = (judged.distances[:, 0], judged.shares)
                scores.append(_score(method, name, judged, jnd_score, columns, None, resamples, seed, judge[name]))
    return scores


def flip_rates(scores: Iterable[Score]) -> dict[str, dict[int, tuple[float, int]]]:
    """Rank flips over the triplets of all sets, by method and pixels of the shift.

    Args:
        scores: Scores from `score`.

    Returns:
        Per cent of the triplets, and their number.
    """
    sums: dict[str, dict[int, tuple[float, int]]] = {}
    for cell in scores:
        if cell.kind.startswith(FLIPS):
            rates = sums.setdefault(cell.method, {})
            total, count = rates.get(shift := int(cell.kind.removeprefix(FLIPS)), (0.0, 0))
            rates[shift] = total + cell.value * cell.count, count + cell.count
    return {
        method: {shift: (total / max(count, 1), count) for shift, (total, count) in rates.items()}
        for method, rates in sums.items()
    }


def _judge(name: str, judged: Judged) -> Judge:
    part = "2afc/val" if judged.kind == "2afc" else "jnd/val"
    return judge_of(part, name.removeprefix("jnd/"), len(judged.shares))


def summary(scores: Iterable[Score], kind: Kind) -> dict[str, float]:
    """Mean score over the sets of a kind, in per cent, by method; methods without all sets are left out."""
    values: dict[str, dict[str, float]] = {}
    for cell in scores:
        if cell.kind == kind:
            values.setdefault(cell.method, {})[cell.set] = cell.value
    sets = {name for found in values.values() for name in found}
    return {method: sum(found.values()) / len(found) for method, found in values.items() if set(found) == sets}


def _score(
    method: str,
    name: str,
    judged: Judged,
    function: Callable[..., Tensor],
    columns: tuple[Tensor, ...],
    row: str | None,
    resamples: int,
    seed: int,
    judge: Judge,
) -> Score:
    options = {"groups": judged.references, "bounds": (0.0, 1.0), "resamples": resamples, "seed": seed}
    low, high = bootstrap_interval(function, *columns, **options)  # type: ignore[arg-type]
    published = row is not None and name in PAPER_SETS and judge.kind == "people"
    paper = TABLE_5[row][PAPER_SETS.index(name)] if row is not None and published else None
    value, count = 100 * float(function(*columns)), len(judged.shares)
    short = name.removeprefix("jnd/")
    return Score(method, short, judged.kind, value, 100 * low, 100 * high, count, paper, judge.label)
