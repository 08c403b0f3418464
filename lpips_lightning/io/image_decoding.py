"""Exact image decoding: upright pixels at full bit depth, or an error that names the file.

Rejects ambiguous files: CMYK, LAB and HSV (need a color profile), 32-bit and float images (unknown range), animations,
multi-page files and icons of several sizes (several images). A JPEG with a preview gives the large image, a PSD the
merged one. Ignores embedded color profiles.

Decodes with Pillow, but prevents three silent behaviors: truncating more than 8 bits per channel to 8, reading PNGs
whose checksum fails, and opening formats that start other programs (EPS).
"""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from lpips_lightning.io.image_formats import (
    COMMON_FORMATS,
    describe_unreadable,
    describe_values,
    formats_of,
    has_hidden_depth,
)
from lpips_lightning.io.streams import is_stream, read_bytes

Pixels: TypeAlias = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_GRAY = ("1", "L", "I", "I;16", "I;16B", "I;16L", "LA")
# Modes that Pillow converts to RGB without a color profile.
_RGB_LIKE = ("1", "L", "P", "RGB", "RGBX", "YCbCr")
_WITH_ALPHA = ("LA", "PA", "RGBA", "RGBa")
_DEEP_COLORS = {f"{bands};16{order}" for bands in ("RGB", "RGBA", "RGBX") for order in "LBN"}
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # PNG chunks that may hold the orientation
_OTHER_DEPTH = "8 bits per channel, or 16 as PNG, got another layout; convert it to PNG first"
_BITS, _PHOTOMETRIC, _PLANES = 258, 262, 284  # TIFF tags


@dataclass(frozen=True)
class Header:
    """Properties of an image, from the file header.

    Attributes:
        height: Height of the upright image, in pixels.
        width: Width of the upright image, in pixels.
        gray: Whether the image has no color channels.
        alpha: Whether the image may have transparent pixels.
        deep: Whether the image has 16 bits per channel.
        content: The bytes of an image that came from a stream, which can be read only once; None for a file.
    """

    height: int
    width: int
    gray: bool
    alpha: bool
    deep: bool
    content: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def read_header(path: str | Path, content: bytes | None = None) -> Header:
    """Read the header of an image file without decoding pixels.

    Args:
        path: The file, or a stream such as a pipe, which is read to its end.
        content: Its bytes, if they have been read; then `path` is only named in errors.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image, or is not supported.
    """
    given = content is not None
    try:
        content = read_bytes(path) if not given and is_stream(path) else content
        if content == b"":
            raise _RefusedError(f"a readable image, got an empty {'file' if given else 'stream'}")
        with Path(path).open("rb") if content is None else io.BytesIO(content) as file:
            late = _has_late_metadata(file)
            with Image.open(file, formats=formats_of(path)) as image:
                deep = _check_kind(image, path)
                _check_depth(file, image, deep)
                width, height = _stored_size(image)
                gray, alpha = image.mode in _GRAY, _has_alpha(image)
                sideways = _orientation(image, late) in (5, 6, 7, 8)
    except Exception as error:  # Pillow raises many exception types on damaged files
        raise _unreadable(path, error) from error
    size = (width, height) if sideways else (height, width)
    return Header(*size, gray, alpha, deep, None if given else content)


def read_pixels(path: str | Path, content: bytes | None = None) -> Pixels:
    """Decode an image.

    Args:
        path: The file or stream.
        content: Its bytes, if they have been read; then `path` is only named in errors.

    Returns:
        Shape ``(H, W, 3)``, or ``(H, W, 4)`` with an alpha channel; uint8, or uint16 for 16 bits per channel. Gray is
        repeated to three channels, palettes are resolved, the EXIF orientation is applied.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image, is damaged, or is not supported.
    """
    try:
        data = read_bytes(path) if content is None else content
        _check_png(data)
        with Image.open(io.BytesIO(data), formats=formats_of(path)) as image:
            deep = _check_kind(image, path)
            _check_depth(io.BytesIO(data), image, deep)
            low_bytes = _decode_low_bytes(image, data, path) if deep and image.mode in ("RGB", "RGBA") else None
            upright = ImageOps.exif_transpose(image)
            upright.load()
        if low_bytes is not None:
            lower = np.asarray(ImageOps.exif_transpose(low_bytes)).astype(np.uint16)
            upper = np.asarray(upright).astype(np.uint16)
            return upper * np.uint16(256) + lower
        if deep:
            return np.asarray(upright).astype(np.uint16)[:, :, None].repeat(3, 2)
        mode = "RGBA" if _has_alpha(upright) else "RGB"
        return np.asarray(upright if upright.mode == mode else upright.convert(mode))  # which copies large images
    except Exception as error:  # Pillow raises many exception types on damaged files
        raise _unreadable(path, error) from error


def decoded_image(image: Image.Image, name: str) -> tuple[Header, Pixels]:
    """Header and pixels of an image that Pillow has opened, as `read_header` and `read_pixels` return those of a file.

    Args:
        image: The image.
        name: What errors call it.

    Raises:
        ValueError: If the image is damaged or not supported, or its file has 16 bits per channel, which Pillow rounds.
    """
    try:
        deep = _check_kind(image, name)
        if deep and image.mode in ("RGB", "RGBA"):
            raise _RefusedError("8 bits per channel, got a file with 16, which Pillow rounds; give its path instead")
        upright = ImageOps.exif_transpose(image)
        gray, alpha = image.mode in _GRAY, _has_alpha(upright)
        pixels: Pixels = np.asarray(upright if deep else upright.convert("RGBA" if alpha else "RGB"))
        if deep:
            pixels = pixels.astype(np.uint16)[:, :, None].repeat(3, 2)
        return Header(upright.height, upright.width, gray, alpha, deep), pixels
    except Exception as error:  # Pillow raises many exception types on damaged files
        raise _unreadable(name, error) from error


def printable(path: object) -> str:
    """`path` as one line of valid UTF-8; control characters and undecodable bytes are escaped."""
    text = str(path)
    if text.isprintable():  # nearly always, and a large table has millions
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _RefusedError(Exception):
    """An unsupported image; the message continues ``"<file>: expected "``."""


def _unreadable(path: str | Path, error: Exception) -> Exception:
    """Convert Pillow's error, which may not name the file, to one that does."""
    name = printable(path)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{name}: expected an image file, got no such file")
    if isinstance(error, _RefusedError):
        return ValueError(f"{name}: expected {error}")
    if isinstance(error, IsADirectoryError):
        found = "a folder"
    elif isinstance(error, UnidentifiedImageError):
        rare = "or a rarer format that Pillow reads"
        found = describe_unreadable(path) or f"UnidentifiedImageError: none of {', '.join(COMMON_FORMATS)}, {rare}"
    else:
        found = f"{type(error).__name__}: {printable(error)}"
    return ValueError(f"{name}: expected a readable image, got {found}")


def _check_single(image: Image.Image, path: str | Path) -> None:
    """Raise if the file holds several images."""
    # An MPO file from a camera is a JPEG with a preview as its second frame, unless its suffix says that it is stereo;
    # the frames of a PSD are its layers, and Pillow reads the merged image.
    composite = image.format == "PSD" or (image.format == "MPO" and Path(path).suffix.lower() != ".mpo")
    if not composite and getattr(image, "is_animated", False):
        raise _RefusedError(
            f"one image, got {getattr(image, 'n_frames', 'several')} frames; save each frame to its own file, and"
            " compare the folders"
        )
    if image.format in ("ICO", "ICNS") and len(image.info.get("sizes", ())) > 1:
        raise _RefusedError(
            f"one image, got an icon of {len(image.info['sizes'])} sizes; save the one to compare to its own file"
        )


def _check_depth(file: BinaryIO, image: Image.Image, deep: bool) -> None:
    """Raise if Pillow would round the channels of the image."""
    tile: Any = getattr(image, "tile", None) or [("",)]
    bc6 = tile[0][0] == "bcn" and tile[0][3][0] == 6  # floats in a DDS
    if tile[0][0] == "SGI16" or bc6 or has_hidden_depth(file, image.format, deep):
        raise _RefusedError(_OTHER_DEPTH)


def _check_kind(image: Image.Image, path: str | Path) -> bool:
    """Raise if the image cannot be decoded exactly; return whether it has 16 bits per channel."""
    _check_single(image, path)
    tiles: Any = getattr(image, "tile", None)
    args = (tiles[0][3] if tiles else None) or ""
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
        raise _RefusedError(_OTHER_DEPTH)
    if not deep and not known:
        found = describe_values(image) or f"mode {image.mode}; convert it to RGB first"
        raise _RefusedError(f"an RGB, gray, palette or 16-bit image, got {found}")
    return deep


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _decode_low_bytes(image: Image.Image, data: bytes, path: str | Path) -> Image.Image:
    """The low bytes of 16-bit channels: Pillow keeps the high byte, so decode with the byte order swapped."""
    clone: Any = Image.open(io.BytesIO(data), formats=formats_of(path))
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
    # For TIFF, Pillow's size may already be the upright one.
    return image.size if tags is None else (tags[256], tags[257])


def _orientation(image: Image.Image, late: bool) -> int:
    # Pillow's getexif for PNG decodes the whole image, in case the orientation follows the pixels.
    exif = Image.Image.getexif(image) if image.format == "PNG" and not late else image.getexif()
    return int(exif.get(ExifTags.Base.Orientation, 1))


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG has metadata chunks after the pixels, which may hold the orientation; rewinds `file`."""
    late = seen = False
    if file.read(len(_PNG)) == _PNG:
        for kind, _, _ in _chunks(file):
            seen = seen or kind == b"IDAT"
            late = late or (seen and kind in _TEXT)
    file.seek(0)
    return late


def _check_png(data: bytes) -> None:
    """Raise if a PNG is truncated or a critical chunk fails its checksum."""
    if not data.startswith(_PNG):
        return
    kind = b""
    for kind, start, length in _chunks(io.BytesIO(data)):
        critical = kind[:1].isupper() or kind == b"tRNS"
        if (
            critical
            and zlib.crc32(data[start - 4 : start + length]) != struct.unpack_from(">I", data, start + length)[0]
        ):
            raise _RefusedError(f"a readable image, got a PNG whose {kind.decode('latin-1')} fails its checksum")
    if kind != b"IEND":
        raise _RefusedError("a readable image, got a truncated PNG")


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, data offset and length of a PNG's complete chunks, up to IEND."""
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
