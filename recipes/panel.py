"""Figure with columns of images and LPIPS maps: the full images, and a detail below each."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.io.figures import (
    SMALL_SIZE,
    TEXT_SIZE,
    TITLE_SIZE,
    WIDTHS,
    fit_name,
    fit_names,
    new_figure,
    save_figure,
)
from lpips_lightning.io.heatmap import heatmap_limit

_ACCENT = "#00c8ff"  # in contrast to photographs and to the colors of the maps
_MOST_COLUMNS = 6  # beside each other; more go on below
_GAP, _BAR, _TALLEST = 0.08, 0.55, 2.6  # inches: between columns, room of the color bar, height of an image
_LINE = 1.25 / 72  # inches of a line of text of one point


@dataclass(frozen=True)
class Column:
    """One column of the figure.

    Attributes:
        title: Line above the column.
        subtitle: Lines below the title.
        image: Shape ``(3, H, W)`` in [0, 1], or a map ``(H, W)``; a low-resolution image may be smaller.
    """

    title: str
    subtitle: str
    image: Tensor


def save_panel(
    columns: list[Column],
    path: str | Path,
    heading: str,
    zoom: int = 112,
    map_label: str = "local LPIPS",
    note: str = "",
) -> list[Path]:
    """Write a figure as wide as the text of a paper: full images, and below each the square with the most detail.

    Maps share one color scale, see `heatmap_limit`. The detail is chosen on the ground truth, which is the last column
    that is not a map. More than six columns go on below.

    Args:
        columns: Columns from left to right.
        path: Path of the PNG file; a PDF is written beside it.
        heading: Title of the figure.
        zoom: Side of the detail, in pixels of the ground truth.
        map_label: Label of the color scale.
        note: Text below the figure.

    Returns:
        The files.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    height, width = _truth(columns).shape[1:]
    zoom = min(zoom, height, width)
    maps = [column.image for column in columns if column.image.ndim == 2]
    bands = max(1, math.ceil(len(columns) / _MOST_COLUMNS))
    across = math.ceil(len(columns) / bands)
    cell = (WIDTHS["text"] - (_BAR if maps else 0)) / max(across, 2) - _GAP
    tall = min(cell * height / width, _TALLEST)
    lines = max(column.subtitle.count("\n") + 1 for column in columns)
    text = _LINE * (TEXT_SIZE + SMALL_SIZE * lines) + 0.1
    size = 0.25 + bands * (tall + cell + text + 0.12) + 0.18 * bool(note)
    with new_figure("text", size) as figure:
        figure.suptitle(fit_name(heading, WIDTHS["text"] - 0.2, TITLE_SIZE))
        figure.get_layout_engine().set(w_pad=_GAP / 4, h_pad=0.03, wspace=0, hspace=0)
        axes = figure.subplots(2 * bands, across, height_ratios=[tall, cell] * bands, squeeze=False)
        place = _Place(*most_detailed(_truth(columns), zoom), zoom, height, width)
        titles = fit_names([column.title for column in columns], cell, TEXT_SIZE)
        fitting = [replace(column, title=title) for column, title in zip(columns, titles, strict=True)]
        limit = heatmap_limit(*maps)
        shown = [
            _draw_column(axes[2 * (index // across) :, index % across], column, cell, lines, place, limit)
            for index, column in enumerate(fitting)
        ]
        for axis in axes.T.reshape(across, bands, 2).transpose(1, 0, 2).reshape(-1, 2)[len(columns) :].ravel():
            axis.set_visible(False)
        if maps:
            drawn = next(one for one, column in zip(shown, columns, strict=True) if column.image.ndim == 2)
            over = "max" if any(bool((one > drawn.norm.vmax).any()) for one in maps) else "neither"
            bar = figure.colorbar(drawn, ax=axes, fraction=0.02, pad=0.01, aspect=30, extend=over, extendfrac=0.03)
            bar.set_label(map_label)
            bar.outline.set_linewidth(0.6)
        if note:
            figure.supxlabel(fit_name(note, WIDTHS["text"] - 0.2, SMALL_SIZE), fontsize=SMALL_SIZE, color="0.35")
        return save_figure(figure, path)


def most_detailed(image: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the square of side `side` in which an image ``(3, H, W)`` differs most from its blurred copy.

    The square keeps half its side from the borders of the image, where there is room.
    """
    height, width = image.shape[1:]
    above, before = (max(0, min(side // 2, (length - side) // 2)) for length in (height, width))
    gray = image.mean(0, keepdim=True)[None]
    detail = (gray - F.avg_pool2d(gray, 9, stride=1, padding=4, count_include_pad=False)).abs()
    inner = detail[..., above : height - above, before : width - before]
    total = F.avg_pool2d(inner, side, stride=8)[0, 0]
    top, left = divmod(int(total.argmax()), total.shape[1])
    return above + top * 8, before + left * 8


@dataclass(frozen=True)
class _Place:
    """The detail: top, left and side, and the size of the image."""

    top: int
    left: int
    zoom: int
    height: int
    width: int


def _truth(columns: list[Column]) -> Tensor:
    return next(column.image for column in reversed(columns) if column.image.ndim == 3)


def _draw_column(axes: Any, column: Column, cell: float, lines: int, place: _Place, limit: float) -> Any:
    """Draw the full image and the detail in the first two of `axes`; returns what the color scale belongs to."""
    from matplotlib.patches import Rectangle

    full, detail = axes[:2]
    for axis in (full, detail):
        shown = _show(axis, column.image, place, limit)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(axis is detail)
        axis.spines[:].set(color=_ACCENT, linewidth=1)
    square = (place.left, place.top), place.zoom, place.zoom
    full.add_patch(Rectangle(*square, fill=False, edgecolor=_ACCENT, linewidth=1))
    detail.set(xlim=(place.left, place.left + place.zoom), ylim=(place.top + place.zoom, place.top))
    full.set_title(column.title, pad=72 * _LINE * SMALL_SIZE * lines + 3)
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center", "va": "bottom"}
    subtitle = "\n".join(fit_name(line, cell, SMALL_SIZE) for line in column.subtitle.split("\n"))
    full.annotate(subtitle, (0.5, 1), (0, 2), fontsize=SMALL_SIZE, **style)
    return shown


def _show(axis: Any, image: Tensor, place: _Place, limit: float) -> Any:
    extent = (0, place.width, place.height, 0)
    if image.ndim == 2:
        from matplotlib import colormaps

        colors = colormaps["inferno"].with_extremes(bad=colormaps["inferno"](1.0))
        values = np.ma.masked_invalid(image.detach().float().cpu().numpy())
        return axis.imshow(values, cmap=colors, vmin=0, vmax=limit, extent=extent)
    pixels = image.permute(1, 2, 0).nan_to_num(0).clamp(0, 1).cpu().numpy()
    return axis.imshow(pixels, interpolation="nearest", extent=extent)
