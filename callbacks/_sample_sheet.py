"""Contact sheet of scored samples for print: worst and best beside each other, with one color scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from lpips_lightning.callbacks._sample_panel import Legend, Sample, Scored
from lpips_lightning.io.figures import (
    SMALL_SIZE,
    WIDTHS,
    axes_at,
    fit_name,
    fit_names,
    new_figure,
    text_inches,
    write_at,
)

_BAR, _GAP, _MIDDLE, _TEXT = 0.64, 0.04, 0.14, 0.17  # inches: color bar, between images, between groups, a line
_TALLEST = 1.6  # height by width beyond which images become narrower


@contextmanager
def sample_sheet(groups: Mapping[str, Sequence[tuple[Sample, Scored]]], legend: Legend) -> Iterator[Any]:
    """Draw all samples: a row for each, in two groups side by side.

    Args:
        groups: Samples by the name of their group, such as ``"worst"`` and ``"best"``.
        legend: Network, color scale and name of the input.

    Yields:
        The figure, as wide as the text of a paper.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    rows = max(map(len, groups.values()))
    samples = [sample for group in groups.values() for sample, _ in group]
    has_input = any(sample.input is not None for sample in samples)
    width = (WIDTHS["text"] - _BAR - _MIDDLE * (len(groups) - 1)) / len(groups)  # of a group
    cell = width / (3 + has_input) - _GAP
    titles = [*([_input_title(samples, legend, cell)] if has_input else []), "prediction", "target", "local LPIPS"]
    heights = [
        cell * min(_TALLEST, max(_aspect(group[row][0]) for group in groups.values() if row < len(group)))
        for row in range(rows)
    ]
    total = sum(heights) + rows * (_TEXT + 0.05) + 2 * _TEXT + 0.1
    with new_figure("text", total) as figure:
        figure.set_layout_engine("none")
        for column, (name, group) in enumerate(groups.items()):
            left = 0.02 + column * (width + _MIDDLE)
            _draw_titles(figure, left, cell, titles)
            top = total - _TEXT
            for rank, ((sample, scored), height) in enumerate(zip(group, heights, strict=False), 1):
                text = f"{name} {rank}: LPIPS {scored.score:.3f}, {scored.source}"
                write_at(figure, left, top - _TEXT + 0.05, fit_name(text, width - 0.05))
                top -= _TEXT + height
                shown = _draw_row(figure, left, top, (cell, height), sample, legend)
                top -= 0.05
        bar_height = min(total - 2 * _TEXT - 0.2, 2.0)
        place = (WIDTHS["text"] - _BAR + 0.06, total - 2 * _TEXT - bar_height, 0.1, bar_height)
        label = f"local LPIPS, {legend.net}"
        _draw_scale(figure, shown, place, fit_name(label, bar_height))
        note = f"LPIPS by {legend.net}{', which is also the network of the loss: biased' * legend.is_loss}."
        write_at(figure, 0.02, 0.06, fit_name(note, WIDTHS["text"] - 0.1), color="0.35")
        yield figure


def _input_title(samples: Sequence[Sample], legend: Legend, inches: float) -> str:
    """Heading of the input, with the size that all have if there is room for it."""
    sizes = {sample.input.shape[:2] for sample in samples if sample.input is not None}
    title = _with_size(legend.input_label, *sizes.pop()) if len(sizes) == 1 else legend.input_label
    return title if text_inches(title) <= inches else legend.input_label


def _with_size(label: str, height: int, width: int) -> str:
    return f"{label}, {width} x {height}"


def _aspect(sample: Sample) -> float:
    return sample.target.shape[0] / sample.target.shape[1]


def _draw_titles(figure: Any, left: float, cell: float, titles: Sequence[str]) -> None:
    total = figure.get_figheight()
    for index, title in enumerate(fit_names(titles, cell)):
        middle = left + index * (cell + _GAP) + cell / 2
        write_at(figure, middle, total - _TEXT + 0.04, title, ha="center")


def _draw_row(
    figure: Any, left: float, bottom: float, size: tuple[float, float], sample: Sample, legend: Legend
) -> Any:
    """Draw the images of a sample; returns what the color scale belongs to."""
    shown: list[Any] = [sample.pred, sample.target, _heat(sample.distances)]
    columns = [*([] if sample.input is None else [sample.input]), *shown]
    style = {"cmap": _colors(), "vmin": 0, "vmax": legend.heatmap_max}
    for index, pixels in enumerate(columns):
        axes = axes_at(figure, left + index * (size[0] + _GAP), bottom, *size)
        drawn = axes.imshow(pixels, interpolation="nearest" if pixels.shape[0] < 100 else "antialiased", **style)
        axes.axis("off")
    return drawn


def _heat(distances: Tensor) -> Any:
    return np.ma.masked_invalid(distances.float().numpy())


def _colors() -> Any:
    from matplotlib import colormaps

    return colormaps["inferno"].with_extremes(bad=colormaps["inferno"](1.0))  # NaN is bright


def _draw_scale(figure: Any, shown: Any, place: tuple[float, float, float, float], label: str) -> None:
    scale = figure.colorbar(shown, cax=axes_at(figure, *place), extend="max", extendfrac=0.05)
    scale.set_label(label, fontsize=SMALL_SIZE)
    scale.outline.set_linewidth(0.6)
