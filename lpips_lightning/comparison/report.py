"""Results of `compare` as text, CSV and JSON; all files are written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_folders import count_of
from lpips_lightning.io.tables import write_table


def pair_lines(results: PairResult, per_layer: bool) -> list[str]:
    """Lines of one pair: the distance, then by name PSNR and SSIM, if measured, and the layers, if `per_layer`."""
    terms = results.scores | (results.layers if per_layer else {})
    return [_format(results.distance), *(f"{name}\t{_format(value)}" for name, value in terms.items())]


def summary_lines(results: Sequence[PairResult], per_layer: bool = False) -> list[str]:
    """Tab-separated lines: mean, sample standard deviation, min and max with the pair's name, and count.

    The standard deviation of one pair is ``-``. Means of PSNR, SSIM and tLP follow, if there are any.

    Args:
        results: Results; failed pairs are skipped.
        per_layer: Also add the mean of every layer's term.
    """
    read = [one for one in results if not one.error]
    lines = _statistics([one.distance for one in read], lambda index: printable(read[index].pair.name))
    layers = read[0].layers if per_layer and read else ()
    means = mean_scores(results) | {layer: fmean(one.layers[layer] for one in read) for layer in layers}
    return lines + [f"{name}\t{_format(value)}" for name, value in means.items()]


def mean_scores(results: Sequence[PairResult]) -> dict[str, float]:
    """Mean PSNR, SSIM and tLP, if there are any; failed pairs are skipped, and frames without one before for tLP."""
    read = [one for one in results if not one.error]
    return {name: _mean([one.scores[name] for one in read], name) for name in (read[0].scores if read else ())}


def _mean(values: Sequence[float], name: str) -> float:
    chosen = [value for value in values if name != "tlp" or not math.isnan(value)]
    return fmean(chosen) if chosen else math.nan


def infinite_note(results: Sequence[PairResult]) -> list[str]:
    """A sentence on pairs of equal images among others, whose PSNR makes the mean infinite; none if there are none."""
    values = [one.scores["psnr"] for one in results if "psnr" in one.scores]
    finite = [value for value in values if math.isfinite(value)]
    if not finite or len(finite) == len(values):
        return []
    equal = len(values) - len(finite)
    return [
        f"psnr: {equal} of {count_of(len(values), 'pair')} {'is' if equal == 1 else 'are'} equal, with infinite PSNR;"
        f" the mean of the others is {_format(fmean(finite))}"
    ]


def all_pairs_lines(names: Sequence[str], distances: Tensor, others: Sequence[str] | None = None) -> list[str]:
    """As `summary_lines`, for the pairs above the diagonal (both orders if they differ), or all pairs with `others`.

    Args:
        names: Names of the N images.
        distances: Shape ``(N, N)``, or ``(N, M)`` with `others`.
        others: Names of the M images that they are compared with.
    """
    rows, columns = _indices(distances, others is not None)
    values, sides = distances[rows, columns].tolist(), ((names, rows), (names if others is None else others, columns))
    return _statistics(values, lambda index: "\t".join(printable(side[indices[index]]) for side, indices in sides))


def write_csv(path: str | Path, results: Sequence[PairResult], per_layer: bool = False, erode: bool = False) -> None:
    """Write a CSV with a row for each pair.

    The columns are ``a, b, lpips``, and where they apply ``psnr``, ``ssim`` and ``tlp``, the layers if `per_layer`,
    ``frame`` of a video, ``mask`` with ``erode``, and ``error`` of pairs that failed. The PSNR of equal images is
    ``inf``; the first frame of a video has no tLP.

    Args:
        path: Output file.
        results: Results, one row each; a failed pair has an error and no distance.
        per_layer: Add a column for each layer's term.
        erode: Whether the masks were eroded.
    """
    first = next((one for one in results if not one.error), None)
    terms = [] if first is None else [*first.scores, *(first.layers if per_layer else ())]
    optional: dict[str, Callable[[PairResult], Any]] = {
        "frame": lambda one: one.pair.frame,
        "mask": lambda one: one.pair.mask,
        "erode": lambda one: None if one.pair.mask is None else str(erode).lower(),
        "error": lambda one: one.error or None,
    }
    used = {name: value for name, value in optional.items() if any(value(one) is not None for one in results)}
    rows: list[list[str]] = []
    for one in results:
        values = [one.distance, *((one.scores | one.layers).get(term, math.nan) for term in terms)]
        cells = ["" if one.error or math.isnan(value) else _format(value) for value in values]
        more = ["" if (cell := value(one)) is None else printable(cell) for value in used.values()]
        rows.append([printable(one.pair.a), printable(one.pair.b), *cells, *more])
    write_table(path, ["a", "b", "lpips", *terms, *used], rows)


def write_all_pairs_csv(
    path: str | Path, names: Sequence[str], distances: Tensor, long: bool = False, others: Sequence[str] | None = None
) -> None:
    """Write the distance matrix as a CSV with row and column names, or one row per pair: ``a, b, lpips``.

    Args:
        path: Output file.
        names: Names of the N images.
        distances: Shape ``(N, N)``, or ``(N, M)`` with `others`.
        long: One row for each of the ``N (N - 1) / 2`` pairs, of the ``N (N - 1)`` ordered ones if the matrix is not
            symmetric, or of the ``N M`` pairs with `others`.
        others: Names of the M images that they are compared with.
    """
    shown, values = [printable(name) for name in names], distances.tolist()
    across = shown if others is None else [printable(name) for name in others]
    if long:
        pairs = zip(*_indices(distances, others is not None), strict=True)
        rows: Iterable[list[str]] = ([shown[i], across[j], _format(values[i][j])] for i, j in pairs)
        write_table(path, ["a", "b", "lpips"], rows)
    else:
        rows = ([name, *map(_format, row)] for name, row in zip(shown, values, strict=True))
        write_table(path, ["", *across], rows)


def write_json(
    path: str | Path,
    results: Sequence[PairResult],
    fingerprint: str,
    per_layer: bool = False,
    erode: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Write the fingerprint, the statistics and every pair as JSON.

    JSON has no infinity: the PSNR of equal images is the string ``"inf"``. The tLP of a first frame is null.

    Args:
        path: Output file.
        results: Results; a failed pair has ``lpips`` null and an ``error``.
        fingerprint: Fingerprint of the network.
        per_layer: Add the layers' terms.
        erode: Whether the masks were eroded.
        notes: Sentences on files that were not compared.
    """
    distances = [one.distance for one in results if not one.error]
    pairs = []
    for one in results:
        entry: dict[str, Any] = {"a": printable(one.pair.a), "b": printable(one.pair.b)}
        entry |= {} if one.pair.frame is None else {"frame": one.pair.frame}
        entry |= {} if one.pair.mask is None else {"mask": printable(one.pair.mask), "erode": erode}
        entry["lpips"] = None if one.error else one.distance
        entry |= {name: _json_number(value) for name, value in one.scores.items()}
        entry |= {"layers": one.layers} if per_layer and not one.error else {}
        pairs.append(entry | ({"error": one.error} if one.error else {}))
    statistics: dict[str, Any] = {
        "n": len(distances),
        "mean": fmean(distances) if distances else None,
        "std": stdev(distances) if len(distances) > 1 else None,
    }
    statistics |= {f"mean_{name}": _json_number(value) for name, value in mean_scores(results).items()}
    _write_object(path, {"fingerprint": fingerprint} | statistics | _notes(notes) | {"pairs": pairs})


def write_all_pairs_json(
    path: str | Path,
    names: Sequence[str],
    distances: Tensor,
    fingerprint: str,
    others: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the fingerprint, the image names and the distance matrix as JSON.

    Args:
        path: Output file.
        names: Names of the N images.
        distances: Shape ``(N, N)``, or ``(N, M)`` with `others`.
        fingerprint: Fingerprint of the network.
        others: Names of the M images that they are compared with.
        notes: Sentences on files that were not compared.
    """
    content: dict[str, Any] = {"fingerprint": fingerprint} | _notes(notes)
    content["names"] = [printable(name) for name in names]
    content |= {} if others is None else {"other_names": [printable(name) for name in others]}
    _write_object(path, content | {"distances": distances.tolist()})


def _statistics(values: Sequence[float], name: Callable[[int], str]) -> list[str]:
    if not values:
        return ["n\t0"]
    indices = range(len(values))
    least, most = min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)
    return [
        f"mean\t{_format(fmean(values))}",
        f"std\t{_format(stdev(values)) if len(values) > 1 else '-'}",
        f"min\t{_format(values[least])}\t{name(least)}",
        f"max\t{_format(values[most])}\t{name(most)}",
        f"n\t{len(values)}",
    ]


def _notes(notes: Sequence[str]) -> dict[str, list[str]]:
    return {"notes": list(notes)} if notes else {}


def _indices(distances: Tensor, across: bool) -> tuple[list[int], list[int]]:
    """Row and column indices of the pairs of a matrix: all if `across`, else each pair of images once.

    A matrix that is not symmetric, such as that of ``lpips_plus``, has two distances of every pair.
    """
    pairs = torch.ones(distances.shape, dtype=torch.bool)
    if not across:
        known = distances.nan_to_num()
        pairs = pairs.triu(1) if torch.equal(known, known.T) else ~torch.eye(len(distances), dtype=torch.bool)
    rows, columns = pairs.nonzero(as_tuple=True)
    return rows.tolist(), columns.tolist()


def _format(value: float) -> str:
    return f"{value:.9g}"  # enough to round-trip a float32


def _json_number(value: float) -> float | str | None:
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def _write_object(path: str | Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
