"""Ordinary image networks at their default initialization, none of which ends in a tanh or a sigmoid."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Decoder(nn.Module):
    """The end of a VAE or VQGAN decoder: ``(N, 4, h, w)`` -> ``(N, 3, 2h, 2w)``."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, width, 3, padding=1), nn.GroupNorm(32, width)
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.last(F.silu(self.norm(F.interpolate(self.first(z), scale_factor=2))))


class UNet(nn.Module):
    """Two levels, batch norm, skip connections: ``(N, C, h, w)`` -> ``(N, 3, scale * h, scale * w)``."""

    def __init__(self, channels: int = 4, width: int = 16, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.down1, self.down2 = _block(channels, width), _block(width, 2 * width)
        self.middle, self.up2 = _block(2 * width, 2 * width), _block(4 * width, width)
        self.up1, self.last = _block(2 * width, width), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=self.scale) if self.scale > 1 else x
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        deep = F.interpolate(self.middle(F.max_pool2d(second, 2)), scale_factor=2)
        deep = F.interpolate(self.up2(torch.cat((deep, second), 1)), scale_factor=2)
        return self.last(self.up1(torch.cat((deep, first), 1)))


class Residual(nn.Module):
    """EDSR-like, without normalization: the input, enlarged, plus what residual blocks add."""

    def __init__(self, width: int = 16, blocks: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 12, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        deep = self.first(x)
        for block in self.blocks:
            deep = deep + block(deep)
        return F.pixel_shuffle(self.last(deep), 2) + F.interpolate(x[:, :3], scale_factor=2)


def kaiming_cnn() -> nn.Module:
    """Five convolutions, initialized as He et al. say."""
    widths = (4, 16, 16, 16, 12)
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    hidden = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    return nn.Sequential(*hidden, nn.PixelShuffle(2))


def _block(channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


UNTRAINED = {"VAE decoder": Decoder, "U-Net": UNet, "kaiming CNN": kaiming_cnn, "residual network": Residual}
