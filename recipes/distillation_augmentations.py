"""Images and altered versions of them, the training data of a perceptual distance.

`vary` turns a batch of images into groups of an image and several versions: increasing strengths of one alteration,
different distortions, blends with another image, or barely visible changes. All pairs within a group are used, so a
group of five gives up to ten pairs for five network evaluations.

Images are `crops` of photographs, or come from `procedural`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from lpips_lightning.data.distortions import DISTORTIONS, Distortion, distort


def procedural(count: int, size: int, generator: Generator) -> Tensor:
    """Synthetic images ``(count, 3, size, size)`` in [0, 1]: dead leaves, spectral textures, gratings and mixtures."""
    makers = (_dead_leaves, _dead_leaves, _texture, _gratings, _mixture)
    chosen = torch.randint(len(makers), (count,), generator=generator).tolist()
    return torch.stack([makers[k](size, generator) for k in chosen]).clamp_(0, 1)


def _dead_leaves(size: int, generator: Generator) -> Tensor:
    """Occluding disks and rectangles of power-law size and random color (Lee, Mumford, Huang 2001)."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    image = torch.rand(3, 1, 1, generator=generator).expand(3, size, size).clone()
    for center_y, center_x, radius, shape, angle, slope, *color in torch.rand(60, 9, generator=generator).tolist():
        y, x = rows - center_y, columns - center_x
        cosine, sine = math.cos(math.tau * angle), math.sin(math.tau * angle)
        u, v = cosine * x + sine * y, cosine * y - sine * x
        extent = 0.03 / (1 - 0.93 * radius)  # 0.03 to 0.43, density about 1 / extent ** 2
        inside = (
            (u * u + v * v < extent * extent)
            if shape < 0.6
            else ((u.abs() < extent) & (v.abs() < extent * (0.2 + shape - 0.6)))
        )
        fill = torch.tensor(color).view(3, 1, 1) + (slope - 0.5) * u
        image = torch.where(inside, fill, image)
    return image


def _texture(size: int, generator: Generator) -> Tensor:
    """Gaussian noise with a power-law spectrum, white to very smooth, anisotropic, in a random color space."""
    slope, stretch, gain = torch.rand(3, generator=generator).tolist()
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.fftfreq(size) * 4 ** (2 * stretch - 1)).clamp(
        min=1 / size
    )
    noise = torch.fft.ifft2(
        torch.fft.fft2(torch.randn(3, size, size, generator=generator)) * frequency ** (-2.2 * slope)
    ).real
    noise = noise / noise.std()
    mixing = torch.randn(3, 3, generator=generator) / math.sqrt(3)
    mean = torch.rand(3, 1, 1, generator=generator)
    return mean + (0.05 + 0.3 * gain) * torch.einsum("ij,jhw->ihw", mixing, noise)


def _gratings(size: int, generator: Generator) -> Tensor:
    """Three sinusoids or square waves of random direction, period and color."""
    rows, columns = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    image = torch.rand(3, 1, 1, generator=generator).expand(3, size, size).clone()
    for angle, period, phase, square, *color in torch.rand(3, 7, generator=generator).tolist():
        wave = (columns * math.cos(math.tau * angle) + rows * math.sin(math.tau * angle)) / (3 * 20**period)
        wave = (math.tau * (wave + phase)).sin()
        image += 0.5 * (torch.tensor(color).view(3, 1, 1) - 0.5) * (wave.sign() if square < 0.3 else wave)
    return image


def _mixture(size: int, generator: Generator) -> Tensor:
    """Dead leaves and texture, blended with a smooth mask."""
    mask = _smooth_mask(1, size, generator)[0]
    return torch.lerp(_dead_leaves(size, generator), _texture(size, generator), mask)


def _smooth_mask(count: int, size: int, generator: Generator) -> Tensor:
    """Random masks ``(count, 1, size, size)`` in [0, 1] with soft edges."""
    seeds = 4 * torch.randn(count, 1, 5, 5, generator=generator)
    return F.interpolate(seeds, size=(size, size), mode="bicubic", align_corners=True).add(0.5).clamp(0, 1)


def _resample(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Downscale by 1 to 8 and upscale again; one factor per batch."""
    down, up = torch.randint(4, (2,), generator=generator).tolist()
    modes = ("area", "bilinear", "bicubic", "nearest")
    height, width = images.shape[-2:]
    factor = 1 + 7 * float(strength.mean()) ** 1.5
    small = F.interpolate(
        images, size=(max(2, round(height / factor)), max(2, round(width / factor))), mode=modes[down]
    )
    return F.interpolate(small, size=(height, width), mode=modes[up])


def _low_pass(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Low-pass filter with a smooth error, as from a weak autoencoder."""
    rows, columns = (torch.fft.fftfreq(side) for side in images.shape[-2:])
    frequency = torch.hypot(rows[:, None], columns[None, :])
    edge = (0.5 * (1 - strength) ** 2 + 0.02).view(-1, 1, 1, 1)
    kept = torch.fft.ifft2(torch.fft.fft2(images) * torch.sigmoid((edge - frequency) * 80)).real
    error = F.interpolate(
        torch.randn(len(images), 3, 8, 8, generator=generator), size=images.shape[-2:], mode="bicubic"
    )
    return torch.where(strength.view(-1, 1, 1, 1) > 0, kept + 0.05 * strength.view(-1, 1, 1, 1) * error, images)


def _blend(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Cross-fade to the next image of the batch."""
    return torch.lerp(images, images.roll(1, 0), strength.view(-1, 1, 1, 1))


def _from_noise(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Cross-fade to noise or uniform gray, as during image optimization."""
    noise = torch.rand(images.shape, generator=generator)
    amount = torch.rand(len(images), 1, 1, 1, generator=generator)
    return torch.lerp(images, torch.lerp(torch.full_like(images, 0.5), noise, amount), strength.view(-1, 1, 1, 1))


def _paste(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Paste soft regions of another image, at random opacity."""
    mask = _smooth_mask(len(images), images.shape[-1], generator)
    return torch.lerp(images, images.roll(1, 0), mask * strength.view(-1, 1, 1, 1))


def _tone_curve(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Random smooth tone curve for each channel."""
    bend = (
        torch.randn(len(images), 3, 1, 1, generator=generator),
        torch.randn(len(images), 3, 1, 1, generator=generator),
    )
    curve = 0.25 * bend[0] * (math.pi * images).sin() + 0.15 * bend[1] * (math.tau * images).sin()
    return images + strength.view(-1, 1, 1, 1) * curve


def _mosaic(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Blocks of 2 to 10 pixels of uniform color, at random opacity."""
    side = int(torch.randint(2, 11, (), generator=generator))
    height, width = images.shape[-2:]
    small = F.interpolate(images, size=(-(-height // side), -(-width // side)), mode="area")
    blocks = small.repeat_interleave(side, -2).repeat_interleave(side, -1)[..., :height, :width]
    return torch.lerp(images, blocks, strength.view(-1, 1, 1, 1))


def _stripes(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Sinusoidal or square wave of random direction, with a period of 2 to 20 pixels, gray or colored."""
    angle, period, phase, hard = torch.rand(4, len(images), 1, 1, generator=generator).unbind(0)
    color = torch.lerp(
        torch.ones(len(images), 3), torch.randn(len(images), 3, generator=generator), (phase > 0.5).view(-1, 1).float()
    )
    rows, columns = torch.arange(images.shape[-2]).view(-1, 1), torch.arange(images.shape[-1]).view(1, -1)
    along = columns * (math.pi * angle).cos() + rows * (math.pi * angle).sin()
    wave = (math.tau * (along / (2 * 10**period) + phase)).sin()
    wave = torch.where(hard < 0.3, wave.sign(), wave)
    return images + 0.3 * strength.view(-1, 1, 1, 1) * color[:, :, None, None] * wave.unsqueeze(1)


def _cover(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Rectangle of uniform color or noise, from a point to most of the image."""
    height, width = images.shape[-2:]
    center_y, center_x, half_y, half_x = torch.rand(4, len(images), 1, 1, generator=generator).unbind(0)
    rows, columns = torch.linspace(0, 1, height).view(-1, 1), torch.linspace(0, 1, width).view(1, -1)
    extent = 0.5 * strength.view(-1, 1, 1)
    inside = ((rows - center_y).abs() < extent * (0.3 + 0.7 * half_y)) & (
        (columns - center_x).abs() < extent * (0.3 + 0.7 * half_x)
    )
    fill = torch.rand(len(images), 3, 1, 1, generator=generator)
    grain = torch.rand(len(images), 1, 1, 1, generator=generator).sub(0.5).clamp(min=0)
    return torch.where(inside.unsqueeze(1), fill + grain * torch.randn(images.shape, generator=generator), images)


def _dropout(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Replace single pixels by black, white or a random color."""
    hit = torch.rand(len(images), 1, *images.shape[-2:], generator=generator) < 0.3 * strength.view(-1, 1, 1, 1) ** 1.5
    value = torch.rand(images.shape, generator=generator)
    extreme = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.6
    return torch.where(hit, torch.where(extreme, value[:, :1].round(), value), images)


def _illumination(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Smooth random shading."""
    field = torch.randn(len(images), 1, 3, 3, generator=generator)
    shade = F.interpolate(field, size=images.shape[-2:], mode="bicubic", align_corners=True)
    return images * (0.6 * strength.view(-1, 1, 1, 1) * shade).exp()


def _jitter(images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Random displacements of about 2 pixels with a scale of 1 to 8 pixels, in one or both directions."""
    height, width = images.shape[-2:]
    cells = 2 ** torch.randint(4, (2,), generator=generator)
    coarse = torch.randn(len(images), 2, -(-height // int(cells[0])), -(-width // int(cells[1])), generator=generator)
    gain = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])[torch.randint(3, (len(images),), generator=generator)]
    flow = F.interpolate(coarse, size=(height, width), mode="bicubic") * gain.view(-1, 2, 1, 1)
    pixels = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"))
    moved = pixels + 2 * strength.view(-1, 1, 1, 1) * flow
    grid = 2 * moved.permute(0, 2, 3, 1) / torch.tensor([width - 1, height - 1]) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


ALTERATIONS: dict[str, Distortion] = {
    function.__name__.removeprefix("_"): function
    for function in (
        *(_resample, _low_pass, _blend, _from_noise, _paste, _tone_curve),
        *(_mosaic, _stripes, _cover, _dropout, _illumination, _jitter),
    )
}


def vary(images: Tensor, versions: int, generator: Generator) -> Tensor:
    """Make groups of an image and altered versions.

    Kind and order of alterations are drawn once per batch, so small batches give more variety.

    Args:
        images: Shape ``(N, 3, S, S)`` in [0, 1], on the CPU, S at least 16.
        versions: Number of altered versions.
        generator: Random number generator.

    Returns:
        uint8, shape ``(N, 1 + versions, 3, S, S)``, the original image first.
    """
    plan = int(torch.randint(10, (), generator=generator))
    versioned = (
        _ladder(images, versions, generator) if plan < 5 else _scatter(images, versions, generator, tiny=plan == 9)
    )
    group = torch.stack([images, *versioned], dim=1)
    return (group * 255).round().to(torch.uint8)


def _ladder(images: Tensor, versions: int, generator: Generator) -> list[Tensor]:
    """Same alteration with increasing strength."""
    alter = _draw_alteration(generator)
    top = 0.15 + 0.85 * torch.rand(len(images), generator=generator)
    bottom = 0.7 * top * (2 * torch.rand(len(images), generator=generator) - 1).clamp(min=0)  # half of them start at 0
    seed = int(torch.randint(1 << 31, (), generator=generator))
    power = 1 + float(torch.rand((), generator=generator))
    rungs = [((rung + 1) / versions) ** power for rung in range(versions)]
    return [alter(images, torch.lerp(bottom, top, rung), torch.Generator().manual_seed(seed)) for rung in rungs]


def _scatter(images: Tensor, versions: int, generator: Generator, tiny: bool) -> list[Tensor]:
    """Different alterations; with ``tiny`` close to the visibility threshold."""
    result = []
    for _ in range(versions):
        strength = torch.rand(len(images), generator=generator)
        strength = 0.2 * strength**2 if tiny else strength
        result.append(_draw_alteration(generator)(images, strength, generator))
    return result


def _draw_alteration(generator: Generator) -> Callable[[Tensor, Tensor, Generator], Tensor]:
    """Draw one alteration, two in sequence, or one restricted to soft regions."""
    names = [*DISTORTIONS, *ALTERATIONS, *ALTERATIONS]  # ALTERATIONS are fewer, so twice as likely
    first, second = (names[k] for k in torch.randint(len(names), (2,), generator=generator).tolist())
    form = int(torch.randint(10, (), generator=generator))

    def alter(images: Tensor, strength: Tensor, source: Generator) -> Tensor:
        changed = altered(first, images, strength, source)
        if form < 3:
            changed = altered(second, changed, strength, source)
        elif form < 5:
            changed = torch.lerp(images, changed, _smooth_mask(len(images), images.shape[-1], source))
        return changed

    return alter


def altered(name: str, images: Tensor, strength: Tensor, generator: Generator) -> Tensor:
    """Apply one of `DISTORTIONS` or `ALTERATIONS` to images ``(N, 3, H, W)`` in [0, 1]; the result is in [0, 1]."""
    if name in DISTORTIONS:
        return distort(images, name, strength, generator)
    return ALTERATIONS[name](images, strength, generator).clamp(0, 1)
