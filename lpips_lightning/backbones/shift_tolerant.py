"""The networks of shift-tolerant LPIPS: AlexNet and VGG16 that blur before they subsample.

Architectures of Ghildyal and Liu, "Shift-tolerant Perceptual Similarity Metric" (ECCV 2022); blur pooling is that of
Zhang, "Making Convolutional Networks Shift-Invariant Again" (ICML 2019), with twice its padding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lpips_lightning.tracing import is_jit_tracing, static_sizes, untraced

ALEX = (64, 192, 384, 256, 256)
"""Channels of the convolutions, of which each is a feature layer."""

VGG = (64, 128, 256, 512, 512)
"""Channels of the blocks of convolutions."""

_VGG_CONVOLUTIONS = (2, 2, 3, 3, 3)


class BlurPool(nn.Module):
    """Blur each channel with the outer product of [1, 2, 1] / 4 with itself, then take every second position.

    ``(N, C, H, W)`` -> ``(N, C, (H + 1) // 2 + 1, (W + 1) // 2 + 1)``. Images are reflected by 2 positions at each
    border first, and need at least 3 positions. There are no weights, so that nothing has to follow the input to its
    device and dtype.

    Attributes:
        padding: Reflected positions on each side.

    Example:
        >>> BlurPool()(torch.eye(4).view(1, 1, 4, 4))[0, 0]
        tensor([[0.3750, 0.3750, 0.1250],
                [0.3750, 0.3750, 0.1250],
                [0.1250, 0.1250, 0.5000]])
    """

    padding = 2

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.blur(reflect(x, self.padding, self.padding))

    @staticmethod
    def blur(x: Tensor) -> Tensor:
        """Blur and subsample a padded input.

        Args:
            x: Shape ``(N, C, H, W)``.

        Returns:
            Shape ``(N, C, (H - 1) // 2, (W - 1) // 2)``.
        """
        (channels,) = static_sizes(x.shape[1:2])
        # In ONNX files filters must be constants.
        with untraced() if is_jit_tracing() else contextlib.nullcontext():
            taps = 2 - (torch.arange(3, device=x.device, dtype=x.dtype) - 1).abs()
            weight = (taps.unsqueeze(1) * taps / 16).expand(channels, 1, 3, 3)
        return F.conv2d(x, weight, stride=2, groups=channels)


def reflect(x: Tensor, rows: int, columns: int) -> Tensor:
    """Reflect images at their borders, without repeating the border itself.

    Args:
        x: Shape ``(N, C, H, W)``.
        rows: Positions above and below.
        columns: Positions left and right.

    Returns:
        Shape ``(N, C, H + 2 * rows, W + 2 * columns)``.
    """
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():  # F.pad's backward pass is not
        return _reflected(_reflected(x, 2, rows), 3, columns)
    return F.pad(x, (columns, columns, rows, rows), mode="reflect")


def _reflected(x: Tensor, dim: int, count: int) -> Tensor:
    length = x.shape[dim]
    first, last = x.narrow(dim, 1, count), x.narrow(dim, length - 1 - count, count)
    return torch.cat([first.flip(dim), x, last.flip(dim)], dim) if count else x


class ShiftTolerantNet(nn.Module):
    """Layers of a shift-tolerant network, as ``features``: preprocessed images ``(N, 3, H, W)`` -> last feature layer.

    Args:
        layers: The layers in order.
    """

    def __init__(self, layers: Iterator[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)

    @override
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.features(images)
        return output


def shift_tolerant_alexnet(channels: Sequence[int] = ALEX) -> ShiftTolerantNet:
    """AlexNet whose strides are those of blur pooling.

    Args:
        channels: Channels of the five convolutions.

    Returns:
        A network with random weights; the ReLUs are ``features.2``, ``6``, ``10``, ``12`` and ``14``.
    """
    return ShiftTolerantNet(_alexnet(channels))


def shift_tolerant_vgg16(channels: Sequence[int] = VGG) -> ShiftTolerantNet:
    """VGG16 whose pools are max-pools of stride 1, followed by blur pooling.

    Args:
        channels: Channels of the five blocks.

    Returns:
        A network with random weights; the feature layers are ``features.3``, ``9``, ``17``, ``25`` and ``33``.
    """
    return ShiftTolerantNet(_vgg16(channels))


def _alexnet(channels: Sequence[int]) -> Iterator[nn.Module]:
    one, two, three, four, five = channels
    yield from (nn.Conv2d(3, one, 11, padding=2), BlurPool(), nn.ReLU(inplace=True))
    yield from (nn.MaxPool2d(3, stride=1), BlurPool(), nn.Conv2d(one, two, 5, padding=2), nn.ReLU(inplace=True))
    yield from (nn.MaxPool2d(3, stride=1), BlurPool())
    for inputs, outputs in ((two, three), (three, four), (four, five)):
        yield from (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))


def _vgg16(channels: Sequence[int]) -> Iterator[nn.Module]:
    inputs = 3
    for block, (outputs, count) in enumerate(zip(channels, _VGG_CONVOLUTIONS, strict=True)):
        if block:
            yield from (nn.MaxPool2d(2, stride=1), BlurPool())
        for _ in range(count):
            yield from (nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True))
            inputs = outputs
