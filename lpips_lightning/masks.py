"""Which positions of a layer count: masks at the layers' sizes, and how far a trunk sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lpips_lightning.images import check_dense

__all__ = ["check_mask", "eroded_masks", "layer_masks", "measurable", "without_holes"]


def check_mask(mask: Tensor, lead: tuple[int, ...], size: tuple[int, int], device: torch.device) -> Tensor:
    """A mask of a batch of images, as floats.

    Args:
        mask: Bool, or floating on [0, 1]: how much each pixel counts. Shape ``(*lead, H, W)`` or ``(*lead, 1, H, W)``.
        lead: ``(N,)``, or ``(B, T)`` for videos.
        size: ``(H, W)`` of the images.
        device: Of the images.

    Returns:
        Float32, shape ``(M, 1, H, W)`` with M = N, or B * T for videos.

    Raises:
        TypeError: If it is no dense tensor, or neither bool nor floating.
        ValueError: If shape or device do not fit.
    """
    expected = "a tensor of bools, or of floats on [0, 1]"
    mask = check_dense(mask, "mask", expected)
    if not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"mask: expected {expected}, got {mask.dtype}")
    if tuple(mask.shape) not in ((*lead, *size), (*lead, 1, *size)):
        raise ValueError(f"mask: expected shape {(*lead, *size)} or {(*lead, 1, *size)}, got {tuple(mask.shape)}")
    if mask.device != device:
        raise ValueError(f"mask: expected device {device}, that of the images, got {mask.device}")
    return mask.detach().float().reshape(-1, 1, *size)


def layer_masks(mask: Tensor, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """The part of every position's cell that counts: the mask, resized by area.

    Args:
        mask: Shape ``(M, 1, H, W)``, on [0, 1].
        sizes: ``(h, w)`` by layer name.

    Returns:
        Shape ``(M, 1, h, w)`` by layer name, on [0, 1].
    """
    return {layer: F.interpolate(mask, size, mode="area") for layer, size in sizes.items()}


def eroded_masks(mask: Tensor, graph: nn.Module) -> dict[str, Tensor]:
    """1 at the positions that see nothing but pixels that count fully, else 0.

    What lies beyond the image's border is no pixel: a position at the border counts.

    Args:
        mask: Shape ``(M, 1, H, W)``, on [0, 1].
        graph: Traced trunk of convolutions, pools, sums and concatenations.

    Returns:
        Shape ``(M, 1, h, w)`` by layer name.

    Raises:
        ValueError: If the trunk cannot be followed.
    """
    if not isinstance(graph, fx.GraphModule):
        raise ValueError("erode: expected a trunk that torch.fx can trace; this one's receptive fields are unknown")
    outside: dict[str, Tensor] = _Spread(graph).run((mask < 1).float())
    return {layer: 1 - seen for layer, seen in outside.items()}


def without_holes(images: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Images in which what does not count fully is one value: then nothing that was there leaves a trace.

    The positions of `eroded_masks` do not see it, but sums that cancel out, as of fast convolutions, round.

    Args:
        images: Shape ``(*lead, C, H, W)``.
        mask: Shape ``(*lead, H, W)`` or ``(*lead, 1, H, W)``, bool, or floating on [0, 1].
        fill: The value; within the images' range.

    Returns:
        Shape and dtype of `images`; differentiable.
    """
    whole = (mask if mask.dtype == torch.bool else mask >= 1).reshape(*images.shape[:-3], 1, *images.shape[-2:])
    return torch.where(whole, images, torch.full((), fill, dtype=images.dtype, device=images.device))


def measurable(masks: Mapping[str, Tensor]) -> Tensor:
    """Which images have a position that counts at every layer.

    Args:
        masks: Shape ``(M, 1, h, w)`` by layer name.

    Returns:
        Bools ``(M,)``.
    """
    return torch.stack([mask.flatten(1).sum(1) > 0 for mask in masks.values()]).all(0)


class _Spread(fx.Interpreter):
    """Follows a map of ones through a trunk: a position becomes 1 if it sees a 1."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, nn.Conv2d):
            return _seen_by(args[0], module)
        if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            options = (module.kernel_size, module.stride, module.padding)
            dilation = module.dilation if isinstance(module, nn.MaxPool2d) else 1
            return F.max_pool2d(args[0], *options, dilation=dilation, ceil_mode=module.ceil_mode)
        if isinstance(module, _POINTWISE):
            return args[0]
        raise ValueError(f"erode: expected a trunk of convolutions and pools, got {type(module).__name__} at {target}")

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if getattr(target, "__name__", "") in ("add", "iadd", "cat"):
            parts = args[0] if isinstance(args[0], list | tuple) else args
            return torch.stack([part for part in parts if isinstance(part, Tensor)]).amax(0)
        if target in (torch.relu, F.relu, F.silu, F.gelu):
            return args[0]
        raise ValueError(f"erode: expected a trunk of convolutions and pools, got {target}")

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise ValueError(f"erode: expected a trunk of convolutions and pools, got .{target}()")


_POINTWISE = (
    nn.BatchNorm2d, nn.Dropout, nn.ELU, nn.GELU, nn.Hardswish, nn.Identity, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU
)  # fmt: skip


def _seen_by(ones: Tensor, convolution: nn.Conv2d) -> Tensor:
    kernel, dilation = convolution.kernel_size, convolution.dilation
    pads = []
    for axis in (1, 0):
        reach = dilation[axis] * (kernel[axis] - 1)
        if isinstance(convolution.padding, str):
            total = reach if convolution.padding == "same" else 0
            pads += [total // 2, total - total // 2]
        else:
            pads += [int(convolution.padding[axis])] * 2
    return F.max_pool2d(F.pad(ones, pads), kernel, convolution.stride, dilation=dilation)
