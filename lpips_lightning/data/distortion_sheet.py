"""Contact sheet of the 20 distortions at increasing strength."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.data.distortions import DISTORTIONS, distort
from lpips_lightning.io.figures import WIDTHS, axes_at, new_figure, require_matplotlib, save_figure, write_at
from lpips_lightning.io.image_files import find_images, read_image, resize_image
from lpips_lightning.io.streams import is_stream

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)

_PATCH = 64  # distortion parameters are in pixels of 64-pixel patches
_ROWS = -(-len(DISTORTIONS) // 2)  # in each of two blocks side by side
_COLUMNS = 1 + len(STRENGTHS)
_LABEL, _GAP, _HEADER, _FOOTER = 0.78, 0.03, 0.32, 0.2  # inches
_BLOCK = WIDTHS["text"] / 2
_CELL = (_BLOCK - _LABEL - 0.04) / _COLUMNS - _GAP


def write_sheet(images: str | Path, out: str | Path, seed: int = 0) -> list[Path]:
    """Draw a contact sheet: one row per distortion, from the original patch to full strength, in two blocks of ten.

    All strengths in a row use the same seed, so that only the strength varies.

    Args:
        images: A photograph, or a folder whose photographs alternate from row to row.
        out: Output PNG, beside which a PDF is written; or a stream, which gets the PNG.
        seed: Random seed of directions, signs and noise.

    Returns:
        The files.

    Raises:
        FileNotFoundError: If there are no images.
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If an image cannot be read, or `out` does not end in ``.png``.
    """
    out = Path(out)
    if out.suffix.lower() != ".png" and not is_stream(out):
        raise ValueError(f"out: expected a path that ends in .png, got '{out}'")
    require_matplotlib()
    files = list(find_images(images).values()) if Path(images).is_dir() else [Path(images)]
    patches = [resize_image(read_image(file), _PATCH) for file in files[: len(DISTORTIONS)]]
    rows = [_at_strengths(patches[row % len(patches)], name, seed) for row, name in enumerate(DISTORTIONS)]
    with sheet_figure(rows) as figure:
        return save_figure(figure, out)


@contextmanager
def sheet_figure(rows: Sequence[Sequence[Tensor]]) -> Iterator[Any]:
    """Draw the rows of the sheet, with an axes for each image.

    Args:
        rows: For each of `DISTORTIONS` the original and the distorted patches, ``(3, H, W)`` in [0, 1].
    """
    height = _HEADER + _ROWS * (_CELL + _GAP) + _FOOTER
    with new_figure("text", height) as figure:
        figure.set_layout_engine("none")
        for left in (0.0, _BLOCK):
            for column, heading in enumerate(("original", *(f"{strength:g}" for strength in STRENGTHS))):
                middle = left + _LABEL + column * (_CELL + _GAP) + _CELL / 2
                write_at(figure, middle, height - _HEADER + 0.05, heading, ha="center")
            write_at(figure, left + _LABEL + 3.5 * (_CELL + _GAP), height - 0.12, "strength", ha="center")
        for index, (name, row) in enumerate(zip(DISTORTIONS, rows, strict=True)):
            half, place = divmod(index, _ROWS)
            left, bottom = half * _BLOCK + _LABEL, height - _HEADER - (place + 1) * (_CELL + _GAP) + _GAP
            write_at(
                figure,
                left - 0.05,
                bottom + _CELL / 2,
                name.replace("_", "\n"),
                ha="right",
                va="center",
                linespacing=1.0,
            )
            for column, image in enumerate(row):
                axes = axes_at(figure, left + column * (_CELL + _GAP), bottom, _CELL, _CELL)
                axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
                axes.axis("off")
        write_at(figure, 0.05, 0.05, f"Patches of {_PATCH} pixels; one random seed per row.", color="0.35")
        yield figure


def _at_strengths(patch: Tensor, name: str, seed: int) -> list[Tensor]:
    """The patch, then its distortion at every strength; shape ``(3, H, W)`` in [0, 1]."""
    image = patch[None].float().div(255)
    steps = [distort(image, name, strength, torch.Generator().manual_seed(seed)) for strength in STRENGTHS]
    return [step[0] for step in (image, *steps)]
