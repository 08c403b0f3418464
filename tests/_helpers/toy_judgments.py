"""Small judged data sets for the tests: triplets of noise, distorted, and judged by a hidden calibration."""

from __future__ import annotations

import torch
from frozen_networks import frozen_network
from torch.utils.data import DataLoader, Dataset

from lpips_lightning import LPIPS
from lpips_lightning._lightning import LightningDataModule
from lpips_lightning.data.distortions import distort
from lpips_lightning.data.samplers import EpochSampler, ResumableLoader
from lpips_lightning.recipes.distillation_augmentations import procedural

KINDS = ("gaussian_noise", "gaussian_blur", "shift", "jpeg", "color_shift", "checkerboard")


class Items(Dataset):
    """Rows of tensors as dicts."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {name: column[index] for name, column in self.columns.items()}

    def part(self, start, stop=None):
        return Items({name: column[start:stop] for name, column in self.columns.items()})


def hidden_judge(layer="relu1"):
    """The embedded network, restricted to every other channel of one layer."""
    seen = {
        name: (name == layer) * (torch.arange(len(weight)) % 2).float()
        for name, weight in frozen_network(LPIPS("embedded")).calibration.items()
    }
    return LPIPS("embedded", calibration=seen)


def triplets(count, size=32, seed=0):
    """Triplets on [-1, 1] with fractions 0, 0.5 and 1 in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = procedural(count, size, generator)
    ref, p0, p1 = (image * 2 - 1 for image in (images, _distorted(images, generator), _distorted(images, generator)))
    return Items({"ref": ref, "p0": p0, "p1": p1, "judge": (torch.arange(count) % 3) / 2})


def hard_triplets(count, judge, size=32, seed=0):
    """Triplets with about equal uncalibrated distances, judged 0 or 1 by another network."""
    columns = triplets(3 * count, size, seed).columns
    (even0, even1), (d0, d1) = (
        (net(columns["ref"], columns["p0"]), net(columns["ref"], columns["p1"]))
        for net in (LPIPS("embedded", calibrated=False), judge)
    )
    columns["judge"] = (d1 < d0).float()
    chosen = (even0 / even1).log().abs().argsort()[:count].sort().values
    return Items({name: column[chosen] for name, column in columns.items()})


def pairs(count, size=32, seed=1):
    """Pairs on [-1, 1] and who saw no difference."""
    found = triplets(count, size, seed).columns
    return Items({"p0": found["ref"], "p1": found["p1"], "same": found["judge"]})


def _distorted(images, generator):
    kinds = torch.randint(len(KINDS), (len(images),), generator=generator).tolist()
    strengths = (0.05 + 0.9 * torch.rand(len(images), generator=generator)).tolist()
    return torch.cat(
        [
            distort(image[None], KINDS[kind], strength, generator)
            for image, kind, strength in zip(images, kinds, strengths, strict=True)
        ]
    )


class DataModule(LightningDataModule):
    """Loaders over given rows; a subclass may say `val_names` and `test_names`."""

    def __init__(self, train=None, val=(), test=(), batch_size=5):
        super().__init__()
        self.data = {"train": train, "val": list(val), "test": list(test)}
        self.batch_size = batch_size

    def train_dataloader(self):
        data = self.data["train"]
        return ResumableLoader(data, self.batch_size, sampler=EpochSampler(data, seed=3))

    def val_dataloader(self):
        return [DataLoader(data, self.batch_size) for data in self.data["val"]]

    def test_dataloader(self):
        return [DataLoader(data, self.batch_size) for data in self.data["test"]]
