"""Trunks: one feature extractor, and a table that says where each net is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lpips_lightning.embedded import embedded_trunk
from lpips_lightning.weights import WeightsError

if TYPE_CHECKING:
    from torch.fx import GraphModule

__all__ = ["BACKBONES", "Backbone", "FeatureExtractor", "backbone", "random_trunk"]


def _torchvision(builder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(builder, weights=None)

    return build


@dataclass(frozen=True)
class Backbone:
    """Where a trunk is cut, and what it expects.

    Attributes:
        name: The ``net_type``.
        builder: torchvision's builder, by which weight files are looked for; ``"embedded"`` ships.
        taps: Node of the trunk by layer name, from the input on; nodes are named as
            `torchvision.models.feature_extraction.get_graph_node_names` names them. A tap is the output of that node.
        channels: Channels of each tap.
        smallest_side: Below it, in pixels, the last tap would be empty.
        build: Makes the trunk, without weights.
        shift: Subtracted from images on ``[-1, 1]``, per channel (v0.1 only).
        scale: Then divided by, per channel (v0.1 only).
    """

    name: str
    builder: str
    taps: Mapping[str, str]
    channels: tuple[int, ...]
    smallest_side: int
    build: Callable[[], nn.Module]
    shift: tuple[float, float, float] = (-0.030, -0.088, -0.188)
    scale: tuple[float, float, float] = (0.458, 0.448, 0.450)


def _sequential(name: str, builder: str, taps: Mapping[str, int], channels: tuple[int, ...], side: int) -> Backbone:
    nodes = {layer: f"features.{index}" for layer, index in taps.items()}
    return Backbone(name, builder, nodes, channels, side, _torchvision(builder))


def _embedded() -> Backbone:
    with torch.device("meta"):  # for its names alone: an import draws no random numbers
        trunk = embedded_trunk()
    nodes = {layer: f"features.{index}" for layer, index in trunk.taps.items()}
    return Backbone("embedded", "embedded", nodes, trunk.channels, 31, embedded_trunk)


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
        _sequential(
            "squeeze",
            "squeezenet1_1",
            {"relu1": 1, "relu2": 4, "relu3": 7, "relu4": 9, "relu5": 10, "relu6": 11, "relu7": 12},
            (64, 128, 256, 384, 384, 512, 512),
            17,
        ),
        _embedded(),
    )
}
"""Cut points by net_type: torchvision's ``.features`` as ``lpips/pretrained_networks.py`` slices them, and ours."""


def backbone(net_type: str) -> Backbone:
    """The table's row for a net.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``.

    Returns:
        Where it is cut, and what it expects.

    Raises:
        ValueError: If there is no such net.
    """
    if not isinstance(net_type, str) or net_type not in BACKBONES:
        raise ValueError(f"net_type: expected one of {', '.join(map(repr, BACKBONES))}, got {net_type!r}")
    return BACKBONES[net_type]


class FeatureExtractor(nn.Module):
    """A trunk that ends at its last tap and hands out every tap.

    Input: ``(N, 3, H, W)``, already shifted and scaled as the trunk expects it.
    Output: ``(N, C, h, w)`` by layer name, from the input on.

    The weights are those given, in float32 and ``channels_last``; the module is in evaluation mode. It is an ordinary
    module, with ordinary parameters: whoever wants it frozen freezes it.

    Args:
        record: Where to cut.
        tensors: Weights by torchvision's names, of the whole model or of the part that is used; ``features.`` may be
            missing.

    Raises:
        WeightsError: If a tensor is missing, unknown, of another shape, not floating or not finite.
    """

    def __init__(self, record: Backbone, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph, whole = _cut(record)
        expected = self.graph.state_dict()
        checked = _check(record, expected, set(whole), tensors)
        self.graph.load_state_dict(checked, assign=True, strict=True)
        self.graph.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Every tap, by layer name."""
        return self.graph(images)


def random_trunk(record: Backbone, seed: int) -> dict[str, Tensor]:
    """Gaussian weights for a trunk (He et al. 2015, fan-in), biases zero: the paper's random net, or a test's.

    Args:
        record: The architecture.
        seed: Equal seeds give equal weights; the global generator is not touched.

    Returns:
        Tensor by name.

    Example:
        >>> trunk = random_trunk(BACKBONES["alex"], seed=0)
        >>> trunk["features.0.weight"].shape
        torch.Size([64, 3, 11, 11])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    graph, _ = _cut(record)
    tensors = {}
    for name, like in graph.state_dict().items():
        tensor = torch.zeros(like.shape, device="cpu", dtype=torch.float32)
        if like.dim() > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        tensors[name] = tensor
    return tensors


def _cut(record: Backbone) -> tuple[GraphModule, list[str]]:
    """The trunk up to its last tap, without weights, and the names of all weights of the whole model."""
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.device("meta"):
        model = record.build().eval()
    graph = create_feature_extractor(model, {node: layer for layer, node in record.taps.items()})
    return graph.eval(), list(model.state_dict())


def _check(
    record: Backbone, expected: Mapping[str, Tensor], whole: set[str], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The expected tensors in float32, copied; WeightsError if what is given is not this architecture."""
    if not any(name in expected for name in tensors):
        tensors = {f"features.{name}": tensor for name, tensor in tensors.items()}
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys() - whole)
    if missing or unknown:
        raise WeightsError(
            f"weights: expected the tensors of {record.builder}; missing: {_few(missing)}; unknown: {_few(unknown)}"
        )
    checked = {}
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise WeightsError(f"weights: {name}: expected shape {tuple(like.shape)}, got {tuple(tensor.shape)}")
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise WeightsError(f"weights: {name}: expected finite floating-point values, got {tensor.dtype}")
        checked[name] = tensor.detach().to("cpu", torch.float32, copy=True)
    return checked


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "") or "none"
