"""Custom backbones: other torchvision models, or any module, with feature layers chosen by name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.definition import IMAGENET_MEAN, IMAGENET_STD, Backbone, TorchvisionBuilder
from lpips_lightning.backbones.extractor import cut, hooked_features
from lpips_lightning.backbones.first_convolution import RepeatedBuilder
from lpips_lightning.backbones.tokens import Tokens, TokensBuilder, tokens_of

FirstConv: TypeAlias = Literal["as_is", "repeat"]
"""First convolution of a backbone for other than 3 channels: as it is, or its RGB filters repeated, as timm does."""

_PROBE_SIDE = 256
_Build: TypeAlias = Callable[[], nn.Module]


def from_torchvision(
    builder: str,
    feature_layers: Sequence[str] | Mapping[str, str],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_channels: int | None = None,
    has_range: bool = True,
    first_conv: FirstConv = "as_is",
    smallest_side: int | None = None,
    tokens: Tokens | bool = False,
) -> Backbone:
    """A torchvision model as a backbone; its ``IMAGENET1K_V1`` weights are found as those of built-in backbones.

    Args:
        builder: Name of the model, for example ``"vgg19"``, ``"resnet50"``, ``"convnext_tiny"``.
        feature_layers: Nodes whose outputs are compared, in order, named as by
            `torchvision.models.feature_extraction.get_graph_node_names`; the keys of a mapping are your layer names.
        mean: Input mean per channel, for images in [0, 1]; None: ImageNet's for 3 channels with a range, else as in
            `from_module`.
        std: Input standard deviation per channel; None as for `mean`.
        input_channels: See `from_module`; other than 3 needs ``first_conv="repeat"``.
        has_range: See `from_module`.
        first_conv: See `from_module`. Weights of `input_channels` channels are taken as they are.
        smallest_side: Minimum image side in pixels; None determines it.
        tokens: True for a vision transformer, whose layers give tokens; see `from_module`. Images are resized to the
            size of its weights.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration: pass ``calibration=`` or
        ``calibrated=False``.

    Raises:
        ValueError: If the model or a node does not exist, or an output is not ``(N, C, h, w)``; if the numbers of
            channels do not fit.

    Example:
        >>> backbone = from_torchvision("resnet18", ["relu", "layer1", "layer2"])
        >>> backbone.channels, backbone.smallest_side
        ((64, 64, 128), 1)
    """
    try:
        with torch.device("meta"):
            model = TorchvisionBuilder(builder)()
    except ValueError as error:
        raise ValueError(f"builder: expected the name of a torchvision model, got {builder!r}") from error
    channels = _channels(input_channels, mean, std)
    if channels != 3 and first_conv == "as_is":
        raise ValueError(
            f"input_channels: expected 3, as torchvision's models have, got {channels}; say first_conv='repeat'"
        )
    usual = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 and has_range else None
    scaling = channel_scaling(mean, std, channels, has_range, usual)
    build, repeated = _with_channels(TorchvisionBuilder(builder), channels, first_conv)
    options = (smallest_side, has_range, repeated, _tokens(tokens, model))
    return measured_backbone(builder, builder, feature_layers, build, None, scaling, *options)


def from_module(
    module: nn.Module,
    feature_layers: Sequence[str] | Mapping[str, str],
    *,
    name: str = "custom",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_channels: int | None = None,
    has_range: bool = True,
    first_conv: FirstConv = "as_is",
    smallest_side: int | None = None,
    tokens: Tokens | bool = False,
) -> Backbone:
    """Any module as a backbone, with its current weights, for images of any number of channels.

    The module is copied in evaluation mode, so later training does not change the backbone. If torch.fx can trace it,
    only the part up to the last feature layer is kept.

    Args:
        module: A module that takes images ``(N, 3, H, W)``, or of `input_channels` channels.
        feature_layers: Submodules whose outputs are compared, in order, named as by ``module.named_modules()``; the
            keys of a mapping are your layer names.
        name: Name in the fingerprint.
        mean: Input mean per channel, for images in [0, 1]; without a range, of the values themselves. By default the
            module gets images in [-1, 1], and without a range values as they are.
        std: Input standard deviation per channel, likewise.
        input_channels: Channels of the images; None: as many as `mean` or `std` has numbers, else 3.
        has_range: False for input without a value range, such as latents: ``data_range=None`` replaces the range in
            every call, values are neither mapped nor clamped, and only NaN and infinity are refused in data.
        first_conv: ``"as_is"``: the module takes `input_channels` channels. ``"repeat"``: it takes 3; the RGB filters
            of its first convolution are repeated in turn and scaled by ``3 / input_channels``, or summed for one
            channel, as timm does (``adapt_input_conv``). The fingerprint says so.
        smallest_side: Minimum image side in pixels; None determines it, or takes the patch with `tokens`.
        tokens: `Tokens` of a module whose layers give tokens ``(N, L, C)``, or tuples that begin with them: they become
            maps ``(N, C, h, w)``, without class and register tokens. True for a vision transformer of timm or
            torchvision, which says its own.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration: pass ``calibration=`` or
        ``calibrated=False``.

    Raises:
        TypeError: If `module` is not an ``nn.Module``.
        ValueError: If a submodule does not exist, an output is not ``(N, C, h, w)``, or not as `tokens` says, or the
            numbers of channels do not fit.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        >>> backbone = from_module(module, {"first": "1", "second": "3"})
        >>> backbone.channels, backbone.smallest_side
        ((8, 16), 5)

        A distance of latents of a diffusion model, with 4 channels and any values:

        >>> module = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.SiLU())
        >>> from lpips_lightning import LPIPS
        >>> net = LPIPS(from_module(module, ["2"], input_channels=4, has_range=False), calibrated=False)
        >>> latents = 5 * torch.randn(2, 4, 32, 32)
        >>> net(latents, latents)
        tensor([0., 0.])

        Of tokens, every patch is a position:

        >>> from torchvision.models import VisionTransformer
        >>> module = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48)
        >>> backbone = from_module(module, ["encoder.layers.encoder_layer_1"], tokens=True)
        >>> backbone.channels, backbone.description
        ((24,), 'patch 8x8 without 1 prefix token, resize 32x32 bilinear antialias')
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    copied = _CopyBuilder(copy.deepcopy(module).to("cpu").eval())
    channels = _channels(input_channels, mean, std)
    scaling = channel_scaling(mean, std, channels, has_range)
    build, repeated = _with_channels(copied, channels, first_conv)
    options = (smallest_side, has_range, repeated, _tokens(tokens, module))
    return measured_backbone(name, "", feature_layers, build, copied.state_dict, scaling, *options)


def _tokens(tokens: Tokens | bool, model: nn.Module) -> Tokens | None:
    if not isinstance(tokens, Tokens | bool):
        raise ValueError(f"tokens: expected True, False or Tokens(patch, prefix), got {tokens!r}")
    return tokens_of(model) if tokens is True else tokens or None


@dataclass(frozen=True)
class _CopyBuilder:
    module: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


def measured_backbone(
    name: str,
    builder: str,
    feature_layers: Sequence[str] | Mapping[str, str],
    build: Callable[[], nn.Module],
    default_weights: Callable[[], Mapping[str, Tensor]] | None,
    scaling: tuple[tuple[float, ...], tuple[float, ...]],
    smallest_side: int | None,
    has_range: bool = True,
    repeated_conv: str = "",
    tokens: Tokens | None = None,
) -> Backbone:
    """A backbone whose channels, and whose smallest side if it is None, are found by running it.

    Args:
        name: Name in the fingerprint.
        builder: Name of the torchvision model; empty if there is none.
        feature_layers: Nodes whose outputs are compared; the keys of a mapping are the layer names.
        build: Builds the model.
        default_weights: Returns the default weights, or None.
        scaling: Input mean and standard deviation per channel, for images in [0, 1]; without a range, of the values.
        smallest_side: Minimum image side in pixels; None determines it.
        has_range: See `Backbone`.
        repeated_conv: See `Backbone`.
        tokens: How the model makes tokens; None if its layers give maps.

    Returns:
        The backbone.

    Raises:
        ValueError: If a node does not exist, or an output is not ``(N, C, h, w)``.
    """
    if isinstance(feature_layers, str) or not feature_layers:
        raise ValueError(f"feature layers: expected names of parts of the backbone, got {feature_layers!r}")
    by_layer = (
        dict(feature_layers)
        if isinstance(feature_layers, Mapping)
        else {feature_map: feature_map for feature_map in feature_layers}
    )
    shift, scale = mean, std = scaling
    if has_range:  # of images in [0, 1] -> in [-1, 1]
        shift, scale = tuple(2 * value - 1 for value in mean), tuple(2 * value for value in std)
    build = build if tokens is None else TokensBuilder(build, tuple(by_layer.items()), tokens)
    options = (shift, scale, default_weights, has_range, repeated_conv)
    record = Backbone(name, builder, by_layer, (), smallest_side or 1, build, *options)
    if tokens is None:
        channels, found_side = _probe(record, smallest_side)
        return replace(record, channels=channels, smallest_side=found_side)
    return probed_tokens(record, tokens, smallest_side)


def probed_tokens(record: Backbone, tokens: Tokens, smallest_side: int | None) -> Backbone:
    """A backbone of `TokenMaps` with the channels found by running it.

    Args:
        record: The backbone without channels.
        tokens: How the model makes tokens.
        smallest_side: Minimum image side in pixels; None for the patch.

    Returns:
        The backbone.

    Raises:
        ValueError: If the model has other tokens.
    """
    side = max(tokens.sides)
    channels, _ = _probe(record, smallest_side or 4 * side)
    return replace(record, channels=channels, smallest_side=smallest_side or side, description=str(tokens))


def _channels(input_channels: int | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> int:
    """Number of input channels, as it was said."""
    if input_channels is None:
        given = mean if mean is not None else std
        return len(given) if isinstance(given, Sized) else 3
    if type(input_channels) is not int or input_channels < 1:
        raise ValueError(f"input_channels: expected a positive number of channels, or None, got {input_channels!r}")
    return input_channels


def channel_scaling(
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    channels: int,
    has_range: bool,
    usual: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel.

    Args:
        mean: As the user gave it.
        std: As the user gave it.
        channels: Number of input channels.
        has_range: See `Backbone`.
        usual: What None stands for; None for values that change nothing.

    Returns:
        Both, with `channels` numbers each.

    Raises:
        ValueError: If the numbers of channels do not fit, a number is not finite, or a standard deviation not positive.
    """
    if not isinstance(has_range, bool):
        raise ValueError(f"has_range: expected True or False, got {has_range!r}")
    if usual is None:
        usual = ([0.5] * channels, [0.5] * channels) if has_range else ([0.0] * channels, [1.0] * channels)
    found = (usual[0] if mean is None else mean, usual[1] if std is None else std)
    mean, std = (_numbers(values, what, channels) for values, what in zip(found, ("mean", "std"), strict=True))
    if min(std) <= 0:
        raise ValueError(f"std: expected positive numbers, got {std}")
    return mean, std


def _numbers(values: Sequence[float], what: str, channels: int) -> tuple[float, ...]:
    """A finite number for every channel."""
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        expected = f"{channels} numbers, one for each input channel, all finite"
        expected = "a sequence of one finite number" if channels == 1 else expected
        raise ValueError(f"{what}: expected {expected}, got {values!r}")
    return numbers


def _with_channels(build: _Build, channels: int, first_conv: FirstConv) -> tuple[_Build, str]:
    """A builder of the model for images of `channels` channels, and the name of its repeated convolution."""
    if first_conv not in get_args(FirstConv):
        raise ValueError(f"first_conv: expected one of {get_args(FirstConv)}, got {first_conv!r}")
    if first_conv == "as_is":
        return build, ""
    repeated = RepeatedBuilder(build, channels)
    return repeated, repeated.convolution


def _probe(record: Backbone, smallest_side: int | None) -> tuple[tuple[int, ...], int]:
    """Channels of every feature layer, and the smallest image side that works."""
    backbone, _ = cut(record)
    device = "meta"
    try:
        shapes = _shapes(backbone.to("meta"), record, smallest_side or _PROBE_SIDE, device)
    except Exception as on_meta:  # the module cannot run on the meta device
        device, (backbone, _) = "cpu", cut(record)
        side = smallest_side or _PROBE_SIDE
        try:
            shapes = _shapes(backbone, record, side, device)
        except Exception as error:
            colors = record.input_channels
            empty = any(parameter.is_meta for parameter in backbone.parameters())  # nothing runs elsewhere
            error = on_meta if empty else error
            raise ValueError(
                f"{record.name}: expected a backbone that takes {side}x{side} images of {colors} channels"
                f" (input_channels): {error}"
            ) from error
    for layer, shape in shapes.items():
        if shape is None or len(shape) != 4 or 0 in shape:
            tokens = "; of tokens (N, L, C), say tokens=" if shape is not None and len(shape) == 3 else ""
            raise ValueError(
                f"feature layers: expected an output of shape (N, C, h, w) at {layer!r}, got {shape}{tokens}"
            )
    channels = tuple(shape[1] for shape in shapes.values() if shape)
    if smallest_side is not None:
        return channels, smallest_side
    low, high = 0, _PROBE_SIDE  # bisect: `low` fails, `high` works
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _works(backbone, record, middle, device) else (middle, high)
    _refuse_other_channels(channels, _shapes(backbone, record, high, device))
    return channels, high


def _refuse_other_channels(channels: tuple[int, ...], shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """Raise if the second dimension changes with the size of the images, as that of ``(N, h, w, C)`` does."""
    for count, (layer, shape) in zip(channels, shapes.items(), strict=True):
        if shape is not None and shape[1] != count:
            raise ValueError(
                f"feature layers: expected an output of shape (N, C, h, w) at {layer!r}, got one whose second dimension"
                " changes with the size of the images, such as (N, h, w, C); from_timm takes Swin transformers"
            )


def _works(backbone: nn.Module, record: Backbone, side: int, device: str) -> bool:
    try:
        shapes = _shapes(backbone, record, side, device)
    except Exception:  # layers raise different errors for small images
        return False
    return all(shape is not None and 0 not in shape for shape in shapes.values())


@torch.no_grad()
def _shapes(backbone: nn.Module, record: Backbone, side: int, device: str) -> dict[str, tuple[int, ...] | None]:
    images = torch.zeros(1, record.input_channels, side, side, device=device)
    outputs = hooked_features(backbone, record.feature_layers, images)
    return {layer: tuple(output.shape) if isinstance(output, Tensor) else None for layer, output in outputs.items()}
