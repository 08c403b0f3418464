"""Files of frame triplets (Vimeo-90K, folders of consecutive frames, Middlebury) and of frame pairs for prediction."""

import itertools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import find_images, read_image

Item: TypeAlias = tuple[Tensor, Tensor, Tensor, str]
"""Frame 0, frame 1 and middle, each ``(3, H, W)`` in [0, 1], and the name."""


class FramePair(NamedTuple):
    """Two frames, and the name of the frame between them."""

    name: str
    first: Path
    second: Path


class FrameTriplet(NamedTuple):
    """Three consecutive frames, and the name of the middle one."""

    name: str
    first: Path
    middle: Path
    second: Path


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in natural order: ``frame9`` before ``frame10``, and with leading zeros first, ``1_05`` before ``1_5``.

    Example:
        >>> sorted(["f10", "f9_5", "f9", "f9_05"], key=natural_key)
        ['f9', 'f9_05', 'f9_5', 'f10']
    """
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def name_between(first: str, second: str) -> str:
    """A name between `first` and `second` in natural order, and in character order if they are sorted by it.

    Raises:
        ValueError: If there is no such name.

    Example:
        >>> name_between("frame9", "frame10"), name_between("frame9", "frame9_5")
        ('frame9_5', 'frame9_05')
    """
    for zeros in range(8):
        name = f"{first}_{'0' * zeros}5"
        by_numbers = natural_key(first) < natural_key(name) < natural_key(second)
        if by_numbers and (first > second or first < name < second):
            return name
    raise ValueError(f"predict_folder: expected frame names that allow a name between them, got '{first}', '{second}'")


def clips(folder: str | Path, least: int) -> dict[str, dict[str, Path]]:
    """Find clips: every folder below `folder` with at least `least` images, in natural order; a warning counts others.

    Returns:
        For each clip (folder relative to `folder`), frame names (including the clip folder) and files.

    Raises:
        FileNotFoundError: If `folder` does not exist or has no image.
        ValueError: If no folder has enough images.
    """
    found: dict[str, dict[str, Path]] = {}
    for name, path in sorted(find_images(folder).items(), key=lambda item: natural_key(item[0])):
        found.setdefault(Path(name).parent.as_posix(), {})[name] = path
    long = {clip: frames for clip, frames in found.items() if len(frames) >= least}
    if not long:
        raise ValueError(
            f"folder: expected folders of at least {least} consecutive frames in '{folder}',"
            f" got at most {max(map(len, found.values()))} images in one"
        )
    if short := sorted(found.keys() - long.keys(), key=natural_key):
        warnings.warn(
            f"folder: {len(short)} of {len(found)} folders in '{folder}' left out, with fewer than {least} images:"
            f" '{short[0]}'{', ...' * (len(short) > 1)}",
            stacklevel=2,
        )
    return long


def clip_triplets(frames: dict[str, Path]) -> list[FrameTriplet]:
    """All triplets (t - 1, t, t + 1) of a clip."""
    names, files = list(frames), list(frames.values())
    return [FrameTriplet(name, *three) for name, *three in zip(names[1:], files, files[1:], files[2:], strict=False)]


def clip_pairs(frames: dict[str, Path]) -> list[FramePair]:
    """All pairs (t, t + 1) of a clip, with names that sort between those of the frames."""
    items = list(frames.items())
    return [
        FramePair(name_between(name, next_name), first, second)
        for (name, first), (next_name, second) in itertools.pairwise(items)
    ]


def vimeo_triplets(root: str | Path, split: Literal["train", "test"]) -> list[FrameTriplet]:
    """Triplets of Vimeo-90K (Xue et al. 2019) listed in ``tri_<split>list.txt``, in folder ``sequences``.

    Raises:
        FileNotFoundError: If the list or a listed folder is missing.
        ValueError: If the list is empty, or a line is not of the form ``00001/0001``.
    """
    listed, sequences = Path(root) / f"tri_{split}list.txt", Path(root) / "sequences"
    for path, kind in ((listed, "file"), (sequences, "folder")):
        if not path.exists():
            raise FileNotFoundError(
                f"folder: expected Vimeo-90K's triplets with the {kind} '{path}', got no such {kind}"
            )
    names = [line.strip() for line in listed.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{listed}: expected the names of triplets, got an empty list")
    existing: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parts = name.split("/")
        if len(parts) != 2 or ".." in parts or not all(parts):
            raise ValueError(f"{listed}: expected lines such as 00001/0001, got '{name}'")
        if parts[0] not in existing:
            group = sequences / parts[0]
            existing[parts[0]] = {path.name for path in group.iterdir()} if group.is_dir() else set()
        if parts[1] not in existing[parts[0]]:
            missing.append(name)
    if missing:
        raise FileNotFoundError(
            f"{listed}: expected the folders of {len(names)} triplets in '{sequences}', {len(missing)} of them are"
            f" missing, the first being '{missing[0]}'"
        )
    return [FrameTriplet(name, *(sequences / name / f"im{number}.png" for number in (1, 2, 3))) for name in names]


def middlebury_triplets(root: str | Path) -> list[FrameTriplet]:
    """Triplets of the Middlebury benchmark (Baker et al. 2011), for scenes with a true middle frame.

    The middle frame is ``interp_gt/<scene>/frame10i11.png``, the others are ``frames/<scene>/frame10.png`` and
    ``frame11.png``.

    Raises:
        FileNotFoundError: If a folder or a frame is missing.
        ValueError: If there is no scene.
    """
    truth, frames = Path(root) / "interp_gt", Path(root) / "frames"
    for folder in (truth, frames):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"folder: expected Middlebury's layout with the folder '{folder}', got no such folder"
            )
    scenes = sorted(path.name for path in truth.iterdir() if path.is_dir())
    if not scenes:
        raise ValueError(f"folder: expected scenes with a true middle frame in '{truth}', got none")
    found = []
    for scene in scenes:
        files = (frames / scene / "frame10.png", truth / scene / "frame10i11.png", frames / scene / "frame11.png")
        found.append(FrameTriplet(scene, *files))
    if missing := [str(file) for triplet in found for file in triplet[1:] if not file.is_file()]:
        raise FileNotFoundError(f"folder: expected both frames and the middle of every scene, got no '{missing[0]}'")
    return found


class FrameTriplets(Dataset[Item]):
    """Dataset of (frame 0, frame 1, middle, name) from files.

    Args:
        triplets: Files.
        crop: Side of random crops with random horizontal and vertical flips and reversed time. The random numbers
            depend only on seed and index; indices beyond the length are for later epochs. None for full frames.
        seed: Nonnegative seed.

    Raises:
        ValueError: If the frames of a triplet differ in size or are smaller than the crop (on access).
    """

    def __init__(self, triplets: list[FrameTriplet], crop: int | None = None, seed: int = 0) -> None:
        self.triplets, self.crop, self.seed = triplets, crop, seed

    def __len__(self) -> int:
        return len(self.triplets)

    @override
    def __getitem__(self, index: int) -> Item:
        epoch, place = divmod(index, len(self))
        name, *files = self.triplets[place]
        frames = [read_image(file) for file in files]
        check_sizes(files, frames)
        if self.crop is not None:
            frames = _random_crop(frames, self.crop, np.random.default_rng([self.seed, epoch, place]), files[0])
        first, middle, second = (frame.float().div(255) for frame in frames)
        return first, second, middle, name


class FramePairs(Dataset[tuple[Tensor, Tensor, str]]):
    """Dataset of (frame 0, frame 1, name) from files.

    Args:
        pairs: Files.

    Raises:
        ValueError: If the frames of a pair differ in size (on access).
    """

    def __init__(self, pairs: list[FramePair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, str]:
        name, *files = self.pairs[index]
        frames = [read_image(file) for file in files]
        check_sizes(files, frames)
        return frames[0].float().div(255), frames[1].float().div(255), name


def _random_crop(frames: list[Tensor], size: int, generator: np.random.Generator, file: Path) -> list[Tensor]:
    height, width = frames[0].shape[1:]
    if min(height, width) < size:
        raise ValueError(f"crop_size: expected at most the shorter side of every frame, got {size} for {file}")
    top, left = (int(generator.integers(side - size + 1)) for side in (height, width))
    horizontal, vertical, reverse = generator.random(3) < 0.5
    axes = [axis for axis, flip in ((-1, horizontal), (-2, vertical)) if flip]
    cropped = [frame[:, top : top + size, left : left + size].flip(axes) for frame in frames]
    return cropped[::-1] if reverse else cropped


def check_sizes(files: Sequence[Path], frames: Sequence[Tensor]) -> None:
    """Raise a ValueError that names the first frame whose size is not that of the first one."""
    for file, frame in zip(files, frames, strict=True):
        if frame.shape != frames[0].shape:
            sizes = ["x".join(map(str, one.shape[1:])) for one in (frames[0], frame)]
            raise ValueError(f"{file}: expected the size {sizes[0]} of {files[0]}, got {sizes[1]}")
