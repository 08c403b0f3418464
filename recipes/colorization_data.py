"""Data of the colorization recipe: color images from a folder, or photographs of installed packages."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import find_images, read_image
from lpips_lightning.recipes.color_augmentation import ColorAugmentation, limit_colorfulness
from lpips_lightning.recipes.held_out import HeldOut, announce_once
from lpips_lightning.recipes.photograph_crops import WholeImages
from lpips_lightning.recipes.photographs import split_images
from lpips_lightning.recipes.split_data_module import SplitDataModule

Sample = tuple[Tensor, str]  # image, name


def shrink(images: Tensor, size: int) -> Tensor:
    """Downscale images to a shorter side of `size`, bilinear with antialiasing; smaller images are unchanged.

    Args:
        images: Shape ``(N, C, H, W)``, floating.
        size: Shorter side in pixels.

    Returns:
        Shape ``(N, C, h, w)``.
    """
    shorter = min(images.shape[-2:])
    if shorter <= size:
        return images
    sides = [max(size, round(side * size / shorter)) for side in images.shape[-2:]]
    return F.interpolate(images, size=sides, mode="bilinear", antialias=True, align_corners=False)


class RandomCrops(Dataset[Sample]):
    """(crop, name) of `length` crops ``(3, size, size)`` on [0, 1], with random position, scale and mirroring.

    Images are first downscaled to `working_size`; a crop's side is then between about `size` and the shorter side, so
    that objects have the same sizes as in prediction. Crops are not rotated, since orientation is informative.

    Args:
        images: Names and files.
        working_size: Largest shorter side.
        size: Side of a crop.
        length: Number of crops.
        cache: Keep the downscaled images in memory.
        augment: Changes the colors of crops; None for no change.
        max_colorfulness: See `limit_colorfulness`; None for no limit.
    """

    def __init__(
        self,
        images: dict[str, Path],
        working_size: int,
        size: int,
        length: int,
        cache: bool,
        augment: ColorAugmentation | None = None,
        max_colorfulness: float | None = None,
    ) -> None:
        self.names, self.files = list(images), list(images.values())
        self.working_size, self.size, self.length = working_size, size, length
        self.augment, self.max_colorfulness = augment, max_colorfulness
        self.small = [self._read(index) for index in range(len(images))] if cache else None

    def __len__(self) -> int:
        return self.length

    @override
    def __getitem__(self, index: int) -> Sample:
        image = index % len(self.files)
        photograph = (self.small[image] if self.small else self._read(image)).float().div(255)
        # Uniform in the zoom factor, not in the side, so that close and wide views are equally frequent.
        zoom = 1 + float(torch.rand(())) * (self.working_size / self.size - 1)
        side = min(round(self.working_size / zoom), *photograph.shape[-2:])
        top, left = (int(torch.randint(length - side + 1, ())) for length in photograph.shape[-2:])
        crop = photograph[None, :, top : top + side, left : left + side]
        sides = [self.size, self.size]
        crop = F.interpolate(crop, size=sides, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
        crop = (crop if self.augment is None else self.augment(crop))[0]
        return crop.flip(-1) if torch.rand(()) < 0.5 else crop, self.names[image]

    def _read(self, index: int) -> Tensor:
        """Image ``(3, H, W)``, uint8, with a shorter side of at most `working_size`."""
        image = shrink(read_image(self.files[index])[None].float(), self.working_size)
        if self.max_colorfulness is not None:
            image = 255 * limit_colorfulness((image / 255).clamp(0, 1), self.max_colorfulness)
        return image[0].round().clamp(0, 255).byte()


class ColorizationData(SplitDataModule):
    """Random crops of color images for training, full images for validation, test and prediction.

    Batches are (images, names), shape ``(N, 3, H, W)``, range [0, 1]; full images have batch size 1. The model
    uses only their lightness.

    Args:
        folder: Folder of images, searched recursively; None for the photographs that come with scikit-image and
            matplotlib, whose names are printed.
        held_out: Names (files without suffix) for validation and test; None for "chelsea" of those photographs, or an
            automatic split of `folder` (see `HeldOut`), which is printed.
        val_folder: Folder for validation and test instead of `held_out`.
        predict_folder: Images for ``predict``, gray or color; None for the held-out images.
        working_size: Largest shorter side of training images, in pixels; the same as in the model.
        crop_size: Side of a training crop.
        epoch_size: Training crops per epoch.
        batch_size: Crops per batch.
        num_workers: Worker processes; 0 suits cached images.
        cache: Keep downscaled training images in memory, 3 bytes per pixel. Otherwise files are read at each access.
        max_colorfulness: Training images above it are made less saturated; None for no limit. See `limit_colorfulness`.
        hue_jitter: Largest random rotation of the hue of training crops, in degrees. See `ColorAugmentation`.
        saturation_jitter: Logarithm of the largest random factor on their saturation.
        tint_jitter: Standard deviation of their random tint, in units of a and b.

    Raises:
        ValueError: If a size or a name is invalid (checks that need the files: in ``setup``).
        FileNotFoundError: If a folder does not exist or has no image (in ``setup``).
    """

    def __init__(
        self,
        folder: str | None = None,
        held_out: list[str] | None = None,
        val_folder: str | None = None,
        predict_folder: str | None = None,
        working_size: int = 256,
        crop_size: int = 128,
        epoch_size: int = 400,
        batch_size: int = 8,
        num_workers: int = 0,
        cache: bool = True,
        max_colorfulness: float | None = 45.0,
        hue_jitter: float = 15.0,
        saturation_jitter: float = 0.3,
        tint_jitter: float = 4.0,
    ) -> None:
        super().__init__()
        for argument, size in (("crop_size", crop_size), ("epoch_size", epoch_size), ("batch_size", batch_size)):
            if size < 1:
                raise ValueError(f"{argument}: expected at least 1, got {size}")
        if max_colorfulness is not None and max_colorfulness <= 0:
            raise ValueError(f"max_colorfulness: expected above 0, or null for no limit, got {max_colorfulness}")
        self.augment = ColorAugmentation(hue_jitter, saturation_jitter, tint_jitter)
        self.max_colorfulness = max_colorfulness
        self.folder, self.val_folder, self.predict_folder = folder, val_folder, predict_folder
        self.held_out, self._choice = held_out, HeldOut(held_out)
        self.working_size, self.crop_size, self.epoch_size = working_size, crop_size, epoch_size
        self.batch_size, self.num_workers, self.cache = batch_size, num_workers, cache

    def split(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Names and files of the training and held-out images."""
        return split_images(self.folder, self._choice, self.val_folder, "chelsea", more=True)

    @override
    def setup(self, stage: str) -> None:
        self._stage, self._notice = stage, ""
        if stage == "predict" and self.predict_folder is not None:
            self.whole = WholeImages(find_images(self.predict_folder))
            return
        train, held_out = self.split()
        self.whole = WholeImages(held_out)
        if stage == "fit":
            if self.working_size < self.crop_size:
                raise ValueError(
                    f"crop_size: expected at most the working_size {self.working_size}, got {self.crop_size}"
                )
            colors = (self.augment, self.max_colorfulness)
            self.crops = RandomCrops(train, self.working_size, self.crop_size, self.epoch_size, self.cache, *colors)
            if self.folder is None:
                others = "" if self.val_folder else f"; held out: {', '.join(held_out)}"
                self._notice = f"Training photographs: {', '.join(train)}{others}"

    @override
    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.crops, self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.whole, 1)

    @override
    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.whole, 1)

    @override
    def predict_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.whole, 1)

    @override
    def _loader(self, *args: Any, **kwargs: Any) -> DataLoader[Sample]:
        loader = super()._loader(*args, **kwargs)
        announce_once(self._notice, self.trainer)
        return loader
