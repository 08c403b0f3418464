"""The embedded backbone: small enough to ship, so that a perceptual distance needs no download.

A chain of convolutions and ReLUs, distilled from LPIPS-alex by ``recipes/distillation.py``, which can train any chain
of `Stage`. `EMBEDDED` is the architecture of ``weights/embedded.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from typing_extensions import override


@dataclass(frozen=True)
class Stage:
    """A convolution and a ReLU.

    Attributes:
        channels: Output channels.
        kernel: Kernel size.
        stride: Stride of the convolution.
        padding: Zeros on each side.
        pool: Size of a pool with stride 2 before the convolution; 0 for none.
        average: Whether the pool averages, instead of taking the maximum.
        compared: Whether the output is a feature layer.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    average: bool = False
    compared: bool = True


EMBEDDED = (
    Stage(48, kernel=11, stride=4, padding=2),
    Stage(64, pool=3),
    Stage(128, pool=3),
    Stage(128),
    Stage(96),
)
"""AlexNet's kernels and strides with fewer channels, so that feature layers match the teacher's in size.

The first layer matters most: 48 channels of 11 x 11 agree with the teacher far better than 32 at the same total cost.
"""


class PlainBackbone(nn.Module):
    """A chain of stages: preprocessed images ``(N, 3, H, W)`` -> output of the last ReLU ``(N, C, h, w)``.

    Attributes:
        features: All layers; weights are named ``features.<index>.weight`` and ``.bias``.
        feature_layers: Index in `features` of every compared ReLU, by layer name: ``relu1`` follows the first stage.
        channels: Channels of every feature layer.

    Args:
        stages: Stages in order, at least one.

    Raises:
        ValueError: If `stages` is empty.

    Example:
        >>> backbone = PlainBackbone([Stage(8, stride=2), Stage(16, pool=3)])
        >>> backbone.feature_layers, backbone.channels
        ({'relu1': 1, 'relu2': 4}, (8, 16))
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("stages: expected at least one, got none")
        layers: list[nn.Module] = []
        self.feature_layers: dict[str, int] = {}
        inputs = 3
        for number, stage in enumerate(stages, start=1):
            if stage.pool:
                layers.append((nn.AvgPool2d if stage.average else nn.MaxPool2d)(stage.pool, stride=2))
            layers += [nn.Conv2d(inputs, stage.channels, stage.kernel, stage.stride, stage.padding), nn.ReLU()]
            if stage.compared:
                self.feature_layers[f"relu{number}"] = len(layers) - 1
            inputs = stage.channels
        self.channels = tuple(stage.channels for stage in stages if stage.compared)
        self.features = nn.Sequential(*layers)

    @override
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.features(images)
        return output

    def output_of(self, index: int, images: Tensor) -> Tensor:
        """Output of one layer of `features`, for its input."""
        output: Tensor = self.features[index](images)
        return output

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features ``(N, C, h, w)`` by layer name."""
        names = {index: name for name, index in self.feature_layers.items()}
        result = {}
        for index in range(len(self.features)):
            images = self.output_of(index, images)
            if index in names:
                result[names[index]] = images
        return result
