"""The source of a run, chosen by its paths: folders, a list, or tar shards, on disks or behind URLs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lpips_lightning.comparison.file_pairs import left_out_note, match_images, match_listed
from lpips_lightning.comparison.measure import default_batch_size
from lpips_lightning.io.image_decoding import printable, read_header
from lpips_lightning.io.image_folders import ImageFolder, check_any_image
from lpips_lightning.sources import storage
from lpips_lightning.sources.base import PairSource, unit_size
from lpips_lightning.sources.folders import list_stored
from lpips_lightning.sources.listed import ListedPairs
from lpips_lightning.sources.lists import first_pairs, open_list
from lpips_lightning.sources.names import LIST_SUFFIXES, is_list, is_shards
from lpips_lightning.sources.shards import ShardPairs
from lpips_lightning.sources.storage import StoredFile, is_url, shown

_LOOKED_AT = 64  # pairs of which none may be readable


def open_source(
    paths: Sequence[str],
    *,
    batch_size: int | None = None,
    common: bool = False,
    in_order: bool = False,
    columns: tuple[str, str] | None = None,
    folder: str | None = None,
) -> tuple[PairSource, list[str]]:
    """Open the pairs that paths name.

    Args:
        paths: Two folders; two folders and a CSV with pairs of their images (local only); one CSV or Parquet list; or
            tar shards, with both images or of the first and of the second ones. Paths or URLs.
        batch_size: Pairs per batch; None: that of the first pair's size.
        common: Skip images that only one of two folders has.
        in_order: Match the sorted files of two folders by position instead of by name.
        columns: Columns of a list with the first and the second images; None: ``a`` and ``b``.
        folder: Folder that relative paths of a list start from; None: that of the list.

    Returns:
        The pairs, and notes on files that are in no pair.

    Raises:
        FileNotFoundError: If something does not exist, or contains no image.
        ValueError: If the paths do not go together, with each other or with an option.
        OSError: If something cannot be read.
    """
    matching = {"common": common, "in-order": in_order}
    listing = {"columns": columns is not None, "folder": folder is not None}
    if any(map(is_shards, paths)):
        _refuse({**matching, **listing}, "with tar shards")
        return _shards(paths), []
    if len(paths) == 1 and is_list(paths[0]):
        _refuse(matching, "with a list")
        chosen = columns or ("a", "b")
        batch = batch_size or first_batch(first_pairs(paths[0], chosen, folder))
        return open_list(paths[0], batch, chosen, folder), []
    _refuse(listing, "with folders")
    if len(paths) == 3:
        _refuse(matching, "with a list")
        return _listed(paths, batch_size)
    _check_two_folders(paths)
    return _folders(paths[0], paths[1], batch_size, common, in_order)


def first_batch(pairs: Iterable[tuple[str, str]]) -> int:
    """Pairs per batch for the size of the first pair that can be read, of at most 64; else 1."""
    for number, pair in enumerate(pairs):
        if number == _LOOKED_AT:
            break
        try:
            a, b = (read_header(shown(place), storage.read(place)) for place in pair)
        except (ValueError, OSError):
            continue
        return default_batch_size(a, b)
    return 1


def _refuse(options: dict[str, bool], where: str) -> None:
    for name, given in options.items():
        if given:
            raise ValueError(f"{name}: expected no --{name} {where}, got it; leave it out")


def _shards(paths: Sequence[str]) -> PairSource:
    if len(paths) > 2 or not all(map(is_shards, paths)):
        raise ValueError(
            f"paths: expected shards with both images, or shards of the first and of the second ones, got"
            f" {_names(paths)}; patterns such as 'pairs-{{000..099}}.tar' name several"
        )
    return ShardPairs(paths[0], paths[1] if len(paths) == 2 else None)


def _listed(paths: Sequence[str], batch_size: int | None) -> tuple[PairSource, list[str]]:
    tables = [path for path in paths if is_list(path) or not (is_url(path) or Path(path).is_dir())]
    if len(tables) != 1 or any(map(is_url, paths)):
        raise ValueError(
            f"paths: expected two local folders and a CSV, got {_names(paths)}; a CSV list of paths or URLs"
            " goes alone, without folders"
        )
    a, b = (path for path in paths if path not in tables)
    matches = match_listed(a, b, tables[0])
    pairs = [(_local(pair.a), _local(pair.b)) for pair in matches.pairs]
    return _source(pairs, batch_size, "listed"), matches.notes


def _local(path: Path) -> StoredFile:
    return StoredFile(path.name, str(path), storage.version(str(path)))


def _check_two_folders(paths: Sequence[str]) -> None:
    files = [path for path in paths if is_list(path) or (not is_url(path) and Path(path).is_file())]
    if len(paths) != 2 or files:
        raise ValueError(
            f"paths: expected two folders, one list ({', '.join(LIST_SUFFIXES)}) or tar shards, got {_names(paths)};"
            " zip://::x.zip names what is in an archive"
        )


def _folders(a: str, b: str, batch_size: int | None, common: bool, in_order: bool) -> tuple[PairSource, list[str]]:
    notes: list[str] = []
    images = []
    for folder in (a, b):
        found = _images_of(folder)
        notes += left_out_note(shown(folder), found.left_out)
        images.append(found.images)
    first, second = images
    matched, notes = match_images((shown(a), shown(b)), (first, second), notes, common=common, in_order=in_order)
    return _source([(one, two) for _, one, two in matched], batch_size, "folders"), notes


def _images_of(folder: str) -> ImageFolder[StoredFile]:
    """The images of a folder, whose name begins the messages: there is an option of the name ``folder``."""
    if not is_url(folder) and not Path(folder).exists():
        raise FileNotFoundError(f"{printable(folder)}: expected a folder, got no such file")
    try:
        found = list_stored(folder)
        check_any_image(found, shown(folder))
    except (ValueError, FileNotFoundError) as error:
        message = str(error)
        named = f"{printable(shown(folder))}: {message.removeprefix('folder: ')}"
        raise type(error)(named if message.startswith("folder: ") else message) from None
    return found


def _source(pairs: Sequence[tuple[StoredFile, StoredFile]], batch_size: int | None, title: str) -> PairSource:
    names = [(one.place, two.place) for one, two in pairs]
    unit = unit_size(len(names), batch_size or first_batch(names))
    return ListedPairs(names, unit, title, [f"{one.version} {two.version}" for one, two in pairs])


def _names(paths: Sequence[str]) -> str:
    return ", ".join(f"'{printable(shown(path))}'" for path in paths)
