"""AlexNet as Caffe had it, the network of most self-supervised methods that the LPIPS paper compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from lpips_lightning.backbones.custom import channel_scaling, measured_backbone
from lpips_lightning.backbones.definition import Backbone
from lpips_lightning.backbones.lab import RgbToLab, rgb_to_lab

Normalization: TypeAlias = Literal["none", "batch", "batch_345", "batch_after"]
"""Batch normalization: none; before every ReLU; before those of conv3, 4 and 5; or behind those of conv1 to conv4."""

Colors: TypeAlias = Literal["bgr", "rgb", "gray", "lab", "lightness"]
"""What the first convolution sees: colors or gray on 0 to 255, CIE Lab (D65), or its lightness L alone."""

MEANS: dict[Colors, tuple[float, ...]] = {
    "bgr": (104.0, 117.0, 123.0),
    "rgb": (123.0, 117.0, 104.0),
    "gray": (117.0,),
    "lab": (50.0, 0.0, 0.0),
    "lightness": (50.0,),
}
"""Mean that is subtracted by default, by `Colors` and in the order of its channels."""

NET_TYPE = "caffe-alexnet"
"""Name of the backbone."""

GRAY = (0.299, 0.587, 0.114)
"""Red, green and blue in a gray value (ITU-R BT.601)."""

_KERNELS = (11, 5, 3, 3, 3)
_GROUPED = (1, 2, 1, 2, 2)
_POOLED = (1, 2)  # convolutions with a pool behind their ReLU


class CaffeAlexNet(nn.Module):
    """AlexNet as Caffe had it: images -> output of the fifth ReLU ``(N, C, h, w)``.

    Five convolutions (11 x 11 with stride 4, 5 x 5, and 3 x 3 three times), each with a ReLU; behind the first two,
    max-pools of 3 x 3 with stride 2 that count a partial window (``ceil_mode``), and local response normalization
    ``LRN(5, 1e-4, 0.75)``. Unlike torchvision's AlexNet, it has 96-256-384-384-256 channels, groups, and no padding at
    the first convolution. The feature layers of LPIPS are the ReLUs, ``relu1`` to ``relu5``.

    Images are RGB on [0, 1] whatever the network was trained on: `preprocess`, the first step of `forward`, converts
    them.

    Args:
        channels: Output channels of the five convolutions.
        groups: True for 2 groups in conv2, conv4 and conv5, as Krizhevsky et al.; False for none; or the number of
            groups of every convolution (split-brain: ``(1, 2, 2, 2, 2)``).
        lrn: Local response normalization behind both pools.
        normalization: Batch normalization. ``"batch"`` before every ReLU; ``"batch_345"`` before those of conv3, conv4
            and conv5; ``"batch_after"`` behind pool1, behind the LRN of pool2, and behind the ReLUs of conv3 and
            conv4.
        leaky: Slope of the ReLUs for negative values.
        first_padding: Zeros around the image at the first convolution, after the mean was subtracted.
        first_stride: Stride of the first convolution.
        colors: What the first convolution sees, which has one input channel for ``"gray"`` and ``"lightness"``, else
            three.
        mean: Subtracted from the input, one value per channel in the order of `colors`; None takes `MEANS`.
        std: The input's divisor after the mean was subtracted, likewise; None for 1.

    Attributes:
        features: All layers after `preprocess`; weights are named ``features.<index>.weight`` and ``.bias``.
        feature_layers: Index in `features` of every ReLU by layer name.
        convolutions: Index in `features` of every convolution.
        channels: Channels of every feature layer.
        settings: All arguments as plain values: ``CaffeAlexNet(**settings)`` builds the same architecture.

    Raises:
        ValueError: If an argument has an unknown value, or channels do not divide into groups.

    Example:
        >>> net = CaffeAlexNet((8, 16, 24, 24, 16), leaky=0.2, lrn=False)
        >>> {name: tuple(layer.shape[1:]) for name, layer in net.encode(torch.rand(1, 3, 67, 67)).items()}
        {'relu1': (8, 15, 15), 'relu2': (16, 7, 7), 'relu3': (24, 3, 3), 'relu4': (24, 3, 3), 'relu5': (16, 3, 3)}
    """

    def __init__(
        self,
        channels: Sequence[int] = (96, 256, 384, 384, 256),
        *,
        groups: bool | Sequence[int] = True,
        lrn: bool = True,
        normalization: Normalization = "none",
        leaky: float = 0.0,
        first_padding: int = 0,
        first_stride: int = 4,
        colors: Colors = "bgr",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        _check_choice("colors", colors, Colors)
        _check_choice("normalization", normalization, Normalization)
        self.channels = _five("channels", channels)
        by_convolution = _five("groups", _GROUPED if groups is True else groups or (1,) * 5)
        if by_convolution[0] != 1:
            raise ValueError(f"groups: expected 1 for the first convolution, got {by_convolution[0]}")
        self.settings: dict[str, Any] = {
            "channels": list(self.channels),
            "groups": list(by_convolution),
            "lrn": bool(lrn),
            "normalization": normalization,
            "leaky": float(leaky),
            "first_padding": int(first_padding),
            "first_stride": int(first_stride),
            "colors": colors,
            "mean": _per_channel("mean", MEANS[colors] if mean is None else mean, colors),
            "std": _per_channel("std", (1.0,) * len(MEANS[colors]) if std is None else std, colors),
        }
        self.colors: Colors = colors
        self.feature_layers: dict[str, int] = {}
        self.convolutions: list[int] = []
        self.features = nn.Sequential()
        for number in range(1, 6):
            self._append(number)

    @override
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.features(self.preprocess(images))
        return output

    def preprocess(self, images: Tensor) -> Tensor:
        """Convert RGB images on [0, 1], ``(N, 3, H, W)``, to what the first convolution sees, ``(N, C, H, W)``."""
        inputs = native(images, self.colors)
        mean, std = (inputs.new_tensor(self.settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
        return (inputs - mean) / std

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Features ``(N, C, h, w)`` by layer name, of RGB images on [0, 1]."""
        return self.encode_preprocessed(self.preprocess(images))

    def encode_preprocessed(self, inputs: Tensor) -> dict[str, Tensor]:
        """Features ``(N, C, h, w)`` by layer name, of images that `preprocess` converted."""
        names = {index: name for name, index in self.feature_layers.items()}
        result = {}
        for index, layer in enumerate(self.features):
            inputs = layer(inputs)
            if index in names:
                result[names[index]] = inputs
        return result

    def with_three_channels(self) -> CaffeAlexNet:
        """The same function, up to rounding, as a network with input ``"rgb"`` or ``"lab"``: a copy.

        The order of BGR, and gray's weights of red, green and blue, become part of the first convolution; lightness is
        Lab with zeros for a and b.
        """
        said, weight = dict(self.settings), self._first.weight.detach()
        if self.colors == "bgr":
            weight = weight.flip(1)
            said |= {"colors": "rgb", "mean": said["mean"][::-1], "std": said["std"][::-1]}
        elif self.colors == "gray":
            weight = weight * weight.new_tensor(GRAY).view(1, 3, 1, 1)
            said |= {"colors": "rgb", "mean": said["mean"] * 3, "std": said["std"] * 3}
        elif self.colors == "lightness":
            weight = torch.cat([weight, torch.zeros_like(weight), torch.zeros_like(weight)], 1)
            said |= {"colors": "lab", "mean": [*said["mean"], 0.0, 0.0], "std": [*said["std"], 1.0, 1.0]}
        with torch.device("meta"):  # draws no random numbers
            clone = CaffeAlexNet(**said).train(self.training)
        state = {**self.state_dict(), "features.0.weight": weight}
        clone.load_state_dict({name: tensor.detach().clone() for name, tensor in state.items()}, assign=True)
        return clone

    def backbone(self, smallest_side: int | None = None) -> Backbone:
        """This network with its current weights as a backbone for the `net_type` argument; see `caffe_backbone`."""
        net = self.with_three_channels()
        tensors = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
        return caffe_backbone(net.settings, partial(dict, tensors), smallest_side)

    @property
    def _first(self) -> nn.Conv2d:
        return cast("nn.Conv2d", self.features[0])

    def _append(self, number: int) -> None:
        """Append a convolution, and what follows it up to the next one."""
        said, add = self.settings, self.features.append
        inputs = self.channels[number - 2] if number > 1 else len(said["mean"])
        outputs, groups, kernel = self.channels[number - 1], said["groups"][number - 1], _KERNELS[number - 1]
        if inputs % groups or outputs % groups:
            raise ValueError(
                f"channels: expected multiples of {groups}, the groups of conv{number}, got {inputs} and {outputs}"
            )
        stride, padding = (said["first_stride"], said["first_padding"]) if number == 1 else (1, kernel // 2)
        self.convolutions.append(len(self.features))
        add(nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups))
        normalization = said["normalization"]
        if normalization == "batch" or (normalization == "batch_345" and number >= 3):
            add(nn.BatchNorm2d(outputs))
        self.feature_layers[f"relu{number}"] = len(self.features)
        add(nn.LeakyReLU(said["leaky"]) if said["leaky"] else nn.ReLU())
        for layer in self._behind(number):
            add(layer)

    def _behind(self, number: int) -> list[nn.Module]:
        """The layers between the ReLU of a convolution and the next convolution."""
        said, layers = self.settings, list[nn.Module]()
        if number in _POOLED:
            layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            layers += [nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)] if said["lrn"] else []
        if said["normalization"] == "batch_after" and number < 5:
            # As published (egomotion): in front of the first LRN, behind the second.
            layers.insert(1 if number == 1 else len(layers), nn.BatchNorm2d(self.channels[number - 1]))
        return layers


def caffe_backbone(
    settings: Mapping[str, Any],
    default_weights: Callable[[], Mapping[str, Tensor]] | None = None,
    smallest_side: int | None = None,
) -> Backbone:
    """A `CaffeAlexNet` as a backbone: its feature layers are the five ReLUs.

    Args:
        settings: Arguments of `CaffeAlexNet`, with `colors` ``"rgb"`` or ``"lab"``; see
            `CaffeAlexNet.with_three_channels`.
        default_weights: Returns weights by the names of its ``state_dict``; None if there are none.
        smallest_side: Minimum image side in pixels; None determines it.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration.

    Raises:
        ValueError: If a setting is invalid.
    """
    build = partial(_ThreeChannels, dict(settings))
    with torch.device("meta"):
        net = CaffeAlexNet(**settings)
    nodes = {layer: f"features.{index}" for layer, index in net.feature_layers.items()}
    if net.colors == "rgb":  # the mean and standard deviation of images on [0, 1]
        mean, std = ([value / 255 for value in net.settings[name]] for name in ("mean", "std"))
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    scaling = channel_scaling(mean, std, 3, True)
    return measured_backbone(NET_TYPE, "", nodes, build, default_weights, scaling, smallest_side)


def settings_of(backbone: Backbone) -> dict[str, Any] | None:
    """The settings of a backbone that `caffe_backbone` made; None for others."""
    build = backbone.build
    return dict(build.args[0]) if isinstance(build, partial) and build.func is _ThreeChannels else None


class _ThreeChannels(nn.Module):
    """The layers of a `CaffeAlexNet` for standardized RGB images, or for RGB images on [0, 1] that become Lab."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__()
        net = CaffeAlexNet(**settings)
        self.lab = RgbToLab(net.settings["mean"], net.settings["std"]) if net.colors == "lab" else nn.Identity()
        self.features = net.features

    @override
    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.features(self.lab(images))
        return output


def native(images: Tensor, colors: Colors) -> Tensor:
    """Convert RGB images to the channels of an input convention, before its mean is subtracted.

    Args:
        images: Shape ``(N, 3, H, W)`` on [0, 1].
        colors: The convention.

    Returns:
        Shape ``(N, 1, H, W)`` for gray and lightness, else ``(N, 3, H, W)``: on 0 to 255, or the units of CIE Lab.
    """
    if colors in ("lab", "lightness"):
        lab = rgb_to_lab(images)
        return lab if colors == "lab" else lab[:, :1]
    images = 255 * images
    if colors == "gray":
        return (images * images.new_tensor(GRAY).view(3, 1, 1)).sum(1, keepdim=True)
    return images.flip(1) if colors == "bgr" else images


def _check_choice(name: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def _five(name: str, values: Any) -> tuple[int, ...]:
    found = tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else ()
    if len(found) != 5 or not all(type(value) is int and value > 0 for value in found):
        raise ValueError(f"{name}: expected five positive integers, one per convolution, got {values!r}")
    return found


def _per_channel(name: str, values: Sequence[float], colors: Colors) -> list[float]:
    count = len(MEANS[colors])
    if len(values) != count or (name == "std" and min(values) <= 0):
        kind = "positive numbers" if name == "std" else "numbers"
        raise ValueError(f"{name}: expected {count} {kind} for {colors!r}, got {values!r}")
    return [float(value) for value in values]
