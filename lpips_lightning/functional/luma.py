"""PSNR and SSIM on luma without a border, as superresolution papers report them.

Steps and their sources:

1. Images are rounded to 8 bits, as in image files.
2. Luma is ITU-R BT.601 on [16, 235], ``16 + 65.481 R + 128.553 G + 24.966 B`` for R, G, B on [0, 1], rounded to
integers
   as in MATLAB's ``rgb2ycbcr`` for uint8.
3. A border as wide as the scale factor is cropped on each side.
4. PSNR has the peak value 255. SSIM (Wang et al. 2004) has an 11 x 11 Gaussian window, sigma 1.5, K1 0.01, K2 0.03,
   L 255, and is averaged over the positions with the full window inside the crop, as in the authors' ``ssim_index.m``.
5. Both are computed for each image and averaged over images.

Bicubic enlargement has on Set5 PSNR 33.65, 30.39, 28.42 and SSIM 0.9295, 0.8679, 0.8102 at x2, x3, x4; published values
are 33.66, 30.39, 28.42 and 0.9299, 0.8682, 0.8104 (Kim et al. 2016, arXiv:1511.04587, table 3). Papers without rounding
of luma report about 0.02 dB and 0.001 more. On Set14 it has 30.32, 27.63, 26.09; published values are 30.24, 27.55,
26.00. The only gray file, bridge, has three equal channels here, and its luma has less contrast.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lpips_lightning.images.hints import UNMASKED
from lpips_lightning.images.ranges import DataRange, check_values, parse_range

_WINDOW = 11


def luma(images: Tensor) -> Tensor:
    """BT.601 luma of 8-bit images.

    Args:
        images: Shape ``(N, 3, H, W)``, floating on [0, 1]; clamped and rounded to 8 bits.

    Returns:
        Shape ``(N, 1, H, W)``, float64 on the CPU, integers on [16, 235].
    """
    rgb = images.cpu().double().mul(255).round().clamp(0, 255) / 255
    weights = rgb.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return (16 + (rgb * weights).sum(1, keepdim=True)).round()


def luma_scores(pred: Tensor, target: Tensor, border: int, *, data_range: DataRange = (0, 1)) -> tuple[Tensor, Tensor]:
    """PSNR in dB and SSIM of each image's luma; see the module docstring.

    Args:
        pred: Shape ``(N, 3, H, W)``, floating on `data_range` (clamped) or uint8 on [0, 255].
        target: Same shape, on the range.
        border: Pixels to crop on each side, usually the scale factor.
        data_range: ``(low, high)``, or ``high`` alone for ``(0, high)``.

    Returns:
        PSNR ``(N,)`` and SSIM ``(N,)``, on the CPU.

    Raises:
        ValueError: If the shapes differ, values of `target` are off the range, or the cropped images are smaller than
            SSIM's window.

    Example:
        >>> target = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> psnr, ssim = luma_scores(target * 0.9, target, border=4)
        >>> psnr.shape, ssim.shape
        (torch.Size([2]), torch.Size([2]))
    """
    low_high = parse_range(data_range)
    check_values(target, "target", low_high, UNMASKED)
    return luma_scores_of_unit_range(_on_unit_range(pred, low_high), _on_unit_range(target, low_high), border)


def luma_scores_of_unit_range(pred: Tensor, target: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """`luma_scores` of images on [0, 1], without a check of their values."""
    if pred.shape != target.shape:
        raise ValueError(f"pred: expected the target's shape {tuple(target.shape)}, got {tuple(pred.shape)}")
    if min(pred.shape[-2:]) - 2 * border < _WINDOW:
        raise ValueError(
            f"border: expected to leave at least {_WINDOW} pixels, SSIM's window, got {border} at each side of"
            f" {pred.shape[-2]}x{pred.shape[-1]}"
        )
    height, width = pred.shape[-2:]
    inner = (..., slice(border, height - border), slice(border, width - border))
    one, two = luma(pred)[inner], luma(target)[inner]
    psnr = peak_signal_noise_ratio(one, two, data_range=255.0, dim=(1, 2, 3), reduction="none")
    # torchmetrics pads by reflection; the authors' code excludes positions that need padding.
    _, ssim_map = structural_similarity_index_measure(
        one, two, sigma=1.5, kernel_size=_WINDOW, data_range=255.0, k1=0.01, k2=0.03, return_full_image=True
    )
    half = _WINDOW // 2
    return psnr, ssim_map[..., half:-half, half:-half].mean((1, 2, 3))


def _on_unit_range(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else data_range
    return images if (low, high) == (0.0, 1.0) else (images.double() - low) / (high - low)
