"""Pixel masks: validation, and resizing to the feature layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from lpips_lightning.images.preprocessing import check_dense
from lpips_lightning.tracing import static_sizes


def check_mask(mask: Tensor, lead: tuple[int, ...], size: tuple[int, int], device: torch.device) -> Tensor:
    """Validate a mask and convert it to float32.

    Args:
        mask: Weight of each pixel: bool, or floating-point in [0, 1]. Shape ``(*lead, H, W)`` or ``(*lead, 1, H, W)``.
        lead: Batch shape of the images: ``(N,)``, or ``(B, T)`` for videos.
        size: ``(H, W)`` of the images.
        device: Device of the images.

    Returns:
        Float32, shape ``(M, 1, H, W)`` with M = N, or M = B * T for videos.

    Raises:
        TypeError: If the mask is not a dense tensor of bools or floats.
        ValueError: If its shape or device does not match the images.
    """
    expected = "a tensor of bools, or of floats on [0, 1]"
    mask = check_dense(mask, "mask", expected, images=False)
    if not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(f"mask: expected {expected}, got {mask.dtype}; convert it with mask > 0")
    shape, *expected_shapes = map(static_sizes, (mask.shape, (*lead, *size), (*lead, 1, *size)))
    if shape not in expected_shapes:
        raise ValueError(f"mask: expected shape {expected_shapes[0]} or {expected_shapes[1]}, got {shape}")
    if mask.device != device:
        raise ValueError(f"mask: expected device {device}, that of the images, got {mask.device}")
    return mask.detach().float().reshape(-1, 1, *mask.shape[-2:])


def layer_masks(mask: Tensor, sizes: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    """Resize a mask to the feature layers by area: the unmasked fraction of every position.

    Args:
        mask: Shape ``(M, 1, H, W)``, in [0, 1].
        sizes: ``(h, w)`` by layer name.

    Returns:
        Shape ``(M, 1, h, w)`` by layer name, in [0, 1].
    """
    return {layer: F.interpolate(mask, size, mode="area") for layer, size in sizes.items()}


def fill_masked(images: Tensor, mask: Tensor, fill: float) -> Tensor:
    """Fill pixels whose mask is below 1 with a constant, so that their values cannot change the result.

    Eroded masks exclude these pixels from every receptive field, but in fast convolutions (Winograd) they still affect
    the rounding of their neighbors.

    Args:
        images: Shape ``(*lead, C, H, W)``.
        mask: Shape ``(*lead, H, W)`` or ``(*lead, 1, H, W)``, bool, or floating-point in [0, 1].
        fill: The constant; within the value range of the images.

    Returns:
        Images with the shape and dtype of `images`; differentiable.
    """
    whole = (mask >= 1).reshape(*images.shape[:-3], 1, *images.shape[-2:])
    return torch.where(whole, images, torch.full((), fill, dtype=images.dtype, device=images.device))


def any_unmasked(masks: Mapping[str, Tensor]) -> Tensor:
    """Whether an image has at least one unmasked position at every layer.

    Args:
        masks: Weights ``(M, 1, h, w)`` by layer name.

    Returns:
        Bools ``(M,)``.
    """
    return torch.stack([mask.flatten(1).sum(1) > 0 for mask in masks.values()]).all(0)
