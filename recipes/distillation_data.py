"""Data of the distillation recipe: groups of an image and altered versions, from photographs or synthetic images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from typing_extensions import override

from lpips_lightning.data.crops import crops
from lpips_lightning.data.samplers import ResumableLoader, UniqueIndices, seed_of
from lpips_lightning.io.image_files import find_images, read_image
from lpips_lightning.recipes.distillation_augmentations import procedural, vary
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.photographs import scikit_image_folder
from lpips_lightning.recipes.split_data_module import SplitDataModule

# Images inside scikit-image's wheel that are CC0 or in the public domain, according to its documentation.
_PUBLIC_DOMAIN = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png"),
    *("grass.png", "gravel.png", "hubble_deep_field.jpg", "retina.jpg", "rocket.jpg"),
)
_SAME_PLAN = 8  # images with the same alterations; small, so that a batch has many kinds


def public_domain_photographs() -> dict[str, Path]:
    """Names and files of the CC0 or public-domain photographs in the installed scikit-image, without a download.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    paths = [scikit_image_folder() / file for file in _PUBLIC_DOMAIN]
    return {path.stem: path for path in paths if path.is_file()}


class Groups(Dataset[Tensor]):
    """Groups of images, generated once and stored in uint8.

    Args:
        images: Source images, uint8, each ``(3, H, W)``.
        count: Number of groups.
        size: Side of the crops.
        versions: Altered versions per group.
        procedural_fraction: Fraction of groups with a synthetic image.
        seed: Equal seeds give equal groups.
    """

    def __init__(
        self, images: list[Tensor], count: int, size: int, versions: int, procedural_fraction: float, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.groups = torch.empty(count, 1 + versions, 3, size, size, dtype=torch.uint8)
        for part in self.groups.split(_SAME_PLAN):
            made = float(torch.rand((), generator=generator)) < procedural_fraction
            source = procedural(len(part), size, generator) if made else crops(images, len(part), size, generator)
            part.copy_(vary(source, versions, generator))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Tensor:
        return self.groups[index]


class GroupBatches(Dataset[Tensor]):
    """Batches of groups; all images of a batch have one size, and batches have about equally many pixels.

    Args:
        banks: Groups of each size.
        batch_size: Groups per batch of the smallest size; fewer for larger sizes.
        draw: Draw the groups of a batch with replacement, instead of in order.
        ranks: Number of ranks that train, each on banks of its own. With several, the batches of all ranks count, and
            the indices are those of `UniqueIndices`.
        seed: Random seed for several ranks; with one, PyTorch's global generator draws.
    """

    def __init__(self, banks: list[Groups], batch_size: int, draw: bool, ranks: int = 1, seed: int = 0) -> None:
        self.banks, self.draw, self.ranks, self.seed = banks, draw, ranks, seed
        self.batch_sizes = batch_sizes([bank.groups.shape[-1] for bank in banks], batch_size)

    def __len__(self) -> int:
        return self.ranks * sum(self._counts())

    def __getitem__(self, index: int) -> Tensor:
        """One batch, uint8 ``(G, 1 + versions, 3, S, S)``."""
        generator = None if self.ranks == 1 else torch.Generator().manual_seed(seed_of(self.seed, index))
        own = index if self.ranks == 1 else index // self.ranks % sum(self._counts())
        for bank, size, batches in zip(self.banks, self.batch_sizes, self._counts(), strict=True):
            if own < batches:
                drawn = torch.randint(len(bank), (size,), generator=generator) if self.draw else None
                return bank.groups[torch.arange(own * size, (own + 1) * size) if drawn is None else drawn]
            own -= batches
        raise IndexError(index)

    def _counts(self) -> list[int]:
        return [len(bank) // size for bank, size in zip(self.banks, self.batch_sizes, strict=True)]


def batch_sizes(sides: Sequence[int], batch_size: int) -> list[int]:
    """Groups per batch by side of the images: `batch_size` for the smallest, fewer for larger ones."""
    return [max(1, round(batch_size * (min(sides) / side) ** 2)) for side in sides]


class DistillationData(SplitDataModule):
    """Training groups of photographs and synthetic images, validation groups of held-out photographs.

    Training groups are regenerated whenever Lightning reloads the dataloader: see
    ``reload_dataloaders_every_n_epochs``. Of several ranks, each generates its part of them, and trains on it; each
    validates on a part of the validation groups, which are those of one process.

    Args:
        folder: Folder of images, searched recursively, or several.
        public_domain: Add the public-domain photographs that come with scikit-image.
        held_out: Names of images used only for validation; None for an automatic split (see `HeldOut`), which is
            printed; ``[]`` for none: validation then uses new crops of the training images.
        sizes: Number of groups by side of the crops.
        val_groups: Validation groups of each size.
        versions: Altered versions per group, at least 2.
        procedural_fraction: Fraction of training groups with synthetic images.
        batch_size: Groups per batch of the smallest size; fewer for larger sizes.
        seed: Random seed.

    Raises:
        ValueError: If a held-out name is not among the images, or an argument is out of its range.
    """

    def __init__(
        self,
        folder: list[str] | str | None = None,
        public_domain: bool = True,
        held_out: list[str] | None = None,
        sizes: dict[int, int] | None = None,
        val_groups: int = 256,
        versions: int = 4,
        procedural_fraction: float = 0.2,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if versions < 2:
            raise ValueError(f"versions: expected at least 2, got {versions}")
        if not 0 <= procedural_fraction <= 1:
            raise ValueError(f"procedural_fraction: expected a number in [0, 1], got {procedural_fraction}")
        self.folder, self.public_domain, self.held_out = folder, public_domain, held_out
        self._choice = HeldOut(held_out)
        self.sizes = sizes or {64: 8192, 128: 1024}
        self.val_groups, self.versions, self.procedural_fraction = val_groups, versions, procedural_fraction
        self.batch_size, self.seed = batch_size, seed
        self.images: dict[str, Tensor] = {}
        self.trained_on: list[str] = []
        self.validated_on: list[str] = []

    @override
    def setup(self, stage: str) -> None:
        files = public_domain_photographs() if self.public_domain else {}
        folders = [self.folder] if isinstance(self.folder, str) else self.folder or []
        own: dict[str, Path] = {}
        for folder in folders:
            found = find_images(folder)
            if twice := sorted((files | own).keys() & found.keys()):
                first = (files | own)[twice[0]]
                raise ValueError(
                    f"folder: expected each name once, got '{first}' and '{found[twice[0]]}'; pass their common folder,"
                    " or rename one"
                )
            own |= found
        self._split(files | own, own, folders or ["scikit-image"])
        used = {*self.trained_on, *self.validated_on}
        self.images = {name: read_image(file) for name, file in (files | own).items() if name in used}

    def _split(self, files: dict[str, Path], own: dict[str, Path], folders: list[str]) -> None:
        """Set the names for training and validation; an automatic split holds out the user's own images only."""
        if not files:
            raise ValueError("folder: expected images to train on, got none; pass a folder or set public_domain")
        train, held_out = (files, {}) if self.held_out == [] else self._choice.split(files, folders, candidates=own)
        self.trained_on, self.validated_on = list(train), list(held_out)

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        images = [self.images[name] for name in self.trained_on]
        epoch = self.trainer.current_epoch if self.trainer else 0
        every = getattr(self.trainer, "reload_dataloaders_every_n_epochs", 0)
        epoch -= epoch % every if every else 0  # a resumed run gets the groups of the epoch of the last reload
        ranks, rank = self._ranks()
        seed = 1_000_003 * self.seed + epoch + 15_485_863 * rank
        few = batch_sizes(list(self.sizes), self.batch_size) if ranks > 1 else [0] * len(self.sizes)
        counts = [max(-(-count // ranks), least) for count, least in zip(self.sizes.values(), few, strict=True)]
        banks = [
            Groups(images, count, size, self.versions, self.procedural_fraction, seed + 1009 * size)
            for size, count in zip(self.sizes, counts, strict=True)
        ]
        batches = GroupBatches(banks, self.batch_size, True, ranks, self.seed)
        if ranks == 1:
            return ResumableLoader(batches, batch_size=None, shuffle=True)
        indices: Any = range(len(batches))  # the sampler only asks for the length
        return ResumableLoader(batches, batch_size=None, sampler=UniqueIndices(indices, self.seed, ranks, rank))

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        """Held-out photographs, or new crops of the training photographs if none are held out."""
        self._choice.announce(self.trainer)
        images = [self.images[name] for name in self.validated_on or self.trained_on]
        banks = [
            Groups(images, self.val_groups, size, self.versions, 0.0, seed=2**31 + self.seed) for size in self.sizes
        ]
        batches, (ranks, rank) = GroupBatches(banks, self.batch_size, draw=False), self._ranks()
        sampler: Any = DistributedSampler(batches, ranks, rank, shuffle=False) if ranks > 1 else None
        return DataLoader(batches, batch_size=None, sampler=sampler)

    def _ranks(self) -> tuple[int, int]:
        """Number of ranks, and that of this one."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)
