"""AlexNet as Caffe had it, the network of most self-supervised methods that the LPIPS paper compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

Normalization: TypeAlias = Literal["none", "batch", "batch_345", "batch_after_pool"]
"""Batch normalization: none; before every ReLU; before the ReLUs of conv3, 4 and 5; or after every pool."""

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
        normalization: Batch normalization. ``"batch"`` before every ReLU, ``"batch_345"`` before those of conv3, conv4
            and conv5, ``"batch_after_pool"`` behind both pools, before LRN.
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
        self.register_buffer("_mean", torch.tensor(self.settings["mean"]).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.settings["std"]).view(-1, 1, 1), persistent=False)
        self._mean: Tensor
        self._std: Tensor
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
        return (native(images, self.colors) - self._mean) / self._std

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
        if number in _POOLED:
            add(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            if normalization == "batch_after_pool":
                add(nn.BatchNorm2d(outputs))
            if said["lrn"]:
                add(nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75))


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


# sRGB -> XYZ, divided by the white point D65, which becomes (1, 1, 1).
_TO_XYZ = (
    (0.412453 / 0.95047, 0.357580 / 0.95047, 0.180423 / 0.95047),
    (0.212671, 0.715160, 0.072169),
    (0.019334 / 1.08883, 0.119193 / 1.08883, 0.950227 / 1.08883),
)
_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))


def rgb_to_lab(images: Tensor) -> Tensor:
    """Convert sRGB to CIE Lab (D65, 2 degrees), as scikit-image does; differentiable, also at black.

    Args:
        images: Shape ``(N, 3, H, W)`` on [0, 1].

    Returns:
        Shape ``(N, 3, H, W)``: L on [0, 100], a and b within about [-128, 127].

    Example:
        >>> rgb_to_lab(torch.ones(1, 3, 1, 1)).flatten().round().abs()
        tensor([100.,   0.,   0.])
    """
    low = images / 12.92
    high = ((images.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    linear = torch.where(images > 0.04045, high, low)
    xyz = torch.einsum("ij,njhw->nihw", images.new_tensor(_TO_XYZ), linear)
    root = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    offset = images.new_tensor((-16.0, 0.0, 0.0)).view(3, 1, 1)
    return torch.einsum("ij,njhw->nihw", images.new_tensor(_TO_LAB), root) + offset


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
