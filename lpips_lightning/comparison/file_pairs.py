"""Which images are compared with which, and whether they can be: found out before the long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.io.download import Report, silent
from lpips_lightning.io.image_decoding import Header, printable, read_header
from lpips_lightning.io.image_files import find_images, natural_order
from lpips_lightning.network import LPIPS

_SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Pair:
    """Two image files to compare.

    Attributes:
        name: What to call them: the first one's name in its folder.
        a: The first file.
        b: The second file.
    """

    name: str
    a: Path
    b: Path


def match_folders(a: str | Path, b: str | Path, *, common: bool = False, in_order: bool = False) -> list[Pair]:
    """The images of two folders, matched by name: the path inside the folder without the suffix.

    Args:
        a: Folder, searched through.
        b: Another one.
        common: Leave out what only one of them has.
        in_order: Match the first with the first, and so on, in the order of the names (numbers by value).

    Returns:
        In the order of the names, numbers by value.

    Raises:
        FileNotFoundError: If one is no folder of images.
        ValueError: If the names differ, with the ways to go on; or if two files of a folder share a name.
    """
    first, second = find_images(a), find_images(b)
    names = sorted(first, key=natural_order)
    if in_order:
        others = sorted(second, key=natural_order)
        if len(names) != len(others):
            raise ValueError(
                f"in-order: expected as many images in both folders, got {len(names)} in '{printable(a)}'"
                f" and {len(others)} in '{printable(b)}'"
            )
        return [Pair(name, first[name], second[other]) for name, other in zip(names, others, strict=True)]
    shared = [name for name in names if name in second]
    if len(shared) < max(len(first), len(second)) and not common:
        raise ValueError(_how_they_differ(a, b, first, second, shared))
    if not shared:
        raise ValueError(
            f"common: expected names that '{printable(a)}' and '{printable(b)}' share, got none:"
            f" {_some(first)} and {_some(second)}"
        )
    return [Pair(name, first[name], second[name]) for name in shared]


def check_images(
    groups: Sequence[Sequence[Path]], net: LPIPS, look: Callable[[Path], Header] = read_header, report: Report = silent
) -> dict[Path, Header]:
    """Hold what the files' headers say against what the network takes; no image is decoded.

    Args:
        groups: Files that are compared with each other: pairs, or all in one.
        net: What will measure.
        look: Reads a header.
        report: Told the progress.

    Returns:
        By file.

    Raises:
        ValueError: If a file is no image of a kind that is read, is gray although the network has no ``gray=``, is
            too small, or has another size than the first of its group although the network has no ``resize=``. The
            first such file is named, the others are counted.
        FileNotFoundError: If the first such file is missing.
    """
    smallest = get_backbone(net.net_type).smallest_side
    if net.images.resize is not None and min(net.images.resize) < smallest:
        raise ValueError(
            f"resize: expected sides of at least {smallest} pixels for net {net.net_type}, got {min(net.images.resize)}"
        )
    headers: dict[Path, Header] = {}
    problems: list[Exception] = []
    total, done = sum(map(len, groups)), 0
    for group in groups:
        for path in group:
            done += 1
            if path in headers:
                continue
            try:
                headers[path] = look(path)
            except (ValueError, OSError) as error:
                problems.append(error)
                continue
            problems += map(ValueError, _misfits(path, headers[path], net, smallest))
        problems += map(ValueError, _sizes_differ(group, headers) if net.images.resize is None else ())
        report("looking at the files", done, total)
    if problems:
        more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0]}{more}")
    return headers


def _misfits(path: Path, header: Header, net: LPIPS, smallest: int) -> Iterable[str]:
    if header.gray and net.images.gray is None:
        yield f"{printable(path)}: expected an image in color, got a gray one; --gray takes its value for all three"
    if net.images.resize is None and min(header.size) < smallest:
        yield (
            f"{printable(path)}: expected sides of at least {smallest} pixels for net {net.net_type},"
            f" got {header.height}x{header.width}; enlarge all with --resize, or take a net that sees smaller images"
        )


def _sizes_differ(group: Sequence[Path], headers: dict[Path, Header]) -> Iterable[str]:
    here = [path for path in group if path in headers]
    for path in here[1:]:
        first, other = headers[here[0]], headers[path]
        if other.size != first.size:
            yield (
                f"{printable(path)}: expected the size of '{printable(here[0])}', {first.height}x{first.width}"
                f" (height x width), got {other.height}x{other.width}; --resize brings all images to one size"
            )


def _how_they_differ(
    a: str | Path, b: str | Path, first: dict[str, Path], second: dict[str, Path], shared: list[str]
) -> str:
    lacking = [name for name in first if name not in second]
    extra = [name for name in second if name not in first]
    parts = [f"{len(lacking)} are lacking, {_some(lacking)}"] * bool(lacking)
    parts += [f"{len(extra)} are beyond them, {_some(extra)}"] * bool(extra)
    ways = [f"--common compares the {len(shared)} that both have"] * bool(shared)
    if len(first) == len(second):
        ways.append("--in-order matches the first with the first, and so on")
    way_out = "; ".join(ways) or "rename the files"
    return (
        f"{printable(b)}: expected images of the same {len(first)} names as in '{printable(a)}', got {len(second)}: "
        f"{' and '.join(parts)}; {way_out}"
    )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = ", ..." if len(listed) > _SHOWN else ""
    return ", ".join(f"'{printable(name)}'" for name in listed[:_SHOWN]) + more
