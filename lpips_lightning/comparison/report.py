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

    Args:
        results: Results; failed pairs are skipped.
        per_layer: Also add the mean of every layer's term.
    """
    read = [one for one in results if not one.error]
    lines = _statistics([one.distance for one in read], lambda index: printable(read[index].pair.name))
    layers = read[0].layers if per_layer and read else ()
    return lines + [f"{layer}\t{_format(fmean(one.layers[layer] for one in read))}" for layer in layers]


def all_pairs_lines(names: Sequence[str], distances: Tensor) -> list[str]:
    """As `summary_lines`, for the pairs above the diagonal.

    Args:
        names: Names of the N images.
        distances: Shape ``(N, N)``.
    """
    rows, columns = _upper_triangle(len(names))
    values = distances[rows, columns].tolist()
    return _statistics(values, lambda index: "\t".join(printable(names[side[index]]) for side in (rows, columns)))


def write_csv(path: str | Path, results: Sequence[PairResult], per_layer: bool = False) -> None:
    """Write a CSV with columns ``a, b, lpips``, the layers if `per_layer`, and ``error`` if a pair failed.

    Args:
        path: Output file.
        results: Results, one row each; a failed pair has an error and no distance.
        per_layer: Add a column for each layer's term.
    """
    layers = list(next((one.layers for one in results if not one.error), {})) if per_layer else []
    failed = any(one.error for one in results)
    rows: list[list[str]] = []
    for one in results:
        values = [one.distance, *(one.layers.get(layer, math.nan) for layer in layers)]
        cells = ["" if one.error else _format(value) for value in values]
        rows.append([printable(one.pair.a), printable(one.pair.b), *cells, *[one.error] * failed])
    write_table(path, ["a", "b", "lpips", *layers, *["error"] * failed], rows)


def write_all_pairs_csv(path: str | Path, names: Sequence[str], distances: Tensor, long: bool = False) -> None:
    """Write the distance matrix as a CSV with row and column names, or one row per pair: ``a, b, lpips``.

    Args:
        path: Output file.
        names: Names of the N images.
        distances: Shape ``(N, N)``.
        long: One row for each of the ``N (N - 1) / 2`` pairs.
    """
    shown, values = [printable(name) for name in names], distances.tolist()
    if long:
        pairs = zip(*_upper_triangle(len(names)), strict=True)
        rows: Iterable[list[str]] = ([shown[i], shown[j], _format(values[i][j])] for i, j in pairs)
        write_table(path, ["a", "b", "lpips"], rows)
    else:
        rows = ([name, *map(_format, row)] for name, row in zip(shown, values, strict=True))
        write_table(path, ["", *shown], rows)


def write_json(path: str | Path, results: Sequence[PairResult], fingerprint: str, per_layer: bool = False) -> None:
    """Write the fingerprint, the statistics and every pair as JSON.

    Args:
        path: Output file.
        results: Results; a failed pair has ``lpips`` null and an ``error``.
        fingerprint: Fingerprint of the network.
        per_layer: Add the layers' terms.
    """
    distances = [one.distance for one in results if not one.error]
    pairs = []
    for one in results:
        entry: dict[str, Any] = {"a": printable(one.pair.a), "b": printable(one.pair.b)}
        entry["lpips"] = None if one.error else one.distance
        entry |= {"layers": one.layers} if per_layer and not one.error else {}
        pairs.append(entry | ({"error": one.error} if one.error else {}))
    statistics = {
        "n": len(distances),
        "mean": fmean(distances) if distances else None,
        "std": stdev(distances) if len(distances) > 1 else None,
    }
    _write_object(path, {"fingerprint": fingerprint} | statistics | {"pairs": pairs})


def write_all_pairs_json(path: str | Path, names: Sequence[str], distances: Tensor, fingerprint: str) -> None:
    """Write the fingerprint, the image names and the distance matrix as JSON.

    Args:
        path: Output file.
        names: Names of the N images.
        distances: Shape ``(N, N)``.
        fingerprint: Fingerprint of the network.
    """
    shown = [printable(name) for name in names]
    _write_object(path, {"fingerprint": fingerprint, "names": shown, "distances": distances.tolist()})


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
        f"std\t{_format(stdev(values) if len(values) > 1 else math.nan)}",
        f"min\t{_format(values[least])}\t{name(least)}",
        f"max\t{_format(values[most])}\t{name(most)}",
        f"n\t{len(values)}",
    ]


def _upper_triangle(count: int) -> tuple[list[int], list[int]]:
    """Row and column indices above the diagonal."""
    pairs = [(row, column) for row in range(count) for column in range(row + 1, count)]
    return [row for row, _ in pairs], [column for _, column in pairs]


def _format(value: float) -> str:
    return f"{value:.9g}"  # enough to round-trip a float32


def _write_object(path: str | Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8"
        )
