"""Colors and color scales of local distances."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LEAST_LIMIT = 1e-3  # identical images are black
# Every 16th color of matplotlib's "inferno" (S. van der Walt and N. Smith, CC0): lightness is linear, which suits gray
# prints and color-blind readers. Linear interpolation stays within 7/255 of the original.
_INFERNO = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754"
    " d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)


def heatmap_colors() -> npt.NDArray[np.uint8]:
    """Colormap of shape ``(256, 3)``, dark to bright."""
    anchors = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _INFERNO.split()])
    positions, indices = np.linspace(0, 255, len(anchors)), np.arange(256)
    return np.stack([np.interp(indices, positions, channel) for channel in anchors.T], 1).round().astype(np.uint8)


def heatmap_indices(distances: Tensor, heatmap_max: float) -> npt.NDArray[np.uint8]:
    """Colormap indices of local distances ``(H, W)``: 0 maps to 0, `heatmap_max` and above, and NaN, to 255."""
    return (distances.float() * (255 / heatmap_max)).nan_to_num(255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def heatmap_limit(*maps: Tensor) -> float:
    """A round upper end of the color scale for heatmaps that are shown together.

    Args:
        *maps: Local distances of any shape; NaN is ignored.

    Returns:
        The smallest of 1, 1.5, 2, 3, 5, 7 times a power of ten that is at least the 99.5th percentile of all values,
        0.001 or larger: ``0.05`` for a faint difference, ``1.5`` for a strong one. State it beside the colors.
    """
    values = np.concatenate([part.detach().float().cpu().numpy().ravel() for part in maps] or [np.zeros(0)])
    values = values[np.isfinite(values)]
    wanted = max(float(np.quantile(values, 0.995)) if len(values) else 0.0, _LEAST_LIMIT)
    decade = 10.0 ** math.floor(math.log10(wanted) + 1e-9)
    steps = (round(step * decade, 12) for step in (1, 1.5, 2, 3, 5, 7, 10))
    return next(step for step in steps if step >= wanted * (1 - 1e-6))
