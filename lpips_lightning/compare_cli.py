"""The command ``lpips-lightning compare``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lpips_lightning.decoding import printable
from lpips_lightning.download import silent
from lpips_lightning.progress import progress_report
from lpips_lightning.whole_files import check_target

if TYPE_CHECKING:  # torch takes seconds: help and mistakes in the command line do not wait for it
    from lpips_lightning.network import LPIPS
    from lpips_lightning.picture_pairs import Pair

__all__ = ["main", "parser"]

Kind = Literal["pictures", "folders", "pairs"]
_ONLY_WITH: dict[str, tuple[Kind, ...]] = {
    "common": ("folders",),
    "in_order": ("folders",),
    "long": ("pairs",),
    "map": ("pictures", "folders"),
    "per_layer": ("pictures", "folders"),
}
_MEANS = {"pictures": "two pictures", "folders": "two folders", "pairs": "one folder and --pairs"}
_COLOURS = ("white", "black")
_USAGE = "lpips-lightning compare [options] A B\n       lpips-lightning compare [options] --pairs FOLDER"
_DESCRIPTION = """LPIPS of two pictures; of two folders, whose pictures or frames are matched by name; or of all
pairs in a folder. 0: equal; higher: less similar."""
_EPILOG = """Standard output: the distance, or lines of mean, std, min, max, n; then what to cite. The headers
of all files are checked before the work begins. A picture that turns out damaged later does not
stop the others, which are printed and written; it is named, and the exit code is 2, as for all bad
input."""


def parser() -> argparse.ArgumentParser:
    """What the command takes."""
    made = argparse.ArgumentParser(
        "lpips-lightning compare",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=100),
    )
    add = made.add_argument
    add("paths", nargs="+", metavar="A B", help="two pictures, or two folders (searched through)")
    nets = ("alex", "vgg", "squeeze", "embedded")
    add("--net", choices=nets, default="alex", metavar="NET", help="alex (default), vgg, squeeze or embedded")
    add("--version", choices=("0.1", "0.0"), default="0.1", metavar="V", help="0.1 (default) or 0.0")
    add("--baseline", action="store_true", help="without calibration")
    add("--weights", metavar="PATH", help="trunk weights: a file or a folder")
    add("--calibration", metavar="FILE", help="a calibration of your own")
    precisions = ("fp32", "bf16", "fp16")
    add("--precision", choices=precisions, default="fp32", metavar="P", help="of the trunk: fp32 (default), bf16, fp16")
    add("--device", default="auto", metavar="NAME", help="auto (default: cuda if there is one), cpu, cuda:1, ...")
    add("--batch-size", type=int, metavar="N", help="pairs at once (default: 24, fewer of large pictures)")
    add("--resize", metavar="PX", help="bring all pictures to one size first: 256, or HEIGHTxWIDTH")
    add("--gray", action="store_true", help="take gray pictures, as three equal channels")
    add("--background", metavar="COLOUR", help="under transparent pixels: white, black, or R,G,B on [0, 1]")
    matching = made.add_mutually_exclusive_group()
    matching.add_argument("--common", action="store_true", help="of two folders, compare only the names both have")
    matching.add_argument(
        "--in-order", action="store_true", help="match two folders' sorted files, whatever their names"
    )
    add("--pairs", action="store_true", help="all pairs of one folder, each picture encoded once, all in memory")
    add("--per-layer", action="store_true", help="also the layers' terms, which sum to the distance")
    add("--csv", metavar="FILE", help="write every distance; with --pairs a matrix")
    add("--long", action="store_true", help="with --pairs: a row a pair in the CSV instead of a matrix")
    add("--json", metavar="FILE", help="write every distance and the fingerprint")
    add("--map", metavar="PATH", help="write heat maps: a PNG for two pictures, a folder for two folders")
    add("--map-max", type=float, default=1.0, metavar="D", help="distance of their brightest colour (default: 1)")
    return made


def main(args: list[str] | None = None) -> None:
    """Compare pictures.

    Args:
        args: Command line without the program's name; None takes ``sys.argv``.

    Raises:
        ValueError: If an argument or a picture is off.
        FileNotFoundError: If a path does not exist.
        WeightsError: If weights are missing or damaged.
    """
    options = parser().parse_args(args)
    paths = [Path(path) for path in options.paths]
    kind = _kind(paths, options)
    _check_outputs(paths, kind, options)
    _check_numbers(options)
    images: dict[str, Any] = {
        "gray": "repeat" if options.gray else None,
        "background": None if options.background is None else _colour(options.background),
        "resize": None if options.resize is None else _size(options.resize),
    }
    from lpips_lightning.devices import choose_device
    from lpips_lightning.network import LPIPS
    from lpips_lightning.picture_pairs import Pair, match_folders

    options.device = choose_device(options.device)
    pairs: list[Pair] = []
    if kind == "folders":
        pairs = match_folders(*paths, common=options.common, in_order=options.in_order)
    elif kind == "pictures":
        pairs = [Pair(paths[0].stem, *paths)]
    names = ("version", "weights", "calibration", "precision")
    net = LPIPS(
        options.net, calibrated=not options.baseline, **{name: getattr(options, name) for name in names}, **images
    )
    if kind == "pairs":
        _compare_all(paths[0], net, options)
    else:
        _compare(pairs, kind, net, options)


def _compare(pairs: Sequence[Pair], kind: Kind, net: LPIPS, options: argparse.Namespace) -> None:
    from lpips_lightning import compare_report
    from lpips_lightning.compare import measure_pairs
    from lpips_lightning.picture_pairs import check_pictures

    keep = None
    if options.map is not None:
        keep = compare_report.map_writer(Path(options.map), kind == "folders", options.map_max, net.fingerprint)
    with progress_report("items") as progress:
        report = progress if kind == "folders" else silent
        headers = check_pictures([(pair.a, pair.b) for pair in pairs], net, report=report)
        how: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size}
        found = measure_pairs(pairs, net, headers, keep_map=keep, report=report, **how)
    errors = [one.error for one in found if one.error]
    if len(errors) == len(found):
        raise ValueError(_first_of(errors))
    if kind == "pictures":
        _say([*compare_report.pair_lines(found[0], options.per_layer), net.fingerprint])
    else:
        _say([*compare_report.summary_lines(found, options.per_layer), net.fingerprint])
    if options.csv is not None:
        compare_report.write_csv(options.csv, found, options.per_layer)
    if options.json is not None:
        compare_report.write_json(options.json, found, net.fingerprint, options.per_layer)
    if errors:
        raise ValueError(f"{len(errors)} of {len(found)} pairs are left out: {_first_of(errors)}")


def _compare_all(folder: Path, net: LPIPS, options: argparse.Namespace) -> None:
    from lpips_lightning import compare_report
    from lpips_lightning.compare import measure_all_pairs
    from lpips_lightning.picture_pairs import check_pictures
    from lpips_lightning.pictures import find_images, natural_order

    found = find_images(folder)
    names = sorted(found, key=natural_order)
    if len(names) < 2:
        raise ValueError(f"pairs: expected two pictures or more in '{printable(folder)}', got {len(names)}")
    files = [found[name] for name in names]
    with progress_report("items") as report:
        headers = check_pictures([files], net, report=report)
        how: dict[str, Any] = {"device": options.device, "batch_size": options.batch_size}
        distances = measure_all_pairs(files, net, headers, report=report, **how)
    _say([*compare_report.all_pairs_lines(names, distances), net.fingerprint])
    if options.csv is not None:
        compare_report.write_all_pairs_csv(options.csv, names, distances, options.long)
    if options.json is not None:
        compare_report.write_all_pairs_json(options.json, names, distances, net.fingerprint)


def _kind(paths: Sequence[Path], options: argparse.Namespace) -> Kind:
    """What is to be compared, and whether the options are about that."""
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{printable(path)}: expected a picture or a folder, got nothing of this name")
    folders = [path.is_dir() for path in paths]
    kind: Kind = "pairs" if options.pairs else "folders" if all(folders) else "pictures"
    if (
        len(paths) != (1 if kind == "pairs" else 2)
        or any(folders) != all(folders)
        or (options.pairs and not folders[0])
    ):
        got = ", ".join("a folder" if folder else "a file" for folder in folders)
        raise ValueError(f"paths: expected two pictures, two folders, or one folder and --pairs, got {got}")
    for option, kinds in _ONLY_WITH.items():
        if getattr(options, option) not in (None, False) and kind not in kinds:
            means = " or ".join(_MEANS[one] for one in kinds)
            raise ValueError(f"{option.replace('_', '-')}: expected {means} with this option, got {_MEANS[kind]}")
    return kind


def _check_outputs(paths: Sequence[Path], kind: Kind, options: argparse.Namespace) -> None:
    """Refuse what cannot be written, and what would be written over a picture."""
    outputs = {name: getattr(options, name) for name in ("csv", "json", "map") if getattr(options, name) is not None}
    places = {name: Path(path).resolve() for name, path in outputs.items()}
    for name, path in outputs.items():
        check_target(path, name, folder=name == "map" and kind == "folders")
        if any(places[name] == other for known, other in places.items() if known != name):
            raise ValueError(f"{name}: expected another file than those of the other options, got {path!r}")
        if kind == "pictures" and any(places[name] == picture.resolve() for picture in paths):
            raise ValueError(f"{name}: expected another file than the pictures, got {path!r}")
    if kind == "folders" and "map" in places:
        inside = [folder for folder in paths if folder.resolve() in (places["map"], *places["map"].parents)]
        if inside:
            raise ValueError(f"map: expected a folder outside '{printable(inside[0])}', got {options.map!r}")
    elif "map" in places and places["map"].suffix.lower() != ".png":
        raise ValueError(f"map: expected a file that ends in .png, got {options.map!r}")


def _check_numbers(options: argparse.Namespace) -> None:
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"batch-size: expected a positive number, got {options.batch_size}")
    if not 0 < options.map_max < float("inf"):
        raise ValueError(f"map-max: expected a positive distance, got {options.map_max:g}")


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if found is None:
        raise ValueError(f"resize: expected a number of pixels, or HEIGHTxWIDTH, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _colour(text: str) -> Any:
    if text in _COLOURS:
        return text
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part <= 1 for part in parts):
        raise ValueError(f"background: expected white, black, or R,G,B on [0, 1], got {text!r}")
    return parts


def _first_of(errors: Sequence[str]) -> str:
    return errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _say(lines: Sequence[str]) -> None:
    """Print lines as they are, whatever the terminal's encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(f"{line}\n" for line in lines)
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
