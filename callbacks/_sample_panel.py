"""Draws a scored sample as one image: input | prediction | target | LPIPS heatmap, with score and color scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lpips_lightning.callbacks._loggers import Pixels
from lpips_lightning.io.heatmap import heatmap_colors

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SMALLEST_CELL = 256  # pixels of the longer side; smaller images are enlarged by an integer factor
_INK, _GRAY = (20, 20, 20), (110, 110, 110)


class Scored(NamedTuple):
    """Score and identity of a sample.

    Attributes:
        score: LPIPS.
        dataloader_idx: Index of its dataloader.
        dataset_index: Index in the dataset.
        rank: Rank of the process that scored it.
    """

    score: float
    dataloader_idx: int
    dataset_index: int
    rank: int


@dataclass(frozen=True)
class Sample:
    """Images of a sample, uint8.

    Attributes:
        pred: ``(H, W, 3)``.
        target: ``(H, W, 3)``.
        input: ``(h, w, 3)`` or None.
        heatmap: ``(H, W)``: local distance; 255 is the maximum of the color scale or more.
    """

    pred: Pixels
    target: Pixels
    input: Pixels | None
    heatmap: npt.NDArray[np.uint8]


def to_pixels(image: Tensor, data_range: tuple[float, float]) -> Pixels:
    """Convert an image to uint8, clamped and rounded; NaN becomes black.

    Args:
        image: ``(3, H, W)``, or gray ``(1, H, W)``; floating on `data_range` or uint8 on [0, 255].
        data_range: ``(low, high)``.

    Returns:
        Shape ``(H, W, 3)``.
    """
    if image.dtype != torch.uint8:
        low, high = data_range
        image = ((image.float() - low) * (255 / (high - low))).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()


def sample_panel(sample: Sample, scored: Scored, rank: str, net: str, heatmap_max: float) -> Pixels:
    """Draw a sample.

    Images are enlarged by an integer factor without interpolation; an input of another size is enlarged to the target's
    size by nearest neighbor.

    Args:
        sample: Images of the sample.
        scored: Score and identity of the sample.
        rank: For example ``"worst 1 of 4"``.
        net: Name of the network.
        heatmap_max: Local distance of the brightest color.

    Returns:
        Shape ``(H, W, 3)``; deterministic.
    """
    height, width = sample.target.shape[:2]
    factor = -(-_SMALLEST_CELL // max(height, width))
    size = (width * factor, height * factor)
    source = f"image {scored.dataset_index}" + f", loader {scored.dataloader_idx}" * (scored.dataloader_idx > 0)
    cells = [
        ("Prediction", rank, sample.pred),
        ("Target", source, sample.target),
        (f"LPIPS {scored.score:.3f}", net, heatmap_colors()[sample.heatmap]),
    ]
    if sample.input is not None:
        given = sample.input.shape
        cells.insert(0, ("Input", f"{given[1]} x {given[0]}", sample.input))

    text = max(13, min(size[0] // 17, 26))
    column = max(size[0], 8 * text)  # at least as wide as the heading
    title, subtitle = _font(text), _font(round(text * 0.8))
    top, gap, bar = round(text * 2.9), round(text * 0.6), round(text * 0.8)
    canvas = (gap + len(cells) * (column + gap) + bar + round(text * 2.4), top + size[1] + gap)
    image = Image.new("RGB", canvas, "white")
    draw = ImageDraw.Draw(image)
    for index, (heading, detail, pixels) in enumerate(cells):
        middle = gap + index * (column + gap) + column // 2
        draw.text((middle, text * 0.4), heading, _INK, title, "ma")
        draw.text((middle, text * 1.6), detail, _GRAY, subtitle, "ma")
        image.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (middle - size[0] // 2, top))
    _scale(image, (gap + len(cells) * (column + gap), top, bar, size[1]), heatmap_max, subtitle)
    return np.asarray(image)


def _scale(image: Image.Image, box: tuple[int, int, int, int], heatmap_max: float, font: Font) -> None:
    left, top, width, height = box
    rows = np.linspace(255, 0, height).round().astype(np.uint8)
    bar = np.repeat(heatmap_colors()[rows][:, None], width, 1)
    image.paste(Image.fromarray(bar), (left, top))
    draw = ImageDraw.Draw(image)
    for at, label, anchor in ((0, f"{heatmap_max:g}+", "la"), (0.5, f"{heatmap_max / 2:g}", "lm"), (1, "0", "ls")):
        draw.text((left + width * 1.4, top + at * height), label, _GRAY, font, anchor)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)  # bundled with Pillow, so the image is the same on every machine
