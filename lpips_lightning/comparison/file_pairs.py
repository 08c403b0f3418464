"""Matching of image files into pairs, and header checks before the long work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from lpips_lightning.images.preprocessing import ImagePolicy
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import Header, printable, read_header
from lpips_lightning.io.image_files import natural_order
from lpips_lightning.io.image_folders import ImageFolder, check_any_image, count_of, describe_left_out, list_images
from lpips_lightning.io.tables import read_table
from lpips_lightning.perceptual_distance import PerceptualDistance

_MAX_EXAMPLES = 3  # names listed in an error
_Name = TypeVar("_Name", str, Path)
_File = TypeVar("_File")


@dataclass(frozen=True)
class Pair:
    """Two image files to compare.

    Attributes:
        name: Name of the pair: the first file's name in its folder.
        a: The first file.
        b: The second file.
        mask: Image of the pixels that count; None: all.
        frame: Index of the frame if the files are videos.
    """

    name: str
    a: Path
    b: Path
    mask: Path | None = None
    frame: int | None = None


@dataclass(frozen=True)
class InputNeeds:
    """What a network needs of its images, without the network.

    Attributes:
        images: Options for gray and transparent images and for sizes.
        smallest_side: Smallest side in pixels.
        net_type: Name of the network, for messages.
    """

    images: ImagePolicy
    smallest_side: int
    net_type: str

    @classmethod
    def of(cls, net: PerceptualDistance) -> InputNeeds:
        """The needs of a network.

        Raises:
            ValueError: If its ``resize=`` is smaller than the network allows.
        """
        smallest = net.smallest_side
        if net.images.resize is not None and min(net.images.resize) < smallest:
            raise ValueError(
                f"resize: expected sides of at least {smallest} pixels for net {net.net_type},"
                f" got {min(net.images.resize)}"
            )
        return cls(net.images, smallest, str(net.net_type))


@dataclass(frozen=True)
class Matches:
    """Pairs of files, and what was not compared.

    Attributes:
        pairs: The pairs.
        notes: One sentence for each folder with files that are in no pair.
    """

    pairs: list[Pair]
    notes: list[str] = field(default_factory=list)


def images_of(folder: str | Path) -> tuple[ImageFolder[Path], list[str]]:
    """The images of a folder, and a note on the files that are left out.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no image.
        ValueError: If two files have the same name.
    """
    found = list_images(folder)
    check_any_image(found, folder)
    return found, left_out_note(folder, found.left_out)


def left_out_note(folder: str | Path, left_out: Mapping[str, str]) -> list[str]:
    """A sentence that names and counts the files that are left out; none if there are none."""
    if not left_out:
        return []
    were = "was" if len(left_out) == 1 else "were"
    return [
        f"{printable(folder)}: {count_of(len(left_out), 'file')} {were} not compared: {describe_left_out(left_out)}"
    ]


def match_folders(a: str | Path, b: str | Path, *, common: bool = False, in_order: bool = False) -> Matches:
    """Match the images of two folders by name: the relative path without suffix.

    Args:
        a: First folder, searched recursively.
        b: Second folder.
        common: Skip images that only one folder has.
        in_order: Match the sorted files by position instead of by name.

    Returns:
        Pairs sorted by name, numbers by value, and notes on the files that are in no pair.

    Raises:
        FileNotFoundError: If a folder does not exist or contains no image.
        ValueError: If the names differ (the message lists the options that help), or a folder has a name twice.
    """
    (one, notes), (two, more_notes) = images_of(a), images_of(b)
    images = (one.images, two.images)
    pairs, notes = match_images((a, b), images, [*notes, *more_notes], common=common, in_order=in_order)
    return Matches([Pair(*pair) for pair in pairs], notes)


def match_images(
    folders: tuple[str | Path, str | Path],
    images: tuple[Mapping[str, _File], Mapping[str, _File]],
    notes: Sequence[str],
    *,
    common: bool = False,
    in_order: bool = False,
) -> tuple[list[tuple[str, _File, _File]], list[str]]:
    """Match the images of two folders as `match_folders` does, wherever they lie.

    Args:
        folders: Both folders, for messages.
        images: Files by name.
        notes: What is known about the folders.
        common: Skip images that only one folder has.
        in_order: Match the sorted files by position instead of by name.

    Returns:
        Name and both files of every pair, sorted by name, and all notes.

    Raises:
        ValueError: If the names differ.
    """
    (a, b), (first, second), notes = folders, images, list(notes)
    names = sorted(first, key=natural_order)
    if in_order:
        others = sorted(second, key=natural_order)
        if len(names) != len(others):
            raise ValueError(
                f"in-order: expected equally many images in both folders, got {len(names)} in '{printable(a)}'"
                f" and {len(others)} in '{printable(b)}'"
            )
        return [(name, first[name], second[other]) for name, other in zip(names, others, strict=True)], notes
    shared = [name for name in names if name in second]
    if len(shared) < max(len(first), len(second)) and not common:
        raise ValueError("; ".join([_name_mismatch(a, b, first, second, shared), *notes]))
    if not shared:
        raise ValueError(
            f"common: expected names in both '{printable(a)}' and '{printable(b)}', got none:"
            f" {examples(first)} and {examples(second)}"
        )
    for folder, alone in ((a, first.keys() - set(shared)), (b, second.keys() - set(shared))):
        if alone:
            listed = examples(sorted(alone, key=natural_order))
            notes.append(f"{printable(folder)}: {count_of(len(alone), 'image')} without partner: {listed}")
    return [(name, first[name], second[name]) for name in shared], notes


def match_listed(a: str | Path, b: str | Path, table: str | Path) -> Matches:
    """Match images of two folders as a table says.

    Args:
        a: First folder.
        b: Second folder.
        table: CSV with columns ``a`` and ``b``: paths relative to the folders, with or without suffix, or as
            `write_csv` writes them.

    Returns:
        Pairs in the order of the table, and notes on the files that are in no pair.

    Raises:
        FileNotFoundError: If a folder or the table does not exist, or a folder contains no image.
        ValueError: If the table is malformed, or names no image of a folder; the message has the line number.
    """
    (one, notes), (two, more_notes) = images_of(a), images_of(b)
    notes += more_notes
    columns = {"a": _by_path(a, one), "b": _by_path(b, two)}
    rows = read_table(table)
    rows.require(list(columns))
    pairs = []
    for row in rows.rows:
        found = {}
        for column, folder in (("a", a), ("b", b)):
            path = Path(row[column])
            ways = {path, path.relative_to(folder) if path.is_relative_to(folder) else path}
            named = [columns[column][way.as_posix()] for way in ways if way.as_posix() in columns[column]]
            if len(named) != 1:
                both = f", which names '{named[0][0]}' and '{named[1][0]}'; give absolute folders" if named else ""
                raise ValueError(
                    f"{row.place}: {column}: expected an image in '{printable(folder)}', got"
                    f" '{printable(row[column])}'{both}"
                )
            found[column] = named[0]
        pairs.append(Pair(*found["a"], found["b"][1]))
    for folder, images, used in ((a, one.images, {pair.a for pair in pairs}), (b, two.images, {p.b for p in pairs})):
        unused = [name for name, path in images.items() if path not in used]
        if unused:
            notes.append(f"{printable(folder)}: {count_of(len(unused), 'image')} in no pair: {examples(unused)}")
    return Matches(pairs, notes)


def check_images(
    groups: Sequence[Sequence[Path]],
    net: PerceptualDistance,
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
    needs = InputNeeds.of(net)
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
            problems += map(ValueError, input_problems(path, headers[path], needs))
        problems += map(ValueError, size_problems(group, headers) if net.images.resize is None else ())
        report("checking headers", done, total)
    if problems:
        more = f" (and {len(problems) - 1} more file{'s' * (len(problems) > 2)})" if len(problems) > 1 else ""
        raise type(problems[0])(f"{problems[0]}{more}")
    return headers


def input_problems(path: str | Path, header: Header, needs: InputNeeds) -> Iterable[str]:
    """Why a network cannot take an image, by its header."""
    if header.gray and needs.images.gray is None:
        yield f"{printable(path)}: expected a color image, got a gray one; --gray repeats it to three channels"
    if needs.images.resize is None and min(header.size) < needs.smallest_side:
        yield (
            f"{printable(path)}: expected sides of at least {needs.smallest_side} pixels for net {needs.net_type},"
            f" got {header.height}x{header.width}; enlarge all images with --resize, or choose another net"
        )


def size_problems(group: Sequence[_Name], headers: Mapping[_Name, Header]) -> Iterable[str]:
    """Which images of a group differ in size from its first."""
    readable = [path for path in group if path in headers]
    for path in readable[1:]:
        first, other = headers[readable[0]], headers[path]
        if other.size != first.size:
            yield (
                f"{printable(path)}: expected the size of '{printable(readable[0])}', {first.height}x{first.width}"
                f" (height x width), got {other.height}x{other.width}; --resize resizes all images to one size"
            )


def _name_mismatch(
    a: str | Path, b: str | Path, first: Mapping[str, object], second: Mapping[str, object], shared: list[str]
) -> str:
    missing = [name for name in first if name not in second]
    extra = [name for name in second if name not in first]
    parts = [f"{len(missing)} missing ({examples(missing)})"] * bool(missing)
    parts += [f"{len(extra)} unexpected ({examples(extra)})"] * bool(extra)
    remedies = [f"--common compares the {len(shared)} names in both"] * bool(shared)
    if len(first) == len(second):
        remedies.append("--in-order matches the sorted files by position")
    return (
        f"{printable(b)}: expected the same {len(first)} image names as in '{printable(a)}', got {len(second)}: "
        f"{' and '.join(parts)}; {'; '.join(remedies) or 'rename the files'}"
    )


def _by_path(folder: str | Path, found: ImageFolder[Path]) -> dict[str, tuple[str, Path]]:
    """Name and file of every image, by its relative path, with and without suffix, and as tables show it."""
    by_path = {path.relative_to(folder).as_posix(): (name, path) for name, path in found.images.items()}
    by_path |= {name: (name, path) for name, path in found.images.items()}
    return {printable(path): image for path, image in by_path.items()} | by_path


def examples(names: Iterable[str]) -> str:
    """The first names in quotation marks."""
    listed = list(names)
    more = ", ..." if len(listed) > _MAX_EXAMPLES else ""
    return ", ".join(f"'{printable(name)}'" for name in listed[:_MAX_EXAMPLES]) + more
