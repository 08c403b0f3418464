"""Contact sheet of the 20 distortions at increasing strength."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lpips_lightning.data.distortions import DISTORTIONS, distort
from lpips_lightning.io.atomic import atomic_write
from lpips_lightning.io.image_files import find_images, read_image, resize_image
from lpips_lightning.io.streams import is_stream

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)

_PATCH, SHOWN = 64, 144  # distortion parameters are in pixels of 64-pixel patches; each is drawn enlarged
_GAP, _MARGIN, _LABEL, _HEADER, _BLOCK_GAP = 6, 28, 124, 72, 34
_CELL = SHOWN + _GAP
_BLOCK = _LABEL + _CELL * (1 + len(STRENGTHS))  # width of one of the two blocks
_ROWS = -(-len(DISTORTIONS) // 2)
_INK, _FAINT, _PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"


def write_sheet(images: str | Path, out: str | Path, seed: int = 0) -> Path:
    """Draw a contact sheet: one row per distortion, from the original patch to full strength, in two blocks of ten.

    All strengths in a row use the same seed, so that only the strength varies.

    Args:
        images: A photograph, or a folder whose photographs alternate from row to row.
        out: Output PNG, or a stream.
        seed: Random seed of directions, signs and noise.

    Returns:
        Path of `out`.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If an image cannot be read, or `out` does not end in ``.png``.
    """
    out = Path(out)
    if out.suffix.lower() != ".png" and not is_stream(out):
        raise ValueError(f"out: expected a path that ends in .png, got '{out}'")
    files = list(find_images(images).values()) if Path(images).is_dir() else [Path(images)]
    names = list(DISTORTIONS)
    size = (2 * _MARGIN + 2 * _BLOCK + _BLOCK_GAP - _GAP, _MARGIN + _HEADER + _ROWS * _CELL + _MARGIN - _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write_headings(draw, [_MARGIN + half * (_BLOCK + _BLOCK_GAP) for half in range(2)])
    for index, name in enumerate(names):
        left, top = corner(index)
        position, label = (left - 14, top + SHOWN // 2), name.replace("_", "\n")
        draw.multiline_text(position, label, fill=_INK, font=_font(17), anchor="rm", align="right")
        patch = resize_image(read_image(files[index % len(files)]), _PATCH)
        for column, image in enumerate(_at_strengths(patch, name, seed)):
            sheet.paste(_enlarged(image), corner(index, column))
    with atomic_write(out) as temporary:
        sheet.save(temporary, format="PNG")
    return out


def corner(index: int, column: int = 0) -> tuple[int, int]:
    """Left and top pixel of an image on the contact sheet; its side is `SHOWN` pixels.

    Args:
        index: Index of the distortion.
        column: 0 for the original patch, then one column for each of `STRENGTHS`.
    """
    half, row = divmod(index, _ROWS)
    return _MARGIN + half * (_BLOCK + _BLOCK_GAP) + _LABEL + column * _CELL, _MARGIN + _HEADER + row * _CELL


def _write_headings(draw: ImageDraw.ImageDraw, lefts: list[int]) -> None:
    draw.text((_MARGIN, _MARGIN - 6), "The 20 traditional distortions", fill=_INK, font=_font(26))
    about = f"patches of {_PATCH} pixels, enlarged; one seed per row"
    draw.text((lefts[1] + _LABEL, _MARGIN + 4), about, fill=_FAINT, font=_font(15))
    for left in lefts:
        for column, heading in enumerate(("original", *(f"strength {strength:g}" for strength in STRENGTHS))):
            position = (left + _LABEL + column * (SHOWN + _GAP) + SHOWN // 2, _MARGIN + _HEADER - 10)
            draw.text(position, heading, fill=_FAINT, font=_font(15), anchor="ms")


def _at_strengths(patch: Tensor, name: str, seed: int) -> list[Tensor]:
    """The patch, then its distortion at every strength; shape ``(3, H, W)`` in [0, 1]."""
    image = patch[None].float().div(255)
    steps = [distort(image, name, strength, torch.Generator().manual_seed(seed)) for strength in STRENGTHS]
    return [step[0] for step in (image, *steps)]


def _enlarged(image: Tensor) -> Image.Image:
    pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
