"""Motion blur as the mean of neighboring frames: synthetic, from clips, and files of blurred and sharp images."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import find_images, read_image
from lpips_lightning.recipes.frame_triplets import check_sizes
from lpips_lightning.recipes.synthetic_motion import Motion, SyntheticMotion, render

Item: TypeAlias = tuple[Tensor, Tensor, str]
"""Blurred and sharp image, each ``(3, H, W)`` in [0, 1], and the name."""

_PATH = 5  # positions of a camera's path
_BEND = 0.7  # standard deviation of its turns, in radians


class Blurred(NamedTuple):
    """Files of a blurred image and its sharp one.

    Attributes:
        name: Its name.
        frames: Frames whose mean is the blurred image; a single one is the blurred image.
        sharp: The sharp image.
    """

    name: str
    frames: tuple[Path, ...]
    sharp: Path


def check_frames(frames: int) -> None:
    """Raise a ValueError unless `frames` is odd and at least 3, so that there is a middle frame."""
    if frames < 3 or frames % 2 == 0:
        raise ValueError(f"frames: expected an odd number of at least 3, which has a middle frame, got {frames}")


def mean_of_frames(frames: Tensor, gamma: float) -> Tensor:
    """Blurred image: the mean of frames, rounded to 8 bits like a file.

    A sensor adds up light, and pixel values are not proportional to it. With `gamma` 2.2, values are converted to
    (nearly) linear light before the mean, and back after it, as in ``blur_gamma`` of the GoPro data (Nah et al. 2017,
    equation 2). With `gamma` 1 the mean is that of the values themselves, as in Su et al. 2017 and ``blur`` of the
    GoPro data: bright lights leave weaker traces than in a photograph.

    Args:
        frames: Shape ``(N, 3, H, W)``, range [0, 1].
        gamma: Exponent from values to light.

    Returns:
        Shape ``(3, H, W)``, range [0, 1].

    Example:
        >>> black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
        >>> [int(mean_of_frames(black_and_white, gamma)[0] * 255) for gamma in (1.0, 2.2)]
        [128, 186]
    """
    mean = frames.mean(0) if gamma == 1 else frames.pow(gamma).mean(0).pow(1 / gamma)
    return mean.mul(255).round().clamp(0, 255).div(255)


class SyntheticBlur(Dataset[Item]):
    """Dataset of (blurred, sharp, name) from photographs; the motion depends only on seed and index.

    The layers of `SyntheticMotion` move during the exposure, each on its own, and the camera shakes: a curved path,
    the same for all layers. Indices from `length` on are for later epochs, as in `SyntheticMotion`.

    Args:
        photographs: Names and files.
        size: Height and width of the images.
        length: Samples per epoch.
        frames: Frames during the exposure, an odd number; the middle one is the sharp image.
        gamma: See `mean_of_frames`.
        max_motion: Largest translation of a layer during the exposure, in pixels, and, beside it, largest motion of its
            corners by rotation and scaling; smaller ones are more frequent.
        max_shake: Largest length of the camera's path, in pixels.
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
        frames: int = 7,
        gamma: float = 2.2,
        max_motion: float = 5.0,
        max_shake: float = 5.0,
        seed: int = 0,
    ) -> None:
        check_frames(frames)
        for argument, value in (("max_motion", max_motion), ("max_shake", max_shake)):
            if not 0 <= value <= min(size):
                raise ValueError(f"{argument}: expected 0 to {min(size)} pixels, the image's side, got {value}")
        margin = 2 * math.ceil(max_shake / 2)  # half of the path on each side
        self.scenes = SyntheticMotion(photographs, (size[0] + margin, size[1] + margin), length, max_motion, seed)
        self.size, self.gamma, self.max_shake = size, gamma, max_shake
        self.times = [place / (frames - 1) - 0.5 for place in range(frames)]

    def __len__(self) -> int:
        return len(self.scenes)

    @override
    def __getitem__(self, index: int) -> Item:
        generator = np.random.default_rng([self.scenes.seed, *divmod(index, len(self))])
        layers, path = self.scenes.layers(generator), camera_path(generator, self.max_shake)
        moved = [layer._replace(motion=self._limited(layer.motion)._replace(path=path)) for layer in layers]
        frames = render(moved, self.size, self.times)
        return mean_of_frames(frames, self.gamma), frames[len(frames) // 2], f"{index:06d}"

    def _limited(self, motion: Motion) -> Motion:
        """Less rotation and scaling, which move the corners of large images far."""
        largest = math.hypot(*(abs(one) + side / 2 for one, side in zip(motion.pivot, self.size[::-1], strict=True)))
        factor = min(1.0, self.scenes.max_motion / max(largest * math.hypot(motion.turn, motion.zoom), 1e-9))
        return motion._replace(turn=factor * motion.turn, zoom=factor * motion.zoom)


def camera_path(generator: np.random.Generator, longest: float) -> tuple[tuple[float, float], ...]:
    """Draw a curved path of a camera that shakes: positions to the right and down, the middle one (0, 0).

    Args:
        generator: Random numbers.
        longest: Largest length of the path; smaller ones are as frequent.
    """
    step = longest * generator.random() / (_PATH - 1)
    turns = generator.normal(0, _BEND, _PATH - 2)
    angles = generator.uniform(0, 2 * math.pi) + np.array([0, *itertools.accumulate(turns)])
    places = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1) * step, 0)
    places = np.concatenate([np.zeros((1, 2)), places])
    return tuple((float(x), float(y)) for x, y in places - places[_PATH // 2])


def windows(clip: dict[str, Path], frames: int, step: int) -> list[Blurred]:
    """Windows of consecutive frames of a clip, each with the name of its middle frame.

    Args:
        clip: Names and files of the frames, in order.
        frames: Frames of a window, an odd number.
        step: Frames from the start of a window to that of the next one.
    """
    items = list(clip.items())
    found = []
    for start in range(0, len(items) - frames + 1, step):
        name, sharp = items[start + frames // 2]
        found.append(Blurred(name, tuple(file for _, file in items[start : start + frames]), sharp))
    return found


def blurred_pairs(folder: str | Path) -> dict[str, list[Blurred]]:
    """Blurred and sharp images of equal names in folders ``blur`` and ``sharp``, by sequence.

    The folders may lie at any depth, as in GoPro (``train/GOPR0372_07_00/blur``), and their names may begin with a
    word, as in REDS (``train/train_blur/000``). A sequence is the rest of the path of an image, "." if there is none;
    the images of a single sequence are taken as sequences of one image each.

    Raises:
        FileNotFoundError: If `folder` does not exist or has no image, or a blurred image has no sharp one.
        ValueError: If there is no folder ``blur``.
    """
    images = find_images(folder)
    found: dict[str, list[Blurred]] = {}
    for name, file in images.items():
        *folders, stem = name.split("/")
        places = [place for place, one in enumerate(folders) if one == "blur" or one.endswith("_blur")]
        if not places:
            continue
        place = places[-1]
        sharp = "/".join([*folders[:place], f"{folders[place][:-4]}sharp", *folders[place + 1 :], stem])
        if sharp not in images:
            raise FileNotFoundError(f"{file}: expected its sharp image '{sharp}' in '{folder}', got no such image")
        sequence = folders[:place] + folders[place + 1 :]
        pair = Blurred("/".join([*sequence, stem]), (file,), images[sharp])
        found.setdefault("/".join(sequence) or ".", []).append(pair)
    if not found:
        raise ValueError(
            f"folder: expected folders 'blur' and 'sharp' with images of equal names in '{folder}', got {len(images)}"
            " images elsewhere; for clips of sharp frames, use layout clips"
        )
    return found if len(found) > 1 else {pair.name: [pair] for pairs in found.values() for pair in pairs}


class BlurredFiles(Dataset[Item]):
    """Dataset of (blurred, sharp, name) from files.

    Args:
        files: The files.
        crop: Side of random crops with random flips and rotations by 90 degrees. The random numbers depend only on seed
            and index; indices beyond the length are for later epochs. None for full images.
        gamma: See `mean_of_frames`; without effect on a single blurred image.
        seed: Nonnegative seed.

    Raises:
        ValueError: If images that belong together differ in size or are smaller than the crop (on access).
    """

    def __init__(self, files: Sequence[Blurred], crop: int | None = None, gamma: float = 2.2, seed: int = 0) -> None:
        self.files, self.crop, self.gamma, self.seed = files, crop, gamma, seed

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(index, len(self))
        name, frames, sharp = self.files[place]
        files = list(dict.fromkeys([*frames, sharp]))
        images = [read_image(file) for file in files]
        check_sizes(files, images)
        stack = torch.stack(images)
        if self.crop is not None:
            stack = _random_crop(stack, self.crop, np.random.default_rng([self.seed, epoch, place]), sharp)
        stack = stack.float().div(255)
        blurred = mean_of_frames(stack[: len(frames)], self.gamma) if len(frames) > 1 else stack[0]
        return blurred, stack[files.index(sharp)], name


class BlurredImages(Dataset[tuple[Tensor, str]]):
    """Dataset of (blurred, name) from image files of any size.

    Args:
        images: Names and files.
    """

    def __init__(self, images: dict[str, Path]) -> None:
        self.items = list(images.items())

    def __len__(self) -> int:
        return len(self.items)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        name, file = self.items[index]
        return read_image(file).float().div(255), name


def _random_crop(images: Tensor, size: int, generator: np.random.Generator, file: Path) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) < size:
        raise ValueError(f"crop_size: expected at most the shorter side of every image, got {size} for {file}")
    top, left = (int(generator.integers(side - size + 1)) for side in (height, width))
    crop = images[..., top : top + size, left : left + size]
    crop = crop.flip(-1) if generator.random() < 0.5 else crop
    return torch.rot90(crop, int(generator.integers(4)), (-2, -1))
