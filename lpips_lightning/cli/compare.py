"""The command ``lpips-lightning compare``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lpips_lightning.cli.options import add_network_options, choose_device, network_options
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.download import no_progress
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import STDIN, is_stream, name_streams

if TYPE_CHECKING:
    from lpips_lightning.comparison.file_pairs import Pair
    from lpips_lightning.network import LPIPS

Kind = Literal["images", "folders", "pairs"]
_KINDS_OF_OPTION: dict[str, tuple[Kind, ...]] = {
    "common": ("folders",),
    "in_order": ("folders",),
    "long": ("pairs",),
    "map": ("images", "folders"),
    "per_layer": ("images", "folders"),
}
_KIND_NAMES = {"images": "two images", "folders": "two folders", "pairs": "one folder and --pairs"}
_USAGE = "lpips-lightning compare [options] A B\n       lpips-lightning compare [options] --pairs FOLDER"
_DESCRIPTION = """LPIPS of two images, of two folders (images or frames matched by name), or of all pairs in
one folder. 0: equal; higher: less similar."""
_EPILOG = """Standard output: the distance, or lines with mean, std, min, max and n; then the fingerprint to
cite; or with "-" as an output file, that alone. All file headers are checked first. A damaged image
found later does not stop the run: the other results are printed and written, the error names the
image, and the exit code is 2, as for all bad input."""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = argparse.ArgumentParser(
        "lpips-lightning compare",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=100),
    )
    add = result.add_argument
    add("paths", nargs="+", metavar="A B", help="two images, or two folders (searched recursively)")
    add_network_options(result)
    add("--batch-size", type=int, metavar="N", help="pairs per batch (default: 24, fewer for large images)")
    matching = result.add_mutually_exclusive_group()
    matching.add_argument("--common", action="store_true", help="two folders: compare only names that both have")
    matching.add_argument(
        "--in-order", action="store_true", help="two folders: match the sorted files by position, not by name"
    )
    add("--pairs", action="store_true", help="all pairs in one folder; encodes each image once, holds all in memory")
    add("--per-layer", action="store_true", help="also print the per-layer terms, which sum to the distance")
    add("--csv", metavar="FILE", help="write every distance; with --pairs as a matrix")
    add("--long", action="store_true", help="with --pairs --csv: one row per pair instead of a matrix")
    add("--json", metavar="FILE", help="write all distances and the fingerprint")
    add("--map", metavar="PATH", help="write heatmaps: a PNG for two images, a folder for two folders")
    add("--map-max", type=float, default=1.0, metavar="D", help="local distance at the brightest color (default: 1)")
    return result


def main(args: list[str] | None = None) -> None:
    """Compare images.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ValueError: If an argument or an image is invalid.
        FileNotFoundError: If a path does not exist.
        WeightsError: If weights are missing or damaged.
    """
    options = parser().parse_args(args)
    options.to_stderr = name_streams(options, outputs=("csv", "json", "map"))
    paths = [Path(STDIN if path == "-" else path) for path in options.paths]
    kind = _kind(paths, options)
    _check_outputs(paths, kind, options)
    _check_values(options)
    network = network_options(options)

    from lpips_lightning.comparison.file_pairs import Pair, match_folders
    from lpips_lightning.network import LPIPS

    options.device = choose_device(options.device)
    pairs: list[Pair] = []
    if kind == "folders":
        pairs = match_folders(*paths, common=options.common, in_order=options.in_order)
    elif kind == "images":
        pairs = [Pair(paths[0].stem, *paths)]
    net = LPIPS(options.net, **network)
    if kind == "pairs":
        _compare_all(paths[0], net, options)
    else:
        _compare(pairs, kind, net, options)


def _compare(pairs: Sequence[Pair], kind: Kind, net: LPIPS, options: argparse.Namespace) -> None:
    from lpips_lightning.comparison import report as compare_report
    from lpips_lightning.comparison.file_pairs import check_images
    from lpips_lightning.comparison.measure import measure_pairs

    keep = None
    if options.map is not None:
        keep = compare_report.map_writer(Path(options.map), kind == "folders", options.map_max, net.fingerprint)
    with progress_report("items") as progress:
        report = progress if kind == "folders" else no_progress
        headers = check_images([(pair.a, pair.b) for pair in pairs], net, report=report)
        compute: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size}
        results = measure_pairs(pairs, net, headers, keep_map=keep, report=report, **compute)
    errors = [one.error for one in results if one.error]
    if len(errors) == len(results):
        raise ValueError(_first_error(errors))
    if kind == "images":
        lines = compare_report.pair_lines(results[0], options.per_layer)
    else:
        lines = compare_report.summary_lines(results, options.per_layer)
    _print_lines([*lines, net.fingerprint], options.to_stderr)
    if options.csv is not None:
        compare_report.write_csv(options.csv, results, options.per_layer)
    if options.json is not None:
        compare_report.write_json(options.json, results, net.fingerprint, options.per_layer)
    if errors:
        raise ValueError(f"{len(errors)} of {len(results)} pairs failed: {_first_error(errors)}")


def _compare_all(folder: Path, net: LPIPS, options: argparse.Namespace) -> None:
    from lpips_lightning.comparison import report as compare_report
    from lpips_lightning.comparison.file_pairs import check_images
    from lpips_lightning.comparison.measure import measure_all_pairs
    from lpips_lightning.io.image_files import find_images, natural_order

    images = find_images(folder)
    names = sorted(images, key=natural_order)
    if len(names) < 2:
        raise ValueError(f"pairs: expected two images or more in '{printable(folder)}', got {len(names)}")
    files = [images[name] for name in names]
    with progress_report("items") as report:
        headers = check_images([files], net, report=report)
        compute: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size}
        distances = measure_all_pairs(files, net, headers, report=report, **compute)
    _print_lines([*compare_report.all_pairs_lines(names, distances), net.fingerprint], options.to_stderr)
    if options.csv is not None:
        compare_report.write_all_pairs_csv(options.csv, names, distances, options.long)
    if options.json is not None:
        compare_report.write_all_pairs_json(options.json, names, distances, net.fingerprint)


def _kind(paths: Sequence[Path], options: argparse.Namespace) -> Kind:
    """The kind of comparison; raise if an option does not apply to it."""
    for path in paths:
        if not path.exists() and not is_stream(path):
            raise FileNotFoundError(f"{printable(path)}: expected an image or a folder, got no such file")
    folders = [path.is_dir() for path in paths]
    kind: Kind = "pairs" if options.pairs else "folders" if all(folders) else "images"
    if (
        len(paths) != (1 if kind == "pairs" else 2)
        or any(folders) != all(folders)
        or (options.pairs and not folders[0])
    ):
        got = ", ".join("a folder" if folder else "a file" for folder in folders)
        raise ValueError(f"paths: expected two images, two folders, or one folder and --pairs, got {got}")
    for option, kinds in _KINDS_OF_OPTION.items():
        if getattr(options, option) not in (None, False) and kind not in kinds:
            allowed = " or ".join(_KIND_NAMES[one] for one in kinds)
            raise ValueError(
                f"{option.replace('_', '-')}: expected {allowed} with this option, got {_KIND_NAMES[kind]}"
            )
    return kind


def _check_outputs(paths: Sequence[Path], kind: Kind, options: argparse.Namespace) -> None:
    """Raise if an output path cannot be written or would overwrite an input image."""
    outputs = {name: getattr(options, name) for name in ("csv", "json", "map") if getattr(options, name) is not None}
    for name, path in outputs.items():
        check_output_path(path, name, folder=name == "map" and kind == "folders")
    places = {name: Path(path).resolve() for name, path in outputs.items()}
    for name, path in outputs.items():
        if any(places[name] == other for known, other in places.items() if known != name):
            raise ValueError(f"{name}: expected a path that no other option uses, got {path!r}")
        if kind == "images" and any(places[name] == image.resolve() for image in paths):
            raise ValueError(f"{name}: expected a path other than the input images, got {path!r}")
    if kind == "folders" and "map" in places:
        inside = [folder for folder in paths if folder.resolve() in (places["map"], *places["map"].parents)]
        if inside:
            raise ValueError(f"map: expected a folder outside '{printable(inside[0])}', got {options.map!r}")
    elif "map" in places and Path(options.map).suffix.lower() != ".png" and not is_stream(options.map):
        raise ValueError(f"map: expected a file that ends in .png, got {options.map!r}")


def _check_values(options: argparse.Namespace) -> None:
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"batch-size: expected a positive number, got {options.batch_size}")
    if not 0 < options.map_max < float("inf"):
        raise ValueError(f"map-max: expected a positive distance, got {options.map_max:g}")


def _first_error(errors: Sequence[str]) -> str:
    return errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _print_lines(lines: Sequence[str], to_stderr: bool) -> None:
    """Print lines; escape characters that the terminal's encoding lacks."""
    stream = sys.stderr if to_stderr else sys.stdout
    if stream is None:  # closed by the shell
        return
    encoding = stream.encoding or "utf-8"
    text = "".join(f"{line}\n" for line in lines)
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
