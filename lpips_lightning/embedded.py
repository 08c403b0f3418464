"""The embedded trunk: small enough to ship, so that a perceptual distance needs no download.

A plain chain of convolutions and ReLUs, taught by ``recipes/distillation.py`` to give the distances of LPIPS-alex.
Any chain of `Stage` can be taught so; `EMBEDDED` is the one whose weights lie in ``weights/embedded.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from typing_extensions import override

__all__ = ["EMBEDDED", "PlainTrunk", "Stage", "embedded_trunk"]


@dataclass(frozen=True)
class Stage:
    """One convolution with its ReLU, which is a tap.

    Attributes:
        channels: Output channels.
        kernel: Side of the kernel.
        stride: Of the convolution.
        padding: Zeros on each side.
        pool: Put a 3 x 3 max-pool of stride 2 before the convolution.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: bool = False


EMBEDDED = (
    Stage(48, kernel=11, stride=4, padding=2),
    Stage(64, pool=True),
    Stage(128, pool=True),
    Stage(128),
    Stage(96),
)
"""AlexNet's geometry, so that every tap lies where the teacher's does, with fewer channels.

The first layer matters most: 48 channels of 11 x 11 agree with the teacher far better than 32 at the same cost.
"""


class PlainTrunk(nn.Module):
    """A chain of stages: images ``(N, 3, H, W)``, shifted and scaled, to the last ReLU's ``(N, C, h, w)``.

    Attributes:
        features: The layers in one sequence; weights are called ``features.<index>.weight`` and ``.bias``.
        taps: Index in `features` of every ReLU, by layer name ``relu1``, ``relu2``, ...
        channels: Channels of every tap.

    Args:
        stages: From the input on.

    Raises:
        ValueError: If there is no stage.

    Example:
        >>> trunk = PlainTrunk([Stage(8, stride=2), Stage(16, pool=True)])
        >>> trunk.taps, trunk.channels
        ({'relu1': 1, 'relu2': 4}, (8, 16))
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        layers: list[nn.Module] = []
        self.taps: dict[str, int] = {}
        inputs = 3
        for number, stage in enumerate(stages, start=1):
            if stage.pool:
                layers.append(nn.MaxPool2d(3, stride=2))
            layers += [nn.Conv2d(inputs, stage.channels, stage.kernel, stage.stride, stage.padding), nn.ReLU()]
            self.taps[f"relu{number}"] = len(layers) - 1
            inputs = stage.channels
        self.channels = tuple(stage.channels for stage in stages)
        self.features = nn.Sequential(*layers)

    @override
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.features(images)
        return output

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Every tap by layer name, each ``(N, C, h, w)``."""
        names = {index: name for name, index in self.taps.items()}
        result = {}
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in names:
                result[names[index]] = images
        return result


def embedded_trunk() -> PlainTrunk:
    """The architecture of ``weights/embedded.safetensors``, with fresh weights.

    Example:
        >>> sum(parameter.numel() for parameter in embedded_trunk().parameters())
        377312
    """
    return PlainTrunk(EMBEDDED)
