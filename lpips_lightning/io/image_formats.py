"""Which files are images: by suffix, by content if the suffix is unknown, and what the others are called."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin, features

COMMON_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats listed in an error, by Pillow's names."""

# Formats with an unmistakable first line; of the others, a file must also have the suffix.
_BY_CONTENT = (
    *COMMON_FORMATS,
    *("AVIF", "BLP", "DCX", "DDS", "FTEX", "GBR", "ICNS", "JPEG2000", "MSP", "PIXAR", "PSD", "QOI", "SUN", "XPM"),
)
_BY_SUFFIX = ("DIB", "FLI", "ICO", "IM", "PCX", "SGI", "TGA", "XBM")
FORMATS = (*_BY_CONTENT, *_BY_SUFFIX)
"""Supported file formats, by Pillow's names; Pillow must have been built with their decoders."""

VIDEO = "a video"
"""What `why_no_image` calls a video."""

_ALIASES = {"MPO": "JPEG"}  # Pillow opens MPO files with its JPEG reader
_ALWAYS = (".avif", ".avifs", ".pfm")  # images, also where this Pillow cannot decode them
_OPENEXR, _RADIANCE = "OpenEXR, high dynamic range", "Radiance HDR, high dynamic range"
_OTHER_KINDS = {
    "a camera's raw file": ".3fr .arw .cr2 .cr3 .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .rw2 .sr2 .srw .x3f",
    "a cursor": ".cur",
    "a document": ".ai .djvu .doc .docx .eps .pdf .ps .pptx .xcf",
    VIDEO: ".264 .265 .3gp .avi .flv .h264 .hevc .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv .y4m",
    "an array": ".h5 .hdf .hdf5 .mat .npy .npz .pt .pth .safetensors",
    "FITS": ".fit .fits",
    "HEIC": ".heic .heics .heif .heifs .hif",
    "JPEG XL": ".jxl",
    "vector graphics": ".emf .svg .svgz .wmf",
    _OPENEXR: ".exr",
    _RADIANCE: ".hdr .rgbe .xyze",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _OTHER_KINDS.items() for suffix in suffixes.split()}
_KIND_OF_START = {
    b"\x76\x2f\x31\x01": _OPENEXR,
    b"#?RADIANCE": _RADIANCE,
    b"#?RGBE": _RADIANCE,
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"%PDF": "a PDF document",
    b"\x93NUMPY": "a NumPy array",
    b"\x1aE\xdf\xa3": VIDEO,
}
_KIND_OF_BRAND = {"avif": "AVIF", "avis": "AVIF", "heic": "HEIC", "heix": "HEIC", "mif1": "HEIC", "msf1": "HEIC"}
_NO_RANGE = "values on no fixed range"
_CONVERT = "convert it to PNG with 8 or 16 bits per channel"
_ARRAYS = f"{_CONVERT}, or compare arrays in Python with data_range="
_WAYS_OUT = {"AVIF": f"which needs pillow>=11.3 with libavif; {_CONVERT}"}
_WAYS_OUT |= {VIDEO: "which is compared with another video, or as a folder of frames"}
_HDR = f"{_NO_RANGE}; {_CONVERT}, or compare tensors in Python, encoded by lpips_lightning.images.pu21_encode"
_WAYS_OUT |= {_OPENEXR: _HDR, _RADIANCE: _HDR}
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF tags


@cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of image files, in lower case with the dot."""
    formats = Image.registered_extensions().items()  # imports all of Pillow's plugins
    return frozenset([*_ALWAYS, *(suffix for suffix, form in formats if _ALIASES.get(form, form) in FORMATS)])


def formats_of(path: str | Path) -> list[str]:
    """Formats to try on a file: those with an unmistakable first line, and that of the suffix."""
    form = Image.registered_extensions().get(Path(path).suffix.lower())
    return [one for one in (*_BY_CONTENT, *[form] * (form in _BY_SUFFIX)) if one is not None and one in Image.OPEN]


def why_no_image(path: Path) -> str:
    """What a file is instead of an image; empty for an image.

    An image has a suffix that Pillow registers for one of `FORMATS`. Of a file with an unknown suffix, or without one,
    the first bytes decide.

    Raises:
        OSError: If the suffix is unknown and the file cannot be opened.
    """
    kind = kind_of_suffix(path.suffix)
    if kind:
        return kind
    if kind is not None:
        return "" if path.is_file() or not path.exists() else "not a regular file"
    if not path.is_file():
        return "not a regular file" if path.exists() else "a broken link"
    return "" if _opens(path) else "not an image"


def kind_of_suffix(suffix: str) -> str | None:
    """What a file with this suffix is instead of an image; empty for an image, None if the suffix is unknown."""
    suffix = suffix.lower()
    return _KIND_OF_SUFFIX.get(suffix, "" if suffix in image_suffixes() else None)


def is_video(path: str | Path) -> bool:
    """Whether a path has the suffix of a video."""
    return _KIND_OF_SUFFIX.get(Path(path).suffix.lower()) == VIDEO


def describe_unreadable(path: str | Path) -> str:
    """What a file is that Pillow cannot open, and a way out; empty if nothing is known."""
    file = Path(path)
    if not file.is_file():
        return ""
    if not file.stat().st_size:
        return "an empty file"
    with file.open("rb") as opened:
        start = opened.read(16)
        if start[:4] in (b"II*\0", b"MM\0*"):
            return _describe_tiff(opened)
    if start[:2] in (b"PF", b"Pf") and start[2:3].isspace():
        return _describe_samples("PFM", 32, 3)
    kind = next((kind for magic, kind in _KIND_OF_START.items() if start.startswith(magic)), "")
    if start[4:8] == b"ftyp":
        kind = _KIND_OF_BRAND.get(start[8:12].decode("latin-1"), VIDEO)
    if kind == "AVIF" and "AVIF" in Image.OPEN and features.check("avif"):
        return "a damaged AVIF"
    return f"{kind}, {_WAYS_OUT.get(kind, _CONVERT)}" if kind else ""


def describe_values(image: Image.Image) -> str:
    """What an image of 32-bit integers or floats is, and a way out; empty for other images."""
    if image.mode not in ("F", "I"):
        return ""
    form = "PFM" if image.mode == "F" and image.format == "PPM" else image.format
    tags: Any = getattr(image, "tag_v2", {})
    bits, kind = max(tags.get(_BITS, (32,))), max(tags.get(_SAMPLE_FORMAT, (3 if image.mode == "F" else 1,)))
    return _describe_samples(f"{form}", bits, kind)


def has_hidden_depth(file: BinaryIO, form: str | None, deep: bool) -> bool:
    """Whether Pillow would silently decode a file at another depth than it has: AVIF and JPEG 2000.

    Args:
        file: The file; rewound.
        form: Its format.
        deep: Whether Pillow decodes it to 16 bits.
    """
    if form not in ("AVIF", "JPEG2000"):
        return False
    place = file.tell()
    file.seek(0)
    start = file.read(1 << 22)
    file.seek(place)
    if form == "AVIF":
        config = start.find(b"av1C")  # its third byte: tier, high bit depth, twelve bits, ...
        return config >= 0 and len(start) > config + 6 and bool(start[config + 6] & 0x40)
    codestream = start.find(b"\xff\x4f\xff\x51")
    counted = start[codestream + 40 : codestream + 42]
    if codestream < 0 or len(counted) < 2:
        return False
    channels = struct.unpack(">H", counted)[0]
    depths = set(start[codestream + 42 : codestream + 42 + 3 * channels : 3])  # bits - 1; the sign is bit 7
    return depths != {15 if deep else 7}


def _opens(path: Path) -> bool:
    try:
        with path.open("rb") as file, Image.open(file, formats=formats_of(path)):
            return True
    except PermissionError:
        raise
    except Exception:  # Pillow raises many exception types on files that are no images
        return False


def _describe_tiff(file: BinaryIO) -> str:
    """What a TIFF is that Pillow cannot open, from its tags."""
    try:
        file.seek(0)
        tags: Any = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, kind = max(tags.get(_BITS, (1,))), max(tags.get(_SAMPLE_FORMAT, (1,)))
    except Exception:  # a damaged file
        return ""
    return _describe_samples("TIFF", bits, kind) if kind != 1 or bits > 16 else ""


def _describe_samples(form: str, bits: int, kind: int) -> str:
    sort = {1: "integer", 2: "signed integer", 3: "float"}.get(kind, "complex")
    article = "an" if sort == "integer" else "a"
    return f"{article} {sort} {form} ({bits}-bit, {_NO_RANGE}); {_ARRAYS}"
