"""Figure of two images and the map of their local distances, with names, score and color scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.io.figures import SMALL_SIZE, TEXT_SIZE, TITLE_SIZE, WIDTHS, fit_name, fit_names, new_figure

_WIDE = 0.3  # height by width below which images stand one above the other
_BAR, _TALLEST = 0.75, 7.2  # inches: room of the color bar, and of the images in a column

SIDE = 1240
"""Most pixels of an image's longer side that a figure can show: 2 inches at 600 dpi, or 6 inches at 200 dpi."""


class Panel(NamedTuple):
    """An image of the figure.

    Attributes:
        name: Text above it; a long one loses its middle.
        pixels: Shape ``(H, W, 3)``, uint8.
    """

    name: str
    pixels: npt.NDArray[np.uint8]


def reduced(image: Tensor, side: int = SIDE) -> Tensor:
    """Average neighbors of an image ``(C, H, W)`` so that its longer side is at most `side` pixels; float32."""
    height, width = image.shape[1:]
    factor = side / max(height, width)
    if factor >= 1:
        return image.float()
    size = [max(1, round(factor * length)) for length in (height, width)]
    return F.interpolate(image.float()[None], size, mode="area")[0]


@contextmanager
def comparison_figure(
    images: Sequence[Panel], distances: Tensor, heatmap_max: float, title: str, note: str = ""
) -> Iterator[Any]:
    """Draw images beside the map of their local distances; wide images stand one above the other.

    Args:
        images: One image or more, of one aspect ratio.
        distances: Local distances ``(H, W)``; NaN has the brightest color.
        heatmap_max: Local distance at the brightest color, such as from `heatmap_limit`.
        title: Text above the figure, such as the score.
        note: Text below the figure.

    Yields:
        The figure, as wide as the text of a paper, for `save_figure`.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    height, width = images[0].pixels.shape[:2]
    count, stacked = len(images) + 1, height < _WIDE * width
    across, down = (1, count) if stacked else (count, 1)
    panel = (WIDTHS["text"] - _BAR) / across - 0.15 - 0.45 * stacked  # inches
    tall = min(panel * height / width, _TALLEST / down)
    room = down * (max(tall, 0.25) + 0.2) + 0.27 + 0.16 * bool(note)
    with new_figure("text", max(room, 1.5)) as figure:
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for axis, one, name in zip(axes, images, _names(images, panel), strict=False):
            axis.imshow(one.pixels, interpolation="antialiased")
            axis.set_title(name)
        shown = _draw_map(axes[-1], distances, heatmap_max)
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        over = "max" if bool((distances > heatmap_max).any()) else "neither"
        wide = tall * width / height
        bar: dict[str, Any] = {"ax": axes, "fraction": 0.02, "aspect": 10 * down * tall}
        if not stacked:
            bar = {"cax": axes[-1].inset_axes((1 + 0.07 / wide, 0, 0.1 / wide, 1))}
        arrow = min(0.05, 0.1 / (down * tall))
        scale = figure.colorbar(shown, extend=over, extendfrac=arrow, label="local LPIPS", **bar)
        scale.outline.set_linewidth(0.6)
        figure.suptitle(fit_name(title, WIDTHS["text"] - 0.2, TITLE_SIZE))
        if note:
            note = fit_name(note, WIDTHS["text"] - 0.2, SMALL_SIZE)
            figure.supxlabel(note, fontsize=SMALL_SIZE, color="0.35")
        yield figure


def _names(images: Sequence[Panel], inches: float) -> list[str]:
    """Names that fit; different ones stay different, equal ones stay equal."""
    different = list(dict.fromkeys(one.name for one in images))
    fitting = dict(zip(different, fit_names(different, inches, TEXT_SIZE), strict=True))
    return [fitting[one.name] for one in images]


def _draw_map(axis: Any, distances: Tensor, heatmap_max: float) -> Any:
    from matplotlib import colormaps

    colors = colormaps["inferno"]
    colors = colors.with_extremes(bad=colors(1.0))
    axis.set_title("local distance")
    values = np.ma.masked_invalid(distances.detach().float().cpu().numpy())
    return axis.imshow(values, cmap=colors, vmin=0, vmax=heatmap_max, interpolation="antialiased")
