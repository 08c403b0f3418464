"""Contact sheet of CNN-based distortions: reference patches beside what each network makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpips_lightning.data.cnn_distortions import DistortionFamily
from lpips_lightning.io.figures import WIDTHS, axes_at, fit_name, new_figure, require_matplotlib, save_figure, write_at
from lpips_lightning.io.image_files import find_images, read_image, resize_image
from lpips_lightning.io.streams import is_stream

Row = tuple[str, list[Tensor]]
"""Label of a network; its images ``(3, H, W)`` in [0, 1]: reference and output, for each patch."""

_PATCH, _PATCHES = 64, 2
_BLOCKS = 3  # networks beside each other
_LABEL, _GAP, _BETWEEN, _FOOTER = 0.15, 0.03, 0.12, 0.24  # inches
_BLOCK = (WIDTHS["text"] + _BETWEEN) / _BLOCKS


def write_family_sheet(family: DistortionFamily, patches: Tensor, out: str | Path, seed: int = 0) -> list[Path]:
    """Draw a contact sheet: for each network the two most detailed patches, each beside the network's output.

    Args:
        family: The networks.
        patches: Shape ``(N, 3, H, W)`` in [0, 1].
        out: Output PNG, beside which a PDF is written; or a stream, which gets the PNG.
        seed: Random seed of the corruptions.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If `out` does not end in ``.png``.
    """
    out = Path(out)
    if out.suffix.lower() != ".png" and not is_stream(out):
        raise ValueError(f"out: expected a path that ends in .png, got '{out}'")
    require_matplotlib()
    order = patches.flatten(1).std(1).argsort(descending=True, stable=True)
    chosen = patches[order[:_PATCHES].sort().values]
    with family_figure([_row(family, name, chosen, seed) for name in family.names]) as figure:
        return save_figure(figure, out)


def photograph_patches(images: str | Path) -> Tensor:
    """Photographs as patches of 64 pixels, ``(N, 3, 64, 64)`` in [0, 1], at most 20.

    Args:
        images: A photograph, or a folder of some.

    Raises:
        FileNotFoundError: If there are no images.
        ValueError: If an image cannot be read.
    """
    files = list(find_images(images).values()) if Path(images).is_dir() else [Path(images)]
    return torch.stack([resize_image(read_image(file), _PATCH) for file in files[:20]]).float() / 255


def _row(family: DistortionFamily, name: str, patches: Tensor, seed: int) -> Row:
    made = family.distort(patches, name, torch.Generator().manual_seed(seed))
    corruption = family[name].spec.corruption.replace("null", "none").replace("_", " ")
    return f"{name}: {corruption}", [image for pair in zip(patches, made, strict=True) for image in pair]


@contextmanager
def family_figure(rows: Sequence[Row]) -> Iterator[Any]:
    """Draw the sheet, with an axes for each image.

    Args:
        rows: A row per network; all have equally many images.
    """
    columns = len(rows[0][1])
    cell = min((_BLOCK - _BETWEEN + _GAP) / columns - _GAP, 0.75)
    line = _LABEL + cell + 2 * _GAP
    height = line * -(-len(rows) // _BLOCKS) + _FOOTER
    with new_figure("text", height) as figure:
        figure.set_layout_engine("none")
        for index, (label, images) in enumerate(rows):
            left = (index % _BLOCKS) * _BLOCK
            top = height - (index // _BLOCKS) * line
            write_at(figure, left + 0.01, top - _LABEL + 0.04, fit_name(label, _BLOCK - _BETWEEN))
            for column, image in enumerate(images):
                axes = axes_at(figure, left + column * (cell + _GAP), top - _LABEL - cell, cell, cell)
                axes.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
                axes.axis("off")
        text = "Reference and output, by network and corruption of its input."
        write_at(figure, 0.01, 0.06, text, color="0.35")
        yield figure
