"""The command ``lpips-lightning compare``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lpips_lightning.cli.compare_run import RUNS, add_run_options, run, why_run, with_benchmark
from lpips_lightning.cli.launch import share_cores
from lpips_lightning.cli.options import add_network_options, choose_device, network_options, require_network
from lpips_lightning.io.arguments import PagedParser
from lpips_lightning.io.atomic import check_output_path
from lpips_lightning.io.console import print_lines, print_notes
from lpips_lightning.io.download import no_progress
from lpips_lightning.io.figures import require_matplotlib
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_formats import is_video, why_no_image
from lpips_lightning.io.progress import progress_report
from lpips_lightning.io.streams import STDIN, is_stream, name_streams

if TYPE_CHECKING:
    from lpips_lightning.comparison.fidelity import Score
    from lpips_lightning.comparison.file_pairs import Matches, Pair
    from lpips_lightning.comparison.maps import MapWriter
    from lpips_lightning.comparison.measure import KeepMap, PairResult
    from lpips_lightning.perceptual_distance import PerceptualDistance

Kind = Literal["images", "videos", "folders", "list", "pairs", "cross"]
_PAIRWISE: tuple[Kind, ...] = ("images", "videos", "folders", "list")
_KINDS_OF_OPTION: dict[str, tuple[Kind, ...]] = {
    "common": ("folders",),
    "in_order": ("folders",),
    "long": ("pairs", "cross"),
    "map": _PAIRWISE,
    "map_raw": _PAIRWISE,
    "psnr": _PAIRWISE,
    "ssim": _PAIRWISE,
    "tlp": ("videos", "folders"),
    "per_layer": _PAIRWISE,
    "mask": _PAIRWISE,
    "erode": _PAIRWISE,
}
_KIND_NAMES = {
    "images": "two images",
    "videos": "two videos",
    "folders": "two folders",
    "list": "two folders, --pairs and a CSV",
    "pairs": "one folder and --pairs",
    "cross": "two folders and --pairs",
}
_ALLOWED = {
    ("folders",): "two folders",
    ("videos", "folders"): "two videos, or two folders of frames",
    ("pairs", "cross"): "one or two folders and --pairs",
    _PAIRWISE: "two images, videos or folders",
}
_MAPS = ("map", "map_raw")
_OUTPUTS = ("csv", "json", *_MAPS)
_USAGE = "lpips-lightning compare [options] A B, or [options] --pairs FOLDER [FOLDER [FILE]]"
_DESCRIPTION = "LPIPS of two images, videos or folders, or of all pairs. 0: equal; higher: less similar."
_EPILOG = """"-" as output: that file alone. Damaged images are named, exit code 2. Several GPUs: --help=runs."""


def parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    result = PagedParser(
        "lpips-lightning compare",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=100),
    )
    add = result.add_argument
    what = "two images, videos or folders (searched recursively, matched by name)"
    result.add_argument_group().add_argument("paths", nargs="+", metavar="A B", help=what)  # a group without a heading
    add_network_options(result)
    add("--batch-size", type=int, metavar="N", help="pairs per batch (default: 24, fewer for large images)")
    matching = result.add_mutually_exclusive_group()
    matching.add_argument("--common", action="store_true", help="two folders: compare only names that both have")
    matching.add_argument(
        "--in-order", action="store_true", help="two folders: match the sorted files by position, not by name"
    )
    add(
        "--pairs",
        action="store_true",
        help="all pairs in a folder, or across two; A B FILE: pairs in a CSV (columns a, b)",
    )
    add("--mask", metavar="PATH", help="image whose white pixels count, or a folder of them by name")
    add("--erode", action="store_true", help="with --mask: black pixels have no influence at all")
    add("--per-layer", action="store_true", help="also print the per-layer terms, which sum to the distance")
    add("--psnr", action="store_true", help="also PSNR in dB, over all pixels and RGB, peak 1, no border crop")
    add(
        "--ssim", action="store_true", help="also SSIM of RGB, Gaussian 11x11, sigma 1.5, no border crop (torchmetrics)"
    )
    add("--tlp", action="store_true", help="also tLP of videos or frame folders: |change of A - change of B| by frame")
    add("--csv", metavar="FILE", help="write every distance; with --pairs as a matrix")
    add("--long", action="store_true", help="with --pairs --csv: one row per pair instead of a matrix")
    add("--json", metavar="FILE", help="write all distances and the fingerprint")
    add("--map", metavar="PATH", help="draw images, local distances and score: a PNG and a PDF, or a folder of them")
    add("--map-raw", metavar="PATH", help="the bare heatmap: a PNG, or a folder")
    add("--map-max", type=float, metavar="D", help="local distance at the brightest color (default: of the pairs)")
    add("--force", action="store_true", help="replace existing output files")
    add_run_options(result.add_page(RUNS))
    return result


def main(args: list[str] | None = None) -> None:
    """Compare images.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ValueError: If an argument or an image is invalid.
        FileNotFoundError: If a path does not exist.
        WeightsError: If weights are missing or damaged.
        SystemExit: With code 3, if some pairs of a large run failed.
    """
    options = _parse(args)
    share_cores()
    if why := why_run(options):
        run(options, why)
        return
    options.to_stderr = name_streams(options, outputs=_OUTPUTS)
    paths = [Path(STDIN if path == "-" else path) for path in options.paths]
    kind = _kind(paths, options)
    _check_outputs(paths, kind, options)
    _check_values(options)
    network = network_options(options)

    from lpips_lightning.network import LPIPS

    require_network(options)
    options.device = choose_device(options.device)
    if kind in ("pairs", "cross"):
        _compare_all(paths, LPIPS(options.net, **network), options)
        return
    matches = _match(paths, kind, options)
    print_notes(matches.notes)
    _compare(matches, kind, LPIPS(options.net, **network), options)


def _parse(args: list[str] | None) -> argparse.Namespace:
    """The options.

    What follows ``--pairs``, and all that follows ``--``, are paths, and so is what follows ``--benchmark`` unless it
    is a number.
    """
    given = with_benchmark(sys.argv[1:] if args is None else args)
    split = [part for arg in given for part in (arg.split("=", 1) if arg.startswith("--pairs=") else [arg])]
    if "--" in split:  # which intermixed arguments do not know
        end = split.index("--")
        split[end:] = [f"./{path}" if path.startswith("-") and path != "-" else path for path in split[end + 1 :]]
    return parser().parse_intermixed_args(split)


def _match(paths: Sequence[Path], kind: Kind, options: argparse.Namespace) -> Matches:
    from lpips_lightning.comparison.file_pairs import Matches, Pair, match_folders, match_listed
    from lpips_lightning.comparison.mask_files import match_masks

    if kind == "folders":
        matches = match_folders(*paths, common=options.common, in_order=options.in_order)
    elif kind == "list":
        (a, b), (table,) = ([path for path in paths if path.is_dir() == folder] for folder in (True, False))
        matches = match_listed(a, b, table)
    else:
        matches = Matches([Pair(paths[0].stem, paths[0], paths[1])])
    wanted = next((name for name in _MAPS if getattr(options, name) is not None), None)
    if wanted and len({pair.name for pair in matches.pairs}) < len(matches.pairs):
        raise ValueError(
            f"{wanted.replace('_', '-')}: expected each image of the first folder in one pair only, got several"
        )
    return matches if options.mask is None else match_masks(matches, options.mask)


def _compare(matches: Matches, kind: Kind, net: PerceptualDistance, options: argparse.Namespace) -> None:
    from lpips_lightning.comparison import report as compare_report
    from lpips_lightning.comparison.fidelity import definition

    fingerprint = net.fingerprint
    if options.mask is not None:
        fingerprint += f", mask {printable(Path(options.mask).name)}{', eroded' if options.erode else ''}"
    fingerprint += definition(_scores(options), masked=options.mask is not None)
    maps = _map_writer(kind, net, fingerprint, options)
    results = _measure(matches.pairs, kind, net, options, maps)
    errors = [one.error for one in results if one.error]
    if len(errors) == len(results):
        raise ValueError(_first_error(errors))
    if kind == "images":
        lines = compare_report.pair_lines(results[0], options.per_layer)
    else:
        lines = compare_report.summary_lines(results, options.per_layer)
    print_lines([*lines, fingerprint], options.to_stderr)
    print_notes(compare_report.infinite_note(results))
    if options.csv is not None:
        compare_report.write_csv(options.csv, results, options.per_layer, options.erode)
    if options.json is not None:
        shown: dict[str, Any] = {"per_layer": options.per_layer, "erode": options.erode, "notes": matches.notes}
        compare_report.write_json(options.json, results, fingerprint, **shown)
    if maps is not None:
        good = matches.pairs if kind == "videos" else [one.pair for one in results if not one.error]
        with progress_report("items") as progress:
            report = no_progress if kind == "images" else progress
            maps.finish(lambda: _measure(good, kind, net, options, maps), report)
        print_notes(maps.notes())
    if errors:
        pairs = "frames" if kind == "videos" else "pairs"
        raise ValueError(f"{len(errors)} of {len(results)} {pairs} failed: {_first_error(errors)}")


def _measure(
    pairs: Sequence[Pair],
    kind: Kind,
    net: PerceptualDistance,
    options: argparse.Namespace,
    keep_map: KeepMap | None,
) -> list[PairResult]:
    from lpips_lightning.comparison.file_pairs import check_images
    from lpips_lightning.comparison.mask_files import check_masks
    from lpips_lightning.comparison.measure import measure_pairs
    from lpips_lightning.comparison.videos import measure_videos

    compute: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size, "erode": options.erode}
    compute["scores"] = _scores(options)
    with progress_report("items") as progress:
        report = no_progress if kind == "images" else progress
        if kind == "videos":
            return measure_videos(pairs[0], net, keep_map=keep_map, report=report, **compute)
        headers = check_images([(pair.a, pair.b) for pair in pairs], net, report=report)
        check_masks(pairs, headers)
        return measure_pairs(pairs, net, headers, keep_map=keep_map, report=report, **compute)


def _scores(options: argparse.Namespace) -> list[Score]:
    scores: tuple[Score, ...] = ("psnr", "ssim", "tlp")
    return [score for score in scores if getattr(options, score)]


def _map_writer(kind: Kind, net: PerceptualDistance, fingerprint: str, options: argparse.Namespace) -> MapWriter | None:
    if options.map is None and options.map_raw is None:
        return None
    from lpips_lightning.comparison.maps import MapWriter

    net.check_maps()
    figures, raw = (None if path is None else Path(path) for path in (options.map, options.map_raw))
    return MapWriter(figures, raw, kind != "images", net.label, net.images, fingerprint, options.map_max)


def _compare_all(folders: Sequence[Path], net: PerceptualDistance, options: argparse.Namespace) -> None:
    from lpips_lightning.comparison import report as compare_report
    from lpips_lightning.comparison.file_pairs import check_images, images_of
    from lpips_lightning.comparison.measure import measure_all_pairs
    from lpips_lightning.io.image_files import natural_order

    found = [images_of(folder) for folder in folders]
    notes = [note for _, notes in found for note in notes]
    print_notes(notes)
    names, *other_names = (sorted(one.images, key=natural_order) for one, _ in found)
    if len(folders) == 1 and len(names) < 2:
        raise ValueError(f"pairs: expected two images or more in '{printable(folders[0])}', got {len(names)}")
    files, *others = (
        [one.images[name] for name in ordered] for (one, _), ordered in zip(found, (names, *other_names), strict=True)
    )
    across = other_names[0] if other_names else None
    with progress_report("items") as report:
        headers = check_images([[*files, *(others[0] if others else [])]], net, report=report)
        compute: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size}
        compute["others"] = others[0] if others else ()
        distances = measure_all_pairs(files, net, headers, report=report, **compute)
    lines = compare_report.all_pairs_lines(names, distances, across)
    print_lines([*lines, net.fingerprint], options.to_stderr)
    if options.csv is not None:
        compare_report.write_all_pairs_csv(options.csv, names, distances, options.long, across)
    if options.json is not None:
        compare_report.write_all_pairs_json(options.json, names, distances, net.fingerprint, across, notes)


def _kind(paths: Sequence[Path], options: argparse.Namespace) -> Kind:
    """The kind of comparison; raise if an option does not apply to it."""
    for path in paths:
        if not path.exists() and not is_stream(path):
            raise FileNotFoundError(f"{printable(path)}: expected an image, a video or a folder, got no such file")
    streams = [path for path in paths if is_stream(path)]
    if len(set(streams)) < len(streams):
        raise ValueError(f"paths: expected '{streams[0]}' for one image, got it for both; a stream is read only once")
    kind = _kind_of_paths(paths, options.pairs)
    if kind is None:
        got = ", ".join("a folder" if path.is_dir() else "a video" if is_video(path) else "a file" for path in paths)
        raise ValueError(
            "paths: expected two images, two videos, two folders, or --pairs and one folder, two, or two and a CSV,"
            f" got {got}"
        )
    for option, kinds in _KINDS_OF_OPTION.items():
        if getattr(options, option) not in (None, False) and kind not in kinds:
            raise ValueError(
                f"{option.replace('_', '-')}: expected {_ALLOWED[kinds]} with this option, got {_KIND_NAMES[kind]}"
            )
    return kind


def _kind_of_paths(paths: Sequence[Path], pairs: bool) -> Kind | None:
    folders = sum(path.is_dir() for path in paths)
    files, videos = len(paths) - folders, sum(is_video(path) for path in paths if not path.is_dir())
    kinds: dict[tuple[bool, int, int, int], Kind] = {
        (False, 0, 2, 0): "images",
        (False, 0, 2, 2): "videos",
        (False, 2, 0, 0): "folders",
        (True, 2, 1, 0): "list",
        (True, 1, 0, 0): "pairs",
        (True, 2, 0, 0): "cross",
    }
    return kinds.get((pairs, folders, files, videos))


def _check_outputs(paths: Sequence[Path], kind: Kind, options: argparse.Namespace) -> None:
    """Raise if an output path cannot be written or would overwrite an input image."""
    outputs = {name: getattr(options, name) for name in _OUTPUTS if getattr(options, name) is not None}
    inputs = [path for path in (*paths, *[Path(options.mask or ".")]) if not path.is_dir()]
    for name, path in outputs.items():
        check_output_path(path, name.replace("_", "-"), folder=name in _MAPS and kind != "images")
    if kind == "images" and "map" in outputs and not is_stream(options.map):
        outputs["map (its PDF)"] = str(Path(options.map).with_suffix(".pdf"))
        check_output_path(outputs["map (its PDF)"], "map", folder=False)
    places = {name: Path(path).resolve() for name, path in outputs.items()}
    for name, path in outputs.items():
        option = name.replace("_", "-")
        if any(places[name] == other for known, other in places.items() if known != name):
            raise ValueError(f"{option}: expected a path that no other option uses, got {path!r}")
        if any(places[name] == file.resolve() for file in inputs):
            raise ValueError(f"{option}: expected a path other than the input images, got {path!r}")
        if name in ("csv", "json") and places[name].is_file() and not why_no_image(places[name]):
            raise ValueError(f"{option}: expected a path other than that of an existing image, got {path!r}")
    for name in _MAPS:
        if name in outputs:
            _check_map(name, paths, kind, options)
    for name, path in outputs.items():
        option, folder = name.partition(" ")[0].replace("_", "-"), name in _MAPS and kind != "images"
        check_output_path(path, option, folder=folder, replace=options.force)


def _check_map(name: str, paths: Sequence[Path], kind: Kind, options: argparse.Namespace) -> None:
    """Raise if figures or heatmaps have the wrong kind of path, or lie among the input images."""
    path, option = getattr(options, name), name.replace("_", "-")
    if name == "map":
        require_matplotlib("map: expected --map-raw where there is no matplotlib; figures need")
    if kind == "images":
        if Path(path).suffix.lower() != ".png" and not is_stream(path):
            raise ValueError(f"{option}: expected a file that ends in .png, got {path!r}")
        return
    folders = [one for one in (*paths, Path(options.mask or os.devnull)) if one.is_dir()]
    place = Path(path).resolve()
    inside = [folder for folder in folders if folder.resolve() in (place, *place.parents)]
    if inside:
        raise ValueError(f"{option}: expected a folder outside '{printable(inside[0])}', got {path!r}")


def _check_values(options: argparse.Namespace) -> None:
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"batch-size: expected a positive number, got {options.batch_size}")
    if options.map_max is not None and not 0 < options.map_max < float("inf"):
        raise ValueError(f"map-max: expected a positive distance, got {options.map_max:g}")
    if options.ssim and options.mask is not None:
        raise ValueError("ssim: expected no --mask with this option: its windows reach over the border of a mask")
    if options.tlp and (options.mask is not None or options.common):
        other = "--mask" if options.mask is not None else "--common"
        way_out = "; remove the frames that only one folder has" * options.common
        raise ValueError(
            f"tlp: expected no {other} with this option: it compares whole frames that follow each other{way_out}"
        )
    if options.erode and options.mask is None:
        raise ValueError("erode: expected --mask with this option, got none")
    if options.erode and options.resize is not None:
        raise ValueError("erode: expected no --resize with this option; resize images and masks first")


def _first_error(errors: Sequence[str]) -> str:
    return errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
