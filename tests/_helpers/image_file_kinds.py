"""Image files of every kind, for tests: written here byte by byte where Pillow cannot write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

GRAY, RGB, GRAY_ALPHA, RGBA = 0, 2, 4, 6  # PNG's color types


def noise(height=40, width=36, channels=3, high=256):
    """Whole numbers below `high`, ``(height, width, channels)``, as uint8 or uint16."""
    numbers = np.random.default_rng(height * width + channels)
    return numbers.integers(0, high, (height, width, channels), dtype=np.uint8 if high == 256 else np.uint16)


def saved(pixels, kind, mode=None, **options):
    """A file that Pillow writes, from an array or an image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels.squeeze())
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(pixels, color_type, before=b"", after=b""):
    """A PNG of 16 bits a channel, which Pillow does not write; `before` and `after` are chunks around the pixels."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def tiff(pixels, photometric, bits=16, planes=1, order="<", sample_format=None):
    """An uncompressed TIFF of one strip; `planes` 2 stores the channels one after the other."""
    height, width, channels = pixels.shape
    data = pixels.transpose(2, 0, 1) if planes == 2 else pixels
    data = data.astype(f"{order}u{bits // 8}").tobytes()
    tags = {256: width, 257: height, 259: 1, 262: photometric, 277: channels, 278: height, 284: planes}
    tags |= {339: sample_format} if sample_format else {}
    parts = channels if planes == 2 else 1
    after = 8 + 2 + 12 * (len(tags) + 3) + 4
    extra = {258: [bits] * channels}
    extra[273] = [0] * parts
    extra[279] = [len(data) // parts] * parts
    pool, entries, start = b"", {}, after
    for tag, values in extra.items():
        if tag == 273:
            continue
        entries[tag] = (3 if tag == 258 else 4, values)
    sizes = sum(len(values) * (2 if kind == 3 else 4) for kind, values in entries.values()) + 4 * parts
    extra[273] = [after + sizes + index * len(data) // parts for index in range(parts)]
    entries[273] = (4, extra[273])
    for tag, value in tags.items():
        entries[tag] = (4, [value])
    lines = b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", start + len(pool))
            pool += packed
        else:
            place = packed.ljust(4, b"\0")
        lines += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    pool = pool.ljust(sizes, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", 8, len(entries)) + lines + b"\0\0\0\0" + pool + data
