"""Local distances as colors: one scale for every map of the house, so that images can be compared."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Every sixteenth color of "inferno" (S. van der Walt and N. Smith, matplotlib, CC0), dark to bright: its lightness
# rises evenly, so it reads the same in gray and for the color-blind. Straight lines between stay within 7 of 255.
_INFERNO = (
    "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 bc3754"
    " d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
)


def heatmap_colors() -> npt.NDArray[np.uint8]:
    """Shape ``(256, 3)``, dark to bright."""
    anchors = np.array([[int(color[i : i + 2], 16) for i in (0, 2, 4)] for color in _INFERNO.split()])
    places, numbers = np.linspace(0, 255, len(anchors)), np.arange(256)
    return np.stack([np.interp(numbers, places, channel) for channel in anchors.T], 1).round().astype(np.uint8)


def heatmap_indices(distances: Tensor, heatmap_max: float) -> npt.NDArray[np.uint8]:
    """Local distances ``(H, W)`` as the numbers of their colors; 255 from `heatmap_max` on."""
    return (distances.float() * (255 / heatmap_max)).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
