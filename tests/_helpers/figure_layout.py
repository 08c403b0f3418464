"""Checks of a figure as a reader sees it: no text leaves the canvas, no two texts overlap, sizes of 7 to 9 points."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lpips_lightning.io.figures import WIDTHS

_TOLERANCE = 1.0  # pixels at 300 dpi


def layout_faults(figure: Any) -> list[str]:
    """Draw the figure; returns a sentence for each text that is cut off, overlaps another, or has a wrong size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    undrawn = _undrawn(figure)
    seen = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = [(text, text.get_window_extent(renderer)) for text in seen if id(text) not in undrawn]
    width, height = canvas.get_width_height()
    faults = []
    if not any(abs(figure.get_figwidth() - allowed) < 1e-6 for allowed in WIDTHS.values()):
        faults.append(f"width {figure.get_figwidth()} inches")
    for text, box in boxes:
        name = repr(text.get_text())
        if box.x0 < -_TOLERANCE or box.y0 < -_TOLERANCE or box.x1 > width + _TOLERANCE or box.y1 > height + _TOLERANCE:
            faults.append(f"{name} leaves the canvas: {box}")
        if not 7 <= text.get_fontsize() <= 9:
            faults.append(f"{name} has {text.get_fontsize()} points")
    for (one, first), (other, second) in combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        up = min(first.y1, second.y1) - max(first.y0, second.y0)
        if across > _TOLERANCE and up > _TOLERANCE:
            faults.append(f"{one.get_text()!r} overlaps {other.get_text()!r}")
    return faults


def _undrawn(figure: Any) -> set[int]:
    """Texts in hidden axes, and tick labels beyond the limits of their axis, which exist but are not drawn."""
    hidden = [text for axes in figure.findobj(Axes) if not axes.get_visible() for text in axes.findobj(Text)]
    for axes in figure.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (axis.get_visible() and axes.axison and low - slack <= tick.get_loc() <= high + slack):
                    hidden += [tick.label1, tick.label2]
    return set(map(id, hidden))
