"""Results of `compare` as text, CSV, JSON and heatmaps; all files are written atomically."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from lpips_lightning.comparison.file_pairs import Pair
from lpips_lightning.comparison.measure import PairResult
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.heatmap import heatmap_colors, heatmap_indices
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.tables import write_table


def pair_lines(results: PairResult, per_layer: bool) -> list[str]:
    """Lines of one pair: the distance and, if `per_layer`, the layers' terms by name."""
    terms = results.layers.items() if per_layer else ()
    return [_format(results.distance), *(f"{layer}\t{_format(value)}" for layer, value in terms)]


def summary_lines(results: Sequence[PairResult], per_layer: bool = False) -> list[str]:
    """Tab-separated lines: mean, sample standard deviation, min and max with the pair's name, and count.

    The standard deviation of one pair is ``-``.

    Args:
        results: Results; failed pairs are skipped.
        per_layer: Also add the mean of every layer's term.
    """
    read = [one for one in results if not one.error]
    lines = _statistics([one.distance for one in read], lambda index: printable(read[index].pair.name))
    layers = read[0].layers if per_layer and read else ()
    return lines + [f"{layer}\t{_format(fmean(one.layers[layer] for one in read))}" for layer in layers]


def all_pairs_lines(names: Sequence[str], distances: Tensor, others: Sequence[str] | None = None) -> list[str]:
    """As `summary_lines`, for the pairs above the diagonal, or all pairs with `others`.

    Args:
        names: Names of the N images.
        distances: Shape ``(N, N)``, or ``(N, M)`` with `others`.
        others: Names of the M images that they are compared with.
    """
    rows, columns = _indices(len(names), None if others is None else len(others))
    values, sides = distances[rows, columns].tolist(), ((names, rows), (names if others is None else others, columns))
    return _statistics(values, lambda index: "\t".join(printable(side[indices[index]]) for side, indices in sides))


def write_csv(path: str | Path, results: Sequence[PairResult], per_layer: bool = False, erode: bool = False) -> None:
    """Write a CSV with a row for each pair.

    The columns are ``a, b, lpips``, the layers if `per_layer`, and where they apply ``frame`` of a video, ``mask`` with
    ``erode``, and ``error`` of pairs that failed.

    Args:
        path: Output file.
        results: Results, one row each; a failed pair has an error and no distance.
        per_layer: Add a column for each layer's term.
        erode: Whether the masks were eroded.
    """
    layers = list(next((one.layers for one in results if not one.error), {})) if per_layer else []
    optional: dict[str, Callable[[PairResult], Any]] = {
        "frame": lambda one: one.pair.frame,
        "mask": lambda one: one.pair.mask,
        "erode": lambda one: None if one.pair.mask is None else str(erode).lower(),
        "error": lambda one: one.error or None,
    }
    used = {name: value for name, value in optional.items() if any(value(one) is not None for one in results)}
    rows: list[list[str]] = []
    for one in results:
        values = [one.distance, *(one.layers.get(layer, math.nan) for layer in layers)]
        cells = ["" if one.error else _format(value) for value in values]
        more = ["" if (cell := value(one)) is None else printable(cell) for value in used.values()]
        rows.append([printable(one.pair.a), printable(one.pair.b), *cells, *more])
    write_table(path, ["a", "b", "lpips", *layers, *used], rows)


def write_all_pairs_csv(
    path: str | Path, names: Sequence[str], distances: Tensor, long: bool = False, others: Sequence[str] | None = None
) -> None:
    """Write the distance matrix as a CSV with row and column names, or one row per pair: ``a, b, lpips``.

    Args:
        path: Output file.
        names: Names of the N images.
        distances: Shape ``(N, N)``, or ``(N, M)`` with `others`.
        long: One row for each of the ``N (N - 1) / 2`` pairs, or the ``N M`` pairs with `others`.
        others: Names of the M images that they are compared with.
    """
    shown, values = [printable(name) for name in names], distances.tolist()
    across = shown if others is None else [printable(name) for name in others]
    if long:
        pairs = zip(*_indices(len(names), None if others is None else len(others)), strict=True)
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
        entry |= {"layers": one.layers} if per_layer and not one.error else {}
        pairs.append(entry | ({"error": one.error} if one.error else {}))
    statistics = {
        "n": len(distances),
        "mean": fmean(distances) if distances else None,
        "std": stdev(distances) if len(distances) > 1 else None,
    }
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


def map_writer(target: Path, folder: bool, heatmap_max: float, fingerprint: str) -> Callable[[Pair, Tensor], None]:
    """A function that writes a pair's spatial map as a heatmap PNG.

    Args:
        target: Output file, or output folder if `folder`; there a file is named after its pair.
        folder: Whether `target` is a folder.
        heatmap_max: Local distance at the brightest color.
        fingerprint: Fingerprint of the network, stored in the PNG.
    """
    colors = heatmap_colors()

    def write(pair: Pair, distances: Tensor) -> None:
        metadata = PngImagePlugin.PngInfo()
        metadata.add_text("Description", f"local LPIPS, black 0, brightest >= {heatmap_max:g}; {fingerprint}")
        path = target / f"{pair.name}.png" if folder else target
        with atomic_write(path) as temporary:
            Image.fromarray(colors[heatmap_indices(distances, heatmap_max)]).save(temporary, "PNG", pnginfo=metadata)

    return write


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


def _indices(rows: int, columns: int | None) -> tuple[list[int], list[int]]:
    """Row and column indices of a matrix; without `columns` those above the diagonal."""
    count = rows if columns is None else columns
    pairs = [(row, column) for row in range(rows) for column in range(row + 1 if columns is None else 0, count)]
    return [row for row, _ in pairs], [column for _, column in pairs]


def _format(value: float) -> str:
    return f"{value:.9g}"  # enough to round-trip a float32


def _write_object(path: str | Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
