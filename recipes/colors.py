"""Lab conversion that preserves lightness, and two color scores: CIEDE2000 and colorfulness."""

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from kornia.color import lab_to_rgb, rgb_to_lab
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lpips_lightning.batch import SUM_DTYPE

Of = Literal["preds", "target", "ratio"]

# A quarter of an 8-bit step: the round-trip error of Lab that still counts as in gamut.
_GAMUT_TOLERANCE = 1e-3
_BISECTIONS = 8


def split_lab(images: Tensor) -> tuple[Tensor, Tensor]:
    """Lightness and color of sRGB images, in float32 under any autocast; in bfloat16 Lab has errors of 3 units.

    Args:
        images: Shape ``(N, 3, H, W)``, floating, range [0, 1].

    Returns:
        L, ``(N, 1, H, W)`` on [0, 100], and a and b, ``(N, 2, H, W)`` on about [-110, 110]; 0 is gray.

    Raises:
        TypeError: If `images` is not floating.

    Example:
        >>> lightness, ab = split_lab(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1))
        >>> lightness.flatten().round(), ab.flatten().round()
        (tensor([53.]), tensor([80., 67.]))
    """
    if not images.is_floating_point():
        raise TypeError(f"images: expected a floating dtype with range [0, 1], got {images.dtype}")
    with torch.autocast(images.device.type, enabled=False):
        lab = rgb_to_lab(images if images.dtype == torch.float64 else images.float())
    return lab[:, :1], lab[:, 1:]


def compose(lightness: Tensor, ab: Tensor) -> Tensor:
    """Convert L and ab to sRGB images ``(N, 3, H, W)``; values are outside [0, 1] for colors outside sRGB.

    Args:
        lightness: Shape ``(N, 1, H, W)``, range [0, 100].
        ab: Shape ``(N, 2, H, W)``.

    Returns:
        Images, differentiable with finite gradients everywhere; float32; float64 for float64 inputs.
    """
    with torch.autocast(lightness.device.type, enabled=False):
        dtype = torch.promote_types(lightness.dtype, torch.float32)
        return lab_to_rgb(torch.cat([lightness.to(dtype), ab.to(dtype)], 1), clip=False)


@torch.no_grad()
def into_gamut(lightness: Tensor, ab: Tensor) -> Tensor:
    """Reduce the saturation of colors outside sRGB until they are inside, with the same hue and lightness.

    Clipping of red, green and blue would change the lightness, which a colorization must preserve.

    Args:
        lightness: Shape ``(N, 1, H, W)``, range [0, 100].
        ab: Shape ``(N, 2, H, W)``.

    Returns:
        Shape ``(N, 2, H, W)``: `ab` times a factor in [0, 1] per pixel.
    """
    outside = ~_inside(lightness, ab)
    if not bool(outside.any()):
        return ab
    result = ab.permute(0, 2, 3, 1).clone()
    pixels, colors = lightness[:, 0][outside].view(-1, 1, 1, 1), result[outside].view(-1, 2, 1, 1)
    lowest = torch.zeros_like(pixels)
    for step in range(_BISECTIONS):
        middle = lowest + 0.5 ** (step + 1)
        lowest = torch.where(_inside(pixels, colors * middle)[:, None], middle, lowest)
    result[outside] = (colors * lowest).flatten(1)
    return result.permute(0, 3, 1, 2)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 color difference of every pixel; 1 is about the visibility threshold, 10 clearly another color.

    Sharma, Wu and Dalal 2005 (doi:10.1002/col.20070), equations 2 to 22, with all weighting factors 1.

    Args:
        first: Lab, shape ``(N, 3, H, W)``.
        second: Lab, same shape.

    Returns:
        Shape ``(N, H, W)``.

    Example:
        >>> gray, reddish = torch.tensor([50.0, 2.5, 0]), torch.tensor([56.0, -27, -3])
        >>> ciede2000(gray.view(1, 3, 1, 1), reddish.view(1, 3, 1, 1)).flatten()
        tensor([31.9030])
    """
    (l1, a1, b1), (l2, a2, b2) = first.unbind(1), second.unbind(1)
    stretch = 1.5 - 0.5 * _high_chroma((torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2)
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.atan2(b, a).remainder(2 * math.pi) for a, b in ((a1, b1), (a2, b2)))
    turned, total = h2 - h1, h1 + h2
    around = turned.abs() > math.pi
    turned = torch.where(around, turned - 2 * math.pi * turned.sign(), turned)
    opposite = torch.where(total < 2 * math.pi, total + 2 * math.pi, total - 2 * math.pi)
    hue = torch.where(around, opposite, total) / 2  # irrelevant where one color is gray: dh below is 0 there
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = 1 - 0.17 * torch.cos(hue - math.radians(30)) + 0.24 * torch.cos(2 * hue)
    t = t + 0.32 * torch.cos(3 * hue + math.radians(6)) - 0.2 * torch.cos(4 * hue - math.radians(63))
    off_middle = (lightness - 50) ** 2
    dl = (l2 - l1) / (1 + 0.015 * off_middle / (20 + off_middle).sqrt())
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * (c1 * c2).sqrt() * torch.sin(turned / 2) / (1 + 0.015 * chroma * t)
    blue = math.radians(30) * torch.exp(-(((hue - math.radians(275)) / math.radians(25)) ** 2))
    rotation = -torch.sin(2 * blue) * 2 * _high_chroma(chroma)
    return (dl**2 + dc**2 + dh**2 + rotation * dc * dh).clamp(min=0).sqrt()


def colorfulness(images: Tensor) -> Tensor:
    """Colorfulness of images: 0 is gray, 33 moderately, 59 quite, 109 extremely colorful.

    M3 of Hasler and Suesstrunk 2003 (doi:10.1117/12.477378), with their labels.

    Args:
        images: sRGB, shape ``(N, 3, H, W)``, floating, range [0, 1].

    Returns:
        Shape ``(N,)``.

    Example:
        >>> colorfulness(torch.tensor([[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]).view(2, 3, 1, 1))
        tensor([ 0.0000, 85.5296])
    """
    red, green, blue = (255 * images).flatten(2).unbind(1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
    mean = opponents.mean(2, keepdim=True)
    deviation = (opponents - mean).square().mean(2).sum(1).sqrt()
    return deviation + 0.3 * mean.square().sum((1, 2)).sqrt()


class _MeanOverImages(Metric):
    """Base of metrics with sums over images and their count; exact over batches and ranks."""

    is_differentiable = False
    full_state_update = False


class ColorDifference(_MeanOverImages):
    """Mean over images of their mean CIEDE2000.

    Example:
        >>> metric = ColorDifference()
        >>> metric.update(torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        difference: Tensor
        images: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("difference", torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add images.

        Args:
            preds: sRGB, shape ``(N, 3, H, W)``, floating, range [0, 1].
            target: Same shape and range.
        """
        pair = (torch.cat(split_lab(images), 1) for images in (preds, target))
        # Not in place: the state may be an inference tensor, since a Trainer's validate resets it in inference mode.
        self.difference = self.difference + ciede2000(*pair).mean((1, 2)).sum(dtype=SUM_DTYPE)
        self.images = self.images + len(preds)

    @override
    def compute(self) -> Tensor:
        return (self.difference / self.images).float()


class Colorfulness(_MeanOverImages):
    """Mean `colorfulness` of predictions or targets, or the ratio of these two means.

    With a ratio near 0 the predictions are gray, whatever the other scores are.

    Args:
        of: ``"preds"``, ``"target"`` or ``"ratio"``.
        kwargs: See `torchmetrics.Metric`.

    Raises:
        ValueError: If `of` has another value.

    Example:
        >>> metric = Colorfulness(of="ratio")
        >>> metric.update(torch.full((1, 3, 8, 8), 0.5), torch.rand(1, 3, 8, 8))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = None
    if TYPE_CHECKING:  # torch.jit.script reads annotations of attributes, and these are strings
        preds_sum: Tensor
        target_sum: Tensor
        images: Tensor

    def __init__(self, of: Of = "preds", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if of not in get_args(Of):
            raise ValueError(f"of: expected one of {get_args(Of)}, got {of!r}")
        self.of = of
        for name in ("preds_sum", "target_sum"):
            self.add_state(name, torch.zeros((), dtype=SUM_DTYPE), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @override
    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add images.

        Args:
            preds: sRGB, shape ``(N, 3, H, W)``, floating, range [0, 1].
            target: Same shape and range.
        """
        self.preds_sum = self.preds_sum + colorfulness(preds.float()).sum(dtype=SUM_DTYPE)
        self.target_sum = self.target_sum + colorfulness(target.float()).sum(dtype=SUM_DTYPE)
        self.images = self.images + len(preds)

    @override
    def compute(self) -> Tensor:
        if self.of == "ratio":
            return (self.preds_sum / self.target_sum).float()
        return ((self.preds_sum if self.of == "preds" else self.target_sum) / self.images).float()


def _inside(lightness: Tensor, ab: Tensor) -> Tensor:
    """Whether each pixel is in sRGB, shape ``(N, H, W)``."""
    rgb = compose(lightness, ab)
    return ((rgb >= -_GAMUT_TOLERANCE) & (rgb <= 1 + _GAMUT_TOLERANCE)).all(1)


def _high_chroma(chroma: Tensor) -> Tensor:
    """Smooth step from 0 at gray to 1 far above a chroma of 25."""
    return (chroma**7 / (chroma**7 + 25.0**7)).sqrt()
