"""Custom backbones: other torchvision models, or any module, with feature layers chosen by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.definition import Backbone, TorchvisionBuilder
from lpips_lightning.backbones.extractor import cut, hooked_features
from lpips_lightning.backbones.tokens import Tokens, TokensBuilder, tokens_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PROBE_SIDE = 256


def from_torchvision(
    builder: str,
    feature_layers: Sequence[str] | Mapping[str, str],
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    smallest_side: int | None = None,
    tokens: Tokens | bool = False,
) -> Backbone:
    """A torchvision model as a backbone; its ``IMAGENET1K_V1`` weights are found as those of built-in backbones.

    Args:
        builder: Name of the model, for example ``"vgg19"``, ``"resnet50"``, ``"convnext_tiny"``.
        feature_layers: Nodes whose outputs are compared, in order, named as by
            `torchvision.models.feature_extraction.get_graph_node_names`; the keys of a mapping are your layer names.
        mean: Input mean per channel, for images in [0, 1].
        std: Input standard deviation per channel, for images in [0, 1].
        smallest_side: Minimum image side in pixels; None determines it.
        tokens: True for a vision transformer, whose layers give tokens; see `from_module`. Images are resized to the
            size of its weights.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration: pass ``calibration=`` or
        ``calibrated=False``.

    Raises:
        ValueError: If the model or a node does not exist, or an output is not ``(N, C, h, w)``.

    Example:
        >>> backbone = from_torchvision("resnet18", ["relu", "layer1", "layer2"])
        >>> backbone.channels, backbone.smallest_side
        ((64, 64, 128), 1)
    """
    build = TorchvisionBuilder(builder)
    try:
        with torch.device("meta"):
            model = build()
    except ValueError as error:
        raise ValueError(f"builder: expected the name of a torchvision model, got {builder!r}") from error
    if tokens:
        return token_backbone(builder, builder, feature_layers, build, None, (mean, std), smallest_side, tokens, model)
    return measured_backbone(builder, builder, feature_layers, build, None, (mean, std), smallest_side)


def from_module(
    module: nn.Module,
    feature_layers: Sequence[str] | Mapping[str, str],
    *,
    name: str = "custom",
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    smallest_side: int | None = None,
    tokens: Tokens | bool = False,
) -> Backbone:
    """Any module as a backbone, with its current weights.

    The module is copied in evaluation mode, so later training does not change the backbone. If torch.fx can trace it,
    only the part up to the last feature layer is kept.

    Args:
        module: A module that takes images ``(N, 3, H, W)``.
        feature_layers: Submodules whose outputs are compared, in order, named as by ``module.named_modules()``; the
            keys of a mapping are your layer names.
        name: Name in the fingerprint.
        mean: Input mean per channel, for images in [0, 1]. By default the module gets images in [-1, 1].
        std: Input standard deviation per channel, for images in [0, 1].
        smallest_side: Minimum image side in pixels; None determines it, or takes the patch with `tokens`.
        tokens: `Tokens` of a module whose layers give tokens ``(N, L, C)``, or tuples that begin with them: they become
            maps ``(N, C, h, w)``, without class and register tokens. True for a vision transformer of timm or
            torchvision, which says its own.

    Returns:
        A backbone for the `net_type` argument. It has no official calibration: pass ``calibration=`` or
        ``calibrated=False``.

    Raises:
        TypeError: If `module` is not an ``nn.Module``.
        ValueError: If a submodule does not exist, or an output is not ``(N, C, h, w)``, or not as `tokens` says.

    Example:
        >>> module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
        >>> backbone = from_module(module, {"first": "1", "second": "3"})
        >>> backbone.channels, backbone.smallest_side
        ((8, 16), 5)

        Of tokens, each part of an image that a patch covers is a position:

        >>> from torchvision.models import VisionTransformer
        >>> module = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48)
        >>> backbone = from_module(module, ["encoder.layers.encoder_layer_1"], tokens=True)
        >>> backbone.channels, backbone.description
        ((24,), 'patch 8x8 without 1 prefix token, resize 32x32 bilinear antialias')
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    build = _CopyBuilder(copy.deepcopy(module).to("cpu").eval())
    if tokens:
        return token_backbone(
            name, "", feature_layers, build, build.state_dict, (mean, std), smallest_side, tokens, module
        )
    return measured_backbone(name, "", feature_layers, build, build.state_dict, (mean, std), smallest_side)


@dataclass(frozen=True)
class _CopyBuilder:
    module: nn.Module

    def __call__(self) -> nn.Module:
        return copy.deepcopy(self.module)

    def state_dict(self) -> Mapping[str, Tensor]:
        return self.module.state_dict()


def token_backbone(
    name: str,
    builder: str,
    feature_layers: Sequence[str] | Mapping[str, str],
    build: Callable[[], nn.Module],
    default_weights: Callable[[], Mapping[str, Tensor]] | None,
    scaling: tuple[Sequence[float], Sequence[float]],
    smallest_side: int | None,
    tokens: Tokens | bool,
    model: nn.Module,
) -> Backbone:
    """A backbone of a model whose layers give tokens.

    Args:
        name: See `measured_backbone`.
        builder: See `measured_backbone`.
        feature_layers: See `measured_backbone`.
        build: See `measured_backbone`.
        default_weights: See `measured_backbone`.
        scaling: See `measured_backbone`.
        smallest_side: Minimum image side in pixels; None for the patch.
        tokens: How the model makes tokens; True to ask `model`.
        model: A built model.

    Returns:
        The backbone.

    Raises:
        ValueError: As `measured_backbone`; if `model` does not say its tokens; or if it has others.
    """
    if not isinstance(tokens, Tokens | bool):
        raise ValueError(f"tokens: expected True, False or Tokens(patch, prefix), got {tokens!r}")
    tokens = tokens_of(model) if isinstance(tokens, bool) else tokens
    nodes = _by_layer(feature_layers)
    maps = TokensBuilder(build, tuple(nodes.items()), tokens)
    side = max(tokens.sides)
    found = measured_backbone(name, builder, nodes, maps, default_weights, scaling, smallest_side or 4 * side)
    return replace(found, smallest_side=smallest_side or side, description=str(tokens))


def measured_backbone(
    name: str,
    builder: str,
    feature_layers: Sequence[str] | Mapping[str, str],
    build: Callable[[], nn.Module],
    default_weights: Callable[[], Mapping[str, Tensor]] | None,
    scaling: tuple[Sequence[float], Sequence[float]],
    smallest_side: int | None,
) -> Backbone:
    """A backbone whose channels, and whose smallest side if it is None, are found by running it.

    Args:
        name: Name in the fingerprint.
        builder: Name of the torchvision model; empty if there is none.
        feature_layers: Nodes whose outputs are compared; the keys of a mapping are the layer names.
        build: Builds the model.
        default_weights: Returns the default weights, or None.
        scaling: Input mean and standard deviation per channel, for images in [0, 1].
        smallest_side: Minimum image side in pixels; None determines it.

    Returns:
        The backbone.

    Raises:
        ValueError: If a node does not exist, or an output is not ``(N, C, h, w)``.
    """
    by_layer = _by_layer(feature_layers)
    mean, std = (_three(values, what) for values, what in zip(scaling, ("mean", "std"), strict=True))
    if min(std) <= 0:
        raise ValueError(f"std: expected three positive numbers, got {std}")
    shift, scale = (2 * mean[0] - 1, 2 * mean[1] - 1, 2 * mean[2] - 1), (2 * std[0], 2 * std[1], 2 * std[2])
    record = Backbone(name, builder, by_layer, (), smallest_side or 1, build, shift, scale, default_weights)
    channels, found_side = _probe(record, smallest_side)
    return replace(record, channels=channels, smallest_side=found_side)


def _by_layer(feature_layers: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(feature_layers, str) or not feature_layers:
        raise ValueError(f"feature layers: expected names of parts of the backbone, got {feature_layers!r}")
    if isinstance(feature_layers, Mapping):
        return dict(feature_layers)
    return {feature_map: feature_map for feature_map in feature_layers}


def _three(values: Sequence[float], what: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise ValueError(f"{what}: expected three numbers, got {values!r}")
    return float(values[0]), float(values[1]), float(values[2])


def _probe(record: Backbone, smallest_side: int | None) -> tuple[tuple[int, ...], int]:
    """Channels of every feature layer, and the smallest image side that works."""
    backbone, _ = cut(record)
    device = "meta"
    try:
        shapes = _shapes(backbone.to("meta"), record.feature_layers, smallest_side or _PROBE_SIDE, device)
    except Exception as on_meta:  # the module cannot run on the meta device
        device, (backbone, _) = "cpu", cut(record)
        side = smallest_side or _PROBE_SIDE
        try:
            shapes = _shapes(backbone, record.feature_layers, side, device)
        except Exception as error:
            empty = any(parameter.is_meta for parameter in backbone.parameters())  # nothing runs elsewhere
            reason = on_meta if empty else error
            raise ValueError(
                f"{record.name}: expected a backbone that takes {side}x{side} images: {reason}"
            ) from reason
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
        low, high = (low, middle) if _works(backbone, record.feature_layers, middle, device) else (middle, high)
    return channels, high


def _works(backbone: nn.Module, feature_layers: Mapping[str, str], side: int, device: str) -> bool:
    try:
        shapes = _shapes(backbone, feature_layers, side, device)
    except Exception:  # layers raise different errors for small images
        return False
    return all(shape is not None and 0 not in shape for shape in shapes.values())


@torch.no_grad()
def _shapes(
    backbone: nn.Module, feature_layers: Mapping[str, str], side: int, device: str
) -> dict[str, tuple[int, ...] | None]:
    outputs = hooked_features(backbone, feature_layers, torch.zeros(1, 3, side, side, device=device))
    return {layer: tuple(output.shape) if isinstance(output, Tensor) else None for layer, output in outputs.items()}
