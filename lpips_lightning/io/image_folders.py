"""Listing folders of images; files that are left out are named and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Generic, TypeVar

from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_formats import image_suffixes, kind_of_suffix, why_no_image

HIDDEN = "hidden"
"""Why a file is left out whose name starts with a dot, and a file of the operating system."""

USUAL_SUFFIXES = ".bmp .jpeg .jpg .png .ppm .tif .tiff .webp"
"""Suffixes of images for an error; those that count are in `image_suffixes`."""

_SYSTEM_FILES = ("desktop.ini", "ehthumbs.db", "thumbs.db")
_MAX_EXAMPLES = 5  # names listed in a sentence
_File = TypeVar("_File")


@dataclass(frozen=True)
class ImageFolder(Generic[_File]):
    """What was found in a folder.

    Attributes:
        images: Image files by name, sorted by path. The name is the path relative to the folder, without an image's
            suffix.
        left_out: Why a file or folder is no image, or is not followed, by relative path.
    """

    images: dict[str, _File]
    left_out: dict[str, str]


def list_images(folder: str | Path) -> ImageFolder[Path]:
    """List the images below a folder.

    Searches recursively and follows links; a link to a folder above itself is left out, and so are hidden files and
    folders. An image has a suffix that Pillow registers, or no known suffix and an image's first bytes.

    Raises:
        FileNotFoundError: If `folder` does not exist.
        ValueError: If two files have the same name (``a.png`` and ``a.jpg``).
        OSError: If a folder cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"folder: expected an existing folder of images, got '{printable(folder)}'")
    return name_images((path.relative_to(root).as_posix(), path, reason) for path, reason in sorted(_walk(root, ())))


def name_images(files: Iterable[tuple[str, _File, str]]) -> ImageFolder[_File]:
    """Name the images among the files of a folder.

    Args:
        files: Relative path with slashes, file, and the reason why it is left out, empty for images.

    Raises:
        ValueError: If two files have the same name (``a.png`` and ``a.jpg``).
    """
    images: dict[str, _File] = {}
    left_out: dict[str, str] = {}
    for relative, file, reason in files:
        if reason:
            left_out[relative] = reason
            continue
        inside = PurePosixPath(relative)
        known = inside.suffix.lower() in image_suffixes()  # else the dot may stand before a number
        name = (inside.with_suffix("") if known else inside).as_posix()
        if name in images:
            raise ValueError(
                f"folder: expected one file per name, got '{printable(images[name])}' and '{printable(file)}'"
            )
        images[name] = file
    return ImageFolder(images, left_out)


def why_left_out(relative: str) -> tuple[str, str]:
    """Why a file that cannot be opened now is no image, by its relative path; empty for an image.

    Returns:
        The path, or that of the hidden folder in which the file is, and the reason.
    """
    parts = relative.split("/")
    for depth, part in enumerate(parts, start=1):
        if part.startswith(".") or part.lower() in _SYSTEM_FILES:
            return "/".join(parts[:depth]), HIDDEN
    kind = kind_of_suffix(PurePosixPath(relative).suffix)
    return relative, "no suffix of an image" if kind is None else kind


def check_any_image(found: ImageFolder[_File], folder: str | Path) -> None:
    """Raise a FileNotFoundError that names what is there instead, if a folder contains no image."""
    if not found.images:
        others = f"; left out: {describe_left_out(found.left_out)}" if found.left_out else ""
        raise FileNotFoundError(
            f"folder: expected images ({USUAL_SUFFIXES} ...), got none in '{printable(folder)}'{others}"
        )


def describe_left_out(left_out: Mapping[str, str]) -> str:
    """The first names with reasons, and the number of others.

    Example:
        >>> describe_left_out({"a.txt": "not an image", ".b": "hidden"})
        "'a.txt' (not an image), 1 hidden file"
    """
    named = [f"'{printable(name)}' ({reason})" for name, reason in left_out.items() if reason != HIDDEN]
    hidden = len(left_out) - len(named)
    parts = named[:_MAX_EXAMPLES]
    parts += [f"{len(named) - _MAX_EXAMPLES} more"] * (len(named) > _MAX_EXAMPLES)
    parts += [f"{count_of(hidden, 'hidden file')}"] * bool(hidden)
    return ", ".join(parts)


def count_of(number: int, noun: str) -> str:
    """`number` and `noun`, in the plural unless `number` is 1."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, str]]:
    """Files below `folder`, with the reason why one is left out; `above` identifies the folders on the way."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        yield folder, "a link to a folder above it"
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
            yield path, HIDDEN
        elif path.is_dir():
            yield from _walk(path, (*above, here))
        else:
            yield path, why_no_image(path)
