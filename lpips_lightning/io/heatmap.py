"""Colors of local distances; all heatmaps of the library share one scale, so that they can be compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
