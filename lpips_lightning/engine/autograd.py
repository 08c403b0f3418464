"""Distances as one autograd function that computes the input gradient already in its forward pass.

A distance is a scalar per pair, so the gradient of any loss built on it is ``d loss / d distance * d distance / dx``.
The second factor is computed here together with the distance; the backward pass only multiplies. So the gradient is
that of the images at the time of the call, even if they are overwritten before the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lpips_lightning.backbones.frozen import without_autocast
from lpips_lightning.batch import cat, chunks
from lpips_lightning.engine.executor import pair_gradient
from lpips_lightning.engine.inputs import Pairs
from lpips_lightning.engine.tiling import tiled_gradient


def distances(pairs: Pairs) -> Tensor:
    """Distance of every pair, differentiable w.r.t. `pairs.x`.

    Args:
        pairs: The image pairs; `pairs.y` must not require grad.

    Returns:
        Shape ``(M,)``; float32, or float64 for float64 images.
    """
    found, _ = _Distances.apply(pairs.x, pairs)
    return found


class _Distances(torch.autograd.Function):
    """x -> (distances, d distance / dx). The second output only passes the gradient on to `setup_context`."""

    @staticmethod
    def forward(x: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        plan = pairs.plan(gradient=True)
        with without_autocast(x.device):
            if plan.way == "tiles" and isinstance(pairs.y, Tensor):
                preprocess = (pairs.preprocess_x, pairs.preprocess_y)
                by_layer, gradient = tiled_gradient(pairs.network, x, pairs.y, *preprocess, plan.tile)
                return torch.stack(list(by_layer.values())).sum(0), gradient
            found, gradients = zip(*(_with_gradient(pairs, part) for part in chunks(x, plan.images)), strict=True)
        return cat(found), cat(gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.pairs = inputs[1]
        ctx.versions = ctx.pairs.versions()
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])  # not x, which may be overwritten

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        if upstream is None:
            return None, None
        if torch.is_grad_enabled():  # create_graph=True: the gradient itself must be differentiable
            return _gradient_with_graph(ctx.pairs, upstream, ctx.versions), None
        return (upstream.view(-1, 1, 1, 1) * gradient).to(ctx.pairs.x.dtype), None


def _gradient_with_graph(pairs: Pairs, upstream: Tensor, versions: tuple[int, ...]) -> Tensor:
    """Recompute the gradient by plain autograd; an error if images were modified since the forward pass."""
    if pairs.versions() != versions:
        raise RuntimeError(
            "backward: expected unmodified images for create_graph=True, got images that were modified in place since "
            "the forward pass; pass a .clone() of images that you overwrite"
        )
    # Fused attention has no second derivative.
    with without_autocast(pairs.x.device), sdpa_kernel(SDPBackend.MATH):
        found = pairs.autograd_distances()
    return torch.autograd.grad(found, pairs.x, upstream, create_graph=True)[0]


@torch.no_grad()
def _with_gradient(pairs: Pairs, part: slice) -> tuple[Tensor, Tensor]:
    """Distances ``(m,)`` of some of the pairs and their gradient ``(m, 3, H, W)`` w.r.t. the images."""
    by_layer, gradient = pair_gradient(pairs.network, pairs.inputs_x(part).detach(), pairs.inputs_y(part))
    total = torch.stack([by_layer[layer] for layer in pairs.network.layers]).sum(0)
    return total, gradient * pairs.preprocessing_derivative(part)
