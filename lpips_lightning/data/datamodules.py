"""Lightning data modules of human judgments: BAPPS, and your own."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence, Sized
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning._lightning import LightningDataModule
from lpips_lightning.data.bapps import JND_SETS, TRAIN_SETS, VAL_SETS, JNDDataset, TwoAFCDataset, check_size
from lpips_lightning.data.bapps_download import ARCHIVES, fetch
from lpips_lightning.data.samplers import EpochSampler, Mirrored, ResumableLoader
from lpips_lightning.data.triplets import SplitBy, Triplet, TripletDataset, read_triplets, split_triplets
from lpips_lightning.io.progress import progress_report

Item = dict[str, Any]
_FEW = 100  # held-out triplets; with fewer, the 95 % interval of a 2AFC score is wider than 20 points
_log = logging.getLogger("lpips_lightning")


class _JudgedDataModule(LightningDataModule):
    """Loaders over judged data sets; the order of a training epoch depends only on seed and epoch."""

    def __init__(self, batch_size: int, num_workers: int, size: int | None, mirror: bool, seed: int) -> None:
        super().__init__()
        check_size(size)
        for argument, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
        ):
            if value < least:
                raise ValueError(f"{argument}: expected at least {least}, got {value}")
        self.batch_size, self.num_workers, self.size, self.mirror, self.seed = (
            batch_size,
            num_workers,
            size,
            mirror,
            seed,
        )
        self.train_data: Dataset[Item] | None = None
        self.val_data: dict[str, Dataset[Item]] = {}
        self.test_data: dict[str, Dataset[Item]] = {}

    @property
    def val_names(self) -> tuple[str, ...]:
        """Names of the validation loaders, in order; known after ``setup``."""
        return tuple(self.val_data)

    @property
    def test_names(self) -> tuple[str, ...]:
        """Names of the test loaders, in order; known after ``setup``."""
        return tuple(self.test_data)

    @override
    def train_dataloader(self) -> DataLoader[Item]:
        if self.train_data is None:
            raise ValueError("train_dataloader: expected setup('fit') before it")
        data = Mirrored(self.train_data) if self.mirror else self.train_data
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(data, self.seed, ranks, rank)
        return ResumableLoader(data, sampler=sampler, **self._options())

    @override
    def val_dataloader(self) -> list[DataLoader[Item]]:
        return [DataLoader(data, **self._options()) for data in self.val_data.values()]

    @override
    def test_dataloader(self) -> list[DataLoader[Item]]:
        return [DataLoader(data, **self._options()) for data in self.test_data.values()]

    def _warn_if_few(self) -> None:
        """Say before the training that its scores will tell little."""
        held_out = sum(len(cast(Sized, data)) for data in self.val_data.values())
        first = self.trainer is None or self.trainer.global_rank == 0
        if first and self.train_data is not None and 0 < held_out < _FEW:
            count = held_out + len(cast(Sized, self.train_data))
            _log.warning(
                "%d judged triplets, %d held out: too few to tell a better calibration from chance; even %d held-out"
                " triplets leave a 2AFC score uncertain by 10 points either way",
                *(count, held_out, _FEW),
            )

    def _options(self) -> dict[str, Any]:
        # A separate generator, so that loaders do not advance the global random state.
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }


class BAPPSDataModule(_JudgedDataModule):
    """BAPPS: one training loader over all `train_sets`, one validation loader per set, tests on 2AFC and JND sets.

    Batches have the items of `TwoAFCDataset`; test loaders named ``"jnd/..."`` in `test_names` have those of
    `JNDDataset`. The other test loaders are named ``"2afc/..."``; `val_names` are the plain names of the sets.

    ``prepare_data`` downloads the archive of every missing folder ``2afc/train``, ``2afc/val`` and ``jnd/val``, with
    progress bars on the terminal. Only one process at a time may do this.

    Args:
        folder: Folder of the data set, from BAPPS or from ``lpips-lightning bapps make``.
        train_sets: 2AFC sets to train on; may be empty.
        val_sets: 2AFC sets to validate and test on; may be empty.
        jnd_sets: JND sets to test on; may be empty.
        batch_size: Triplets (pairs) per batch; the paper uses 50.
        num_workers: Worker processes per loader.
        size: Side to resize images to; the paper uses 64. None: no resizing.
        mirror: Mirror a random half of the training triplets horizontally, redrawn every epoch; the paper does not.
        seed: Seed of the training order.
        download: Whether to download missing archives.

    Raises:
        ValueError: If an argument is invalid.
        FileNotFoundError: If a set or a file is missing (in ``setup``).
        OSError: If a download fails (in ``prepare_data``); the message explains the manual download.
    """

    def __init__(
        self,
        folder: str = "data/bapps",
        train_sets: Sequence[str] = TRAIN_SETS,
        val_sets: Sequence[str] = VAL_SETS,
        jnd_sets: Sequence[str] = JND_SETS,
        batch_size: int = 50,
        num_workers: int = 0,
        size: int | None = 64,
        mirror: bool = False,
        seed: int = 0,
        download: bool = True,
    ) -> None:
        super().__init__(batch_size, num_workers, size, mirror, seed)
        self.folder, self.download = folder, download
        self.sets = {"2afc/train": tuple(train_sets), "2afc/val": tuple(val_sets), "jnd/val": tuple(jnd_sets)}

    @override
    def prepare_data(self) -> None:
        if not self.download:
            return
        with progress_report() as report:
            for part, sets in self.sets.items():
                if sets:
                    fetch(ARCHIVES[part], self.folder, report)

    @override
    def setup(self, stage: str) -> None:
        train, val, jnd = self.sets.values()
        if stage == "fit" and train:
            self.train_data = TwoAFCDataset(self.folder, "train", train, self.size)
        two_afc = {name: TwoAFCDataset(self.folder, "val", (name,), self.size) for name in val}
        if stage in ("fit", "validate"):
            self.val_data = dict(two_afc)
        if stage == "fit":
            self._warn_if_few()
        if stage == "test":
            pairs = {f"jnd/{name}": JNDDataset(self.folder, (name,), self.size) for name in jnd}
            self.test_data = {**{f"2afc/{name}": data for name, data in two_afc.items()}, **pairs}


class TripletDataModule(_JudgedDataModule):
    """Your own judgments: a CSV (see `lpips_lightning.data.triplets`) and a folder of images of any size.

    Batches have the items of `TripletDataset`. The validation loader ``"triplets"`` and the test loader
    ``"2afc/triplets"`` read the same data.

    Args:
        csv: Judgments for training, split into training and validation if there is no `val_csv`.
        folder: Folder of the images that the CSVs name.
        val_csv: Judgments for validation, over the same folder.
        val_fraction: Fraction of the references (triplets) of `csv` to hold out if there is no `val_csv`.
        split_by: ``"reference"``: no reference is in both parts, so that the score holds for new references.
            ``"triplet"``, also taken if there is one reference only: triplets of a reference may be in both parts.
        columns: Column names in the files that differ from the default, such as ``{"ref": "reference"}``.
        batch_size: Triplets per batch.
        num_workers: Worker processes per loader; 0 suits a few hundred images, which stay in memory.
        size: Side to resize images to (see `resize_image`); None: no resizing.
        mirror: Mirror a random half of the training triplets horizontally, redrawn every epoch.
        seed: Seed of the split and the training order.
        cache_megabytes: Size of the cache of decoded images, per process, in MiB.

    Raises:
        ValueError: If an argument is invalid, or a CSV is (in ``setup``).
        FileNotFoundError: If a file is missing (in ``setup``).
    """

    def __init__(
        self,
        csv: str,
        folder: str,
        val_csv: str | None = None,
        val_fraction: float = 0.1,
        split_by: SplitBy = "reference",
        columns: dict[str, str] | None = None,
        batch_size: int = 50,
        num_workers: int = 0,
        size: int | None = 64,
        mirror: bool = False,
        seed: int = 0,
        cache_megabytes: int = 1024,
    ) -> None:
        super().__init__(batch_size, num_workers, size, mirror, seed)
        self.csv, self.folder, self.val_csv, self.columns = csv, folder, val_csv, columns
        self.val_fraction, self.split_by, self.cache_bytes = val_fraction, split_by, cache_megabytes << 20

    @override
    def setup(self, stage: str) -> None:
        if not self.val_data and not self.test_data:
            train, val = self._split()
            self.train_data = self._data(train)
            self._held_out = self._data(val)
        if stage in ("fit", "validate"):
            self.val_data = {"triplets": self._held_out}
        if stage == "fit":
            self._warn_if_few()
        if stage == "test":
            self.test_data = {"2afc/triplets": self._held_out}

    def _split_by(self, triplets: list[Triplet]) -> SplitBy:
        if self.split_by == "reference" and len({triplet.ref for triplet in triplets}) == 1:
            _log.warning(
                "%s: all triplets have one reference, validation too; its score says nothing about others",
                self.csv,
            )
            return "triplet"
        return self.split_by

    def _data(self, triplets: list[Triplet]) -> TripletDataset:
        return TripletDataset(triplets, self.folder, self.size, cache_bytes=self.cache_bytes)

    def _split(self) -> tuple[list[Triplet], list[Triplet]]:
        train = read_triplets(self.csv, self.folder, self.columns)
        if self.val_csv is None:
            return split_triplets(train, self.val_fraction, self.seed, self._split_by(train))
        val = read_triplets(self.val_csv, self.folder, self.columns)
        known, references = {triplet.images for triplet in train}, {triplet.ref for triplet in train}
        if both := sum(triplet.images in known for triplet in val):
            warnings.warn(f"val_csv: {both} of {len(val)} triplets are judged in csv too", stacklevel=2)
        elif both := sum(triplet.ref in references for triplet in val):
            _log.warning(
                "val_csv: %d of %d triplets have a reference of csv; their score may not hold for new references",
                *(both, len(val)),
            )
        return train, val
