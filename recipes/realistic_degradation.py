"""Realistic low-resolution images: blur, resizing, noise and JPEG, drawn at random for every image.

The first of the two rounds of Real-ESRGAN (Wang et al. 2021, arXiv:2107.10833, sections 3.1 and 4.1), with its ranges
of blur, noise and JPEG, and without its generalized Gaussian, plateau-shaped and sinc kernels.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

_SIGMA = (0.2, 3.0)  # of the blur, in pixels at high resolution
_ISOTROPIC = 0.5  # probabilities
_GAUSSIAN, _GRAY = 0.5, 0.4
_NOISE = (1 / 255, 30 / 255)  # standard deviation of Gaussian noise
_POISSON = (0.05, 3.0)  # factor on the noise of 255 photons at white
_QUALITY = (30, 95)  # of JPEG
_MODES = ("area", "bilinear", "bicubic")
_LUMA = (0.299, 0.587, 0.114)


def degrade(high: Tensor, scale: int, generator: Generator) -> Tensor:
    """Degrade an image: blur, resizing to a size in between, noise, resizing to the low resolution, JPEG.

    Args:
        high: Shape ``(3, H, W)``, range [0, 1]; H and W are multiples of `scale`.
        scale: Scale factor.
        generator: Random state; the result depends on nothing else.

    Returns:
        Shape ``(3, H // scale, W // scale)``, range [0, 1], in steps of 1/255.
    """
    low_size = [side // scale for side in high.shape[-2:]]
    between = scale ** -_uniform((0, 1), generator)
    size = [max(low, round(side * between)) for low, side in zip(low_size, high.shape[-2:], strict=True)]
    image = _resized(_blurred(high, generator), size, generator)
    image = _resized(_noisy(image.clamp(0, 1), generator), low_size, generator)
    quality = int(torch.randint(_QUALITY[0], _QUALITY[1] + 1, (), generator=generator))
    return _jpeg(image.clamp(0, 1), quality)


def blur_kernel(sigmas: Sequence[float], angle: float) -> Tensor:
    """Normalized Gaussian kernel, whose sides are odd and hold three standard deviations.

    Args:
        sigmas: Standard deviations along both axes of the ellipse.
        angle: Rotation of the ellipse, in radians.
    """
    radius = max(1, math.ceil(3 * max(sigmas)))
    place = torch.arange(-radius, radius + 1.0)
    y, x = torch.meshgrid(place, place, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-((along / sigmas[0]) ** 2 + (across / sigmas[1]) ** 2) / 2)
    return kernel / kernel.sum()


def _blurred(image: Tensor, generator: Generator) -> Tensor:
    one, two = _uniform(_SIGMA, generator), _uniform(_SIGMA, generator)
    isotropic, angle = _uniform((0, 1), generator) < _ISOTROPIC, _uniform((0, math.pi), generator)
    kernel = blur_kernel((one, one if isotropic else two), angle)
    pad = kernel.shape[0] // 2
    padded = F.pad(image[:, None], [pad] * 4, mode="replicate")
    return F.conv2d(padded, kernel[None, None])[:, 0]


def _resized(image: Tensor, size: list[int], generator: Generator) -> Tensor:
    mode = _MODES[int(torch.randint(len(_MODES), (), generator=generator))]
    antialias = {} if mode == "area" else {"antialias": True, "align_corners": False}
    return F.interpolate(image[None], size=size, mode=mode, **antialias)[0]


def _noisy(image: Tensor, generator: Generator) -> Tensor:
    gaussian, gray = (_uniform((0, 1), generator) < chance for chance in (_GAUSSIAN, _GRAY))
    clean = (image * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True) if gray else image
    if gaussian:
        return image + _uniform(_NOISE, generator) * torch.randn(clean.shape, generator=generator)
    return image + _uniform(_POISSON, generator) * (torch.poisson(clean * 255, generator=generator) / 255 - clean)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    pixels = image.mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as coded:
        return torch.from_numpy(np.array(coded).transpose(2, 0, 1).copy()).float().div(255)


def _uniform(ends: tuple[float, float], generator: Generator) -> float:
    return ends[0] + (ends[1] - ends[0]) * float(torch.rand((), generator=generator))
