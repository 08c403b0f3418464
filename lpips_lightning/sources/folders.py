"""Images of a folder on a disk or behind a URL, with the versions of their files."""

from __future__ import annotations

from pathlib import Path

from lpips_lightning.io.image_folders import ImageFolder, list_images, name_images, why_left_out
from lpips_lightning.sources.storage import StoredFile, is_url, list_files, version


def list_stored(folder: str) -> ImageFolder[StoredFile]:
    """List the images below a folder, as `list_images` does; behind a URL the suffix decides what an image is.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If two files have the same name (``a.png`` and ``a.jpg``).
        OSError: If a folder cannot be read.
    """
    if is_url(folder):
        return name_images(
            (relative, file, reason) for file in list_files(folder) for relative, reason in [why_left_out(file.inside)]
        )
    found = list_images(folder)
    images = {name: _stored(name, path) for name, path in found.images.items()}
    return ImageFolder(images, found.left_out)


def _stored(name: str, path: Path) -> StoredFile:
    try:
        return StoredFile(name, str(path), version(str(path)))
    except OSError:  # a broken link, say, which becomes an error of its pair
        return StoredFile(name, str(path), "")
