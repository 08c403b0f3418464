"""The table of backbones: architecture, feature layers, input scaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lpips_lightning.backbones.plain import EMBEDDED, PlainBackbone, Stage
from lpips_lightning.backbones.shift_tolerant import ALEX, VGG, shift_tolerant_alexnet, shift_tolerant_vgg16
from lpips_lightning.images.ranges import UNBOUNDED
from lpips_lightning.weights import CALIBRATIONS, load
from lpips_lightning.weights.lookup import backbone_places

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet by channel, for images on [0, 1]: torchvision's input."""


@dataclass(frozen=True)
class TorchvisionBuilder:
    """Builds a torchvision model by name.

    Attributes:
        builder: Name of the model, for example ``"vgg16"``.
    """

    builder: str

    def __call__(self) -> nn.Module:
        """The model with random weights."""
        from torchvision import models

        return models.get_model(self.builder, weights=None)


@dataclass(frozen=True)
class Backbone:
    """Definition of a backbone.

    Attributes:
        name: The ``net_type``.
        builder: Name of the torchvision model, or of ours, which names the weight files; the name of a backbone that
            ships.
        feature_layers: Graph node by layer name, in execution order; nodes are named as by
            `torchvision.models.feature_extraction.get_graph_node_names`. The layer is the output of the node.
        channels: Channels of each feature layer.
        smallest_side: Minimum image side in pixels; below it, the last feature layer would be empty.
        build: Builds the model; its initial weights are not used.
        shift: Subtracted from each input channel, of images in ``[-1, 1]`` (v0.1 only).
        scale: Divisor of each input channel after the shift (v0.1 only).
        default_weights: Returns the default weights; None looks for torchvision's weights.
        has_range: Whether the input has a value range, which is mapped to ``[-1, 1]`` first; False for values as they
            are, such as latents.
        repeated_conv: Name of the convolution whose weights, if they are of 3 input channels, are repeated for
            `input_channels`; empty for none.
        description: What the fingerprint says of it besides its feature layers, such as how it resizes images.
        convert: Renames the tensors of a file to those of the model; None for files that need none.
    """

    name: str
    builder: str
    feature_layers: Mapping[str, str]
    channels: tuple[int, ...]
    smallest_side: int
    build: Callable[[], nn.Module]
    shift: tuple[float, ...] = (-0.030, -0.088, -0.188)
    scale: tuple[float, ...] = (0.458, 0.448, 0.450)
    default_weights: Callable[[], Mapping[str, Tensor]] | None = None
    has_range: bool = True
    repeated_conv: str = ""
    description: str = ""
    convert: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None

    @property
    def input_channels(self) -> int:
        """Channels of the images."""
        return len(self.shift)

    @property
    def value_range(self) -> tuple[float, float]:
        """Range of values that need no mapping: (-1, 1), or (-inf, inf) for a backbone without a range."""
        return (-1.0, 1.0) if self.has_range else UNBOUNDED

    @property
    def is_available(self) -> bool:
        """Whether the default weights are available without a download."""
        return self.default_weights is not None or any(place.is_file() for place in backbone_places(self.builder))

    def __hash__(self) -> int:  # that of all fields fails: feature layers are a dict
        return hash((self.name, self.builder, self.channels, self.shift, self.scale))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Entries of the table keep their identity in copies and in other processes.
        return (get_backbone, (self.name,)) if BACKBONES.get(self.name) is self else super().__reduce_ex__(protocol)


def _sequential(
    name: str,
    builder: str,
    feature_layers: Mapping[str, int],
    channels: tuple[int, ...],
    side: int,
    build: Callable[[], nn.Module] | None = None,
) -> Backbone:
    nodes = {layer: f"features.{index}" for layer, index in feature_layers.items()}
    return Backbone(name, builder, nodes, channels, side, build or TorchvisionBuilder(builder))


def _embedded(name: str, stages: tuple[Stage, ...], side: int) -> Backbone:
    with torch.device("meta"):  # only names are needed; importing must not draw random numbers
        backbone = PlainBackbone(stages)
    nodes = {layer: f"features.{index}" for layer, index in backbone.feature_layers.items()}
    weights = partial(load, CALIBRATIONS[name, "0.1"])
    return Backbone(name, name, nodes, backbone.channels, side, partial(PlainBackbone, stages), default_weights=weights)


def _trained_further(name: str, record: Backbone) -> Backbone:
    """A backbone of the same form, with its own weights that ship."""
    return replace(record, name=name, builder=name, default_weights=partial(load, CALIBRATIONS[name, "0.1"]))


_SQUEEZE = _sequential(
    "squeeze",
    "squeezenet1_1",
    {"relu1": 1, "relu2": 4, "relu3": 7, "relu4": 9, "relu5": 10, "relu6": 11, "relu7": 12},
    (64, 128, 256, 384, 384, 512, 512),
    17,
)
BACKBONES: dict[str, Backbone] = {
    record.name: record
    for record in (
        _sequential(
            "alex",
            "alexnet",
            {"relu1": 1, "relu2": 4, "relu3": 7, "relu4": 9, "relu5": 11},
            (64, 192, 384, 256, 256),
            31,
        ),
        _sequential(
            "vgg",
            "vgg16",
            {"relu1_2": 3, "relu2_2": 8, "relu3_3": 15, "relu4_3": 22, "relu5_3": 29},
            (64, 128, 256, 512, 512),
            16,
        ),
        _SQUEEZE,
        _embedded("embedded", EMBEDDED, 31),
        _trained_further("embedded-vgg", _SQUEEZE),
        _sequential(
            "alex-st",
            "alexnet_st",
            {"relu1": 2, "relu2": 6, "relu3": 10, "relu4": 12, "relu5": 14},
            ALEX,
            21,
            shift_tolerant_alexnet,
        ),
        _sequential(
            "vgg-st",
            "vgg16_st",
            {"relu1_2": 3, "relu2_2": 9, "relu3_3": 17, "relu4_3": 25, "relu5_3": 33},
            VGG,
            18,
            shift_tolerant_vgg16,
        ),
    )
}
"""Backbones by net_type. Feature layers are those of ``lpips/pretrained_networks.py``, by index in ``.features``.

``"alex-st"`` and ``"vgg-st"`` are the networks of shift-tolerant LPIPS (Ghildyal and Liu, ECCV 2022).
"""


def get_backbone(net_type: str | Backbone) -> Backbone:
    """Look up a backbone by name; a `Backbone` is returned as it is.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"``, ``"embedded"``, ``"embedded-vgg"``, ``"alex-st"`` or
            ``"vgg-st"``, or a backbone from `lpips_lightning.backbones.custom`.

    Returns:
        The definition.

    Raises:
        ValueError: If the name is unknown.
    """
    if isinstance(net_type, Backbone):
        return net_type
    if not isinstance(net_type, str) or net_type not in BACKBONES:
        raise ValueError(
            f"net_type: expected one of {', '.join(map(repr, BACKBONES))}, or a backbone of from_timm, from_torchvision"
            f" or from_module, got {net_type!r}"
        )
    return BACKBONES[net_type]
