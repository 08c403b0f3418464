"""Data of the deblurring recipe: synthetic motion of photographs, your own clips, pairs of blurred and sharp images."""

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lpips_lightning.data.samplers import ResumableLoader, UniqueIndices
from lpips_lightning.io.image_files import find_images
from lpips_lightning.recipes.frame_triplets import clips
from lpips_lightning.recipes.held_out import HeldOut
from lpips_lightning.recipes.motion_blur import (
    Blurred,
    BlurredFiles,
    BlurredImages,
    SyntheticBlur,
    blurred_pairs,
    check_frames,
    windows,
)
from lpips_lightning.recipes.photographs import bundled_photographs
from lpips_lightning.recipes.split_data_module import SplitDataModule

Layout: TypeAlias = Literal["photographs", "clips", "pairs"]

Parts: TypeAlias = dict[str, Any]  # photographs, frames of clips, or pairs of sequences, by name

_WHAT = {"photographs": "photographs", "clips": "clips", "pairs": "sequences"}


class DeblurringData(SplitDataModule):
    """Crops of blurred and sharp images for training, full images for validation and test, blurred ones for prediction.

    A blurred image is the mean of an odd number of neighboring frames, and the sharp one the frame in their middle (Su
    et al. 2017). Batches are (blurred, sharp, names), shapes ``(N, 3, H, W)``, range [0, 1]; for ``predict`` from a
    folder (blurred, names). The validation batch size is 1, since the sizes of files may differ.

    Layouts of a folder, which is searched recursively:

    - ``"photographs"``: single images for `SyntheticBlur`.
    - ``"clips"``: folders of numbered sharp frames. Training takes every window of `frames` frames, validation windows
      that do not overlap.
    - ``"pairs"``: folders ``blur`` and ``sharp`` with equal names, as in GoPro and REDS (see `blurred_pairs`). If there
      are folders ``train`` and ``val`` or ``test``, the former is for training and ``val``, or else ``test``, for
      validation.

    Args:
        layout: ``"clips"`` for folders of sharp frames, ``"pairs"`` for blurred and sharp images. See above.
        folder: Folder of the training data; None for scikit-image's photographs.
        held_out: Names of photographs (files without suffix), clips or sequences (folders) for validation and test;
            None for scikit-image's "astronaut", or an automatic split of `folder` (see `HeldOut`).
        val_layout: What `val_folder` contains, as `layout`.
        val_folder: Folder for validation and test instead of `held_out`.
        predict_folder: Blurred images of any size; None for the blurred validation images.
        frames: Frames whose mean is a blurred image, an odd number; not for pairs.
        gamma: Exponent from pixel values to light, which is averaged; 1 averages the values. See `mean_of_frames`.
        crop_size: Side of a training crop, in pixels.
        val_size: Side of synthetic validation images, in pixels.
        max_motion: Largest motion of a layer, in pixels, of synthetic motion.
        max_shake: Largest length of the camera's path, in pixels, of synthetic motion.
        epoch_size: Synthetic samples per epoch; with files, an epoch has all of them.
        val_count: Number of synthetic validation samples.
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
        val_layout: Layout | None = None,
        val_folder: str | None = None,
        predict_folder: str | None = None,
        frames: int = 7,
        gamma: float = 2.2,
        crop_size: int = 96,
        val_size: int = 256,
        max_motion: float = 5.0,
        max_shake: float = 5.0,
        epoch_size: int = 1120,
        val_count: int = 16,
        batch_size: int = 4,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_choices(layout, val_layout, folder, val_folder, held_out)
        check_frames(frames)
        if not gamma > 0:
            raise ValueError(f"gamma: expected more than 0, such as 2.2; 1 is the mean of pixel values; got {gamma}")
        sizes = {"crop_size": crop_size, "val_size": val_size, "epoch_size": epoch_size, "val_count": val_count}
        for argument, size in {**sizes, "batch_size": batch_size}.items():
            if size < 1:
                raise ValueError(f"{argument}: expected at least 1, got {size}")
        for argument, number in (("num_workers", num_workers), ("seed", seed)):
            if number < 0:
                raise ValueError(f"{argument}: expected at least 0, got {number}")
        self.layout, self.folder, self.held_out, self._choice = layout, folder, held_out, HeldOut(held_out)
        self.val_layout, self.val_folder, self.predict_folder = val_layout or layout, val_folder, predict_folder
        self.frames, self.gamma, self.max_motion, self.max_shake = frames, gamma, max_motion, max_shake
        self.crop_size, self.val_size, self.epoch_size, self.val_count = crop_size, val_size, epoch_size, val_count
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def split(self) -> tuple[Parts, Parts]:
        """Photographs, clips or sequences by name: for training, and held out; the latter empty with a `val_folder`."""
        found = bundled_photographs() if self.folder is None else self._parts(self.layout, self.folder)
        if self.val_folder is not None:
            return found, {}
        if self.held_out is None and self.layout == "pairs" and (published := _published_split(found)):
            return published
        if self.folder is None and self._choice.chosen is None:
            return HeldOut(["astronaut"]).split(found, "scikit-image")
        return self._choice.split(found, self.folder or "scikit-image", _WHAT[self.layout])

    @override
    def setup(self, stage: str) -> None:
        self._stage = stage
        if stage == "predict" and self.predict_folder is not None:
            self.predict_data: Dataset[Any] = BlurredImages(find_images(self.predict_folder))
            return
        if stage == "fit" or self.val_folder is None:
            train, held_out = self.split()
        if self.val_folder is not None:
            held_out = self._parts(self.val_layout, self.val_folder)
        if stage == "fit":
            self.train_data = self._dataset(self.layout, train, training=True)
        self.val_data = self._dataset(self.val_layout, held_out, training=False)
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

    def _parts(self, layout: Layout, folder: str) -> Parts:
        if layout == "photographs":
            return dict(find_images(folder))
        return dict(clips(folder, self.frames) if layout == "clips" else blurred_pairs(folder))

    def _dataset(self, layout: Layout, parts: Parts, training: bool) -> Dataset[Any]:
        if layout == "photographs":
            side, length = (self.crop_size, self.epoch_size) if training else (self.val_size, self.val_count)
            motion = (self.frames, self.gamma, self.max_motion, self.max_shake)
            return SyntheticBlur(parts, (side, side), length, *motion, seed=self.seed + (not training))
        step = 1 if training else self.frames
        files: list[Blurred] = []
        for part in parts.values():
            files += windows(part, self.frames, step) if layout == "clips" else part
        return BlurredFiles(files, self.crop_size if training else None, self.gamma, self.seed)

    def _options(self, batch_size: int) -> dict[str, Any]:
        self._choice.announce(self.trainer)
        # With their own generator, dataloaders do not change the global random state of the training.
        return {
            "batch_size": batch_size,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "generator": torch.Generator().manual_seed(self.seed),
        }


def _published_split(sequences: Parts) -> tuple[Parts, Parts] | None:
    """Sequences in ``train``, and those in ``val`` or else ``test``; None if there are no such folders."""
    folders: dict[str, Parts] = {}
    for name, pairs in sequences.items():
        folders.setdefault(name.split("/")[0], {})[name] = pairs
    held_out = folders.get("val") or folders.get("test")
    return (folders["train"], held_out) if "train" in folders and held_out else None


def _check_choices(
    layout: str, val_layout: str | None, folder: str | None, val_folder: str | None, held_out: list[str] | None
) -> None:
    for argument, one in (("layout", layout), ("val_layout", val_layout or layout)):
        if one not in get_args(Layout):
            raise ValueError(f"{argument}: expected one of {get_args(Layout)}, got {one!r}")
    if layout != "photographs" and folder is None:
        raise ValueError(f"folder: expected the folder of the {layout}, got None; only photographs are included")
    if val_folder is None and val_layout not in (None, layout):
        raise ValueError(f"val_folder: expected the folder of val_layout {val_layout!r}, got None")
    if held_out is not None and val_folder is not None:
        raise ValueError("held_out: expected None with a val_folder, which already holds the validation images")
