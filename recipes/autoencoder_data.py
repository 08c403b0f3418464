"""Data of the autoencoder recipe: crops of photographs from a folder or from scikit-image."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning.io.image_files import find_images
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.photograph_crops import NamedCrops, WholeImages
from lpips_lightning.recipes.photographs import split_images
from lpips_lightning.recipes.split_data_module import SplitDataModule

Sample = tuple[Tensor, str]  # image, name

_VAL_SEED = 1  # of the validation crops, which are the same in every run


class AutoencoderData(SplitDataModule):
    """Random crops of photographs to train on, fixed crops of held-out ones to validate, full images for the rest.

    Batches are (images, names), shape ``(N, 3, H, W)``, range [0, 1]; full images have batch size 1.

    Args:
        folder: Folder of images, searched recursively; None for the photographs that come with scikit-image.
        held_out: Names (files without suffix) for validation and test; None for "astronaut" of those photographs, or an
            automatic split of `folder` (see `HeldOut`), which is printed.
        val_folder: Folder for validation and test instead of `held_out`.
        predict_folder: Images of any size for ``predict``; None for the held-out images.
        crop_size: Side of a training crop in pixels.
        zoom: Training crops have up to `zoom` times this side before they are resized to it.
        swap_channels: Reorder red, green and blue of half of the crops. So a few photographs teach all colors.
        val_crop_size: Side of a validation crop, at full resolution; None validates on full images. Smaller images
            are enlarged.
        val_size: Validation crops.
        epoch_size: Training crops per epoch.
        batch_size: Crops per batch.
        num_workers: Worker processes; 0 suits cached images.
        cache: Keep decoded images in memory (3 bytes per pixel) instead of reading files at each access.

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
        crop_size: int = 64,
        zoom: float = 2.0,
        swap_channels: bool = True,
        val_crop_size: int | None = 192,
        val_size: int = 8,
        epoch_size: int = 1600,
        batch_size: int = 8,
        num_workers: int = 0,
        cache: bool = True,
    ) -> None:
        super().__init__()
        counts = {"crop_size": crop_size, "val_crop_size": 1 if val_crop_size is None else val_crop_size}
        counts |= {"val_size": val_size, "epoch_size": epoch_size, "batch_size": batch_size}
        for argument, count in counts.items():
            if count < 1:
                raise ValueError(f"{argument}: expected at least 1, got {count}")
        if not zoom >= 1:
            raise ValueError(f"zoom: expected at least 1, got {zoom}")
        self.folder, self.val_folder, self.predict_folder = folder, val_folder, predict_folder
        self.held_out, self._choice = held_out, HeldOut(held_out)
        self.crop_size, self.zoom, self.cache = crop_size, zoom, cache
        self.val_crop_size, self.val_size, self.swap_channels = val_crop_size, val_size, swap_channels
        self.epoch_size, self.batch_size, self.num_workers = epoch_size, batch_size, num_workers

    def split(self) -> tuple[dict[str, Path], dict[str, Path]]:
        """Names and files of the training and held-out images."""
        return split_images(self.folder, self._choice, self.val_folder, "astronaut")

    @override
    def setup(self, stage: str) -> None:
        self._stage = stage
        if stage == "predict" and self.predict_folder is not None:
            self.whole = WholeImages(find_images(self.predict_folder))
            return
        train, held_out = self.split()
        self.whole = WholeImages(held_out)
        if stage == "fit":
            more = {"swap_channels": self.swap_channels}
            self.train_data = NamedCrops(train, self.crop_size, self.zoom, self.epoch_size, self.cache, **more)
        if stage in ("fit", "validate"):
            self.val_data: Dataset[Sample] = self.whole
            if self.val_crop_size is not None:
                size, count = self.val_crop_size, self.val_size
                self.val_data = NamedCrops(held_out, size, 1.0, count, self.cache, seed=_VAL_SEED)

    @override
    def train_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.train_data, self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.val_data, 1 if self.val_crop_size is None else self.batch_size)

    @override
    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader(self.whole, 1)

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.whole, 1)
