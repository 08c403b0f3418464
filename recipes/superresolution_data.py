"""Data of the superresolution recipe: low- and high-resolution pairs from a folder or from scikit-image."""

from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from pytorch_lightning.utilities import rank_zero_only
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning.data.crops import seeded
from lpips_lightning.io.image_files import find_images, image_size, read_image
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.photographs import split_images
from lpips_lightning.recipes.realistic_degradation import degrade
from lpips_lightning.recipes.run_report import print_line
from lpips_lightning.recipes.split_data_module import SplitDataModule

Scale = Literal[2, 3, 4]
Pair = tuple[Tensor, Tensor, str]  # low, high, name


def check_scale(scale: int) -> None:
    """Raise a ValueError unless `scale` is 2, 3 or 4."""
    if scale not in get_args(Scale):
        raise ValueError(f"scale: expected one of {get_args(Scale)}, got {scale!r}")


def downscale(high: Tensor, scale: int) -> Tensor:
    """Downscale by antialiased bicubic interpolation (kernel of Pillow and MATLAB), rounded to 8 bits like a file.

    At image borders the kernel is truncated and renormalized as in Pillow; MATLAB mirrors the image. On Set5, after
    upscaling and without the usual border, the difference is at most 0.003 dB.

    Args:
        high: Shape ``(N, 3, H, W)`` or ``(3, H, W)``, range [0, 1].
        scale: Scale factor; H and W are cropped to multiples of it.

    Returns:
        Shape ``(N, 3, H // scale, W // scale)`` or without N, range [0, 1].
    """
    high = crop_to_multiple(high, scale)
    size = [side // scale for side in high.shape[-2:]]
    batch = high if high.ndim == 4 else high[None]
    low = F.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False)
    return low.mul(255).round().clamp(0, 255).div(255).reshape(*high.shape[:-2], *size)


def crop_to_multiple(image: Tensor, scale: int) -> Tensor:
    """Crop the last rows and columns of ``(..., H, W)`` so that H and W are multiples of `scale`."""
    height, width = (side - side % scale for side in image.shape[-2:])
    return image[..., :height, :width]


class _Images(Dataset[Pair]):
    """Named image files, decoded once if `cache` is set; `realistic` images are degraded by `degrade`."""

    def __init__(self, images: dict[str, Path], scale: int, cache: bool, realistic: bool = False) -> None:
        self.names, self.files, self.scale = list(images), list(images.values()), scale
        self.realistic = realistic
        self.decoded = [read_image(file) for file in self.files] if cache else None

    def read(self, index: int) -> Tensor:
        """Image ``(3, H, W)``, uint8."""
        return self.decoded[index] if self.decoded else read_image(self.files[index])

    def pair(self, high: Tensor, index: int, item: int) -> Pair:
        """(low, high, name) of a uint8 image or crop, `item` of this data set, from the image `index`."""
        high = crop_to_multiple(high, self.scale).float().div(255)
        low = degrade(high, self.scale, self.generator(item)) if self.realistic else downscale(high, self.scale)
        return low, high, self.names[index]

    def generator(self, item: int) -> Generator:
        """Random state of an item's degradation: always the same."""
        return seeded(item)

    def require(self, size: int, argument: str) -> None:
        """Raise a ValueError if an image has a side shorter than `size`."""
        small = [file for file in self.files if min(image_size(file)) < size]
        if small:
            height, width = image_size(small[0])
            raise ValueError(
                f"{argument}: expected at most the shorter side of every image, got {size} and {len(small)} of"
                f" {len(self.files)} smaller, the first being {small[0]} of {height}x{width}"
            )


class WholeImages(_Images):
    """(low, high, name) of full images."""

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> Pair:
        return self.pair(self.read(index), index, index)


class FixedCrops(_Images):
    """(low, high, name) of fixed adjacent crops of `size` from the center of every image."""

    def __init__(self, images: dict[str, Path], scale: int, cache: bool, size: int, realistic: bool = False) -> None:
        super().__init__(images, scale, cache, realistic)
        self.require(size, "val_crop_size")
        self.size = size
        self.corners: list[tuple[int, int, int]] = []
        for index, file in enumerate(self.files):
            height, width = image_size(file)
            tops = range(height % size // 2, height - size + 1, size)
            lefts = range(width % size // 2, width - size + 1, size)
            self.corners += [(index, top, left) for top in tops for left in lefts]

    def __len__(self) -> int:
        return len(self.corners)

    @override
    def __getitem__(self, index: int) -> Pair:
        image, top, left = self.corners[index]
        return self.pair(self.read(image)[:, top : top + self.size, left : left + self.size], image, index)


class RandomCrops(_Images):
    """(low, high, name) of `length` random crops of `size`, with random mirroring and rotation by 90 degrees."""

    def __init__(
        self, images: dict[str, Path], scale: int, cache: bool, size: int, length: int, realistic: bool = False
    ) -> None:
        super().__init__(images, scale, cache, realistic)
        self.require(size, "crop_size")
        self.size, self.length = size, length

    def __len__(self) -> int:
        return self.length

    @override
    def __getitem__(self, index: int) -> Pair:
        image = index % len(self.files)
        photograph = self.read(image)
        top, left = (int(torch.randint(side - self.size + 1, ())) for side in photograph.shape[1:])
        crop = photograph[:, top : top + self.size, left : left + self.size]
        mirror, quarters = int(torch.randint(2, ())), int(torch.randint(4, ()))
        return self.pair(torch.rot90(crop.flip(-1) if mirror else crop, quarters, (-2, -1)), image, index)

    @override
    def generator(self, item: int) -> Generator:
        """Random state of a degradation: another one each time, from torch's, which a resumed training restores."""
        return torch.Generator().manual_seed(int(torch.randint(2**62, ())))


@rank_zero_only
def _say(line: str) -> None:
    print_line(line)


class SmallImages(Dataset[tuple[Tensor, str]]):
    """(low, name) of low-resolution images."""

    def __init__(self, images: dict[str, Path]) -> None:
        self.items = list(images.items())

    def __len__(self) -> int:
        return len(self.items)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        name, file = self.items[index]
        return read_image(file).float().div(255), name


class SuperResolutionData(SplitDataModule):
    """Random crops for training, fixed crops for validation, full images for test, small images for prediction.

    Batches are (low, high, names), shapes ``(N, 3, h, w)`` and ``(N, 3, h * scale, w * scale)``, range [0, 1]; for
    ``predict`` from a folder (low, names).

    Args:
        folder: Folder of images, searched recursively; None for the photographs that come with scikit-image.
        held_out: Names (files without suffix) for validation and test; None for "astronaut" of those photographs, or an
            automatic split of `folder` (see `HeldOut`), which is printed.
        val_folder: Folder for validation and test instead of `held_out`.
        predict_folder: Small images for ``predict``; None for the downscaled held-out images.
        scale: 2, 3 or 4.
        crop_size: Side of a training crop at high resolution, in pixels; a multiple of `scale`.
        val_crop_size: Side of a validation crop at high resolution, a multiple of `scale`; None validates on full
            images with batch size 1.
        epoch_size: Training crops per epoch.
        batch_size: Crops per batch.
        num_workers: Worker processes; 0 suits cached images.
        cache: Keep decoded images in memory (3 bytes per pixel) instead of reading files at each access.
        realistic: Degrade images by random blur, noise and JPEG (see `degrade`) instead of bicubic downscaling; those
            of validation and test always in the same way.

    Raises:
        ValueError: If a size, a name or `scale` is invalid (checks that need the files: in ``setup``).
        FileNotFoundError: If a folder does not exist or has no image (in ``setup``).
    """

    def __init__(
        self,
        folder: str | None = None,
        held_out: list[str] | None = None,
        val_folder: str | None = None,
        predict_folder: str | None = None,
        scale: Scale = 4,
        crop_size: int = 96,
        val_crop_size: int | None = 192,
        epoch_size: int = 800,
        batch_size: int = 8,
        num_workers: int = 0,
        cache: bool = True,
        realistic: bool = False,
    ) -> None:
        super().__init__()
        check_scale(scale)
        for argument, size in (("crop_size", crop_size), ("val_crop_size", val_crop_size or scale)):
            if size < scale or size % scale:
                raise ValueError(f"{argument}: expected a positive multiple of the scale {scale}, got {size}")
        for argument, size in (("epoch_size", epoch_size), ("batch_size", batch_size)):
            if size < 1:
                raise ValueError(f"{argument}: expected at least 1, got {size}")
        self.folder, self.val_folder, self.predict_folder = folder, val_folder, predict_folder
        self.held_out, self._choice = held_out, HeldOut(held_out)
        self.scale, self.crop_size, self.val_crop_size = scale, crop_size, val_crop_size
        self.epoch_size, self.batch_size, self.num_workers, self.cache = epoch_size, batch_size, num_workers, cache
        self.realistic = realistic

    def split(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Names and files of the training and held-out images."""
        return split_images(self.folder, self._choice, self.val_folder, "astronaut")

    @override
    def setup(self, stage: str) -> None:
        self._stage = stage
        if stage == "predict" and self.predict_folder is not None:
            self.predict_data: Dataset[Any] = SmallImages(find_images(self.predict_folder))
            return
        train, held_out = self.split()
        scale, cache, realistic = self.scale, self.cache, self.realistic
        if stage == "fit":
            self.train_data = RandomCrops(train, scale, cache, self.crop_size, self.epoch_size, realistic)
        if stage in ("fit", "validate") and self.val_crop_size is not None:
            self.val_data: Dataset[Pair] = FixedCrops(held_out, scale, cache, self.val_crop_size, realistic)
        elif stage in ("fit", "validate"):
            self.val_data = WholeImages(held_out, scale, cache, realistic)
        if stage == "test":
            self.test_data = WholeImages(held_out, scale, False, realistic)
            if realistic:
                _say("Realistic inputs: degraded by blur, noise and JPEG. Bicubic is scored on the same.")
        if stage == "predict":
            self.predict_data = WholeImages(held_out, scale, False, realistic)

    @override
    def train_dataloader(self) -> DataLoader[Pair]:
        return self._loader(self.train_data, self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Pair]:
        return self._loader(self.val_data, 1 if self.val_crop_size is None else self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Pair]:
        return self._loader(self.test_data, 1)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.predict_data, 1)
