"""PSNR and SSIM as papers on superresolution report them: on luma, without a border.

What is done, and where it comes from:

1. Images are rounded to 8 bits, as writing them to files would.
2. Luma is ITU-R BT.601's on [16, 235], ``16 + 65.481 R + 128.553 G + 24.966 B`` for R, G, B on [0, 1], rounded to whole
   numbers: MATLAB's ``rgb2ycbcr`` of a uint8 image.
3. As many pixels as the scale are cut off at each side.
4. PSNR against a peak of 255. SSIM (Wang et al. 2004) with a Gaussian window of 11 x 11, sigma 1.5, K1 0.01, K2 0.03,
   L 255, averaged over the places where the window lies inside the cut image: the authors' ``ssim_index.m``.
5. Both are means over whole images, taken one at a time.

Bicubic enlargement then has on Set5 PSNR 33.65, 30.39, 28.42 and SSIM 0.9295, 0.8679, 0.8102 at x2, x3, x4; published
are 33.66, 30.39, 28.42 and 0.9299, 0.8682, 0.8104 (Kim et al. 2016, arXiv:1511.04587, table 3). Papers that leave the
luma unrounded have about 0.02 dB and 0.001 more. On Set14 it has 30.32, 27.63, 26.09 where 30.24, 27.55, 26.00 are
published: the set's one gray file, bridge, is an image of three equal channels here, whose luma has less contrast.
"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

_WINDOW = 11


def luma(images: Tensor) -> Tensor:
    """BT.601 luma of 8-bit images.

    Args:
        images: Shape ``(N, 3, H, W)``, floating on [0, 1]; clamped and rounded to 8 bits.

    Returns:
        Shape ``(N, 1, H, W)``, float64 in the CPU's memory, whole numbers on [16, 235].
    """
    rgb = images.cpu().double().mul(255).round().clamp(0, 255) / 255
    weights = rgb.new_tensor([65.481, 128.553, 24.966]).view(1, 3, 1, 1)
    return (16 + (rgb * weights).sum(1, keepdim=True)).round()


def luma_scores(pred: Tensor, target: Tensor, border: int) -> tuple[Tensor, Tensor]:
    """PSNR in dB and SSIM of each image's luma, see above.

    Args:
        pred: Shape ``(N, 3, H, W)`` on [0, 1].
        target: The same.
        border: Pixels to cut off at each side: the scale.

    Returns:
        PSNR ``(N,)`` and SSIM ``(N,)``, in the CPU's memory.

    Raises:
        ValueError: If the shapes differ, or what is left is smaller than SSIM's window.
    """
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
    # torchmetrics reflects the image at its edges; the authors do not, and leave out the places that need it.
    _, places = structural_similarity_index_measure(
        one, two, sigma=1.5, kernel_size=_WINDOW, data_range=255.0, k1=0.01, k2=0.03, return_full_image=True
    )
    half = _WINDOW // 2
    return psnr, places[..., half:-half, half:-half].mean((1, 2, 3))
