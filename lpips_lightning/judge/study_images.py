"""The folder of a study's images: every image that an observer sees, as an 8-bit RGB PNG.

Copies rather than the user's files, so that people see the very pixels that a metric measures (upright, without color
profile, cropped), browsers can show every format, and later changes of the originals don't reach the study.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from torch import Tensor

from lpips_lightning.data.bapps_generate import put_in_place
from lpips_lightning.io.atomic import has_results
from lpips_lightning.io.download import ProgressCallback, no_progress
from lpips_lightning.io.image_decoding import printable
from lpips_lightning.io.image_files import image_size, read_image, write_image
from lpips_lightning.io.image_formats import image_suffixes
from lpips_lightning.io.tables import write_table
from lpips_lightning.judge.records import Design, Image, Item
from lpips_lightning.judge.store import Study

RECORD = "study-images.csv"
"""File in the folder that says where each image comes from; folders with it are not searched for images to judge."""

Window = tuple[int, int, int, int]
"""Top, left, height and width of a crop."""

_LONGEST = 100  # characters of a part of a name


@dataclass(frozen=True)
class Source:
    """An image of the user as a study shows it.

    Attributes:
        path: The file.
        name: Its name in the study's folder, without suffix; slashes separate folders.
        window: What is shown of it; None: all.
    """

    path: Path
    name: str
    window: Window | None = None


class StudyImages:
    """Writes images into the folder of a study and numbers them from 1 in that order.

    Args:
        folder: The folder, which is created.
        report: Progress callback, in images.

    Attributes:
        total: Number of images to come, for `report`; 0 if unknown.
        images: What was written.
    """

    def __init__(self, folder: Path, report: ProgressCallback = no_progress) -> None:
        self.folder, self._report, self.total = folder, report, 0
        self.images: list[Image] = []
        self._rows: list[tuple[str, str, str]] = []
        self._names: set[str] = set()
        self._known: dict[tuple[Path, Window | None], int] = {}
        folder.mkdir(parents=True)

    def add(self, image: Tensor, name: str, source: str = "", how: str = "") -> int:
        """Write an image.

        Args:
            image: Shape ``(3, H, W)``, uint8, or floating in [0, 1].
            name: Name in the folder, without suffix; made unique.
            source: The file that it comes from, for `RECORD`.
            how: What was done to it, for `RECORD`.

        Returns:
            Its number.
        """
        path = f"{self._unique(name)}.png"
        write_image(image, self.folder / path)
        digest = hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
        self.images.append(Image(len(self.images) + 1, path, digest, image.shape[2], image.shape[1]))
        self._rows.append((path, printable(source), how))
        self._report("writing images", len(self.images), max(self.total, len(self.images)))
        return len(self.images)

    def add_source(self, source: Source) -> int:
        """Write what a study shows of a file; once, if it is asked for again."""
        key = (source.path, source.window)
        if key not in self._known:
            image, how = read_image(source.path), ""
            if source.window is not None:
                top, left, height, width = source.window
                image = image[:, top : top + height, left : left + width]
                how = f"{width}x{height} pixels at x {left}, y {top}"
            self._known[key] = self.add(image, source.name, str(source.path), how)
        return self._known[key]

    def read(self, number: int) -> Tensor:
        """A written image, ``(3, H, W)``, uint8."""
        return read_image(self.folder / self.images[number - 1].path)

    def write_record(self) -> None:
        """Write `RECORD`."""
        write_table(self.folder / RECORD, ["image", "source", "how"], self._rows)

    def _unique(self, name: str) -> str:
        """`name` as a path that every file system takes, and that no other image has."""
        first = safe_name(name)
        path, number = first, 2
        while path.casefold() in self._names:
            path, number = f"{first}-{number}", number + 1
        self._names.add(path.casefold())
        return path


def safe_name(name: str) -> str:
    """A name as a relative path without characters that file systems refuse.

    Example:
        >>> safe_name("../my photos/été: 1"), safe_name("/")
        ('my photos/été_ 1', 'image')
    """
    parts = [part for part in printable(name).replace("\\", "/").split("/") if part.strip(". ")]
    kept = ["".join("_" if char in '<>:"|?*' else char for char in part).lstrip(".").strip() for part in parts]
    return "/".join(part[:_LONGEST] for part in kept) or "image"


def source_name(path: PurePath) -> str:
    """Name of an image file without the suffix of an image."""
    return (path.with_suffix("") if path.suffix.lower() in image_suffixes() else path).as_posix()


def shown_window(size: tuple[int, int], largest: int | None, rng: random.Random) -> Window | None:
    """The crop of an image of a height and width: random, at most `largest` pixels a side; None: it is shown whole."""
    height, width = size
    rows, columns = (side if largest is None else min(side, largest) for side in size)
    if (rows, columns) == (height, width):
        return None
    return rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns


def check_same_sizes(
    files: Sequence[Path], place: str = "", size: Callable[[Path], tuple[int, int]] = image_size
) -> tuple[int, int]:
    """Height and width of images.

    Args:
        files: The files.
        place: Line of a table that names them, for the error message.
        size: Reads height and width of a file.

    Raises:
        ValueError: If the sizes differ; the message names the files.
        FileNotFoundError: If a file does not exist.
    """
    first = size(files[0])
    for file in files[1:]:
        if size(file) != first:
            (height, width), (expected_height, expected_width) = size(file), first
            raise ValueError(
                f"{place and place + ': '}{printable(file)}: expected the size of {printable(files[0])},"
                f" {expected_height}x{expected_width} (height x width), got {height}x{width}"
            )
    return first


def is_study_image(file: Path, root: Path) -> bool:
    """Whether a file stands in a study's folder of images below `root`."""
    return any((folder / RECORD).is_file() for folder in file.parents if root in folder.parents)


def images_folder(out: Path, images_out: str | Path | None) -> Path:
    """Folder of the images of a study: `images_out`, or beside its file ``<name>-images``."""
    return out.with_name(f"{out.stem}-images") if images_out is None else Path(images_out).expanduser()


def build_study(
    out: str | Path,
    images_out: str | Path | None,
    design: Design,
    seed: int,
    fill: Callable[[StudyImages], list[Item]],
    report: ProgressCallback = no_progress,
) -> Study:
    """Write the images of a study, then its file; a failure leaves neither.

    Args:
        out: File of the study; must not exist.
        images_out: Folder of its images, new or empty; see `images_folder`.
        design: How the study is conducted.
        seed: Seed of the images' numbers, which tell an observer nothing.
        fill: Writes the images and returns the items, with the numbers that it got for the images.
        report: Progress callback, in images.

    Raises:
        FileExistsError: If the file exists, or the folder is not empty.
    """
    target = Path(out).expanduser()
    folder = images_folder(target, images_out)
    check_new(target, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}-", dir=folder.parent))
    try:
        images = StudyImages(temporary / "made", report)
        items = fill(images)
        images.write_record()
        numbers = list(range(1, len(images.images) + 1))
        random.Random(f"{seed}/numbers").shuffle(numbers)
        put_in_place(images.folder, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    try:
        return Study.create(target, design, folder, *_numbered(images.images, items, numbers))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def check_new(target: Path, folder: Path) -> None:
    """Raise a FileExistsError if the file of a study exists, or the folder for its images has files."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"out: expected a new file, got '{printable(target)}', which exists")
    if folder.exists() and (not folder.is_dir() or has_results(folder)):
        raise FileExistsError(
            f"images_out: expected a new or empty folder, got '{printable(folder)}', which is not empty; another out"
            " has another folder"
        )
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not os.access(above, os.W_OK):
        raise PermissionError(f"images_out: expected a folder to write, got '{printable(above)}'")


def _numbered(images: list[Image], items: list[Item], numbers: list[int]) -> tuple[list[Image], list[Item]]:
    """Images and items with `numbers` in place of the order in which images were written."""
    renamed = [replace(image, id=number) for image, number in zip(images, numbers, strict=True)]
    new = dict(zip((image.id for image in images), numbers, strict=True))
    changed = [
        replace(item, ref=new[item.ref], p0=new[item.p0], p1=None if item.p1 is None else new[item.p1])
        for item in items
    ]
    return sorted(renamed, key=lambda image: image.id), changed
