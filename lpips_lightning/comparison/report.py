"""What `compare` found, as lines, CSV, JSON and heat maps; files appear whole or not at all."""

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
from lpips_lightning.comparison.measure import Compared
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.heatmap import heatmap_colors, heatmap_indices
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.tables import write_table


def pair_lines(found: Compared, per_layer: bool) -> list[str]:
    """The distance of one pair; below it, if asked for, the layers' terms by name."""
    terms = found.layers.items() if per_layer else ()
    return [_digits(found.distance), *(f"{layer}\t{_digits(value)}" for layer, value in terms)]


def summary_lines(found: Sequence[Compared], per_layer: bool = False) -> list[str]:
    """Mean, standard deviation (of a sample), least and largest with their names, and count: tabs between, one a line.

    Args:
        found: Pairs; those that could not be read are left out.
        per_layer: Add the layers' means by name.
    """
    read = [one for one in found if not one.error]
    lines = _statistics([one.distance for one in read], lambda index: printable(read[index].pair.name))
    layers = read[0].layers if per_layer and read else ()
    return lines + [f"{layer}\t{_digits(fmean(one.layers[layer] for one in read))}" for layer in layers]


def all_pairs_lines(names: Sequence[str], distances: Tensor) -> list[str]:
    """As `summary_lines`, of the pairs above the diagonal.

    Args:
        names: Of the images, N of them.
        distances: Shape ``(N, N)``.
    """
    rows, columns = _above(len(names))
    values = distances[rows, columns].tolist()
    return _statistics(values, lambda index: "\t".join(printable(names[side[index]]) for side in (rows, columns)))


def write_csv(path: str | Path, found: Sequence[Compared], per_layer: bool = False) -> None:
    """Columns ``a, b, lpips``, then the layers if asked for, then ``error`` if a pair could not be read.

    Args:
        path: The file.
        found: Pairs, a row each; without number and with an error where they could not be read.
        per_layer: Add the layers' terms.
    """
    layers = list(next((one.layers for one in found if not one.error), {})) if per_layer else []
    failed = any(one.error for one in found)
    rows: list[list[str]] = []
    for one in found:
        numbers = [one.distance, *(one.layers.get(layer, math.nan) for layer in layers)]
        cells = ["" if one.error else _digits(number) for number in numbers]
        rows.append([printable(one.pair.a), printable(one.pair.b), *cells, *[one.error] * failed])
    write_table(path, ["a", "b", "lpips", *layers, *["error"] * failed], rows)


def write_all_pairs_csv(path: str | Path, names: Sequence[str], distances: Tensor, long: bool = False) -> None:
    """A matrix with the names above and at the left; or one row a pair: ``a, b, lpips``.

    Args:
        path: The file.
        names: Of the images, N of them.
        distances: Shape ``(N, N)``.
        long: One row for each of the ``N (N - 1) / 2`` pairs.
    """
    shown, values = [printable(name) for name in names], distances.tolist()
    if long:
        places = zip(*_above(len(names)), strict=True)
        rows: Iterable[list[str]] = ([shown[i], shown[j], _digits(values[i][j])] for i, j in places)
        write_table(path, ["a", "b", "lpips"], rows)
    else:
        rows = ([name, *map(_digits, row)] for name, row in zip(shown, values, strict=True))
        write_table(path, ["", *shown], rows)


def write_json(path: str | Path, found: Sequence[Compared], fingerprint: str, per_layer: bool = False) -> None:
    """The fingerprint, the statistics, and every pair.

    Args:
        path: The file.
        found: Pairs; ``lpips`` is null, and ``error`` says why, where they could not be read.
        fingerprint: Of the network.
        per_layer: Add the layers' terms.
    """
    distances = [one.distance for one in found if not one.error]
    pairs = []
    for one in found:
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
    """The fingerprint, the names, and the matrix.

    Args:
        path: The file.
        names: Of the images, N of them.
        distances: Shape ``(N, N)``.
        fingerprint: Of the network.
    """
    shown = [printable(name) for name in names]
    _write_object(path, {"fingerprint": fingerprint, "names": shown, "distances": distances.tolist()})


def map_writer(target: Path, folder: bool, heatmap_max: float, fingerprint: str) -> Callable[[Pair, Tensor], None]:
    """What writes a pair's map as a PNG in the house's heat colors.

    Args:
        target: The file; or, for a `folder`, where every pair gets a file of its name.
        folder: See `target`.
        heatmap_max: Local distance of the brightest color.
        fingerprint: Of the network; it goes into the file.
    """
    colors = heatmap_colors()

    def write(pair: Pair, distances: Tensor) -> None:
        about = PngImagePlugin.PngInfo()
        about.add_text("Description", f"local LPIPS, black 0, brightest {heatmap_max:g} and more; {fingerprint}")
        path = target / f"{pair.name}.png" if folder else target
        with atomic_write(path) as beside:
            Image.fromarray(colors[heatmap_indices(distances, heatmap_max)]).save(beside, "PNG", pnginfo=about)

    return write


def _statistics(values: Sequence[float], name: Callable[[int], str]) -> list[str]:
    if not values:
        return ["n\t0"]
    places = range(len(values))
    least, most = min(places, key=values.__getitem__), max(places, key=values.__getitem__)
    return [
        f"mean\t{_digits(fmean(values))}",
        f"std\t{_digits(stdev(values) if len(values) > 1 else math.nan)}",
        f"min\t{_digits(values[least])}\t{name(least)}",
        f"max\t{_digits(values[most])}\t{name(most)}",
        f"n\t{len(values)}",
    ]


def _above(count: int) -> tuple[list[int], list[int]]:
    """Rows and columns above the diagonal."""
    pairs = [(row, column) for row in range(count) for column in range(row + 1, count)]
    return [row for row, _ in pairs], [column for _, column in pairs]


def _digits(number: float) -> str:
    return f"{number:.9g}"  # a float32 and back


def _write_object(path: str | Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
