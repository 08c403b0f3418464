"""Matching of image files into pairs, and header checks before the long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lpips_lightning.backbones.definition import get_backbone
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import Header, printable, read_header
from lpips_lightning.io.image_files import find_images, natural_order
from lpips_lightning.network import LPIPS

_MAX_EXAMPLES = 3  # names listed in an error


@dataclass(frozen=True)
class Pair:
    """Two image files to compare.

    Attributes:
        name: Name of the pair: the first file's name in its folder.
        a: The first file.
        b: The second file.
    """

    name: str
    a: Path
    b: Path


def match_folders(a: str | Path, b: str | Path, *, common: bool = False, in_order: bool = False) -> list[Pair]:
    """Match the images of two folders by name: the relative path without suffix.

    Args:
        a: First folder, searched recursively.
        b: Second folder.
        common: Skip images that only one folder has.
        in_order: Match the sorted files by position instead of by name.

    Returns:
        Pairs sorted by name, numbers by value.

    Raises:
        FileNotFoundError: If a folder does not exist or contains no image.
        ValueError: If the names differ (the message lists the options that help), or a folder has a name twice.
    """
    first, second = find_images(a), find_images(b)
    names = sorted(first, key=natural_order)
    if in_order:
        others = sorted(second, key=natural_order)
        if len(names) != len(others):
            raise ValueError(
                f"in-order: expected equally many images in both folders, got {len(names)} in '{printable(a)}'"
                f" and {len(others)} in '{printable(b)}'"
            )
        return [Pair(name, first[name], second[other]) for name, other in zip(names, others, strict=True)]
    shared = [name for name in names if name in second]
    if len(shared) < max(len(first), len(second)) and not common:
        raise ValueError(_name_mismatch(a, b, first, second, shared))
    if not shared:
        raise ValueError(
            f"common: expected names in both '{printable(a)}' and '{printable(b)}', got none:"
            f" {_examples(first)} and {_examples(second)}"
        )
    return [Pair(name, first[name], second[name]) for name in shared]


def check_images(
    groups: Sequence[Sequence[Path]],
    net: LPIPS,
    look: Callable[[Path], Header] = read_header,
    report: ProgressCallback = no_progress,
) -> dict[Path, Header]:
    """Check file headers against the network's requirements, without decoding images.

    Args:
        groups: Files that are compared with each other: pairs, or one group of all files.
        net: The network that will compare them.
        look: Function that reads a header.
        report: Progress callback, in files.

    Returns:
        Headers by file.

    Raises:
        ValueError: If a file is not a supported image, is gray and the network has no ``gray=``, is too small, or
            differs in size from the first of its group and the network has no ``resize=``. The message names the
            first such file and counts the others.
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
            problems += map(ValueError, _input_problems(path, headers[path], net, smallest))
        problems += map(ValueError, _size_problems(group, headers) if net.images.resize is None else ())
        report("checking headers", done, total)
    if problems:
        more = f" (and {len(problems) - 1} more file{'s' * (len(problems) > 2)})" if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0]}{more}")
    return headers


def _input_problems(path: Path, header: Header, net: LPIPS, smallest: int) -> Iterable[str]:
    if header.gray and net.images.gray is None:
        yield f"{printable(path)}: expected a color image, got a gray one; --gray repeats it to three channels"
    if net.images.resize is None and min(header.size) < smallest:
        yield (
            f"{printable(path)}: expected sides of at least {smallest} pixels for net {net.net_type},"
            f" got {header.height}x{header.width}; enlarge all images with --resize, or choose another net"
        )


def _size_problems(group: Sequence[Path], headers: dict[Path, Header]) -> Iterable[str]:
    readable = [path for path in group if path in headers]
    for path in readable[1:]:
        first, other = headers[readable[0]], headers[path]
        if other.size != first.size:
            yield (
                f"{printable(path)}: expected the size of '{printable(readable[0])}', {first.height}x{first.width}"
                f" (height x width), got {other.height}x{other.width}; --resize resizes all images to one size"
            )


def _name_mismatch(
    a: str | Path, b: str | Path, first: dict[str, Path], second: dict[str, Path], shared: list[str]
) -> str:
    missing = [name for name in first if name not in second]
    extra = [name for name in second if name not in first]
    parts = [f"{len(missing)} missing ({_examples(missing)})"] * bool(missing)
    parts += [f"{len(extra)} unexpected ({_examples(extra)})"] * bool(extra)
    remedies = [f"--common compares the {len(shared)} names in both"] * bool(shared)
    if len(first) == len(second):
        remedies.append("--in-order matches the sorted files by position")
    return (
        f"{printable(b)}: expected the same {len(first)} image names as in '{printable(a)}', got {len(second)}: "
        f"{' and '.join(parts)}; {'; '.join(remedies) or 'rename the files'}"
    )


def _examples(names: Iterable[str]) -> str:
    listed = list(names)
    more = ", ..." if len(listed) > _MAX_EXAMPLES else ""
    return ", ".join(f"'{printable(name)}'" for name in listed[:_MAX_EXAMPLES]) + more
