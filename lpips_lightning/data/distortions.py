"""The paper's 20 traditional distortions (Table 2) at continuous strength, singly and in ordered pairs.

Every distortion takes images ``(N, 3, H, W)`` in ``[0, 1]``, one strength in ``[0, 1]`` per sample, and a
`torch.Generator`. Strength 0 changes (almost) nothing; strength 1 is a strong distortion. Random draws (direction,
noise, grid) do not depend on the strength, so a fixed seed with increasing strength gives increasing damage. Lengths
are in pixels, chosen for the 64-pixel patches of BAPPS.

Uses kornia, imported lazily, except for noise: kornia's noise takes neither a generator nor a strength per sample.

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, Table 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Distortion = Callable[[Tensor, Tensor, Generator], Tensor]
"""``(images (N, 3, H, W) in [0, 1], strength (N,) in [0, 1], generator) -> images``, not yet clamped."""

_SMALLEST_SIDE = 16  # the blur's kernel reflects 12 pixels at the border


def _draw(images: Tensor, generator: Generator, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Uniform samples ``(N, *shape)``, drawn in fp32 on the generator's device, so that a seed is reproducible."""
    unit = torch.rand(images.shape[0], *shape, generator=generator, device=generator.device)
    return (low + (high - low) * unit).to(images)


def _draw_sign(images: Tensor, generator: Generator) -> Tensor:
    return torch.where(_draw(images, generator) < 0, -1.0, 1.0).to(images)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit_vector(angle: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def lightness(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Shift the Lab lightness up or down by up to 45 units."""
    return _shift_lab(
        images, torch.stack((45 * _draw_sign(images, generator) * strength, 0 * strength, 0 * strength), dim=1)
    )


def color_shift(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Shift the Lab color by up to 45 units in a random direction of the a-b plane."""
    direction = _unit_vector(math.pi * _draw(images, generator))
    return _shift_lab(images, torch.cat((0 * strength[:, None], 45 * strength[:, None] * direction), dim=1))


def _shift_lab(images: Tensor, offset: Tensor) -> Tensor:
    from kornia.color import lab_to_rgb, rgb_to_lab

    moved: Tensor = lab_to_rgb(rgb_to_lab(images) + offset[:, :, None, None])
    return torch.where(_per_image(offset.abs().amax(1) > 0), moved, images)


def contrast(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Multiply or divide the contrast around the image's mean by up to 5."""
    from kornia.enhance import adjust_contrast_with_mean_subtraction

    factor = (math.log(5.0) * _draw_sign(images, generator) * strength).exp()
    adjusted: Tensor = adjust_contrast_with_mean_subtraction(images, factor)
    return adjusted


def saturation(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Scale the saturation, down to 0 or up to 4 times."""
    from kornia.enhance import adjust_saturation_with_gray_subtraction

    factor = torch.where(_draw_sign(images, generator) < 0, 1 - strength, 1 + 3 * strength)
    adjusted: Tensor = adjust_saturation_with_gray_subtraction(images, factor)
    return adjusted


def uniform_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add uniform white noise with a standard deviation of up to 0.25."""
    return images + _per_image(0.25 * math.sqrt(3.0) * strength) * _draw(images, generator, *images.shape[1:])


def gaussian_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add Gaussian white noise with a standard deviation of up to 0.25."""
    return _add_noise(images, strength, generator, torch.zeros_like(strength))


def pink_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add noise with a power proportional to 1 / frequency."""
    return _add_noise(images, strength, generator, torch.full_like(strength, -1.0))


def blue_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add noise with a power proportional to the frequency."""
    return _add_noise(images, strength, generator, torch.full_like(strength, 1.0))


def colored_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add noise with a power proportional to frequency ** e, with random e from -2 (brown) to 2 (violet)."""
    return _add_noise(images, strength, generator, _draw(images, generator, low=-2.0, high=2.0))


def _add_noise(images: Tensor, strength: Tensor, generator: Generator, exponent: Tensor) -> Tensor:
    white = torch.randn(images.shape, generator=generator, device=generator.device).to(images.device)
    rows, columns = (torch.fft.fftfreq(side, device=images.device) for side in images.shape[-2:])
    frequency = torch.hypot(rows[:, None], columns[None, :])
    amplitude = frequency.clamp(min=frequency[frequency > 0].min()) ** (_per_image(exponent.float()) / 2)
    amplitude = torch.where(frequency > 0, amplitude, 0.0)  # no constant term, so that noise keeps the mean
    noise = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    noise = noise / noise.std(dim=(1, 2, 3), keepdim=True)
    return images + _per_image(0.25 * strength) * noise.to(images)


def checkerboard(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Add a checkerboard, as from transposed convolutions, with 1- to 4-pixel fields and amplitudes of up to 0.2."""
    size = _draw(images, generator, low=1.0, high=5.0).floor().clamp(max=4).view(-1, 1, 1)
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[-2:])
    fields = (rows[:, None] / size).floor() + (columns[None, :] / size).floor()
    return images + _per_image(0.2 * strength) * (1 - 2 * (fields % 2)).unsqueeze(1).to(images)


def gaussian_blur(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Blur with a Gaussian of up to 4 pixels standard deviation."""
    from kornia.filters import gaussian_blur2d

    sigma = (4 * strength).clamp(min=1e-2)[:, None].expand(-1, 2)
    blurred: Tensor = gaussian_blur2d(images, (25, 25), sigma)
    return blurred


def bilateral(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Bilateral filter with a spatial standard deviation of 2.5 pixels, and up to 0.8 in color."""
    from kornia.filters import bilateral_blur

    sigma = (0.8 * strength).clamp(min=1e-3)
    # In chunks, because the operation allocates 81 shifted copies.
    chunks = zip(torch.split(images, 8), torch.split(sigma, 8), strict=True)
    return torch.cat([bilateral_blur(chunk, (9, 9), color, (2.5, 2.5)) for chunk, color in chunks])


def shift(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Translate by up to 6 pixels."""
    from kornia.geometry.transform import translate

    offset = 6 * strength[:, None] * _unit_vector(math.pi * _draw(images, generator))
    moved: Tensor = translate(images, offset, padding_mode="reflection", align_corners=True)
    return moved


def affine(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Rotate by up to 20 degrees, scale by up to 15 % and shear by up to 10 degrees, about the center."""
    from kornia.geometry.transform import get_affine_matrix2d, warp_affine

    rotation, stretch, horizontal, vertical = (strength[:, None] * _draw(images, generator, 4)).unbind(1)
    height, width = images.shape[-2:]
    center = images.new_tensor([(width - 1) / 2, (height - 1) / 2]).expand(len(images), 2)
    scale = (math.log(1.15) * stretch).exp()[:, None].expand(-1, 2)
    shear = math.radians(10)
    matrix = get_affine_matrix2d(
        torch.zeros_like(center), center, scale, 20 * rotation, shear * horizontal, shear * vertical
    )
    moved: Tensor = warp_affine(images, matrix[:, :2], (height, width), padding_mode="reflection")
    return moved


def homography(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Perspective warp that moves every corner by up to 12 % of the side."""
    from kornia.geometry.transform import get_perspective_transform, warp_perspective

    height, width = images.shape[-2:]
    size = images.new_tensor([width - 1, height - 1])
    corners = (images.new_tensor([[0, 0], [1, 0], [1, 1], [0, 1]]) * size).expand(len(images), 4, 2)
    moved_corners = corners + 0.12 * size * strength[:, None, None] * _draw(images, generator, 4, 2)
    matrix = get_perspective_transform(corners, moved_corners)
    moved: Tensor = warp_perspective(images, matrix, (height, width), padding_mode="reflection")
    return moved


def linear_warp(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Warp by a 5 x 5 grid of displacements of up to 5 pixels, interpolated bilinearly."""
    return _warp(images, strength, generator, "bilinear")


def cubic_warp(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Warp by a 5 x 5 grid of displacements of up to 5 pixels, interpolated bicubically."""
    return _warp(images, strength, generator, "bicubic")


def _warp(images: Tensor, strength: Tensor, generator: Generator, mode: str) -> Tensor:
    from kornia.geometry.transform import remap

    height, width = images.shape[-2:]
    grid = 5 * _per_image(strength) * _draw(images, generator, 2, 5, 5)
    flow = F.interpolate(grid, size=(height, width), mode=mode, align_corners=True)
    map_x = torch.arange(width, device=images.device) + flow[:, 0]
    map_y = torch.arange(height, device=images.device)[:, None] + flow[:, 1]
    moved: Tensor = remap(images, map_x, map_y, padding_mode="reflection", align_corners=True)
    return moved


def ghosting(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Blend in a copy shifted by 3 to 8 pixels, with a weight of up to 0.5."""
    from kornia.geometry.transform import translate

    distance = _draw(images, generator, 1, low=3.0, high=8.0)
    offset = distance * _unit_vector(math.pi * _draw(images, generator))
    ghost: Tensor = translate(images, offset, padding_mode="reflection", align_corners=True)
    return torch.lerp(images, ghost, _per_image(0.5 * strength))


def chromatic_aberration(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Shift red and blue in opposite directions by up to 4 pixels."""
    from kornia.geometry.transform import translate

    offset = 4 * strength[:, None] * _unit_vector(math.pi * _draw(images, generator))
    planes = [images[:, :1], images[:, 1:2], images[:, 2:]]
    for plane, sign in ((0, 1), (2, -1)):
        planes[plane] = translate(planes[plane], sign * offset, padding_mode="reflection", align_corners=True)
    return torch.cat(planes, dim=1)


def jpeg(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Differentiable JPEG compression with 4:2:0 chroma, at quality 100 down to 4."""
    from kornia.enhance import jpeg_codec_differentiable

    coded: Tensor = jpeg_codec_differentiable(images.clamp(0, 1), 4 + 96 * (1 - strength) ** 1.5)
    return torch.where(_per_image(strength > 0), coded, images)


DISTORTIONS: dict[str, Distortion] = {
    function.__name__: function
    for function in (
        *(lightness, color_shift, contrast, saturation),
        *(uniform_noise, gaussian_noise, pink_noise, blue_noise, colored_noise, checkerboard),
        *(gaussian_blur, bilateral),
        *(shift, affine, homography, linear_warp, cubic_warp, ghosting, chromatic_aberration),
        jpeg,
    )
}
"""The 20 distortions by name, in the order of the paper's Table 2."""


def ordered_pairs() -> list[tuple[str, str]]:
    """All 380 ordered pairs of two different distortions (the paper drew from 308).

    Example:
        >>> len(ordered_pairs()), ordered_pairs()[0]
        (380, ('lightness', 'color_shift'))
    """
    return list(permutations(DISTORTIONS, 2))


def distort(images: Tensor, names: str | Sequence[str], strength: Tensor | float, generator: Generator) -> Tensor:
    """Apply one distortion, or several in the given order.

    Args:
        images: Shape ``(N, 3, H, W)``, floating, in ``[0, 1]``, sides of at least 16 pixels.
        names: One name of `DISTORTIONS`, or several: ``("jpeg", "shift")`` compresses first.
        strength: In ``[0, 1]``: one number, shape ``(N,)``, or shape ``(len(names), N)`` for one per distortion.
        generator: Random state for directions, signs and noise; equal seeds give equal draws at any strength.

    Returns:
        Shape and dtype of ``images``, clamped to ``[0, 1]``.

    Raises:
        ValueError: If a name is unknown, or the shape of images or strength is wrong.

    Example:
        >>> images = torch.full((1, 3, 16, 16), 0.5)
        >>> noisy = distort(images, "gaussian_noise", 0.2, torch.Generator().manual_seed(0))
        >>> noisy.shape, round(float(noisy.std()), 2)
        (torch.Size([1, 3, 16, 16]), 0.05)
    """
    sequence = (names,) if isinstance(names, str) else tuple(names)
    if unknown := [name for name in sequence if name not in DISTORTIONS]:
        raise ValueError(f"names: expected some of {', '.join(DISTORTIONS)}, got {', '.join(unknown)}")
    shape, side = tuple(images.shape), _SMALLEST_SIDE
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < side or not images.is_floating_point():
        raise ValueError(f"images: expected floats (N, 3, H, W), sides of at least {side}, got {images.dtype} {shape}")
    steps = torch.as_tensor(strength).to(images)
    if steps.shape not in {(), (len(images),), (len(sequence), len(images))}:
        raise ValueError(
            f"strength: expected one, ({len(images)},) or ({len(sequence)}, {len(images)}), got {tuple(steps.shape)}"
        )
    for name, step in zip(sequence, steps.expand(len(sequence), len(images)), strict=True):
        images = DISTORTIONS[name](images, step, generator).clamp(0, 1)
    return images
