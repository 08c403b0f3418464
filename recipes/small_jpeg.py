"""Small JPEG of a figure, for pages."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.figures import DPI

_DPIS, _ENOUGH = (225, 150), 80  # the finer one, if its quality is at least this
_QUALITIES = range(5, 96)


def save_small_jpeg(png: Path, most: int = 150_000) -> Path:
    """Write a figure as JPEG beside its PNG: the best quality with fewer than `most` bytes, at 225 or 150 dpi.

    Args:
        png: PNG of `save_figure`.
        most: Bytes that the file stays below; only a lowest quality may exceed them.

    Returns:
        The JPEG file.
    """
    from PIL import Image

    path = png.with_suffix(".jpg")
    with Image.open(png) as image:
        figure = image.convert("RGB")
    for dpi in _DPIS:
        width, height = (round(side * dpi / DPI) for side in figure.size)
        scaled = figure.resize((width, height), Image.Resampling.LANCZOS)
        quality = _largest_quality(scaled, dpi, most)
        if quality >= _ENOUGH:
            break
    with atomic_write(path) as temporary:
        temporary.write_bytes(_encoded(scaled, dpi, quality))
    return path


def _largest_quality(image: Any, dpi: int, most: int) -> int:
    """By bisection."""
    low, high = _QUALITIES[0], _QUALITIES[-1]
    while low < high:
        middle = (low + high + 1) // 2
        if len(_encoded(image, dpi, middle)) < most:
            low = middle
        else:
            high = middle - 1
    return low


def _encoded(image: Any, dpi: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, dpi=(dpi, dpi), optimize=True, progressive=True)
    return buffer.getvalue()
