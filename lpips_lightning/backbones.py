"""Trunks: one feature extractor, and a table that says where each net is cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lpips_lightning.embedded import embedded_trunk
from lpips_lightning.trunk_tensors import fitting_tensors
from lpips_lightning.weights import EMBEDDED, load
from lpips_lightning.weights.lookup import trunk_places

__all__ = ["BACKBONES", "Backbone", "FeatureExtractor", "backbone", "random_trunk"]


@dataclass(frozen=True)
class Torchvision:
    """Makes a model by its name in torchvision, without weights.

    Attributes:
        builder: For example ``"vgg16"``.
    """

    builder: str

    def __call__(self) -> nn.Module:
        from torchvision import models

        return models.get_model(self.builder, weights=None)


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
        own: Gives the weights to take where users give none; None looks for torchvision's.
    """

    name: str
    builder: str
    taps: Mapping[str, str]
    channels: tuple[int, ...]
    smallest_side: int
    build: Callable[[], nn.Module]
    shift: tuple[float, float, float] = (-0.030, -0.088, -0.188)
    scale: tuple[float, float, float] = (0.458, 0.448, 0.450)
    own: Callable[[], Mapping[str, Tensor]] | None = None

    @property
    def is_here(self) -> bool:
        """Whether its weights ship or lie on this machine: whether nothing would be downloaded."""
        return self.own is not None or any(place.is_file() for place in trunk_places(self.builder))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A row of the table stays the same row, in copies and in other processes.
        return (backbone, (self.name,)) if BACKBONES.get(self.name) is self else super().__reduce_ex__(protocol)


def _sequential(name: str, builder: str, taps: Mapping[str, int], channels: tuple[int, ...], side: int) -> Backbone:
    nodes = {layer: f"features.{index}" for layer, index in taps.items()}
    return Backbone(name, builder, nodes, channels, side, Torchvision(builder))


def _embedded() -> Backbone:
    with torch.device("meta"):  # for its names alone: an import draws no random numbers
        trunk = embedded_trunk()
    nodes = {layer: f"features.{index}" for layer, index in trunk.taps.items()}
    return Backbone("embedded", "embedded", nodes, trunk.channels, 31, embedded_trunk, own=partial(load, EMBEDDED))


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


def backbone(net_type: str | Backbone) -> Backbone:
    """The table's row for a net; a trunk of the user's own is its own row.

    Args:
        net_type: ``"alex"``, ``"vgg"``, ``"squeeze"`` or ``"embedded"``, or what `lpips_lightning.trunks` makes.

    Returns:
        Where it is cut, and what it expects.

    Raises:
        ValueError: If there is no such net.
    """
    if isinstance(net_type, Backbone):
        return net_type
    if not isinstance(net_type, str) or net_type not in BACKBONES:
        raise ValueError(f"net_type: expected one of {', '.join(map(repr, BACKBONES))}, got {net_type!r}")
    return BACKBONES[net_type]


class FeatureExtractor(nn.Module):
    """A trunk that ends at its last tap and hands out every tap.

    Input: ``(N, 3, H, W)``, already shifted and scaled as the trunk expects it.
    Output: ``(N, C, h, w)`` by layer name, from the input on.

    The weights are those given, in float32 and ``channels_last``; the module is in evaluation mode. It is an ordinary
    module, with ordinary parameters: whoever wants it frozen freezes it.

    Attributes:
        graph: The trunk up to its last tap as torch.fx traced it; the whole module if it cannot be traced. Then hooks
            pick up the taps.

    Args:
        record: Where to cut.
        tensors: Weights by torchvision's names, of the whole model or of the part that is used; `fitting_tensors` says
            which other names are understood.
        source: What to call them in errors: the argument, or the file.

    Raises:
        ValueError: If a tap is no part of the trunk.
        WeightsError: If a tensor is missing, unknown, of another shape, not floating or not finite.
    """

    def __init__(self, record: Backbone, tensors: Mapping[str, Tensor], source: str = "weights") -> None:
        super().__init__()
        self.taps = dict(record.taps)
        self.graph, whole = cut(record)
        expected = self.graph.state_dict()
        fitting = fitting_tensors(record.builder or record.name, expected, whole, tensors, source)
        self.graph.load_state_dict(fitting, assign=True, strict=True)
        self.graph.to(memory_format=torch.channels_last)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Every tap, by layer name."""
        return tapped(self.graph, self.taps, images)


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
    graph, _ = cut(record)
    tensors = {}
    for name, like in graph.state_dict().items():
        tensor = torch.zeros(like.shape, device="cpu", dtype=like.dtype)
        if like.dim() > 1:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        elif name.endswith((".weight", "running_var")):  # of a normalization
            tensor.fill_(1)
        tensors[name] = tensor
    return tensors


def cut(record: Backbone) -> tuple[nn.Module, set[str]]:
    """The trunk up to its last tap, and the names of all weights of the whole model.

    Args:
        record: Where to cut.

    Returns:
        A traced graph that returns a dict, or the whole module if torch.fx cannot trace it; without weights, unless
        `record.build` makes one with weights.

    Raises:
        ValueError: If a tap is no part of the trunk.
    """
    from torchvision.models.feature_extraction import create_feature_extractor

    with torch.device("meta"):
        model = record.build().eval()
    names = set(model.state_dict())
    try:
        return create_feature_extractor(model, {node: layer for layer, node in record.taps.items()}).eval(), names
    except Exception as error:  # tracing runs the user's code: anything can come out
        modules = dict(model.named_modules())
        unknown = [node for node in record.taps.values() if node not in modules]
        if unknown:
            near = get_close_matches(unknown[0], modules, n=3, cutoff=0.3)
            hint = f"; did you mean one of {near}?" if near else ""
            raise ValueError(f"taps: expected names of parts of {record.name}, got {unknown}{hint}") from error
        return model, names


def tapped(trunk: nn.Module, taps: Mapping[str, str], images: Tensor) -> dict[str, Tensor]:
    """Run a trunk and collect its taps.

    Args:
        trunk: As `cut` returns it.
        taps: Node by layer name.
        images: ``(N, 3, H, W)``.

    Returns:
        Every tap, by layer name, from the input on.
    """
    if isinstance(trunk, GraphModule):
        return trunk(images)
    found: dict[str, Tensor] = {}
    handles = [
        trunk.get_submodule(node).register_forward_hook(partial(_keep, found, layer, len(taps)))
        for layer, node in taps.items()
    ]
    try:
        trunk(images)
    except _AllSeenError:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {layer: found[layer] for layer in taps}


class _AllSeenError(Exception):
    """Every tap has been seen; what comes after it need not run."""


def _keep(found: dict[str, Tensor], layer: str, wanted: int, module: nn.Module, inputs: object, output: Tensor) -> None:
    found[layer] = output
    if len(found) == wanted:
        raise _AllSeenError
