"""Three frames of made motion from photographs: a background and patches before it, each on its own smooth motion.

The middle frame is true by construction: all three are rendered from the same layers, at the times -1/2, 0 and 1/2.
Positions are (x, y) in pixels from the middle of the frame.
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
"""Of frame 0, the middle and frame 1."""

Mask: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""x and y of positions at time 0, of any shape -> how much of a layer is there, on [0, 1]."""

Triplet = tuple[Tensor, Tensor, Tensor, str]  # frame 0, frame 1, middle, name
_OVERSAMPLED = 2.0  # samples of a layer a pixel of the frame: between them bilinear sampling blurs little
_SMALLEST = 16  # side of a photograph
_BORDER = 3  # pixels of the photograph beyond what is seen, for the filters


class Motion(NamedTuple):
    """A smooth motion: how far a layer moves, turns and grows from frame 0 to frame 1.

    Attributes:
        pan: Pixels to the right and down.
        turn: Radians.
        zoom: Natural logarithm of the factor.
        pivot: The point that turn and zoom leave where it is.
    """

    pan: tuple[float, float] = (0.0, 0.0)
    turn: float = 0.0
    zoom: float = 0.0
    pivot: tuple[float, float] = (0.0, 0.0)

    def origin(self, time: float) -> Tensor:
        """The affine map, shape ``(2, 3)``, from a position at `time` to where its content is at time 0."""
        back = _similarity(math.exp(-time * self.zoom), -time * self.turn)
        pivot = torch.tensor(self.pivot)
        return torch.cat([back, (pivot - back @ (pivot + time * torch.tensor(self.pan)))[:, None]], 1)


class Layer(NamedTuple):
    """A moving image, and the part of it that is seen.

    Attributes:
        image: Shape ``(3, H, W)``, range [0, 1]; samples beyond its border repeat it.
        place: Affine map, shape ``(2, 3)``, from positions at time 0 to pixels (x, y) of the image.
        motion: Of the layer.
        mask: None for all of it.
    """

    image: Tensor
    place: Tensor
    motion: Motion = Motion()
    mask: Mask | None = None


def render(layers: Sequence[Layer], size: tuple[int, int]) -> Tensor:
    """Frame 0, the middle and frame 1, rounded to 8 bits like files.

    Args:
        layers: The background first.
        size: Height and width of the frames.

    Returns:
        Shape ``(3, 3, height, width)``, range [0, 1].
    """
    positions = _positions(*size).flatten(1)
    frames = torch.zeros(3, 3, *size)
    for layer in layers:
        origins = torch.stack([_apply(layer.motion.origin(time), positions) for time in TIMES])
        places = _apply(layer.place, origins).unflatten(-1, size).movedim(1, -1)
        extent = places.new_tensor([layer.image.shape[2], layer.image.shape[1]])
        images = layer.image.expand(3, -1, -1, -1)
        # In these coordinates -1 and 1 are the image's edges, half a pixel beyond the middle of its first and last.
        grid = (2 * places + 1) / extent - 1
        seen = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if layer.mask is None:
            frames = seen
        else:
            cover = layer.mask(*origins.unbind(1)).unflatten(-1, size)[:, None]
            frames = torch.lerp(frames, seen, cover)
    return frames.mul(255).round().clamp(0, 255).div(255)


class SyntheticMotion(Dataset[Triplet]):
    """(frame 0, frame 1, middle, name) of made motion; what is drawn depends on the seed and the number alone.

    Numbers from `length` on belong to later epochs, epoch * length + index: training takes them, so that no motion
    comes twice.

    Args:
        photographs: Name and file of each, kept in memory. What is seen of a small one is enlarged as needed.
        size: Height and width of the frames.
        length: Numbers of an epoch.
        max_motion: Longest pan of a layer from frame 0 to frame 1, in pixels; shorter ones are more frequent.
        seed: Not negative.

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
        numbers = np.random.default_rng([self.seed, *divmod(index, self.length)])
        first, middle, last = render(self.layers(numbers), self.size)
        return first, last, middle, f"{index:06d}"

    def layers(self, numbers: np.random.Generator) -> list[Layer]:
        """A background and one or two patches before it."""
        behind = self._motion(numbers)
        layers = [self._layer(numbers, behind, None)]
        for _ in range(int(numbers.integers(1, 3))):
            motion = self._motion(numbers, behind if numbers.random() < 0.5 else None)
            layers.append(self._layer(numbers, motion, _mask(numbers, min(self.size))))
        return layers

    def _motion(self, numbers: np.random.Generator, behind: Motion | None = None) -> Motion:
        """Any motion, or one not far from that of what is behind it."""
        length = self.max_motion * numbers.random() ** 1.5
        angle = numbers.uniform(0, 2 * math.pi)
        pan = np.array([math.cos(angle), math.sin(angle)]) * length
        if behind is not None:
            pan = np.array(behind.pan) + pan / 3
            pan *= min(1.0, self.max_motion / max(np.hypot(*pan), 1e-9))
        turn, zoom = numbers.normal(0, (0.03, 0.02)).clip(-0.1, 0.1) if numbers.random() < 0.6 else (0.0, 0.0)
        pivot = numbers.uniform(-0.5, 0.5, 2) * self.size[::-1]
        return Motion((float(pan[0]), float(pan[1])), float(turn), float(zoom), (float(pivot[0]), float(pivot[1])))

    def _layer(self, numbers: np.random.Generator, motion: Motion, mask: Mask | None) -> Layer:
        """Part of a photograph, mirrored, turned and shrunk at random, so large that no frame sees its border."""
        image = self.images[int(numbers.integers(len(self.images)))]
        turned = _similarity(1.0, int(numbers.integers(4)) * math.pi / 2 + numbers.uniform(-0.3, 0.3))
        turned = turned @ torch.diag(torch.tensor([1.0 if numbers.random() < 0.5 else -1.0, 1.0]))
        corners = _positions(*self.size)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
        seen = turned @ torch.cat([_apply(motion.origin(time), corners) for time in TIMES], 1)
        low, high = seen.amin(1), seen.amax(1)
        extent = torch.tensor([image.shape[2], image.shape[1]])
        room = float(((extent - 1 - 2 * _BORDER) / (high - low)).min())
        shrink = min(numbers.uniform(0.9, 2.2), room)
        needed = torch.minimum((shrink * (high - low)).ceil().int() + 2 * _BORDER + 1, extent).tolist()
        left, top = (int(numbers.integers(all_ - part + 1)) for all_, part in zip(extent.tolist(), needed, strict=True))
        part = image[:, top : top + needed[1], left : left + needed[0]][None]
        size = [max(1, round(side * _OVERSAMPLED / shrink)) for side in part.shape[2:]]
        # In 8 bits: many times faster than in floating point.
        part = F.interpolate(part, size=size, mode="bicubic", antialias=True, align_corners=False)[0] / 255
        # The middle of what is seen lies in the middle of the part.
        middle = (torch.tensor([size[1], size[0]]) - 1) / 2 - _OVERSAMPLED * (low + high) / 2
        return Layer(part, torch.cat([_OVERSAMPLED * turned, middle[:, None]], 1), motion, mask)


def _mask(numbers: np.random.Generator, side: int) -> Mask:
    """A blob, or many patches with holes; their edges are a pixel or so wide."""
    soft = numbers.uniform(0.4, 1.2)
    return _blob(numbers, side, soft) if numbers.random() < 0.6 else _patches(numbers, side, soft)


def _blob(numbers: np.random.Generator, side: int, soft: float) -> Mask:
    """What lies within a wavy outline."""
    waves = [(n, numbers.normal(0, 0.35) / n, numbers.uniform(0, 2 * math.pi)) for n in range(1, 7)]
    radius, (left, top) = numbers.uniform(0.12, 0.35) * side, numbers.uniform(-0.4, 0.4, 2) * side

    def mask(x: Tensor, y: Tensor) -> Tensor:
        angle = torch.atan2(y - top, x - left)
        outline = 1 + torch.stack([height * torch.cos(n * angle + phase) for n, height, phase in waves]).sum(0)
        return torch.sigmoid((radius * outline.clamp(min=0.1) - torch.hypot(x - left, y - top)) / soft)

    return mask


def _patches(numbers: np.random.Generator, side: int, soft: float) -> Mask:
    """What lies above the level of a sum of waves."""
    angles, phases = numbers.uniform(0, 2 * math.pi, (2, 5))
    steepness = 2 * math.pi / (numbers.uniform(0.15, 0.8, 5) * side)
    waves = list(zip((steepness * np.cos(angles)).tolist(), (steepness * np.sin(angles)).tolist(), phases, strict=True))
    slope, level = float(steepness.mean()), numbers.uniform(0.3, 1.2)

    def mask(x: Tensor, y: Tensor) -> Tensor:
        height = torch.stack([torch.cos(a * x + b * y + phase) for a, b, phase in waves]).sum(0)
        return torch.sigmoid((height - level) / (soft * slope))

    return mask


def _similarity(factor: float, angle: float) -> Tensor:
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]])


def _apply(affine: Tensor, positions: Tensor) -> Tensor:
    """An affine map ``(2, 3)`` of positions ``(..., 2, N)``."""
    return affine[:, :2] @ positions + affine[:, 2:]


def _positions(height: int, width: int) -> Tensor:
    """Every pixel's x and y, from the middle of the frame; shape ``(2, height, width)``."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x - width // 2, y - height // 2]).float()
