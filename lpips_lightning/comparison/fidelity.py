"""PSNR and SSIM of a pair of images, for `compare`, in row strips of bounded memory; what all its scores are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from lpips_lightning.images.preprocessing import ImagePolicy

Score: TypeAlias = Literal["psnr", "ssim", "tlp"]
"""Scores beside LPIPS; ``"tlp"`` is of videos, see `lpips_lightning.comparison.temporal`."""
SCORES: tuple[Score, ...] = get_args(Score)

_WINDOW = 11  # of SSIM: reaches 5 pixels to each side
_STRIP = 1 << 18  # pixels


def definition(scores: Sequence[Score], masked: bool = False) -> str:
    """What the numbers are, to cite behind the fingerprint; starts with ``"; "``, empty without scores."""
    parts = []
    if "psnr" in scores:
        where = "over the mask" if masked else "of all pixels"
        parts.append(f"PSNR in dB from the mean squared error {where} and RGB, peak 1, no border cropped")
    if "ssim" in scores:
        parts.append("SSIM of RGB, range 1, Gaussian window 11x11, sigma 1.5, no border cropped, as in torchmetrics")
    if "tlp" in scores:
        parts.append("tLP: mean absolute difference of both sides' LPIPS from frame to frame, not multiplied by 100")
    return "".join(f"; {part}" for part in parts)


def pair_scores(
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    images: ImagePolicy,
    scores: Sequence[Score],
    mask: npt.NDArray[np.float32] | None = None,
) -> dict[str, float]:
    """PSNR and SSIM of the images that the network gets: after gray, background and resize.

    PSNR is computed in float64 from all bits of the file, SSIM in float32 by torchmetrics. Both are on the CPU.

    Args:
        first: Pixels ``(H, W, C)``: uint8, uint16, or floating on [0, 1].
        second: Pixels of the other image.
        images: How the network converts images.
        scores: Which scores to compute; those of videos are left out.
        mask: Weights of the pixels for PSNR, ``(H, W)`` in [0, 1].

    Returns:
        Value by score, in the order of `scores`; PSNR in dB, infinite for equal images. Several values of
        ``gray="per_channel"`` are averaged.
    """
    error, weight, similarity, count = torch.zeros(1, dtype=torch.float64), 0.0, 0.0, 0
    for x, y, weights, inner in _strips(first, second, images, mask):
        squares = (x[:, :, inner] - y[:, :, inner]).square().mean(1)
        error = error + (squares * weights).sum((1, 2))
        weight += float(weights.sum())
        if "ssim" in scores:
            found: Any = structural_similarity_index_measure(
                x.float(), y.float(), gaussian_kernel=True, sigma=1.5, data_range=1.0, return_full_image=True
            )
            values = found[1][:, :, inner].double()
            similarity, count = similarity + float(values.sum()), count + values.numel()
    equal = mask is None and not error.any()  # in float32 SSIM would miss 1 by rounding
    results = {"psnr": _psnr(error, weight), "ssim": 1.0 if equal else similarity / max(count, 1)}
    return {score: results[score] for score in scores if score in results}


def white(pixels: npt.NDArray[Any]) -> float:
    """The pixel value of white: the largest integer, or 1 for floats."""
    return 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def _psnr(error: Tensor, weight: float) -> float:
    return float(-10 * (error / weight).log10().mean()) if weight else math.nan


def _strips(
    first: npt.NDArray[Any], second: npt.NDArray[Any], images: ImagePolicy, mask: npt.NDArray[np.float32] | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Rows of both images ``(M, 3, h, W)``, float64 on [0, 1]; weights of the inner rows; and which rows are inner."""
    both: Sequence[Any] = (first, second)
    if images.resize is not None:  # needs whole images
        both = [_unit(pixels, images) for pixels in both]
    height, width = both[0].shape[:2] if images.resize is None else both[0].shape[2:]
    weights = torch.ones(height, width, dtype=torch.float64) if mask is None else _resized(mask, height, width)
    rows, halo = max(1, _STRIP // width), _WINDOW // 2
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start, stop = max(top - halo, 0), min(bottom + halo, height)
        if images.resize is None:
            x, y = (_unit(pixels[start:stop], images) for pixels in both)
        else:
            x, y = (pixels[:, :, start:stop] for pixels in both)
        yield x, y, weights[top:bottom], slice(top - start, bottom - start)


def _unit(pixels: npt.NDArray[Any], images: ImagePolicy) -> Tensor:
    values = torch.from_numpy(pixels.astype(np.float64) / white(pixels)).permute(2, 0, 1)[None]
    return images.to_flat_rgb(values, (0.0, 1.0))[0]


def _resized(mask: npt.NDArray[np.float32], height: int, width: int) -> Tensor:
    weights = torch.from_numpy(mask).double()
    if weights.shape == (height, width):
        return weights
    return F.interpolate(weights[None, None], (height, width), mode="area")[0, 0]
