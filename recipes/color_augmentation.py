"""Changes of the colors of training images, with the same lightness: for the colorization recipe."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lpips_lightning.recipes.colors import colorfulness, compose, into_gamut, split_lab


@dataclass(frozen=True)
class ColorAugmentation:
    """Random changes of hue, saturation and tint in Lab; L stays, so a network that colors has the same input.

    A few photographs have few colors, which a network learns by heart: this orange belongs to that brightness. With
    changing colors it has to learn what they have in common.

    Args:
        hue: Largest rotation of a and b, in degrees. Above about 30, grass is no longer green.
        saturation: a and b are multiplied by between exp(-saturation) and exp(saturation).
        tint: Standard deviation of what is added to a and b of white, as another white balance does; darker colors get
            less, in proportion to L.

    Raises:
        ValueError: If an argument is negative or not finite.

    Example:
        >>> gray = torch.full((2, 3, 8, 8), 0.5)
        >>> bool((ColorAugmentation(hue=180, saturation=1, tint=0)(gray) - gray).abs().max() < 1e-3)
        True
    """

    hue: float = 15.0
    saturation: float = 0.3
    tint: float = 4.0

    def __post_init__(self) -> None:
        for argument in ("hue", "saturation", "tint"):
            value = getattr(self, argument)
            if not 0 <= value < math.inf:
                raise ValueError(f"{argument}_jitter: expected a finite number of at least 0, got {value}")

    def __call__(self, images: Tensor) -> Tensor:
        """Change images ``(N, 3, H, W)`` in [0, 1], each in its own way, with PyTorch's global generator."""
        count = len(images)
        angle = math.radians(self.hue) * _symmetric(count)
        factor = (self.saturation * _symmetric(count)).exp()
        shift = self.tint * torch.randn(count, 2, 1, 1)
        lightness, ab = split_lab(images)
        a, b = ab.split(1, 1)
        cos, sin = factor * angle.cos(), factor * angle.sin()
        ab = torch.cat([cos * a - sin * b, sin * a + cos * b], 1) + shift * lightness / 100
        return compose(lightness, into_gamut(lightness, ab)).clamp(0, 1).to(images.dtype)


def limit_colorfulness(images: Tensor, largest: float) -> Tensor:
    """Reduce the saturation of images whose `colorfulness` is above `largest`, to about that; L stays.

    Args:
        images: Shape ``(N, 3, H, W)``, floating, range [0, 1].
        largest: On the scale of Hasler and Suesstrunk 2003: 33 is moderately, 45 averagely, 59 quite colorful.

    Returns:
        Images of the same shape, dtype and range.

    Example:
        >>> images = torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]).view(2, 3, 1, 1)
        >>> colorfulness(limit_colorfulness(images, 45)).round()
        tensor([ 0., 41.])
    """
    factor = (largest / colorfulness(images.float()).clamp(min=1e-6)).clamp(max=1).view(-1, 1, 1, 1)
    lightness, ab = split_lab(images)
    limited = compose(lightness, into_gamut(lightness, factor * ab)).clamp(0, 1)
    return torch.where(factor < 1, limited, images).to(images.dtype)


def _symmetric(count: int) -> Tensor:
    """Uniform numbers on [-1, 1], shape ``(count, 1, 1, 1)``."""
    return 2 * torch.rand(count, 1, 1, 1) - 1
