"""What a browser gets of an image file, so that people see the pixels that the metric reads.

A file goes out byte for byte if a browser shows its pixels as `read_image` reads them: PNG, JPEG, WebP and GIF of 8
bits, upright, opaque, without a color profile. Every other one is sent as a PNG of what `read_image` returns. Browsers
apply embedded color profiles (also PNG's gamma), which `read_image` ignores: with them, people would see differences
between files with and without a profile that no metric sees.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags
from PIL import Image as PillowImage

from lpips_lightning.judge.records import Image
from lpips_lightning.judge.store import Study

_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}
_OPAQUE = ("1", "L", "P", "RGB")
# Chunks that change how a browser shows a PNG; a chance hit in the pixels only costs a conversion.
_PNG_CHUNKS = (b"iCCP", b"gAMA", b"cHRM", b"cICP", b"tRNS", b"eXIf", b"acTL")


class ChangedImageError(ValueError):
    """The file of an image is missing, or differs from the one that the study was made with."""


@dataclass(frozen=True)
class Shown:
    """What is sent: the bytes, and their type."""

    content: bytes
    media_type: str


class ShownImages:
    """The images of a study as a browser gets them; several threads may ask.

    Args:
        study: The study.
        cache_bytes: Bytes of converted images that are kept.
    """

    def __init__(self, study: Study, cache_bytes: int = 1 << 27) -> None:
        self._folder, self._images, self._size = study.folder, study.images(), cache_bytes
        self._lock, self._cache = threading.Lock(), OrderedDict[str, bytes]()
        self._types: dict[str, str] = {}

    def get(self, number: int) -> Shown | None:
        """The image with a number; None if there is none.

        Raises:
            ChangedImageError: If its file is missing or changed.
        """
        image = self._images.get(number)
        if image is None:
            return None
        path, data = self._read(image)
        if image.sha256 not in self._types:
            self._types[image.sha256] = _shown_as_read(data)
        if media_type := self._types[image.sha256]:
            return Shown(data, media_type)
        with self._lock:
            found = self._cache.get(image.sha256)
        return Shown(found or self._keep(image.sha256, as_png(path, data)), "image/png")

    def digest(self, number: int) -> str | None:
        """Digest of the file of an image, or None."""
        image = self._images.get(number)
        return None if image is None else image.sha256

    def check(self) -> None:
        """Read all files once.

        Raises:
            ChangedImageError: If one is missing or changed.
        """
        for image in self._images.values():
            self._read(image)

    def _read(self, image: Image) -> tuple[Path, bytes]:
        path = self._folder / image.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ChangedImageError(
                f"image {image.id}: expected the file '{path}', got {error.strerror or error}; put it back"
            ) from error
        if hashlib.sha256(data).hexdigest() != image.sha256:
            raise ChangedImageError(
                f"image {image.id}: expected '{path}' as it was when the study was made, got a changed file; put the"
                " original back, or make a new study"
            )
        return path, data

    def _keep(self, digest: str, data: bytes) -> bytes:
        with self._lock:
            self._cache[digest] = data
            while sum(map(len, self._cache.values())) > self._size:
                self._cache.popitem(last=False)
        return data


def as_png(path: Path, data: bytes) -> bytes:
    """An image file as a PNG of the pixels that `read_image` returns.

    Raises:
        ValueError: If the image is damaged or not supported.
    """
    from lpips_lightning.io.image_files import read_image  # imports torch, which most studies do not need here

    pixels = read_image(path, content=data).permute(1, 2, 0).numpy()
    content = io.BytesIO()
    PillowImage.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _shown_as_read(data: bytes) -> str:
    """The media type of a file whose pixels a browser shows as `read_image` reads them; empty for others."""
    try:
        with PillowImage.open(io.BytesIO(data), formats=[*_TYPES]) as image:
            kind, info = str(image.format), image.info
            plain = (
                image.mode in _OPAQUE
                and not info.keys() & {"icc_profile", "transparency", "background_alpha"}
                and not getattr(image, "is_animated", False)
                and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
            )
    except (OSError, ValueError, SyntaxError):  # of another format
        return ""
    if kind == "PNG":
        plain = plain and data[24:25] != b"\x10" and not any(name in data for name in _PNG_CHUNKS)
    return _TYPES.get(kind, "") if plain else ""
