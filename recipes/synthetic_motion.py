"""Synthetic motion from photographs: a background and foreground patches, each with its own smooth motion.

All frames are rendered from the same layers at times from -1/2 to 1/2, so the middle frame, at time 0, is exact.
Positions are (x, y) in pixels from the center of the frame.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import read_image

TIMES = (-0.5, 0.0, 0.5)
"""Times of frame 0, the middle frame and frame 1."""

Mask: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Function of x and y at time 0 (any shape) that returns the opacity of a layer in [0, 1]."""

Triplet = tuple[Tensor, Tensor, Tensor, str]  # frame 0, frame 1, middle, name
_OVERSAMPLED = 2.0  # layer samples per frame pixel, so that bilinear sampling blurs little
_SMALLEST = 16  # smallest side of a photograph
_BORDER = 3  # extra pixels of the photograph for the filters


class Motion(NamedTuple):
    """Translation, rotation and scaling of a layer from frame 0 to frame 1.

    Attributes:
        pan: Translation to the right and down, in pixels.
        turn: Rotation in radians.
        zoom: Natural logarithm of the scale factor.
        pivot: Fixed point of rotation and scaling.
        path: Further translation, such as of a shaking camera: positions at equal intervals from frame 0 to frame 1, to
            the right and down, with straight lines between them. An odd number; the one in the middle is (0, 0). Empty
            for none.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    zoom: float = 0.0
    pivot: tuple[float, float] = (0.0, 0.0)
    path: tuple[tuple[float, float], ...] = ()

    def origin(self, time: float) -> Tensor:
        """Affine map ``(2, 3)`` from a position at `time` to the position of its content at time 0."""
        back = _similarity(math.exp(-time * self.zoom), -time * self.turn)
        pivot, pan = torch.tensor(self.pivot), time * torch.tensor(self.pan)
        if self.path:
            pan = pan + self._on_path(time)
        return torch.cat([back, (pivot - back @ (pivot + pan))[:, None]], 1)

    def _on_path(self, time: float) -> Tensor:
        place = (time + 0.5) * (len(self.path) - 1)
        before = min(max(int(place), 0), len(self.path) - 2)
        one, two = torch.tensor(self.path[before]), torch.tensor(self.path[before + 1])
        return torch.lerp(one, two, place - before)


class Layer(NamedTuple):
    """A moving image with its opacity.

    Attributes:
        image: Shape ``(3, H, W)``, range [0, 1]; samples outside repeat the border.
        place: Affine map, shape ``(2, 3)``, from positions at time 0 to pixels (x, y) of the image.
        motion: Motion of the layer.
        mask: Opacity; None for opaque.
    """

    image: Tensor
    place: Tensor
    motion: Motion = Motion()
    mask: Mask | None = None


def render(layers: Sequence[Layer], size: tuple[int, int], times: Sequence[float] = TIMES) -> Tensor:
    """Render frame 0, the middle frame and frame 1, or frames at other times, rounded to 8 bits like files.

    Args:
        layers: Layers, background first.
        size: Height and width of the frames.
        times: Times of the frames, from -1/2 (frame 0) to 1/2 (frame 1).

    Returns:
        Shape ``(len(times), 3, height, width)``, range [0, 1].
    """
    positions = _positions(*size).flatten(1)
    frames = torch.zeros(len(times), 3, *size)
    for layer in layers:
        origins = torch.stack([_apply(layer.motion.origin(time), positions) for time in times])
        places = _apply(layer.place, origins).unflatten(-1, size).movedim(1, -1)
        extent = places.new_tensor([layer.image.shape[2], layer.image.shape[1]])
        images = layer.image.expand(len(times), -1, -1, -1)
        # Normalized coordinates: -1 and 1 are the image edges, half a pixel beyond the centers of the outer pixels.
        grid = (2 * places + 1) / extent - 1
        sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if layer.mask is None:
            frames = sampled
        else:
            opacity = layer.mask(*origins.unbind(1)).unflatten(-1, size)[:, None]
            frames = torch.lerp(frames, sampled, opacity)
    return frames.mul(255).round().clamp(0, 255).div(255)


class SyntheticMotion(Dataset[Triplet]):
    """Dataset of (frame 0, frame 1, middle, name) with synthetic motion, which depends only on seed and index.

    Indices from `length` on are for later epochs, epoch * length + index: with them, no motion is repeated in training.

    Args:
        photographs: Names and files; the images are kept in memory, and small ones are enlarged as needed.
        size: Height and width of the frames.
        length: Samples per epoch.
        max_motion: Largest translation of a layer from frame 0 to frame 1, in pixels; smaller ones are more frequent.
        seed: Nonnegative seed.

    Raises:
        ValueError: If an argument is out of its range or a photograph is tiny.
        FileNotFoundError: If a file does not exist.
    """

    def __init__(
        self,
        photographs: dict[str, Path],
        size: tuple[int, int],
        length: int,
        max_motion: float,
        seed: int = 0,
    ) -> None:
        if not 0 <= max_motion <= min(size):
            raise ValueError(f"max_motion: expected 0 to {min(size)} pixels, the frame's side, got {max_motion}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.size, self.length, self.max_motion, self.seed = size, length, max_motion, seed
        self.images = [read_image(file) for file in photographs.values()]
        for file, image in zip(photographs.values(), self.images, strict=True):
            if min(image.shape[1:]) < _SMALLEST:
                raise ValueError(f"{file}: expected at least {_SMALLEST} pixels a side, got {tuple(image.shape[1:])}")

    def __len__(self) -> int:
        return self.length

    @override
    def __getitem__(self, index: int) -> Triplet:
        generator = np.random.default_rng([self.seed, *divmod(index, self.length)])
        first, middle, last = render(self.layers(generator), self.size)
        return first, last, middle, f"{index:06d}"

    def layers(self, generator: np.random.Generator) -> list[Layer]:
        """Draw a background and one or two foreground patches."""
        behind = self._motion(generator)
        layers = [self._layer(generator, behind, None)]
        for _ in range(int(generator.integers(1, 3))):
            motion = self._motion(generator, behind if generator.random() < 0.5 else None)
            layers.append(self._layer(generator, motion, _mask(generator, min(self.size))))
        return layers

    def _motion(self, generator: np.random.Generator, behind: Motion | None = None) -> Motion:
        """Draw a random motion, or one close to that of the background."""
        length = self.max_motion * generator.random() ** 1.5
        angle = generator.uniform(0, 2 * math.pi)
        pan = np.array([math.cos(angle), math.sin(angle)]) * length
        if behind is not None:
            pan = np.array(behind.pan) + pan / 3
            pan *= min(1.0, self.max_motion / max(np.hypot(*pan), 1e-9))
        turn, zoom = generator.normal(0, (0.03, 0.02)).clip(-0.1, 0.1) if generator.random() < 0.6 else (0.0, 0.0)
        pivot = generator.uniform(-0.5, 0.5, 2) * self.size[::-1]
        return Motion((float(pan[0]), float(pan[1])), float(turn), float(zoom), (float(pivot[0]), float(pivot[1])))

    def _layer(self, generator: np.random.Generator, motion: Motion, mask: Mask | None) -> Layer:
        """Draw a part of a photograph, randomly mirrored, rotated and scaled, that covers all frames."""
        image = self.images[int(generator.integers(len(self.images)))]
        rotation = _similarity(1.0, int(generator.integers(4)) * math.pi / 2 + generator.uniform(-0.3, 0.3))
        rotation = rotation @ torch.diag(torch.tensor([1.0 if generator.random() < 0.5 else -1.0, 1.0]))
        corners = _positions(*self.size)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        visible = rotation @ torch.cat([_apply(motion.origin(time), corners) for time in TIMES], 1)
        low, high = visible.amin(1), visible.amax(1)
        extent = torch.tensor([image.shape[2], image.shape[1]])
        largest = float(((extent - 1 - 2 * _BORDER) / (high - low)).min())
        shrink = min(generator.uniform(0.9, 2.2), largest)
        needed = torch.minimum((shrink * (high - low)).ceil().int() + 2 * _BORDER + 1, extent).tolist()
        sides = zip(extent.tolist(), needed, strict=True)
        left, top = (int(generator.integers(side - part + 1)) for side, part in sides)
        part = image[:, top : top + needed[1], left : left + needed[0]][None]
        size = [max(1, round(side * _OVERSAMPLED / shrink)) for side in part.shape[2:]]
        # uint8 resizing is many times faster than floating point.
        part = F.interpolate(part, size=size, mode="bicubic", antialias=True, align_corners=False)[0] / 255
        # The center of the visible region is the center of the part.
        middle = (torch.tensor([size[1], size[0]]) - 1) / 2 - _OVERSAMPLED * (low + high) / 2
        return Layer(part, torch.cat([_OVERSAMPLED * rotation, middle[:, None]], 1), motion, mask)


def _mask(generator: np.random.Generator, side: int) -> Mask:
    """Draw a blob, or many patches with holes, with edges about one pixel wide."""
    soft = generator.uniform(0.4, 1.2)
    return _blob(generator, side, soft) if generator.random() < 0.6 else _patches(generator, side, soft)


def _blob(generator: np.random.Generator, side: int, soft: float) -> Mask:
    """Region inside a wavy outline."""
    waves = [(n, generator.normal(0, 0.35) / n, generator.uniform(0, 2 * math.pi)) for n in range(1, 7)]
    radius, (left, top) = generator.uniform(0.12, 0.35) * side, generator.uniform(-0.4, 0.4, 2) * side

    def mask(x: Tensor, y: Tensor) -> Tensor:
        angle = torch.atan2(y - top, x - left)
        outline = 1 + torch.stack([height * torch.cos(n * angle + phase) for n, height, phase in waves]).sum(0)
        return torch.sigmoid((radius * outline.clamp(min=0.1) - torch.hypot(x - left, y - top)) / soft)

    return mask


def _patches(generator: np.random.Generator, side: int, soft: float) -> Mask:
    """Region where a sum of waves exceeds a level."""
    angles, phases = generator.uniform(0, 2 * math.pi, (2, 5))
    steepness = 2 * math.pi / (generator.uniform(0.15, 0.8, 5) * side)
    waves = list(zip((steepness * np.cos(angles)).tolist(), (steepness * np.sin(angles)).tolist(), phases, strict=True))
    slope, level = float(steepness.mean()), generator.uniform(0.3, 1.2)

    def mask(x: Tensor, y: Tensor) -> Tensor:
        height = torch.stack([torch.cos(a * x + b * y + phase) for a, b, phase in waves]).sum(0)
        return torch.sigmoid((height - level) / (soft * slope))

    return mask


def _similarity(factor: float, angle: float) -> Tensor:
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]])


def _apply(affine: Tensor, positions: Tensor) -> Tensor:
    """Apply an affine map ``(2, 3)`` to positions ``(..., 2, N)``."""
    return affine[:, :2] @ positions + affine[:, 2:]


def _positions(height: int, width: int) -> Tensor:
    """Positions x and y of every pixel from the center of the frame, shape ``(2, height, width)``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x - width // 2, y - height // 2]).float()
