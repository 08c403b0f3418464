"""PyTorch data sets of BAPPS, the Berkeley-Adobe Perceptual Patch Similarity data set.

Layout: ``2afc/{train,val}/<set>/{ref,p0,p1,judge}`` and ``jnd/val/<set>/{p0,p1,same}``. The images of a triplet or pair
have equal file names; the judgment is ``<name>.npy``, one number in [0, 1].

Source: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, section 2.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lpips_lightning.io.image_files import read_image, resize_image
from lpips_lightning.io.image_folders import USUAL_SUFFIXES, count_of, describe_left_out
from lpips_lightning.io.image_formats import why_no_image

Split = Literal["train", "val"]

TRAIN_SETS = ("traditional", "cnn", "mix")
VAL_SETS = ("traditional", "cnn", "superres", "deblur", "color", "frameinterp")
JND_SETS = ("traditional", "cnn")


class _JudgedPatches(Dataset[dict[str, Any]]):
    """Tuples of patches with one judgment each; the files of a tuple have equal names in parallel folders."""

    images: tuple[str, ...]
    judgment: str

    def __init__(self, folder: str | Path, below: str, sets: Sequence[str], size: int | None) -> None:
        check_size(size)
        self.folder, self.size = Path(folder), size
        self.sets = _check_sets(self.folder / below, sets)
        self.items = [
            (f"{below}/{name}", file) for name in self.sets for file in self._files_of(self.folder / below / name)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        folder, file = self.items[index]
        paths = {kind: self.folder / folder / kind / file for kind in self.images}
        item: dict[str, Any] = read_images(paths, self.size)
        item[self.judgment] = _read_judgment((self.folder / folder / self.judgment / file).with_suffix(".npy"))
        item["set"] = folder.rpartition("/")[2]
        item["path"] = f"{folder}/{self.images[0]}/{file}"
        return item

    def _files_of(self, folder: Path) -> list[str]:
        """Sorted image names; raise unless every image and its judgment exist in all folders."""
        first, *others = (_list(folder / kind, why_no_image) for kind in self.images)
        files = sorted(first)
        judged = _list(folder / self.judgment, _why_no_judgment)
        checks = [
            *((kind, set(files), found) for kind, found in zip(self.images[1:], others, strict=True)),
            (self.judgment, {f"{Path(file).stem}.npy" for file in files}, judged),
        ]
        for kind, expected, found in checks:
            if missing := expected - found:
                first_folder = folder / self.images[0]
                raise FileNotFoundError(
                    f"{folder / kind / min(missing)}: expected a file for each of the {len(files)} images in"
                    f" {first_folder}, got none for {len(missing)}"
                )
            if surplus := found - expected:
                raise FileNotFoundError(
                    f"{folder / kind / min(surplus)}: expected an image of this name in '{self.images[0]}', got none"
                )
        if not files:
            raise FileNotFoundError(f"{folder / self.images[0]}: expected images ({USUAL_SUFFIXES} ...), got none")
        return files


class TwoAFCDataset(_JudgedPatches):
    """Triplets of a reference and two distorted patches, with the fraction of people who found `p1` nearer.

    An item is a dict: ``ref``, ``p0``, ``p1``, shape ``(3, H, W)`` in [-1, 1]; ``judge``, shape ``()`` in [0, 1], 1
    if everyone chose `p1`; ``set``, name of the set; ``path``, path of the reference relative to `folder`.

    Args:
        folder: Folder that contains ``2afc``.
        split: ``"train"`` or ``"val"``.
        sets: Names of the sets; None: the paper's sets of this split.
        size: Side to resize images to (see `resize_image`); None: no resizing.

    Raises:
        ValueError: If an argument is invalid; on item access, if an image or a judgment is damaged.
        FileNotFoundError: If a set, an image or a judgment is missing.
    """

    images = ("ref", "p0", "p1")
    judgment = "judge"

    def __init__(
        self, folder: str | Path, split: Split = "val", sets: Sequence[str] | None = None, size: int | None = 64
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")
        papers = TRAIN_SETS if split == "train" else VAL_SETS
        super().__init__(folder, f"2afc/{split}", papers if sets is None else sets, size)


class JNDDataset(_JudgedPatches):
    """Pairs of patches, with the fraction of people who saw no difference.

    An item is a dict: ``p0``, ``p1``, shape ``(3, H, W)`` in [-1, 1]; ``same``, shape ``()`` in [0, 1]; ``set``, name
    of the set; ``path``, path of `p0` relative to `folder`.

    Args:
        folder: Folder that contains ``jnd``.
        sets: Names of the sets.
        size: Side to resize images to (see `resize_image`); None: no resizing.

    Raises:
        ValueError: If an argument is invalid; on item access, if an image or a judgment is damaged.
        FileNotFoundError: If a set, an image or a judgment is missing.
    """

    images = ("p0", "p1")
    judgment = "same"

    def __init__(self, folder: str | Path, sets: Sequence[str] = JND_SETS, size: int | None = 64) -> None:
        super().__init__(folder, "jnd/val", sets, size)


def check_size(size: int | None) -> None:
    """Raise a ValueError unless `size` is None or positive."""
    if size is not None and size < 1:
        raise ValueError(f"size: expected at least 1 or None, got {size}")


def read_images(paths: dict[str, Path], size: int | None) -> dict[str, Tensor]:
    """Read the images of one triplet or pair; values have shape ``(3, H, W)`` in [-1, 1].

    Raises:
        ValueError: If an image is damaged, or the sizes differ.
        FileNotFoundError: If an image is missing.
    """
    read = {kind: read_image(path) for kind, path in paths.items()}
    check_same_size(read, paths)
    return {kind: to_signed(resize_image(image, size)) for kind, image in read.items()}


def check_same_size(images: dict[str, Tensor], paths: dict[str, Path]) -> None:
    """Raise a ValueError that names the file unless all `images` ``(3, H, W)`` have one size."""
    first, *others = images
    for other in others:
        if images[other].shape != images[first].shape:
            (height, width), (expected_height, expected_width) = images[other].shape[1:], images[first].shape[1:]
            raise ValueError(
                f"{paths[other]}: expected the size of {paths[first]}, {expected_height}x{expected_width}"
                f" (height x width), got {height}x{width}"
            )


def to_signed(image: Tensor) -> Tensor:
    """Convert an 8-bit image to float32 in [-1, 1]."""
    return image.float().div(255).mul(2).sub(1)


def _check_sets(folder: Path, sets: Sequence[str]) -> tuple[str, ...]:
    if isinstance(sets, str) or not sets or len(set(sets)) < len(sets):
        raise ValueError(f"sets: expected unique names of sets, got {sets!r}")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder: expected the folder of a BAPPS data set, got none at '{folder}';"
            " BAPPSDataModule(download=True) downloads it, lpips-lightning bapps make generates one"
        )
    present = sorted(path.name for path in folder.iterdir() if path.is_dir())
    for name in sets:
        if name not in present:
            known = ", ".join(present) or "none"
            raise FileNotFoundError(f"sets: expected some of {known} in '{folder}', got {name!r}")
    return tuple(sets)


def _list(folder: Path, why_not: Callable[[Path], str]) -> set[str]:
    """Names of the visible files in `folder`; those with a reason why not are left out with a warning."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected an existing folder of images or judgments, got none")
    reasons = {path.name: why_not(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if left_out:
        warnings.warn(
            f"{folder}: {count_of(len(left_out), 'file')} left out: {describe_left_out(left_out)}", stacklevel=2
        )
    return reasons.keys() - left_out.keys()


def _why_no_judgment(path: Path) -> str:
    return "" if path.suffix.lower() == ".npy" else "no .npy file"


def _read_judgment(path: Path) -> Tensor:
    try:
        value = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a judgment file, got no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected a NumPy file of one number, got {type(error).__name__}: {error}") from error
    if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "fiu":
        found = f"shape {value.shape} of {value.dtype}" if isinstance(value, np.ndarray) else "an archive"
        raise ValueError(f"{path}: expected one number, got {found}")
    judgment = float(value.reshape(()))
    if not 0 <= judgment <= 1:
        raise ValueError(f"{path}: expected a number in [0, 1], got {judgment}")
    return torch.tensor(judgment, dtype=torch.float32)
