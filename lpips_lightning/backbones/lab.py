"""RGB to CIE Lab, as a function and as a layer of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

# sRGB -> XYZ, of the white point D65 (0.95047, 1, 1.08883), as in scikit-image.
_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab (D65, 2 degrees), as scikit-image does; differentiable, also at black.

    Args:
        images: Shape ``(N, 3, H, W)`` on [0, 1]; values outside are converted by the same formulas.

    Returns:
        Shape ``(N, 3, H, W)``: L on [0, 100], a and b within about [-108, 99].

    Example:
        >>> rgb_to_lab(torch.ones(1, 3, 1, 1)).flatten().round().abs()
        tensor([100.,   0.,   0.])
    """
    high = ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    red, green, blue = torch.where(images > 0.04045, high, images / 12.92).unbind(1)
    # No constant tensors: they would have to follow the images to their device.
    x, y, z = (_root(a * red + b * green + c * blue) for a, b, c in _TO_XYZ)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def _root(value: Tensor) -> Tensor:
    return torch.where(value > 0.008856, value.clamp(min=0.008856) ** (1 / 3), 7.787 * value + 16 / 116)


class RgbToLab(nn.Module):
    """RGB images on [0, 1] -> standardized CIE Lab, as the first layer of a backbone.

    Args:
        mean: Subtracted from L, a and b.
        std: Divisor of L, a and b after that.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    @override
    def forward(self, images: Tensor) -> Tensor:
        channels = zip(rgb_to_lab(images).unbind(1), self.mean, self.std, strict=True)
        return torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)

    @override
    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}"
