"""Per-network state of the engine: layer graph, memory estimates and plans."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from lpips_lightning.backbones.compiled import publish, published
from lpips_lightning.backbones.frozen import FrozenNetwork, without_modes
from lpips_lightning.engine.constants import STRIP_BYTES
from lpips_lightning.engine.graph import LayerGraph, build_layer_graph, unsupported_reason

Way = Literal["whole", "images", "rows", "tiles"]

_engines: weakref.WeakKeyDictionary[FrozenNetwork, Engine] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Plan:
    """How to evaluate a batch.

    Attributes:
        way: ``"whole"``: all images at once; ``"images"``: some images at a time; ``"rows"``: one image at a time in
            row strips (`lpips_lightning.engine.streaming`); ``"tiles"``: one image at a time in tiles
            (`lpips_lightning.engine.tiling`).
        size: Estimated peak bytes in addition to weights and images, the gradient included.
        images: Number of images per pass.
        strip_bytes: Argument of `stream`.
        tile: Argument of `tiled_gradient`.
        reason: Why the plan exceeds the budget; empty if it does not.
    """

    way: Way
    size: int
    images: int = 1
    strip_bytes: int = STRIP_BYTES
    tile: tuple[int, int] = (0, 0)
    reason: str = ""


class Engine:
    """Everything that is computed once per frozen network; it is freed with the network.

    Attributes:
        meta_copy: Copy of the network on the ``meta`` device, used to estimate memory; None until first needed.
        pixel_costs: Memory as ``(fixed bytes, bytes per pixel)``, by image side of the estimate, kind of work, and
            whether the layer graph runs node by node.
        image_costs: Memory as ``(fixed bytes, bytes per image)``, by height and width and kind of work, of backbones
            that resize images.
        stream_costs: Bytes of streaming, by height, width and strip size.
        workspace_bytes: Workspace of convolutions other than `FastConv2d`; None until first needed.
        plans: Plans by batch shape, budget, and whether the gradient is computed.
    """

    def __init__(self, graph: nn.Module) -> None:
        self._graph = graph  # not the network: the value of a weak dictionary must not hold its key
        self.meta_copy: FrozenNetwork | None = None
        self.pixel_costs: dict[tuple[int, str, bool], tuple[float, float]] = {}
        self.image_costs: dict[tuple[tuple[int, int], str], tuple[int, int]] = {}
        self.stream_costs: dict[tuple[int, int, int], int] = {}
        self.workspace_bytes: int | None = None
        self.plans: dict[tuple[Any, int, bool], Plan] = {}

    @classmethod
    def of(cls, network: FrozenNetwork) -> Engine:
        """The engine of a network; created on first use."""
        if network not in _engines:
            _engines[network] = cls(network.extractor.graph)
        return _engines[network]

    @classmethod
    def layer_graph_of(cls, network: FrozenNetwork) -> LayerGraph:
        """`layer_graph` of a network, also under ``torch.compile``."""
        if not torch.compiler.is_dynamo_compiling():
            return cls.of(network).layer_graph
        compiled: LayerGraph = published(_layer_graph_for_compile(network.compiled_name))
        return compiled

    @cached_property
    def layer_graph(self) -> LayerGraph:
        """The backbone as a list of operations.

        Raises:
            ValueError: If the backbone contains an unsupported operation.
        """
        return build_layer_graph(self._graph)

    @cached_property
    def has_layer_graph(self) -> bool:
        """Whether the engine supports every operation of the backbone."""
        try:
            return bool(self.layer_graph)
        except ValueError:
            return False

    @cached_property
    def unsupported_reason(self) -> str | None:
        """Why images cannot be evaluated in strips or tiles; None if they can."""
        return unsupported_reason(self._graph)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _layer_graph_for_compile(network_name: str) -> str:
    """Build the layer graph of a network; its name in `published`."""
    with without_modes():
        return publish(f"layer graph of {network_name}", Engine.of(published(network_name)).layer_graph)
