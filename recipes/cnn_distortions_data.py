"""Data of the recipe for CNN-based distortions: random crops of photographs, drawn for each network by its index."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning._lightning import LightningDataModule
from lpips_lightning.data.crops import crops, seeded
from lpips_lightning.data.samplers import EpochSampler, ResumableLoader
from lpips_lightning.io.image_files import find_images, read_image
from lpips_lightning.recipes.photographs import bundled_photographs

_SMALLEST_SIZE = 48  # smaller ones leave a discriminator of 4 layers no position
_MEASURED = (1 << 31, 0)  # no index of a batch


class Photographs(Sequence[Tensor]):
    """Images ``(3, H, W)``, uint8, decoded once if `cache` is set."""

    def __init__(self, files: Sequence[Path], cache: bool) -> None:
        self.files = list(files)
        self.decoded = [read_image(file) for file in self.files] if cache else None

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.decoded[index] if self.decoded else read_image(self.files[index])


class CropBatches(Dataset[Tensor]):
    """Batches of crops: the one at an index depends only on the index and the seed."""

    def __init__(self, images: Sequence[Tensor], batch_size: int, size: int, seed: int) -> None:
        self.images, self.batch_size, self.size, self.seed = images, batch_size, size, seed

    @override
    def __getitem__(self, index: int) -> Tensor:
        """Batch ``(batch_size, 3, size, size)`` in [0, 1]."""
        return crops(self.images, self.batch_size, self.size, seeded(self.seed, index))


class NetworkSampler(EpochSampler):
    """Indices of the batches of one network: in epoch `e`, rank `r` trains network ``e * ranks + r``."""

    def __init__(self, steps: int, seed: int, num_replicas: int, rank: int) -> None:
        super().__init__(range(steps * num_replicas), seed, num_replicas, rank)  # type: ignore[arg-type]
        self.steps = steps

    @override
    def order(self) -> Tensor:
        networks = self.epoch * self.num_replicas + torch.arange(self.num_replicas)
        return (networks * self.steps + torch.arange(self.steps)[:, None]).flatten()


class CNNDistortionsData(LightningDataModule):
    """Batches of random crops; an epoch has those of one network, on every process of another one.

    Args:
        folder: Folder of photographs, searched recursively; None for those that come with scikit-image.
        size: Side of the crops in pixels.
        batch_size: Crops per batch.
        steps: Batches per network.
        measured: Crops on which every network is measured after its training.
        seed: Random seed of the crops.
        num_workers: Worker processes.
        cache: Keep decoded images in memory (3 bytes per pixel) instead of reading files at each access.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: If the folder does not exist or has no image (in ``setup``).
    """

    def __init__(
        self,
        folder: str | None = None,
        size: int = 64,
        batch_size: int = 8,
        steps: int = 400,
        measured: int = 64,
        seed: int = 0,
        num_workers: int = 0,
        cache: bool = True,
    ) -> None:
        super().__init__()
        given = {"size": size, "batch_size": batch_size, "steps": steps, "measured": measured, "seed": seed}
        least = {"size": _SMALLEST_SIZE, "seed": 0}
        for name, value in given.items():
            if value < least.get(name, 1):
                raise ValueError(f"{name}: expected at least {least.get(name, 1)}, got {value}")
        self.folder, self.size, self.batch_size, self.steps = folder, size, batch_size, steps
        self.measured, self.seed, self.num_workers, self.cache = measured, seed, num_workers, cache
        self.names: list[str] = []

    @override
    def setup(self, stage: str) -> None:
        files = bundled_photographs() if self.folder is None else find_images(self.folder)
        self.names = list(files)
        self.images = Photographs(list(files.values()), self.cache)

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = NetworkSampler(self.steps, self.seed, ranks, rank)
        data = CropBatches(self.images, self.batch_size, self.size, self.seed)
        workers = self.num_workers
        return ResumableLoader(
            data, batch_size=None, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
        )

    def patches(self) -> Tensor:
        """Crops to measure networks on, the same for all, ``(measured, 3, size, size)`` in [0, 1]."""
        return crops(self.images, self.measured, self.size, seeded(self.seed, *_MEASURED))
