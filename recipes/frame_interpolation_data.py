"""Data of frame interpolation: synthetic motion, Vimeo-90K, your own clips, Middlebury; and clips for prediction."""

from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning.data.samplers import ResumableLoader, UniqueIndices
from lpips_lightning.io.image_files import find_images
from lpips_lightning.recipes.frame_triplets import (
    FramePairs,
    FrameTriplet,
    FrameTriplets,
    clip_pairs,
    clip_triplets,
    clips,
    middlebury_triplets,
    vimeo_triplets,
)
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.photographs import bundled_photographs
from lpips_lightning.recipes.split_data_module import SplitDataModule
from lpips_lightning.recipes.synthetic_motion import SyntheticMotion

Layout: TypeAlias = Literal["photographs", "vimeo", "clips"]
ValLayout: TypeAlias = Literal["photographs", "vimeo", "clips", "middlebury"]

Source: TypeAlias = dict[str, Path] | list[FrameTriplet]  # photographs for synthetic motion, or triplets of files


class FrameInterpolationData(SplitDataModule):
    """Crops of frame triplets for training, full frames for validation and test, frame pairs for prediction.

    Batches are (frame 0, frame 1, middle, names), shapes ``(N, 3, H, W)``, range [0, 1]; for ``predict`` from a
    folder (frame 0, frame 1, names). The validation batch size is 1, since the sizes of files may differ.

    Args:
        layout: What `folder` contains. ``"photographs"``: single images for `SyntheticMotion`.
            ``"vimeo"``: Vimeo-90K, with ``tri_trainlist.txt``, ``tri_testlist.txt`` and ``sequences``. ``"clips"``:
            folders of numbered frames; every three consecutive frames are a triplet.
        folder: Folder of the training data, searched recursively; None for the photographs that come with scikit-image.
        held_out: Names of photographs (files without suffix) or clips (folders) for validation and test; None for
            scikit-image's "astronaut", or an automatic split of `folder` (see `HeldOut`), which is printed.
        val_layout: What `val_folder` contains, as `layout`, or ``"middlebury"``: ``frames`` and ``interp_gt``.
        val_folder: Folder for validation and test instead of `held_out`; for Vimeo-90K, None uses its test list.
        predict_folder: Clips to interpolate, as folders of consecutive frames; None for the validation frames.
        crop_size: Side of a training crop, in pixels.
        val_size: Side of synthetic validation frames, in pixels.
        max_motion: Largest translation of a layer from frame 0 to frame 1 in synthetic motion, in pixels.
        epoch_size: Synthetic triplets per epoch; with files, an epoch has all triplets.
        val_count: Number of synthetic validation triplets, which are fixed.
        batch_size: Crops per batch.
        num_workers: Worker processes.
        seed: Seed of synthetic motion, crops and order of the epochs.

    Raises:
        ValueError: If an argument is out of its range, or a folder has another layout (the latter in ``setup``).
        FileNotFoundError: If a folder or a file does not exist (in ``setup``).
    """

    def __init__(
        self,
        layout: Layout = "photographs",
        folder: str | None = None,
        held_out: list[str] | None = None,
        val_layout: ValLayout | None = None,
        val_folder: str | None = None,
        predict_folder: str | None = None,
        crop_size: int = 128,
        val_size: int = 256,
        max_motion: float = 24.0,
        epoch_size: int = 800,
        val_count: int = 16,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choices(layout, val_layout, folder, val_folder, held_out)
        sizes = {"crop_size": crop_size, "val_size": val_size, "epoch_size": epoch_size, "val_count": val_count}
        for argument, size in {**sizes, "batch_size": batch_size}.items():
            if size < 1:
                raise ValueError(f"{argument}: expected at least 1, got {size}")
        for argument, number in (("num_workers", num_workers), ("seed", seed)):
            if number < 0:
                raise ValueError(f"{argument}: expected at least 0, got {number}")
        self.layout, self.folder, self.held_out, self._choice = layout, folder, held_out, HeldOut(held_out)
        self.val_layout, self.val_folder, self.predict_folder = val_layout or layout, val_folder, predict_folder
        self.crop_size, self.val_size, self.max_motion = crop_size, val_size, max_motion
        self.epoch_size, self.val_count, self.batch_size = epoch_size, val_count, batch_size
        self.num_workers, self.seed = num_workers, seed

    @override
    def setup(self, stage: str) -> None:
        self._stage = stage
        if stage == "fit":
            self.train_data = self._dataset(self._train_source(), self.crop_size, self.epoch_size)
        if stage == "predict" and self.predict_folder is not None:
            pairs = [pair for frames in clips(self.predict_folder, 2).values() for pair in clip_pairs(frames)]
            self.predict_data: Dataset[Any] = FramePairs(pairs)
        else:
            self.val_data = self._dataset(self._val_source(), self.val_size, self.val_count, validation=True)
            self.predict_data = self.val_data

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = UniqueIndices(self.train_data, self.seed, ranks, rank)
        return ResumableLoader(self.train_data, sampler=sampler, **self._options(self.batch_size))

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_data, **self._options(1))

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.predict_data, **self._options(1))

    def _train_source(self) -> Source:
        if self.layout == "vimeo":
            return vimeo_triplets(self.folder or "", "train")
        return _as_source(self._split()[0])

    def _val_source(self) -> Source:
        folder = self.val_folder
        if folder is None:
            return vimeo_triplets(self.folder or "", "test") if self.layout == "vimeo" else _as_source(self._split()[1])
        if self.val_layout == "photographs":
            return find_images(folder)
        if self.val_layout == "clips":
            return _as_source(clips(folder, 3))
        return middlebury_triplets(folder) if self.val_layout == "middlebury" else vimeo_triplets(folder, "test")

    def _split(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Photographs or clips by name: for training, and held out."""
        if self.layout == "clips":
            found: dict[str, Any] = dict(clips(self.folder or "", 3))
        else:
            found = bundled_photographs() if self.folder is None else find_images(self.folder)
        if self.val_folder is not None:
            return found, {}
        if self.folder is None and self._choice.chosen is None:
            return HeldOut(["astronaut"]).split(found, "scikit-image")
        return self._choice.split(found, self.folder or "scikit-image", self.layout)

    def _dataset(self, source: Source, size: int, length: int, validation: bool = False) -> Dataset[Any]:
        if isinstance(source, dict):
            return SyntheticMotion(source, (size, size), length, self.max_motion, self.seed + validation)
        return FrameTriplets(source, None if validation else size, self.seed)

    def _options(self, batch_size: int) -> dict[str, Any]:
        self._choice.announce(self.trainer)
        # With their own generator, dataloaders do not change the global random state of the training.
        return {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }


def _as_source(parts: dict[str, Any]) -> Source:
    """Photographs unchanged, or the triplets of all clips."""
    if all(isinstance(part, Path) for part in parts.values()):
        return parts
    return [triplet for frames in parts.values() for triplet in clip_triplets(frames)]


def _check_choices(
    layout: str, val_layout: str | None, folder: str | None, val_folder: str | None, held_out: list[str] | None
) -> None:
    if layout not in get_args(Layout):
        raise ValueError(f"layout: expected one of {get_args(Layout)}, got {layout!r}")
    if val_layout is not None and val_layout not in get_args(ValLayout):
        raise ValueError(f"val_layout: expected one of {get_args(ValLayout)}, got {val_layout!r}")
    if layout != "photographs" and folder is None:
        raise ValueError(f"folder: expected the folder of the {layout}, got None; only photographs are included")
    if val_folder is None and val_layout not in (None, layout):
        raise ValueError(f"val_folder: expected the folder of val_layout {val_layout!r}, got None")
    if held_out is not None and (val_folder is not None or layout == "vimeo"):
        raise ValueError("held_out: expected None with a val_folder or Vimeo-90K, which has a test list")
