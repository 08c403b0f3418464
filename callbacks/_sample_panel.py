"""Draws a scored sample as one image: input | prediction | target | LPIPS heatmap, with score and color scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lpips_lightning.callbacks._loggers import Pixels
from lpips_lightning.io.figures import shorten
from lpips_lightning.io.heatmap import heatmap_colors, heatmap_indices

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
        name: Name of the image, such as its file; empty if unknown.
    """

    score: float
    dataloader_idx: int
    dataset_index: int
    rank: int
    name: str = ""

    @property
    def source(self) -> str:
        """The name, or the index in the data set."""
        loader = f", loader {self.dataloader_idx}" * (self.dataloader_idx > 0)
        return f"{self.name or f'image {self.dataset_index}'}{loader}"


class Legend(NamedTuple):
    """What is the same for all samples.

    Attributes:
        net: Name of the judging network.
        heatmap_max: Local distance of the brightest color.
        input_label: What the input is.
        is_loss: Whether the network is also that of a loss of the model, which biases the scores.
    """

    net: str
    heatmap_max: float
    input_label: str = "input"
    is_loss: bool = False


@dataclass(frozen=True)
class Sample:
    """Images of a sample, uint8, and local distances.

    Attributes:
        pred: ``(H, W, 3)``.
        target: ``(H, W, 3)``.
        input: ``(h, w, 3)`` or None.
        distances: ``(H, W)``, half precision.
    """

    pred: Pixels
    target: Pixels
    input: Pixels | None
    distances: Tensor


def sample_panel(sample: Sample, scored: Scored, rank: str, legend: Legend) -> Pixels:
    """Draw a sample.

    Images are enlarged by an integer factor without interpolation; an input of another size is enlarged to the target's
    size by nearest neighbor. Texts that are too long lose their middle.

    Args:
        sample: Images of the sample.
        scored: Score and identity of the sample.
        rank: For example ``"worst 1 of 4"``.
        legend: Network, color scale and name of the input.

    Returns:
        Shape ``(H, W, 3)``; deterministic.
    """
    height, width = sample.target.shape[:2]
    factor = -(-_SMALLEST_CELL // max(height, width))
    size = (width * factor, height * factor)
    heat = heatmap_colors()[heatmap_indices(sample.distances, legend.heatmap_max)]
    cells = [
        ("prediction", rank, sample.pred),
        ("target", scored.source, sample.target),
        (f"LPIPS {scored.score:.3f}", f"{legend.net}{', also the loss' * legend.is_loss}", heat),
    ]
    if sample.input is not None:
        given = sample.input.shape
        cells.insert(0, (legend.input_label, f"{given[1]} x {given[0]} pixels", sample.input))

    text = max(13, min(size[0] // 17, 26))
    column = max(size[0], 8 * text)  # at least as wide as the heading
    title, subtitle = _font(text), _font(round(text * 0.8))
    top, gap, bar = round(text * 2.9), text, round(text * 0.8)
    labels = [f"{share * legend.heatmap_max:g}{'+' * (share == 1)}" for share in (1, 0.5, 0)]
    room = round(1.4 * bar + max(map(subtitle.getlength, labels)) + gap)
    tall = max(size[1], round(3.6 * text))  # three labels fit beside the scale
    image = Image.new("RGB", (gap + len(cells) * (column + gap) + room, top + tall + gap), "white")
    draw = ImageDraw.Draw(image)
    for index, (heading, detail, pixels) in enumerate(cells):
        middle = gap + index * (column + gap) + column // 2
        draw.text((middle, text * 0.4), _fit(heading, title, column), _INK, title, "ma")
        draw.text((middle, text * 1.6), _fit(detail, subtitle, column), _GRAY, subtitle, "ma")
        image.paste(Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST), (middle - size[0] // 2, top))
    _scale(image, (gap + len(cells) * (column + gap), top, bar, tall), labels, subtitle)
    return np.asarray(image)


def _scale(image: Image.Image, box: tuple[int, int, int, int], labels: Sequence[str], font: Font) -> None:
    left, top, width, height = box
    rows = np.linspace(255, 0, height).round().astype(np.uint8)
    bar = np.repeat(heatmap_colors()[rows][:, None], width, 1)
    image.paste(Image.fromarray(bar), (left, top))
    draw = ImageDraw.Draw(image)
    for at, label, anchor in zip((0, 0.5, 1), labels, ("la", "lm", "ls"), strict=True):
        draw.text((left + width * 1.4, top + at * height), label, _GRAY, font, anchor)


def _fit(text: str, font: Font, width: int) -> str:
    """A text of at most `width` pixels, in characters that the font has: longer ones lose their middle."""
    text = text.encode("ascii", "backslashreplace").decode()
    shown, most = shorten(text, len(text)), len(text)
    while most > 3 and font.getlength(shown.replace("\u2026", "...")) > width:
        most -= 1
        shown = shorten(text, most)
    return shown.replace("\u2026", "...")


def _font(size: int) -> Font:
    return ImageFont.load_default(size)  # bundled with Pillow, so the image is the same on every machine
