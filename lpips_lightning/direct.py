"""Distances of image pairs without a graph, and their gradient computed beside them.

Each image's distance is one number, so the gradient of any loss that is made of distances is that loss's derivative
times ``dd/dx``. It is computed at once, a few images at a time, and is all that is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lpips_lightning.budget import affordable
from lpips_lightning.distance import layer_distances
from lpips_lightning.features import cat, parts
from lpips_lightning.frozen import FrozenNetwork, without_autocast
from lpips_lightning.head import layer_sum
from lpips_lightning.images import to_trunk
from lpips_lightning.pair_terms import Others, mean_weight, pair_gradient, pair_terms
from lpips_lightning.planning import Plan
from lpips_lightning.streaming import stream
from lpips_lightning.tiling import tiled_gradient

__all__ = ["Pairs", "distances", "feature_terms", "is_possible", "layer_terms"]


@dataclass(frozen=True)
class Pairs:
    """Images to be compared, as the trunk's preparation wants them.

    Attributes:
        network: On the images' device.
        dtype: Of the trunk.
        x: Images ``(M, 3, H, W)``.
        y: Images of the same shape, or features ``(M, C, h, w)`` by layer name.
        range_x: ``(low, high)`` of `x`.
        range_y: ``(low, high)`` of `y`.
        clamp_x: Bring `x` back onto its range.
        clamp_y: Bring `y` back onto its range.
        chunk: How many pairs at once at most; None for as many as the memory is meant for.
        memory_budget: Bytes; None for `lpips_lightning.budget`'s own.
    """

    network: FrozenNetwork
    dtype: torch.dtype
    x: Tensor
    y: Tensor | Mapping[str, Tensor]
    range_x: tuple[float, float]
    range_y: tuple[float, float]
    clamp_x: bool
    clamp_y: bool
    chunk: int | None = None
    memory_budget: int | None = None

    def plan(self, gradient: bool) -> Plan:
        """How to evaluate them, with their gradient or without."""
        if isinstance(self.y, Tensor):
            found = affordable(self.network, tuple(self.x.shape), self.memory_budget, gradient)
        else:
            found = Plan("whole", 0, len(self.x))
        return replace(found, images=min(found.images, self.chunk or found.images))

    def prepared_x(self, part: slice) -> Tensor:
        """Some of `x`, as the trunk wants them."""
        return self.prepare_x(self.x[part])

    def prepare_x(self, images: Tensor) -> Tensor:
        """Images in the place of `x`, as the trunk wants them."""
        return self._prepared(images, self.range_x, self.clamp_x)

    def prepare_y(self, images: Tensor) -> Tensor:
        """Images in the place of `y`, as the trunk wants them."""
        return self._prepared(images, self.range_y, self.clamp_y)

    def prepared_y(self, part: slice) -> Others:
        """Some of `y`, as the trunk wants them, or their features."""
        if isinstance(self.y, Tensor):
            return self.prepare_y(self.y[part])
        return {layer: self.y[layer][part] for layer in self.network.layers}

    def versions(self) -> tuple[int, ...]:
        """How often `y` has been written over, as far as PyTorch counts it: not of what inference mode made."""
        fixed = [self.y] if isinstance(self.y, Tensor) else self.y.values()
        return tuple(tensor._version for tensor in fixed if not tensor.is_inference())

    def slope(self, part: slice) -> Tensor:
        """What `prepared_x` multiplies each pixel of `x` by: float32 or float64, broadcasts to ``(m, 3, H, W)``."""
        low, high = self.range_x
        x = self.x[part].detach()
        slope = torch.full(
            (1, 3, 1, 1), 2 / (high - low), device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)
        )
        if self.network.scale is not None:
            slope = slope / self.network.scale.to(slope.dtype).view(1, 3, 1, 1)
        return slope * ((x >= low) & (x <= high)) if self.clamp_x else slope

    def plain(self, x: Tensor) -> Tensor:
        """Distances with `x` in the place of this one's, by ordinary autograd."""
        seen = self.network.extractor(self.prepare_x(x))
        with torch.no_grad():
            others = self.prepared_y(slice(None))
            fixed = self.network.extractor(others) if isinstance(others, Tensor) else others
        terms = layer_distances(seen, fixed, self.network.calibration)
        return torch.stack(list(terms.values())).sum(0)

    def _prepared(self, images: Tensor, data_range: tuple[float, float], clamp: bool) -> Tensor:
        return to_trunk(images, data_range, self.network.shift, self.network.scale, self.dtype, clamp)


def is_possible(x: Tensor, fixed: Sequence[Tensor], per_layer: bool) -> bool:
    """Whether distances need no graph, or one for the gradient of each image's own for `x` alone.

    Args:
        x: Images.
        fixed: The images they are compared to, or their features.
        per_layer: Whether the layers' terms are wanted one by one.

    Returns:
        False also where PyTorch looks at the arithmetic itself: under ``torch.compile`` and in forward mode.
    """
    if torch.compiler.is_compiling() or forward_ad.unpack_dual(x).tangent is not None:
        return False
    if not torch.is_grad_enabled() or not any(given.requires_grad for given in (x, *fixed)):
        return True
    return not per_layer and not any(given.requires_grad for given in fixed)


@torch.no_grad()
def layer_terms(pairs: Pairs) -> dict[str, Tensor]:
    """Distance of every pair at every layer, without a graph.

    Args:
        pairs: The images.

    Returns:
        Shape ``(M,)`` by layer name; float32, float64 for float64.
    """
    plan = pairs.plan(gradient=False)
    results = []
    with without_autocast(pairs.x.device):
        if plan.way == "rows" and isinstance(pairs.y, Tensor):
            return stream(pairs.network, pairs.x, pairs.y, pairs.prepare_x, pairs.prepare_y, plan.block)
        for part in parts(pairs.x, plan.images):
            results.append(pair_terms(pairs.network, pairs.prepared_x(part), pairs.prepared_y(part)))
    return {layer: cat([result[layer] for result in results]) for layer in pairs.network.layers}


def feature_terms(network: FrozenNetwork, x: Mapping[str, Tensor], y: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Distance of every pair of features at every layer, without a graph.

    Args:
        network: Whose calibration counts.
        x: Features ``(M, C, h, w)`` by layer name.
        y: Features of the same names and shapes.

    Returns:
        Shape ``(M,)`` by layer name; float32, float64 for float64.
    """
    return {layer: layer_sum(x[layer], y[layer], mean_weight(network, layer, x[layer])) for layer in network.layers}


def distances(pairs: Pairs) -> Tensor:
    """Distance of every pair, with a gradient for `pairs.x`.

    Args:
        pairs: The images; those of `y` want no gradient.

    Returns:
        Shape ``(M,)``; float32, float64 for float64.
    """
    found, _ = _Distances.apply(pairs.x, pairs)
    return found


class _Distances(torch.autograd.Function):
    """x -> distances, and d distance / d x, which is no output for users: it is kept for the backward pass."""

    @staticmethod
    def forward(x: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        pairs = replace(pairs, x=x)  # torch.func hands in another tensor than pairs has
        plan = pairs.plan(gradient=True)
        with without_autocast(x.device):
            if plan.way == "tiles" and isinstance(pairs.y, Tensor):
                prepares = (pairs.prepare_x, pairs.prepare_y)
                terms, gradient = tiled_gradient(pairs.network, x, pairs.y, *prepares, plan.tile)
                return torch.stack(list(terms.values())).sum(0), gradient
            found, gradients = zip(*(_with_gradient(pairs, part) for part in parts(x, plan.images)), strict=True)
        return cat(found), cat(gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.pairs = inputs
        ctx.versions = ctx.pairs.versions()
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
        x, gradient = ctx.saved_tensors
        if upstream is None:
            return None, None
        if torch.is_grad_enabled():  # create_graph=True: the gradient's own derivative is wanted
            return _gradient_with_graph(ctx.pairs, x, upstream, ctx.versions), None
        return (upstream.view(-1, 1, 1, 1) * gradient).to(x.dtype), None


def _gradient_with_graph(pairs: Pairs, x: Tensor, upstream: Tensor, versions: tuple[int, ...]) -> Tensor:
    """The gradient once more, by ordinary autograd; refused if the images are not those of the distance any more."""
    if pairs.versions() != versions:
        raise RuntimeError(
            "backward: expected the images of the distance for create_graph=True, got some that were modified in place "
            "since; give the distance a .clone() of what is written over"
        )
    with without_autocast(x.device):
        found = pairs.plain(x)
    if not found.requires_grad:
        raise RuntimeError(
            "backward: expected a derivative by torch.autograd, torch.func.grad or torch.func.jvp, got one by "
            "torch.func.vjp or jacrev, which this distance does not know"
        )
    return torch.autograd.grad(found, x, upstream, create_graph=True)[0]


@torch.no_grad()
def _with_gradient(pairs: Pairs, part: slice) -> tuple[Tensor, Tensor]:
    """Distances ``(m,)`` of some pairs, and their gradient ``(m, 3, H, W)``."""
    terms, gradient = pair_gradient(pairs.network, pairs.prepared_x(part).detach(), pairs.prepared_y(part))
    return torch.stack([terms[layer] for layer in pairs.network.layers]).sum(0), gradient * pairs.slope(part)
