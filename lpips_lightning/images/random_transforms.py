"""Random transformations of image pairs, for averages over them: both images of a pair are transformed alike.

The list of E-LPIPS (Kettunen, Härkönen and Lehtinen 2019), without its dropout inside the network.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Numbers: TypeAlias = Sequence[float]
"""Uniform random numbers on [0, 1)."""


class RandomTransform:
    """A transformation of images that is determined by a few uniform random numbers: base class.

    A subclass is a frozen dataclass, whose ``repr`` stands in the fingerprint.

    Attributes:
        moves_pixels: Whether masks are transformed too, and maps are moved back; False if only colors change.
    """

    moves_pixels: ClassVar[bool] = True

    def amount(self, channels: int) -> int:
        """How many random numbers it takes.

        Args:
            channels: Number of channels of the images.
        """
        raise NotImplementedError

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """Transform images, differentiably.

        Args:
            images: Images ``(M, C, H, W)``, floating on [0, 1], or masks ``(M, 1, H, W)``. Predictions may have any
                values.
            numbers: As many as `amount` says.

        Returns:
            Shape ``(M, C, h, w)``.
        """
        raise NotImplementedError

    def restore(self, maps: Tensor, numbers: Numbers, size: tuple[int, int]) -> Tensor:
        """Move maps of the transformed images back to the pixels of the images.

        Args:
            maps: Shape ``(M, 1, h, w)``.
            numbers: Those of `apply`.
            size: ``(H, W)`` of the images.

        Returns:
            Shape ``(M, 1, H, W)``.
        """
        return maps


@dataclass(frozen=True)
class Shift(RandomTransform):
    """Move images down and to the right by two whole numbers of pixels; the size stays.

    Rows and columns that become free are filled by reflection without repeating the edge; those that leave the image
    are lost. A negative number moves the other way.

    Attributes:
        low: Smallest number of pixels.
        high: Largest number of pixels.
    """

    low: int = 0
    high: int = 7

    def __post_init__(self) -> None:
        if not (type(self.low) is int and type(self.high) is int and self.low <= self.high):
            raise ValueError(f"Shift: expected whole numbers of pixels low <= high, got {self.low!r}, {self.high!r}")

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return 2

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`.

        Raises:
            ValueError: If an image is too small to be reflected.
        """
        return self._moved(images, *self._pixels(numbers))

    def restore(self, maps: Tensor, numbers: Numbers, size: tuple[int, int]) -> Tensor:
        """See `RandomTransform.restore`; what was lost is filled by reflection."""
        down, right = self._pixels(numbers)
        return self._moved(maps, -down, -right)

    def _pixels(self, numbers: Numbers) -> tuple[int, int]:
        down, right = (self.low + int(number * (self.high - self.low + 1)) for number in numbers)
        return down, right

    def _moved(self, images: Tensor, down: int, right: int) -> Tensor:
        height, width = images.shape[-2:]
        if max(abs(self.low), abs(self.high)) >= min(height, width):
            raise ValueError(
                f"{self}: expected images with sides above {max(abs(self.low), abs(self.high))}, got {height}x{width}"
            )
        if (down, right) == (0, 0):
            return images
        padding = (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0))
        return F.pad(images, padding, mode="reflect")[..., max(-down, 0) :, max(-right, 0) :][..., :height, :width]


@dataclass(frozen=True)
class Flip(RandomTransform):
    """Mirror images from left to right, and from top to bottom, each with a probability.

    Attributes:
        probability: Of each of both.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return 2

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`."""
        dims = [dim for dim, number in zip((-1, -2), numbers, strict=True) if number < self.probability]
        return images.flip(dims) if dims else images

    def restore(self, maps: Tensor, numbers: Numbers, size: tuple[int, int]) -> Tensor:
        """See `RandomTransform.restore`."""
        return self.apply(maps, numbers)


@dataclass(frozen=True)
class Transpose(RandomTransform):
    """Exchange height and width with a probability.

    Attributes:
        probability: Of the exchange.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return 1

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`."""
        return images.transpose(-1, -2) if numbers[0] < self.probability else images

    def restore(self, maps: Tensor, numbers: Numbers, size: tuple[int, int]) -> Tensor:
        """See `RandomTransform.restore`."""
        return self.apply(maps, numbers)


@dataclass(frozen=True)
class ChannelGains(RandomTransform):
    """Multiply every channel, on [0, 1], by its own random number.

    Attributes:
        low: Smallest factor.
        high: Largest factor, at most 1: the images stay on [0, 1].
    """

    moves_pixels: ClassVar[bool] = False
    low: float = 0.2
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.low) and _is_number(self.high) and 0 < self.low <= self.high <= 1):
            raise ValueError(f"ChannelGains: expected factors 0 < low <= high <= 1, got {self.low!r}, {self.high!r}")

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return channels

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`."""
        gains = [self.low + (self.high - self.low) * number for number in numbers]
        return images * torch.tensor(gains, dtype=images.dtype, device=images.device).view(-1, 1, 1)


@dataclass(frozen=True)
class ChannelPermutation(RandomTransform):
    """Put the channels into a random order; all orders are equally likely."""

    moves_pixels: ClassVar[bool] = False

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return channels

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`."""
        return images[:, sorted(range(len(numbers)), key=lambda channel: numbers[channel])]


@dataclass(frozen=True)
class BoxDownscale(RandomTransform):
    """Replace boxes of i x i pixels by their mean, for a random i, with a probability proportional to ``1 / i**2``.

    Incomplete boxes at the right and lower edges are the mean of the pixels that they have. Factors that leave a side
    smaller than `least_side` are not drawn; smaller images stay as they are.

    Attributes:
        most: Largest i.
        least_side: Smallest side, in pixels, that an image may be reduced to.
    """

    most: int = 8
    least_side: int = 64

    def __post_init__(self) -> None:
        for name in ("most", "least_side"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"BoxDownscale: expected a whole number {name} >= 1, got {value!r}")

    def amount(self, channels: int) -> int:
        """See `RandomTransform.amount`."""
        return 1

    def apply(self, images: Tensor, numbers: Numbers) -> Tensor:
        """See `RandomTransform.apply`."""
        factor = self._factor(numbers[0], min(images.shape[-2:]))
        return images if factor == 1 else F.avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)

    def restore(self, maps: Tensor, numbers: Numbers, size: tuple[int, int]) -> Tensor:
        """See `RandomTransform.restore`; all pixels of a box have its value."""
        factor = self._factor(numbers[0], min(size))
        repeated = maps.repeat_interleave(factor, -2).repeat_interleave(factor, -1) if factor > 1 else maps
        return repeated[..., : size[0], : size[1]]

    def _factor(self, number: float, side: int) -> int:
        factors = [factor for factor in range(1, self.most + 1) if math.ceil(side / factor) >= self.least_side] or [1]
        sums = list(itertools.accumulate(1 / factor**2 for factor in factors))
        return factors[sum(number * sums[-1] >= limit for limit in sums[:-1])]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_probability(transform: Flip | Transpose) -> None:
    value = transform.probability
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{type(transform).__name__}: expected a probability on [0, 1], got {value!r}")


NAMED: dict[str, tuple[RandomTransform, ...]] = {
    "elpips": (Shift(), Flip(), Transpose(), ChannelGains(), ChannelPermutation(), BoxDownscale()),
    "shift": (Shift(-7, 7),),
}
"""Lists of transformations by name, applied one after the other."""
