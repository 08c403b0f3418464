"""Figure with columns of images and LPIPS maps: full images in the first row, a detail in the second."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lpips_lightning.io.atomic import atomic_write

_ACCENT = "#00c8ff"  # in contrast to photographs and to the colors of the maps


@dataclass(frozen=True)
class Column:
    """One column of the figure.

    Attributes:
        title: First line above the column.
        subtitle: Second line above the column.
        image: Shape ``(3, H, W)`` in [0, 1], or a map ``(H, W)``; a low-resolution image may be smaller.
    """

    title: str
    subtitle: str
    image: Tensor


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError(
            'the figure needs matplotlib, which is not installed: pip install "lpips_lightning[recipes]"'
        )


def save_panel(columns: list[Column], path: str | Path, heading: str, zoom: int = 112) -> None:
    """Write a PNG figure with two rows: full images, and the square of side `zoom` with the most detail.

    Maps share one color scale, from 0 to the largest 99.5th percentile. The detail is chosen on the ground truth, which
    is the last column that is not a map.

    Args:
        columns: Columns from left to right.
        path: Path of the PNG file.
        heading: Title of the figure.
        zoom: Side of the detail, in pixels of the ground truth.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # no pyplot: no global state, no window
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.patches import Rectangle

    truth = next(column.image for column in reversed(columns) if column.image.ndim == 3)
    height, width = truth.shape[1:]
    zoom = min(zoom, height, width)
    top, left = most_detailed(truth, zoom)
    maps = [column.image for column in columns if column.image.ndim == 2]
    brightest = max((float(heat.quantile(0.995)) for heat in maps), default=1.0)

    cell = 2.6  # inches
    size = (cell * len(columns) + (0.7 if maps else 0.1), cell * height / width + cell + 0.95)
    figure = Figure(size, dpi=150, layout=ConstrainedLayoutEngine(h_pad=0.1))
    figure.suptitle(heading, fontsize=12, fontweight="bold")
    axes = figure.subplots(2, len(columns), height_ratios=[height / width, 1], squeeze=False)
    heat = None
    for index, column in enumerate(columns):
        for row, axis in enumerate(axes[:, index]):
            shown = _show(axis, column.image, height, width, brightest)
            heat = shown if column.image.ndim == 2 else heat
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(row == 1)
            axis.spines[:].set(color=_ACCENT, linewidth=1.5)
        axes[0, index].add_patch(Rectangle((left, top), zoom, zoom, fill=False, edgecolor=_ACCENT, linewidth=1.5))
        axes[1, index].set(xlim=(left, left + zoom), ylim=(top + zoom, top))
        axes[0, index].set_title(f"{column.title}\n", fontsize=10.5, fontweight="bold")
        place = {"transform": axes[0, index].transAxes, "ha": "center", "va": "bottom"}
        axes[0, index].text(0.5, 1.03, column.subtitle, fontsize=9, **place)
    if heat is not None:
        bar = figure.colorbar(heat, ax=axes, fraction=0.015, pad=0.008, aspect=40)
        bar.set_label("LPIPS, local", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def most_detailed(image: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the square of side `side` in which an image ``(3, H, W)`` differs most from its blurred copy."""
    gray = image.mean(0, keepdim=True)[None]
    detail = (gray - F.avg_pool2d(gray, 9, stride=1, padding=4, count_include_pad=False)).abs()
    total = F.avg_pool2d(detail, side, stride=8)[0, 0]
    top, left = divmod(int(total.argmax()), total.shape[1])
    return top * 8, left * 8


def _show(axis: Any, image: Tensor, height: int, width: int, brightest: float) -> Any:
    extent = (0, width, height, 0)
    if image.ndim == 2:
        return axis.imshow(image.cpu().numpy(), cmap="inferno", vmin=0, vmax=brightest, extent=extent)
    pixels = image.permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    return axis.imshow(pixels, interpolation="nearest", extent=extent)
