"""Image files -> pixels: upright, every bit of them, or an error that names the file; nothing is guessed.

What has no plain RGB meaning is refused: CMYK, LAB and HSV need a color profile; of 32-bit and float images the
range is unknown; of animations and files of several pages the image. Color profiles are left alone.

Pillow reads the files, but for three things that it does silently: it keeps the upper 8 of 16 bits a channel, it reads
PNGs whose pixels fail their checksum, and it opens whatever format it knows, some of which (EPS) start other programs.
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the file formats that are read."""

_GRAY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "LA")
# Their colors are plain red, green and blue once decoded.
_RGB_LIKE = ("1", "L", "P", "RGB", "RGBX", "YCbCr")
_WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa")
_DEEP_COLORS = {f"{bands};16{order}" for bands in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # where a PNG may say its orientation
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF tags


@dataclass(frozen=True)
class Header:
    """What a file says about its image.

    Attributes:
        height: Of the upright image.
        width: Of the upright image.
        gray: It has no colors.
        alpha: It may be transparent somewhere.
        deep: It has 16 bits a channel.
    """

    height: int
    width: int
    gray: bool
    alpha: bool
    deep: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def read_header(path: str | Path) -> Header:
    """What the beginning of an image file says; the pixels are not decoded.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, or of a kind that is refused.
    """
    try:
        with Path(path).open("rb") as file:
            late = _late_text(file)
            with Image.open(file, formats=FORMATS) as image:
                deep = _check_kind(image)
                width, height = _stored_size(image)
                gray, alpha = image.mode in _GRAY, _has_alpha(image)
                sideways = _orientation(image, late) in (5, 6, 7, 8)
    except Exception as error:  # of a damaged file Pillow raises anything
        raise _unreadable(path, error) from error
    return Header(width if sideways else height, height if sideways else width, gray, alpha, deep)


def read_pixels(path: str | Path) -> Pixels:
    """Decode an image.

    Args:
        path: The file.

    Returns:
        Shape ``(H, W, 3)``, or ``(H, W, 4)`` if it may be transparent; uint8, or uint16 for 16 bits a channel. Gray is
        repeated, palettes are looked up, the EXIF orientation is applied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image, is damaged, or of a kind that is refused.
    """
    try:
        data = Path(path).read_bytes()
        _check_png(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            deep = _check_kind(image)
            halves = _with_lower_halves(image, data) if deep and image.mode in ("RGB", "RGBA") else None
            upright = ImageOps.exif_transpose(image)
            upright.load()
        if halves is not None:
            lower = np.asarray(ImageOps.exif_transpose(halves)).astype(np.uint16)
            upper = np.asarray(upright).astype(np.uint16)
            return upper * np.uint16(256) + lower
        if deep:
            return np.asarray(upright).astype(np.uint16)[:, :, None].repeat(3, 2)
        return np.asarray(upright.convert("RGBA" if _has_alpha(upright) else "RGB"))
    except Exception as error:  # of a damaged file Pillow raises anything
        raise _unreadable(path, error) from error


def printable(path: object) -> str:
    """A path on one line of valid UTF-8: control characters and bytes that are no text are escaped."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _RefusedError(Exception):
    """A sentence's end: what was got, and the way out."""


def _unreadable(path: str | Path, error: Exception) -> Exception:
    """The error to raise instead of Pillow's, which does not always name the file."""
    name = printable(path)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{name}: expected an image file, got no such file")
    if isinstance(error, _RefusedError):
        return ValueError(f"{name}: expected {error}")
    if isinstance(error, IsADirectoryError):
        said = "a folder"
    elif isinstance(error, UnidentifiedImageError):
        empty = Path(path).is_file() and not Path(path).stat().st_size
        said = "an empty file" if empty else f"UnidentifiedImageError: none of {', '.join(FORMATS)}"
    else:
        said = f"{type(error).__name__}: {printable(error)}"
    return ValueError(f"{name}: expected a readable image, got {said}")


def _check_kind(image: Image.Image) -> bool:
    """Refuse what cannot be read as it was meant; whether the image has 16 bits a channel."""
    # The second image of a camera's MPO is a preview.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise _RefusedError(f"one image, got {getattr(image, 'n_frames', 'several')} frames; write each to a file")
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    raw, *rest = (args,) if isinstance(args, str) else args
    tags: Any = getattr(image, "tag_v2", {})
    deep_gray = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    deep = deep_gray or raw in _DEEP_COLORS
    known = image.mode in _RGB_LIKE or image.mode in _WITH_ALPHA
    odd = (
        raw in ("LA;16B", "I;12")
        or (known and not deep and max(tags.get(_BITS, (8,))) > 8)
        or (image.format == "PPM" and image.mode == "RGB" and bool(rest) and rest[0] > 255)
        or (deep_gray and tags.get(_PHOTOMETRIC) == 0)
        or (deep and not deep_gray and tags.get(_PLANES) == 2)
        or (deep and "transparency" in image.info)
    )
    if odd:
        raise _RefusedError("8 bits a channel, or 16 as PNG, got another layout; convert it to PNG first")
    if not deep and not known:
        raise _RefusedError(f"an RGB, gray, palette or 16-bit image, got mode {image.mode}; convert it to RGB first")
    return deep


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _with_lower_halves(image: Image.Image, data: bytes) -> Image.Image:
    """The same file read in the other byte order: where Pillow keeps the upper 8 bits of 16, it now keeps the lower."""
    clone: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    tiles = []
    for tile in clone.tile:
        args = tile[3]
        raw = args if isinstance(args, str) else args[0]
        swapped = raw[:-1] + other[raw[-1]]
        new = swapped if isinstance(args, str) else (swapped, *args[1:])
        tiles.append(tile._replace(args=new) if hasattr(tile, "_replace") else (*tile[:3], new))
    clone.tile = tiles
    return clone


def _stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height before the orientation is applied."""
    tags: Any = getattr(image, "tag_v2", None)
    return image.size if tags is None else (tags[256], tags[257])  # of a TIFF, Pillow's size may be the upright one


def _orientation(image: Image.Image, late: bool) -> int:
    # A PNG's own getexif decodes the whole image, lest the orientation comes after it.
    exif = Image.Image.getexif(image) if image.format == "PNG" and not late else image.getexif()
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _late_text(file: BinaryIO) -> bool:
    """Whether a PNG has chunks after its pixels that may say an orientation; `file` is at its beginning again."""
    late = seen = False
    if file.read(len(_PNG)) == _PNG:
        for kind, _, _ in _chunks(file):
            seen = seen or kind == b"IDAT"
            late = late or (seen and kind in _TEXT)
    file.seek(0)
    return late


def _check_png(data: bytes) -> None:
    """Refuse a PNG that is cut off, or whose pixels fail their checksum."""
    if not data.startswith(_PNG):
        return
    kind = b""
    for kind, start, length in _chunks(io.BytesIO(data)):
        counts = kind[:1].isupper() or kind == b"tRNS"
        if counts and zlib.crc32(data[start - 4 : start + length]) != struct.unpack_from(">I", data, start + length)[0]:
            raise _RefusedError(f"a readable image, got a PNG whose {kind.decode('latin-1')} fails its checksum")
    if kind != b"IEND":
        raise _RefusedError("a readable image, got a PNG that is cut off")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and length of a PNG's whole chunks, up to its end."""
    end = file.seek(0, io.SEEK_END)
    at = len(_PNG)
    while at + 12 <= end:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if at + 12 + length > end:
            return
        yield kind, at + 8, length
        if kind == b"IEND":
            return
        at += 12 + length
